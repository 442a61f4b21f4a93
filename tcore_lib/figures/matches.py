"""Pictures of what is alike: maps over frames, votes and matches between frames, the decoder's attention.

Frames are uint8 (H, W, 3); a cell is (row, column) of the (h, w) patch grid; attention of one query is (heads, h, w), of
all queries (heads, h, w, h, w): the query's row and column first, then those of the patch looked at. `mask` is bool (h, w),
True where a patch was hidden from the encoder: it is veiled in the query's picture.
"""

import itertools
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.ticker import MaxNLocator

from tcore_lib.figures import style
from tcore_lib.figures.frames import HALO, grid, pack, page, show

Cell = tuple[int, int]
Size = Sequence[int]  # (h, w) of a grid


def _outline_cell(ax: Axes, cell: Cell, size: Size, shape: Size, colour: str = "white", dotted: bool = False) -> None:
    """Outline one patch of a grid of `size` over a picture of `shape`."""
    height, width = shape[0] / size[0], shape[1] / size[1]
    corner = (cell[1] * width - 0.5, cell[0] * height - 0.5)
    for line, edge, dash in ((3.2, style.RIM, "-"), (1.5, colour, (0, (1.5, 1)) if dotted else "-")):
        ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=edge, linewidth=line, linestyle=dash))


def _centre(cell: Size, size: Size, shape: Size) -> tuple[float, float]:
    """The middle of a patch as (x, y) of the picture."""
    return (cell[1] + 0.5) * shape[1] / size[1] - 0.5, (cell[0] + 0.5) * shape[0] / size[0] - 0.5


def _link(figure: Figure, first: Axes, second: Axes, ends: Sequence, colour: str, width: float, alpha: float) -> None:
    """A line from a point of one picture to a point of another."""
    link = ConnectionPatch(
        ends[0], ends[1], "data", "data", axesA=first, axesB=second, color=colour, linewidth=width, alpha=alpha
    )
    link.set_in_layout(False)
    figure.add_artist(link)


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
    figure, axes = grid(1, 2, frame.shape, 1)
    show(axes[0, 0], frame, "frame" if query is None else f"query patch: row {query[0]}, column {query[1]}")
    show(axes[0, 1], style.overlay_heat(frame, values, limits=limits), title)
    if query is not None:
        for ax in axes[0]:
            _outline_cell(ax, query, values.shape, frame.shape)
    _scale(figure, [axes[0, 1]], limits, unit)
    return figure


