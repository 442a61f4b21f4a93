"""What is decided on the host before a step: which patches are masked, which residual branches are dropped.

Everything here follows from (seed, step, sample counters), so that a rank, a micro-batch or a restart changes nothing,
and every count is known without asking the device.

Letters: B samples of this micro-batch, P patches, C crops with masked patches, Q the most masked patches of a crop, M
masked patches, V views of a sample, N global batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from tcore_lib.data.masking import block_masks
from tcore_lib.params import Pretrain
from tcore_lib.randomness import generator
from tcore_lib.training.schedules import Hyper


@dataclass(frozen=True)
class Plan:
    """Masks and stochastic depth of one micro-batch. Crops are crop-major: all first crops, then all second."""

    masks: Tensor  # (2B, P) bool
    crops: Tensor  # (C,) int64: which of the 2B crops have masked patches; only they need an auxiliary crop
    wanted: Tensor  # (C, Q) int64: their masked patches, padded with patch 0
    rows: Tensor  # (M,) int64: the masked patches among the C * Q of `wanted`
    tokens: Tensor  # (M,) int64: the same patches among all 2B * P
    weights: Tensor  # (M,) float32: 1 / masked patches of the crop
    samples: int  # N, samples of the step over all ranks and micro-batches
    masked: int  # masked patches of the step over all ranks and micro-batches
    keep_global: Tensor | None = None  # (depth, 2, 2B) bool, False = dropped
    keep_local: Tensor | None = None  # (depth, 2, num_local * B)
    keep_past: Tensor | None = None  # (depth, 2, C)
    keep_future: Tensor | None = None  # (depth, 2, C)

    def _map(self, change: Any) -> Self:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return type(self)(**{k: change(v) if isinstance(v, Tensor) else v for k, v in values.items()})

    def to(self, device: torch.device) -> Self:
        """The same on a device, without waiting for the copy where the tensors are pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same in pinned memory; a DataLoader calls it."""
        return self._map(lambda tensor: tensor.pin_memory())


def plan_masks(masks: np.ndarray, samples: int, masked: int, **keep: Tensor | None) -> Plan:
    """Index the masked patches of a micro-batch.

    Args:
        masks: (2B, P) bool, crop-major.
        samples: N of the whole step.
        masked: masked patches of the whole step.
        keep: stochastic depth, see `Plan`.
    """
    counts = masks.sum(1)
    crops = np.flatnonzero(counts)
    counts = counts[crops]
    slots = np.arange(counts.max(initial=0)) < counts[:, None]  # (C, Q) bool: which slots are not padding
    wanted = np.zeros(slots.shape, dtype=np.int64)
    wanted[slots] = np.nonzero(masks[crops])[1]
    return Plan(
        masks=torch.from_numpy(masks),
        crops=torch.from_numpy(crops),
        wanted=torch.from_numpy(wanted),
        rows=torch.from_numpy(np.flatnonzero(slots)),
        tokens=torch.from_numpy(np.flatnonzero(masks)),
        weights=torch.from_numpy(np.repeat((1.0 / counts).astype(np.float32), counts)),
        samples=samples,
        masked=masked,
        **keep,
    )


def draw_keep(seed: int, counters: Sequence[int], views: int, depth: int, rate: float) -> Tensor:
    """Stochastic depth of every view of every sample: (depth, 2, V * B) bool, view-major; False with chance `rate`."""
    draws = np.stack([generator(seed, "drop_path", int(c)).random((views, depth, 2)) for c in counters])  # (B, V, ...)
    return torch.from_numpy(draws >= rate).permute(2, 3, 1, 0).flatten(2).contiguous()


def draw_plan(settings: Pretrain, seed: int, step: int, counters: Sequence[int], hyper: Hyper) -> Plan:
    """The plan of one micro-batch.

    Args:
        settings: the whole section `pretrain`.
        seed: the run's seed.
        step: the optimiser step.
        counters: global sample counters of the micro-batch's B samples, all of this step.
        hyper: the step's schedule values; the mask schedules are read.
    """
    samples = settings.loop.batch_size
    side = settings.views.global_size // settings.encoder.patch_size
    masks = block_masks(seed, step, 2 * samples, (side, side), hyper.mask_share, hyper.mask_ratio)
    place = np.asarray(counters) - step * samples
    own = masks[np.concatenate([place, samples + place])]
    rate = settings.encoder.drop_path
    if rate == 0:
        return plan_masks(own, samples, int(masks.sum()))
    large, local, batch = 2, settings.views.num_local, len(counters)
    keep = draw_keep(seed, counters, 3 * large + local, settings.encoder.shape[1], rate)
    sizes = [large * batch, local * batch, large * batch, large * batch]
    current, local_keep, past, future = keep.split(sizes, dim=-1)
    crops = torch.from_numpy(np.flatnonzero(own.any(1)))
    return plan_masks(
        own,
        samples,
        int(masks.sum()),
        keep_global=current.contiguous(),
        keep_local=local_keep.contiguous(),
        keep_past=past[..., crops],
        keep_future=future[..., crops],
    )
