"""Pictures of frames: sheets, one training sample, label maps, poses, features as colours.

Frames are uint8 (H, W, 3); label maps are integers (H, W) or a grid (h, w), one per frame; a box is (top, left, height,
width) in pixels; a palette is uint8 (ids, 3). `titles` are one line above each picture, `title` stands above them all.
Every function returns a Figure 10 inches wide.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

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
HALO = [withStroke(linewidth=2.5, foreground=style.RIM)]


def page(mosaic: Any, aspect: float, lines: int = 0) -> tuple[Figure, dict[str, Axes]]:
    """A figure for pictures, and its axes by name; matplotlib sets them out.

    Args:
        mosaic: rows of names (`plt.subplot_mosaic`), `.` = empty; all cells have one size.
        aspect: height by width of a cell.
        lines: of text above, between and below the pictures, together.
    """
    height = len(mosaic) * aspect * style.WIDTH / len(mosaic[0]) + 0.25 * lines
    figure, axes = plt.subplot_mosaic([list(row) for row in mosaic], figsize=(style.WIDTH, height))
    # In a full grid of single cells matplotlib can take out the space that the pictures' shape leaves over.
    pack(figure, "compressed" if len(axes) == np.size(mosaic) else "constrained")
    return figure, axes


def pack(figure: Figure, layout: Literal["constrained", "compressed"], gap: float = 0.03) -> None:
    """Little space between pictures; `gap` is half of it, in inches."""
    figure.set_layout_engine(layout, w_pad=gap, h_pad=0.03, wspace=0.0, hspace=0.0)


def grid(rows: int, columns: int, shape: Sequence[float], lines: int = 0) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (rows, columns) for pictures of one shape (height, width, ...)."""
    names = np.arange(rows * columns).astype(str).reshape(rows, columns)
    figure, axes = page(names, shape[0] / shape[1], lines)
    return figure, np.array(list(axes.values())).reshape(rows, columns)


def show(ax: Axes, image: np.ndarray, title: str = "", colour: str = style.INK) -> None:
    """One picture without ticks; a title that is wider than the picture is cut in its middle, as its end says most."""
    ax.imshow(style.to_frame(image))
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    place: Any = ax.get_subplotspec()
    room = int(140 * len(place.colspan) / place.get_gridspec().ncols)  # letters of this size
    if len(title) > room:
        title = f"{title[: room // 2 - 2].rstrip()} … {title[-(room - room // 2 - 1) :].lstrip()}"
    ax.set_title(title, fontsize=8.5, color=colour)


def same_number(name: str, got: int, expected: int) -> None:
    """Refuse lists that do not hold one entry per frame."""
    if got != expected:
        raise InputError(f"{name} has {got} entries for {expected} frames; give one per frame.")


def headline(figure: Figure, title: str) -> None:
    """The title of a whole figure, at its left."""
    if title:
        figure.suptitle(title, x=0.004, ha="left")


