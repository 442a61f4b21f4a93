"""One step of the propagation with everything in it, for the eye: notebooks 03 to 05 draw from it.

Letters: H W pixels, h w grid, D width, C label channels, K joints, n context frames.
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

from tcore_lib.bodies import JOINTS
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles, labels as labelmaps
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.evaluate import encode
from tcore_lib.evaluation.propagation import Neighbours, Propagator
from tcore_lib.evaluation.protocol import MaskScorer, input_size, make_scorer, propagator_settings
from tcore_lib.model.encoders import FeatureEncoder
from tcore_lib.params import Benchmark


@dataclass(frozen=True)
class Step:
    """Everything that happens between two frames, seen from one patch of the later one.

    Attributes:
        frame: index of the frame.
        query: (row, col) of the patch on the grid.
        image: uint8 (H, W, 3), the frame at its own size.
        context: indices of the distinct frames that may vote, oldest first.
        context_images: uint8 (n, H, W, 3) of them.
        features: float32 (h, w, D), L2-normalised, of the frame.
        affinity: float32 (n, h, w), similarity of the patch to each context patch, NaN where the radius forbids it.
        votes: table of the patch's voters, best first: frame, row, col, similarity, weight.
        soft: float32 (C, h, w), soft label map of the frame.
        context_labels: float32 (n, C, h, w), soft label maps of the context.
        prediction: uint8 (H, W) ids at input size, or float64 (K, 2) joints in pixels.
        channels: what the channels of `soft` are: ids, or `background` and the joints.
        neighbours: the voters of every patch.
    """

    frame: int
    query: tuple[int, int]
    image: NDArray[np.uint8]
    context: list[int]
    context_images: NDArray[np.uint8]
    features: Tensor
    affinity: Tensor
    votes: pd.DataFrame
    soft: Tensor
    context_labels: Tensor
    prediction: NDArray[Any]
    channels: list[Any]
    neighbours: Neighbours


def inspect_step(
    encoder: FeatureEncoder,
    clip: Clip,
    settings: Benchmark,
    frame: int,
    query: tuple[int, int],
    *,
    device: str = "cpu",
) -> Step:
    """Propagate a clip up to `frame` and show how one patch gets its label; everything is returned on the CPU.

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
    scorer = make_scorer(clip, settings, encoder.patch_size)
    size = input_size(clip, settings, encoder.patch_size)
    h, w = size[0] // encoder.patch_size, size[1] // encoder.patch_size
    if not (0 <= query[0] < h and 0 <= query[1] < w):
        raise InputError(f"The patch {tuple(query)} is not on the grid of {h} rows and {w} columns; choose another.")
    encoder.to(device).eval()
    images: dict[int, NDArray[np.uint8]] = {}
    features: dict[int, Tensor] = {}
    soft: dict[int, Tensor] = {0: scorer.soft_map((h, w))}
    propagator: Propagator | None = None
    for index in range(frame + 1):
        images[index] = clipfiles.read_frame(clip.frames[index])
        pixels = torch.from_numpy(images[index]).to(device)[None]
        found = encode(encoder, labelmaps.to_input(pixels, size), settings.precision)[0]
        features[index] = F.normalize(found, dim=-1).cpu()
        if propagator is None:
            propagator = Propagator(found, soft[0].to(device), **propagator_settings(settings))
        else:
            listed = propagator.context_list()
            neighbours = propagator.neighbours(found) if index == frame else None
            soft[index] = propagator.step(found).cpu()
            needed = {index, *(other for other, _ in listed), *settings.long_memory}
            for known in (images, features, soft):
                for other in known.keys() - needed:
                    del known[other]
    assert neighbours is not None
    context = sorted({other for other, _ in listed})
    everywhere = {other for other, near in listed if not near}
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    squared = (rows - query[0]) ** 2 + (columns - query[1]) ** 2
    within = squared <= settings.radius**2 if settings.radius_inclusive else squared < settings.radius**2
    affinity = torch.stack([features[other] @ features[frame][query] for other in context])
    for position, other in enumerate(context):
        if other not in everywhere:
            affinity[position][~within] = math.nan
    neighbours = Neighbours(**{name: value.cpu() for name, value in vars(neighbours).items()})
    patch = {name: value[query[0] * w + query[1]].numpy() for name, value in vars(neighbours).items()}
    votes = pd.DataFrame(
        {
            "frame": patch["frame"],
            "row": patch["patch"] // w,
            "col": patch["patch"] % w,
            "similarity": patch["similarity"],
            "weight": patch["weight"],
        }
    )
    return Step(
        frame=frame,
        query=(int(query[0]), int(query[1])),
        image=images[frame],
        context=context,
        context_images=np.stack([images[other] for other in context]),
        features=features[frame],
        affinity=affinity,
        votes=votes,
        soft=soft[frame],
        context_labels=torch.stack([soft[other] for other in context]),
        prediction=scorer.predict(soft[frame][None])[0],
        channels=list(scorer.ids) if isinstance(scorer, MaskScorer) else ["background", *JOINTS],
        neighbours=neighbours,
    )
