"""T-CoRe: self-supervised video pretraining by temporal correspondence (CVPR 2025), as a library for notebooks.

Five names do most of what one wants of a trained encoder; each takes an array, a tensor or a path:

    from tcore_lib import features, load_encoder, matches, propagate, read_video
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tcore_lib.data.decode import read_video as read_video
    from tcore_lib.evaluation.labels import propagate as propagate
    from tcore_lib.model.encoders import load_encoder as load_encoder
    from tcore_lib.model.features import features as features, matches as matches

__version__ = "0.1.0"

# OpenMP's threads soon sleep while they wait. By default they spin, and on a machine that does something else a training step then
# takes several times as long; if they slept at once, a quiet machine would pay for waking them (benchmarks/busy.py). Read when
# torch is loaded, inherited by kernels and workers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

_FROM = {  # imported when first asked for, so that `import tcore_lib` needs no torch
    "load_encoder": "model.encoders",
    "read_video": "data.decode",
    "features": "model.features",
    "matches": "model.features",
    "propagate": "evaluation.labels",
}


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module 'tcore_lib' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tcore_lib.{_FROM[name]}"), name)
