"""One step of the propagation, for the eye: notebooks 03 to 05 draw from it."""

import math
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from tcore_lib.errors import InputError
from tcore_lib.evaluation.propagation import Propagator, propagator_settings
from tcore_lib.params import Benchmark


class Votes(NamedTuple):
    """Who votes on one patch of a frame."""

    votes: pd.DataFrame  # the voters, best first: frame, row, col, similarity, weight
    context: list[int]  # the n distinct frames that may vote, oldest first
    affinity: Tensor  # float32 (n, h, w), similarity of the patch to each of theirs, NaN where the radius forbids it


def explain(features: Tensor, query: tuple[int, int], settings: Benchmark) -> Votes:
    """Who votes on the patch `query`, (row, col), of the last frame of features (N, h, w, D)."""
    number, h, w, _ = features.shape
    if number < 2:
        raise InputError("Nothing votes on a clip's first frame, whose labels are given; choose a later one.")
    if not (0 <= query[0] < h and 0 <= query[1] < w):
        raise InputError(f"The patch {tuple(query)} is not on the grid of {h} rows and {w} columns; choose another.")
    # Who votes depends on features alone; the labels carried here have no channel.
    propagator = Propagator(features[0], features.new_empty(0, h, w), **propagator_settings(settings))
    for frame in features[1:-1]:
        propagator.step(frame)
    found = propagator.neighbours(features[-1])
    frame, patch, similarity, weight = (part[query[0] * w + query[1]].cpu().numpy() for part in found)
    columns = {"frame": frame, "row": patch // w, "col": patch % w, "similarity": similarity, "weight": weight}
    context = [0, *range(max(1, number - 1 - settings.context), number - 1)]
    unit = F.normalize(features.float(), dim=-1)
    affinity = (unit[context] @ unit[-1][query]).cpu()  # (n, h, w)
    row, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    squared = (row - query[0]) ** 2 + (column - query[1]) ** 2
    near = squared <= settings.radius**2 if settings.radius_inclusive else squared < settings.radius**2
    affinity[0 if settings.restrict_first else 1 :, ~near] = math.nan
    return Votes(pd.DataFrame(columns), context, affinity)
