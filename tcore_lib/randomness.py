"""Every random choice is a function of (seed, what it is for, global counter), and of nothing else.

The counter is the position of a sample in the run's endless sequence of samples (`step * global_batch + i`), or the step.
So a batch is the same for any number of loader workers, ranks and restarts.
"""

import numpy as np

# What a draw is for. The numbers are part of every run's identity: append, never reorder.
STREAMS = ("order", "frames", "views", "masks", "drop_path", "init", "scenes", "bootstrap")


def generator(seed: int, stream: str, *counter: int) -> np.random.Generator:
    """An independent NumPy generator for one purpose (of `STREAMS`) and one position; all numbers are >= 0."""
    return np.random.default_rng([seed, STREAMS.index(stream), *counter])
