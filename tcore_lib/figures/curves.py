"""Curves: schedules, training logs, quantities by depth, scores over training. Tables in, Figures out."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tcore_lib.errors import InputError
from tcore_lib.figures import style
from tcore_lib.figures.frames import headline

# Columns of a training log or schedule table that have a title and a unit of their own, in the order they are drawn.
TITLES = {
    "total": ("total loss", ""),
    "dino_local": ("DINO, local crops", "nats"),
    "dino_global": ("DINO, global crops", "nats"),
    "koleo": ("KoLeo", "nats"),
    "patch": ("masked patches (iBOT)", "nats"),
    "patch_past": ("patches restored from the past", "nats"),
    "patch_future": ("patches restored from the future", "nats"),
    "agreement": ("past-future agreement", "logit²"),
    "information_cls": ("information in the targets, CLS", "nats"),
    "information_patch": ("information in the targets, patches", "nats"),
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
POSITIONS = ("epoch", "step", "iteration", "block")  # columns that can be the horizontal axis


@style.figure_in_style
def curves(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame],
    columns: Sequence[str] | None = None,
    *,
    title: str = "",
    smooth: bool = False,
) -> Figure:
    """A panel per column and a line per table: schedules, training logs, quantities by depth.

    Args:
        tables: one row per `epoch`, `step` or `block` (a column or the index); several by name are drawn over each other,
            and so is a table with columns of two levels, (quantity, name).
        columns: which ones; by default the known ones in the order of `TITLES`, then any other numeric column.
        title: above the figure.
        smooth: draw a long noisy line faint below its running mean; otherwise a single line says in its title where it
            starts, turns and ends.
    """
    if isinstance(tables, pd.DataFrame) and tables.columns.nlevels == 2:
        tables = {name: tables.xs(name, axis=1, level=1) for name in tables.columns.get_level_values(1).unique()}
    tables = {"": tables} if isinstance(tables, pd.DataFrame) else tables
    if not tables or any(len(table) == 0 for table in tables.values()):
        raise InputError("there is no row to draw; draw a training log after its first logged step.")
    first = next(iter(tables.values()))
    numeric = [name for name in first.select_dtypes("number") if name not in POSITIONS]
    known = [name for name in TITLES if name in numeric] + [name for name in numeric if name not in TITLES]
    names = list(columns) if columns is not None else known
    wide = min(COLUMNS, len(names))
    rows = -(-len(names) // wide)
    size = (style.WIDTH, 1.75 * rows + 0.5 + 0.4 * (len(tables) // 5))  # room for a longer legend
    figure, axes = plt.subplots(rows, wide, figsize=size, squeeze=False)
    for ax, name in zip(axes.flat, names, strict=False):
        text, unit = TITLES.get(name, (str(name).replace("_", " "), ""))
        ax.set_prop_cycle(plt.cycler(linestyle=["-", "--", ":"]) * plt.cycler(color=style.CYCLE))
        for label, table in tables.items():
            if name not in table.columns:
                continue
            position = next((key for key in POSITIONS if key in table.columns), None)
            x, y = table[position] if position else table.index, table[name].to_numpy(float)
            if smooth and len(y) >= 60:
                mean = pd.Series(y).rolling(max(5, len(y) // 40) | 1, center=True, min_periods=1).mean()
                (line,) = ax.plot(x, mean, label=label)
                ax.plot(x, y, "-", color=line.get_color(), linewidth=0.7, alpha=0.3)
            else:
                ax.plot(x, y, label=label, marker="o" if len(x) < 25 else None, markersize=3)
        if len(tables) == 1 and not smooth:
            inside = [np.nanmax(y)] if np.nanmax(y) > max(y[0], y[-1]) else []
            text += ":  " + " → ".join(f"{value:.3g}" for value in (y[0], *inside, y[-1]))
        ax.set(title=text, ylabel=unit)
        ax.margins(x=0.01)
        ax.ticklabel_format(axis="y", scilimits=(-2, 4), useMathText=True)
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax in axes.flat[len(names) - wide : len(names)]:
        ax.set_xlabel(position or table.index.name or "row")
    if len(tables) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    headline(figure, title)
    return figure


class LiveCurves:
    """`curves` of a training log that redraws itself in place while a notebook cell trains.

    `update(log)` may be called at every logged step; it draws those of `columns` that the log has, at most once per `every`
    seconds and for at most a twentieth of the time. `close(log)` draws the last state. Outside IPython nothing is shown, the
    last figure is kept as `figure`.
    """

    def __init__(self, columns: Sequence[str] | None = None, *, every: float = 5.0) -> None:
        self.figure: Figure | None = None
        self._columns, self._every, self._next = columns, every, -np.inf
        self._handle: Any = None

    def update(self, log: pd.DataFrame, *, force: bool = False) -> None:
        """Draw the log, unless it is empty or it is too early."""
        began = time.monotonic()
        if len(log) == 0 or (began < self._next and not force):
            return
        there = None if self._columns is None else [name for name in self._columns if name in log.columns]
        self.figure = curves(log, there, smooth=True)
        plt.close(self.figure)  # shown below, not once more at the end of the cell
        from IPython import get_ipython
        from IPython.display import display

        if self._handle is not None:
            self._handle.update(self.figure)
        elif get_ipython() is not None:
            self._handle = display(self.figure, display_id=True)
        now = time.monotonic()
        self._next = now + max(self._every, 19 * (now - began))

    def close(self, log: pd.DataFrame) -> Figure | None:
        """Draw the final state in place of the last one and return it."""
        self.update(log, force=True)
        return self.figure
