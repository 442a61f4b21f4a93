"""The renderer of the synthetic scenes: textures that are cut out, moved through a clip and seen by a camera.

Every layer is drawn by its inverse map: pixel -> world -> the sprite's own coordinates, where texture and coverage are looked
up. So a texture moves, turns and bends with its object, and label maps follow from the coverage that pixels are blended with.

Letters: N frames, H W pixels of a frame, h w of the window that a layer is drawn in, R pixels of a sprite. World: one unit
= the short side of the frame, origin at the centre of the neutral camera, x right, y down. Pixel i has its centre at i.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from scipy.spatial import ConvexHull

Bounds = tuple[float, float, float, float]  # x0, y0, x1, y1 in a sprite's own units
# Light falls from the upper left towards the picture; a unit vector (x right, y down, z to the viewer).
LIGHT = np.array([-0.42, -0.58, 0.70], np.float32)
SHORTEST = 0.02  # length of a limb that points at the viewer, in its units


@dataclass(frozen=True)
class Sprite:
    """A texture cut out along an outline, in units of its own."""

    maps: torch.Tensor  # (7, R_y, R_x) float32: red, green, blue (times coverage), coverage, a normal's x and y, shadow
    bounds: Bounds  # of the maps
    outline: np.ndarray  # (k, 2) points that show how far it reaches
    margin: float  # around the outline, within which the shadow ends
    length: float = 0.0  # y of a limb's far joint: the part between 0 and it is what foreshortening compresses


@dataclass
class Layer:
    """A sprite on its way through a clip."""

    sprite: Sprite
    centre: np.ndarray  # (N, 2) world position of the sprite's origin
    axes: np.ndarray  # (N, 2, 2) world vectors of the sprite's x and y unit, as columns
    depth: np.ndarray  # (N,) larger is nearer to the viewer
    owner: int = 0  # object id, 0 = part of nothing
    label: int = 0  # class of a body part (VIP, 1..19), 0 = no body part
    limb: str = ""  # of a figure, for the visibility of its joints
    shown: np.ndarray | None = None  # (N,) length that a limb of `sprite.length` is drawn with
    # Amplitude, wave number and phase (N,) of a wave along x that bends y, in the sprite's units, strongest at low x.
    wave: tuple[float, float, np.ndarray] | None = None
    shadow: tuple[float, float, float] | None = None  # dx, dy in world units, strength


@dataclass(frozen=True)
class Camera:
    """Where the frame looks."""

    centre: np.ndarray  # (N, 2) in the world
    zoom: np.ndarray  # (N,)
    roll: np.ndarray  # (N,) radians
    size: tuple[int, int]  # width, height of the frame

    def axes(self) -> np.ndarray:
        """(N, 2, 2) world -> pixel directions."""
        return turned(self.roll, self.zoom * min(self.size))

    def project(self, points: np.ndarray) -> np.ndarray:
        """World (N, ..., 2) -> pixel coordinates (N, ..., 2)."""
        relative = points - self.centre.reshape(-1, *[1] * (points.ndim - 2), 2)
        return np.einsum("nij,n...j->n...i", self.axes(), relative) + (np.array(self.size) - 1) / 2


@dataclass(frozen=True)
class World:
    """What the makers of a scene's parts share; lengths in world units."""

    rng: np.random.Generator
    tones: np.ndarray  # (6, 3) palette
    aspect: float  # width of the frame
    ground: float  # y that things stand on
    times: np.ndarray  # (N,) seconds at which the frames look
    seconds: float  # length of the clip
    resolution: float  # pixels per world unit


