"""Cut-outs that move: a sprite (texture, coverage, relief), a layer (a sprite on its way through a clip), the camera.

Letters: N frames, R pixels of a sprite.

World: one unit = the short side of the frame, origin at the centre of the neutral camera, x right, y down. Pixel
coordinates are 0-based, pixel i has its centre at i.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from scipy.spatial import ConvexHull

NO_LIMB = -1
Bounds = tuple[float, float, float, float]  # x0, y0, x1, y1 in a sprite's own units


@dataclass(frozen=True)
class Sprite:
    """A texture cut out along an outline.

    Attributes:
        maps: (7, R_y, R_x) float32: red, green, blue (times coverage), coverage, a normal's x and y, shadow.
        bounds: of the maps.
        outline: (k, 2) points in the sprite's units that show how far it reaches.
        margin: units around the outline within which the shadow ends.
        length: y of the far joint of a limb; the part between 0 and `length` is what foreshortening compresses.
    """

    maps: torch.Tensor
    bounds: Bounds
    outline: np.ndarray
    margin: float
    length: float = 0.0


@dataclass
class Layer:
    """A sprite on its way through a clip.

    Attributes:
        sprite: what is drawn.
        centre: (N, 2) world position of the sprite's origin.
        axes: (N, 2, 2) world vectors of the sprite's x and y unit, as columns.
        depth: (N,) larger is nearer to the viewer.
        owner: object id, 0 = part of nothing.
        label: class of a body part (VIP, 1..19), 0 = no body part.
        limb: index of the limb for the visibility of joints, or `NO_LIMB`.
        shown: (N,) length that a limb of `sprite.length` is drawn with, or None.
        wave: (amplitude, wave number, (N,) phase) of a wave that runs along x and bends y, in the sprite's units,
            strongest at the low end of x; or None.
        shadow: (dx, dy, strength) of the shadow in world units, or None.
    """

    sprite: Sprite
    centre: np.ndarray
    axes: np.ndarray
    depth: np.ndarray
    owner: int = 0
    label: int = 0
    limb: int = NO_LIMB
    shown: np.ndarray | None = None
    wave: tuple[float, float, np.ndarray] | None = None
    shadow: tuple[float, float, float] | None = None


def turned(angle: np.ndarray, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """Rotations (N, 2, 2) by angles (N,) clockwise in the picture, times a scale."""
    c, s = np.cos(angle) * scale, np.sin(angle) * scale
    return np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)


@dataclass(frozen=True)
class Camera:
    """Where the frame looks: (N, 2) world centre, (N,) zoom, (N,) roll in radians, and the frame's (width, height)."""

    centre: np.ndarray
    zoom: np.ndarray
    roll: np.ndarray
    size: tuple[int, int]

    def axes(self) -> np.ndarray:
        """(N, 2, 2) world -> pixel directions."""
        return turned(self.roll, self.zoom * min(self.size))

    def project(self, points: np.ndarray) -> np.ndarray:
        """World (N, ..., 2) -> pixel coordinates (N, ..., 2)."""
        relative = points - self.centre.reshape(-1, *[1] * (points.ndim - 2), 2)
        middle = (np.array(self.size) - 1) / 2
        return np.einsum("nij,n...j->n...i", self.axes(), relative) + middle


# ---- cutting ---------------------------------------------------------------------------------------------------------


def ellipse(
    rx: float, ry: float, x: float = 0.0, y: float = 0.0, start: float = 0.0, stop: float = 2 * np.pi
) -> np.ndarray:
    """Outline (k, 2) of an ellipse around (x, y), or of an arc of one; angles clockwise from the right."""
    angle = np.linspace(start, stop, 36)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1)


def mirrored(along: np.ndarray, half: np.ndarray, upright: bool = False) -> np.ndarray:
    """Outline (2 k, 2) of something symmetric about the x axis (`upright`: the y axis), with half widths (k,) along it."""
    sides = [np.stack([side, along] if upright else [along, side], 1) for side in (half, -half)]
    return np.concatenate([sides[0], sides[1][::-1]])


def sheet(outlines: Sequence[np.ndarray], resolution: float, margin: float) -> tuple[tuple[int, int], Bounds]:
    """Pixels (R_y, R_x) and bounds of a texture around outlines; `resolution` in pixels per unit, `margin` in units."""
    points, margin = np.concatenate(list(outlines)), max(margin, 2.5 / resolution)
    (x0, y0), (x1, y1) = points.min(0) - margin, points.max(0) + margin
    rows, columns = (max(6, round(size * resolution)) for size in (y1 - y0, x1 - x0))
    return (rows, columns), (x0, y0, x0 + columns / resolution, y0 + rows / resolution)


def cut(
    texture: np.ndarray,
    outlines: Sequence[np.ndarray],
    bounds: Bounds,
    bevel: float,
    *,
    holes: Sequence[np.ndarray] = (),
    length: float = 0.0,
    rim: float = 0.3,
) -> Sprite:
    """Cut a texture (R_y, R_x, 3) along outlines and give it a rounded relief.

    The union of the outlines, polygons (k, 2) in the sprite's units, is kept, the holes are cut out again; the texture leaves
    a margin around them. `bevel` is the width of the rounded border in units, `rim` how much darker it is, 0..1.
    """
    rows, columns = texture.shape[:2]
    x0, y0, x1, _ = bounds
    scale = columns / (x1 - x0)
    stencil = Image.new("L", (columns * 4, rows * 4), 0)
    draw = ImageDraw.Draw(stencil)
    for polygons, fill in ((outlines, 255), (holes, 0)):
        for polygon in polygons:
            draw.polygon([(4 * scale * (x - x0) - 0.5, 4 * scale * (y - y0) - 0.5) for x, y in polygon], fill=fill)
    cover = np.asarray(stencil.reduce(4), np.float32) / 255
    cover[[0, -1]] = cover[:, [0, -1]] = 0  # what is looked up beyond the maps takes the border's value
    sigma = max(0.6, bevel * scale * 0.5)
    soft = gaussian_filter(cover, sigma, truncate=2.5)
    slope_y, slope_x = np.gradient(soft)
    normal = np.stack([slope_x, slope_y]) * (-2.0 * sigma)
    normal /= np.maximum(1, np.hypot(*normal) / 0.9)
    shade = 1 - rim + rim * np.clip((soft - 0.5) * 2.4, 0, 1)
    # The shadow is blurred as far as the margin allows and is 0 beyond it: a straight edge leaves 0.11 at
    # 1.25 standard deviations.
    points = np.concatenate(list(outlines))
    margin = min(float(points[:, 0].min()) - x0, 0.5 * bevel + 0.02)
    cast = gaussian_filter(cover, max(0.6, 0.8 * margin * scale), truncate=2.0)
    least = max(0.11, cast[0].max(), cast[-1].max(), cast[:, 0].max(), cast[:, -1].max())
    cast = np.clip((cast - least) / (1.02 - least), 0, 1)
    colour = np.moveaxis(texture * (shade * cover)[..., None], -1, 0)
    maps = np.concatenate([colour, cover[None], normal, cast[None]])
    # Foreshortening bends straight edges: a limb keeps all its points.
    reach = points if length else points[ConvexHull(points).vertices]
    return Sprite(torch.from_numpy(np.ascontiguousarray(maps, np.float32)), bounds, reach, margin, length)
