"""Pictures of numbers: histograms, bars and scores. Tables in, Figures out.

Every function returns a matplotlib Figure about 10 inches wide; a notebook shows it at the end of the cell
(`plots.histogram(...);`). Curves are kept in `curves` and can be had from here too; pictures of frames are in `pictures`,
colours and the style in `look`.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from tcore_lib.errors import InputError
from tcore_lib.figures import style as look
from tcore_lib.figures.curves import TITLES, LiveCurves, depth_curves, loss_curves, running_mean, schedules

__all__ = [
    "TITLES", "LiveCurves", "class_counts", "clip_bars", "depth_curves", "histogram", "loss_curves", "running_mean",
    "schedules", "score_table",
]  # fmt: skip

BARS = 40  # of a histogram


@look.figure_in_style
def histogram(values: Any, unit: str = "", title: str = "", *, name: str = "count") -> Figure:
    """Distribution of one quantity, with its median and the 5th and 95th percentile marked.

    Args:
        values: numbers of any shape; what is not finite is left out and counted in the title.
        unit: label of the horizontal axis, e.g. `frames per video`.
        title: what it is.
        name: label of the vertical axis.
    """
    flat = look.to_array(values).astype(float).ravel()
    good = flat[np.isfinite(flat)]
    if good.size == 0:
        raise InputError(f"the histogram {title!r} has no finite value to draw.")
    figure, ax = plt.subplots(figsize=(look.WIDTH, 2.6))
    whole = bool(np.all(good == np.round(good))) and np.ptp(good) < BARS
    edges = np.arange(good.min() - 0.5, good.max() + 1).tolist() if whole else BARS
    ax.hist(good, bins=edges, color=look.CYCLE[0], alpha=0.85, rwidth=0.92)
    marks: dict[float, list[str]] = {}
    for share, text in ((5, "5 %"), (50, "median"), (95, "95 %")):
        marks.setdefault(float(np.percentile(good, share)), []).append(text)
    halo = [withStroke(linewidth=2.5, foreground=look.colour("paper"))]
    for line, (at, texts) in enumerate(marks.items()):  # one below the other: close marks stay readable
        middle = "median" in texts
        ax.axvline(at, color=look.colour("ink"), linewidth=1.2 if middle else 0.7, linestyle="-" if middle else ":")
        text = f"{', '.join(texts) if np.ptp(good) else 'all'} {at:.4g}"
        ax.annotate(text, (at, 1), xycoords=("data", "axes fraction"), xytext=(3, -2 - 11 * line), fontsize=8,
                    textcoords="offset points", va="top", path_effects=halo)  # fmt: skip
    if whole:
        spare = max(0.0, 4 - np.ptp(good)) / 2  # a single value is drawn as a bar, not as a wall
        ax.set_xlim(good.min() - 0.5 - spare, good.max() + 0.5 + spare)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylim(0, ax.get_ylim()[1] * 1.12)
    left_out = flat.size - good.size
    ax.set_title(title + (f"  ({left_out:,} not finite, left out)" if left_out else ""))
    ax.set_title(f"n = {good.size:,}", loc="right", fontsize=8.5, color=look.colour("muted"))
    ax.set(xlabel=unit, ylabel=name)
    ax.grid(axis="x", visible=False)
    return figure


@look.figure_in_style
def class_counts(counts: Mapping[str, int] | pd.Series, title: str = "", *, top: int = 30) -> Figure:
    """Horizontal bars of the most frequent classes; how many others there are stands below.

    Args:
        counts: class name -> number of videos.
        title: what is counted.
        top: classes that get a bar of their own.
    """
    series = pd.Series(counts).sort_values(ascending=False)
    if series.empty:
        raise InputError(f"{title or 'class_counts'}: there is no class to count.")
    shown = series.head(top)
    figure, ax = plt.subplots(figsize=(look.WIDTH, 0.8 + 0.24 * len(shown)))
    bars = ax.barh([str(name) for name in shown.index], shown.to_numpy(), color=look.CYCLE[0], height=0.7)
    ax.bar_label(bars, fmt="{:,.0f}", padding=4, fontsize=8, color=look.colour("muted"))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    rest = series.iloc[top:]
    more = f"   (not drawn: {len(rest):,} more classes with {rest.sum():,.0f} videos)" if len(rest) else ""
    ax.set(xlabel=f"videos{more}", title=title)
    ax.set_title(
        f"{len(series):,} classes, {series.sum():,.0f} videos", loc="right", fontsize=8.5, color=look.colour("muted")
    )
    return figure


@look.figure_in_style
def score_table(table: pd.DataFrame) -> Figure:
    """Measured scores beside the paper's: one panel per benchmark, one bar per encoder, its interval as a whisker.

    Args:
        table: long form, one row per `encoder` and `benchmark`; columns `measured`, and `low` and `high` (ends of the
            interval) and `paper`, which may be absent or NaN. All scores in percent.
    """
    for name in ("encoder", "benchmark", "measured"):
        if name not in table.columns:
            raise InputError(f"the score table has no column {name!r}; its columns are {', '.join(map(str, table))}.")
    panels, rows = list(dict.fromkeys(table["benchmark"])), list(dict.fromkeys(table["encoder"]))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(look.WIDTH, 1.1 + 0.42 * len(rows)), sharey=True, squeeze=False
    )
    for ax, name in zip(axes.flat, panels, strict=True):
        part = table[table["benchmark"] == name].drop_duplicates("encoder").set_index("encoder").reindex(rows)
        _score_panel(ax, part)
        ax.set_title(str(name))
        ax.set_xlabel("%")
    axes.flat[0].set_yticks(range(len(rows)), rows)
    axes.flat[0].tick_params(axis="y", labelcolor=look.colour("ink"), labelsize=9.5)
    axes.flat[0].invert_yaxis()
    handles = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3)
    return figure


def _score_panel(ax: Axes, part: pd.DataFrame) -> None:
    value, low, high, paper = (
        part[name].to_numpy(float) if name in part.columns else np.full(len(part), np.nan)
        for name in ("measured", "low", "high", "paper")
    )
    y = np.arange(len(part))
    ax.barh(y, np.nan_to_num(value), height=0.56, color=look.CYCLE[0], label="measured here")
    good = np.isfinite(value) & np.isfinite(low) & np.isfinite(high)
    if good.any():
        ax.errorbar(value[good], y[good], xerr=np.abs([value[good] - low[good], high[good] - value[good]]), fmt="none",
                    ecolor=look.colour("ink"), elinewidth=1.2, capsize=3, label="95 % interval over clips")  # fmt: skip
    if np.isfinite(paper).any():
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
def clip_bars(table: pd.DataFrame, *, unit: str = "%", title: str = "", top: int = 40) -> Figure:
    """Scores per clip (or joint, or part), best first: one dot per clip and encoder on a common scale.

    Args:
        table: index = clip, one numeric column per encoder; sorted by the first column. The index's name says what a row
            is, `clip` by default.
        unit: of the score.
        title: what it is.
        top: if there are more clips, the best and the worst `top` / 2 are drawn and the title says so.
    """
    if table.empty:
        raise InputError(f"{title or 'clip_bars'}: there is no row to draw.")
    table = table.sort_values(table.columns[0], ascending=False)
    cut, what = len(table) - top, str(table.index.name or "clip")
    shown = pd.concat([table.head(top // 2), table.tail(top - top // 2)]) if cut > 0 else table
    figure, ax = plt.subplots(figsize=(look.WIDTH, 1.0 + 0.24 * len(shown)))
    y = np.arange(len(shown))
    ax.hlines(y, shown.min(axis=1), shown.max(axis=1), color=look.colour("rule"), linewidth=2.2)
    for k, (name, colour) in enumerate(zip(shown.columns, look.CYCLE * len(shown.columns), strict=False)):
        size = max(12, 64 - 36 * k)  # a later dot leaves a rim of an earlier one at the same place
        ax.scatter(shown[name], y, color=colour, s=size, marker="oDs^v"[k % 5], label=str(name), zorder=3)
        ax.axvline(table[name].mean(), color=colour, linewidth=1, linestyle=":")
    ax.set_yticks(y, [str(clip) for clip in shown.index])
    ax.set_ylim(len(shown) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_title((title or f"score per {what}") + (f"  ({cut} in the middle left out)" if cut > 0 else ""))
    ax.set_xlabel(f"{unit}   (dotted: mean over {len(table)} {what if what.endswith('s') else what + 's'})")
    figure.legend(loc="outside lower center", ncols=4)
    return figure
