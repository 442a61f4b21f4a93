"""Pictures of frames: sheets, one training sample, label maps, poses, features as colours; and of what is alike in them.

Frames are uint8 (H, W, 3); label maps are integers (H, W) or a grid (h, w), one per frame; a box is (top, left, height,
width) in pixels; a cell is (row, column) of the (h, w) patch grid. `titles` are one line above each picture, `title` stands
above them all. Every function returns a Figure 10 inches wide.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from scipy import ndimage

from tcore_lib.errors import InputError
from tcore_lib.figures import style
from tcore_lib.params import project_root

Box = tuple[float, float, float, float]
Cell = tuple[int, int]
Size = Sequence[int]  # (h, w) of a grid
HALO = [withStroke(linewidth=2.5, foreground=style.RIM)]


def _page(mosaic: Any, aspect: float, lines: int = 0, heights: Sequence[float] | None = None) -> tuple[Figure, Any]:
    """A figure for pictures, and its axes by name; matplotlib sets them out.

    `mosaic`: rows of names, `.` = empty; `aspect`: height by width of a cell; `lines` of text above, between and below the
    pictures; `heights` of the rows in widths of the figure, where cells are not all alike.
    """
    rows, columns = np.shape(mosaic)
    height = style.WIDTH * (sum(heights) if heights else rows * aspect / columns) + 0.25 * lines
    names = [list(row) for row in mosaic]
    figure, axes = plt.subplot_mosaic(names, figsize=(style.WIDTH, height), height_ratios=heights)
    # In a full grid of single cells matplotlib can take out the space that the pictures' shape leaves over.
    layout = "compressed" if len(axes) == rows * columns else "constrained"
    figure.set_layout_engine(layout, w_pad=0.03, h_pad=0.03, wspace=0.0, hspace=0.0)
    return figure, axes


def _show(ax: Axes, image: np.ndarray, title: str = "", colour: str = style.INK, grid: Size | None = None) -> None:
    """One picture without ticks, in pixels or in cells of a grid; a title wider than it is cut in its middle."""
    height, width = style.to_frame(image).shape[:2]
    h, w = grid or (height, width)
    ax.imshow(image, extent=(0, w, h, 0) if grid else None, aspect=(height / h) / (width / w))
    ax.set(xticks=[], yticks=[], frame_on=False)
    place: Any = ax.get_subplotspec()
    room = int(140 * len(place.colspan) / place.get_gridspec().ncols)  # letters of this size
    if len(title) > room:  # a title's end says most
        title = f"{title[: room // 2 - 2].rstrip()} … {title[-(room - room // 2 - 1) :].lstrip()}"
    ax.set_title(title, fontsize=8.5, color=colour)


@style.figure_in_style
def contact_sheet(
    frames: Sequence[np.ndarray], titles: Sequence[str] = (), columns: int = 6, title: str = "", *, lines: int = 0,
    shape: Sequence[float] | None = None, grid: Size | None = None,
) -> Figure:  # fmt: skip
    """Frames in rows of `columns`, in the order of the figure's axes; their sizes may differ.

    `lines` of text come below; `shape` (height, width) is the first frame's by default, `grid` the unit of the axes.
    """
    if len(frames) == 0:
        raise InputError("there is no frame to draw; give at least one.")
    columns = max(2, min(columns, len(frames)))
    rows = -(-len(frames) // columns)
    height, width, *_ = frames[0].shape if shape is None else shape
    names = np.arange(rows * columns).reshape(rows, columns).astype(str)
    figure, _ = _page(names, height / width, lines + rows * bool(titles) + bool(title))
    used, empty = figure.axes[: len(frames)], figure.axes[len(frames) :]
    for ax, frame, text in zip(used, frames, titles or [""] * len(frames), strict=True):
        _show(ax, frame, text, grid=grid)
    for ax in empty:
        ax.set_visible(False)
    if title:
        figure.suptitle(title, x=0.004, ha="left")
    return figure


@style.figure_in_style
def sandwich(
    frames: Sequence[np.ndarray], boxes: Mapping[str, Any], crops: Mapping[str, Any], mask: np.ndarray
) -> Figure:
    """One training sample: past, current and future frame with their boxes, the crops, and the mask.

    `boxes`: `past`, `current`, `future` -> list of (label, box); a label that starts with `local` is drawn thin. `crops`:
    `global`, `local`, `past`, `future` -> uint8 crops; `mask`: bool (h, w), the masked patches of the first global crop.
    """
    local = {f"local {j + 1}": crop for j, crop in enumerate(crops["local"])}
    places = max(8, len(local))
    columns = math.lcm(6, places)  # of the grid: three frames, six crops or all local crops fill a row
    names = [f"{role} {j}" for role in style.ROLE_COLOURS for j in (1, 2)]
    mosaic = [np.repeat([*style.ROLE_COLOURS], columns // 3), np.repeat(names, columns // 6)]
    mosaic.append(np.repeat([*local, *["."] * (places - len(local))], columns // places))
    figure, axes = _page(mosaic, 1.0, 3, [frames[0].shape[0] / frames[0].shape[1] / 3, 1 / 6, 1 / places])
    for (role, colour), frame in zip(style.ROLE_COLOURS.items(), frames, strict=True):
        _show(axes[role], frame, role, colour)
        named: dict[Box, list[str]] = {}
        for label, box in boxes.get(role, ()):
            named.setdefault(box, []).append(label)
        for box, labels in named.items():  # the two auxiliary crops are often one box
            _draw_box(axes[role], ", ".join(labels), box, colour)
        name, own = ("global", crops["global"]) if role == "current" else ("auxiliary", crops[role])
        for j, crop in enumerate(own[:2], 1):
            text = f"{name} {j}"
            if text == "global 1":
                crop, text = style.hide_patches(crop, mask), f"{text}, {np.mean(mask):.0%} masked"
            _show(axes[f"{role} {j}"], crop, text, colour)
    for text, crop in local.items():
        _show(axes[text], crop, text, style.ROLE_COLOURS["current"])
    return figure


def _draw_box(ax: Axes, label: str, box: Box, colour: str) -> None:
    top, left, height, width = box
    thin = label.startswith("local")
    line = 1.0 if thin else 2.0
    for edge, thick in ((style.RIM, line + 1.4), ("white" if thin else colour, line)):
        ax.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=edge, linewidth=thick))
    ax.annotate(label.removeprefix("local "), (left, top), xytext=(3, -3), textcoords="offset points", va="top",
                fontsize=7 if thin else 8, color="white", path_effects=HALO, clip_on=True)  # fmt: skip


# ---- label maps and poses --------------------------------------------------------------------------------------------


@style.figure_in_style
def masks_overlay(
    frames: Sequence[np.ndarray], labels: Any, titles: Sequence[str] = (), *, classes: Sequence[str] | None = None,
    columns: int = 4, title: str = "",
) -> Figure:  # fmt: skip
    """Frames in rows under their label maps, with the objects' numbers, or a legend where the ids are `classes` (VIP's).

    `labels`: a map per frame; or name (ground truth, encoders) -> maps of the same frames: a row each, with a column per frame
    and its title; the maps of a single frame stand side by side.
    """
    rows: list[str] = []
    if isinstance(labels, Mapping):
        rows, labels = [*labels], [one for maps in labels.values() for one in maps]
        titles, columns = (
            ([*titles] + [""] * (len(labels) - len(titles)), len(frames)) if len(frames) > 1 else (rows, 4)
        )
        frames = list(frames) * len(rows)
    palette, alpha = (style.object_palette(), 0.5) if classes is None else (style.VIP_PALETTE, 0.65)
    painted = [style.overlay_labels(*pair, palette, alpha=alpha) for pair in zip(frames, labels, strict=True)]
    figure = contact_sheet(painted, titles, columns, title, lines=2 * (classes is not None))
    for ax, name in zip(figure.axes[::columns], rows if titles is not rows else [], strict=False):
        ax.set_ylabel(name, color=style.INK)
    if classes is None:  # every object's number where it is thickest, to a hundredth of the frame
        look: Any = {"color": "white", "fontsize": 8, "weight": "bold", "ha": "center", "va": "center"}
        for ax, frame, one in zip(figure.axes, frames, labels, strict=False):
            step = max(1, min(frame.shape[:2]) // 100)
            coarse = style.enlarge(one, frame.shape[:2])[::step, ::step]
            for label in np.unique(coarse[(coarse > 0) & (coarse < 255)]):
                depth = ndimage.distance_transform_edt(np.pad(coarse == label, 1))[1:-1, 1:-1]
                y, x = np.unravel_index(depth.argmax(), depth.shape)
                ax.text(step * x, step * y, str(label), path_effects=HALO, **look)
    else:
        shown = [i for i in np.unique(np.concatenate([np.unique(one) for one in labels])) if 0 < i < len(classes)]
        handles = [Patch(facecolor=palette[i] / 255, edgecolor=style.RULE, label=classes[i]) for i in shown]
        figure.legend(handles=handles, loc="outside lower left", ncols=8, handlelength=1.2, columnspacing=1.4)
    return figure


@style.figure_in_style
def pose(
    frames: Sequence[np.ndarray], joints: Any, truth: Any = None, titles: Sequence[str] = (), title: str = ""
) -> Figure:
    """Predicted joints, coloured; the ground truth as white rings, joined to its prediction by the error.

    `joints` and `truth` (N, 15, 2), x then y in pixels, NaN or negative = not found, not drawn. Shown is the part of each
    frame around the person, at one scale in all.
    """
    joints = np.asarray(joints, float)
    true = np.full_like(joints, np.nan) if truth is None else np.asarray(truth, float)
    windows = _windows(np.concatenate([joints, true], axis=1), frames[0].shape)
    columns = len(frames) if len(frames) <= 6 else 4
    figure = contact_sheet(frames, titles, columns, title, lines=1, shape=windows[0][2:])
    side = np.array(style.JOINT_COLOURS)
    for ax, own, other, (top, left, height, width) in zip(figure.axes, joints, true, windows, strict=False):
        found, known = (own >= 0).all(1), np.isfinite(other).all(1)
        for a, b in style.JHMDB_BONES:
            if found[a] and found[b]:
                ax.plot(*own[[a, b]].T, color=side[b], linewidth=2, path_effects=HALO, solid_capstyle="round")
        for pair in np.stack([own, other], 1)[found & known]:
            ax.plot(*pair.T, color="white", linewidth=1.2)
        (x, y), (u, v) = own[found].T, other[known].T
        ax.scatter(u, v, s=22, facecolors="none", edgecolors="white", linewidths=1.2, zorder=3)
        ax.scatter(x, y, s=18, c=side[found], edgecolors=style.RIM, linewidths=0.8, zorder=4)
        ax.set(xlim=(left - 0.5, left + width - 0.5), ylim=(top + height - 0.5, top - 0.5))
    names = {"right": "right side", "left": "left side", "middle": "middle"}
    handles = [plt.Line2D([], [], color=style.SIDE_COLOURS[key], marker="o", label=text) for key, text in names.items()]
    if truth is not None:
        handles.append(plt.Line2D([], [], color=style.MUTED, marker="o", mfc="none", ls="none", label="ground truth"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _windows(points: np.ndarray, shape: tuple[int, ...]) -> list[Box]:
    """A box around the points (N, n, 2) of each frame, of one size for all, inside the frame."""
    whole = np.array(shape[1::-1])  # width, height
    good = np.all(points >= 0, axis=2, keepdims=True)  # not where NaN
    some = good.any(1)
    low = np.where(some, np.where(good, points, np.inf).min(1), 0)  # (N, 2)
    high = np.where(some, np.where(good, points, -np.inf).max(1), whole)
    size = (high - low).max(0)
    size = size + 0.25 * size.max() + 20
    size = np.minimum(np.maximum(size, size.max() * np.array([0.9, 0.6])), whole)
    return [(y, x, size[1], size[0]) for x, y in np.clip((low + high - size) / 2, 0, whole - size)]


# ---- what is alike ---------------------------------------------------------------------------------------------------


def _outline_cell(ax: Axes, cell: Cell, colour: str = "white", dotted: bool = False) -> None:
    for line, edge, dash in ((3.2, style.RIM, "-"), (1.5, colour, (0, (1.5, 1)) if dotted else "-")):
        look: Any = {"fill": False, "edgecolor": edge, "linewidth": line, "linestyle": dash}
        ax.add_patch(Rectangle((cell[1], cell[0]), 1, 1, **look))


def _centre(cell: Size) -> tuple[float, float]:
    """Its (x, y) in axes whose unit is a cell."""
    return cell[1] + 0.5, cell[0] + 0.5


def _link(start: Axes, cell: Size, end: Axes, other: Size, **look: Any) -> None:
    """A line from the middle of a cell in one picture to the middle of a cell in another."""
    link = ConnectionPatch(_centre(cell), _centre(other), "data", "data", axesA=start, axesB=end, **look)
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
    name = "frame" if query is None else f"query patch: row {query[0]}, column {query[1]}"
    figure = contact_sheet([frame, style.overlay_heat(frame, values)], [name, title], 2, grid=values.shape)
    if query is not None:
        for ax in figure.axes:
            _outline_cell(ax, query)
    _scale(figure, figure.axes[1:], (float(values.min()), float(values.max())), unit)
    return figure


@style.figure_in_style
def top_k_links(
    frame: np.ndarray,
    query: Cell,
    context: Sequence[np.ndarray],
    votes: pd.DataFrame,
    size: Size,
    titles: Sequence[str],
) -> Figure:
    """The context patches that vote on one patch in label propagation, joined to it by lines, on a grid of `size`.

    `votes` has a row per patch: `place` (index into `context`), `row`, `col`, and `weight`, the lines' width and opacity.
    """
    columns = -(-len(context) // 2)
    names = [[str(i) if i < len(context) else "." for i in range(start, start + columns)] for start in (0, columns)]
    figure, axes = _page([["query", "query", *row] for row in names], frame.shape[0] / frame.shape[1], lines=2)
    text = f"query: row {query[0]}, column {query[1]}"
    _show(axes["query"], frame, text, style.ROLE_COLOURS["current"], grid=size)
    _outline_cell(axes["query"], query)
    for j, (picture, name) in enumerate(zip(context, titles, strict=True)):
        ax, own = axes[str(j)], votes[votes["place"] == j]
        count = f"{len(own)} vote{'' if len(own) == 1 else 's'}, {own['weight'].sum():.0%}"
        _show(ax, picture, f"{name}: {count if len(own) else 'no vote'}", grid=size)
        for cell, share in zip(own[["row", "col"]].to_numpy(), own["weight"] / votes["weight"].max(), strict=True):
            _outline_cell(ax, cell, style.OBJECT_COLOURS[1])
            look = {"color": style.OKABE_ITO["orange"], "linewidth": 0.6 + 2.4 * share, "alpha": 0.25 + 0.65 * share}
            _link(axes["query"], query, ax, cell, **look)
    return figure


@style.figure_in_style
def match_links(
    frame: np.ndarray, other: np.ndarray, matches: pd.DataFrame, size: Size, titles: Sequence[str] = ("", "")
) -> Figure:
    """Two frames side by side and lines between the patches of a grid of `size` that find each other.

    `matches` has a row per line: `row`, `column`, `to_row`, `to_column`, and `similarity`, written beside the patch.
    """
    figure = contact_sheet([frame, other], titles, 2, grid=size)
    left, right = figure.axes
    for i, match in enumerate(matches.itertuples()):
        colour = style.OBJECT_COLOURS[i % len(style.OBJECT_COLOURS)]
        cells = {left: (match.row, match.column), right: (match.to_row, match.to_column)}
        for ax, cell in cells.items():
            ax.plot(*_centre(cell), "o", markersize=6, color=colour, mec="white", mew=1)
        _link(left, cells[left], right, cells[right], color=colour, linewidth=1.4)
        upper = match.row < size[0] / 2  # the number stays inside the frame
        look: Any = {"va": "top" if upper else "bottom", "ha": "center" if match.column else "left"}
        left.annotate(f"{match.similarity:.2f}", _centre(cells[left]), xytext=(0, -7 if upper else 7),
                      textcoords="offset points", fontsize=7, color="white", path_effects=HALO, **look)  # fmt: skip
    return figure


def pca_components(features: Any) -> np.ndarray:
    """Patch features (N, h, w, D) -> their first three principal components, floats (N, h, w, 3) scaled to 0..1.

    Fitted over all frames together, so that one colour means one thing throughout. The percentiles 1 and 99 of each component
    become 0 and 1, and the sign is chosen so that the component's skewness is positive (a PCA has no sign).
    """
    array = style.to_array(features).astype(np.float64)
    flat = array.reshape(-1, array.shape[-1])
    flat = flat - flat.mean(0)
    scores = flat @ np.linalg.eigh(flat.T @ flat)[1][:, :-4:-1]  # ascending: the last three, last first
    scores = scores * np.where((scores**3).sum(0) < 0, -1, 1)
    ends = np.percentile(scores, [1, 99], axis=0)
    scaled = np.clip((scores - ends[0]) / np.maximum(ends[1] - ends[0], 1e-12), 0, 1)
    return scaled.reshape(*array.shape[:3], 3)


@style.figure_in_style
def attention_compared(
    frame: np.ndarray, query: Cell, frames: Mapping[str, np.ndarray], states: Mapping[str, Any], mask: Any = None
) -> Figure:
    """Where one patch looks in several states of a network, side by side, mean over heads, all on one scale.

    The query's picture is at the left, what was hidden in it (`mask`) veiled; its place is dotted in the others. `frames`:
    `past`, `future`, ... -> the picture looked at, a row each; `states`: `before training`, ... -> {`past`: attention of the
    query (heads, h, w), ...}, a column each.
    """
    means = {state: {role: style.to_array(own[role]).mean(0) for role in frames} for state, own in states.items()}
    highest = max(float(mean.max()) for own in means.values() for mean in own.values())
    names = [["query", role, *(f"{role}/{state}" for state in states)] for role in frames]
    figure, axes = _page(names, frame.shape[0] / frame.shape[1], lines=len(names))
    grid = next(iter(next(iter(means.values())).values())).shape
    text = f"query: row {query[0]}, column {query[1]}"
    covered = style.hide_patches(frame, np.zeros((1, 1)) if mask is None else mask, "#C9CED6")
    veiled = np.round(0.3 * frame + 0.7 * covered).astype(np.uint8)
    _show(axes["query"], veiled, text, style.ROLE_COLOURS["current"], grid)
    for role, picture in frames.items():
        colour = style.ROLE_COLOURS.get(role, style.INK)
        _show(axes[role], picture, role, colour, grid)
        for state, own in means.items():
            heat = style.overlay_heat(picture, own[role], limits=(0.0, highest))
            _show(axes[f"{role}/{state}"], heat, f"{state}: up to {own[role].max():.1%}", colour, grid)
    for name, ax in axes.items():
        _outline_cell(ax, query, dotted=name != "query")
    _scale(figure, [axes[row[-1]] for row in names], (0.0, 100 * highest), "attention, %")
    return figure


def method_figure() -> Any:
    """The method on one page, `docs/method.svg`, for a notebook."""
    from IPython.display import SVG

    return SVG(filename=project_root() / "docs" / "method.svg")