@style.figure_in_style
def top_k_links(
    frame: np.ndarray,
    query: Cell,
    context: Sequence[np.ndarray],
    positions: np.ndarray,
    weights: np.ndarray,
    size: Size,
    titles: Sequence[str] | None = None,
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
    _outline_cell(axes["query"], query, size, frame.shape)
    for j, picture in enumerate(context):
        ax, votes = axes[str(j)], positions[:, 0] == j
        name = titles[j] if titles is not None else f"context {j}"
        count = f"{votes.sum()} vote{'' if votes.sum() == 1 else 's'}, {weights[votes].sum():.0%}"
        show(ax, picture, f"{name}: {count if votes.any() else 'no vote'}")
        for (_, *cell), weight in zip(positions[votes], weights[votes], strict=True):
            share = weight / weights.max()
            _outline_cell(ax, cell, size, picture.shape, style.OBJECT_COLOURS[1])
            ends = _centre(query, size, frame.shape), _centre(cell, size, picture.shape)
            _link(figure, axes["query"], ax, ends, style.OKABE_ITO["orange"], 0.6 + 2.4 * share, 0.25 + 0.65 * share)
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
    figure, axes = grid(1, 2, frame.shape, 1)
    left, right = axes[0]
    show(left, frame, titles[0])
    show(right, other, titles[1])
    for i, match in enumerate(matches.itertuples()):
        colour = style.OBJECT_COLOURS[i % len(style.OBJECT_COLOURS)]
        start = _centre((match.row, match.column), size, frame.shape)
        end = _centre((match.to_row, match.to_column), size, other.shape)
        for ax, point in ((left, start), (right, end)):
            ax.plot(*point, marker="o", markersize=6, color=colour, markeredgecolor="white", markeredgewidth=1)
        _link(figure, left, right, (start, end), colour, 1.4, 1.0)
        upper = start[1] < frame.shape[0] / 2  # the number stays inside the frame
        left.annotate(f"{match.similarity:.2f}", start, xytext=(0, -7 if upper else 7), textcoords="offset points",
                      fontsize=7, color="white", va="top" if upper else "bottom", path_effects=HALO,
                      ha="left" if start[0] < 0.04 * frame.shape[1] else "center")  # fmt: skip
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
    heads: bool = False,
) -> Figure:
    """Where one patch looks in several states of a network, side by side, mean over heads, all on one scale.

    The query's picture is at the left, its place is dotted in the others. `frames`: `past`, `future`, ... -> the picture
    looked at, a row each; `states`: `before training`, ... -> {`past`: attention of the query, ...}, a column each; with
    `heads` another column beside it shows every head, each on its own scale.
    """
    maps = {state: {role: style.to_array(own[role]) for role in frames} for state, own in states.items()}
    highest = max(float(one.mean(0).max()) for own in maps.values() for one in own.values())
    rows: dict[str, dict[str, np.ndarray]] = {role: {role: picture} for role, picture in frames.items()}
    for state, role in itertools.product(maps, frames):
        values, picture = maps[state][role], frames[role]
        mean = values.mean(0)
        rows[role][f"{state}: up to {mean.max():.1%}"] = style.overlay_heat(picture, mean, limits=(0.0, highest))
        if heads:
            painted = [style.overlay_heat(picture, one, limits=(0.0, one.max())) for one in values]
            gap = max(2, picture.shape[1] // 40)
            rows[role][f"heads 1 to {len(values)}"] = style.tile(painted, max(1, round(len(values) ** 0.5)), gap)
    names = [["query", *(f"{role}/{text}" for text in pictures)] for role, pictures in rows.items()]
    figure, axes = page(names, frame.shape[0] / frame.shape[1], lines=len(rows))
    show(
        axes["query"], _veiled(frame, mask), f"query: row {query[0]}, column {query[1]}", style.ROLE_COLOURS["current"]
    )
    _outline_cell(axes["query"], query, mean.shape, frame.shape)
    for role, pictures in rows.items():
        for text, picture in pictures.items():
            show(axes[f"{role}/{text}"], picture, text, style.ROLE_COLOURS.get(role, style.INK))
            if not text.startswith("heads"):
                _outline_cell(axes[f"{role}/{text}"], query, mean.shape, picture.shape, dotted=True)
    if not heads:
        _scale(figure, [axes[row[-1]] for row in names], (0.0, 100 * highest), "attention, %")
    return figure


@style.figure_in_style
def attention_atlas(frame: np.ndarray, maps: Mapping[str, np.ndarray], mask: np.ndarray) -> Figure:
    """Every patch of a crop at once: at each patch's own place a small map of where it looks in another frame.

    Each small map is the mean over heads, on its own scale from 0 to its largest weight, which an orange square marks; a
    white one marks the query's own place. Maps of patches that were not hidden are paler. `maps`: `past`, `future` ->
    attention of all queries.
    """
    figure, axes = grid(1, 1 + len(maps), frame.shape, 1)
    pack(figure, "compressed", gap=0.08)
    show(axes[0, 0], _veiled(frame, mask), "queries", style.ROLE_COLOURS["current"])
    for ax, (role, heads) in zip(axes[0, 1:], maps.items(), strict=True):
        text = f"{role}: a map per patch, at its place"
        show(ax, _atlas(style.to_array(heads).mean(0), mask), text, style.ROLE_COLOURS.get(role, style.INK))
    return figure


def _atlas(mean: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Small maps (h, w, h, w) as one picture, 3 x 3 pixels per looked-at patch."""
    tiles = []
    for row, column in np.ndindex(*mask.shape):
        values = mean[row, column]
        small = style.to_colours(values / max(values.max(), 1e-12))
        if not mask[row, column]:
            small = np.round(0.35 * small + 0.65 * 255).astype(np.uint8)
        small = small.repeat(3, 0).repeat(3, 1)
        y, x = np.unravel_index(values.argmax(), mask.shape)
        small[3 * row + 1, 3 * column + 1] = 255
        small[3 * y + 1, 3 * x + 1] = style.to_rgb8(style.OKABE_ITO["orange"])
        tiles.append(small)
    return style.tile(tiles, mask.shape[1], gap=3)
