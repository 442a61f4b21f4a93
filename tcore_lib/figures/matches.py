"""Pictures of what is alike: maps over frames, votes and matches between frames. Attention is in `gaze`.

Frames are uint8 (H, W, 3); a grid cell is (row, column) of the (h, w) patch grid.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from tcore_lib.figures import panels, style as look


@look.figure_in_style
def heatmap_on_frame(
    frame: np.ndarray,
    values: np.ndarray,
    title: str = "",
    *,
    unit: str = "",
    query: tuple[int, int] | None = None,
) -> Figure:
    """A frame beside the same frame under a map (h, w), with its scale.

    Args:
        frame: uint8 (H, W, 3).
        values: floats (h, w), one per patch.
        title: what the map is.
        unit: label of the scale, which spans the map's range.
        query: (row, column) of a patch to outline in the left picture.
    """
    values = look.to_array(values)
    limits = (float(np.nanmin(values)), float(np.nanmax(values)))
    width = (panels.WIDTH - panels.GAP - 0.95) / 2
    height = width * frame.shape[0] / frame.shape[1]
    figure = panels.page(panels.LINE + height + panels.GAP)
    axes = [panels.place(figure, j * (width + panels.GAP), panels.LINE, width, height) for j in range(2)]
    panels.show(axes[0], frame, "frame" if query is None else f"query patch: row {query[0]}, column {query[1]}")
    panels.show(axes[1], look.overlay_heat(frame, values, limits=limits), title)
    if query is not None:
        for ax in axes:
            panels.outline_cell(ax, query, values.shape, frame.shape)
    panels.scale(axes[1], limits, unit)
    return figure


@look.figure_in_style
def top_k_links(
    frame: np.ndarray,
    query: tuple[int, int],
    context: Sequence[np.ndarray],
    positions: np.ndarray,
    weights: np.ndarray,
    grid: tuple[int, int],
    titles: Sequence[str] | None = None,
) -> Figure:
    """The k context patches that vote on one patch (EVALUATION "Propagation"), joined to it by lines.

    Args:
        frame: the frame being labelled, uint8 (H, W, 3).
        query: (row, column) of its patch.
        context: the context frames shown.
        positions: integers (k, 3): index into `context`, row, column.
        weights: (k,) softmax weights; width and opacity of the lines.
        grid: (h, w).
        titles: of the context frames.
    """
    positions, weights = np.asarray(positions), np.asarray(weights, float)
    columns = -(-len(context) // 2)
    aspect = frame.shape[0] / frame.shape[1]
    width = (panels.WIDTH - (columns + 1) * panels.GAP) / (2 + columns)
    step = panels.LINE + width * aspect + panels.GAP
    figure = panels.page(2 * step)
    left = panels.place(
        figure,
        0,
        step + panels.LINE / 2 - (width + panels.GAP / 2) * aspect,
        2 * width + panels.GAP,
        (2 * width + panels.GAP) * aspect,
    )
    panels.show(left, frame, f"query: row {query[0]}, column {query[1]}", look.ROLE_COLOURS["current"])
    size = np.array([frame.shape[1] / grid[1], frame.shape[0] / grid[0]])
    start = (np.array(query[::-1]) + 0.5) * size - 0.5
    for j, picture in enumerate(context):
        ax = panels.place(
            figure, (2 + j % columns) * (width + panels.GAP), j // columns * step + panels.LINE, width, width * aspect
        )
        name, votes = titles[j] if titles is not None else f"context {j}", positions[:, 0] == j
        count = f"{votes.sum()} vote{'' if votes.sum() == 1 else 's'}, {weights[votes].sum():.0%}"
        panels.show(ax, picture, f"{name}: {count if votes.any() else 'no vote'}")
        for (_, row, column), weight in zip(positions[votes], weights[votes], strict=True):
            share = weight / weights.max()
            panels.outline_cell(ax, (row, column), grid, picture.shape, look.OKABE_ITO["yellow"])
            end = (np.array([column, row]) + 0.5) * size - 0.5
            link = ConnectionPatch(start, end, "data", "data", axesA=left, axesB=ax, color=look.OKABE_ITO["orange"],
                                   linewidth=0.6 + 2.4 * share, alpha=0.25 + 0.65 * share)  # fmt: skip
            figure.add_artist(link)
    panels.outline_cell(left, query, grid, frame.shape)
    return figure


@look.figure_in_style
def match_links(
    frame: np.ndarray,
    other: np.ndarray,
    matches: pd.DataFrame,
    grid: Sequence[int],
    titles: Sequence[str] = ("first frame", "second frame"),
    *,
    other_grid: Sequence[int] | None = None,
) -> Figure:
    """Two frames side by side and lines between the patches that find each other.

    Args:
        frame: uint8 (H, W, 3).
        other: the second frame.
        matches: a row per match: `row`, `column`, `to_row`, `to_column`, and `similarity`, written beside the patch.
        grid: (h, w) of the first frame.
        titles: of the two frames.
        other_grid: (h, w) of the second frame; the same by default.
    """
    figure, axes = panels.rows(1, 2, frame.shape, lines=[True])
    for ax, image, title in zip(axes[0], (frame, other), titles, strict=True):
        panels.show(ax, image, title)
    sizes = [np.array(image.shape[1::-1]) / g[1::-1] for image, g in ((frame, grid), (other, other_grid or grid))]
    for i, match in enumerate(matches.itertuples()):
        ends = [(match.row, match.column), (match.to_row, match.to_column)]
        colour = look.CYCLE[i % (len(look.CYCLE) - 1)]
        points = [tuple((np.array(cell[::-1]) + 0.5) * size - 0.5) for cell, size in zip(ends, sizes, strict=True)]
        for ax, (x, y) in zip(axes[0], points, strict=True):
            ax.plot(x, y, marker="o", markersize=6, color=colour, markeredgecolor="white", markeredgewidth=1)
        link = ConnectionPatch(points[0], points[1], "data", "data", axesA=axes[0, 0], axesB=axes[0, 1], color=colour)
        link.set_linewidth(1.4)
        figure.add_artist(link)
        upper, left = points[0][1] < frame.shape[0] / 2, points[0][0] < 0.04 * frame.shape[1]  # stay inside the frame
        below = (0, -7 if upper else 7)
        note = axes[0, 0].annotate(f"{match.similarity:.2f}", points[0], xytext=below, textcoords="offset points")
        note.set(fontsize=7, ha="left" if left else "center", va="top" if upper else "bottom", color="white")
        note.set(path_effects=panels.HALO, clip_on=True)
    return figure
