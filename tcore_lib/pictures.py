"""Pictures of frames: sheets, the sandwich sample, masks, poses, parts, attention, links and features.

Frames are uint8 (H, W, 3); a grid cell is (row, column) of the (h, w) patch grid; a box is (top, left, height, width) in
pixels. Every function returns a Figure about 10 inches wide. Curves and bars are in `plots`, colours in `look`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Patch, Rectangle
from matplotlib.patheffects import withStroke

from tcore_lib import look
from tcore_lib.errors import InputError

WIDTH = 10.0
Box = tuple[float, float, float, float]
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
    ax.set_ylabel(text, rotation=90, fontsize=9.5, color=look.colour("ink"), labelpad=6)


def _rows(rows: int, columns: int, shape: tuple[int, ...], *, extra: float = 0.3) -> tuple[Figure, np.ndarray]:
    """Axes for `rows` x `columns` pictures of one shape, with no unused height."""
    height = WIDTH / columns * shape[0] / shape[1]
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * (height + 0.08) + extra), squeeze=False)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    return figure, axes


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
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    line = 0.24 if titles is not None else 0.0
    figure, axes = _rows(rows, columns, frames[0].shape, extra=line * rows + (0.4 if title else 0.1))
    for i, ax in enumerate(axes.flat):
        if i < len(frames):
            _show(ax, frames[i], titles[i] if titles is not None else "")
        else:
            ax.set_visible(False)
    if title:
        figure.suptitle(title, x=0.01, ha="left")
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
        boxes: `past`, `current`, `future` -> list of (label, (top, left, height, width)); a label that starts with `local`
            is drawn thin.
        crops: `global`, `local`, `past`, `future` -> uint8 crops (`look.denormalise` makes them).
        mask: bool (h, w) or (P,): the masked patches of the first global crop.
        indices: the three frame numbers, shown in the titles.
        num_frames: of the clip.
    """
    _same_number("frames", len(frames), 3)
    roles = tuple(look.ROLE_COLOURS)
    local = crops.get("local", ())
    height = WIDTH / 3 * frames[0].shape[0] / frames[0].shape[1]
    rows = [height + 0.25, WIDTH / 6 + 0.3] + ([WIDTH / max(8, len(local)) + 0.35] if len(local) else [])
    figure = plt.figure(figsize=(WIDTH, sum(rows)))
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
    bands = np.atleast_1d(figure.subfigures(len(rows), 1, height_ratios=rows))
    for i, (ax, role) in enumerate(zip(bands[0].subplots(1, 3), roles, strict=True)):
        number = "" if indices is None else f", frame {indices[i]}" + (f" of {num_frames}" if num_frames else "")
        _show(ax, frames[i], f"{role}{number}", look.ROLE_COLOURS[role])
        ax.title.set_fontweight("bold")
        for label, box in boxes.get(role, ()):
            _draw_box(ax, label, box, look.ROLE_COLOURS[role])
    pairs = bands[1].subplots(1, 6)
    for i, role in enumerate(roles):
        views = crops["global" if role == "current" else role]
        for j in range(2):
            crop, name = views[j], f"{'global' if role == 'current' else 'auxiliary'} {j + 1}"
            if role == "current" and j == 0 and mask is not None:
                share = float(np.mean(look.to_array(mask)))
                crop, name = look.hide_patches(crop, mask), f"{name}, {share:.0%} masked"
            _show(pairs[2 * i + j], crop, name, look.ROLE_COLOURS[role])
    if len(local):
        for j, ax in enumerate(np.atleast_1d(bands[2].subplots(1, max(8, len(local))))):
            if j < len(local):
                _show(ax, local[j], f"local {j + 1}", look.ROLE_COLOURS["current"])
            else:
                ax.set_visible(False)
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
    figure, axes = _rows(len(rows), len(frames), frames[0].shape, extra=0.3 + (0.35 if classes else 0.0))
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
        figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), handlelength=1.2)


