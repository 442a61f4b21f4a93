"""The training's log, and what it says when a training goes wrong: numbers that are no numbers, targets that say nothing."""

import csv
import importlib
import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from tcore_lib.errors import InputError
from tcore_lib.files import reading, writable
from tcore_lib.machine import summed
from tcore_lib.params import Params, Pretrain
from tcore_lib.training.schedules import Schedules

LOG_NAME = "log.csv"
Row = dict[str, float]


class TrainingStopped(InputError):
    """The training cannot go on with these settings. The message says at which step, which term, and what to try."""


def averages(names: Sequence[str], pending: Sequence[Tensor], step: int, settings: Pretrain) -> Row:
    """Means of the values (names,) of each pending step up to `step`, over all ranks; waits for the device.

    Raises:
        TrainingStopped: a value is NaN or infinite; names the first step and term, and remedies.
    """
    table = torch.stack(list(pending))  # (steps, names)
    shared = [i for i, name in enumerate(names) if not name.startswith("grad_norm")]
    table[:, shared] = summed(table[:, shared].contiguous())
    table = table.double().cpu()
    for row, values in enumerate(table.tolist(), start=step - len(table) + 1):
        for name, value in zip(names, values, strict=True):
            skipped = settings.loop.precision == "fp16" and name.startswith("grad_norm")  # by the loss scaler
            if not math.isfinite(value) and not skipped:
                safer = "" if settings.loop.precision in ("fp32", "fp64") else ", or set pretrain.loop.precision: fp32"
                clip = "" if settings.optimiser.clip_grad > 0 else ", or set pretrain.optimiser.clip_grad: 3.0"
                raise TrainingStopped(
                    f"Training stopped at step {row}: {name} became {value}; resume from an earlier checkpoint or start "
                    f"anew, and lower pretrain.optimiser.base_lr or lengthen warmup_epochs{clip}{safer}."
                )
    return dict(zip(names, table.mean(0).tolist(), strict=True))


class Log:
    """`log.csv`, appended and flushed row by row, and the tracker that `loop.tracker` names.

    Rows after `step`, the steps already made, are dropped: a resumed run makes them again.
    """

    def __init__(self, output: Path, step: int, params: Params) -> None:
        self.path = output / LOG_NAME
        log = read_log(self.path) if step else pd.DataFrame()
        kept = int((log["step"] <= step).sum()) if len(log) else 0
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)[: kept + 1] if kept else []
        with writable(self.path):
            output.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(lines), encoding="utf-8")
        self.columns = lines[0].strip().split(",") if lines else []
        self._track, self._close = tracker(params, output, step)

    def append(self, row: Row) -> None:
        """Add a row; the first one fixes the columns."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self.columns:
            self.columns = list(row)
            writer.writerow(self.columns)
        writer.writerow(row[name] if isinstance(row[name], int) else f"{row[name]:.9g}" for name in self.columns)
        with writable(self.path), open(self.path, "a", encoding="utf-8") as stream:
            stream.write(text.getvalue())
        self._track(row)

    def close(self) -> None:
        """Finish the tracker's run; the CSV is complete at any time."""
        self._close()


def tracker(params: Params, output: Path, step: int) -> tuple[Callable[[Row], object], Callable[[], object]]:
    """How a row reaches the tracker that `pretrain.loop.tracker` names, and how the tracker's run is closed."""
    name = params.pretrain.loop.tracker
    try:
        if name == "tensorboard":
            writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(output / name, purge_step=step)
            return lambda row: [writer.add_scalar(key, value, row["step"]) for key, value in row.items()], writer.close
        if name in ("trackio", "wandb"):  # one and the same interface
            package = importlib.import_module(name)
            package.init(project="tcore", name=params.run.name, config=params.model_dump(mode="json"))
            return package.log, package.finish
    except ImportError as error:
        raise InputError(
            f"pretrain.loop.tracker = {name} needs a package; run `pip install {name}`, or set it to none."
        ) from error
    return lambda row: None, lambda: None


def read_log(path: str | Path) -> pd.DataFrame:
    """The log as it stands now: one row per logged step, numbers only; empty where nothing has been logged yet.

    Raises:
        InputError: the file is damaged.
    """
    path = Path(path)
    with reading(path, "it is no training log: move it out of the folder"):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        complete = text[: text.rfind("\n") + 1]  # a last line cut off by a crash is left out
        if not complete:
            return pd.DataFrame()
        log = pd.read_csv(io.StringIO(complete), dtype=float)
        return log.astype({"step": int, "samples": int})


# ---- collapse ------------------------------------------------------------------------------------------

SETTLING_STEPS = 2000
ROWS = 20  # rows of the log that a judgement is made on
SAME_FEATURES = 0.01  # feature_std; 1 = spread evenly over the sphere
NO_INFORMATION = 0.05  # share of ln K


def check_collapse(recent: Sequence[Row], settings: Pretrain, warned: bool = False) -> bool:
    """Refuse a teacher that says the same of every image for long; warn, once, of targets that say nearly nothing.

    The official initialisation makes nearly equal CLS tokens, which looks like collapse until the network has learnt
    something. So nothing is judged before the end of the warm-up; a run is stopped after 2,000 steps at the earliest, and
    warned after half of a shorter one.

    Returns:
        Whether it has been warned of now; to be given again as `warned`.

    Raises:
        TrainingStopped: names step, figures and remedies.
    """
    warmup = int(settings.optimiser.warmup_epochs * settings.optimiser.iterations_per_epoch)
    settled = max(warmup, min(SETTLING_STEPS, Schedules(settings).steps // 2))
    rows = [row for row in recent if row["step"] > settled][-ROWS:]
    if len(rows) < ROWS or settings.loss.dino == 0:
        return warned
    most, last = math.log(settings.head.prototypes), rows[-1]
    if any(row["information_cls_share"] > NO_INFORMATION for row in rows):
        return warned
    uniform = last["teacher_entropy"] > most / 2
    what = "uniform" if uniform else "those of one winning prototype"
    said = (
        f"the targets are nearly {what} (information_cls {last['information_cls']:.3f} and teacher_entropy "
        f"{last['teacher_entropy']:.3f} of at most {most:.3f} nats, feature_std {last['feature_std']:.1e}, over {ROWS} rows of "
        "the log)"
    )
    remedy = (
        "lower pretrain.optimiser.base_lr, teacher_temperature or momentum, or raise pretrain.loss.koleo"
        if uniform
        else "raise pretrain.optimiser.teacher_temperature, or lower pretrain.loss.centre_momentum or base_lr"
    )
    if rows[0]["step"] > SETTLING_STEPS and all(row["feature_std"] < SAME_FEATURES for row in rows):
        raise TrainingStopped(f"Training stopped at step {last['step']:.0f}: it has collapsed, {said}; {remedy}.")
    if not warned:
        warnings.warn(f"Step {last['step']:.0f}: {said}; little is learnt from them: {remedy}.", stacklevel=2)
    return True