def sheet(
    frames: Sequence[np.ndarray],
    titles: Sequence[str] | None,
    columns: int,
    title: str = "",
    lines: int = 0,
    shape: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """Frames in rows of `columns`, each with its axes; `lines` of text come below, `shape` is the first frame's."""
    if len(frames) == 0:
        raise InputError("there is no frame to draw; give at least one.")
    texts = [""] * len(frames) if titles is None else titles
    same_number("titles", len(texts), len(frames))
    columns = max(2, min(columns, len(frames)))
    rows = -(-len(frames) // columns)
    lines += rows * (titles is not None) + bool(title)
    figure, axes = grid(rows, columns, frames[0].shape if shape is None else shape, lines)
    for ax, frame, text in zip(axes.flat, frames, texts, strict=False):
        show(ax, frame, text)
    for ax in axes.flat[len(frames) :]:
        ax.set_visible(False)
    headline(figure, title)
    return figure, list(axes.flat[: len(frames)])


@style.figure_in_style
def contact_sheet(
    frames: Sequence[np.ndarray], titles: Sequence[str] | None = None, columns: int = 6, *, title: str = ""
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
        mask: bool (h, w) or (P,): the masked patches of the first global crop.
    """
    same_number("frames", len(frames), 3)
    local = list(crops.get("local", ()))
    size = (style.WIDTH, style.WIDTH * (frames[0].shape[0] / frames[0].shape[1] / 3 + 1 / 6 + bool(local) / 8) + 0.8)
    figure = plt.figure(figsize=size)
    pack(figure, "constrained")
    heights = [8 * frames[0].shape[0] / frames[0].shape[1], 4, 3][: 2 + bool(local)]
    rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    wide, pairs = rows[0].subplots(1, 3), rows[1].subplots(1, 6)
    for i, (role, colour) in enumerate(style.ROLE_COLOURS.items()):
        show(wide[i], frames[i], role, colour)
        wide[i].title.set_fontweight("bold")
        named: dict[Box, list[str]] = {}
        for label, box in boxes.get(role, ()):
            named.setdefault(box, []).append(label)
        for box, labels in named.items():  # the two auxiliary crops are often one box
            _draw_box(wide[i], ", ".join(labels), box, colour)
        name = "global" if role == "current" else "auxiliary"
        for j, crop in enumerate(crops["global" if role == "current" else role][:2]):
            text = f"{name} {j + 1}"
            if role == "current" and j == 0 and mask is not None:
                crop, text = style.hide_patches(crop, mask), f"{text}, {np.mean(style.to_array(mask)):.0%} masked"
            show(pairs[2 * i + j], crop, text, colour)
    for j, crop in enumerate(local):
        show(rows[2].add_subplot(1, max(8, len(local)), j + 1), crop, f"local {j + 1}", style.ROLE_COLOURS["current"])
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
    titles: Sequence[str] | None = None,
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
    same_number("labels", len(labels), len(frames))
    palette = style.object_palette() if palette is None else palette
    alpha = 0.5 if classes is None else 0.65
    painted = [style.overlay_labels(*pair, palette, alpha=alpha) for pair in zip(frames, labels, strict=True)]
    figure, axes = sheet(painted, titles, columns, title, 2 * (classes is not None))
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
    *,
    palette: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Label maps through time: the ground truth on top, then a row per encoder; a column per frame, `times` its title.

    `predictions`: encoder name -> label maps; `classes`: names of the ids, for a legend instead of the objects' numbers.
    A single frame is shown side by side in its maps.
    """
    rows = {"ground truth": truth} | dict(predictions)
    for name, maps in rows.items():
        same_number(f"row {name!r}", len(maps), len(frames))
    labels = [one for maps in rows.values() for one in maps]
    titles, columns = [*times] + [""] * (len(labels) - len(times)), len(frames)
    if len(frames) == 1:
        titles, columns = [*rows], 4
    names = [*rows] if len(frames) > 1 else []
    look: Any = {"palette": palette, "classes": classes, "columns": columns, "rows": names, "title": title}
    return masks_overlay(list(frames) * len(rows), labels, titles, **look)


# ---- poses -----------------------------------------------------------------------------------------------------------


@style.figure_in_style
def pose(
    frames: Any,
    joints: Any,
    truth: Any = None,
    titles: Sequence[str] | None = None,
    *,
    zoom: bool = True,
    title: str = "",
) -> Figure:
    """Predicted joints, coloured; the ground truth as white rings, joined to its prediction by the error.

    Args:
        frames: one frame or several.
        joints: predicted positions in pixels, (15, 2) or (N, 15, 2), x then y; NaN or negative = not found, not drawn.
        truth: the annotation, same shape.
        titles: one per frame.
        zoom: show the part of each frame around the person, at one scale in all.
        title: above the figure.
    """
    frames = [frames] if isinstance(frames, np.ndarray) and frames.ndim == 3 else list(frames)
    joints = np.asarray(joints, float).reshape(-1, len(JOINTS), 2)
    same_number("joints", len(joints), len(frames))
    true = np.full_like(joints, np.nan) if truth is None else np.asarray(truth, float).reshape(joints.shape)
    windows = _windows(np.concatenate([joints, true], axis=1), frames[0].shape)
    if not zoom:
        windows = [(0, 0, *frame.shape[:2]) for frame in frames]
    columns = len(frames) if len(frames) <= 6 else 4
    figure, axes = sheet(frames, titles, columns, title, 1, windows[0][2:])
    for ax, found, known, (top, left, height, width) in zip(axes, joints, true, windows, strict=True):
        _skeleton(ax, found, known)
        ax.set(xlim=(left - 0.5, left + width - 0.5), ylim=(top + height - 0.5, top - 0.5))
    names = {"right": "right side", "left": "left side", "middle": "middle"}
    handles = [plt.Line2D([], [], color=style.SIDE_COLOURS[key], marker="o", label=text) for key, text in names.items()]
    if truth is not None:
        ring: Any = {"marker": "o", "markerfacecolor": "none", "markeredgecolor": style.MUTED, "linestyle": "none"}
        handles.append(plt.Line2D([], [], label="ground truth", **ring))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _windows(points: np.ndarray, shape: tuple[int, ...]) -> list[Box]:
    """A box around the points (N, n, 2) of each frame, of one size for all, inside the frame."""
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
        ax.scatter(
            truth[known, 0], truth[known, 1], s=22, facecolors="none", edgecolors="white", linewidths=1.2, zorder=3
        )
    ax.scatter(joints[found, 0], joints[found, 1], s=18, c=side[found], edgecolors=style.RIM, linewidths=0.8, zorder=4)


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

    svg = base64.b64encode((project_root() / "docs/method.svg").read_bytes()).decode()
    return HTML(
        f'<img alt="T-CoRe on one page" style="width: 100%; background: #fff" src="data:image/svg+xml;base64,{svg}">'
    )
