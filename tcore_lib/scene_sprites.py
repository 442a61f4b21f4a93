"""Cut-outs that move: a sprite (texture, coverage, relief), a layer (a sprite on its way through a clip), and the renderer.

Letters: N frames, H W pixels of a frame, h w pixels of the window a layer is drawn in, R pixels of a sprite.

Every layer is drawn by its inverse map: pixel -> world -> the sprite's own coordinates, where texture and coverage are
looked up. So a texture moves, turns and bends with its object, and the label maps follow from the very coverage that the
pixels were blended with: they are exact.

World: one unit = the short side of the frame, origin at the centre of the neutral camera, x right, y down. Pixel
coordinates are 0-based, pixel i has its centre at i.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

# Light falls from the upper left towards the picture; a unit vector (x right, y down, z to the viewer).
LIGHT = np.array([-0.42, -0.58, 0.70], np.float32)
NO_LIMB = -1


@dataclass(frozen=True)
class Sprite:
    """A texture cut out along an outline.

    Attributes:
        maps: (7, R_y, R_x) float32: red, green, blue, coverage, relief x and y (a normal's first two), shadow.
        bounds: (x0, y0, x1, y1) of the maps in the sprite's own units.
        length: y of the far joint of a limb; the part between 0 and `length` is what foreshortening compresses.
    """

    maps: torch.Tensor
    bounds: tuple[float, float, float, float]
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
        wave: bend of the sprite: (amplitude, waves per unit, (N,) phase), along x, strongest at the low end of x; or None.
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


@dataclass(frozen=True)
class Camera:
    """Where the frame looks: (N, 2) world centre, (N,) zoom, (N,) roll in radians, and the frame's (width, height)."""

    centre: np.ndarray
    zoom: np.ndarray
    roll: np.ndarray
    size: tuple[int, int]

    @property
    def scale(self) -> np.ndarray:
        """(N,) pixels per world unit."""
        return self.zoom * min(self.size)

    def axes(self) -> np.ndarray:
        """(N, 2, 2) world -> pixel directions."""
        c, s = np.cos(self.roll) * self.scale, np.sin(self.roll) * self.scale
        return np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)

    def project(self, points: np.ndarray) -> np.ndarray:
        """World (N, ..., 2) -> pixel coordinates (N, ..., 2)."""
        relative = points - self.centre.reshape(-1, *[1] * (points.ndim - 2), 2)
        middle = (np.array(self.size) - 1) / 2
        return np.einsum("nij,n...j->n...i", self.axes(), relative) + middle


def cut(
    texture: np.ndarray,
    outlines: Sequence[np.ndarray],
    bounds: tuple[float, float, float, float],
    bevel: float,
    *,
    holes: Sequence[np.ndarray] = (),
    length: float = 0.0,
    rim: float = 0.3,
) -> Sprite:
    """Cut a texture along outlines and give it a rounded relief.

    Args:
        texture: (R_y, R_x, 3) in 0..1, covering `bounds`.
        outlines: polygons (k, 2) in the sprite's units; their union is kept.
        bounds: (x0, y0, x1, y1) in the sprite's units, with a margin around the outlines.
        bevel: width of the rounded border in units.
        holes: polygons that are cut out again.
        length: see `Sprite`.
        rim: how much darker the border is, 0..1.
    """
    rows, columns = texture.shape[:2]
    x0, y0, x1, _ = bounds
    scale = columns / (x1 - x0)
    sheet = Image.new("L", (columns * 4, rows * 4), 0)
    draw = ImageDraw.Draw(sheet)
    for polygons, fill in ((outlines, 255), (holes, 0)):
        for polygon in polygons:
            draw.polygon([(4 * scale * (x - x0) - 0.5, 4 * scale * (y - y0) - 0.5) for x, y in polygon], fill=fill)
    cover = np.asarray(sheet.reduce(4), np.float32) / 255
    sigma = max(0.6, bevel * scale * 0.5)
    soft = gaussian_filter(cover, sigma, truncate=2.5)
    slope_y, slope_x = np.gradient(soft)
    normal = np.stack([slope_x, slope_y]) * (-2.0 * sigma)
    normal /= np.maximum(1, np.hypot(*normal) / 0.9)
    shade = 1 - rim + rim * np.clip((soft - 0.5) * 2.4, 0, 1)
    # The shadow is blurred as far as the margin allows and is exactly 0 at the border of the maps.
    spare = scale * min(np.min([polygon[:, 0].min() for polygon in outlines]) - x0, 0.5 * bevel + 0.02)
    cast = gaussian_filter(cover, max(0.6, 0.8 * spare), truncate=2.0)
    least = max(cast[0].max(), cast[-1].max(), cast[:, 0].max(), cast[:, -1].max())
    cast = np.clip((cast - least) / (1.02 - least), 0, 1)
    maps = np.concatenate([np.moveaxis(texture * shade[..., None], -1, 0), cover[None], normal, cast[None]])
    return Sprite(torch.from_numpy(np.ascontiguousarray(maps, np.float32)), bounds, length)


@dataclass
class Drawn:
    """A layer's windows in all frames: (N, 2) corner (x, y), (3, N, h, w) colour times cover, (N, h, w) cover, shadow."""

    corner: np.ndarray
    colour: np.ndarray
    cover: np.ndarray
    shadow: np.ndarray | None = None
    offset: tuple[int, int] = (0, 0)


