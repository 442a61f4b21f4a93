"""Labels on and off the patch grid: first labels to soft maps, soft maps to id maps (docs/protocol.md; joints: `jhmdb`).

Letters: B frames, H W pixels, h w grid, C label channels.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tcore_lib.model.features import to_input as to_input  # frames to network input; callers find it here


def whole_patches(size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """(H, W) in pixels, floored to whole patches, at least one."""
    height, width = (max(1, side // patch_size) * patch_size for side in size)
    return height, width


def resize_ids(labels: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Nearest resize of an id map (H, W) to `size`; the pixel that OpenCV's INTER_NEAREST takes."""
    if labels.shape == tuple(size):
        return labels
    rows, columns = (_nearest(old, new) for old, new in zip(labels.shape, size, strict=True))
    return labels[rows][:, columns]


@functools.cache
def _nearest(old: int, new: int) -> NDArray[np.int64]:
    """Which of `old` pixels each of `new` pixels takes: floor(i * old / new), rounded as torch and OpenCV round it."""
    pixels = torch.arange(old, dtype=torch.float64)[None, None]
    return F.interpolate(pixels, new, mode="nearest")[0, 0].long().numpy()


def first_soft_map(labels: NDArray[np.uint8], size: tuple[int, int], grid: tuple[int, int]) -> tuple[Tensor, list[int]]:
    """Ids (H, W) of the first frame, at a network input of `size` -> float32 (C, *grid), a channel per id; and the ids."""
    at_input = torch.from_numpy(resize_ids(labels, size))
    ids = torch.unique(torch.from_numpy(labels))
    one_hot = (at_input == ids[:, None, None]).float()  # (C, H, W)
    return F.interpolate(one_hot[None], grid, mode="bilinear", align_corners=False)[0], ids.tolist()


def to_ids(soft: Tensor, ids: list[int], size: tuple[int, int], upsampling: str = "linear") -> Tensor:
    """Soft maps float (B, C, h, w) -> predicted ids uint8 (B, *size): resized to `size`, then the largest channel."""
    linear = upsampling == "linear"
    soft = F.interpolate(soft, size, mode="bilinear" if linear else "nearest", align_corners=False if linear else None)
    # The largest channel, the first of equal ones. Channel by channel: argmax along a strided dimension is 40 times
    # slower on a CPU.
    largest = soft[:, 0].clone()
    predicted = torch.full_like(largest, ids[0], dtype=torch.uint8)
    for channel, label in zip(soft.unbind(1)[1:], ids[1:], strict=True):
        predicted.masked_fill_(channel > largest, label)
        torch.maximum(largest, channel, out=largest)
    return predicted
