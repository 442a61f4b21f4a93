"""Pictures of numbers: schedules, loss curves, histograms, bars and scores. Tables in, Figures out.

Every function returns a matplotlib Figure about 10 inches wide; a notebook shows it at the end of the cell
(`plots.histogram(...);`). Pictures of frames are in `pictures`, colours and the style in `look`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tcore_lib import look
from tcore_lib.errors import InputError

WIDTH = 10.0
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


def _grid(panels: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `panels` axes in rows of `columns`; what is left of the last row stays empty."""
    columns = min(columns, panels)
    rows = -(-panels // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, 0.35 + height * rows), squeeze=False)
    for empty in axes.flat[panels:]:
        empty.set_visible(False)
    return figure, list(axes.flat[:panels])


def _bottom_labels(axes: Sequence[Axes], text: str, columns: int = 3) -> None:
    """Name the horizontal axis under the lowest panel of each column only."""
    for ax in axes[-columns:]:
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
    figure, axes = _grid(len(names), 3, 1.75)
    for ax, name in zip(axes, names, strict=True):
        values = table[name].to_numpy(float)
        power = _power(values)
        ax.plot(x, values / 10.0**power, color=look.CYCLE[0])
        ax.fill_between(
            x, values / 10.0**power, values.min() / 10.0**power, color=look.CYCLE[0], alpha=0.10, linewidth=0
        )
        ax.set_title(TITLES.get(name, (name.replace("_", " "), ""))[0])
        ax.set_ylabel(f"in $10^{{{power}}}$" if power else "")
        stations = [values[0], *([values.max()] if values.max() > max(values[0], values[-1]) else []), values[-1]]
        ax.set_title(" → ".join(f"{v:.3g}" for v in stations), loc="right", fontsize=8, color=look.colour("muted"))
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
    figure, axes = _grid(len(names), 3, 1.75)
    for ax, name in zip(axes, names, strict=True):
        for (run, table), colour in zip(logs.items(), look.CYCLE * len(logs), strict=False):
            if name in table.columns:
                x, x_name = _position(table)
                _curve(ax, x, table[name].to_numpy(float), colour, run or None)
        _title(ax, *TITLES.get(name, (name.replace("_", " "), "")))
        ax.margins(x=0.01)
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

    def __init__(self, columns: Sequence[str] | None = None, *, every: float = 5.0, title: str = "") -> None:
        """Nothing is shown before the first `update`."""
        self.figure: Figure | None = None
        self._columns, self._every, self._title = columns, every, title
        self._handle: Any = None
        self._last = -np.inf

    def update(self, log: pd.DataFrame, *, force: bool = False) -> None:
        """Draw the log, unless it is empty or the last drawing is younger than `every` seconds."""
        import time

        if len(log) == 0 or (time.monotonic() - self._last < self._every and not force):
            return
        self.figure = loss_curves(log, self._columns, title=self._title)
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
def histogram(values: Any, unit: str = "", title: str = "", *, bins: int = 40, name: str = "count") -> Figure:
    """Distribution of one quantity, with its median and the 5th and 95th percentile marked.

    Args:
        values: numbers of any shape; what is not finite is left out and counted in the title.
        unit: label of the horizontal axis, e.g. `frames per video`.
        title: what it is.
        bins: number of bars.
        name: label of the vertical axis.
    """
    flat = look.to_array(values).astype(float).ravel()
    good = flat[np.isfinite(flat)]
    if good.size == 0:
        raise InputError(f"the histogram {title!r} has no finite value to draw.")
    figure, ax = plt.subplots(figsize=(WIDTH, 2.6))
    whole = bool(np.all(good == np.round(good))) and np.ptp(good) < bins
    edges = np.arange(good.min() - 0.5, good.max() + 1).tolist() if whole else bins
    ax.hist(good, bins=edges, color=look.CYCLE[0], alpha=0.85, rwidth=0.92)
    for share, text in ((5, "5 %"), (50, "median"), (95, "95 %")):
        at = float(np.percentile(good, share))
        ax.axvline(
            at, color=look.colour("ink"), linewidth=1.2 if share == 50 else 0.7, linestyle="-" if share == 50 else ":"
        )
        ax.annotate(f"{text} {at:.4g}", (at, 1), xycoords=("data", "axes fraction"), xytext=(3, -2), fontsize=8,
                    textcoords="offset points", va="top", color=look.colour("muted"))  # fmt: skip
    left_out = flat.size - good.size
    ax.set_title(title + (f"  ({left_out:,} not finite, left out)" if left_out else ""))
    ax.set_title(f"n = {good.size:,}", loc="right", fontsize=8.5, color=look.colour("muted"))
    ax.set(xlabel=unit, ylabel=name)
    ax.grid(axis="x", visible=False)
    return figure


@look.figure_in_style
def class_counts(
    counts: Mapping[str, int] | pd.Series, title: str = "", *, unit: str = "videos", top: int = 30
) -> Figure:
    """Horizontal bars of the most frequent classes; how many others there are stands below.

    Args:
        counts: class name -> number.
        title: what is counted.
        unit: label of the axis.
        top: classes that get a bar of their own.
    """
    series = pd.Series(counts).sort_values(ascending=False)
    if series.empty:
        raise InputError(f"{title or 'class_counts'}: there is no class to count.")
    shown = series.head(top)
    figure, ax = plt.subplots(figsize=(WIDTH, 0.8 + 0.24 * len(shown)))
    bars = ax.barh([str(name) for name in shown.index], shown.to_numpy(), color=look.CYCLE[0], height=0.7)
    ax.bar_label(bars, fmt="{:,.0f}", padding=4, fontsize=8, color=look.colour("muted"))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    rest = series.iloc[top:]
    more = f"   (not drawn: {len(rest):,} more classes with {rest.sum():,.0f} {unit})" if len(rest) else ""
    ax.set(xlabel=unit + more, title=title)
    ax.set_title(
        f"{len(series):,} classes, {series.sum():,.0f} {unit}", loc="right", fontsize=8.5, color=look.colour("muted")
    )
    return figure


@look.figure_in_style
def score_table(
    table: pd.DataFrame,
    *,
    row: str = "encoder",
    panel: str = "benchmark",
    value: str = "measured",
    low: str = "low",
    high: str = "high",
    paper: str = "paper",
    unit: str = "%",
) -> Figure:
    """Measured scores beside the paper's: one panel per benchmark, one bar per encoder, its interval as a whisker.

    Args:
        table: long form, one row per encoder and benchmark; columns `low`, `high` and `paper` may be absent or NaN.
        row: column of the encoder's name.
        panel: column of the benchmark's name.
        value: column of the measured score.
        low: column of the interval's lower end.
        high: column of its upper end.
        paper: column of the published score.
        unit: of the score.
    """
    for name in (row, panel, value):
        if name not in table.columns:
            raise InputError(f"the score table has no column {name!r}; its columns are {', '.join(map(str, table))}.")
    panels, rows = list(dict.fromkeys(table[panel])), list(dict.fromkeys(table[row]))
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 1.1 + 0.42 * len(rows)), sharey=True, squeeze=False)
    for ax, name in zip(axes.flat, panels, strict=True):
        part = table[table[panel] == name].drop_duplicates(row).set_index(row).reindex(rows)
        _score_panel(ax, part, (value, low, high, paper))
        ax.set_title(str(name))
        ax.set_xlabel(unit)
    axes.flat[0].set_yticks(range(len(rows)), rows)
    axes.flat[0].tick_params(axis="y", labelcolor=look.colour("ink"), labelsize=9.5)
    axes.flat[0].invert_yaxis()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _score_panel(ax: Axes, part: pd.DataFrame, names: tuple[str, str, str, str]) -> None:
    value, low, high, paper = (
        part[name].to_numpy(float) if name in part.columns else np.full(len(part), np.nan) for name in names
    )
    y = np.arange(len(part))
    ax.barh(y, np.nan_to_num(value), height=0.56, color=look.CYCLE[0], label="measured here")
    good = np.isfinite(value) & np.isfinite(low) & np.isfinite(high)
    ax.errorbar(value[good], y[good], xerr=np.abs([value[good] - low[good], high[good] - value[good]]), fmt="none",
                ecolor=look.colour("ink"), elinewidth=1.2, capsize=3, label="95 % interval over clips")  # fmt: skip
    ax.scatter(paper, y, marker="D", s=34, facecolor=look.colour("paper"), edgecolor=look.CYCLE[1], linewidth=1.6,
               zorder=3, label="paper")  # fmt: skip
    right = np.nanmax(np.concatenate([value, high, paper, [1.0]]))
    ax.set_xlim(0, right * 1.22)
    for i, number in enumerate(value):
        text = f"{number:.1f}" if np.isfinite(number) else "not run"
        ends = [end for end in (number, high[i], paper[i]) if np.isfinite(end)]
        at = max(ends) if ends else 0.0
        ax.annotate(text, (at, i), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8.5,
                    color=look.colour("ink" if np.isfinite(number) else "muted"))  # fmt: skip
    ax.grid(axis="y", visible=False)


