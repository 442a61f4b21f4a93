"""Pictures of frames: sheets, the sandwich sample, masks, poses, parts, attention, links and features.

Frames are uint8 (H, W, 3); a grid cell is (row, column) of the (h, w) patch grid; a box is (top, left, height, width)
in pixels. Every function returns a Figure about 10 inches wide. Curves and bars are in `plots`, colours in `look`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, ConnectionPatch, Patch, Rectangle
from matplotlib.patheffects import withStroke

from tcore_lib import look
from tcore_lib.errors import InputError

WIDTH = 10.0
Box = tuple[float, float, float, float]
GAP, LINE, LABEL, LEGEND = 0.06, 0.24, 0.3, 0.4  # inches: between pictures, a title, a row label, a row of a legend
HALO = [withStroke(linewidth=3, foreground="#14171C")]


def _show(ax: Axes, image: np.ndarray, title: str = "", colour: str | None = None) -> None:
    """One picture without ticks; `colour` draws a line of that colour above it."""
    ax.imshow(look.to_frame(image), aspect="equal")
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title, fontsize=9, color=colour or look.colour("ink"), pad=4)


def _row_label(ax: Axes, text: str) -> None:
    ax.set_ylabel(text, rotation=90, fontsize=9.5, color=look.colour("ink"), labelpad=4)


def _page(height: float) -> Figure:
    """An empty figure of the usual width; pictures have known sizes, so they are placed in inches, not laid out."""
    return plt.figure(figsize=(WIDTH, height), layout="none")


def _place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at inches from the figure's left and top edge."""
    total = figure.get_figheight()
    return figure.add_axes((left / WIDTH, 1 - (top + height) / total, width / WIDTH, height / total))


def _rows(
    rows: int,
    columns: int,
    shape: Sequence[int],
    *,
    lines: Sequence[bool],
    left: float = 0.0,
    top: float = 0.0,
    bottom: float = 0.0,
) -> tuple[Figure, np.ndarray]:
    """Axes (rows, columns) for pictures of one shape (height, width, ...), side by side over the whole width.

    `lines` says for each row whether its pictures carry a title; `left`, `top` and `bottom` inches stay free for row
    labels, the figure's title and a legend.
    """
    width = (WIDTH - left - GAP * (columns - 1)) / columns
    height = width * shape[0] / shape[1]
    figure = _page(top + sum(height + GAP + LINE * line for line in lines) + bottom)
    axes, y = np.empty((rows, columns), dtype=object), top
    for i in range(rows):
        y += LINE * lines[i]
        for j in range(columns):
            axes[i, j] = _place(figure, left + j * (width + GAP), y, width, height)
        y += height + GAP
    return figure, axes


def _headline(figure: Figure, title: str) -> None:
    figure.text(0, 1, title, va="top", fontsize=11.5)


def _same_number(name: str, got: int, expected: int) -> None:
    if got != expected:
        raise InputError(f"{name} has {got} entries for {expected} frames; give one per frame.")


