"""From three frames of a video to the fourteen crops that T-CoRe trains on (METHOD section 2).

`draw_views` draws every crop's box and photometry on the host, each sample from its own counter alone; `make_views` turns a
batch of uint8 frames into normalised crops on whatever device the frames are on.

Letters: B samples, V crops of a sample, H W pixels, S side of a crop. A sample's crops stand in the order of `crop_names`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from tcore_lib.errors import InputError
from tcore_lib.params import Views
from tcore_lib.photometry import JITTER_OPS, Photometry, apply_photometry
from tcore_lib.randomness import generator
from tcore_lib.resample import resize_by_matrices, resize_one

ROLES = ("past", "current", "future")  # order of the frames of a sample
NUM_LARGE = 6  # crops of the global size: two each of the current, past and future frame
TRIES = 10  # attempts at a random box before the centre crop is taken
DEVICE_CHUNK = 256  # crops worked on at a time on a GPU: about 1 GB of intermediate values at 256 x 340 pixels


def crop_names(num_local: int) -> list[str]:
    """Names of a sample's V = 6 + num_local crops, in storage order."""
    large = ["global_1", "global_2", "past_1", "past_2", "future_1", "future_2"]
    return large + [f"local_{i + 1}" for i in range(num_local)]


@dataclass(frozen=True)
class ViewParams:
    """The draws of a batch; host arrays with leading shape (B, V)."""

    boxes: np.ndarray  # (B, V, 4) int64: top, left, height, width in pixels of the frame
    flips: np.ndarray  # (B, V) bool
    photometry: Photometry

    def __len__(self) -> int:
        """Number of samples B."""
        return len(self.boxes)


