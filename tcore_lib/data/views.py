"""From three frames of a video to the fourteen crops that T-CoRe trains on (docs/method.md section 2).

`draw_views` draws boxes and photometry on the host; `make_views` makes normalised crops on the frames' device.
Letters: B samples, V crops of a sample, C crops of one size, n crops to make, H W pixels of a frame, S side of a crop. A
sample's crops stand in the order of `crop_names`; a box is (top, left, height, width) in pixels of the frame.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from tcore_lib.data.crops import JITTER, apply_photometry, resize_batch, resize_one, to_device
from tcore_lib.params import Views
from tcore_lib.randomness import generator

LARGE = ("global_1", "global_2", "past_1", "past_2", "future_1", "future_2")  # crops of the global size
LARGE_ROLES = (1, 1, 0, 0, 2, 2)  # the frame each of them is cut from; local crops come from the current one
TRIES = 10  # attempts at a random box before the centre crop is taken
DEVICE_PIXELS = 256 * 256 * 1360  # pixels of the frames under the crops that a GPU works on at a time: some 4 GB


class Uniforms:
    """Columns of a crop's uniform numbers in [0, 1). Their order is part of every run's identity: append, never reorder."""

    AREA = slice(0, TRIES)
    RATIO = slice(TRIES, 2 * TRIES)
    TOP, LEFT, FLIP, JITTER = range(2 * TRIES, 2 * TRIES + 4)
    ORDER = slice(2 * TRIES + 4, 2 * TRIES + 8)  # their ranks are the order of the four jitter operations
    FACTORS = slice(2 * TRIES + 8, 2 * TRIES + 12)
    GRAYSCALE, BLUR, SIGMA, SOLARIZE = range(2 * TRIES + 12, 2 * TRIES + 16)
    COUNT = 2 * TRIES + 16


def crop_names(num_local: int) -> list[str]:
    """Names of a sample's V = 6 + num_local crops, in storage order."""
    return [*LARGE, *(f"local_{i + 1}" for i in range(num_local))]


# ---------------------------------------------------------------------------------------------- drawing, on the host

ViewParams = np.recarray  # (B, V) of VIEW: the draws of a batch, on the host; `views.boxes` is (B, V, 4)
VIEW = np.dtype([
    ("boxes", np.int64, 4),  # top, left, height, width
    ("flips", bool),
    ("jitter", bool),  # colour jitter applies
    ("order", np.int64, 4),  # indices into JITTER in the order of application
    ("factors", np.float32, 4),  # by JITTER: three factors around 1, then a share of the hue circle
    ("grayscale", bool),
    ("sigma", np.float32),  # blur in pixels; 0 = none
    ("solarize", bool),
])  # fmt: skip