@look.figure_in_style
def contact_sheet(
    frames: Sequence[np.ndarray], titles: Sequence[str] | None = None, columns: int = 6, *, title: str = ""
) -> Figure:
    """Frames in rows.

    Args:
        frames: uint8 (H, W, 3); sizes may differ.
        titles: one line above each frame.
        columns: frames per row.
        title: above the figure.
    """
    if len(frames) == 0:
        raise InputError("a contact sheet needs at least one frame.")
    if titles is not None:
        _same_number("titles", len(titles), len(frames))
    columns = max(2, min(columns, len(frames)))
    rows = -(-len(frames) // columns)
    figure, axes = _rows(rows, columns, frames[0].shape, lines=[titles is not None] * rows, top=0.3 if title else 0.0)
    for i, ax in enumerate(axes.flat):
        if i < len(frames):
            _show(ax, frames[i], titles[i] if titles is not None else "")
        else:
            ax.remove()
    _headline(figure, title)
    return figure


@look.figure_in_style
def sandwich(
    frames: Sequence[np.ndarray],
    boxes: Mapping[str, Sequence[tuple[str, Box]]],
    crops: Mapping[str, Sequence[np.ndarray]],
    mask: np.ndarray | None = None,
    *,
    indices: Sequence[int] | None = None,
    num_frames: int | None = None,
) -> Figure:
    """One training sample: the three frames with their boxes, the crops, and the mask (METHOD sections 1 to 3).

    Args:
        frames: past, current and future, uint8 (H, W, 3).
        boxes: `past`, `current`, `future` -> list of (label, (top, left, height, width)); a label that starts with
            `local` is drawn thin.
        crops: `global`, `local`, `past`, `future` -> uint8 crops (`look.denormalise` makes them).
        mask: bool (h, w) or (P,): the masked patches of the first global crop.
        indices: the three frame numbers, shown in the titles.
        num_frames: of the clip.
    """
    _same_number("frames", len(frames), 3)
    roles, local = tuple(look.ROLE_COLOURS), crops.get("local", ())
    wide, pair = (WIDTH - 2 * 2 * GAP) / 3, (WIDTH - 7 * GAP) / 6
    small = (WIDTH - GAP * (max(8, len(local)) - 1)) / max(8, len(local))
    height = wide * frames[0].shape[0] / frames[0].shape[1]
    figure = _page(LINE + height + GAP + LINE + pair + GAP + (LINE + small + GAP if len(local) else 0.0))
    for i, role in enumerate(roles):
        colour, x = look.ROLE_COLOURS[role], i * (wide + 2 * GAP)
        ax = _place(figure, x, LINE, wide, height)
        number = "" if indices is None else f": frame {indices[i]}" + (f" of {num_frames}" if num_frames else "")
        _show(ax, frames[i], role + number, colour)
        ax.title.set_fontweight("bold")
        for label, box in boxes.get(role, ()):
            _draw_box(ax, label, box, colour)
        name = "global" if role == "current" else "auxiliary"
        for j, crop in enumerate(crops["global" if role == "current" else role][:2]):
            text = f"{name} {j + 1}"
            if role == "current" and j == 0 and mask is not None:
                crop, text = look.hide_patches(crop, mask), f"{text}, {np.mean(look.to_array(mask)):.0%} masked"
            _show(_place(figure, x + j * (pair + GAP), LINE + height + GAP + LINE, pair, pair), crop, text, colour)
    for j, crop in enumerate(local):
        ax = _place(figure, j * (small + GAP), figure.get_figheight() - small - GAP, small, small)
        _show(ax, crop, f"local {j + 1}", look.ROLE_COLOURS["current"])
    return figure


def _draw_box(ax: Axes, label: str, box: Box, colour: str) -> None:
    top, left, height, width = box
    thin = label.startswith("local")
    ax.add_patch(
        Rectangle(
            (left, top), width, height, fill=False, edgecolor="#14171C", linewidth=2.2 if thin else 3.6, alpha=0.5
        )
    )
    ax.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="white" if thin else colour,
                           linewidth=1 if thin else 2, linestyle=(0, (3, 2)) if thin else "-"))  # fmt: skip
    text = label.removeprefix("local").strip() if thin else label
    ax.annotate(text, (left, top), xytext=(3, -3), textcoords="offset points", va="top", fontsize=7 if thin else 8,
                color="white", path_effects=HALO, clip_on=True)  # fmt: skip


@look.figure_in_style
def masks_overlay(
    frames: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    *,
    palette: np.ndarray | None = None,
    columns: int = 4,
) -> Figure:
    """Frames with their label maps painted over. `labels`: integers (H, W) or (h, w), one per frame."""
    _same_number("labels", len(labels), len(frames))
    painted = [look.overlay_labels(frame, label, palette) for frame, label in zip(frames, labels, strict=True)]
    return contact_sheet(painted, titles, columns)


