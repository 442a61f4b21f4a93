"""The training's log: a CSV that can be read while it grows, and TensorBoard events on request."""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tcore_lib.errors import InputError
from tcore_lib.files import writable, write_text

LOG_NAME = "log.csv"  # in the run's folder


class TrainingLog:
    """One row per logged step, appended and flushed at once.

    Args:
        path: the CSV. Rows after `step` are dropped: a resumed run makes them again.
        step: steps already made.
        events: folder for TensorBoard events, or None.

    Raises:
        InputError: TensorBoard is wanted but not installed; the CSV is no log of ours, or cannot be written.
    """

    def __init__(self, path: Path, step: int, events: Path | None = None) -> None:
        self.path = path
        self._columns: list[str] = []
        kept = [] if step == 0 else [row for row in _rows(path) if int(row["step"]) <= step]
        if kept:
            self._columns = list(kept[0])
            write_text(path, "".join(map(self._line, [dict(zip(kept[0], kept[0], strict=True)), *kept])))
        else:
            with writable(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
        self._writer: Any = None
        if events is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise InputError(
                    "pretrain.loop.tensorboard = true needs the package tensorboard; run `pip install tensorboard`."
                ) from error
            self._writer = SummaryWriter(str(events), purge_step=step)

    def _line(self, row: Mapping[str, Any]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerow(row)
        return text.getvalue()

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row; the first one fixes the columns."""
        formatted = {k: str(v) if isinstance(v, int) else f"{v:.9g}" for k, v in row.items()}
        text = ""
        if not self._columns:
            self._columns = list(row)
            text = self._line({name: name for name in row})
        with writable(self.path), open(self.path, "a", encoding="utf-8", newline="") as stream:
            stream.write(text + self._line(formatted))
        if self._writer is not None:
            for name, value in row.items():
                if name != "step" and math.isfinite(value):
                    self._writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Finish the TensorBoard file; the CSV is complete at any time."""
        if self._writer is not None:
            self._writer.close()


def _rows(path: Path) -> list[dict[str, str]]:
    """Complete rows of the CSV as text, none without a file; a last line cut off by a crash is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
        rows = [row for row in rows if None not in row and None not in row.values()]
        for row in rows:
            int(row["step"]), [float(value) for value in row.values()]
    except (csv.Error, KeyError, ValueError) as error:
        raise InputError(
            f"{path} is damaged or no training log ({type(error).__name__}: {error}); delete it."
        ) from error
    return rows


def read_log(path: str | Path) -> pd.DataFrame:
    """The log as it stands now: one row per logged step, numbers only; empty where nothing has been logged yet.

    Raises:
        InputError: the file is damaged.
    """
    return pd.DataFrame(_rows(Path(path))).apply(pd.to_numeric)
