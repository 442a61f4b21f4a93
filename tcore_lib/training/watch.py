"""When a training has gone wrong: numbers that are no numbers, and collapse; said in one sentence."""

import math
from collections.abc import Sequence

import pandas as pd

from tcore_lib.errors import InputError
from tcore_lib.params import Pretrain

# The official initialisation makes nearly equal CLS tokens, which looks like collapse until the network has learnt
# something: it is judged only after the warm-up, after this many steps, and over this many rows of the log.
SETTLING_STEPS = 2000
PATIENCE = 20
SAME_FEATURES = 0.01  # feature_std; 1 = spread evenly over the sphere
UNIFORM = 0.999  # teacher_entropy as a share of log K


class TrainingStopped(InputError):
    """The training cannot go on with these settings. The message says at which step, which term, and what to try."""


def check_finite(names: Sequence[str], values: Sequence[Sequence[float]], first_step: int, settings: Pretrain) -> None:
    """Refuse the first value that is NaN or infinite.

    Args:
        names: what each column of `values` is; gradient norms are passed over where a loss scaler skips such steps.
        values: one row per step.
        first_step: the number of the first row's step, counted from 1.
        settings: what the advice is about.

    Raises:
        TrainingStopped: names step, term and remedies.
    """
    for step, row in enumerate(values, start=first_step):
        for name, value in zip(names, row, strict=True):
            if math.isfinite(value) or (settings.loop.precision == "fp16" and name.startswith("grad_norm")):
                continue
            lower = "lower pretrain.optimiser.base_lr or lengthen warmup_epochs"
            safer = "" if settings.loop.precision in ("fp32", "fp64") else ", or set pretrain.loop.precision: fp32"
            clip = "" if settings.optimiser.clip_grad > 0 else ", or set pretrain.optimiser.clip_grad: 3.0"
            raise TrainingStopped(
                f"Training stopped at step {step}: {name} became {value}; resume from an earlier checkpoint or start "
                f"anew, and {lower}{clip}{safer}."
            )


def check_collapse(log: pd.DataFrame, settings: Pretrain) -> None:
    """Refuse a teacher that says the same of every image: uniform distributions and equal features, for long.

    Args:
        log: the log so far.
        settings: for the number of prototypes, the warm-up and the advice.

    Raises:
        TrainingStopped: names step, the two figures and remedies.
    """
    settled = max(SETTLING_STEPS, int(settings.optimiser.warmup_epochs * settings.optimiser.iterations_per_epoch))
    recent = log[log["step"] > settled].tail(PATIENCE)
    if len(recent) < PATIENCE or settings.loss.dino == 0:
        return
    most = math.log(settings.head.prototypes)
    if (recent["teacher_entropy"] > UNIFORM * most).all() and (recent["feature_std"] < SAME_FEATURES).all():
        last = recent.iloc[-1]
        raise TrainingStopped(
            f"Training stopped at step {int(last['step'])}: it has collapsed (teacher_entropy "
            f"{last['teacher_entropy']:.3f} of at most {most:.3f}, feature_std {last['feature_std']:.1e} over {PATIENCE} "
            "rows of the log); lower pretrain.optimiser.base_lr or teacher_temperature_end, raise pretrain.loss.koleo or "
            "loop.batch_size."
        )
