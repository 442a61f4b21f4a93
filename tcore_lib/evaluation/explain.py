"""Who votes on one patch: what the pictures of notebooks 03 to 05 and the explorer show of a propagation step.

Letters: N frames, h w grid, D width, n frames that may vote.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles, labels as labelmaps
from tcore_lib.evaluation.benchmarks import benchmark_of
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.evaluate import encode
from tcore_lib.evaluation.propagation import Neighbours, Propagator, propagator_settings
from tcore_lib.model.encoders import FeatureEncoder
from tcore_lib.params import Benchmark


class Step(NamedTuple):
    """How a patch of a clip's last frame gets its label.

    Attributes:
        votes: table of the patch's voters, best first: frame, row, col, similarity, weight.
        context: indices of the distinct frames that may vote, oldest first.
        affinity: float32 (n, h, w), similarity of the patch to each of their patches, NaN where the radius forbids it.
        neighbours: the voters of every patch.
    """

    votes: pd.DataFrame
    context: list[int]
    affinity: NDArray[np.float32]
    neighbours: Neighbours


def explain(features: Tensor, query: tuple[int, int], settings: Benchmark) -> Step:
    """Who votes on one patch of the last frame.

    Args:
        features: (N, h, w, D) of frames 0 ... N - 1, at least two.
        query: (row, col) of the patch on the grid.
        settings: the benchmark's section.

    Raises:
        InputError: there is no such patch, or no earlier frame.
    """
    number, h, w, _ = features.shape
    if number < 2:
        raise InputError("Nothing votes on a clip's first frame, whose labels are given; choose a later one.")
    if not (0 <= query[0] < h and 0 <= query[1] < w):
        raise InputError(f"The patch {tuple(query)} is not on the grid of {h} rows and {w} columns; choose another.")
    # Voters depend on features alone, so labels of no channel do.
    propagator = Propagator(features[0], features.new_empty(0, h, w), **propagator_settings(settings))
    for frame in features[1:-1]:
        propagator.step(frame)
    neighbours = Neighbours(*(part.cpu() for part in propagator.neighbours(features[-1])))
    patch = query[0] * w + query[1]
    voters = {name: part[patch].numpy() for name, part in neighbours._asdict().items()}
    votes = pd.DataFrame(
        {
            "frame": voters["frame"],
            "row": voters["patch"] // w,
            "col": voters["patch"] % w,
            "similarity": voters["similarity"],
            "weight": voters["weight"],
        }
    )
    context = [0, *range(max(1, number - 1 - settings.context), number - 1)]
    unit = F.normalize(features.float(), dim=-1)
    affinity = (unit[context] @ unit[-1][query]).cpu()  # (n, h, w)
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    squared = (rows - query[0]) ** 2 + (columns - query[1]) ** 2
    near = squared <= settings.radius**2 if settings.radius_inclusive else squared < settings.radius**2
    affinity[0 if settings.restrict_first else 1 :, ~near] = math.nan
    return Step(votes, context, affinity.numpy(), neighbours)


def clip_features(
    encoder: FeatureEncoder, clip: Clip, settings: Benchmark, frames: int | None = None, *, device: str = "cpu"
) -> Tensor:
    """Features (N, h, w, D) of a clip's first frames, all by default, as the evaluation computes them."""
    encoder.to(device).eval()
    size = benchmark_of(settings).Scorer(clip, settings, encoder.patch_size).size
    pixels = (torch.from_numpy(np.stack([clipfiles.read_frame(path)])).to(device) for path in clip.frames[:frames])
    return torch.cat([encode(encoder, labelmaps.to_input(one, size), settings.precision) for one in pixels])