@look.figure_in_style
def depth_curves(table: pd.DataFrame, columns: Sequence[str] | None = None, *, title: str = "") -> Figure:
    """Quantities by depth of the encoder (weight norms, feature norms, parameters), one panel per column.

    Args:
        table: index or column `block`: 0 ... depth - 1; one numeric column per quantity, or per (quantity, encoder) as
            two-level columns, which are drawn over each other.
        columns: which quantities; all by default.
        title: above the figure.
    """
    table = table.set_index("block") if "block" in table.columns else table
    levels = table.columns.nlevels
    names = list(columns) if columns is not None else list(dict.fromkeys(table.columns.get_level_values(0)))
    figure, axes = _grid(len(names), 3, 2.0)
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


@look.figure_in_style
def clip_bars(table: pd.DataFrame, *, unit: str = "%", title: str = "", top: int = 40) -> Figure:
    """Scores per clip, best first: one dot per clip and encoder on a common scale.

    Args:
        table: index = clip, one numeric column per encoder; sorted by the first column.
        unit: of the score.
        title: what it is.
        top: if there are more clips, the best and the worst `top` / 2 are drawn and the title says so.
    """
    if table.empty:
        raise InputError(f"{title or 'clip_bars'}: there is no clip to draw.")
    table = table.sort_values(table.columns[0], ascending=False)
    cut = len(table) - top
    shown = pd.concat([table.head(top // 2), table.tail(top - top // 2)]) if cut > 0 else table
    figure, ax = plt.subplots(figsize=(WIDTH, 1.0 + 0.24 * len(shown)))
    y = np.arange(len(shown))
    ax.hlines(y, shown.min(axis=1), shown.max(axis=1), color=look.colour("rule"), linewidth=2.2)
    for name, colour in zip(shown.columns, look.CYCLE * len(shown.columns), strict=False):
        ax.scatter(shown[name], y, color=colour, s=34, label=str(name), zorder=3)
        ax.axvline(table[name].mean(), color=colour, linewidth=1, linestyle=":")
    ax.set_yticks(y, [str(clip) for clip in shown.index])
    ax.set_ylim(len(shown) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_title((title or "score per clip") + (f"  ({cut} in the middle left out)" if cut > 0 else ""))
    ax.set_xlabel(f"{unit}   (dotted: mean over {len(table)} clips)")
    figure.legend(loc="outside lower center", ncols=4)
    return figure
