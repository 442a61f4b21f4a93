"""Every quantity that changes over training, as a function of the step (METHOD section 7)."""

import math
from dataclasses import asdict, dataclass

from tcore_lib.params import Pretrain


def cosine(step: int, first: float, last: float, total: int, warmup: int = 0) -> float:
    """Linear from 0 to `first` over `warmup` steps, then half a cosine to `last`, which holds from step `total` on.

    The last warm-up step and the first cosine step both have the value `first`.
    """
    if step >= total:
        return last
    if step < warmup:
        return first * step / max(warmup - 1, 1)
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def linear(step: int, first: float, last: float, length: int) -> float:
    """From `first` at step 0 to `last` at step `length - 1`, which then holds."""
    if step >= length:
        return last
    return first + (last - first) * step / max(length - 1, 1)


@dataclass(frozen=True)
class Hyper:
    """The values of one step."""

    lr: float
    encoder_lr: float
    decoder_lr: float
    last_layer_lr: float
    weight_decay: float
    momentum: float
    teacher_temperature: float
    mask_share: float
    mask_ratio: tuple[float, float]

    def columns(self) -> dict[str, float]:
        """One number a column, for the log."""
        values = asdict(self)
        low, high = values.pop("mask_ratio")
        return {**values, "mask_ratio_low": low, "mask_ratio_high": high}


class Schedules:
    """Schedules of a run: `schedules.at(step)`.

    Args:
        settings: sections `optimiser`, `loop` (global batch) and `masks` are read.
    """

    def __init__(self, settings: Pretrain) -> None:
        self._settings = settings
        optimiser = settings.optimiser
        per_epoch = optimiser.iterations_per_epoch
        self.peak_lr = optimiser.base_lr * math.sqrt(settings.loop.batch_size / 1024)
        self.total = max(1, int(optimiser.epochs * per_epoch))
        self._warmup = int(optimiser.warmup_epochs * per_epoch)
        self._frozen = int(optimiser.freeze_last_layer_epochs * per_epoch)
        self._tempering = int(optimiser.teacher_temperature_epochs * per_epoch)

    @property
    def steps(self) -> int:
        """How many steps the run makes: the schedule's length or `loop.max_steps`, whichever is less."""
        limit = self._settings.loop.max_steps
        return self.total if limit is None else min(limit, self.total)

    def at(self, step: int) -> Hyper:
        """Values that step `step` (from 0) is made with."""
        optimiser, masks = self._settings.optimiser, self._settings.masks
        lr = cosine(step, self.peak_lr, optimiser.min_lr, self.total, self._warmup)
        decoder_peak = self.peak_lr * optimiser.decoder_lr
        decoder_lr = cosine(step, decoder_peak, optimiser.min_lr, self.total, self._warmup)
        return Hyper(
            lr=lr,
            encoder_lr=0.0 if step < optimiser.hold_steps else lr * optimiser.encoder_lr,
            decoder_lr=decoder_lr,
            last_layer_lr=0.0 if step < self._frozen else lr,
            weight_decay=cosine(step, optimiser.weight_decay, optimiser.weight_decay_end, self.total),
            momentum=cosine(step, optimiser.momentum, optimiser.momentum_end, self.total),
            teacher_temperature=linear(
                step, optimiser.teacher_temperature, optimiser.teacher_temperature_end, self._tempering
            ),
            mask_share=masks.share,
            mask_ratio=masks.ratio,
        )