@look.figure_in_style
def segmentation_strip(
    frames: Sequence[np.ndarray],
    predictions: Mapping[str, Sequence[np.ndarray]],
    truth: Sequence[np.ndarray] | None = None,
    times: Sequence[str] | None = None,
    *,
    palette: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
) -> Figure:
    """Label maps through time: one row per encoder, the ground truth on top, one column per frame.

    Args:
        frames: uint8 (H, W, 3), the frames shown.
        predictions: encoder name -> label maps, integers (H, W) or (h, w), one per frame.
        truth: label maps of the annotation.
        times: title of each column.
        palette: uint8 (ids, 3).
        classes: names of the ids; those that occur are listed below.
    """
    rows = ({"ground truth": truth} if truth is not None else {}) | dict(predictions)
    if len(frames) == 1:  # side by side is easier to compare than one above the other
        first = [maps[0] for maps in rows.values()]
        if classes is None:
            return masks_overlay(list(frames) * len(rows), first, list(rows), palette=palette)
        return parts(list(frames) * len(rows), first, list(rows), classes=classes, palette=palette)
    lines = [times is not None] + [False] * (len(rows) - 1)
    figure, axes = _rows(
        len(rows), len(frames), frames[0].shape, lines=lines, left=LABEL, bottom=2 * LEGEND if classes else 0.0
    )
    for i, (name, maps) in enumerate(rows.items()):
        _same_number(f"row {name!r}", len(maps), len(frames))
        for j, (frame, labels) in enumerate(zip(frames, maps, strict=True)):
            _show(
                axes[i, j],
                look.overlay_labels(frame, labels, palette),
                times[j] if times is not None and i == 0 else "",
            )
        _row_label(axes[i, 0], name)
    if classes is not None:
        present = np.unique(np.concatenate([np.unique(labels) for maps in rows.values() for labels in maps]))
        _legend(figure, present, classes, look.object_palette() if palette is None else palette)
    return figure


def _legend(figure: Figure, present: np.ndarray, classes: Sequence[str], palette: np.ndarray) -> None:
    shown = [int(label) for label in present if 0 < label < len(classes)]
    handles = [
        Patch(facecolor=palette[label] / 255, edgecolor=look.colour("rule"), label=classes[label]) for label in shown
    ]
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=min(8, len(handles)), handlelength=1.2)


@look.figure_in_style
def parts(
    frames: np.ndarray | Sequence[np.ndarray],
    labels: np.ndarray | Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    *,
    classes: Sequence[str] = look.VIP_CLASSES,
    palette: np.ndarray | None = look.VIP_PALETTE,
) -> Figure:
    """Semantic parts over one frame or several, with a legend of the classes that occur (VIP by default)."""
    if isinstance(frames, np.ndarray) and frames.ndim == 3:
        frames, labels = [frames], [np.asarray(labels)]
    _same_number("labels", len(labels), len(frames))
    figure, axes = _rows(1, max(2, len(frames)), frames[0].shape, lines=[titles is not None], bottom=2 * LEGEND)
    for j, ax in enumerate(axes[0]):
        if j < len(frames):
            painted = look.overlay_labels(frames[j], labels[j], palette, alpha=0.65)
            _show(ax, painted, titles[j] if titles is not None else "")
        else:
            ax.remove()
    present = np.unique(np.concatenate([np.unique(label) for label in labels]))
    _legend(figure, present, classes, look.object_palette() if palette is None else palette)
    return figure


