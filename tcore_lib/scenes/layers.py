"""The renderer of the synthetic scenes: layers through a camera onto a backdrop.

Letters: N frames, H W pixels of a frame, h w pixels of the window a layer is drawn in.

Every layer is drawn by its inverse map: pixel -> world -> the sprite's own coordinates, where texture and coverage
are looked up. So a texture moves, turns and bends with its object, and the label maps follow from the very coverage
that the pixels were blended with: they are exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tcore_lib.scenes.sprites import Camera, Layer, Sprite

# Light falls from the upper left towards the picture; a unit vector (x right, y down, z to the viewer).
LIGHT = np.array([-0.42, -0.58, 0.70], np.float32)
CHUNK = 1 << 15  # pixels worked on at once
SHORTEST = 0.02  # length of a limb that points at the viewer, in its units


@dataclass
class Drawn:
    """A layer's windows in all frames.

    Attributes:
        corner: (N, 2) x and y of the upper left pixel.
        colour: (3, N, h, w) 0..1, times cover.
        cover: (N, h, w) 0..1.
        shadow: (N, h, w) what the layer's shadow leaves of the light, 0..1, or None.
        offset: (x, y) of the shadow in pixels.
    """

    corner: np.ndarray
    colour: np.ndarray
    cover: np.ndarray
    shadow: np.ndarray | None = None
    offset: tuple[int, int] = (0, 0)


def draw(layer: Layer, camera: Camera) -> Drawn:
    """Look a layer's sprite up in every frame, in a window just large enough."""
    axes = np.einsum("nij,njk->nik", camera.axes(), layer.axes)
    centre = camera.project(layer.centre)
    corner, (w, h) = _windows(layer, axes, centre)
    n = len(centre)
    drawn = Drawn(corner, np.empty((3, n, h, w), np.float32), np.empty((n, h, w), np.float32))
    if layer.shadow is not None:
        dx, dy, _ = layer.shadow
        drawn.offset = (round(dx * min(camera.size)), round(dy * min(camera.size)))
        drawn.shadow = np.empty((n, h, w), np.float32)
    inverse = np.linalg.inv(axes)
    origin = corner - centre
    # A few frames at a time: what is worked on stays in the processor's cache.
    few = max(1, CHUNK // (h * w))
    for start in range(0, n, few):
        part = slice(start, start + few)
        x, y = _own_coordinates(layer, inverse[part], origin[part], part, (h, w))
        maps = _look_up(layer.sprite, x, y)
        drawn.cover[part] = maps[3]
        _shade(maps, inverse[part], drawn.colour[:, part])
        if drawn.shadow is not None and layer.shadow is not None:
            np.subtract(1, layer.shadow[2] * maps[6], out=drawn.shadow[part])
    return drawn


def _windows(layer: Layer, axes: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Upper left corners (N, 2) of the windows that hold a layer, and their common (w, h)."""
    outline = np.broadcast_to(layer.sprite.outline, (len(centre), *layer.sprite.outline.shape))
    if layer.shown is not None:
        shown = np.maximum(layer.shown, SHORTEST)[:, None]
        between = np.clip(outline[..., 1], 0, layer.sprite.length)
        outline = np.stack([outline[..., 0], outline[..., 1] + between * (shown / layer.sprite.length - 1)], -1)
    reach = np.einsum("nij,nkj->nki", axes, outline) + centre[:, None]
    spare = layer.sprite.margin + (abs(layer.wave[0]) if layer.wave is not None else 0)
    pad = 1 + spare * np.abs(axes).sum(2)
    corner = np.floor(reach.min(1) - pad).astype(int)
    w, h = np.ceil((reach.max(1) + pad - corner).max(0)).astype(int) + 1
    return corner, (int(w), int(h))


def _own_coordinates(
    layer: Layer, inverse: np.ndarray, origin: np.ndarray, part: slice, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The sprite's coordinates x, y (n, h, w) of every pixel of the windows: the inverse map."""
    h, w = shape
    px = (origin[:, 0, None] + np.arange(w)).astype(np.float32)[:, None, :]
    py = (origin[:, 1, None] + np.arange(h)).astype(np.float32)[:, :, None]
    entry = inverse.astype(np.float32)[:, :, :, None, None]
    x = entry[:, 0, 0] * px + entry[:, 0, 1] * py
    y = entry[:, 1, 0] * px + entry[:, 1, 1] * py
    if layer.shown is not None:
        shown = np.maximum(layer.shown[part], SHORTEST).astype(np.float32)[:, None, None]
        y += np.clip(y, 0, shown) * (layer.sprite.length / shown - 1)
    if layer.wave is not None:
        amplitude, number, phase = layer.wave
        x0, _, x1, _ = layer.sprite.bounds
        bend = np.sin(number * x + phase[part].astype(np.float32)[:, None, None])
        y += amplitude * (0.3 + 0.7 * (x1 - x) / (x1 - x0)) * bend
    return x, y


def _look_up(sprite: Sprite, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The sprite's maps at its own coordinates (n, h, w): (7, n, h, w)."""
    x0, y0, x1, y1 = sprite.bounds
    grid = np.empty((*x.shape, 2), np.float32)
    np.multiply(x - np.float32((x0 + x1) / 2), np.float32(2 / (x1 - x0)), out=grid[..., 0])
    np.multiply(y - np.float32((y0 + y1) / 2), np.float32(2 / (y1 - y0)), out=grid[..., 1])
    looked = torch.nn.functional.grid_sample(
        sprite.maps[None],
        torch.from_numpy(grid.reshape(1, -1, x.shape[-1], 2)),
        padding_mode="border",
        align_corners=False,
    )
    return looked.numpy().reshape(7, *x.shape)


def _shade(maps: np.ndarray, inverse: np.ndarray, out: np.ndarray) -> None:
    """Light the relief into `out` (3, n, h, w). The light stands still in the picture while the sprite turns."""
    # A normal turns with the transposed inverse; its length is kept by dividing by the map's mean scale.
    size = np.sqrt(np.abs(np.linalg.det(inverse)))
    turn = (inverse / size[:, None, None]).astype(np.float32)
    towards = np.einsum("nij,j->in", turn, LIGHT[:2])[:, :, None, None]
    nx, ny = maps[4], maps[5]
    light = LIGHT[2] * np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0.05))
    light += towards[0] * nx
    light += towards[1] * ny
    np.clip(light, 0, 1, out=light)
    glint = np.maximum(light - 0.86, 0)
    glint *= glint
    glint *= 3.0 * maps[3]
    light *= 0.7
    light += 0.55
    np.multiply(maps[:3], light, out=out)
    out += glint


def backdrop_frame(canvas: np.ndarray, reach: tuple[float, float], camera: Camera, index: int) -> np.ndarray:
    """The part of a backdrop that frame `index` sees: (3, H, W).

    Args:
        canvas: (3, Hc, Wc).
        reach: half width and half height of the canvas in world units.
        camera: see `Camera`.
        index: frame.
    """
    width, height = camera.size
    inverse = np.linalg.inv(camera.axes()[index]) / np.array(reach)[:, None]
    shift = camera.centre[index] / np.array(reach)
    px = (np.arange(width) - (width - 1) / 2)[None, :]
    py = (np.arange(height) - (height - 1) / 2)[:, None]
    grid = np.empty((height, width, 2), np.float32)
    for axis in (0, 1):
        np.add(
            (inverse[axis, 0] * px + shift[axis]).astype(np.float32),
            (inverse[axis, 1] * py).astype(np.float32),
            out=grid[..., axis],
        )
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
        (H, W) uint8: 1 + index of the nearest layer that covers at least half of the pixel; 0 = the backdrop.
    """
    height, width = image.shape[1:]
    top = np.zeros((height, width), np.uint8)
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
        top[place][cover >= 0.5] = i + 1
    return top


def _overlap(
    x: int, y: int, w: int, h: int, width: int, height: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a window lies in the frame, and which part of the window that is."""
    left, upper = max(x, 0), max(y, 0)
    right, lower = max(left, min(x + w, width)), max(upper, min(y + h, height))
    return (slice(upper, lower), slice(left, right)), (slice(upper - y, lower - y), slice(left - x, right - x))
