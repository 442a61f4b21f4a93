"""What is done to the crops of a batch: cut, resized and flipped, each by its own box, then coloured, each by its own draws.

A resize is linear and separable, so one crop is `rows @ image @ columns^T`, where the two weight matrices hold the
antialiased bicubic filter (Keys' cubic with a = -0.5, its support scaled by max(1, box / output), rows normalised) and
are zero outside the box: padding around a frame never enters. A flip is a reversed matrix. That makes a whole batch two
batched products on a GPU. On a CPU torch's own 8-bit resize of one cropped image is four times quicker; it also rounds
and clips between the two axes, so that real pictures come out at most two grey levels apart, 0.3 on average.

Colour operations work in place on float32 RGB (n, 3, S, S) in 0..1, as the torchvision function of that name does on float
images, and only on the crops they apply to. Which ones these are stands in host arrays, so nothing waits for the device.
8-bit images, as the released code uses, are rounded after every step; these are not.

Letters: n crops, S output side, H W pixels of a (padded) frame. A box is (top, left, height, width) in pixels.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tcore_lib.machine import compiled

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601 weights of R, G, B, as torchvision rounds them


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


def luma(x: Tensor) -> Tensor:
    """Gray value (n, 1, S, S) of RGB."""
    red, green, blue = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


# The argument of the next four and of the blur is (n, 1, 1, 1), a value per crop.


def adjust_brightness(x: Tensor, factor: Tensor) -> None:
    """Blend with black."""
    x.mul_(factor).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> None:
    """Blend with the crop's mean gray."""
    means = x.mean((2, 3), keepdim=True)
    x.mul_(factor).add_(luma(means) * (1 - factor)).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> None:
    """Blend with gray."""
    gray = luma(x).mul_(1 - factor)
    x.mul_(factor).add_(gray).clamp_(0, 1)


def adjust_hue(x: Tensor, shift: Tensor) -> None:
    """Turn the hue by `shift` of the circle, in -0.5..0.5; HSV value and saturation stay.

    Selections are products with 0 or 1, as `torch.where` is ten times slower on a CPU.
    """
    red, green, blue = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    largest = torch.maximum(torch.maximum(red, green), blue)
    smallest = torch.minimum(torch.minimum(red, green), blue)
    chroma = largest - smallest
    # hue in sextants (0 = red, 2 = green, 4 = blue), times chroma: 4 chroma + (red - green) where blue is the largest,
    # 2 chroma + (blue - red) where green is, (green - blue) where red is
    hue = (red - green).add_(chroma, alpha=4)
    hue.lerp_((blue - red).add_(chroma, alpha=2), torch.eq(largest, green, out=torch.empty_like(hue)))
    hue.lerp_(green - blue, torch.eq(largest, red, out=torch.empty_like(hue)))
    hue.div_(chroma.clamp(min=1e-12)).mul_(1 / 6).add_(shift + 1).frac_().mul_(6)  # 0..6, turned
    # each channel is a clipped triangle wave of the hue h between smallest and largest:
    # red = smallest + chroma * clamp(|h - 3| - 1, 0, 1), green and blue = largest - chroma * clamp(|h - 2 or 4| - 1, 0, 1)
    below, above = smallest - chroma, largest + chroma  # clamp(d, 1, 2) instead of clamp(d - 1, 0, 1)
    red.copy_(below.addcmul_((hue - 3).abs_().clamp_(1, 2), chroma))
    green.copy_(torch.addcmul(above, (hue - 2).abs_().clamp_(1, 2), chroma, value=-1))
    blue.copy_(above.addcmul_((hue - 4).abs_().clamp_(1, 2), chroma, value=-1))


def gaussian_blur(x: Tensor, sigma: Tensor, width: int, fused: bool = False) -> None:
    """Gaussian blur with a `width` x `width` kernel (odd) and mirrored borders; sigma in pixels."""
    taps = torch.arange(width, device=x.device, dtype=torch.float32) - width // 2
    kernel = torch.exp(-0.5 * (taps / sigma).square())  # (n, 1, 1, width)
    (compiled(_convolve, dynamic=True) if fused else _convolve)(x, kernel / kernel.sum(-1, keepdim=True))


def _convolve(x: Tensor, kernel: Tensor) -> None:
    """Along both axes, each crop with its own kernel (n, 1, 1, width)."""
    half = kernel.shape[-1] // 2
    for dim, pad in ((2, (0, 0, half, half)), (3, (half, half, 0, 0))):
        padded = F.pad(x, pad, mode="reflect")
        torch.mul(padded.narrow(dim, 0, x.shape[dim]), kernel[..., :1], out=x)
        for i in range(1, kernel.shape[-1]):
            x.addcmul_(padded.narrow(dim, i, x.shape[dim]), kernel[..., i : i + 1])


def to_grayscale(x: Tensor) -> None:
    """Replace RGB by its gray value."""
    x.copy_(luma(x).expand_as(x))


def solarize(x: Tensor) -> None:
    """Invert what is brighter than half: threshold 128 of 8-bit values, where 127.5 is the value its own inverse."""
    torch.minimum(x, 1 - x, out=x)


JITTER = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def _edit(x: Tensor, chosen: np.ndarray, operation: Callable[..., None], *arguments: np.ndarray) -> None:
    """Run an in-place operation on the chosen crops only; each argument is a host array (n,)."""
    if not chosen.any():
        return
    values = [to_device(a[chosen].astype(np.float32), x.device).view(-1, 1, 1, 1) for a in arguments]
    index = to_device(np.flatnonzero(chosen), x.device)
    part = x if chosen.all() else x[index]
    operation(part, *values)
    if part is not x:
        x.index_copy_(0, index, part)


def apply_photometry(x: Tensor, draws: np.recarray, blur_kernel: int, fused: bool = False) -> None:
    """Jitter (in each crop's own order), grayscale, blur, solarise x in place by `draws` (n,) of `views.VIEW`.

    docs/method.md section 2. `fused` generates one kernel for each operation (torch.compile).
    """
    ready = partial(compiled, dynamic=True) if fused else lambda operation: operation
    for step in draws.order.T:  # (n,), which operation each crop does now
        for i, operation in enumerate(JITTER.values()):
            _edit(x, draws.jitter & (step == i), ready(operation), draws.factors[:, i])
    _edit(x, draws.grayscale, ready(to_grayscale))
    _edit(x, draws.sigma > 0, partial(gaussian_blur, width=blur_kernel, fused=fused), draws.sigma)
    _edit(x, draws.solarize, ready(solarize))
