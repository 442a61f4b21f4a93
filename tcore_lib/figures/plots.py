"""Pictures of numbers: curves, distributions, scores (in percent) of encoders, clips and seeds. Tables in, Figures out."""

import time
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from tcore_lib.errors import InputError
from tcore_lib.figures import style

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
    "momentum": ("teacher momentum", ""),
}
POSITIONS = ("epoch", "step", "iteration", "block")  # columns that can be the horizontal axis
BARS = 40  # of a histogram
FLOOR = "pixels"  # what raw pixels reach without learning is drawn through all rows


@style.figure_in_style
def curves(
    tables: pd.DataFrame | dict[str, pd.DataFrame],
    columns: Sequence[str] = (),
    *,
    title: str = "",
    smooth: bool = False,
) -> Figure:
    """A panel per column and a line per table: schedules, training logs, quantities by depth.

    A table has a row per `epoch`, `step` or `block` (a column or the index); several by name are drawn over each other, and so
    is one with columns of two levels, (quantity, name). `columns` are the known ones in the order of `TITLES`, then any other
    numeric one. `smooth` draws a long noisy line faint below its running mean; otherwise a single line says in its title where
    it starts, turns and ends.
    """
    if isinstance(tables, pd.DataFrame) and tables.columns.nlevels == 2:
        tables = {name: tables.xs(name, axis=1, level=1) for name in tables.columns.get_level_values(1).unique()}
    tables = {"": tables} if isinstance(tables, pd.DataFrame) else tables
    if not tables or any(len(table) == 0 for table in tables.values()):
        raise InputError("there is no row to draw; draw a training log after its first logged step.")
    numeric = [name for name in next(iter(tables.values())).select_dtypes("number") if name not in POSITIONS]
    names = columns or [name for name in TITLES if name in numeric] + [name for name in numeric if name not in TITLES]
    wide = min(3, len(names))
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
    if title:
        figure.suptitle(title, x=0.004, ha="left")
    return figure


