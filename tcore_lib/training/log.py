"""The training's log, and what it says when a training goes wrong: numbers that are no numbers, targets that say nothing."""

import importlib
import io
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from tcore_lib.errors import InputError
from tcore_lib.files import reading, writable, write_text
from tcore_lib.machine import summed
from tcore_lib.params import Params, Pretrain
from tcore_lib.training.schedules import Schedules

LOG_NAME = "log.csv"
HOW = {"index": False, "float_format": "%.9g"}
Row = dict[str, float]


class TrainingStopped(InputError):
    """The training cannot go on with these settings. The message says at which step, which term, and what to try."""


def averages(names: Sequence[str], pending: Sequence[Tensor], step: int) -> Row:
    """Means of the values (names,) of each pending step up to `step`, over all ranks; waits for the device.

    `TrainingStopped` names the first step and term that became NaN or infinite.
    """
    table = torch.stack(list(pending))  # (steps, names)
    shared = [i for i, name in enumerate(names) if not name.startswith("grad_norm")]
    table[:, shared] = summed(table[:, shared].contiguous())
    table = table.double().cpu()
    for row, i in (~table.isfinite()).nonzero().tolist():
        raise TrainingStopped(
            f"Training stopped at step {step - len(table) + 1 + row}: {names[i]} became {table[row, i]}; resume from an "
            "earlier checkpoint or start anew, and lower pretrain.optimiser.base_lr, lengthen warmup_epochs, set "
            "clip_grad: 3.0 or pretrain.loop.precision: fp32."
        )
    return dict(zip(names, table.mean(0).tolist(), strict=True))


class Log:
    """The rows of a training: judged on every rank, and written by the one that leads, to `log.csv` and its tracker.

    From step `step` on: rows of later steps, which a killed run left, are made once more.
    """

    def __init__(self, output: Path, step: int, params: Params, leads: bool) -> None:
        self.path, self.settings, self.leads = output / LOG_NAME, params.pretrain, leads
        self.recent: deque[Row] = deque(maxlen=ROWS)
        self.warned = False
        if leads:
            log = read_log(self.path) if step else pd.DataFrame()
            write_text(self.path, "" if log.empty else log[log["step"] <= step].to_csv(**HOW))
            self._track, self._close = _tracker(params, output, step)

    def append(self, row: Row) -> None:
        """Add a row; the first one writes the columns' names. Then `check_collapse`, which warns once."""
        self.recent.append(row)
        if self.leads:
            with writable(self.path):
                pd.DataFrame([row]).to_csv(self.path, mode="a", header=self.path.stat().st_size == 0, **HOW)
            self._track(row)
        if (said := check_collapse(self.recent, self.settings)) and not self.warned:
            self.warned = True
            warnings.warn(said, stacklevel=2)

    def close(self) -> None:
        """End the tracker's run."""
        if self.leads:
            self._close()


def _tracker(params: Params, output: Path, step: int) -> tuple[Callable[[Row], object], Callable[[], object]]:
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
    """The log as it stands now: one row per logged step, numbers only; empty where nothing has been logged yet."""
    path = Path(path)
    with reading(path, "it is no training log: move it out of the folder"):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        complete = text[: text.rfind("\n") + 1]  # a last line cut off by a crash is left out
        log = pd.read_csv(io.StringIO(complete), dtype=float) if complete else pd.DataFrame(columns=["step", "samples"])
        return log.astype({"step": int, "samples": int})


SETTLING_STEPS = 2000
ROWS = 20  # rows of the log that a judgement is made on
SAME_FEATURES = 0.01  # feature_std; 1 = spread evenly over the sphere
NO_INFORMATION = 0.05  # share of ln K


def check_collapse(recent: Iterable[Row], settings: Pretrain) -> str:
    """What is wrong with the targets of the last rows, if anything; `TrainingStopped` where features are all the same for long.

    The official initialisation makes nearly equal CLS tokens, which looks like collapse until the network has learnt
    something. So nothing is judged before the end of the warm-up; a run is stopped after 2,000 steps at the earliest, and
    warned after half of a shorter one.
    """
    schedules = Schedules(settings)
    settled = max(schedules.warmup, min(SETTLING_STEPS, schedules.steps // 2))
    rows = [row for row in recent if row["step"] > settled]
    informed = any(row["information_cls_share"] > NO_INFORMATION for row in rows)
    if len(rows) < ROWS or settings.loss.dino == 0 or informed:
        return ""
    last = rows[-1]
    said = (
        f"the targets say nearly nothing (teacher_entropy {last['teacher_entropy']:.3f}, information_cls "
        f"{last['information_cls']:.3f} of {math.log(settings.head.prototypes):.3f} nats, feature_std "
        f"{last['feature_std']:.1e}); where the entropy is high, lower pretrain.optimiser.base_lr, teacher_temperature or "
        "momentum, where it is near 0, raise teacher_temperature."
    )
    if rows[0]["step"] > SETTLING_STEPS and all(row["feature_std"] < SAME_FEATURES for row in rows):
        raise TrainingStopped(f"Training stopped at step {last['step']:.0f}: it has collapsed, {said}")
    return f"Step {last['step']:.0f}: {said}"
