"""One step, the loop around it, and its checkpoints (METHOD)."""
