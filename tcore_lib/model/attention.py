"""Where a trained network looks: the decoder's cross-attention from masked current patches to past and future frames.

Letters: H W pixels of a frame, S side of the crop, P patches of it, h w the grid (P = h * w).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from tcore_lib.data.resample import resize_batch
from tcore_lib.data.views import centre_boxes
from tcore_lib.errors import InputError
from tcore_lib.evaluation.evaluate import encode
from tcore_lib.evaluation.labels import to_input
from tcore_lib.figures.style import denormalise
from tcore_lib.model.encoders import FeatureEncoder, attention_maps
from tcore_lib.model.vit import ViT
from tcore_lib.params import Views
from tcore_lib.training.tcore import TCoRe

SHOWN = 336  # pixels: side of a crop in a picture


@dataclass(frozen=True)
class Looked:
    """One sample and where its patches look.

    Attributes:
        crops: uint8 (3, S', S', 3): past, current and future as the network saw them, but for the mask and for more
            pixels: S' is the multiple of S that comes nearest to `SHOWN`.
        mask: bool (h, w), patches of the current crop that were hidden.
        maps: `past`, `future` -> float32 (heads, h, w, h, w): query row and column, then the row and column looked at; a
            query's map sums to 1 for each head.
    """

    crops: np.ndarray
    mask: np.ndarray
    maps: dict[str, np.ndarray]

    def of(self, row: int, column: int) -> dict[str, np.ndarray]:
        """`past`, `future` -> (heads, h, w): where the patch at (row, column) looks."""
        return {role: maps[:, row, column] for role, maps in self.maps.items()}


def centre_crops(frames: Sequence[np.ndarray], size: int, views: Views) -> Tensor:
    """The auxiliary crop's geometry (METHOD section 2) without photometry, for all three frames.

    Args:
        frames: uint8 (H, W, 3), of one size.
        size: side S in pixels.
        views: section `pretrain.views`; `ratio` is read.

    Returns:
        float32 (n, 3, S, S), ImageNet-normalised.
    """
    stacked = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)  # (n, 3, H, W)
    n = len(stacked)
    boxes = np.repeat(centre_boxes(np.array([stacked.shape[2:]]), views.ratio), n, axis=0)
    crops = resize_batch(stacked, boxes, np.zeros(n, bool), size)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (crops - mean) / std


@torch.no_grad()
def look_through(model: TCoRe, frames: Sequence[np.ndarray], mask: np.ndarray) -> Looked:
    """Run the student and its decoder on one sandwich and keep the cross-attention.

    Args:
        model: trained or not.
        frames: past, current and future, uint8 (H, W, 3).
        mask: bool (h, w), patches of the current frame to hide.

    Raises:
        InputError: the model has no decoder, or the mask does not fit its grid.
    """
    settings = model.settings
    if model.decoder is None:
        raise InputError("pretrain.decoder.enabled is false: there is no cross-attention to look at.")
    side = settings.views.global_size // settings.encoder.patch_size
    if mask.shape != (side, side):
        raise InputError(f"The mask has shape {mask.shape}, the grid of a global crop {(side, side)}; make them equal.")
    device = next(model.parameters()).device
    images = centre_crops(frames, settings.views.global_size, settings.views).to(device)
    hidden = torch.from_numpy(mask.reshape(1, -1)).to(device)
    maps = {}
    with _at_rest(model) as encoder:
        past, future = (encoder(images[i : i + 1])[1] for i in (0, 2))
        current = encoder(images[1:2], hidden)[1]
        for role, tokens in (("past", past), ("future", future)):
            weights = model.decoder.cross_attention(current, tokens)[0]  # (heads, P, P)
            maps[role] = weights.unflatten(1, (side, side)).unflatten(3, (side, side)).float().cpu().numpy()
    return Looked(shown_crops(frames, settings.views), mask, maps)


@contextmanager
def _at_rest(model: TCoRe) -> Iterator[ViT]:
    """Inside, the student's encoder, which this yields, is in evaluation mode and without stochastic depth."""
    was_training = model.training
    model.eval()
    model.student.encoder.set_drop_keep(None)
    try:
        yield model.student.encoder
    finally:
        model.train(was_training)


def shown_crops(frames: Sequence[np.ndarray], views: Views) -> np.ndarray:
    """`centre_crops` for pictures: uint8 (n, S', S', 3), S' the multiple of the global size S nearest to `SHOWN`."""
    size = views.global_size * max(1, round(SHOWN / views.global_size))
    return denormalise(centre_crops(frames, size, views))


BLOCK = 2  # side, in patches, of the squares that `look_around` hides


