"""Pictures of frames: sheets, the sandwich sample, masks, strips through time, parts, features.

Frames are uint8 (H, W, 3); a box is (top, left, height, width) in pixels. Every function returns a Figure about 10
inches wide. Poses, maps and links between frames, and attention are kept in `poses`, `links` and `gaze`, and can be had
from here too; curves and bars are in `plots`, colours in `look`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from tcore_lib.errors import InputError
from tcore_lib.figures import panels, style as look
from tcore_lib.figures.gaze import attention_atlas, attention_compared, attention_grid, attention_matrix
from tcore_lib.figures.matches import heatmap_on_frame, match_links, top_k_links
from tcore_lib.figures.poses import pose

__all__ = [
    "attention_atlas", "attention_compared", "attention_grid", "attention_matrix", "contact_sheet", "heatmap_on_frame",
    "masks_overlay", "match_links", "parts", "pca_components", "pca_rgb", "pose", "sandwich", "segmentation_strip",
    "top_k_links",
]  # fmt: skip


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
        panels.same_number("titles", len(titles), len(frames))
    columns = max(2, min(columns, len(frames)))
    rows = -(-len(frames) // columns)
    figure, axes = panels.rows(
        rows, columns, frames[0].shape, lines=[titles is not None] * rows, top=0.3 if title else 0.0
    )
    for i, ax in enumerate(axes.flat):
        if i < len(frames):
            panels.show(ax, frames[i], titles[i] if titles is not None else "")
        else:
            ax.remove()
    panels.headline(figure, title)
    return figure


@look.figure_in_style
def sandwich(
    frames: Sequence[np.ndarray],
    boxes: Mapping[str, Sequence[tuple[str, panels.Box]]],
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
    panels.same_number("frames", len(frames), 3)
    roles, local = tuple(look.ROLE_COLOURS), crops.get("local", ())
    wide, pair = (panels.WIDTH - 2 * 2 * panels.GAP) / 3, (panels.WIDTH - 7 * panels.GAP) / 6
    small = (panels.WIDTH - panels.GAP * (max(8, len(local)) - 1)) / max(8, len(local))
    height = wide * frames[0].shape[0] / frames[0].shape[1]
    figure = panels.page(
        panels.LINE
        + height
        + panels.GAP
        + panels.LINE
        + pair
        + panels.GAP
        + (panels.LINE + small + panels.GAP if len(local) else 0.0)
    )
    for i, role in enumerate(roles):
        colour, x = look.ROLE_COLOURS[role], i * (wide + 2 * panels.GAP)
        ax = panels.place(figure, x, panels.LINE, wide, height)
        number = "" if indices is None else f": frame {indices[i]}" + (f" of {num_frames}" if num_frames else "")
        panels.show(ax, frames[i], role + number, colour)
        ax.title.set_fontweight("bold")
        named: dict[panels.Box, list[str]] = {}
        for label, box in boxes.get(role, ()):
            named.setdefault(box, []).append(label)
        for box, labels in named.items():  # the two auxiliary crops are often one box
            _draw_box(ax, ", ".join(labels), box, colour)
        name = "global" if role == "current" else "auxiliary"
        for j, crop in enumerate(crops["global" if role == "current" else role][:2]):
            text = f"{name} {j + 1}"
            if role == "current" and j == 0 and mask is not None:
                crop, text = look.hide_patches(crop, mask), f"{text}, {np.mean(look.to_array(mask)):.0%} masked"
            panels.show(
                panels.place(
                    figure, x + j * (pair + panels.GAP), panels.LINE + height + panels.GAP + panels.LINE, pair, pair
                ),
                crop,
                text,
                colour,
            )
    for j, crop in enumerate(local):
        ax = panels.place(figure, j * (small + panels.GAP), figure.get_figheight() - small - panels.GAP, small, small)
        panels.show(ax, crop, f"local {j + 1}", look.ROLE_COLOURS["current"])
    return figure


def _draw_box(ax: Axes, label: str, box: panels.Box, colour: str) -> None:
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
                color="white", path_effects=panels.HALO, clip_on=True)  # fmt: skip


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
    panels.same_number("labels", len(labels), len(frames))
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
    title: str = "",
) -> Figure:
    """Label maps through time: one row per encoder, the ground truth on top, one column per frame.

    Args:
        frames: uint8 (H, W, 3), the frames shown.
        predictions: encoder name -> label maps, integers (H, W) or (h, w), one per frame.
        truth: label maps of the annotation.
        times: title of each column.
        palette: uint8 (ids, 3).
        classes: names of the ids; those that occur are listed below.
        title: above the figure, where it shows several frames.
    """
    rows = ({"ground truth": truth} if truth is not None else {}) | dict(predictions)
    if len(frames) == 1:  # side by side is easier to compare than one above the other
        first = [maps[0] for maps in rows.values()]
        if classes is None:
            return masks_overlay(list(frames) * len(rows), first, list(rows), palette=palette)
        return parts(list(frames) * len(rows), first, list(rows), classes=classes, palette=palette)
    lines = [times is not None] + [False] * (len(rows) - 1)
    shown = _present([labels for maps in rows.values() for labels in maps], classes) if classes is not None else []
    figure, axes = panels.rows(
        len(rows),
        len(frames),
        frames[0].shape,
        lines=lines,
        left=panels.LABEL,
        top=panels.HEAD if title else 0.0,
        bottom=_legend_height(shown),
    )
    panels.headline(figure, title)
    for i, (name, maps) in enumerate(rows.items()):
        panels.same_number(f"row {name!r}", len(maps), len(frames))
        for j, (frame, labels) in enumerate(zip(frames, maps, strict=True)):
            panels.show(
                axes[i, j],
                look.overlay_labels(frame, labels, palette),
                times[j] if times is not None and i == 0 else "",
            )
        panels.row_label(axes[i, 0], name)
    _legend(figure, shown, classes or (), palette)
    return figure


def _present(labels: Sequence[np.ndarray], classes: Sequence[str]) -> list[int]:
    """Ids of classes that occur, but for the background."""
    found = np.unique(np.concatenate([np.unique(label) for label in labels]))
    return [int(label) for label in found if 0 < label < len(classes)]


COLUMNS = 8  # of a legend


def _legend_height(shown: Sequence[int]) -> float:
    """Inches."""
    return 0.2 * -(-len(shown) // COLUMNS) + 0.12 if shown else 0.0


def _legend(figure: Figure, shown: Sequence[int], classes: Sequence[str], palette: np.ndarray | None) -> None:
    palette = look.object_palette() if palette is None else palette
    handles = [
        Patch(facecolor=palette[label] / 255, edgecolor=look.colour("rule"), label=classes[label]) for label in shown
    ]
    if handles:
        figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 0), ncols=COLUMNS, handlelength=1.2,
                      borderaxespad=0.1, columnspacing=1.4)  # fmt: skip


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
    panels.same_number("labels", len(labels), len(frames))
    shown = _present(list(labels), classes)
    figure, axes = panels.rows(
        1, max(2, len(frames)), frames[0].shape, lines=[titles is not None], bottom=_legend_height(shown)
    )
    for j, ax in enumerate(axes[0]):
        if j < len(frames):
            painted = look.overlay_labels(frames[j], labels[j], palette, alpha=0.65)
            panels.show(ax, painted, titles[j] if titles is not None else "")
        else:
            ax.remove()
    _legend(figure, shown, classes, palette)
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
    figure, axes = panels.rows(1 + len(maps), len(frames), frames[0].shape, lines=lines, left=panels.LABEL)
    for j, frame in enumerate(frames):
        panels.show(axes[0, j], frame, titles[j] if titles is not None else "")
        for i, values in enumerate(maps.values()):
            panels.same_number("a PCA row", len(values), len(frames))
            rgb = np.round(255 * np.clip(look.to_array(values[j]), 0, 1)).astype(np.uint8)
            panels.show(axes[1 + i, j], look.enlarge(rgb, frame.shape[:2]))
    for i, name in enumerate(("frame", *maps)):
        panels.row_label(axes[i, 0], name)
    return figure


def pca_components(features: Any) -> np.ndarray:
    """Patch features (N, h, w, D) -> their first three principal components, floats (N, h, w, 3) scaled to 0..1.

    Fitted over all frames together, so that one colour means one thing throughout. The percentiles 1 and 99 of each component
    become 0 and 1, and the sign is chosen so that the component's skewness is positive (a PCA has no sign).
    """
    array = look.to_array(features).astype(np.float64)
    flat = array.reshape(-1, array.shape[-1])
    flat = flat - flat.mean(0)
    values, vectors = np.linalg.eigh(flat.T @ flat)
    scores = flat @ vectors[:, np.argsort(values)[::-1][:3]]
    scores = scores * np.where((scores**3).sum(0) < 0, -1, 1)
    ends = np.percentile(scores, [1, 99], axis=0)
    scaled = np.clip((scores - ends[0]) / np.maximum(ends[1] - ends[0], 1e-12), 0, 1)
    return scaled.reshape(*array.shape[:3], 3)