@look.figure_in_style
def parts(
    frames: np.ndarray | Sequence[np.ndarray],
    labels: np.ndarray | Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    *,
    classes: Sequence[str] = look.VIP_CLASSES,
    palette: np.ndarray = look.VIP_PALETTE,
) -> Figure:
    """Semantic parts over one frame or several, with a legend of the classes that occur (VIP by default)."""
    if isinstance(frames, np.ndarray) and frames.ndim == 3:
        frames, labels = [frames], [np.asarray(labels)]
    _same_number("labels", len(labels), len(frames))
    figure, axes = _rows(1, max(2, len(frames)), frames[0].shape, extra=0.75)
    for j, ax in enumerate(axes[0]):
        if j < len(frames):
            painted = look.overlay_labels(frames[j], labels[j], palette, alpha=0.65)
            _show(ax, painted, titles[j] if titles is not None else "")
        else:
            ax.set_visible(False)
    _legend(figure, np.unique(np.concatenate([np.unique(label) for label in labels])), classes, palette)
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
    """
    if isinstance(frames, np.ndarray) and frames.ndim == 3:
        frames, joints = [frames], np.asarray(joints)[None]
        truth = None if truth is None else np.asarray(truth)[None]
    _same_number("joints", len(joints), len(frames))
    columns = min(4, max(2, len(frames)))
    rows = -(-len(frames) // columns)
    figure, axes = _rows(rows, columns, frames[0].shape, extra=0.4 + 0.25 * rows)
    for i, ax in enumerate(axes.flat):
        if i >= len(frames):
            ax.set_visible(False)
            continue
        _show(ax, frames[i], titles[i] if titles is not None else "")
        radius = None if reach is None else float(np.broadcast_to(reach, len(frames))[i])
        _skeleton(
            ax, np.asarray(joints[i], float), bones, None if truth is None else np.asarray(truth[i], float), radius
        )
        for j, name in enumerate(names or ()):
            ax.annotate(name, joints[i][j], xytext=(6, 2), textcoords="offset points", fontsize=7, color="white",
                        path_effects=HALO)  # fmt: skip
    handles = [plt.Line2D([], [], color=look.OKABE_ITO[c], marker="o", label=s)
               for s, c in (("right side", "orange"), ("left side", "sky"), ("middle", "yellow"))]  # fmt: skip
    if truth is not None:
        handles.append(plt.Line2D([], [], color="white", marker="o", markerfacecolor="none", markeredgecolor=look.colour("muted"),
                                  linestyle="none", label="ground truth"))  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _skeleton(
    ax: Axes, joints: np.ndarray, bones: Sequence[tuple[int, int]], truth: np.ndarray | None, reach: float | None
) -> None:
    found = np.isfinite(joints).all(1) & (joints >= 0).all(1)
    limits = ax.axis()
    side = [look.OKABE_ITO["orange" if n.startswith("right") else "sky" if n.startswith("left") else "yellow"]
            for n in look.JHMDB_JOINTS]  # fmt: skip
    for a, b in bones:
        if found[a] and found[b]:
            ax.plot(*joints[[a, b]].T, color=side[b], linewidth=2.2, path_effects=HALO, solid_capstyle="round")
    if truth is not None:
        for j in np.flatnonzero(found):
            ax.plot(*np.stack([joints[j], truth[j]]).T, color="white", linewidth=1, linestyle=(0, (1, 1)))
        ax.scatter(*truth.T, s=26, facecolors="none", edgecolors="white", linewidths=1.3, path_effects=HALO, zorder=3)
        for x, y in truth if reach is not None else ():
            ax.add_patch(plt.Circle((x, y), reach, fill=False, edgecolor="white", linewidth=0.6, alpha=0.6))
    ax.scatter(
        *joints[found].T,
        s=16,
        c=[side[j % 15] for j in np.flatnonzero(found)],
        edgecolors="#14171C",
        linewidths=0.8,
        zorder=4,
    )
    ax.axis(limits)


def _outline_cell(
    ax: Axes, cell: tuple[int, int], grid: tuple[int, int], shape: tuple[int, ...], colour: str = "white"
) -> None:
    """Outline one patch: cell (row, column) of a grid (h, w) over a picture of shape (H, W, 3)."""
    height, width = shape[0] / grid[0], shape[1] / grid[1]
    corner = (cell[1] * width - 0.5, cell[0] * height - 0.5)
    for line, edge in ((3.6, "#14171C"), (1.8, colour)):
        ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=edge, linewidth=line))


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
    figure, axes = _rows(1, 2, frame.shape, extra=0.2)
    _show(axes[0, 0], frame, "frame" if query is None else f"query patch: row {query[0]}, column {query[1]}")
    _show(axes[0, 1], look.overlay_heat(frame, values, limits=(low, high), cmap=cmap), title)
    if query is not None:
        _outline_cell(axes[0, 0], query, values.shape, frame.shape, look.OKABE_ITO["orange"])
    _scale(figure, [axes[0, 1]], (low, high), cmap, unit)
    return figure


def _scale(figure: Figure, axes: Sequence[Axes], limits: tuple[float, float], cmap: str, unit: str) -> None:
    mappable = plt.cm.ScalarMappable(plt.Normalize(*limits), cmap)
    bar = figure.colorbar(mappable, ax=list(axes), fraction=0.03, pad=0.015, aspect=22)
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
    """Where one patch of the current frame looks in other frames: the mean over heads, then every head.

    Args:
        frame: the query's picture, uint8 (H, W, 3).
        query: (row, column) of its patch.
        frames: name (`past`, `future`, ...) -> the picture looked at.
        maps: same names -> attention (heads, h, w), each head summing to 1.
        mask: bool (h, w): patches hidden from the encoder, covered in the query's picture.
        title: above the figure.
        cmap: colour map. Each map has its own scale, from 0 to its largest weight.
    """
    grids = {name: look.to_array(values) for name, values in maps.items()}
    heads, *grid = next(iter(grids.values())).shape
    per_row = max(1, round(heads**0.5))
    per_row += -heads // per_row == -heads / per_row and 0
    aspect = frame.shape[0] / frame.shape[1]
    height = WIDTH / 3.3 * aspect
    figure = plt.figure(figsize=(WIDTH, len(grids) * (height + 0.3) + (0.4 if title else 0.1)))
    axes = figure.subplots(len(grids), 3, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01)
    shown = frame if mask is None else look.hide_patches(frame, mask)
    for i, (name, values) in enumerate(grids.items()):
        mean = values.mean(0)
        role = look.ROLE_COLOURS.get(name)
        if i == 0:
            _show(axes[0, 0], shown, f"query: row {query[0]}, column {query[1]}", look.ROLE_COLOURS["current"])
            _outline_cell(axes[0, 0], query, (grid[0], grid[1]), frame.shape, look.OKABE_ITO["orange"])
        else:
            axes[i, 0].set_visible(False)
        _show(axes[i, 1], look.overlay_heat(frames[name], mean, limits=(0.0, mean.max()), cmap=cmap),
              f"{name}: mean of {heads} heads, largest {mean.max():.1%}", role)  # fmt: skip
        _outline_cell(axes[i, 1], query, (grid[0], grid[1]), frame.shape, look.OKABE_ITO["orange"])
        small = [look.overlay_heat(frames[name], head, limits=(0.0, head.max()), cmap=cmap) for head in values]
        _show(
            axes[i, 2], look.tile(small, per_row, gap=max(2, frame.shape[1] // 40)), f"{name}: heads 1 to {heads}", role
        )
    if title:
        figure.suptitle(title, x=0.01, ha="left")
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
    weights, columns = np.asarray(weights, float), max(3, len(context))
    figure, axes = _rows(2, columns, frame.shape, extra=0.7)
    centre = columns // 2
    for j in range(columns):
        if j != centre:
            axes[0, j].set_visible(False)
        if j >= len(context):
            axes[1, j].set_visible(False)
        else:
            _show(axes[1, j], context[j])
            axes[1, j].set_xlabel(titles[j] if titles is not None else f"context {j}", fontsize=9)
    _show(axes[0, centre], frame, f"query: row {query[0]}, column {query[1]}", look.ROLE_COLOURS["current"])
    _outline_cell(axes[0, centre], query, grid, frame.shape, look.OKABE_ITO["orange"])
    size = np.array([frame.shape[1] / grid[1], frame.shape[0] / grid[0]])
    start = (np.array(query[::-1]) + 0.5) * size
    for (where, row, column), weight in sorted(
        zip(np.asarray(positions).tolist(), weights, strict=True), key=lambda x: x[1]
    ):
        share = weight / weights.max()
        _outline_cell(axes[1, where], (row, column), grid, frame.shape, look.OKABE_ITO["sky"])
        end = (np.array([column, row]) + 0.5) * size
        figure.add_artist(ConnectionPatch(start, end, "data", "data", axesA=axes[0, centre], axesB=axes[1, where],
                                          color=look.OKABE_ITO["orange"], linewidth=0.6 + 2.4 * share, alpha=0.3 + 0.7 * share))  # fmt: skip
        axes[1, where].annotate(f"{weight:.0%}", end, xytext=(5, 5), textcoords="offset points", fontsize=7.5, color="white",
                                path_effects=HALO)  # fmt: skip
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
    figure, axes = _rows(1 + len(maps), len(frames), frames[0].shape, extra=0.3)
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