def turned(angle: np.ndarray, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """Rotations (N, 2, 2) by angles (N,) clockwise in the picture, times a scale."""
    c, s = np.cos(angle) * scale, np.sin(angle) * scale
    return np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)


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
    """Cut a texture (R_y, R_x, 3) along polygons (k, 2) in the sprite's units, and give it a rounded relief.

    The union of the outlines is kept, the holes are cut out again; the texture leaves a margin around them. `bevel` is the
    width of the rounded border in units, `rim` how much darker it is, 0..1.
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


# ---- drawing ---------------------------------------------------------------------------------------------------------


class View(NamedTuple):
    """A layer as the camera sees it in the N frames."""

    centre: np.ndarray  # (N, 2) pixel coordinates of the sprite's origin
    inverse: np.ndarray  # (N, 2, 2) pixel -> sprite directions
    corner: np.ndarray  # (N, 2) x and y of the upper left pixel of the window that holds it
    size: np.ndarray  # (N, 2) w and h of the window
    light: np.ndarray  # (N, 2) x and y of the light as the sprite's relief sees it
    offset: tuple[int, int]  # of the shadow, in pixels


def view(layer: Layer, camera: Camera) -> View:
    """Where a layer is in every frame."""
    axes = np.einsum("nij,njk->nik", camera.axes(), layer.axes)
    centre, inverse = camera.project(layer.centre), np.linalg.inv(axes)
    outline = np.broadcast_to(layer.sprite.outline, (len(centre), *layer.sprite.outline.shape))
    if layer.shown is not None:
        shown = np.maximum(layer.shown, SHORTEST)[:, None]
        between = np.clip(outline[..., 1], 0, layer.sprite.length)
        outline = np.stack([outline[..., 0], outline[..., 1] + between * (shown / layer.sprite.length - 1)], -1)
    reach = np.einsum("nij,nkj->nki", axes, outline) + centre[:, None]
    spare = layer.sprite.margin + (abs(layer.wave[0]) if layer.wave is not None else 0)
    pad = 1 + spare * np.abs(axes).sum(2)
    corner = np.floor(reach.min(1) - pad).astype(int)
    size = np.ceil(reach.max(1) + pad - corner).astype(int) + 1
    # A normal turns with the transposed inverse; its length is kept by dividing by the map's mean scale.
    turn = (inverse / np.sqrt(np.abs(np.linalg.det(inverse)))[:, None, None]).astype(np.float32)
    dx, dy, _ = layer.shadow or (0.0, 0.0, 0.0)
    offset = (round(dx * min(camera.size)), round(dy * min(camera.size)))
    return View(centre, inverse.astype(np.float32), corner, size, np.einsum("nij,j->ni", turn, LIGHT[:2]), offset)


def paint(image: np.ndarray, layer: Layer, seen: View, i: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """Lay a layer and its shadow over frame `i` (3, H, W), in place; returns the painted part and the coverage there, 0..1."""
    (x, y), maps = seen.corner[i], _look_up(layer, seen, i)
    if layer.shadow is not None:
        place, part = _overlap(x + seen.offset[0], y + seen.offset[1], 1 - layer.shadow[2] * maps[6], image)
        image[:, *place] *= part
    # The light stands still in the picture while the sprite turns.
    nx, ny = maps[4], maps[5]
    light = LIGHT[2] * np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0.05))
    light += seen.light[i, 0] * nx
    light += seen.light[i, 1] * ny
    np.clip(light, 0, 1, out=light)
    glint = np.maximum(light - 0.86, 0) ** 2 * (3.0 * maps[3])
    maps[:3] *= light * 0.7 + 0.55
    maps[:3] += glint
    place, part = _overlap(x, y, maps[:4], image)
    image[:, *place] *= 1 - part[3]
    image[:, *place] += part[:3]
    return place, part[3]


def _look_up(layer: Layer, seen: View, i: int) -> np.ndarray:
    """The sprite's maps at every pixel of the window in frame `i`, (7, h, w): the inverse map."""
    (w, h), origin, inverse = seen.size[i], seen.corner[i] - seen.centre[i], seen.inverse[i]
    px = (origin[0] + np.arange(w)).astype(np.float32)[None, :]
    py = (origin[1] + np.arange(h)).astype(np.float32)[:, None]
    x = inverse[0, 0] * px + inverse[0, 1] * py  # (h, w), in the sprite's units
    y = inverse[1, 0] * px + inverse[1, 1] * py
    x0, y0, x1, y1 = layer.sprite.bounds
    if layer.shown is not None:
        shown = np.float32(max(layer.shown[i], SHORTEST))
        y += np.clip(y, 0, shown) * (layer.sprite.length / shown - 1)
    if layer.wave is not None:
        amplitude, number, phase = layer.wave
        bend = np.sin(number * x + np.float32(phase[i]))
        y += amplitude * (0.3 + 0.7 * (x1 - x) / (x1 - x0)) * bend
    grid = np.empty((h, w, 2), np.float32)
    np.multiply(x - np.float32((x0 + x1) / 2), np.float32(2 / (x1 - x0)), out=grid[..., 0])
    np.multiply(y - np.float32((y0 + y1) / 2), np.float32(2 / (y1 - y0)), out=grid[..., 1])
    return _sample(layer.sprite.maps, grid, "border")


def _sample(maps: torch.Tensor, grid: np.ndarray, beyond: str) -> np.ndarray:
    """Maps (C, R_y, R_x) at places (h, w, 2) in -1..1, bilinearly: (C, h, w)."""
    places = torch.from_numpy(grid)[None]
    return torch.nn.functional.grid_sample(maps[None], places, padding_mode=beyond, align_corners=False)[0].numpy()


def _overlap(x: int, y: int, window: np.ndarray, frame: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """Where a window (..., h, w) at (x, y) lies in the frame (..., H, W), and the part of it that does."""
    (h, w), (height, width) = window.shape[-2:], frame.shape[-2:]
    left, upper = max(x, 0), max(y, 0)
    right, lower = max(left, min(x + w, width)), max(upper, min(y + h, height))
    return (slice(upper, lower), slice(left, right)), window[..., upper - y : lower - y, left - x : right - x]


def backdrop_frame(canvas: np.ndarray, reach: tuple[float, float], camera: Camera, index: int) -> np.ndarray:
    """The part (3, H, W) of a backdrop (3, Hc, Wc) that frame `index` sees; `reach` is half of its size in world units."""
    width, height = camera.size
    inverse = np.linalg.inv(camera.axes()[index]) / np.array(reach)[:, None]
    shift = camera.centre[index] / np.array(reach)
    px = (np.arange(width) - (width - 1) / 2)[None, :]
    py = (np.arange(height) - (height - 1) / 2)[:, None]
    grid = np.empty((height, width, 2), np.float32)
    for axis in (0, 1):
        across, down = inverse[axis, 0] * px + shift[axis], inverse[axis, 1] * py
        np.add(across.astype(np.float32), down.astype(np.float32), out=grid[..., axis])
    return _sample(torch.from_numpy(canvas), grid, "reflection")
