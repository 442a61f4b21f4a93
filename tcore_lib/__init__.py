"""T-CoRe: self-supervised video pretraining by temporal correspondence (CVPR 2025), as a library for notebooks."""

__version__ = "0.1.0"
