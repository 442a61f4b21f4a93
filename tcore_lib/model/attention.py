"""Attention maps: cross-attention of the decoder from masked current patches to past and future, and of CLS to patches.

Letters: H W pixels of a frame, S side of the crop, P patches of it, h w the grid (P = h * w), M masked patches.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tcore_lib.data.crops import resize_batch
from tcore_lib.data.views import centre_boxes
from tcore_lib.figures.style import denormalise
from tcore_lib.model.encoders import FeatureEncoder, attention_maps
from tcore_lib.model.features import normalised, to_input
from tcore_lib.params import Views

SHOWN = 336  # pixels: side of a crop in a picture
BLOCK = 2  # patches: side of the squares that `attention_of_every_query` masks


class CrossAttention(NamedTuple):
    """One sample, past, current and future, and the attention of its current patches to the other two frames."""

    crops: np.ndarray  # uint8 (3, S', S', 3): as the network saw them, without the mask, S' = about `SHOWN`
    mask: np.ndarray  # bool (h, w): patches of the current crop that were masked
    maps: dict[str, np.ndarray]  # `past`, `future` -> float32 (heads, h, w, h, w): query, then key, whose map sums to 1

    def of(self, row: int, column: int) -> dict[str, np.ndarray]:
        """`past`, `future` -> (heads, h, w): attention of the patch at (row, column)."""
        return {role: maps[:, row, column] for role, maps in self.maps.items()}


def centre_crops(frames: Sequence[np.ndarray], size: int, views: Views) -> Tensor:
    """Auxiliary crops without photometry, normalised (n, 3, size, size), of n frames, uint8 (H, W, 3) of one size."""
    stacked = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)  # (n, 3, H, W)
    n = len(stacked)
    boxes = np.repeat(centre_boxes(np.array([stacked.shape[2:]]), views.ratio), n, axis=0)
    return normalised(resize_batch(stacked, boxes, np.zeros(n, bool), size))


@torch.no_grad()
def cross_attention(model: Any, frames: Sequence[np.ndarray], mask: np.ndarray) -> CrossAttention:
    """Run the student and decoder of a `training.tcore.TCoRe` on one sample and keep the first block's cross-attention.

    `frames` are past, current and future, uint8 (H, W, 3); `mask` bool (h, w) says which current patches are hidden.
    """
    views, encoder = model.settings.views, model.student.encoder
    device = encoder.cls_token.device
    images = centre_crops(frames, views.global_size, views).to(device)
    past, future = (encoder(images[i : i + 1])[1] for i in (0, 2))  # (1, P, D) each
    current = encoder(images[1:2], torch.from_numpy(mask.reshape(1, -1)).to(device))[1]
    maps = {}
    for role, tokens in (("past", past), ("future", future)):
        weights = model.decoder.cross_attention(current, tokens)[0]  # (heads, P, P)
        maps[role] = weights.unflatten(1, mask.shape).unflatten(3, mask.shape).float().cpu().numpy()
    shown = views.global_size * max(1, round(SHOWN / views.global_size))
    return CrossAttention(denormalise(centre_crops(frames, shown, views)), mask, maps)


@torch.no_grad()
def attention_of_every_query(
    model: Any, frames: Sequence[np.ndarray], size: tuple[int, int], reach: int = 2
) -> dict[tuple[int, int], np.ndarray]:
    """Attention of every patch of every frame to the frames up to `reach` away, each while it is masked itself.

    A frame is encoded four times, each time with another quarter of its patches masked (squares of 2 x 2, so that every
    patch is masked once); a patch's row is taken from the pass that masked it. `frames` are uint8 (H, W, 3), of one size, in
    order, and resized whole to `size`, (height, width) in pixels and multiples of the patch size.

    Returns (query frame, key frame) -> float32 (heads, P, P): query, key; rows sum to 1.
    """
    encoder, maps = model.student.encoder, {}
    rows, columns = np.indices([side // encoder.patch_size for side in size]).reshape(2, -1) // BLOCK % 2
    quarter = torch.from_numpy(2 * rows + columns)  # (P,): which pass masks the patch
    device = encoder.cls_token.device
    masks = (quarter == torch.arange(4)[:, None]).to(device)  # (4, P)
    images = [to_input(torch.tensor(frame, device=device)[None], size) for frame in frames]
    clean = [encoder(image)[1] for image in images]  # of (1, P, D)
    for query, image in enumerate(images):
        current = encoder(image.expand(4, -1, -1, -1), masks)[1]  # (4, P, D)
        for key in range(max(0, query - reach), min(len(frames), query + reach + 1)):
            if key != query:
                weights = model.decoder.cross_attention(current, clean[key].expand(4, -1, -1))  # (4, heads, P, P)
                own = weights[quarter, :, torch.arange(len(quarter))]  # (P, heads, P): of the pass that masked it
                maps[query, key] = own.transpose(0, 1).float().cpu().numpy()
    return maps


def sharpest(sample: CrossAttention, count: int) -> list[tuple[int, int]]:
    """The `count` masked patches whose mean attention has the highest peak, as (row, column); what is worth drawing."""
    peaks = sum(maps.mean(0).max((-2, -1)) for maps in sample.maps.values())  # (h, w)
    order = np.argsort(np.where(sample.mask, peaks, -1).ravel())[::-1][: min(count, int(sample.mask.sum()))]
    return [(int(index) // sample.mask.shape[1], int(index) % sample.mask.shape[1]) for index in order]


def statistics(samples: Sequence[CrossAttention]) -> dict[str, float]:
    """How the attention (mean over heads) of all masked patches is spread, on average over samples, past and future.

    `sharpness`: share of the most attended patch; `entropy`: nats; `reach`: patches from the query's place to that patch.
    """
    rows = []
    for sample in samples:
        queries = np.argwhere(sample.mask)  # (M, 2)
        for maps in sample.maps.values():
            mean = maps.mean(0)[sample.mask].reshape(len(queries), -1).astype(np.float64)  # (M, P)
            best = np.stack(np.unravel_index(mean.argmax(1), sample.mask.shape), axis=1)
            entropy = -(mean * np.log(np.maximum(mean, 1e-30))).sum(1)
            rows.append(np.stack([mean.max(1), entropy, np.linalg.norm(best - queries, axis=1)], axis=1))
    return dict(zip(("sharpness", "entropy", "reach"), np.concatenate(rows).mean(0).tolist(), strict=True))


def uniform_statistics(grid: tuple[int, int]) -> dict[str, float]:
    """`statistics` of attention that knows nothing: equal weights, and a best patch that may be any, over a grid (h, w)."""
    cells = np.argwhere(np.ones(grid, dtype=bool))  # (P, 2)
    reach = np.linalg.norm(cells[:, None] - cells[None], axis=2).mean()
    return {"sharpness": 1 / len(cells), "entropy": float(np.log(len(cells))), "reach": float(reach)}


def cls_attention(encoder: FeatureEncoder, image: Tensor) -> np.ndarray:
    """Self-attention of CLS to the patches in the last block: (3, S, S), ImageNet-normalised -> float32 (heads, h, w).

    Each head's map sums to what it leaves to the patches; the rest goes to CLS and registers.
    """
    weights = attention_maps(encoder, image[None].to(encoder.device))[0, :, 0, encoder.prefix :]  # (heads, P)
    return weights.unflatten(1, encoder.grid(*image.shape[1:])).float().cpu().numpy()
