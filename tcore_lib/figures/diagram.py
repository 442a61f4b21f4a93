"""The method on one page, drawn: sandwich sampling, views, student, teacher, decoder, losses (METHOD sections 1-6)."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from tcore_lib.figures import style as look

SIZE = (10.0, 6.3)  # inches; all positions below are inches from the lower left corner
ROWS = {"past": 5.1, "current": 3.45, "future": 1.8, "teacher": 0.6}
Point = tuple[float, float]
MASK = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=bool)


def _scene(time: float) -> np.ndarray:
    """A stand-in frame: a disc that moves over hills, uint8 (160, 160, 3)."""
    y, x = np.mgrid[:160, :160] / 160
    sky = np.stack([0.80 - 0.25 * y, 0.88 - 0.12 * y, 0.96 - 0.05 * y], axis=-1)
    hills = y > 0.68 + 0.06 * np.sin(7 * x + 1)
    image = np.where(hills[..., None], np.array([0.45, 0.60, 0.42]) * (1.15 - 0.4 * y[..., None]), sky)
    disc = (x - 0.25 - 0.5 * time) ** 2 + (y - 0.62 + 0.8 * time * (1 - time)) ** 2 < 0.13**2
    image[disc] = (0.90, 0.42, 0.18)
    return np.round(255 * image).astype(np.uint8)


def _square(frame: np.ndarray) -> np.ndarray:
    side = min(frame.shape[:2])
    top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
    return frame[top : top + side, left : left + side]


def _picture(ax: Axes, image: np.ndarray, centre: Point, side: float, colour: str, *, line: float = 1.6) -> None:
    x, y = centre[0] - side / 2, centre[1] - side / 2
    ax.imshow(image, extent=(x, x + side, y, y + side), zorder=2, interpolation="antialiased")
    ax.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=colour, linewidth=line, zorder=3))


def _box(
    ax: Axes,
    centre: Point,
    size: Point,
    text: str,
    colour: str,
    *,
    small: str = "",
    dashed: bool = False,
    round_: float = 0.08,
) -> None:
    """A rounded box with a bold line and a small second line."""
    x, y = centre[0] - size[0] / 2, centre[1] - size[1] / 2
    tint = np.array(look.to_rgb8(colour)) / 255 * 0.12 + np.array(look.to_rgb8(look.colour("paper"))) / 255 * 0.88
    patch = FancyBboxPatch(
        (x, y), *size, boxstyle=f"round,pad=0,rounding_size={round_}", facecolor=tint, edgecolor=colour
    )
    patch.set(linewidth=1.5, linestyle=(0, (4, 2)) if dashed else "-", zorder=4)
    ax.add_patch(patch)
    shift = 0.09 * (1 + small.count("\n")) if small else 0.0
    ax.text(centre[0], centre[1] + shift, text, ha="center", va="center", fontsize=9, fontweight="bold", zorder=5)
    if small:
        ax.text(centre[0], centre[1] - 0.11, small, ha="center", va="center", fontsize=7.2, color=look.colour("muted"),
                linespacing=1.25, zorder=5)  # fmt: skip


def _arrow(ax: Axes, points: Sequence[Point], colour: str, *, dashed: bool = False, head: bool = True) -> None:
    """A line through `points` with an arrow head at its end; dashed where no gradient flows back."""
    dash = (0, (3, 2)) if dashed else "-"
    if len(points) > 2:
        ax.plot(*np.array(points[:-1]).T, color=colour, linewidth=1.4, linestyle=dash, zorder=3.5)
    arrow = FancyArrowPatch(*points[-2:], arrowstyle="-|>" if head else "-", mutation_scale=9, shrinkA=0, shrinkB=0)
    arrow.set(color=colour, linewidth=1.4, linestyle=dash, zorder=3.5)
    ax.add_patch(arrow)


def _note(ax: Axes, where: Point, text: str, colour: str = "", *, align: str = "center") -> None:
    ax.text(*where, text, ha=align, va="center", fontsize=7.2, color=colour or look.colour("muted"), linespacing=1.3)


def _tokens(ax: Axes, centre: Point, colour: str, hidden: np.ndarray | None = None, cell: float = 0.1) -> None:
    """A small grid of patch tokens; hidden ones are hollow."""
    grid = np.zeros((5, 5), dtype=bool) if hidden is None else hidden
    for i, j in np.ndindex(*grid.shape):
        corner = (centre[0] + (j - 2.5) * cell, centre[1] + (1.5 - i) * cell)
        face = look.colour("paper") if grid[i, j] else colour
        ax.add_patch(
            Rectangle(
                corner, cell * 0.84, cell * 0.84, facecolor=face, edgecolor=colour, linewidth=0.6, snap=False, zorder=4
            )
        )


def _stage(ax: Axes, x: float, text: str) -> None:
    ax.text(x, 6.16, text, ha="center", va="center", fontsize=8.5, color=look.colour("muted"))


def _sampling(ax: Axes, frames: Sequence[np.ndarray]) -> None:
    """Columns 1 and 2: the three frames, then their crops; below, what the teacher sees."""
    for role, frame in zip(look.ROLE_COLOURS, frames, strict=True):
        colour, y, image = look.ROLE_COLOURS[role], ROWS[role], _square(frame)
        _picture(ax, image, (0.75, y), 1.15, colour)
        ax.text(0.75, y + 0.69, role, ha="center", va="center", fontsize=9.5, fontweight="bold", color=colour)
        _arrow(ax, [(1.38, y), (1.72, y)], look.colour("muted"))
        _arrow(ax, [(2.78, y), (3.1, y)], look.colour("muted"))
        if role != "current":
            _picture(ax, image, (2.32, y + 0.06), 0.78, colour)
            _picture(ax, image, (2.16, y - 0.1), 0.78, colour)
            _note(ax, (2.25, y - 0.62), "2 auxiliary, unmasked")
            continue
        crop = image[: int(0.8 * len(image)), int(0.2 * len(image)) :]
        _picture(ax, image, (2.32, y + 0.2), 0.78, colour)
        _picture(ax, look.hide_patches(crop, MASK), (2.16, y + 0.04), 0.78, colour)
        third = len(image) // 3
        for k, (row, column) in enumerate(((0, 1), (1, 2), (2, 0), (1, 1))):
            part = image[row * third : (row + 1) * third, column * third : (column + 1) * third]
            _picture(ax, part, (1.88 + 0.25 * k, y - 0.54), 0.21, colour, line=0.9)
        _note(ax, (2.25, y - 0.76), "2 global, half masked; 8 local")
        _picture(ax, image, (2.34, ROWS["teacher"] + 0.06), 0.6, colour)
        _picture(ax, crop, (2.2, ROWS["teacher"] - 0.06), 0.6, colour)
    _note(ax, (1.75, ROWS["teacher"]), "the same 2 global crops,\nunmasked", align="right")
    _arrow(ax, [(2.78, ROWS["teacher"]), (3.1, ROWS["teacher"])], look.colour("muted"))
    _arrow(ax, [(0.06, 5.6), (0.06, 1.3)], look.colour("rule"))
    ax.text(0.0, 3.45, "time", rotation=90, ha="right", va="center", fontsize=8, color=look.colour("muted"))


def _networks(ax: Axes) -> None:
    """Column 3: the student three times with one set of weights, the teacher, and the tokens they give."""
    ink, teacher = look.colour("ink"), look.OKABE_ITO["purple"]
    for role, colour in look.ROLE_COLOURS.items():
        y, current = ROWS[role], role == "current"
        small = "ViT" if current else "same weights,\nno gradient"
        _box(ax, (3.72, y), (1.16, 0.74), "student", ink if current else colour, small=small, dashed=not current)
        _arrow(ax, [(4.32, y), (4.58, y)], colour, dashed=not current)
        _tokens(ax, (4.88, y), colour, MASK if current else None)
    _box(
        ax,
        (3.72, ROWS["teacher"]),
        (1.16, 0.74),
        "teacher",
        teacher,
        small="EMA of the student,\nno gradient",
        dashed=True,
    )


def _decoders(ax: Axes) -> None:
    """Column 4: one decoder, used twice; queries from the current frame, keys and values from past or future."""
    orange, green, y = look.OKABE_ITO["orange"], look.ROLE_COLOURS["current"], ROWS["current"]
    for role, middle, sign in (("past", 4.45, 1), ("future", 2.45, -1)):
        colour = look.ROLE_COLOURS[role]
        _box(ax, (6.12, middle), (1.3, 0.86), "decoder", orange, small="cross-attention,\nself-attention, linear")
        _arrow(ax, [(5.2, ROWS[role]), (6.12, ROWS[role]), (6.12, middle + sign * 0.45)], colour, dashed=True)
        _note(ax, (5.24, ROWS[role] + sign * 0.13), "keys, values", colour, align="left")
        _arrow(ax, [(4.87, y + sign * 0.3), (4.87, middle), (5.45, middle)], green)
        _note(ax, (4.94, middle + sign * 0.13), "queries", green, align="left")
        _arrow(ax, [(6.78, middle), (6.92, middle)], orange)
        _tokens(ax, (7.16, middle), colour, ~MASK, cell=0.09)
    _arrow(ax, [(5.2, y), (5.31, y)], green, head=False)
    ax.plot(5.4, y, marker="o", markersize=9, color=green, zorder=4)
    _note(ax, (5.58, y + 0.12), "CLS of global and local crops", green, align="left")


def _losses(ax: Axes) -> None:
    """Columns 5 and 6: one head for all, the losses with their weights, and the teacher's targets."""
    ink, grey, teacher = look.colour("ink"), look.colour("muted"), look.OKABE_ITO["purple"]
    green, y = look.ROLE_COLOURS["current"], ROWS["current"]
    terms = {
        "past patches": (4.8, look.ROLE_COLOURS["past"], "cross-entropy, 0.8"),
        "agreement": (4.125, look.OKABE_ITO["orange"], "squared error, 20"),
        "future patches": (3.45, look.ROLE_COLOURS["future"], "cross-entropy, 0.8"),
        "DINO": (2.775, green, "cross-entropy, 1"),
        "KoLeo": (1.8, grey, "spreads the CLS, 0.1"),
    }
    _box(ax, (7.92, 3.65), (0.4, 2.9), "", ink, round_=0.1)
    ax.text(
        7.92, 3.65, "projection head, 65,536 prototypes", rotation=90, ha="center", va="center", fontsize=8, zorder=5
    )
    for name, (height, colour, small) in terms.items():
        _box(ax, (9.0, height), (1.34, 0.56), name, colour, small=small, round_=0.26)
        if name != "KoLeo":
            _arrow(ax, [(8.14, height), (8.32, height)], colour)
    _arrow(ax, [(5.4, y), (7.7, y)], green)
    _arrow(ax, [(7.55, y), (7.55, terms["KoLeo"][0]), (8.32, terms["KoLeo"][0])], green)
    for name, height in (("past patches", 4.45), ("future patches", 2.45)):
        ax.plot((7.45, 7.66), (height, height), color=look.colour("paper"), linewidth=4, zorder=3.5)
        _arrow(ax, [(7.42, height), (7.7, height)], terms[name][1])
    low = ROWS["teacher"]
    _box(ax, (6.12, low), (1.9, 0.6), "targets", teacher, small="head, centre, sharpen", dashed=True)
    _arrow(ax, [(4.32, low), (5.15, low)], teacher, dashed=True)
    ax.plot(
        (7.09, 9.92, 9.92), (low, low, terms["past patches"][0]), color=teacher, linewidth=1.4, linestyle=(0, (3, 2))
    )
    for name in ("past patches", "future patches", "DINO"):
        _arrow(ax, [(9.92, terms[name][0]), (9.69, terms[name][0])], teacher)
    _note(ax, (9.85, 0.18), "solid: gradients flow back    dashed: they do not", align="right")


@look.figure_in_style
def method_figure(frames: Sequence[np.ndarray] | None = None) -> Figure:
    """T-CoRe on one page. Solid arrows carry gradients back, dashed ones do not.

    Args:
        frames: past, current and future, uint8 (H, W, 3), shown as their centre squares; drawn scenes by default.
    """
    figure = plt.figure(figsize=SIZE, layout="none")
    ax = figure.add_axes((0, 0, 1, 1))
    pictures = [_scene(t) for t in (0.1, 0.5, 0.9)] if frames is None else [look.to_frame(frame) for frame in frames]
    _sampling(ax, pictures)
    _networks(ax)
    _decoders(ax)
    _losses(ax)
    stages = {
        0.75: "sandwich",
        2.25: "views",
        3.72: "encoders",
        6.12: "masked patches restored",
        9.0: "losses, weights",
    }
    for x, text in stages.items():
        _stage(ax, x, text)
    ax.set(xlim=(-0.15, SIZE[0] + 0.05), ylim=(0, SIZE[1]), aspect="equal")
    ax.axis("off")
    return figure