@look.figure_in_style
def pose(
    frames: np.ndarray | Sequence[np.ndarray],
    joints: np.ndarray,
    truth: np.ndarray | None = None,
    titles: Sequence[str] | None = None,
    *,
    names: Sequence[str] | None = None,
    bones: Sequence[tuple[int, int]] = look.JHMDB_BONES,
    reach: Sequence[float] | float | None = None,
    zoom: bool = True,
) -> Figure:
    """Predicted joints, coloured; the ground truth as white rings, joined to its prediction by the error.

    Args:
        frames: one frame or several, uint8 (H, W, 3).
        joints: predicted positions in pixels, (15, 2) or (N, 15, 2), x then y; NaN or negative = not found, not drawn.
        truth: the annotation, same shape.
        titles: one per frame.
        names: written beside the joints (for one large frame).
        bones: pairs of joint indices.
        reach: radius in pixels within which a prediction counts (0.1 x 0.6 x diagonal), drawn around the truth.
        zoom: show the part of each frame around the person, at one scale in all.
    """
    if isinstance(frames, np.ndarray) and frames.ndim == 3:
        frames, joints = [frames], np.asarray(joints)[None]
        truth = None if truth is None else np.asarray(truth)[None]
    joints = np.asarray(joints, float)
    truth = None if truth is None else np.asarray(truth, float)
    _same_number("joints", len(joints), len(frames))
    points = joints if truth is None else np.concatenate([joints, truth], axis=1)
    windows = _windows(points, frames[0].shape) if zoom else [(0, 0, *frames[0].shape[:2])] * len(frames)
    columns = min(4, max(2, len(frames)))
    rows = -(-len(frames) // columns)
    figure, axes = _rows(rows, columns, windows[0][2:], lines=[titles is not None] * rows, bottom=LEGEND)
    for i, ax in enumerate(axes.flat):
        if i >= len(frames):
            ax.remove()
            continue
        _show(ax, frames[i], titles[i] if titles is not None else "")
        radius = None if reach is None else float(np.broadcast_to(reach, len(frames))[i])
        _skeleton(ax, joints[i], bones, None if truth is None else truth[i], radius)
        for name, (x, y) in zip(names or (), joints[i], strict=False):
            ax.annotate(name, (x, y), xytext=(6, 2), textcoords="offset points", fontsize=7, color="white",
                        path_effects=HALO, clip_on=True)  # fmt: skip
        top, left, height, width = windows[i]
        ax.set(xlim=(left - 0.5, left + width - 0.5), ylim=(top + height - 0.5, top - 0.5))
    _pose_legend(figure, truth is not None, reach is not None)
    return figure


def _windows(points: np.ndarray, shape: tuple[int, ...]) -> list[tuple[float, float, float, float]]:
    """A (top, left, height, width) around the points (N, n, 2) of each frame, of one size for all, inside the frame."""
    good = np.isfinite(points).all(2) & (points >= 0).all(2)
    boxes = [
        (p[g].min(0), p[g].max(0)) if g.any() else (np.zeros(2), np.array(shape[1::-1]))
        for p, g in zip(points, good, strict=True)
    ]
    size = np.max([high - low for low, high in boxes], axis=0)
    size = size + 0.25 * size.max() + 20
    size = np.minimum(np.maximum(size, size.max() * np.array([0.9, 0.6])), [shape[1], shape[0]])
    corners = [np.clip((low + high - size) / 2, 0, np.array(shape[1::-1]) - size) for low, high in boxes]
    return [(corner[1], corner[0], size[1], size[0]) for corner in corners]


def _pose_legend(figure: Figure, truth: bool, reach: bool) -> None:
    sides = (("right side", "orange"), ("left side", "sky"), ("middle", "yellow"))
    handles = [plt.Line2D([], [], color=look.OKABE_ITO[name], marker="o", label=text) for text, name in sides]
    if truth:
        text = "ground truth" + (" and where a prediction counts" if reach else "")
        handles.append(plt.Line2D([], [], marker="o", markerfacecolor="none", markeredgecolor=look.colour("muted"),
                                  linestyle="none", label=text))  # fmt: skip
    figure.legend(handles=handles, loc="lower center", ncols=4)


def _skeleton(
    ax: Axes, joints: np.ndarray, bones: Sequence[tuple[int, int]], truth: np.ndarray | None, reach: float | None
) -> None:
    found = np.isfinite(joints).all(1) & (joints >= 0).all(1)
    side = [look.OKABE_ITO["orange" if name.startswith("right") else "sky" if name.startswith("left") else "yellow"]
            for name in look.JHMDB_JOINTS]  # fmt: skip
    for a, b in bones:
        if found[a] and found[b]:
            ax.plot(*joints[[a, b]].T, color=side[b], linewidth=2, path_effects=HALO, solid_capstyle="round")
    if truth is not None:
        for j in np.flatnonzero(found):
            ax.plot(*np.stack([joints[j], truth[j]]).T, color="white", linewidth=1.2)
        ax.scatter(truth[:, 0], truth[:, 1], s=22, facecolors="none", edgecolors="white", linewidths=1.2, zorder=3)
        for x, y in truth if reach is not None else ():
            ax.add_patch(Circle((x, y), reach or 0.0, fill=False, edgecolor="white", linewidth=0.7, alpha=0.7))
    colours = [side[j % len(side)] for j in np.flatnonzero(found)]
    ax.scatter(joints[found, 0], joints[found, 1], s=18, c=colours, edgecolors="#14171C", linewidths=0.8, zorder=4)


def _outline_cell(
    ax: Axes,
    cell: tuple[int, int],
    grid: tuple[int, ...],
    shape: tuple[int, ...],
    colour: str = "white",
    *,
    dotted: bool = False,
) -> None:
    """Outline one patch: cell (row, column) of a grid (h, w) over a picture of shape (H, W, 3)."""
    height, width = shape[0] / grid[0], shape[1] / grid[1]
    corner = (cell[1] * width - 0.5, cell[0] * height - 0.5)
    for line, edge, dash in ((3.2, "#14171C", "-"), (1.5, colour, (0, (1.5, 1)) if dotted else "-")):
        ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=edge, linewidth=line, linestyle=dash))


