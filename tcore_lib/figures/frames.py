"""Pictures of frames: sheets, one training sample, label maps, poses, features as colours.

Frames are uint8 (H, W, 3); label maps are integers (H, W) or a grid (h, w), one per frame; a box is (top, left, height,
width) in pixels; a palette is uint8 (ids, 3). `titles` are one line above each picture, `title` stands above them all.
Every function returns a Figure 10 inches wide.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from scipy import ndimage

from tcore_lib.bodies import JOINTS
from tcore_lib.errors import InputError
from tcore_lib.figures import style
from tcore_lib.params import project_root

if TYPE_CHECKING:
    from IPython.display import HTML

Box = tuple[float, float, float, float]
GAP = 0.03  # inches
HALO = [withStroke(linewidth=2.5, foreground=style.RIM)]


def page(
    mosaic: Any, aspect: float, lines: int = 0, heights: Sequence[float] | None = None, gap: float = GAP
) -> tuple[Figure, dict[str, Axes]]:
    """A figure for pictures, and its axes by name; matplotlib sets them out.

    Args:
        mosaic: rows of names (`plt.subplot_mosaic`), `.` = empty.
        aspect: height by width of a cell.
        lines: of text above, between and below the pictures, together.
        heights: of the rows, in widths of the figure; by default all cells are alike.
        gap: half the space between pictures, in inches.
    """
    rows, columns = np.shape(mosaic)
    height = style.WIDTH * (sum(heights) if heights else rows * aspect / columns) + 0.25 * lines
    names = [list(row) for row in mosaic]
    figure, axes = plt.subplot_mosaic(names, figsize=(style.WIDTH, height), height_ratios=heights)
    # In a full grid of single cells matplotlib can take out the space that the pictures' shape leaves over.
    layout = "compressed" if len(axes) == rows * columns else "constrained"
    figure.set_layout_engine(layout, w_pad=gap, h_pad=GAP, wspace=0.0, hspace=0.0)
    return figure, axes


def show(ax: Axes, image: np.ndarray, title: str = "", colour: str = style.INK) -> None:
    """One picture without ticks; a title that is wider than the picture is cut in its middle, as its end says most."""
    ax.imshow(style.to_frame(image))
    ax.set(xticks=[], yticks=[], frame_on=False)
    place: Any = ax.get_subplotspec()
    room = int(140 * len(place.colspan) / place.get_gridspec().ncols)  # letters of this size
    if len(title) > room:
        title = f"{title[: room // 2 - 2].rstrip()} … {title[-(room - room // 2 - 1) :].lstrip()}"
    ax.set_title(title, fontsize=8.5, color=colour)


def headline(figure: Figure, title: str) -> None:
    """The title of a whole figure, at its left."""
    if title:
        figure.suptitle(title, x=0.004, ha="left")


def sheet(
    frames: Sequence[np.ndarray],
    titles: Sequence[str],
    columns: int,
    title: str = "",
    *,
    lines: int = 0,
    shape: Sequence[float] | None = None,
    colours: Sequence[str] | None = None,
    gap: float = GAP,
) -> tuple[Figure, list[Axes]]:
    """Frames in rows of `columns`, each with its axes; `lines` of text come below, `shape` is the first frame's.

    `colours` are the titles'.
    """
    if len(frames) == 0:
        raise InputError("there is no frame to draw; give at least one.")
    texts, tints = titles or [""] * len(frames), colours or [style.INK] * len(frames)
    columns = max(2, min(columns, len(frames)))
    rows = -(-len(frames) // columns)
    height, width, *_ = frames[0].shape if shape is None else shape
    lines += rows * bool(titles) + bool(title)
    names = np.arange(rows * columns).reshape(rows, columns).astype(str)
    figure, axes = page(names, height / width, lines, gap=gap)
    used, empty = [*axes.values()][: len(frames)], [*axes.values()][len(frames) :]
    for ax, frame, text, colour in zip(used, frames, texts, tints, strict=True):
        show(ax, frame, text, colour)
    for ax in empty:
        ax.set_visible(False)
    headline(figure, title)
    return figure, used


@style.figure_in_style
def contact_sheet(
    frames: Sequence[np.ndarray], titles: Sequence[str] = (), columns: int = 6, *, title: str = ""
) -> Figure:
    """Frames in rows of `columns`; their sizes may differ."""
    return sheet(frames, titles, columns, title)[0]


@style.figure_in_style
def sandwich(
    frames: Sequence[np.ndarray],
    boxes: Mapping[str, Sequence[tuple[str, Box]]],
    crops: Mapping[str, Sequence[np.ndarray]],
    mask: np.ndarray | None = None,
) -> Figure:
    """One training sample: the three frames with their boxes, the crops, and the mask.

    Args:
        frames: past, current and future.
        boxes: `past`, `current`, `future` -> list of (label, box); a label that starts with `local` is drawn thin.
        crops: `global`, `local`, `past`, `future` -> uint8 crops (`style.denormalise` makes them).
        mask: bool (h, w): the masked patches of the first global crop.
    """
    local = {f"local {j + 1}": crop for j, crop in enumerate(crops.get("local", ()))}
    places = max(8, len(local))
    columns = math.lcm(6, places)  # of the grid: three frames, six crops or all local crops fill a row
    names = [f"{role} {j}" for role in style.ROLE_COLOURS for j in (1, 2)]
    mosaic = [np.repeat([*style.ROLE_COLOURS], columns // 3), np.repeat(names, columns // 6)]
    heights = [frames[0].shape[0] / frames[0].shape[1] / 3, 1 / 6]
    if local:
        mosaic.append(np.repeat([*local, *["."] * (places - len(local))], columns // places))
        heights.append(1 / places)
    figure, axes = page(mosaic, 1.0, 3, heights)
    for (role, colour), frame in zip(style.ROLE_COLOURS.items(), frames, strict=True):
        show(axes[role], frame, role, colour)
        named: dict[Box, list[str]] = {}
        for label, box in boxes.get(role, ()):
            named.setdefault(box, []).append(label)
        for box, labels in named.items():  # the two auxiliary crops are often one box
            _draw_box(axes[role], ", ".join(labels), box, colour)
        name, own = ("global", crops["global"]) if role == "current" else ("auxiliary", crops[role])
        for j, crop in enumerate(own[:2], 1):
            text = f"{name} {j}"
            if text == "global 1" and mask is not None:
                crop, text = style.hide_patches(crop, mask), f"{text}, {np.mean(style.to_array(mask)):.0%} masked"
            show(axes[f"{role} {j}"], crop, text, colour)
    for text, crop in local.items():
        show(axes[text], crop, text, style.ROLE_COLOURS["current"])
    return figure


def _draw_box(ax: Axes, label: str, box: Box, colour: str) -> None:
    top, left, height, width = box
    thin = label.startswith("local")
    line = 1.0 if thin else 2.0
    for edge, thick in ((style.RIM, line + 1.4), ("white" if thin else colour, line)):
        ax.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=edge, linewidth=thick))
    ax.annotate(label.removeprefix("local "), (left, top), xytext=(3, -3), textcoords="offset points", va="top",
                fontsize=7 if thin else 8, color="white", path_effects=HALO, clip_on=True)  # fmt: skip


# ---- label maps ------------------------------------------------------------------------------------------------------


@style.figure_in_style
def masks_overlay(
    frames: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    titles: Sequence[str] = (),
    *,
    palette: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    columns: int = 4,
    rows: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Frames in rows under their label maps, with the objects' numbers, or a legend where the ids are `classes`.

    `rows` are names of the rows, written at their left.
    """
    palette = style.object_palette() if palette is None else palette
    alpha = 0.5 if classes is None else 0.65
    painted = [style.overlay_labels(*pair, palette, alpha=alpha) for pair in zip(frames, labels, strict=True)]
    figure, axes = sheet(painted, titles, columns, title, lines=2 * (classes is not None))
    for ax, name in zip(axes[::columns], rows, strict=False):
        ax.set_ylabel(name, color=style.INK)
    present = np.unique(np.concatenate([np.unique(one) for one in labels]))
    if classes is None:
        for ax, frame, one in zip(axes, frames, labels, strict=True):
            _number(ax, style.enlarge(one, frame.shape[:2]))
    else:
        shown = [label for label in present if 0 < label < len(classes)]
        handles = [Patch(facecolor=palette[i] / 255, edgecolor=style.RULE, label=classes[i]) for i in shown]
        figure.legend(handles=handles, loc="outside lower left", ncols=8, handlelength=1.2, columnspacing=1.4)
    return figure


