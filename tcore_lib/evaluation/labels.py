"""Labels on and off the patch grid: frames to network input, first labels to soft maps, soft maps to predictions.

(EVALUATION, "Features", "Label grid of the first frame", "From soft map to score".)
Letters: B frames, H W pixels, h w grid, C label channels, K joints.
"""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

JOINT_CELLS = 5  # largest cells whose weighted mean is a joint's position
JOINT_SIGMA = 0.5  # of a joint's Gaussian on the grid, in cells


def to_input(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 RGB frames (B, H, W, 3) -> ImageNet-normalised float32 (B, 3, *size).

    Resized linearly without antialias, in 0..1, as OpenCV does.
    """
    images = frames.permute(0, 3, 1, 2).float() / 255.0
    if tuple(images.shape[2:]) != tuple(size):
        images = F.interpolate(images, size, mode="bilinear", align_corners=False)
    mean = images.new_tensor(IMAGENET_DEFAULT_MEAN)[:, None, None]
    std = images.new_tensor(IMAGENET_DEFAULT_STD)[:, None, None]
    return images.sub_(mean).div_(std)


def resize_ids(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Nearest resize of an id map (H, W) to `size`; the pixel that OpenCV's INTER_NEAREST takes."""
    if labels.shape == tuple(size):
        return labels
    rows, columns = (nearest(old, new) for old, new in zip(labels.shape, size, strict=True))
    return labels[rows][:, columns]


@functools.cache
def nearest(old: int, new: int) -> NDArray[np.int64]:
    """Which of `old` pixels each of `new` pixels takes: floor(i * old / new), rounded as torch and OpenCV round it."""
    pixels = torch.arange(old, dtype=torch.float64)[None, None]
    return F.interpolate(pixels, new, mode="nearest")[0, 0].long().numpy()


def first_soft_map(labels: NDArray[np.uint8], size: tuple[int, int], grid: tuple[int, int]) -> tuple[Tensor, list[int]]:
    """Soft map of an annotated first frame.

    Args:
        labels: (H, W), id per pixel.
        size: (H, W) of the network input.
        grid: (h, w).

    Returns:
        float32 (C, h, w), one channel per id present, ascending; and the ids.
    """
    at_input = torch.from_numpy(resize_ids(labels, size))
    ids = torch.unique(torch.from_numpy(labels))
    one_hot = (at_input == ids[:, None, None]).float()  # (C, H, W)
    return F.interpolate(one_hot[None], grid, mode="bilinear", align_corners=False)[0], ids.tolist()


def to_ids(soft: Tensor, ids: list[int], size: tuple[int, int], upsampling: str = "linear") -> Tensor:
    """Soft maps float (B, C, h, w) -> predicted ids uint8 (B, *size): resized to `size`, then the largest channel."""
    if upsampling == "linear":
        soft = F.interpolate(soft, size, mode="bilinear", align_corners=False)
    else:
        soft = F.interpolate(soft, size, mode="nearest")
    # The largest channel, the first of equal ones. Channel by channel: argmax along a strided dimension is 40 times
    # slower on a CPU.
    largest = soft[:, 0].clone()
    predicted = torch.full_like(largest, ids[0], dtype=torch.uint8)
    for channel, label in zip(soft.unbind(1)[1:], ids[1:], strict=True):
        predicted.masked_fill_(channel > largest, label)
        torch.maximum(largest, channel, out=largest)
    return predicted


def joint_soft_map(joints: NDArray[np.floating], grid: tuple[int, int]) -> Tensor:
    """Soft map of the first frame's joints.

    Each joint is a Gaussian in a 4 x 4 window whose first cell is (int(u - 1.5), int(v - 1.5)) and whose peak is its
    third cell. `int` truncates towards zero, also at the window's end `int(u + 2.5)`: of a joint less than 1.5 cells
    from the left or upper border the released code keeps one column or row less than the window has, and so do we.

    Args:
        joints: (K, 2), grid coordinates u (along the width), v.
        grid: (h, w).

    Returns:
        float32 (1 + K, h, w). Channel 0, the background, is 1 where no joint has any mass. A joint wholly outside the
        grid has an empty channel.
    """
    maps = np.zeros((len(joints), *grid), np.float64)
    for channel, (u, v) in zip(maps, joints, strict=True):
        rows, row_mass = _window(v, grid[0])
        columns, column_mass = _window(u, grid[1])
        channel[rows, columns] = row_mass[:, None] * column_mass
    background = maps.sum(0, keepdims=True) == 0
    return torch.from_numpy(np.concatenate([background, maps]).astype(np.float32))


def _window(coordinate: float, cells: int) -> tuple[slice, NDArray[np.float64]]:
    """Where a joint's Gaussian lies along one axis, and its values there."""
    first, end = int(coordinate - 3 * JOINT_SIGMA), int(coordinate + 3 * JOINT_SIGMA + 1)
    inside = slice(max(0, first), max(0, min(end, cells)))
    distance = np.arange(inside.start, max(inside.start, inside.stop)) - (first + 2)
    return inside, np.exp(-(distance**2) / (2 * JOINT_SIGMA**2))


def to_joints(soft: Tensor) -> Tensor:
    """Soft maps float (B, 1 + K, h, w) -> joints float64 (B, K, 2), grid coordinates x then y.

    The weighted mean of the 5 largest cells (fewer if the grid has fewer); NaN for a joint whose map is all 0. Equal
    cells are frequent (copies of one first label) and which of them counts moves the joint: the earlier one does, and
    cells less than 1e-6 apart are equal, so that the number of threads decides nothing.
    """
    maps = soft[:, 1:].flatten(2)  # (B, K, P)
    order = torch.round(maps * 2**20).sort(dim=2, descending=True, stable=True).indices
    cells = order[..., :JOINT_CELLS]
    values = maps.gather(2, cells)
    weights = (values / values.sum(2, keepdim=True)).double()
    x, y = cells % soft.shape[3], cells.div(soft.shape[3], rounding_mode="floor")
    joints = torch.stack([(x * weights).sum(2), (y * weights).sum(2)], dim=-1)
    return joints.masked_fill((maps.sum(2) == 0)[..., None], math.nan)
