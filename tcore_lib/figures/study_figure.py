"""Pictures of a study: scores along the training, and every variant's scores seed by seed. Tables in, Figures out."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tcore_lib.figures import style as look

MARKERS = "osD^vPX*<>"
BEYOND = (("ink", "-"), ("ink", ":"), ("muted", "--"))  # colour and line of variants after the last colour of the cycle


@look.figure_in_style
def curves(table: pd.DataFrame, titles: Mapping[str, str], benchmarks: Mapping[str, str]) -> Figure:
    """Mean score over training of every variant that has more than one point; whiskers span the seeds.

    Args:
        table: columns variant, seed, benchmark, step, value (percent).
        titles: variant -> what it is called; the first seven have colours of their own.
        benchmarks: benchmark -> title of its panel; those with one point only are left out.
    """
    several = table.groupby("benchmark")["step"].transform(lambda steps: (steps > 0).any() and steps.nunique() > 2)
    table = table[several] if several.any() else table
    shown = [name for name in benchmarks if name in set(table["benchmark"])]
    figure, axes = plt.subplots(1, len(shown), figsize=(look.WIDTH, 3.9), squeeze=False)
    for ax, name in zip(axes[0], shown, strict=True):
        _panel(ax, table[table["benchmark"] == name], titles)
        ax.set(title=benchmarks[name].replace(", ", "\n"), xlabel="optimiser steps")  # five panels fit in two lines
    axes[0, 0].set_ylabel("score, %")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    return figure


def _panel(ax: Axes, part: pd.DataFrame, titles: Mapping[str, str]) -> None:
    start = part[part["step"] == 0].groupby("seed")["value"].mean()
    for number, (variant, title) in enumerate(titles.items()):
        rows = part[part["variant"] == variant]
        colour, line = look.CYCLE[number % len(look.CYCLE)], "-"
        if number >= len(look.CYCLE):
            name, line = BEYOND[(number - len(look.CYCLE)) % len(BEYOND)]
            colour = look.colour(name)
        if rows.empty:
            continue
        if rows["step"].max() == 0:
            ax.axhline(rows["value"].mean(), color=colour, linestyle="--", linewidth=1.2, label=title)
            continue
        steps = rows.groupby("step")["value"].agg(["mean", "min", "max"])
        if len(start):  # every variant starts from the random initialisation of its seed
            own = start.reindex(rows["seed"].unique()).dropna()
            first = pd.DataFrame({"mean": [own.mean()], "min": [own.min()], "max": [own.max()]}, index=[0])
            steps = pd.concat([first, steps]) if len(own) else steps
        spread = [steps["mean"] - steps["min"], steps["max"] - steps["mean"]]
        ax.errorbar(
            steps.index, steps["mean"], yerr=spread, color=colour, marker=MARKERS[number % len(MARKERS)], markersize=4.5,
            linestyle=line, linewidth=1.5, elinewidth=0.8, capsize=2, label=title,
        )  # fmt: skip


@look.figure_in_style
def seeds(table: pd.DataFrame, titles: Mapping[str, str], benchmarks: Mapping[str, str], baseline: str) -> Figure:
    """One panel per benchmark, one row per variant: a dot per seed, a bar at the mean, a dashed line at the baseline's mean.

    Args:
        table: after training; columns variant, seed, benchmark, value (percent).
        titles: variant -> what it is called, in this order from the top.
        benchmarks: benchmark -> title of its panel.
        baseline: the variant whose mean is drawn through all rows.
    """
    shown = [name for name in benchmarks if name in set(table["benchmark"])]
    rows = [variant for variant in titles if variant in set(table["variant"])]
    size = (look.WIDTH, 1.1 + 0.3 * len(rows))
    figure, axes = plt.subplots(1, len(shown), figsize=size, sharey=True, squeeze=False)
    for ax, name in zip(axes[0], shown, strict=True):
        part = table[table["benchmark"] == name]
        for place, variant in enumerate(rows):
            values = part[part["variant"] == variant]["value"]
            ax.scatter(values, [place] * len(values), s=26, color=look.CYCLE[0], alpha=0.75, zorder=3, linewidths=0)
            if len(values):
                ax.plot(
                    [values.mean()] * 2, [place - 0.33, place + 0.33], color=look.colour("ink"), linewidth=1.8, zorder=4
                )
        reference = part[part["variant"] == baseline]["value"]
        if len(reference):
            ax.axvline(reference.mean(), color=look.CYCLE[1], linestyle="--", linewidth=1.0, zorder=1)
        benchmark, _, score = benchmarks[name].partition(", ")
        ax.set(title=benchmark, xlabel=f"{score}, %")
        ax.margins(x=0.15)
        ax.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(rows)), [titles[variant] for variant in rows])
    axes[0, 0].invert_yaxis()
    return figure