class LiveCurves:
    """`curves` of a training log, of those of `columns` that it has, redrawn in place while a notebook cell trains."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns, self._next = columns, 0.0
        self._handle: Any = None

    def update(self, log: pd.DataFrame) -> None:
        """Draw the log, unless it is empty or it is too early: drawing takes at most a twentieth of the time."""
        began = time.monotonic()
        if len(log) and began >= self._next:
            self.close(log)
            self._next = began + 20 * (time.monotonic() - began)

    def close(self, log: pd.DataFrame) -> Figure:
        """Draw the log, and return the figure."""
        from IPython.display import display

        figure = curves(log, [name for name in self._columns if name in log.columns], smooth=True)
        plt.close(figure)  # shown here, not once more at the end of the cell
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)
        return figure


@style.figure_in_style
def histogram(values: Any, unit: str = "", title: str = "", *, name: str = "count") -> Figure:
    """Distribution of numbers, with its median and the 5th and 95th percentile marked; `unit` and `name` label the axes."""
    good = style.to_array(values).astype(float).ravel()
    figure, ax = plt.subplots(figsize=(style.WIDTH, 2.6))
    whole = bool(np.all(good == np.round(good))) and np.ptp(good) < BARS
    ax.hist(good, bins=np.arange(good.min() - 0.5, good.max() + 1).tolist() if whole else BARS, rwidth=0.92, alpha=0.85)
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for line, (share, text) in enumerate(((5, "5 %"), (50, "median"), (95, "95 %"))):
        at, middle = float(np.percentile(good, share)), share == 50
        ax.axvline(at, color=style.INK, linewidth=1.2 if middle else 0.7, linestyle="-" if middle else ":")
        place: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "top"}
        # One below the other: close marks stay readable.
        ax.annotate(f"{text} {at:.4g}", (at, 1), xytext=(3, -2 - 11 * line), fontsize=8, path_effects=halo, **place)
    if whole:
        spare = max(0.0, 4 - np.ptp(good)) / 2  # a single value is drawn as a bar, not as a wall
        ax.set_xlim(good.min() - 0.5 - spare, good.max() + 0.5 + spare)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel=unit, ylabel=name, title=title, ylim=(0, ax.get_ylim()[1] * 1.3))
    ax.set_title(f"n = {good.size:,}", loc="right", fontsize=8.5, color=style.MUTED)
    ax.grid(axis="x", visible=False)
    return figure


@style.figure_in_style
def score_table(table: pd.DataFrame) -> Figure:
    """Scores of any number of encoders: a panel per benchmark, a row per encoder, a dot with its interval.

    `table` has a row per `encoder` and `benchmark`; columns `value`, `low`, `high` (ends of the interval) and `paper`, which
    may be NaN.
    """
    benchmarks, encoders = table["benchmark"].unique(), table["encoder"].unique()
    size = (style.WIDTH, 1.05 + 0.36 * len(encoders))
    figure, axes = plt.subplots(1, len(benchmarks), figsize=size, sharey=True, squeeze=False)
    legend: dict[str, Artist] = {}
    rows = np.arange(len(encoders))
    for ax, name in zip(axes.flat, benchmarks, strict=True):
        part = table[table["benchmark"] == name].drop_duplicates("encoder").set_index("encoder")
        part = part.reindex(index=encoders, columns=["value", "low", "high", "paper"]).astype(float)
        if FLOOR in part.index:
            ax.axvline(part.loc[FLOOR, "value"], color=style.MUTED, linestyle="--", linewidth=1, label=FLOOR)
        look: Any = {"color": style.CYCLE[0], "linewidth": 4, "alpha": 0.35, "label": "95 % interval over clips"}
        ax.hlines(rows, part["low"], part["high"], **look)
        ax.scatter(part["value"], rows, s=36, zorder=3, label="measured here")
        if part["paper"].notna().any():
            ax.scatter(part["paper"], rows, marker="D", s=34, facecolor="white", edgecolor=style.CYCLE[1], linewidth=1.6,
                       zorder=4, label="paper")  # fmt: skip
        for row, (number, end) in enumerate(zip(part["value"], part.max(axis=1).fillna(0), strict=True)):
            text, colour = (f"{number:.1f}", style.INK) if np.isfinite(number) else ("not run", style.MUTED)
            place: Any = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
            ax.annotate(text, (end, row), fontsize=8.5, color=colour, **place)
        ax.set(title=str(name), xlabel="%", xlim=(0, 1.25 * part.fillna(0).to_numpy().max(initial=1.0)))
        ax.set(yticks=rows, yticklabels=encoders, ylim=(len(encoders) - 0.5, -0.5))
        ax.tick_params(axis="y", labelcolor=style.INK, labelsize=9.5)
        ax.grid(axis="y", visible=False)
        legend |= dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(list(legend.values()), list(legend), loc="outside lower center", ncols=4)
    return figure


@style.figure_in_style
def clip_bars(table: pd.DataFrame, *, unit: str = "%", title: str = "", top: int = 40) -> Figure:
    """Scores per clip (or joint, or part), best first: one dot per clip and encoder on a common scale.

    `table` has a row per clip (or what its index is called) and a column per encoder, and is sorted by the first. Of more than
    `top` rows the best and the worst half of that are drawn, and the title says so.
    """
    table = table.sort_values(table.columns[0], ascending=False)
    cut, what = len(table) - top, str(table.index.name or "clip")
    shown = pd.concat([table.head(top // 2), table.tail(top - top // 2)]) if cut > 0 else table
    figure, ax = plt.subplots(figsize=(style.WIDTH, 1.0 + 0.24 * len(shown)))
    y = np.arange(len(shown))
    ax.hlines(y, shown.min(axis=1), shown.max(axis=1), color=style.RULE, linewidth=2.2)
    for k, (name, colour) in enumerate(zip(shown.columns, style.CYCLE * len(shown.columns), strict=False)):
        size = max(12, 64 - 36 * k)  # a later dot leaves a rim of an earlier one at the same place
        ax.scatter(shown[name], y, color=colour, s=size, marker="oDs^v"[k % 5], label=str(name), zorder=3)
        ax.axvline(table[name].mean(), color=colour, linewidth=1, linestyle=":")
    ax.set(yticks=y, yticklabels=[str(clip) for clip in shown.index], ylim=(len(shown) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    ax.set_title(title + (f"  ({cut} in the middle left out)" if cut > 0 else ""))
    ax.set_xlabel(f"{unit}   (dotted: mean over {len(table)} {what if what.endswith('s') else what + 's'})")
    figure.legend(loc="outside lower center", ncols=4)
    return figure