def draw(layer: Layer, camera: Camera) -> Drawn:
    """Look a layer's sprite up in every frame, in a window just large enough."""
    axes = np.einsum("nij,njk->nik", camera.axes(), layer.axes)
    centre = camera.project(layer.centre)
    x0, y0, x1, y1 = layer.sprite.bounds
    corners = np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1]])
    reach = np.einsum("nij,kj->nki", axes, corners) + centre[:, None]
    corner = np.floor(reach.min(1)).astype(int)
    extent = np.ceil((reach.max(1) - corner).max(0)).astype(int) + 1
    w, h = np.minimum(extent, 4 * np.array(camera.size))

    inverse = np.linalg.inv(axes)
    px = (corner[:, 0, None] + np.arange(w) - centre[:, 0, None])[:, None, :]
    py = (corner[:, 1, None] + np.arange(h) - centre[:, 1, None])[:, :, None]
    entry = inverse[:, :, :, None, None].astype(np.float32)
    px, py = px.astype(np.float32), py.astype(np.float32)
    x = entry[:, 0, 0] * px + entry[:, 0, 1] * py  # (N, h, w), the sprite's units
    y = entry[:, 1, 0] * px + entry[:, 1, 1] * py
    if layer.shown is not None:
        shown = np.maximum(layer.shown, 0.02).astype(np.float32)[:, None, None]
        y = y + np.clip(y, 0, shown) * (layer.sprite.length / shown - 1)
    if layer.wave is not None:
        amplitude, number, phase = layer.wave
        bend = np.sin(number * x + phase.astype(np.float32)[:, None, None])
        y = y + amplitude * (0.3 + 0.7 * (x1 - x) / (x1 - x0)) * bend
    grid = np.stack([(2 * x - x0 - x1) / (x1 - x0), (2 * y - y0 - y1) / (y1 - y0)], -1, dtype=np.float32)
    looked = torch.nn.functional.grid_sample(
        layer.sprite.maps[None], torch.from_numpy(grid.reshape(1, -1, w, 2)), padding_mode="border", align_corners=False
    )
    maps = looked[0].numpy().reshape(7, len(centre), h, w)
    drawn = Drawn(corner, _shade(maps, inverse) * maps[3], maps[3])
    if layer.shadow is not None:
        dx, dy, strength = layer.shadow
        pixels = float(camera.scale.mean())
        drawn.offset = (round(dx * pixels), round(dy * pixels))
        drawn.shadow = 1 - strength * maps[6]
    return drawn


def _shade(maps: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Light the relief. The light stands still in the picture while the sprite turns: (3, N, h, w)."""
    # A normal turns with the transposed inverse; its length is kept by dividing by the map's mean scale.
    size = np.sqrt(np.abs(np.linalg.det(inverse)))
    turn = (inverse / size[:, None, None]).astype(np.float32)
    towards = np.einsum("nij,j->in", turn, LIGHT[:2])[:, :, None, None]
    flat = np.sqrt(np.clip(1 - maps[4] ** 2 - maps[5] ** 2, 0.05, 1))
    light = LIGHT[2] * flat + towards[0] * maps[4] + towards[1] * maps[5]
    bright = 0.52 + 0.68 * np.clip(light, 0, 1)
    glint = 0.06 * (np.clip(light - 0.86, 0, 1) / 0.14) ** 2
    return maps[:3] * bright + glint


def backdrop_frame(canvas: np.ndarray, reach: tuple[float, float], camera: Camera, index: int) -> np.ndarray:
    """The part of a backdrop that frame `index` sees: (3, H, W).

    Args:
        canvas: (3, Hc, Wc).
        reach: half width and half height of the canvas in world units.
        camera: see `Camera`.
        index: frame.
    """
    width, height = camera.size
    inverse = np.linalg.inv(camera.axes()[index])
    px = np.arange(width)[None, :] - (width - 1) / 2
    py = np.arange(height)[:, None] - (height - 1) / 2
    x = inverse[0, 0] * px + inverse[0, 1] * py + camera.centre[index, 0]
    y = inverse[1, 0] * px + inverse[1, 1] * py + camera.centre[index, 1]
    grid = np.stack([x / reach[0], y / reach[1]], -1).astype(np.float32)
    looked = torch.nn.functional.grid_sample(
        torch.from_numpy(canvas)[None],
        torch.from_numpy(grid)[None],
        padding_mode="reflection",
        align_corners=False,
    )
    return looked[0].numpy()


def composite(image: np.ndarray, layers: Sequence[Layer], drawn: Sequence[Drawn], index: int) -> np.ndarray:
    """Lay the layers over a frame, farthest first, in place.

    Args:
        image: (3, H, W) float, the backdrop; changed in place.
        layers: all of a scene.
        drawn: their windows.
        index: frame.

    Returns:
        (H, W) int16: index of the nearest layer that covers at least half of the pixel; -1 = the backdrop.
    """
    height, width = image.shape[1:]
    top = np.full((height, width), -1, np.int16)
    for i in np.argsort([layer.depth[index] for layer in layers], kind="stable"):
        piece = drawn[i]
        h, w = piece.cover.shape[1:]
        x, y = piece.corner[index]
        if piece.shadow is not None:
            place, part = _overlap(x + piece.offset[0], y + piece.offset[1], w, h, width, height)
            image[:, *place] *= piece.shadow[index][part]
        place, part = _overlap(x, y, w, h, width, height)
        cover = piece.cover[index][part]
        image[:, *place] *= 1 - cover
        image[:, *place] += piece.colour[:, index, *part]
        top[place][cover >= 0.5] = i
    return top


def _overlap(x: int, y: int, w: int, h: int, width: int, height: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a window lies in the frame, and which part of the window that is."""
    left, upper = max(x, 0), max(y, 0)
    right, lower = max(left, min(x + w, width)), max(upper, min(y + h, height))
    return (slice(upper, lower), slice(left, right)), (slice(upper - y, lower - y), slice(left - x, right - x))
