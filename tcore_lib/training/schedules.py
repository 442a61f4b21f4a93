"""Every quantity that changes over training, as a function of the step (docs/method.md section 7)."""

import math
from dataclasses import dataclass

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


class Schedules:
    """Of a run: `total` steps, of which it makes `steps` (`loop.max_steps` may cut it short), the first `warmup` warming up."""

    def __init__(self, settings: Pretrain) -> None:
        self._optimiser = optimiser = settings.optimiser
        per_epoch = optimiser.iterations_per_epoch
        self.peak_lr = optimiser.base_lr * math.sqrt(settings.loop.batch_size / 1024)
        self.total = max(1, int(optimiser.epochs * per_epoch))
        self.warmup = int(optimiser.warmup_epochs * per_epoch)
        self._frozen = int(optimiser.freeze_last_layer_epochs * per_epoch)
        self._tempering = int(optimiser.teacher_temperature_epochs * per_epoch)
        self.steps = self.total if settings.loop.max_steps is None else min(settings.loop.max_steps, self.total)

    def at(self, step: int) -> Hyper:
        """Values that step `step` (from 0) is made with."""
        of, total = self._optimiser, self.total
        lr = cosine(step, self.peak_lr, of.min_lr, total, self.warmup)
        return Hyper(
            lr=lr,
            encoder_lr=0.0 if step < of.hold_steps else lr * of.encoder_lr,
            decoder_lr=cosine(step, self.peak_lr * of.decoder_lr, of.min_lr, total, self.warmup),
            last_layer_lr=0.0 if step < self._frozen else lr,
            weight_decay=cosine(step, of.weight_decay, of.weight_decay_end, total),
            momentum=cosine(step, of.momentum, of.momentum_end, total),
            teacher_temperature=linear(step, of.teacher_temperature, of.teacher_temperature_end, self._tempering),
        )
