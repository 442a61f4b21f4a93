"""Pictures of human poses: predicted joints over frames, beside the ground truth."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from tcore_lib.bodies import JOINTS
from tcore_lib.figures import panels, style as look


@look.figure_in_style
def pose(
    frames: np.ndarray | Sequence[np.ndarray],
    joints: np.ndarray,
    truth: np.ndarray | None = None,
    titles: Sequence[str] | None = None,
    *,
    reach: Sequence[float] | float | None = None,
    zoom: bool = True,
    title: str = "",
) -> Figure:
    """Predicted joints, coloured; the ground truth as white rings, joined to its prediction by the error.

    Args:
        frames: one frame or several, uint8 (H, W, 3).
        joints: predicted positions in pixels, (15, 2) or (N, 15, 2), x then y; NaN or negative = not found, not drawn.
        truth: the annotation, same shape.
        titles: one per frame.
        reach: radius in pixels within which a prediction counts (0.1 x 0.6 x diagonal), drawn around the truth.
        zoom: show the part of each frame around the person, at one scale in all.
        title: above the figure.
    """
    if isinstance(frames, np.ndarray) and frames.ndim == 3:
        frames, joints = [frames], np.asarray(joints)[None]
        truth = None if truth is None else np.asarray(truth)[None]
    joints = np.asarray(joints, float)
    truth = None if truth is None else np.asarray(truth, float)
    panels.same_number("joints", len(joints), len(frames))
    points = joints if truth is None else np.concatenate([joints, truth], axis=1)
    windows = _windows(points, frames[0].shape) if zoom else [(0, 0, *frames[0].shape[:2])] * len(frames)
    columns = len(frames) if 2 <= len(frames) <= 6 else min(4, max(2, len(frames)))
    rows = -(-len(frames) // columns)
    lines, top = [titles is not None] * rows, panels.HEAD if title else 0.0
    figure, axes = panels.rows(rows, columns, windows[0][2:], lines=lines, top=top, bottom=panels.LEGEND)
    panels.headline(figure, title)
    for i, ax in enumerate(axes.flat):
        if i >= len(frames):
            ax.remove()
            continue
        panels.show(ax, frames[i], titles[i] if titles is not None else "")
        radius = None if reach is None else float(np.broadcast_to(reach, len(frames))[i])
        _skeleton(ax, joints[i], None if truth is None else truth[i], radius)
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
    sides = look.SIDE_COLOURS.items()
    handles = [plt.Line2D([], [], color=colour, marker="o", label=look.SIDE_NAMES[side]) for side, colour in sides]
    if truth:
        text = "ground truth" + (" and where a prediction counts" if reach else "")
        handles.append(plt.Line2D([], [], marker="o", markerfacecolor="none", markeredgecolor=look.colour("muted"),
                                  linestyle="none", label=text))  # fmt: skip
    figure.legend(handles=handles, loc="lower center", ncols=4)


def _skeleton(ax: Axes, joints: np.ndarray, truth: np.ndarray | None, reach: float | None) -> None:
    found = np.isfinite(joints).all(1) & (joints >= 0).all(1)
    side = [look.SIDE_COLOURS[look.side_of(joint)] for joint in range(len(JOINTS))]
    for a, b in look.JHMDB_BONES:
        if found[a] and found[b]:
            ax.plot(*joints[[a, b]].T, color=side[b], linewidth=2, path_effects=panels.HALO, solid_capstyle="round")
    if truth is not None:
        for j in np.flatnonzero(found):
            ax.plot(*np.stack([joints[j], truth[j]]).T, color="white", linewidth=1.2)
        ax.scatter(truth[:, 0], truth[:, 1], s=22, facecolors="none", edgecolors="white", linewidths=1.2, zorder=3)
        for x, y in truth if reach is not None else ():
            ax.add_patch(Circle((x, y), reach or 0.0, fill=False, edgecolor="white", linewidth=0.7, alpha=0.7))
    colours = [side[j % len(side)] for j in np.flatnonzero(found)]
    ax.scatter(joints[found, 0], joints[found, 1], s=18, c=colours, edgecolors="#14171C", linewidths=0.8, zorder=4)
