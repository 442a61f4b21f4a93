"""Colours, the matplotlib style, and painting label or heat maps onto frames. Arrays in, arrays out.

Frames are uint8 (H, W, 3) RGB. Curves and roles take the colours of Okabe and Ito, objects a list whose first four are told
apart with every common kind of colour vision and on orange things; ordered values take viridis.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

from tcore_lib.bodies import JOINTS
from tcore_lib.errors import InputError

OKABE_ITO = {
    "blue": "#0072B2", "vermillion": "#D55E00", "green": "#009E73", "orange": "#E69F00", "purple": "#CC79A7",
    "sky": "#56B4E9", "grey": "#8A8F98",
}  # fmt: skip
CYCLE = list(OKABE_ITO.values())
INK, MUTED, RULE = "#1F2430", "#5B6472", "#D9DDE3"
RIM = "#14171C"  # around light marks, so that they are seen on any ground

# The three roles of a sandwich sample keep their colours in every figure.
ROLE_COLOURS = {"past": OKABE_ITO["blue"], "current": OKABE_ITO["green"], "future": OKABE_ITO["vermillion"]}

# Blue, yellow, magenta, sky: at least 45 apart in CIELAB with normal colour vision, deuteranopia and protanopia.
OBJECT_COLOURS = ["#2979FF", "#FFE119", "#C2186B", "#59D7FF", "#00A651", "#FF8A3D", "#8E44EC"]

SIDE_COLOURS = {"right": OKABE_ITO["orange"], "left": OKABE_ITO["sky"], "middle": "#F0E442"}  # sides of a body
JOINT_COLOURS = [SIDE_COLOURS.get(name.split()[0], SIDE_COLOURS["middle"]) for name in JOINTS]
# Bones join two of `bodies.JOINTS`, by number.
JHMDB_BONES = (
    (2, 0), (0, 1), (0, 3), (3, 7), (7, 11), (0, 4), (4, 8), (8, 12),
    (1, 5), (5, 9), (9, 13), (1, 6), (6, 10), (10, 14),
)  # fmt: skip
# Neighbouring parts differ in lightness as well as hue; left is the lighter one of a pair.
VIP_PALETTE = np.array([
    (0, 0, 0), (120, 94, 40), (222, 165, 40), (150, 150, 160), (60, 60, 70), (0, 114, 178), (204, 121, 167),
    (0, 80, 110), (235, 235, 225), (0, 130, 96), (250, 205, 170), (150, 60, 120), (170, 120, 200),
    (240, 228, 66), (120, 200, 250), (60, 130, 220), (245, 150, 90), (200, 80, 10), (150, 225, 190), (40, 160, 120),
], dtype=np.uint8)  # fmt: skip

WIDTH = 10.0  # inches: of every figure
MAP = "viridis"  # colours of ordered values
COVER = 0.85  # share of a map's colour at its largest value
SETTINGS: Any = {
    "figure.facecolor": "white", "figure.dpi": 110, "figure.constrained_layout.use": True, "figure.titlesize": 11.5,
    "axes.edgecolor": RULE, "axes.labelcolor": MUTED, "axes.labelsize": 9, "axes.titlesize": 9.5, "axes.titlecolor": INK,
    "axes.titlelocation": "left", "axes.titlepad": 5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "axes.prop_cycle": plt.cycler("color", CYCLE),
    "axes.formatter.useoffset": False, "grid.color": RULE, "grid.linewidth": 0.6, "grid.alpha": 0.7,
    "lines.linewidth": 1.7, "xtick.color": RULE, "ytick.color": RULE, "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "xtick.major.size": 0,
    "ytick.major.size": 0, "text.color": INK, "font.size": 9.5, "font.family": "DejaVu Sans", "legend.frameon": False,
    "legend.fontsize": 8.5, "image.cmap": MAP, "image.interpolation": "nearest",
}  # fmt: skip

P = ParamSpec("P")


def figure_in_style(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a function that returns a Figure with the style's settings.

    A notebook shows it when the cell is done (with `;` at the line's end only once); elsewhere it comes back closed for pyplot.
    """

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(SETTINGS):
            figure = draw(*args, **kwargs)
            interactive = mpl.is_interactive()  # a notebook's first figure turns this on, and the context would undo it
        mpl.interactive(interactive)
        if "inline" not in mpl.get_backend().lower():
            plt.close(figure)
        return figure

    return wrapper


