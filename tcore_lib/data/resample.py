"""Crop, resize and flip frames, every crop with its own box.

A resize is linear and separable, so one crop is `rows @ image @ columns^T`, where the two weight matrices hold the
antialiased bicubic filter (Keys' cubic with a = -0.5, its support scaled by max(1, box / output), rows normalised) and
are zero outside the box: padding around a frame never enters. A flip is a reversed matrix. That makes a whole batch two
batched products on a GPU. On a CPU torch's own 8-bit resize of one cropped image is four times quicker; it also rounds
and clips between the two axes, so that real pictures come out at most two grey levels apart, 0.3 on average.

Letters: n crops, S output side, H W pixels of a (padded) frame. A box is (top, left, height, width) in pixels.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Move a host array to `device` without waiting for the work that is queued there."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def cubic(distance: Tensor) -> Tensor:
    """Keys' cubic kernel for a = -0.5 of a distance in pixels: 1 at 0, zero at 1 and from 2 on."""
    near = (1 - distance.abs()).clamp(min=0)
    far = (2 - distance.abs()).clamp(min=0)
    return near * near * (1 - 2 * near) - 0.5 * far * far * (1 - far)


def axis_matrices(
    start: np.ndarray, length: np.ndarray, flip: np.ndarray, pixels: int, size: int, device: torch.device
) -> Tensor:
    """Weights (n, S, pixels) of the antialiased bicubic resize of one (padded) axis of `pixels` pixels to S = `size`.

    The box of each crop is `length` (n,) pixels long from `start` (n,) on; where `flip` (n,), the output runs backwards.
    Rows sum to 1 and are zero outside the box.
    """
    taps = min(math.ceil(4 * max(1.0, length.max() / size)) + 1, pixels)
    box = np.stack([start, start + length, length / size, np.maximum(length / size, 1)]).astype(np.float32)
    first, stop, scale, width = to_device(box, device).view(4, -1, 1, 1)  # each (n, 1, 1)
    out = np.where(flip[:, None], np.arange(size)[::-1], np.arange(size)).astype(np.float32) + np.float32(0.5)
    centre = torch.addcmul(first, scale, to_device(out, device)[..., None])  # (n, S, 1), in pixels of the axis
    window = torch.arange(taps, device=device, dtype=torch.float32)
    pixel = (centre - 2 * width).floor_().clamp_(0, pixels - taps) + window  # (n, S, taps)
    weights = cubic((pixel + 0.5 - centre) / width).mul_((pixel >= first) & (pixel < stop))
    weights /= weights.sum(-1, keepdim=True)
    return torch.zeros(len(start), size, pixels, device=device).scatter_(-1, pixel.long(), weights)


def resize_batch(
    images: Tensor, boxes: np.ndarray, flips: np.ndarray, size: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Resize one box of every image in two batched matrix products, without waiting for the device.

    images (n, 3, H, W) uint8; boxes (n, 4) and flips (n,) on the host -> (n, 3, S, S) float32 in 0..1, clamped where the
    cubic overshoots. `dtype` of the products: float32, or on a GPU fp16, which errs by a few tenths of a grey level.
    """
    count, _, height, width = images.shape
    rows = axis_matrices(boxes[:, 0], boxes[:, 2], np.zeros_like(flips), height, size, images.device)  # (n, S, H)
    columns = axis_matrices(boxes[:, 1], boxes[:, 3], flips, width, size, images.device)  # (n, S, W)
    dtype = dtype or (torch.float16 if images.is_cuda else torch.float32)
    lines = images.permute(0, 2, 1, 3).to(dtype, memory_format=torch.contiguous_format)  # (n, H, 3, W)
    with torch.autocast(images.device.type, enabled=False):  # it would choose bf16
        narrow = lines.flatten(1, 2) @ columns.to(dtype).mT  # (n, 3 * H, S)
        out = rows.to(dtype) @ narrow.view(count, height, 3 * size)  # (n, S, 3 * S)
    pictures = out.view(count, size, 3, size).permute(0, 2, 1, 3).to(torch.float32).contiguous()
    return pictures.mul_(1 / 255).clamp_(0, 1)


def resize_one(image: Tensor, box: np.ndarray, flip: bool, size: int) -> Tensor:
    """Resize one box of a uint8 image (3, H, W) on the CPU, as torchvision does: float32 (1, 3, S, S) in 0..1."""
    top, left, height, width = box.tolist()
    crop = image[None, :, top : top + height, left : left + width]
    out = F.interpolate(crop, (size, size), mode="bicubic", antialias=True)
    return (out.flip(-1) if flip else out).contiguous().float().mul_(1 / 255)