@torch.no_grad()
def look_around(
    model: TCoRe, frames: Sequence[np.ndarray], size: tuple[int, int], reach: int = 2
) -> dict[tuple[int, int], np.ndarray]:
    """Where every patch of every frame looks in the frames around it, each while it is hidden itself.

    A frame is encoded four times, each time with another quarter of its patches hidden (squares of 2 x 2, so that every
    patch is hidden once); a patch's row is taken from the pass that hid it. The whole frame is shown, not a crop.

    Args:
        model: trained or not.
        frames: uint8 (H, W, 3), of one size.
        size: (height, width) in pixels the frames are resized to, multiples of the patch size.
        reach: frames before and after the query's that are looked at.

    Returns:
        (query frame, looked-at frame) -> float32 (heads, P, P); rows sum to 1. As `Explorer`'s `cross_attention`.

    Raises:
        InputError: the model has no decoder.
    """
    if model.decoder is None:
        raise InputError("pretrain.decoder.enabled is false: there is no cross-attention to look at.")
    device = next(model.parameters()).device
    patch = model.settings.encoder.patch_size
    rows, columns = np.indices((size[0] // patch, size[1] // patch)).reshape(2, -1) // BLOCK % 2
    quarter = torch.from_numpy(2 * rows + columns)  # (P,): which pass hides the patch
    hidden = (quarter == torch.arange(4)[:, None]).to(device)  # (4, P)
    images = [to_input(torch.tensor(frame, device=device)[None], size) for frame in frames]
    maps = {}
    with _at_rest(model) as encoder:
        clean = [encoder(image)[1] for image in images]  # of (1, P, D)
        for query, image in enumerate(images):
            current = encoder(image.expand(4, -1, -1, -1), hidden)[1]  # (4, P, D)
            for key in range(max(0, query - reach), min(len(frames), query + reach + 1)):
                if key != query:
                    weights = model.decoder.cross_attention(current, clean[key].expand(4, -1, -1))  # (4, heads, P, P)
                    own = weights[
                        quarter, :, torch.arange(len(quarter))
                    ]  # (P, heads, P): of the pass that hid the patch
                    maps[query, key] = own.transpose(0, 1).float().cpu().numpy()
    return maps


def patch_features(encoder: FeatureEncoder, frames: Sequence[np.ndarray], size: tuple[int, int]) -> Tensor:
    """L2-normalised patch features of frames, as the benchmarks read them.

    Args:
        encoder: any.
        frames: uint8 (H, W, 3), of one size.
        size: (height, width) in pixels the frames are resized to, multiples of the patch size.

    Returns:
        float32 (n, h, w, D) on the CPU.
    """
    found = [encode(encoder, to_input(torch.tensor(frame, device=encoder.device)[None], size))[0] for frame in frames]
    return torch.nn.functional.normalize(torch.stack(found).float(), dim=-1).cpu()


@torch.no_grad()
def cls_attention(encoder: FeatureEncoder, image: Tensor) -> np.ndarray:
    """Where the CLS token looks among the patches, in the last block.

    Args:
        encoder: a transformer with a CLS token.
        image: (3, S, S), ImageNet-normalised.

    Returns:
        float32 (heads, h, w); each head's map sums to what it leaves to the patches (the rest goes to CLS and registers).
    """
    weights = attention_maps(encoder, image[None].to(encoder.device))[0, :, 0, encoder.prefix :]  # (heads, P)
    return weights.unflatten(1, encoder.grid(*image.shape[1:])).float().cpu().numpy()


def sharpest(looked: Looked, count: int) -> list[tuple[int, int]]:
    """The `count` hidden patches whose mean attention has the highest peak, as (row, column); what is worth drawing."""
    peaks = sum(maps.mean(0).reshape(*looked.mask.shape, -1).max(-1) for maps in looked.maps.values())
    order = np.argsort(np.where(looked.mask, peaks, -1).ravel())[::-1][: min(count, int(looked.mask.sum()))]
    return [(int(index) // looked.mask.shape[1], int(index) % looked.mask.shape[1]) for index in order]


def statistics(samples: Sequence[Looked]) -> dict[str, float]:
    """How the attention (mean over heads) of all hidden patches is spread, on average over samples, past and future.

    Returns:
        `sharpness`: share of the most attended patch; `entropy`: nats; `reach`: distance in patches from the query's own
        place to the most attended one.
    """
    peaks, entropies, reaches = [], [], []
    for sample in samples:
        queries = np.argwhere(sample.mask)  # (M, 2)
        for maps in sample.maps.values():
            mean = maps.mean(0)[sample.mask].reshape(len(queries), -1).astype(np.float64)  # (M, P)
            best = np.stack(np.unravel_index(mean.argmax(1), sample.mask.shape), axis=1)
            peaks.append(mean.max(1))
            entropies.append(-(mean * np.log(np.maximum(mean, 1e-30))).sum(1))
            reaches.append(np.linalg.norm(best - queries, axis=1))
    names = ("sharpness", "entropy", "reach")
    return {k: float(np.concatenate(v).mean()) for k, v in zip(names, (peaks, entropies, reaches), strict=True)}


def evenly_spread(grid: tuple[int, int]) -> dict[str, float]:
    """`statistics` of attention that knows nothing: equal weights, and a best patch that may be any, over a grid (h, w)."""
    cells = np.argwhere(np.ones(grid, dtype=bool))  # (P, 2)
    reach = np.linalg.norm(cells[:, None] - cells[None], axis=2).mean()
    return {"sharpness": 1 / len(cells), "entropy": float(np.log(len(cells))), "reach": float(reach)}


def whole_patches(shape: Sequence[int], patch_size: int, zoom: float = 1.0) -> tuple[int, int]:
    """The (height, width) in pixels nearest to `zoom` times a frame's that holds whole patches."""
    height, width = (max(1, round(zoom * side / patch_size)) * patch_size for side in shape[:2])
    return height, width