def _number(ax: Axes, labels: np.ndarray) -> None:
    """Write every object's number where it is thickest."""
    look: Any = {"color": "white", "fontsize": 8, "weight": "bold", "ha": "center", "va": "center"}
    for label in np.unique(labels[(labels > 0) & (labels < 255)]):
        depth = ndimage.distance_transform_edt(np.pad(labels == label, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        ax.text(x, y, str(label), path_effects=HALO, **look)


def segmentation_strip(
    frames: Sequence[np.ndarray],
    predictions: Mapping[str, Sequence[np.ndarray]],
    truth: Sequence[np.ndarray],
    times: Sequence[str],
    **look: Any,
) -> Figure:
    """Label maps through time: the ground truth on top, then a row per encoder; a column per frame, `times` its title.

    `predictions`: encoder name -> label maps; `look`: `palette`, `classes` and `title` of `masks_overlay`. A single frame is
    shown side by side in its maps.
    """
    rows = {"ground truth": truth} | dict(predictions)
    labels = [one for maps in rows.values() for one in maps]
    if len(frames) == 1:
        return masks_overlay(list(frames) * len(rows), labels, [*rows], **look)
    titles = [*times] + [""] * (len(labels) - len(times))
    return masks_overlay(list(frames) * len(rows), labels, titles, columns=len(frames), rows=[*rows], **look)


# ---- poses -----------------------------------------------------------------------------------------------------------


@style.figure_in_style
def pose(
    frames: Any, joints: Any, truth: Any = None, titles: Sequence[str] = (), *, zoom: bool = True, title: str = ""
) -> Figure:
    """Predicted joints, coloured; the ground truth as white rings, joined to its prediction by the error.

    `frames` are one or several; `joints` and `truth` (15, 2) or (N, 15, 2), x then y in pixels, NaN or negative = not
    found, not drawn. `zoom` shows the part of each frame around the person, at one scale in all.
    """
    frames = [frames] if isinstance(frames, np.ndarray) and frames.ndim == 3 else list(frames)
    joints = np.asarray(joints, float).reshape(-1, len(JOINTS), 2)
    true = np.full_like(joints, np.nan) if truth is None else np.asarray(truth, float).reshape(joints.shape)
    windows = _windows(np.concatenate([joints, true], axis=1), frames[0].shape)
    if not zoom:
        windows = [(0, 0, *frame.shape[:2]) for frame in frames]
    columns = len(frames) if len(frames) <= 6 else 4
    figure, axes = sheet(frames, titles, columns, title, lines=1, shape=windows[0][2:])
    for ax, found, known, (top, left, height, width) in zip(axes, joints, true, windows, strict=True):
        _skeleton(ax, found, known)
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


def _skeleton(ax: Axes, joints: np.ndarray, truth: np.ndarray) -> None:
    found = np.isfinite(joints).all(1) & (joints >= 0).all(1)
    side = np.array([style.SIDE_COLOURS[style.side_of(joint)] for joint in range(len(JOINTS))])
    for a, b in style.JHMDB_BONES:
        if found[a] and found[b]:
            ax.plot(*joints[[a, b]].T, color=side[b], linewidth=2, path_effects=HALO, solid_capstyle="round")
    known = np.isfinite(truth).all(1)
    for j in np.flatnonzero(found & known):
        ax.plot(*np.stack([joints[j], truth[j]]).T, color="white", linewidth=1.2)
    if known.any():
        x, y = truth[known].T
        ax.scatter(x, y, s=22, facecolors="none", edgecolors="white", linewidths=1.2, zorder=3)
    x, y = joints[found].T
    ax.scatter(x, y, s=18, c=side[found], edgecolors=style.RIM, linewidths=0.8, zorder=4)


# ---- features as colours ---------------------------------------------------------------------------------------------


def pca_components(features: Any) -> np.ndarray:
    """Patch features (N, h, w, D) -> their first three principal components, floats (N, h, w, 3) scaled to 0..1.

    Fitted over all frames together, so that one colour means one thing throughout. The percentiles 1 and 99 of each component
    become 0 and 1, and the sign is chosen so that the component's skewness is positive (a PCA has no sign).
    """
    array = style.to_array(features).astype(np.float64)
    flat = array.reshape(-1, array.shape[-1])
    flat = flat - flat.mean(0)
    values, vectors = np.linalg.eigh(flat.T @ flat)
    scores = flat @ vectors[:, np.argsort(values)[::-1][:3]]
    scores = scores * np.where((scores**3).sum(0) < 0, -1, 1)
    ends = np.percentile(scores, [1, 99], axis=0)
    scaled = np.clip((scores - ends[0]) / np.maximum(ends[1] - ends[0], 1e-12), 0, 1)
    return scaled.reshape(*array.shape[:3], 3)


def method_figure() -> "HTML":
    """The method on one page, `docs/method.svg`, in a form that every page shows: edited, executed, exported."""
    from IPython.display import HTML

    data = f"data:image/svg+xml;base64,{base64.b64encode((project_root() / 'docs/method.svg').read_bytes()).decode()}"
    return HTML(f'<img alt="T-CoRe on one page" style="width: 100%; background: #fff" src="{data}">')
