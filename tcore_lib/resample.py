"""Crop, resize and flip a batch of frames, every crop with its own box.

A resize is linear and separable, so one crop is `rows @ image @ columns^T`, where the two weight matrices hold the
antialiased bicubic filter (Keys' cubic with a = -0.5, its support scaled by max(1, box / output), rows normalised) and are
zero outside the box: padding around a frame never enters. A flip is a reversed matrix. That is what runs on a GPU, a
whole batch at a time; on a CPU torch's own uint8 resize of the cropped image computes the same and is three times quicker.

Letters: n crops, S output side, H W pixels of a (padded) frame. A box is (top, left, height, width) in pixels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CUBIC = -0.5  # Keys' parameter: -0.5 is what PIL and torch use with antialias (-0.75 is torch's without)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Move a host array to `device` without waiting for the work that is queued there."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def cubic(distance: Tensor) -> Tensor:
    """Keys' cubic kernel of a distance in (scaled) pixels; zero from 2 on."""
    d = distance.abs()
    near = ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1
    far = ((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC
    return torch.where(d < 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def resize_matrices(start: Tensor, length: Tensor, flip: Tensor, length_in: int, length_out: int) -> Tensor:
    """Weights of the antialiased bicubic resize of one axis, for each of n crops.

    Args:
        start, length: (n,) float, the box along this axis in pixels.
        flip: (n,) bool, whether the output runs backwards.
        length_in: pixels of the whole (padded) axis.
        length_out: pixels of the output.

    Returns:
        (n, length_out, length_in) float; rows sum to 1 and are zero outside [start, start + length).
    """
    device = start.device
    start, length = start[:, None, None], length[:, None, None]
    out = torch.arange(length_out, device=device, dtype=torch.float32)[None, :, None]
    out = torch.where(flip[:, None, None], length_out - 1 - out, out)
    pixel = torch.arange(length_in, device=device, dtype=torch.float32)[None, None, :]
    scale = length / length_out
    centre = start + scale * (out + 0.5)
    weights = cubic((pixel + 0.5 - centre) / scale.clamp(min=1))
    weights = weights * ((pixel >= start) & (pixel < start + length))
    return weights / weights.sum(-1, keepdim=True)


def resize_by_matrices(images: Tensor, boxes: np.ndarray, flips: np.ndarray, size: int) -> Tensor:
    """Resize the box of every image as two batched matrix products; runs on any device, never waits for it.

    Args:
        images: (n, 3, H, W) uint8, or float in 0..255.
        boxes: (n, 4) int, host array.
        flips: (n,) bool, host array.
        size: S.

    Returns:
        (n, 3, S, S) float32 in 0..1, clamped where the cubic overshoots.
    """
    height, width = images.shape[-2:]
    box = to_device(boxes.astype(np.float32), images.device)
    flip = to_device(flips, images.device)
    rows = resize_matrices(box[:, 0], box[:, 2], torch.zeros_like(flip), height, size)
    columns = resize_matrices(box[:, 1], box[:, 3], flip, width, size)
    with torch.autocast(images.device.type, enabled=False):
        narrow = images.float().flatten(1, 2) @ columns.mT  # (n, 3 * H, S)
        out = rows[:, None] @ narrow.unflatten(1, (3, height))  # (n, 3, S, S)
    return out.mul_(1 / 255).clamp_(0, 1)


def resize_one(image: Tensor, box: np.ndarray, flip: bool, size: int) -> Tensor:
    """Resize the box of one uint8 image (3, H, W) with torch's own resize; returns float32 (3, S, S) in 0..1."""
    top, left, height, width = box.tolist()
    crop = image[None, :, top : top + height, left : left + width]
    out = F.interpolate(crop, (size, size), mode="bicubic", antialias=True, align_corners=False)[0]
    return (out.flip(-1) if flip else out).float().mul_(1 / 255)
