"""Pictures of what is alike: maps over frames, votes and matches between frames, the decoder's attention.

Frames are uint8 (H, W, 3); a cell is (row, column) of the (h, w) patch grid; attention of one query is (heads, h, w), of
all queries (heads, h, w, h, w): the query's row and column first, then those of the patch looked at. `mask` is bool (h, w),
True where a patch was hidden from the encoder: it is veiled in the query's picture.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.ticker import MaxNLocator

from tcore_lib.figures import style
from tcore_lib.figures.frames import HALO, page, sheet, show

Cell = tuple[int, int]
Size = Sequence[int]  # (h, w) of a grid


def _place(ax: Axes, cell: Sequence[float], size: Size) -> tuple[float, float]:
    """The upper left corner of a cell of a grid of `size` as (x, y) of the picture in `ax`."""
    height, width = ax.images[0].get_size()
    return cell[1] * width / size[1] - 0.5, cell[0] * height / size[0] - 0.5


def _centre(ax: Axes, cell: Size, size: Size) -> tuple[float, float]:
    return _place(ax, (cell[0] + 0.5, cell[1] + 0.5), size)


def _outline_cell(ax: Axes, cell: Cell, size: Size, colour: str = "white", dotted: bool = False) -> None:
    x, y = _place(ax, cell, size)
    right, lower = _place(ax, (cell[0] + 1, cell[1] + 1), size)
    for line, edge, dash in ((3.2, style.RIM, "-"), (1.5, colour, (0, (1.5, 1)) if dotted else "-")):
        look: Any = {"fill": False, "edgecolor": edge, "linewidth": line, "linestyle": dash}
        ax.add_patch(Rectangle((x, y), right - x, lower - y, **look))


def _link(start: Axes, cell: Size, end: Axes, other: Size, size: Size, **look: Any) -> None:
    """A line from the middle of a cell in one picture to the middle of a cell in another."""
    ends: Any = {"xyA": _centre(start, cell, size), "xyB": _centre(end, other, size), "axesA": start, "axesB": end}
    link = ConnectionPatch(coordsA="data", coordsB="data", **ends, **look)
    link.set_in_layout(False)
    start.figure.add_artist(link)


def _scale(figure: Figure, axes: Sequence[Axes], limits: tuple[float, float], unit: str) -> None:
    """The scale of a map's colours at the right of axes; it fades as the map does (`style.overlay_heat`)."""
    colours = mpl.colormaps[style.MAP](np.linspace(0, 1, 256))
    colours[:, 3] = np.linspace(0, style.COVER, 256)
    values = plt.cm.ScalarMappable(plt.Normalize(*limits), mpl.colors.ListedColormap(colours))
    bar = figure.colorbar(values, ax=list(axes), pad=0.01, aspect=30, label=unit, ticks=MaxNLocator(4))
    bar.outline.set_visible(False)


@style.figure_in_style
def heatmap_on_frame(
    frame: np.ndarray, values: np.ndarray, title: str = "", *, unit: str = "", query: Cell | None = None
) -> Figure:
    """A frame beside the same frame under a map of floats (h, w), with its scale; `query` is outlined in both."""
    values = style.to_array(values)
    limits = (float(np.nanmin(values)), float(np.nanmax(values)))
    name = "frame" if query is None else f"query patch: row {query[0]}, column {query[1]}"
    figure, axes = sheet([frame, style.overlay_heat(frame, values, limits=limits)], [name, title], 2)
    if query is not None:
        for ax in axes:
            _outline_cell(ax, query, values.shape)
    _scale(figure, axes[1:], limits, unit)
    return figure


