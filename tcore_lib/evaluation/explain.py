"""One step of the propagation with everything in it, for the eye: notebooks 03 to 05 and the explorer draw from it.

Letters: N frames, H W pixels, h w grid, D width, C label channels, n frames that may vote.
"""

import math
from dataclasses import dataclass
from typing import Any

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
from tcore_lib.evaluation.propagation import Propagator, propagate, propagator_settings
from tcore_lib.model.encoders import FeatureEncoder
from tcore_lib.params import Benchmark


@dataclass(frozen=True)
class Votes:
    """Who votes on one patch of a frame.

    Attributes:
        votes: table of the voters, best first: frame, row, col, similarity, weight.
        context: indices of the distinct frames that may vote, oldest first.
        affinity: float32 (n, h, w), similarity of the patch to each of their patches, NaN where the radius forbids it.
    """

    votes: pd.DataFrame
    context: list[int]
    affinity: Tensor


@dataclass(frozen=True)
class Step(Votes):
    """How a patch of a frame gets its label.

    Attributes:
        image: uint8 (H, W, 3), the frame at its own size.
        context_images: uint8 (n, H, W, 3), the frames that may vote.
        soft: float32 (C, h, w), soft label map of the frame.
        channels: what the channels of `soft` are: ids, or `background` and the joints.
        prediction: uint8 (H, W) ids at input size, or float64 (15, 2) joints in pixels.
    """

    image: NDArray[np.uint8]
    context_images: NDArray[np.uint8]
    soft: Tensor
    channels: list[Any]
    prediction: NDArray[Any]


def explain(features: Tensor, query: tuple[int, int], settings: Benchmark) -> Votes:
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


def inspect_step(
    encoder: FeatureEncoder, clip: Clip, settings: Benchmark, frame: int, query: tuple[int, int], *, device: str = "cpu"
) -> Step:
    """Propagate a clip up to a frame and show how one patch gets its label; everything is returned on the CPU.

    Args:
        encoder: as for `evaluate`.
        clip: any.
        settings: the benchmark's section.
        frame: 1 ... N - 1.
        query: (row, col) on the patch grid.
        device: torch device.

    Raises:
        InputError: frame or query lie outside the clip or the grid.
    """
    if not 1 <= frame < len(clip):
        raise InputError(f"Frame {frame} of {clip.name} cannot be inspected; choose 1 to {len(clip) - 1}.")
    features = clip_features(encoder, clip, settings, frame + 1, device=device)
    found = explain(features, query, settings)
    scorer = benchmark_of(settings).Scorer(clip, settings, encoder.patch_size)
    first = scorer.first_map((features.shape[1], features.shape[2])).to(features.device)
    soft = propagate(features, first, **propagator_settings(settings))[-1].cpu()
    return Step(
        **vars(found),
        image=clipfiles.read_frame(clip.frames[frame]),
        context_images=np.stack([clipfiles.read_frame(clip.frames[other]) for other in found.context]),
        soft=soft,
        channels=scorer.channels,
        prediction=scorer.predict(soft[None])[0],
    )


def clip_features(
    encoder: FeatureEncoder, clip: Clip, settings: Benchmark, frames: int | None = None, *, device: str = "cpu"
) -> Tensor:
    """Features (N, h, w, D) of a clip's first frames, all by default, as the evaluation computes them."""
    encoder.to(device).eval()
    size = benchmark_of(settings).Scorer(clip, settings, encoder.patch_size).size
    images = (np.stack([clipfiles.read_frame(path)]) for path in clip.frames[:frames])  # (1, H, W, 3)
    inputs = (labelmaps.to_input(torch.from_numpy(image).to(device), size) for image in images)
    return torch.cat([encode(encoder, one, settings.precision) for one in inputs])
