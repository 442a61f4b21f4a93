"""The renderer of the synthetic scenes: layers through a camera onto a backdrop.

Letters: N frames, H W pixels of a frame, n frames drawn at once, h w pixels of the window a layer is drawn in.

Every layer is drawn by its inverse map: pixel -> world -> the sprite's own coordinates, where texture and coverage
are looked up. So a texture moves, turns and bends with its object, and the label maps follow from the very coverage
that the pixels were blended with: they are exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tcore_lib.scenes.sprites import Camera, Layer

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
        drawn.offset = (round(layer.shadow[0] * min(camera.size)), round(layer.shadow[1] * min(camera.size)))
        drawn.shadow = np.empty((n, h, w), np.float32)
    inverse = np.linalg.inv(axes)
    # A few frames at a time: what is worked on stays in the processor's cache.
    few = max(1, CHUNK // (h * w))
    for start in range(0, n, few):
        part = slice(start, start + few)
        maps = _look_up(layer, inverse[part], corner[part] - centre[part], part, (h, w))
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


def _look_up(layer: Layer, inverse: np.ndarray, origin: np.ndarray, part: slice, shape: tuple[int, int]) -> np.ndarray:
    """The sprite's maps at every pixel of the windows, (7, n, h, w): the inverse map."""
    h, w = shape
    px = (origin[:, 0, None] + np.arange(w)).astype(np.float32)[:, None, :]
    py = (origin[:, 1, None] + np.arange(h)).astype(np.float32)[:, :, None]
    entry = inverse.astype(np.float32)[:, :, :, None, None]
    x = entry[:, 0, 0] * px + entry[:, 0, 1] * py  # (n, h, w), in the sprite's units
    y = entry[:, 1, 0] * px + entry[:, 1, 1] * py
    x0, y0, x1, y1 = layer.sprite.bounds
    if layer.shown is not None:
        shown = np.maximum(layer.shown[part], SHORTEST).astype(np.float32)[:, None, None]
        y += np.clip(y, 0, shown) * (layer.sprite.length / shown - 1)
    if layer.wave is not None:
        amplitude, number, phase = layer.wave
        bend = np.sin(number * x + phase[part].astype(np.float32)[:, None, None])
        y += amplitude * (0.3 + 0.7 * (x1 - x) / (x1 - x0)) * bend
    grid = np.empty((*x.shape, 2), np.float32)
    np.multiply(x - np.float32((x0 + x1) / 2), np.float32(2 / (x1 - x0)), out=grid[..., 0])
    np.multiply(y - np.float32((y0 + y1) / 2), np.float32(2 / (y1 - y0)), out=grid[..., 1])
    return _sample(layer.sprite.maps, grid.reshape(-1, w, 2), "border").reshape(7, *x.shape)


def _sample(maps: torch.Tensor, grid: np.ndarray, beyond: str) -> np.ndarray:
    """Maps (C, R_y, R_x) at places (h, w, 2) in -1..1, bilinearly: (C, h, w)."""
    places = torch.from_numpy(grid)[None]
    return torch.nn.functional.grid_sample(maps[None], places, padding_mode=beyond, align_corners=False)[0].numpy()


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


def composite(image: np.ndarray, layers: Sequence[Layer], drawn: Sequence[Drawn], index: int) -> np.ndarray:
    """Lay all layers, as drawn, over the backdrop (3, H, W) of frame `index`, farthest first, in place.

    Returns:
        (H, W) uint8: 1 + index of the nearest layer that covers at least half of the pixel; 0 = the backdrop.
    """
    top = np.zeros(image.shape[1:], np.uint8)
    for i in np.argsort([layer.depth[index] for layer in layers], kind="stable"):
        piece = drawn[i]
        x, y = piece.corner[index]
        if piece.shadow is not None:
            place, part = _overlap(x + piece.offset[0], y + piece.offset[1], piece.shadow[index], top)
            image[:, *place] *= part
        place, cover = _overlap(x, y, piece.cover[index], top)
        image[:, *place] *= 1 - cover
        image[:, *place] += _overlap(x, y, piece.colour[:, index], top)[1]
        top[place][cover >= 0.5] = i + 1
    return top


def _overlap(x: int, y: int, window: np.ndarray, frame: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """Where a window (..., h, w) at (x, y) lies in the frame, and the part of it that does."""
    (h, w), (height, width) = window.shape[-2:], frame.shape
    left, upper = max(x, 0), max(y, 0)
    right, lower = max(left, min(x + w, width)), max(upper, min(y + h, height))
    part = window[..., upper - y : lower - y, left - x : right - x]
    return (slice(upper, lower), slice(left, right)), part