@look.figure_in_style
def heatmap_on_frame(
    frame: np.ndarray,
    values: np.ndarray,
    title: str = "",
    *,
    unit: str = "",
    limits: tuple[float, float] | None = None,
    cmap: str = "viridis",
    query: tuple[int, int] | None = None,
) -> Figure:
    """A frame beside the same frame under a map (h, w), with its scale.

    Args:
        frame: uint8 (H, W, 3).
        values: floats (h, w), one per patch.
        title: what the map is.
        unit: label of the scale.
        limits: ends of the scale; the map's range by default.
        cmap: colour map.
        query: (row, column) of a patch to outline in the left picture.
    """
    values = look.to_array(values)
    low, high = limits if limits is not None else (float(np.nanmin(values)), float(np.nanmax(values)))
    width = (WIDTH - GAP - 0.95) / 2
    height = width * frame.shape[0] / frame.shape[1]
    figure = _page(LINE + height + GAP)
    axes = [_place(figure, j * (width + GAP), LINE, width, height) for j in range(2)]
    _show(axes[0], frame, "frame" if query is None else f"query patch: row {query[0]}, column {query[1]}")
    _show(axes[1], look.overlay_heat(frame, values, limits=(low, high), cmap=cmap), title)
    if query is not None:
        for ax in axes:
            _outline_cell(ax, query, values.shape, frame.shape)
    _scale(axes[1], (low, high), cmap, unit)
    return figure


def _scale(ax: Axes, limits: tuple[float, float], cmap: str, unit: str) -> None:
    """A colour scale as high as the picture, at its right."""
    inset = ax.inset_axes((1.02, 0, 0.03, 1))
    bar = ax.figure.colorbar(plt.cm.ScalarMappable(plt.Normalize(*limits), cmap), cax=inset)
    bar.set_label(unit)
    bar.outline.set_visible(False)