def centre_boxes(sizes: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """Largest centred box whose width / height lies in `ratio`; sizes (B, 2) of (H, W) -> (B, 4) int64."""
    height, width = sizes[:, 0], sizes[:, 1]
    shape = width / height
    box_height = np.where(shape < ratio[0], np.rint(width / ratio[0]), height).astype(np.int64)
    box_width = np.where(shape > ratio[1], np.rint(height * ratio[1]), width).astype(np.int64)
    return np.stack([(height - box_height) // 2, (width - box_width) // 2, box_height, box_width], axis=-1)


def random_boxes(uniform: np.ndarray, sizes: np.ndarray, scale: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """Boxes (B, V, 4) int64 of a random resized crop, distributed as those of torchvision's `RandomResizedCrop`.

    Of ten tries (area uniform in `scale` (V, 2), ratio log-uniform, sides rounded) the first that fits inside the frame of
    `sizes` (B, 2) is placed uniformly; if none fits, the box is `centre_boxes`. `uniform` is (B, V, Uniforms.COUNT).
    """
    height, width = sizes[:, 0, None, None], sizes[:, 1, None, None]  # (B, 1, 1)
    share = scale[:, :1] + (scale[:, 1:] - scale[:, :1]) * uniform[..., Uniforms.AREA]  # (B, V, TRIES)
    low, high = np.log(ratio)
    shape = np.exp(low + (high - low) * uniform[..., Uniforms.RATIO])
    area = share * (height * width)
    box_width = np.rint(np.sqrt(area * shape)).astype(np.int64)
    box_height = np.rint(np.sqrt(area / shape)).astype(np.int64)
    fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
    first = fits.argmax(-1)[..., None]  # (B, V, 1)
    box_height = np.take_along_axis(box_height, first, -1)[..., 0]  # (B, V)
    box_width = np.take_along_axis(box_width, first, -1)[..., 0]
    top = np.floor(uniform[..., Uniforms.TOP] * (height[..., 0] - box_height + 1)).astype(np.int64)
    left = np.floor(uniform[..., Uniforms.LEFT] * (width[..., 0] - box_width + 1)).astype(np.int64)
    boxes = np.stack([top, left, box_height, box_width], axis=-1)
    return np.where(fits.any(-1)[..., None], boxes, centre_boxes(sizes, ratio)[:, None])


def draw_views(seed: int, counters: Sequence[int], sizes: ArrayLike, cfg: Views) -> ViewParams:
    """Draw boxes and photometry of B samples; sample b depends on (seed, counters[b], sizes[b]) alone.

    `sizes` (B, 2) are the true (H, W) of the frames. Auxiliary crops are coloured like the global ones, each for itself.
    """
    sizes = np.asarray(sizes)
    assert sizes.shape == (len(counters), 2)
    shape = (len(LARGE) + cfg.num_local, Uniforms.COUNT)
    uniform = np.stack([generator(seed, "views", int(counter)).random(shape) for counter in counters])
    views = np.recarray(uniform.shape[:2], VIEW)

    scale = np.array([cfg.global_scale] * len(LARGE) + [cfg.local_scale] * cfg.num_local)
    views.boxes = random_boxes(uniform, sizes, scale, cfg.ratio)
    views.boxes[:, 2 : len(LARGE)] = centre_boxes(sizes, cfg.ratio)[:, None]  # past and future, both crops: one box
    views.flips = uniform[..., Uniforms.FLIP] < cfg.local_flip
    views.flips[:, : len(LARGE)] = False

    strength = np.array([cfg.brightness, cfg.contrast, cfg.saturation])
    low, high = np.append(np.maximum(0, 1 - strength), -cfg.hue), np.append(1 + strength, cfg.hue)
    views.jitter = uniform[..., Uniforms.JITTER] < cfg.jitter
    views.order = uniform[..., Uniforms.ORDER].argsort(-1)
    views.factors = low + (high - low) * uniform[..., Uniforms.FACTORS]
    views.grayscale = uniform[..., Uniforms.GRAYSCALE] < cfg.grayscale
    blur = np.array([cfg.blur_global_1, cfg.blur_global_2] * 3 + [cfg.blur_local] * cfg.num_local)
    first, last = cfg.blur_sigma
    sigma = first + (last - first) * uniform[..., Uniforms.SIGMA]
    views.sigma = np.where(uniform[..., Uniforms.BLUR] < blur, sigma, 0)
    views.solarize = uniform[..., Uniforms.SOLARIZE] < [0.0, cfg.solarize_global_2] * 3 + [0.0] * cfg.num_local
    return views


# ---------------------------------------------------------------------------------------------- making, on the device

# Both functions resize n crops of one size, each a row (frame, top, left, height, width, flip) of `geometry`, and yield
# them as float32 (n', 3, S, S) in 0..1 with the slice of rows they belong to.


def _one_by_one(frames: Tensor, geometry: np.ndarray, size: int) -> Iterator[tuple[slice, Tensor]]:
    """One at a time, so that a crop stays in the core's cache; the past's two crops are resized once."""
    for i, (frame, *box, flip) in enumerate(geometry):
        if i == 0 or (geometry[i] != geometry[i - 1]).any():
            picture = resize_one(frames[frame], np.array(box), bool(flip), size)
        yield slice(i, i + 1), picture.clone()


def _batched(frames: Tensor, geometry: np.ndarray, size: int) -> Iterator[tuple[slice, Tensor]]:
    """By the hundred, for a GPU; crops that share frame and box are resized once."""
    chunk = max(1, DEVICE_PIXELS // (frames.shape[-2] * frames.shape[-1]))
    for start in range(0, len(geometry), chunk):
        part = slice(start, start + chunk)
        distinct, which = np.unique(geometry[part], axis=0, return_inverse=True)
        source = frames[to_device(distinct[:, 0], frames.device)]
        pictures = resize_batch(source, distinct[:, 1:5], distinct[:, 5].astype(bool), size)
        yield part, pictures[to_device(which.ravel(), frames.device)]


@torch.no_grad()
def make_views(
    frames: Tensor,
    views: ViewParams,
    cfg: Views,
    *,
    dtype: torch.dtype = torch.float32,
    batched: bool | None = None,
    auxiliary: Mapping[str, np.ndarray] | None = None,
    fused: bool = False,
) -> dict[str, Tensor]:
    """Cut, resize and colour all crops of a batch on the frames' device.

    Args:
        frames: uint8 (B, 3, 3, H, W), roles past, current, future x RGB; smaller frames are padded right and below.
        views: the draws of the same B samples.
        cfg: section `pretrain.views`, as given to `draw_views`.
        dtype: of the result; the arithmetic is float32.
        batched: many crops at a time, the default on a GPU, or one by one; they differ by at most two grey levels.
        auxiliary: `past` and `future` -> (2B,) bool, which of their crops are made; default: all.
        fused: generate one kernel for each colour operation (torch.compile), for a GPU.

    Returns:
        `current`, `past`, `future` (2B, 3, S, S), of the last two the wanted crops only, and `local` (num_local * B, 3, s, s),
        normalised with ImageNet's mean and standard deviation; crop-major: all first crops, then all second.
    """
    batch = len(frames)
    assert (views.boxes[..., :2] + views.boxes[..., 2:] <= frames.shape[-2:]).all(), "a box exceeds its frame"
    device, images = frames.device, frames.flatten(0, 1)  # (3B, 3, H, W)
    resized = _batched if (device.type != "cpu" if batched is None else batched) else _one_by_one
    mean = to_device(np.array(IMAGENET_DEFAULT_MEAN, dtype=np.float32), device).view(3, 1, 1)
    inverse_std = to_device(1 / np.array(IMAGENET_DEFAULT_STD, dtype=np.float32), device).view(3, 1, 1)

    def made(views: Any, roles: Sequence[int], wanted: np.ndarray, size: int) -> Tensor:
        """The wanted (C, B) of the C crops per sample of `views`, crop c cut from the frame in role `roles[c]`."""
        image = np.array(roles) + 3 * np.arange(batch)[:, None]  # (B, C)
        keep = wanted.T  # (B, C): crops are made sample by sample, the result is crop-major
        places = (np.cumsum(wanted).reshape(wanted.shape) - 1).T[keep]  # (n,) in the result
        geometry = np.concatenate([image[..., None], views.boxes, views.flips[..., None]], axis=-1)[keep]  # (n, 6)
        draws = views[keep]
        out = torch.empty(len(places), 3, size, size, dtype=dtype, device=device)
        for part, x in resized(images, geometry, size):
            apply_photometry(x, draws[part], cfg.blur_kernel, fused)
            out.index_copy_(0, to_device(places[part], device), x.sub_(mean).mul_(inverse_std).to(dtype))
        return out

    every = np.ones((2, batch), dtype=bool)
    past, future = (every if auxiliary is None else auxiliary[name].reshape(2, batch) for name in ("past", "future"))
    large = made(views[:, : len(LARGE)], LARGE_ROLES, np.concatenate([every, past, future]), cfg.global_size)
    local = np.ones((cfg.num_local, batch), dtype=bool)
    small = made(views[:, len(LARGE) :], [1] * cfg.num_local, local, cfg.local_size)
    parts = large.split([2 * batch, int(past.sum()), int(future.sum())])
    return dict(zip(("current", "past", "future"), parts, strict=True)) | {"local": small}


def describe(views: ViewParams, i: int) -> dict[str, dict[str, Any]]:
    """The draws of sample `i`, readable: crop -> settings."""
    rows = {}
    for name, draws in zip(crop_names(views.shape[1] - len(LARGE)), views[i], strict=True):
        steps = [f"{list(JITTER)[k]} {draws.factors[k]:.2f}" for k in draws.order] if draws.jitter else []
        row = {"box": tuple(draws.boxes.tolist()), "flip": draws.flips, "jitter": ", ".join(steps)}
        rows[name] = row | {"grayscale": draws.grayscale, "blur": round(draws.sigma, 2), "solarize": draws.solarize}
    return rows
