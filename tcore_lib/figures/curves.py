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
    "loss": ("total loss", ""),
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
    names = list(columns) if columns is not None else _known_first(first)
    if missing := [name for name in names if name not in first.columns]:
        raise InputError(f"the table has no column {missing[0]!r}; its columns are {', '.join(map(str, first))}.")
    wide = min(COLUMNS, len(names))
    rows = -(-len(names) // wide)
    figure, axes = plt.subplots(rows, wide, figsize=(style.WIDTH, 1.75 * rows + 0.5), squeeze=False)
    for ax, name in zip(axes.flat, names, strict=False):
        text, unit = TITLES.get(name, (str(name).replace("_", " "), ""))
        for label, table in tables.items():
            if name not in table.columns:
                continue
            position = next((key for key in POSITIONS if key in table.columns), None)
            x, y = table[position] if position else table.index, table[name].to_numpy(float)
            if smooth and len(y) >= 60:
                raw, y = y, running_mean(y, max(5, len(y) // 40) | 1)
                line = ax.plot(x, y, label=label)[0]
                ax.plot(x, raw, color=line.get_color(), linewidth=0.7, alpha=0.3)
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


def _known_first(table: pd.DataFrame) -> list[str]:
    numeric = [name for name in table.select_dtypes("number") if name not in POSITIONS]
    return [name for name in TITLES if name in numeric] + [name for name in numeric if name not in TITLES]


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over up to `window` values, shorter at both ends; NaN is left out."""
    return pd.Series(values).rolling(window, center=True, min_periods=1).mean().to_numpy()


def course(values: Any) -> str:
    """How a logged quantity went, in words: `falls from 9.1 to 5.2`, `falls from 9.1 to 5, then rises to 6.3`, ...

    The means of the first and the last tenth are compared with each other and with the lowest and the highest running
    mean over a tenth. A change counts when it is more than twice the spread of one row about that running mean.

    Args:
        values: (n,) one number per logged row; what is not finite is left out.
    """
    rows = style.to_array(values).astype(float)
    rows = rows[np.isfinite(rows)]
    if len(rows) == 0:
        raise InputError("there is nothing to describe: the series has no finite value.")
    tenth = max(1, len(rows) // 10)
    smooth = pd.Series(rows).rolling(tenth, center=True).mean()  # whole windows only
    noise = 2 * float((rows - smooth).std(ddof=0))
    first, last, low, high = rows[:tenth].mean(), rows[-tenth:].mean(), smooth.min(), smooth.max()
    if min(first, last) - low > noise:
        return f"falls from {first:.3g} to {low:.3g}, then rises to {last:.3g}"
    if high - max(first, last) > noise:
        return f"rises from {first:.3g} to {high:.3g}, then falls to {last:.3g}"
    if abs(last - first) > noise:
        return f"{'falls' if last < first else 'rises'} from {first:.3g} to {last:.3g}"
    return f"stays between {low:.3g} and {high:.3g}"


class LiveCurves:
    """`curves` of a training log that redraws itself in place while a notebook cell trains.

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
        self.figure = curves(log, there, smooth=True)
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
        if self._handle is not None:
            self._handle.update(figure)
        elif get_ipython() is not None:
            self._handle = display(figure, display_id=True)


@style.figure_in_style
def study_curves(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Mean score over training of every variant of a study; whiskers span the seeds, a dashed line is an untrained one.

    Args:
        table: columns variant, seed, benchmark, step, value (percent); benchmarks scored once only are left out.
        titles: variant -> what it is called.
    """
    several = table.groupby("benchmark", observed=True)["step"].transform("nunique") > 2
    table = table[several] if several.any() else table
    panels = [name for name in pd.Categorical(table["benchmark"]).categories if name in set(table["benchmark"])]
    figure, axes = plt.subplots(1, len(panels), figsize=(style.WIDTH, 3.9), squeeze=False)
    looks = [(colour, line) for line in ("-", ":", "-.") for colour in (*style.CYCLE, style.INK)]
    for ax, name in zip(axes[0], panels, strict=True):
        part = table[table["benchmark"] == name]
        start = part[part["step"] == 0].groupby("seed")["value"].mean()  # every variant starts from its seed's weights
        for (variant, title), (colour, line) in zip(titles.items(), looks, strict=False):
            rows = part[part["variant"] == variant]
            if rows.empty:
                continue
            if rows["step"].max() == 0:
                ax.axhline(rows["value"].mean(), color=colour, linestyle="--", linewidth=1.2, label=title)
                continue
            own = start.reindex(rows["seed"].unique()).dropna()
            values = pd.concat([pd.DataFrame({"step": 0, "value": own}), rows[["step", "value"]]])
            steps = values.groupby("step")["value"].agg(["mean", "min", "max"])
            spread = [steps["mean"] - steps["min"], steps["max"] - steps["mean"]]
            look: Any = {"color": colour, "linestyle": line, "marker": "o", "markersize": 4, "capsize": 2}
            ax.errorbar(steps.index, steps["mean"], yerr=spread, elinewidth=0.8, label=title, **look)
        ax.set(title=name.replace(", ", "\n"), xlabel="optimiser steps")  # five panels fit in two lines
    axes[0, 0].set_ylabel("score, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