@look.figure_in_style
def attention_grid(
    frame: np.ndarray,
    query: tuple[int, int],
    frames: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray],
    *,
    mask: np.ndarray | None = None,
    title: str = "",
    cmap: str = "viridis",
) -> Figure:
    """Where one patch of the current frame looks in other frames: a row per map, the mean over heads, each head.

    Args:
        frame: the query's picture, uint8 (H, W, 3).
        query: (row, column) of its patch; outlined, and dotted at the same place of the other pictures.
        frames: `past`, `future`, ... -> the picture looked at.
        maps: name -> attention (heads, h, w), each head summing to 1. A name is a key of `frames`, or one with a comma
            and more words (`past, untrained`) for several maps on one picture.
        mask: bool (h, w): patches hidden from the encoder, covered in the query's picture.
        title: above the figure.
        cmap: colour map. Each map has its own scale, from 0 to its largest weight.
    """
    grids = {name: look.to_array(values) for name, values in maps.items()}
    heads, h, w = next(iter(grids.values())).shape
    columns = max(1, round(heads**0.5))
    width = (WIDTH - 3 * GAP) / 4
    height = width * frame.shape[0] / frame.shape[1]
    top, step = 0.3 if title else 0.0, LINE + height + GAP
    figure = _page(top + len(grids) * step)
    left = _place(figure, 0, top + LINE + (len(grids) - 1) * step / 2, width, height)
    shown = frame if mask is None else look.hide_patches(frame, mask)
    _show(left, shown, f"query: row {query[0]}, column {query[1]}", look.ROLE_COLOURS["current"])
    _outline_cell(left, query, (h, w), frame.shape)
    for i, (name, values) in enumerate(grids.items()):
        role = name.split(",")[0]
        picture, mean = frames[role], values.mean(0)
        painted = look.overlay_heat(picture, mean, limits=(0.0, mean.max()), cmap=cmap)
        small = [look.overlay_heat(picture, head, limits=(0.0, head.max()), cmap=cmap) for head in values]
        sheet = look.tile(small, columns, gap=max(2, picture.shape[1] // 40), paper=look.colour("paper"))
        texts = (name, f"mean of {heads} heads, up to {mean.max():.1%}", f"heads 1 to {heads}")
        for j, (image, text) in enumerate(zip((picture, painted, sheet), texts, strict=True)):
            ax = _place(figure, (1 + j) * (width + GAP), top + i * step + LINE, width, height)
            _show(ax, image, text, look.ROLE_COLOURS.get(role))
            if j < 2:
                _outline_cell(ax, query, (h, w), picture.shape, dotted=True)
    _headline(figure, title)
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
    width = (WIDTH - (columns + 1) * GAP) / (2 + columns)
    step = LINE + width * aspect + GAP
    figure = _page(2 * step)
    left = _place(figure, 0, step + LINE / 2 - (width + GAP / 2) * aspect, 2 * width + GAP, (2 * width + GAP) * aspect)
    _show(left, frame, f"query: row {query[0]}, column {query[1]}", look.ROLE_COLOURS["current"])
    size = np.array([frame.shape[1] / grid[1], frame.shape[0] / grid[0]])
    start = (np.array(query[::-1]) + 0.5) * size - 0.5
    for j, picture in enumerate(context):
        ax = _place(figure, (2 + j % columns) * (width + GAP), j // columns * step + LINE, width, width * aspect)
        name, votes = titles[j] if titles is not None else f"context {j}", positions[:, 0] == j
        _show(ax, picture, f"{name}: {weights[votes].sum():.0%} of the vote, {votes.sum()} patches")
        for (_, row, column), weight in zip(positions[votes], weights[votes], strict=True):
            share = weight / weights.max()
            _outline_cell(ax, (row, column), grid, picture.shape, look.OKABE_ITO["yellow"])
            end = (np.array([column, row]) + 0.5) * size - 0.5
            link = ConnectionPatch(start, end, "data", "data", axesA=left, axesB=ax, color=look.OKABE_ITO["orange"],
                                   linewidth=0.6 + 2.4 * share, alpha=0.25 + 0.65 * share)  # fmt: skip
            figure.add_artist(link)
    _outline_cell(left, query, grid, frame.shape)
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
    figure, axes = _rows(1, 2, frame.shape, lines=[True])
    for ax, image, title in zip(axes[0], (frame, other), titles, strict=True):
        _show(ax, image, title)
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
        axes[0, 0].annotate(f"{match.similarity:.2f}", points[0], xytext=(-6, 0), textcoords="offset points",
                            fontsize=7, ha="right", va="center", color="white", path_effects=HALO, clip_on=True)  # fmt: skip
    return figure


@look.figure_in_style
def pca_rgb(
    frames: Sequence[np.ndarray], maps: Mapping[str, np.ndarray], titles: Sequence[str] | None = None
) -> Figure:
    """Frames, and below them the first three principal components of their patch features as red, green and blue.

    Args:
        frames: uint8 (H, W, 3).
        maps: encoder name -> floats (N, h, w, 3) in 0..1, components fitted over all frames together.
        titles: of the columns.
    """
    lines = [titles is not None] + [False] * len(maps)
    figure, axes = _rows(1 + len(maps), len(frames), frames[0].shape, lines=lines, left=LABEL)
    for j, frame in enumerate(frames):
        _show(axes[0, j], frame, titles[j] if titles is not None else "")
        for i, values in enumerate(maps.values()):
            _same_number("a PCA row", len(values), len(frames))
            rgb = np.round(255 * np.clip(look.to_array(values[j]), 0, 1)).astype(np.uint8)
            _show(axes[1 + i, j], look.enlarge(rgb, frame.shape[:2]))
    for i, name in enumerate(("frame", *maps)):
        _row_label(axes[i, 0], name)
    return figure


def pca_components(features: Any, *, low: float = 1.0, high: float = 99.0) -> np.ndarray:
    """Patch features (N, h, w, D) -> their first three principal components, floats (N, h, w, 3) scaled to 0..1.

    Fitted over all frames together, so that one colour means one thing throughout; percentiles `low` and `high` of each
    component become 0 and 1, and the sign is chosen so that the component's skewness is positive (a PCA has no sign).
    """
    array = look.to_array(features).astype(np.float64)
    flat = array.reshape(-1, array.shape[-1])
    flat = flat - flat.mean(0)
    values, vectors = np.linalg.eigh(flat.T @ flat)
    scores = flat @ vectors[:, np.argsort(values)[::-1][:3]]
    scores = scores * np.where((scores**3).sum(0) < 0, -1, 1)
    ends = np.percentile(scores, [low, high], axis=0)
    scaled = np.clip((scores - ends[0]) / np.maximum(ends[1] - ends[0], 1e-12), 0, 1)
    return scaled.reshape(*array.shape[:3], 3)
