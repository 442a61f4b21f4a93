"""Pictures side by side in a figure, placed in inches: sizes are known, so nothing is laid out and nothing is wasted.

Frames are uint8 (H, W, 3); a grid cell is (row, column) of the (h, w) patch grid.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath

from tcore_lib.errors import InputError
from tcore_lib.figures import style as look

WIDTH = look.WIDTH
Box = tuple[float, float, float, float]
GAP, LINE, LABEL, LEGEND = 0.06, 0.24, 0.3, 0.4  # inches: between pictures, a title, a row label, a row of a legend
HEAD = 0.3  # inches: the figure's own title
SMALLEST = 7.5  # points: a title that is still too long at this size is cut
HALO = [withStroke(linewidth=3, foreground="#14171C")]


def show(ax: Axes, image: np.ndarray, title: str = "", colour: str | None = None) -> None:
    """One picture without ticks; `colour` draws a line of that colour above it."""
    ax.imshow(look.to_frame(image), aspect="equal")
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    if title:
        room = 72 * ax.get_position().width * WIDTH
        size, text = fitted(title, room)
        ax.set_title(text, fontsize=size, color=colour or look.colour("ink"), pad=4)


def fitted(text: str, room: float) -> tuple[float, str]:
    """The font size, and the text cut in its middle if need be, with which it is at most `room` points wide.

    The end is kept longest: `Synthetic_walk_f ... frame 8`.
    """

    def width(words: str) -> float:
        drawn = TextPath((0, 0), words.replace("$", r"\$") or " ", size=SMALLEST)
        return float(drawn.get_extents().width) if words.strip() else 0.0

    size = min(9.0, SMALLEST * room / max(width(text), 1e-6))
    if size >= SMALLEST:
        return size, text
    for kept in range(len(text) - 2, 1, -1):
        shorter = f"{text[: kept // 2].rstrip()} … {text[len(text) - (kept - kept // 2) :].lstrip()}"
        if width(shorter) <= room:
            return SMALLEST, shorter
    return SMALLEST, text[:1]


def row_label(ax: Axes, text: str) -> None:
    """Name a row of pictures, written upward at its left."""
    ax.set_ylabel(text, rotation=90, fontsize=9.5, color=look.colour("ink"), labelpad=4)


def page(height: float) -> Figure:
    """An empty figure of the usual width; pictures have known sizes, so they are placed in inches, not laid out."""
    return plt.figure(figsize=(WIDTH, height), layout="none")


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at inches from the figure's left and top edge."""
    total = figure.get_figheight()
    return figure.add_axes((left / WIDTH, 1 - (top + height) / total, width / WIDTH, height / total))


def rows(
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
    figure = page(top + sum(height + GAP + LINE * line for line in lines) + bottom)
    axes, y = np.empty((rows, columns), dtype=object), top
    for i in range(rows):
        y += LINE * lines[i]
        for j in range(columns):
            axes[i, j] = place(figure, left + j * (width + GAP), y, width, height)
        y += height + GAP
    return figure, axes


def headline(figure: Figure, title: str) -> None:
    """The title of a figure, at its upper left corner."""
    figure.text(0, 1, title, va="top", fontsize=11.5)


def same_number(name: str, got: int, expected: int) -> None:
    """Refuse lists that do not hold one entry per frame."""
    if got != expected:
        raise InputError(f"{name} has {got} entries for {expected} frames; give one per frame.")


def outline_cell(
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


def scale(ax: Axes, limits: tuple[float, float], unit: str) -> None:
    """The scale of a map's colours, as high as the picture, at its right."""
    inset = ax.inset_axes((1.02, 0, 0.03, 1))
    bar = ax.figure.colorbar(plt.cm.ScalarMappable(plt.Normalize(*limits), look.MAP), cax=inset)
    bar.set_label(unit)
    bar.outline.set_visible(False)