@style.figure_in_style
def top_k_links(
    frame: np.ndarray,
    query: Cell,
    context: Sequence[np.ndarray],
    positions: np.ndarray,
    weights: np.ndarray,
    size: Size,
    titles: Sequence[str] = (),
) -> Figure:
    """The k context patches that vote on one patch in label propagation, joined to it by lines.

    `positions`: integers (k, 3), index into `context`, row, column; `weights`: (k,), width and opacity of the lines;
    `size`: (h, w) of the grid; `titles`: of the context frames.
    """
    positions, weights = np.asarray(positions), np.asarray(weights, float)
    columns = -(-len(context) // 2)
    names = [[str(i) if i < len(context) else "." for i in range(start, start + columns)] for start in (0, columns)]
    figure, axes = page([["query", "query", *row] for row in names], frame.shape[0] / frame.shape[1], lines=2)
    show(axes["query"], frame, f"query: row {query[0]}, column {query[1]}", style.ROLE_COLOURS["current"])
    _outline_cell(axes["query"], query, size)
    for j, picture in enumerate(context):
        ax, votes = axes[str(j)], positions[:, 0] == j
        name = titles[j] if titles else f"context {j}"
        count = f"{votes.sum()} vote{'' if votes.sum() == 1 else 's'}, {weights[votes].sum():.0%}"
        show(ax, picture, f"{name}: {count if votes.any() else 'no vote'}")
        for (_, *cell), weight in zip(positions[votes], weights[votes] / weights.max(), strict=True):
            _outline_cell(ax, cell, size, style.OBJECT_COLOURS[1])
            look = {"color": style.OKABE_ITO["orange"], "linewidth": 0.6 + 2.4 * weight, "alpha": 0.25 + 0.65 * weight}
            _link(axes["query"], query, ax, cell, size, **look)
    return figure


@style.figure_in_style
def match_links(
    frame: np.ndarray,
    other: np.ndarray,
    matches: pd.DataFrame,
    size: Size,
    titles: Sequence[str] = ("first frame", "second frame"),
) -> Figure:
    """Two frames side by side and lines between the patches of a grid of `size` that find each other.

    `matches` has a row per line: `row`, `column`, `to_row`, `to_column`, and `similarity`, written beside the patch.
    """
    figure, (left, right) = sheet([frame, other], titles, 2)
    for i, match in enumerate(matches.itertuples()):
        colour = style.OBJECT_COLOURS[i % len(style.OBJECT_COLOURS)]
        cells = {left: (match.row, match.column), right: (match.to_row, match.to_column)}
        for ax, cell in cells.items():
            ax.plot(*_centre(ax, cell, size), "o", markersize=6, color=colour, mec="white", mew=1)
        _link(left, cells[left], right, cells[right], size, color=colour, linewidth=1.4)
        upper = match.row < size[0] / 2  # the number stays inside the frame
        look: Any = {"va": "top" if upper else "bottom", "ha": "center" if match.column else "left"}
        left.annotate(f"{match.similarity:.2f}", _centre(left, cells[left], size), xytext=(0, -7 if upper else 7),
                      textcoords="offset points", fontsize=7, color="white", path_effects=HALO, **look)  # fmt: skip
    return figure


# ---- the decoder's attention -----------------------------------------------------------------------------------------


def _veiled(frame: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """A crop in which what was hidden is seen through a veil."""
    covered = style.hide_patches(frame, np.zeros((1, 1)) if mask is None else mask, "#C9CED6")
    return np.round(0.3 * style.to_frame(frame) + 0.7 * covered).astype(np.uint8)


@style.figure_in_style
def attention_compared(
    frame: np.ndarray,
    query: Cell,
    frames: Mapping[str, np.ndarray],
    states: Mapping[str, Mapping[str, np.ndarray]],
    *,
    mask: np.ndarray | None = None,
) -> Figure:
    """Where one patch looks in several states of a network, side by side, mean over heads, all on one scale.

    The query's picture is at the left, its place is dotted in the others. `frames`: `past`, `future`, ... -> the picture
    looked at, a row each; `states`: `before training`, ... -> {`past`: attention of the query, ...}, a column each.
    """
    means = {state: {role: style.to_array(own[role]).mean(0) for role in frames} for state, own in states.items()}
    highest = max(float(mean.max()) for own in means.values() for mean in own.values())
    names = [["query", role, *(f"{role}/{state}" for state in states)] for role in frames]
    figure, axes = page(names, frame.shape[0] / frame.shape[1], lines=len(names))
    title = f"query: row {query[0]}, column {query[1]}"
    show(axes["query"], _veiled(frame, mask), title, style.ROLE_COLOURS["current"])
    for role, picture in frames.items():
        colour = style.ROLE_COLOURS.get(role, style.INK)
        show(axes[role], picture, role, colour)
        for state, own in means.items():
            heat = style.overlay_heat(picture, own[role], limits=(0.0, highest))
            show(axes[f"{role}/{state}"], heat, f"{state}: up to {own[role].max():.1%}", colour)
    for name, ax in axes.items():
        _outline_cell(ax, query, own[role].shape, dotted=name != "query")
    _scale(figure, [axes[row[-1]] for row in names], (0.0, 100 * highest), "attention, %")
    return figure


@style.figure_in_style
def attention_atlas(frame: np.ndarray, maps: Mapping[str, np.ndarray], mask: np.ndarray) -> Figure:
    """Every patch of a crop at once: at each patch's own place a small map of where it looks in another frame.

    Each small map is the mean over heads, on its own scale from 0 to its largest weight, which an orange square marks; a
    white one marks the query's own place. Maps of patches that were not hidden are paler. `maps`: `past`, `future` ->
    attention of all queries.
    """
    pictures = [_veiled(frame, mask), *(_atlas(style.to_array(heads).mean(0), mask) for heads in maps.values())]
    titles = ["queries", *(f"{role}: a map per patch, at its place" for role in maps)]
    colours = [style.ROLE_COLOURS.get(role, style.INK) for role in ("current", *maps)]
    return sheet(pictures, titles, len(pictures), colours=colours, gap=0.08)[0]


def _atlas(mean: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Small maps (h, w, h, w) as one picture, 3 x 3 pixels per looked-at patch, with white gaps."""
    (h, w), (row, column) = mask.shape, np.indices(mask.shape)
    small = style.to_colours(mean / np.maximum(mean.max((2, 3), keepdims=True), 1e-12))  # (h, w, h, w, 3)
    small[~mask] = np.round(0.35 * small[~mask] + 0.65 * 255)
    small = small.repeat(3, 2).repeat(3, 3)
    y, x = np.divmod(mean.reshape(h, w, -1).argmax(2), w)
    small[row, column, 3 * row + 1, 3 * column + 1] = 255
    small[row, column, 3 * y + 1, 3 * x + 1] = style.to_rgb8(style.OKABE_ITO["orange"])
    spaced = np.pad(small, ((0, 0), (0, 0), (0, 3), (0, 3), (0, 0)), constant_values=255)
    return spaced.swapaxes(1, 2).reshape(h * (3 * h + 3), w * (3 * w + 3), 3)[:-3, :-3]
