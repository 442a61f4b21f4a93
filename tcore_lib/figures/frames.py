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


def show_all(axes: np.ndarray, images: Sequence[np.ndarray], titles: Sequence[str]) -> None:
    """Pictures into axes one by one; axes that are left over go."""
    for i, ax in enumerate(axes.flat):
        if i < len(images):
            show(ax, images[i], titles[i])
        else:
            ax.set_visible(False)


def checked_titles(titles: Sequence[str] | None, count: int) -> Sequence[str]:
    """One title per picture; empty ones where there are none."""
    titles = [""] * count if titles is None else titles
    same_number("titles", len(titles), count)
    return titles


def same_number(name: str, got: int, expected: int) -> None:
    """Refuse lists that do not hold one entry per frame."""
    if got != expected:
        raise InputError(f"{name} has {got} entries for {expected} frames; give one per frame.")


def headline(figure: Figure, title: str) -> None:
    """The title of a whole figure, at its left."""
    if title:
        figure.suptitle(title, x=0.004, ha="left")


@style.figure_in_style
def contact_sheet(
    frames: Sequence[np.ndarray], titles: Sequence[str] | None = None, columns: int = 6, *, title: str = ""
) -> Figure:
    """Frames in rows of `columns`; their sizes may differ."""
    if len(frames) == 0:
        raise InputError("a contact sheet needs at least one frame.")
    texts, columns = checked_titles(titles, len(frames)), max(2, min(columns, len(frames)))
    rows = -(-len(frames) // columns)
    figure, axes = grid(rows, columns, frames[0].shape, rows * (titles is not None) + bool(title))
    show_all(axes, frames, texts)
    headline(figure, title)
    return figure


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


def _show_labels(
    ax: Axes, frame: np.ndarray, labels: np.ndarray, palette: np.ndarray, classes: Sequence[str] | None, title: str
) -> None:
    """A frame under its label map. Objects carry their numbers, where they are thickest; classes have a legend instead."""
    show(ax, style.overlay_labels(frame, labels, palette, alpha=0.5 if classes is None else 0.65), title)
    large = style.enlarge(labels, frame.shape[:2])
    for label in np.unique(large) if classes is None else ():
        if 0 < label < min(255, len(palette)):
            depth = ndimage.distance_transform_edt(np.pad(large == label, 1))[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            ax.text(
                x, y, str(label), color="white", fontsize=8, weight="bold", ha="center", va="center", path_effects=HALO
            )


def _legend(figure: Figure, labels: Sequence[np.ndarray], classes: Sequence[str] | None, palette: np.ndarray) -> None:
    """The classes that occur, but for the background."""
    present = sorted({int(label) for one in labels for label in np.unique(one) if 0 < label < len(classes or ())})
    handles = [Patch(facecolor=palette[i] / 255, edgecolor=style.RULE, label=(classes or ())[i]) for i in present]
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=8, handlelength=1.2, columnspacing=1.4)


@style.figure_in_style
def masks_overlay(
    frames: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    *,
    palette: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    columns: int = 4,
) -> Figure:
    """Frames in rows under their label maps, with the objects' numbers, or a legend where the ids are `classes`."""
    same_number("labels", len(labels), len(frames))
    texts = checked_titles(titles, len(frames))
    palette = style.object_palette() if palette is None else palette
    columns = max(2, min(columns, len(frames)))
    rows = -(-len(frames) // columns)
    figure, axes = grid(rows, columns, frames[0].shape, rows * (titles is not None) + 2 * (classes is not None))
    for i, ax in enumerate(axes.flat):
        if i < len(frames):
            _show_labels(ax, frames[i], labels[i], palette, classes, texts[i])
        else:
            ax.set_visible(False)
    _legend(figure, labels, classes, palette)
    return figure


def parts(frames: Any, labels: Any, titles: Sequence[str] | None = None) -> Figure:
    """Parts of bodies, as in VIP, over one frame or several, with a legend."""
    if isinstance(frames, np.ndarray) and frames.ndim == 3:
        frames, labels = [frames], [labels]
    return masks_overlay(frames, labels, titles, palette=style.VIP_PALETTE, classes=style.VIP_CLASSES)


@style.figure_in_style
def segmentation_strip(
    frames: Sequence[np.ndarray],
    predictions: Mapping[str, Sequence[np.ndarray]],
    truth: Sequence[np.ndarray] | None = None,
    times: Sequence[str] | None = None,
    *,
    palette: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Label maps through time: the ground truth on top, then one row per encoder; one column per frame.

    `predictions`: encoder name -> label maps; `times`: titles of the columns; `classes`: names of the ids, for a legend
    instead of the objects' numbers. A single frame is shown side by side in its maps.
    """
    rows = ({} if truth is None else {"ground truth": truth}) | dict(predictions)
    for name, maps in rows.items():
        same_number(f"row {name!r}", len(maps), len(frames))
    if len(frames) == 1:
        pairs = {name: maps[0] for name, maps in rows.items()}
        return masks_overlay(list(frames) * len(rows), [*pairs.values()], [*pairs], palette=palette, classes=classes)
    palette = style.object_palette() if palette is None else palette
    figure, axes = grid(len(rows), len(frames), frames[0].shape, 1 + bool(title) + 2 * (classes is not None))
    first = next(iter(rows))
    for line, (name, maps) in zip(axes, rows.items(), strict=True):
        for j, (frame, labels) in enumerate(zip(frames, maps, strict=True)):
            time = times[j] if times is not None and name == first else ""
            _show_labels(line[j], frame, labels, palette, classes, time)
        line[0].set_ylabel(name, color=style.INK)
    _legend(figure, [labels for maps in rows.values() for labels in maps], classes, palette)
    headline(figure, title)
    return figure


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
    texts = checked_titles(titles, len(frames))
    true = np.full_like(joints, np.nan) if truth is None else np.asarray(truth, float).reshape(joints.shape)
    windows = _windows(np.concatenate([joints, true], axis=1), frames[0].shape)
    columns = len(frames) if 2 <= len(frames) <= 6 else min(4, max(2, len(frames)))
    rows = -(-len(frames) // columns)
    shape = windows[0][2:] if zoom else frames[0].shape
    figure, axes = grid(rows, columns, shape, 1 + rows * (titles is not None) + bool(title))
    show_all(axes, frames, texts)
    for i, ax in enumerate(axes.flat[: len(frames)]):
        _skeleton(ax, joints[i], true[i])
        top, left, height, width = windows[i] if zoom else (0, 0, *frames[i].shape[:2])
        ax.set(xlim=(left - 0.5, left + width - 0.5), ylim=(top + height - 0.5, top - 0.5))
    names = {"right": "right side", "left": "left side", "middle": "middle"}
    handles = [plt.Line2D([], [], color=style.SIDE_COLOURS[key], marker="o", label=text) for key, text in names.items()]
    if truth is not None:
        ring: Any = {"marker": "o", "markerfacecolor": "none", "markeredgecolor": style.MUTED, "linestyle": "none"}
        handles.append(plt.Line2D([], [], label="ground truth", **ring))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    headline(figure, title)
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


@style.figure_in_style
def pca_rgb(
    frames: Sequence[np.ndarray], maps: Mapping[str, np.ndarray], titles: Sequence[str] | None = None
) -> Figure:
    """Frames, and below them per encoder the three components (N, h, w, 3) of `pca_components` as red, green and blue."""
    texts = checked_titles(titles, len(frames))
    for values in maps.values():
        same_number("a PCA row", len(values), len(frames))
    figure, axes = grid(1 + len(maps), len(frames), frames[0].shape, titles is not None)
    show_all(axes[0], frames, texts)
    for row, values in zip(axes[1:], maps.values(), strict=True):
        rgb = np.round(255 * np.clip(style.to_array(values), 0, 1)).astype(np.uint8)
        show_all(row, [style.enlarge(one, frames[0].shape[:2]) for one in rgb], [""] * len(rgb))
    for ax, name in zip(axes[:, 0], ("frame", *maps), strict=True):
        ax.set_ylabel(name, color=style.INK)
    return figure


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
