"""A whole trained model (student, teacher, decoder) in one small safetensors file, to look at and to carry elsewhere.

A training checkpoint also holds the optimiser's state and is three times as large. `load_encoder` reads this file too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.model.weights import OURS, read_weights, write_safetensors
from tcore_lib.training import checkpoints
from tcore_lib.training.official import model_of
from tcore_lib.training.tcore import TCoRe

ROLES = ("student", "teacher", "auxiliary")


def write_model(checkpoint: str | Path, target: str | Path, *, facts: Mapping[str, Any] | None = None) -> Path:
    """Write the weights of a training checkpoint in 16 bit.

    Args:
        checkpoint: `step-<8 digits>.pt` of a run.
        target: a file that ends in .safetensors.
        facts: what shall be known besides parameters, step and provenance; values that JSON can hold.

    Returns:
        The target.

    Raises:
        InputError: the checkpoint is damaged, or the target has another ending.
    """
    target = Path(target).expanduser()
    if target.suffix != ".safetensors":
        raise InputError(f"{target} cannot hold a model; give a file that ends in .safetensors.")
    content = checkpoints.load(Path(checkpoint).expanduser())
    tensors = {f"{role}.{name}": tensor.half() for role in ROLES for name, tensor in content[role].items()}
    known = {key: content[key] for key in ("step", "params", "provenance")}
    write_safetensors(target, tensors, {**known, **(facts or {})})
    return target


def read_model(path: str | Path) -> TCoRe:
    """Read a file of `write_model`, on the CPU, in float32 and evaluation mode.

    Raises:
        InputError: it is damaged or no such file, or its parameters belong to another version.
    """
    file = read_weights(path)
    known = file.metadata.get(OURS, file.metadata)
    if not isinstance(known.get("params"), dict):
        raise InputError(f"{path} says nothing of the model it belongs to; write it with export --format model.")
    settings = params.parse(known["params"], f"{path}, its parameters")
    weights: dict[str, dict[str, Tensor]] = {role: {} for role in ROLES}
    for name, tensor in file.tensors.items():
        role, _, rest = name.partition(".")
        weights.setdefault(role, {})[rest] = tensor.to(torch.float32)
    return model_of(settings.pretrain, settings.run.seed, weights, str(path))
