"""Curves: schedules, training logs, quantities by depth. Tables in, Figures out, small multiples of one quantity each."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tcore_lib.errors import InputError
from tcore_lib.figures import style as look

# Columns of a training log or schedule table that have a title and a unit of their own, in the order they are drawn.
TITLES = {
    "loss": ("total loss", ""),
    "total": ("total loss", ""),
    "dino_local": ("DINO, local crops", "nats"),
    "dino_global": ("DINO, global crops", "nats"),
    "koleo": ("KoLeo", "nats"),
    "patch": ("masked patches (iBOT)", "nats"),
    "patch_past": ("patches restored from the past", "nats"),
    "patch_future": ("patches restored from the future", "nats"),
    "agreement": ("past-future agreement", "logit²"),
    "teacher_entropy": ("teacher entropy", "nats"),
    "feature_std": ("feature std over the batch", ""),
    "centre_norm": ("norm of the teacher's centre", ""),
    "grad_norm": ("gradient norm", ""),
    "lr": ("learning rate", ""),
    "decoder_lr": ("learning rate, decoder", ""),
    "last_layer_lr": ("learning rate, prototypes", ""),
    "weight_decay": ("weight decay", ""),
    "momentum": ("teacher momentum", ""),
    "teacher_temperature": ("teacher temperature", ""),
}
COLUMNS = 3  # panels in a row
POSITIONS = ("epoch", "step", "iteration")


def _position(table: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Values and name of the horizontal axis: the first of epoch, step, iteration that is a column, else the index."""
    name = next((name for name in POSITIONS if name in table.columns), None)
    return (table[name].to_numpy(float), name) if name else (table.index.to_numpy(float), table.index.name or "row")


def _drawable(table: pd.DataFrame, columns: Sequence[str] | None) -> list[str]:
    if columns is not None:
        missing = [name for name in columns if name not in table.columns]
        if missing:
            raise InputError(f"the table has no column {missing[0]!r}; its columns are {', '.join(map(str, table))}.")
        return list(columns)
    numeric = [name for name in table.select_dtypes("number") if name not in POSITIONS]
    return [name for name in TITLES if name in numeric] + [name for name in numeric if name not in TITLES]


def _grid(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `panels` axes in rows of three; what is left of the last row stays empty."""
    columns = min(COLUMNS, panels)
    rows = -(-panels // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(look.WIDTH, 0.35 + height * rows), squeeze=False)
    for empty in axes.flat[panels:]:
        empty.set_visible(False)
    return figure, list(axes.flat[:panels])


def _bottom_labels(axes: Sequence[Axes], text: str) -> None:
    """Name the horizontal axis under the lowest panel of each column only."""
    for ax in axes[-COLUMNS:]:
        ax.set_xlabel(text)


def _power(values: np.ndarray) -> int:
    """Exponent of ten to draw very small or large values with, in steps of three; 0 for ordinary ones."""
    largest = np.nanmax(np.abs(values), initial=0.0)
    return 0 if largest == 0 or 1e-2 <= largest < 1e5 else int(3 * np.floor(np.log10(largest) / 3))


def _title(ax: Axes, text: str, unit: str = "") -> None:
    ax.set_title(text)
    if unit:
        ax.set_title(unit, loc="right", fontsize=8.5, color=look.colour("muted"))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over up to `window` values, shorter at both ends; NaN is left out."""
    good = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(good, values, 0.0), kernel, mode="same")
    count = np.convolve(good.astype(float), kernel, mode="same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _curve(ax: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str | None = None) -> None:
    """A line; a long noisy one is drawn faint with its running mean on top."""
    if len(x) >= 60:
        window = max(5, len(x) // 40) | 1
        ax.plot(x, y, color=colour, linewidth=0.7, alpha=0.3)
        y = running_mean(y, min(window, len(x)))
    ax.plot(x, y, color=colour, label=label, marker="o" if len(x) < 25 else None, markersize=3)


@look.figure_in_style
def schedules(table: pd.DataFrame, columns: Sequence[str] | None = None) -> Figure:
    """Small multiples of what changes over training (METHOD section 7), one panel per column.

    Args:
        table: a column `epoch` or `step`, and one numeric column per schedule.
        columns: which ones; all numeric columns by default.
    """
    names = _drawable(table, columns)
    x, x_name = _position(table)
    figure, axes = _grid(len(names), 1.75)
    for ax, name in zip(axes, names, strict=True):
        values = table[name].to_numpy(float)
        power = _power(values)
        ax.plot(x, values / 10.0**power, color=look.CYCLE[0])
        ax.fill_between(
            x, values / 10.0**power, values.min() / 10.0**power, color=look.CYCLE[0], alpha=0.10, linewidth=0
        )
        ax.set_title(TITLES.get(name, (name.replace("_", " "), ""))[0], pad=18)
        ax.set_ylabel(f"in $10^{{{power}}}$" if power else "")
        stations = [values[0], *([values.max()] if values.max() > max(values[0], values[-1]) else []), values[-1]]
        ax.annotate(" → ".join(f"{v:.3g}" for v in stations), (0, 1), xycoords="axes fraction", xytext=(0, 6), fontsize=8,
                    textcoords="offset points", color=look.colour("muted"))  # fmt: skip
        ax.margins(x=0.01)
        ax.yaxis.set_major_locator(MaxNLocator(4))
    _bottom_labels(axes, x_name)
    return figure


@look.figure_in_style
def loss_curves(
    log: pd.DataFrame | Mapping[str, pd.DataFrame], columns: Sequence[str] | None = None, *, title: str = ""
) -> Figure:
    """Small multiples of a training log: the loss terms, then the signs of health.

    Args:
        log: one row per logged step with `epoch` or `step`; or several logs by name, drawn over each other.
        columns: which ones; by default the known terms in order, then any other numeric column.
        title: above the figure.
    """
    logs = dict(log) if isinstance(log, Mapping) else {"": log}
    if not logs or any(len(table) == 0 for table in logs.values()):
        raise InputError("the training log is empty; draw it after the first logged step.")
    names = _drawable(next(iter(logs.values())), columns)
    figure, axes = _grid(len(names), 1.75)
    for ax, name in zip(axes, names, strict=True):
        drawn = {run: table for run, table in logs.items() if name in table.columns}
        power = _power(np.concatenate([table[name].to_numpy(float) for table in drawn.values()]))
        for (run, table), colour in zip(drawn.items(), look.CYCLE * len(logs), strict=False):
            x, x_name = _position(table)
            _curve(ax, x, table[name].to_numpy(float) / 10.0**power, colour, run or None)
        _title(ax, *TITLES.get(name, (name.replace("_", " "), "")))
        ax.set_ylabel(f"in $10^{{{power}}}$" if power else "")
        ax.margins(x=0.01)
        if x_name != "epoch":
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4))
    _bottom_labels(axes, x_name)
    if len(logs) > 1:
        axes[0].legend()
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return figure