def centre_boxes(sizes: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """Largest centred box whose width / height lies in `ratio`; sizes (B, 2) of (H, W) -> (B, 4)."""
    height, width = sizes[:, 0], sizes[:, 1]
    shape = width / height
    box_height = np.where(shape < ratio[0], np.rint(width / ratio[0]), height).astype(np.int64)
    box_width = np.where(shape > ratio[1], np.rint(height * ratio[1]), width).astype(np.int64)
    return np.stack([(height - box_height) // 2, (width - box_width) // 2, box_height, box_width], axis=-1)


def random_boxes(uniform: np.ndarray, sizes: np.ndarray, scale: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """Boxes of a random resized crop, distributed as torchvision's `RandomResizedCrop.get_params` draws them.

    Args:
        uniform: (B, V, 2 * TRIES + 2) in [0, 1): areas, ratios, top, left.
        sizes: (B, 2) int, (H, W).
        scale: (V, 2), range of the box's share of the frame's area.
        ratio: range of width / height, log-uniform.

    Returns:
        (B, V, 4) int64.
    """
    height, width = sizes[:, 0, None, None], sizes[:, 1, None, None]
    share = scale[:, :1] + (scale[:, 1:] - scale[:, :1]) * uniform[..., :TRIES]
    low, high = np.log(ratio)
    shape = np.exp(low + (high - low) * uniform[..., TRIES : 2 * TRIES])
    area = share * (height * width)
    box_width = np.rint(np.sqrt(area * shape)).astype(np.int64)  # (B, V, TRIES)
    box_height = np.rint(np.sqrt(area / shape)).astype(np.int64)
    fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
    first = fits.argmax(-1)[..., None]
    box_height = np.take_along_axis(box_height, first, -1)[..., 0]
    box_width = np.take_along_axis(box_width, first, -1)[..., 0]
    top = np.floor(uniform[..., -2] * (height[..., 0] - box_height + 1)).astype(np.int64)
    left = np.floor(uniform[..., -1] * (width[..., 0] - box_width + 1)).astype(np.int64)
    boxes = np.stack([top, left, box_height, box_width], axis=-1)
    return np.where(fits.any(-1)[..., None], boxes, centre_boxes(sizes, ratio)[:, None])


def draw_photometry(uniform: np.ndarray, settings: Views) -> Photometry:
    """Photometry of every crop from 13 uniform numbers each; uniform (B, V, 13) -> arrays (B, V, ...)."""
    pairs = [settings.blur_global_1, settings.blur_global_2] * 3
    blur = np.array(pairs + [settings.blur_local] * settings.num_local)
    solarize = np.array([0.0, settings.solarize_global_2] * 3 + [0.0] * settings.num_local)
    strength = np.array([settings.brightness, settings.contrast, settings.saturation])
    low = np.append(np.maximum(0, 1 - strength), -settings.hue)
    high = np.append(1 + strength, settings.hue)
    first, second = settings.blur_sigma
    sigma = first + (second - first) * uniform[..., 11]
    return Photometry(
        jitter=uniform[..., 0] < settings.jitter,
        order=uniform[..., 1:5].argsort(-1),
        factors=(low + (high - low) * uniform[..., 5:9]).astype(np.float32),
        grayscale=uniform[..., 9] < settings.grayscale,
        sigma=np.where(uniform[..., 10] < blur, sigma, 0).astype(np.float32),
        solarize=uniform[..., 12] < solarize,
    )


def draw_views(seed: int, counters: Sequence[int], sizes: Any, settings: Views) -> ViewParams:
    """Draw boxes and photometry of a batch; sample b depends on (seed, counters[b], sizes[b]) alone.

    Args:
        seed: the run's seed.
        counters: B global sample counters.
        sizes: (B, 2) true (H, W) of the frames in pixels; the three frames of a sample share it.
        settings: section `pretrain.views`.

    Raises:
        InputError: a size is missing or not positive.
    """
    counters, sizes = np.asarray(counters), np.asarray(sizes)
    if sizes.shape != (len(counters), 2) or (sizes < 1).any():
        raise InputError(f"sizes must hold one positive (height, width) per sample, not {sizes.tolist()}.")
    crops = NUM_LARGE + settings.num_local
    uniform = np.stack([generator(seed, "views", int(c)).random((crops, 2 * TRIES + 16)) for c in counters])
    boxes, rest = uniform[..., : 2 * TRIES + 2], uniform[..., 2 * TRIES + 2 :]
    scale = np.array([settings.global_scale] * NUM_LARGE + [settings.local_scale] * settings.num_local)
    boxes = random_boxes(boxes, sizes, scale, settings.ratio)
    boxes[:, 2:NUM_LARGE] = centre_boxes(sizes, settings.ratio)[:, None]  # past and future share one box
    flips = rest[..., 0] < settings.local_flip
    flips[:, :NUM_LARGE] = False
    return ViewParams(boxes, flips, draw_photometry(rest[..., 1:], settings))


def _render(frames: Tensor, views: ViewParams, crops: slice, size: int, settings: Views, dtype: torch.dtype) -> Tensor:
    """Crops of one size, crop-major: (C * B, 3, S, S)."""
    batch, device = len(frames), frames.device
    roles = np.array([1, 1, 0, 0, 2, 2] + [1] * settings.num_local)[crops]
    role = np.repeat(roles, batch)
    sample = np.tile(np.arange(batch), len(roles))

    def flat(array: np.ndarray) -> np.ndarray:
        return array[:, crops].swapaxes(0, 1).reshape(-1, *array.shape[2:])

    boxes, flips, photometry = flat(views.boxes), flat(views.flips), views.photometry.map(flat)
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=device).view(3, 1, 1)
    scale = 1 / torch.tensor(IMAGENET_DEFAULT_STD, device=device).view(3, 1, 1)
    out = torch.empty(len(role), 3, size, size, dtype=dtype, device=device)
    # one crop at a time stays in a core's cache; a GPU wants many
    chunk = 1 if device.type == "cpu" else DEVICE_CHUNK
    for start in range(0, len(role), chunk):
        part = slice(start, start + chunk)
        if chunk == 1:
            x = resize_one(frames[sample[start], role[start]], boxes[start], bool(flips[start]), size)[None]
        else:
            index = torch.from_numpy(sample[part] * 3 + role[part]).pin_memory().to(device, non_blocking=True)
            x = resize_by_matrices(frames.flatten(0, 1)[index], boxes[part], flips[part], size)
        apply_photometry(x, photometry.map(lambda array: array[part]), settings.blur_kernel)  # noqa: B023
        out[part] = x.sub_(mean).mul_(scale)
    return out


@torch.no_grad()
def make_views(
    frames: Tensor, views: ViewParams, settings: Views, *, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Cut, resize and colour all crops of a batch on the frames' device.

    Args:
        frames: uint8 (B, 3, 3, H, W), roles past, current, future x RGB; smaller frames are padded at the bottom and right.
        views: the draws of the same B samples.
        settings: section `pretrain.views`, as given to `draw_views`.
        dtype: of the result.

    Returns:
        `current`, `past`, `future` (2B, 3, S, S) and `local` (num_local * B, 3, s, s), normalised with the ImageNet mean and
        standard deviation; crop-major: all first crops, then all second.
    """
    batch = len(frames)
    if frames.dtype != torch.uint8 or frames.shape[1:3] != (3, 3) or frames.ndim != 5 or len(views) != batch:
        raise InputError(f"frames must be uint8 ({len(views)}, 3, 3, H, W), not {frames.dtype} {tuple(frames.shape)}.")
    large = _render(frames, views, slice(0, NUM_LARGE), settings.global_size, settings, dtype)
    local = _render(frames, views, slice(NUM_LARGE, None), settings.local_size, settings, dtype)
    current, past, future = large.split(2 * batch)
    return {"current": current, "local": local, "past": past, "future": future}


def describe(views: ViewParams, i: int) -> dict[str, dict[str, Any]]:
    """The draws of sample `i`, readable: crop name -> settings; `pandas.DataFrame(describe(v, 0)).T` makes a table."""
    rows = {}
    for crop, name in enumerate(crop_names(views.boxes.shape[1] - NUM_LARGE)):
        draws = views.photometry.map(lambda array: array[i, crop])  # noqa: B023
        steps = [f"{JITTER_OPS[k]} {draws.factors[k]:.2f}" for k in draws.order] if draws.jitter else []
        rows[name] = {
            "box": tuple(views.boxes[i, crop].tolist()),
            "flip": bool(views.flips[i, crop]),
            "jitter": ", ".join(steps),
            "grayscale": bool(draws.grayscale),
            "blur": round(float(draws.sigma), 2),
            "solarize": bool(draws.solarize),
        }
    return rows
