"""T-CoRe: self-supervised video pretraining by temporal correspondence (CVPR 2025), as a library for notebooks."""

import os

__version__ = "0.1.0"

# OpenMP's threads sleep while they wait. By default they spin, and on a machine that does something else a training step then
# takes ten times as long (benchmarks/busy.py). Read when torch is loaded, inherited by kernels and workers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
