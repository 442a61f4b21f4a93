"""One step, the loop around it, and its checkpoints (docs/method.md)."""
