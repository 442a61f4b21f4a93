"""Pictures of numbers: distributions, counts, scores of encoders, clips and seeds. Tables in, Figures out.

All scores are in percent. A notebook shows a figure at the end of the cell (`figures.histogram(...);`).
"""

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

BARS = 40  # of a histogram
FLOOR = "pixels"  # what raw pixels reach without learning is drawn through all rows


@style.figure_in_style
def histogram(values: Any, unit: str = "", title: str = "", *, name: str = "count") -> Figure:
    """Distribution of one quantity, with its median and the 5th and 95th percentile marked.

    `values` are numbers of any shape; what is not finite is left out and counted in the title. `unit` and `name` label the
    axes.
    """
    flat = style.to_array(values).astype(float).ravel()
    good = flat[np.isfinite(flat)]
    if good.size == 0:
        raise InputError(f"the histogram {title!r} has no finite value to draw.")
    figure, ax = plt.subplots(figsize=(style.WIDTH, 2.6))
    whole = bool(np.all(good == np.round(good))) and np.ptp(good) < BARS
    ax.hist(good, bins=np.arange(good.min() - 0.5, good.max() + 1).tolist() if whole else BARS, rwidth=0.92, alpha=0.85)
    marks: dict[float, list[str]] = {}
    for share, text in ((5, "5 %"), (50, "median"), (95, "95 %")):
        marks.setdefault(float(np.percentile(good, share)), []).append(text)
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for line, (at, texts) in enumerate(marks.items()):  # one below the other: close marks stay readable
        middle = "median" in texts
        ax.axvline(at, color=style.INK, linewidth=1.2 if middle else 0.7, linestyle="-" if middle else ":")
        text = f"{', '.join(texts) if np.ptp(good) else 'all'} {at:.4g}"
        place: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "top"}
        ax.annotate(text, (at, 1), xytext=(3, -2 - 11 * line), fontsize=8, path_effects=halo, **place)
    if whole:
        spare = max(0.0, 4 - np.ptp(good)) / 2  # a single value is drawn as a bar, not as a wall
        ax.set_xlim(good.min() - 0.5 - spare, good.max() + 0.5 + spare)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    left_out = flat.size - good.size
    note = f"  ({left_out:,} not finite, left out)" if left_out else ""
    ax.set(xlabel=unit, ylabel=name, title=title + note, ylim=(0, ax.get_ylim()[1] * 1.12))
    ax.set_title(f"n = {good.size:,}", loc="right", fontsize=8.5, color=style.MUTED)
    ax.grid(axis="x", visible=False)
    return figure


@style.figure_in_style
def score_table(table: pd.DataFrame, *, against: str = "", interval: str = "95 % interval over clips") -> Figure:
    """Scores of any number of encoders: a panel per benchmark, a row per encoder, a dot with its interval.

    Args:
        table: one row per `encoder` and `benchmark`; columns `measured`, and `low`, `high` (ends of the interval) and
            `paper`, which may be absent or NaN. With `against`: `difference` instead of `measured`, and its interval.
        against: draw the paired differences to this encoder, in percentage points, about a line at zero.
        interval: what `low` and `high` are.
    """
    value = "difference" if against else "measured"
    benchmarks, encoders = list(dict.fromkeys(table["benchmark"])), list(dict.fromkeys(table["encoder"]))
    columns = min(4, len(benchmarks))
    lines = -(-len(benchmarks) // columns)
    size = (style.WIDTH, lines * (0.75 + 0.36 * len(encoders)) + 0.3)
    figure, axes = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False)
    legend: dict[str, Artist] = {}
    for ax, name in zip(axes.flat, benchmarks, strict=False):
        part = table[table["benchmark"] == name].drop_duplicates("encoder").set_index("encoder")
        part = part.reindex(index=encoders, columns=[value, "low", "high", "paper"]).astype(float)
        rows = pd.Series(range(len(part)), index=part.index)
        there = part[["low", "high"]].notna().all(axis=1)
        if against:
            ax.axvline(0, color=style.INK, linewidth=1)
        elif FLOOR in part.index:
            ax.axvline(part.loc[FLOOR, value], color=style.MUTED, linestyle="--", linewidth=1, label=FLOOR)
        if there.any():
            ends = part["low"][there], part["high"][there]
            ax.hlines(rows[there], *ends, color=style.CYCLE[0], linewidth=4, alpha=0.35, label=interval)
        ax.scatter(part[value], rows, s=36, zorder=3, label=f"difference to {against}" if against else "measured here")
        if part["paper"].notna().any():
            ax.scatter(part["paper"], rows, marker="D", s=34, facecolor="white", edgecolor=style.CYCLE[1], linewidth=1.6,
                       zorder=4, label="paper")  # fmt: skip
        for row, (number, end) in enumerate(zip(part[value], part.max(axis=1).fillna(0), strict=True)):
            text, colour = (f"{number:.1f}", style.INK) if np.isfinite(number) else ("not run", style.MUTED)
            place: Any = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
            ax.annotate(text, (end, row), fontsize=8.5, color=colour, **place)
        reach = 1.25 * part.abs().fillna(0).to_numpy().max(initial=1.0)
        ax.set(title=str(name), xlabel="percentage points" if against else "%", xlim=(-reach if against else 0, reach))
        ax.set(yticks=rows, yticklabels=encoders, ylim=(len(encoders) - 0.5, -0.5))
        ax.tick_params(axis="y", labelcolor=style.INK, labelsize=9.5)
        ax.grid(axis="y", visible=False)
        legend |= dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    for empty in axes.flat[len(benchmarks) :]:
        empty.set_visible(False)
    figure.legend(list(legend.values()), list(legend), loc="outside lower center", ncols=4)
    return figure


@style.figure_in_style
def clip_bars(table: pd.DataFrame, *, unit: str = "%", title: str = "", top: int = 40) -> Figure:
    """Scores per clip (or joint, or part), best first: one dot per clip and encoder on a common scale.

    `table` has a row per clip and a column per encoder, and is sorted by the first; its index's name says what a row is,
    `clip` by default. Of more than `top` the best and the worst half of that are drawn, and the title says so.
    """
    if table.empty:
        raise InputError(f"{title or 'clip_bars'}: there is no row to draw.")
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
    ax.set_title((title or f"score per {what}") + (f"  ({cut} in the middle left out)" if cut > 0 else ""))
    ax.set_xlabel(f"{unit}   (dotted: mean over {len(table)} {what if what.endswith('s') else what + 's'})")
    figure.legend(loc="outside lower center", ncols=4)
    return figure