class LiveCurves:
    """`loss_curves` that redraws itself in place while a notebook cell trains.

    `update(log)` may be called at every logged step; it draws at most once per `every` seconds. `close(log)` draws the
    last state. Outside IPython nothing is shown and only the last figure is kept, as `figure`.
    """

    def __init__(self, columns: Sequence[str] | None = None, *, every: float = 5.0) -> None:
        """Nothing is shown before the first `update`; of `columns`, those are drawn that the log has."""
        self.figure: Figure | None = None
        self._columns, self._every = columns, every
        self._handle: Any = None
        self._last = -np.inf

    def update(self, log: pd.DataFrame, *, force: bool = False) -> None:
        """Draw the log, unless it is empty or the last drawing is younger than `every` seconds."""
        if len(log) == 0 or (time.monotonic() - self._last < self._every and not force):
            return
        there = None if self._columns is None else [name for name in self._columns if name in log.columns]
        self.figure = loss_curves(log, there)
        plt.close(self.figure)  # shown below, not once more at the end of the cell
        self._show(self.figure)
        self._last = time.monotonic()

    def close(self, log: pd.DataFrame) -> Figure | None:
        """Draw the final state in place of the last one and return it."""
        self.update(log, force=True)
        return self.figure

    def _show(self, figure: Figure) -> None:
        try:
            from IPython import get_ipython
            from IPython.display import display
        except ImportError:
            return
        if get_ipython() is None:
            return
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)


@look.figure_in_style
def depth_curves(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Quantities by depth of the encoder (weight norms, feature norms, parameters), one panel per column.

    Args:
        table: index or column `block`: 0 ... depth - 1; one numeric column per quantity, or per (quantity, encoder) as
            two-level columns, which are drawn over each other.
        title: above the figure.
    """
    table = table.set_index("block") if "block" in table.columns else table
    levels = table.columns.nlevels
    names = list(dict.fromkeys(table.columns.get_level_values(0)))
    figure, axes = _grid(len(names), 2.0)
    for ax, name in zip(axes, names, strict=True):
        lines = table[name] if levels > 1 else table[[name]]
        power = _power(lines.to_numpy(float))
        for label, colour in zip(lines.columns, look.CYCLE * len(lines.columns), strict=False):
            ax.plot(lines.index, lines[label] / 10.0**power, color=colour, marker="o", markersize=3.5, label=str(label))
        ax.set_title(str(name).replace("_", " "))
        ax.set_ylabel(f"in $10^{{{power}}}$" if power else "")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _bottom_labels(axes, "block")
    if levels > 1:
        axes[0].legend()
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return figure