def object_palette(n: int = 256) -> np.ndarray:
    """Colours for objects drawn over a frame, uint8 (n, 3); id 0 is black and stands for background."""
    return np.array([(0, 0, 0), *(to_rgb8(colour) for colour in OBJECT_COLOURS * n)], dtype=np.uint8)[:n]


def to_rgb8(value: Any) -> tuple[int, ...]:
    """Any matplotlib colour as three integers 0..255."""
    return tuple(round(255 * channel) for channel in mpl.colors.to_rgb(value))


def to_colours(values: np.ndarray) -> np.ndarray:
    """Floats 0..1 (...) -> uint8 (..., 3), the colours of `MAP`."""
    return np.round(255 * mpl.colormaps[MAP](np.asarray(values))[..., :3]).astype(np.uint8)


def to_array(value: Any) -> np.ndarray:
    """A NumPy array of a tensor on any device or of anything array-like."""
    return value.detach().float().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def to_frame(frame: Any) -> np.ndarray:
    """A frame, uint8 (H, W, 3). Floats, tensors of planes and grey images are refused (InputError), not guessed."""
    array = np.asarray(frame)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise InputError(f"a frame to draw has shape {array.shape} and type {array.dtype}; give uint8 (H, W, 3).")
    return array


def denormalise(images: Any) -> np.ndarray:
    """Network inputs (..., 3, H, W), ImageNet-normalised -> uint8 (..., H, W, 3)."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    planes = np.moveaxis(to_array(images).astype(np.float64), -3, -1)
    return np.clip(np.round(255 * (planes * IMAGENET_DEFAULT_STD + IMAGENET_DEFAULT_MEAN)), 0, 255).astype(np.uint8)


def enlarge(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, ...) -> (H, W, ...), nearest neighbour; the type is kept."""
    grid = np.asarray(grid)
    rows = np.arange(size[0]) * grid.shape[0] // size[0]
    columns = np.arange(size[1]) * grid.shape[1] // size[1]
    return grid[rows[:, None], columns[None, :]]


def outline(labels: np.ndarray, width: int = 1) -> np.ndarray:
    """Pixels of a label map (H, W) within `width` rows or columns of another label -> bool (H, W)."""
    cross = np.zeros((2 * width + 1, 2 * width + 1), dtype=bool)
    cross[width], cross[:, width] = True, True
    return ndimage.maximum_filter(labels, footprint=cross) != ndimage.minimum_filter(labels, footprint=cross)


def overlay_labels(frame: np.ndarray, labels: np.ndarray, palette: np.ndarray, *, alpha: float = 0.5) -> np.ndarray:
    """Paint a label map (H, W), or a grid (h, w), over a frame -> uint8 (H, W, 3).

    0 (background) and 255 (void) stay clear, regions have opaque outlines; `alpha` is the share of the colour inside, 0..1.
    """
    labels = enlarge(labels, to_frame(frame).shape[:2])
    shown = (labels > 0) & (labels < len(palette)) & (labels != 255)
    colours = palette[np.where(shown, labels, 0)].astype(np.float32)
    weight = np.where(shown, alpha, 0.0)
    weight[outline(labels, max(1, round(min(frame.shape[:2]) / 160))) & shown] = 1.0
    return np.round(frame + weight[..., None] * (colours - frame)).astype(np.uint8)


def overlay_heat(frame: np.ndarray, values: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Paint a map (h, w) over a grey copy of a frame -> uint8 (H, W, 3): the larger a value, the less is seen through it.

    `limits` are the values that get none of the darkest colour, and a share `COVER` of the brightest; by default its range.
    """
    values = to_array(values)
    low, high = limits or (values.min(), values.max())
    large = enlarge(np.clip((values - low) / (high - low or 1.0), 0, 1), to_frame(frame).shape[:2])
    colours = 255 * mpl.colormaps[MAP](large)[..., :3]
    grey = 0.85 * (frame @ np.array([0.299, 0.587, 0.114]))[..., None]
    return np.round(grey + COVER * large[..., None] * (colours - grey)).astype(np.uint8)


def hide_patches(image: np.ndarray, mask: np.ndarray, colour: str = "#3A3F4A") -> np.ndarray:
    """Cover the masked patches, bool (h, w), of a crop uint8 (H, W, 3)."""
    hidden = enlarge(to_array(mask).astype(bool), to_frame(image).shape[:2])
    return np.where(hidden[..., None], np.array(to_rgb8(colour), dtype=np.uint8), image)
