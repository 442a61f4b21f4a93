"""What is drawn on the host before a step: which patches are masked, which residual branches are dropped.

Everything follows from (seed, step, sample counters), so that a rank, a micro-batch or a restart changes nothing. Letters: B
samples of this micro-batch, P patches of a crop, C crops with masked patches, M masked patches, V views, L local crops of a sample.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from tcore_lib.data.masking import block_masks
from tcore_lib.params import Pretrain
from tcore_lib.randomness import generator


class Draws(NamedTuple):
    """Masks and stochastic depth of one micro-batch. Crops are crop-major: all first crops, then all second."""

    masks: Tensor  # (2B, P) bool, True = masked
    crops: Tensor  # (C,) int64, which of the 2B crops have masked patches
    patches: Tensor  # (M,) int64, the masked patches among the C * P patches of those crops
    weights: Tensor  # (M,) float32, 1 / masked patches of the crop
    samples: int  # of the whole step, over all ranks and micro-batches
    masked: int  # masked patches of the whole step
    # Stochastic depth (`ViT.forward`) of the views: `current` (depth, 2, 2B), `local` (depth, 2, L * B), `past` and `future`
    # (depth, 2, C). Empty = nothing is skipped.
    keep: Mapping[str, Tensor]

    def to(self, device: torch.device) -> Self:
        """The same on a device, without waiting for the copy where the tensors are pinned."""
        masks, crops, patches, weights = (x.to(device, non_blocking=True) for x in self[:4])
        keep = {name: x.to(device, non_blocking=True) for name, x in self.keep.items()}
        return self._replace(masks=masks, crops=crops, patches=patches, weights=weights, keep=keep)


def of_masks(masks: np.ndarray, samples: int, masked: int, keep: Mapping[str, Tensor] | None = None) -> Draws:
    """Number the masked patches of a micro-batch; arguments as in `Draws`."""
    crops = np.flatnonzero(masks.any(1))
    counts = masks[crops].sum(1)
    return Draws(
        masks=torch.from_numpy(masks),
        crops=torch.from_numpy(crops),
        patches=torch.from_numpy(np.flatnonzero(masks[crops])),
        weights=torch.from_numpy(np.repeat((1.0 / counts).astype(np.float32), counts)),
        samples=samples,
        masked=masked,
        keep=keep or {},
    )


def draw_keep(seed: int, counters: Sequence[int], views: int, depth: int, rate: float) -> Tensor:
    """Stochastic depth of every view of every sample: (depth, 2, V * B) bool, view-major; False with chance `rate`."""
    draws = np.stack([generator(seed, "drop_path", int(c)).random((views, depth, 2)) for c in counters])  # (B, V, ...)
    return torch.from_numpy(draws >= rate).permute(2, 3, 1, 0).flatten(2).contiguous()


def draw(settings: Pretrain, seed: int, step: int, counters: Sequence[int]) -> Draws:
    """Masks and stochastic depth of one micro-batch, whose B global sample counters all belong to this optimiser step."""
    samples, batch = settings.loop.batch_size, len(counters)
    side = settings.views.global_size // settings.encoder.patch_size
    whole = block_masks(seed, step, 2 * samples, (side, side), settings.masks.share, settings.masks.ratio)
    place = np.asarray(counters) - step * samples
    masks = whole[np.concatenate([place, samples + place])]
    keep = {}
    if settings.encoder.drop_path > 0:
        local = settings.views.num_local
        drawn = draw_keep(seed, counters, 6 + local, settings.encoder.shape[1], settings.encoder.drop_path)
        current, small, past, future = drawn.split([2 * batch, local * batch, 2 * batch, 2 * batch], dim=-1)
        crops = torch.from_numpy(np.flatnonzero(masks.any(1)))
        keep = {"current": current, "local": small, "past": past[..., crops], "future": future[..., crops]}
    return of_masks(masks, samples, int(whole.sum()), {name: part.contiguous() for name, part in keep.items()})
