"""Backdrops of the synthetic scenes: meadow, room, street, sea, table and stone, painted once per clip.

A backdrop is float32 (H, W, 3), sRGB in 0..1, larger than a frame: the camera pans and zooms over it. `ground` is the
row (a share of H) that things stand on; the floor begins above it and reaches down to the lower edge.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter1d

from tcore_lib.scenes import textures
from tcore_lib.scenes.textures import Rng, Shape


def meadow(rng: Rng, shape: Shape, tones: np.ndarray, ground: float) -> np.ndarray:
    """Sky with clouds, three ranges of hills with trees, grass with flowers."""
    height, width = shape
    _, y = textures.coordinates(shape)
    y = y / y[-1, 0]
    sky = textures.colours(("#7fb2d9", "#a8d0e6", "#f4ecd8"))[[*rng.permutation(2), 2]]
    image = textures.ramp(np.broadcast_to(y / ground, shape), textures.mute(sky + 0.15 * (tones[0] - sky), 0.9))
    clouds = textures.noise(rng, shape, 2.5, 5, stretch=2)
    image = textures.mix(
        image, np.ones_like(image), 0.75 * textures.step(clouds - 0.62, 0.25) * (1 - y / ground).clip(0, 1)
    )
    greens = textures.colours(("#9dbb86", "#6f9a5b", "#48743f"))
    for i, base in enumerate((0.52, 0.68, 0.84)):
        line = ground * (base + 0.1 * _ridge(rng, width, 2.0 + i))
        rows = textures.noise(rng, shape, 14, 4)
        far = textures.ramp(rows, np.stack([greens[i] * 0.72, greens[i] * 1.1]))
        far = 0.8 * far + 0.2 * tones[1 + i % 3] * (0.6 + 0.5 * rows[..., None])
        line = line - 0.025 * np.abs(_ridge(rng, width, 30)) * (i > 0)
        haze = (0.45, 0.25, 0.05)[i]
        image = textures.mix(image, far + haze * (image - far), textures.step(y - line[None, :], 2.5 / height))
    grass = textures.ramp(textures.noise(rng, shape, 22, 4), np.stack([greens[2] * 0.8, greens[1], greens[0]]))
    flowers = textures.leaves(rng, shape, np.clip(tones[[0, 1, 2]] * 1.25 + 0.1, 0, 1), 0.014, 500)
    dotted = textures.step(textures.noise(rng, shape, 48, 2) - 0.84, 0.05)
    grass = textures.mix(grass, flowers, 0.85 * dotted)
    near = np.clip((y - ground) / (1 - ground + 1e-6), 0, 1)
    floor = textures.step(y - ground + 0.06 + 0.01 * _ridge(rng, width, 6)[None, :], 2.5 / height)
    return textures.mix(image, grass * (1.05 - 0.3 * near[..., None]), floor)


def room(rng: Rng, shape: Shape, tones: np.ndarray, ground: float) -> np.ndarray:
    """A papered wall with pictures and a window, a skirting board, a floor of boards or carpet."""
    height = shape[0]
    _, y = textures.coordinates(shape)
    y = y / y[-1, 0]
    pale = textures.mute(tones, 0.75, 0.75, 0.45)
    paper = (textures.stripes, textures.dots, textures.plaid, textures.leaves, textures.marble)[rng.integers(5)]
    image = textures.grain(rng, paper(rng, shape, pale[[0, 1, 2, 4]]), 0.05)
    light = textures.noise(rng, shape, 1.2, 2)
    image = image * (0.85 + 0.3 * light)[..., None]
    _hang_pictures(rng, image, tones, ground)
    edge = ground - 0.09
    boards = textures.mute(tones[[2, 3, 4]], 0.7, 0.45, 0.6) * 0.6 + 0.4 * textures.colours(
        ("#c79a6b", "#a87a4f", "#8b6242")
    )
    if rng.random() < 0.65:
        floor = textures.planks(rng, shape, boards, rows=rng.uniform(13, 19), length=rng.uniform(5, 9))
    else:
        floor = textures.grain(rng, textures.plaid(rng, shape, textures.mute(tones, 0.8, 0.5, 0.7)), 0.12)
    near = np.clip((y - edge) / (1 - edge), 0, 1)
    floor = floor * (0.72 + 0.4 * near)[..., None]
    image = textures.mix(image, floor, np.broadcast_to(textures.step(y - edge, 2 / height), shape))
    board = textures.step(0.018 - np.abs(y - edge + 0.018), 2 / height)
    shade = 0.8 + 0.2 * np.clip((y - edge + 0.036) / 0.036, 0, 1)
    return textures.mix(image, np.broadcast_to(pale[0] * shade[..., None], image.shape), np.broadcast_to(board, shape))


def _hang_pictures(rng: Rng, image: np.ndarray, tones: np.ndarray, ground: float) -> None:
    """Framed patterns on the wall, in place."""
    height, width = image.shape[:2]
    unit = min(height, width)
    left = rng.uniform(0.02, 0.15) * width
    while left < 0.92 * width:
        w, h = int(unit * rng.uniform(0.14, 0.26)), int(unit * rng.uniform(0.14, 0.26))
        top = int(height * rng.uniform(0.12, max(0.13, ground - 0.55)))
        x = int(left)
        frame = max(2, unit // 60)
        shadow = image[top + 2 * frame : top + h + 2 * frame, x + frame : x + w + frame]
        shadow *= 0.75
        target = image[top : top + h, x : x + w]
        target[:] = tones[-1] * 0.8 + 0.15
        inner = target[frame:-frame, frame:-frame]
        if inner.shape[0] > 8 and inner.shape[1] > 8:
            inner[:] = textures.pattern(rng, inner.shape[:2], tones[rng.permutation(len(tones))[:4]])
        left += w + unit * rng.uniform(0.12, 0.4)


def street(rng: Rng, shape: Shape, tones: np.ndarray, ground: float) -> np.ndarray:
    """Two rows of houses with windows, a pavement and a road."""
    height, width = shape
    x, y = textures.coordinates(shape)
    y = y / y[-1, 0]
    sky = np.stack([tones[1] * 0.4 + np.array([0.35, 0.45, 0.55]), tones[0] * 0.5 + 0.48]).astype(np.float32)
    image = textures.ramp(np.broadcast_to(y / ground, shape), np.clip(sky, 0, 1))
    clouds = textures.noise(rng, shape, 2.0, 5, stretch=2)
    image = textures.mix(image, np.ones_like(image), 0.5 * textures.step(clouds - 0.6, 0.3))
    kerb = int((ground - 0.07) * height)
    for row in range(2):
        left = -int(rng.uniform(0, 0.2) * height)
        while left < width:
            wide = int(height * rng.uniform(0.16, 0.34))
            top = int(height * (rng.uniform(0.1, 0.3) if row == 0 else rng.uniform(0.25, 0.48)))
            a, b = max(left, 0), min(left + wide, width)
            if b - a > 4 and kerb - top > 8:
                house = _house(rng, (kerb - top, b - a), tones, height)
                image[top:kerb, a:b] = house if row else 0.55 * house + 0.45 * sky[1]
            left += wide + int(height * rng.uniform(0, 0.03 if row == 0 else 0.1))
    pavement = textures.planks(rng, shape, textures.mute(tones[[0, 1]], 0.3, 0.6, 0.4), rows=14, length=2.0)
    road = textures.ramp(textures.noise(rng, shape, 60, 3), textures.colours(("#55585e", "#7d8086")))
    line = textures.step(0.006 - np.abs(y - ground - 0.12), 2 / height) * textures.step(((x * 3) % 1) - 0.45, 0.05)
    road = textures.mix(road, np.full_like(road, 0.9), line * 0.8)
    image = textures.mix(image, pavement, np.broadcast_to(textures.step(y - kerb / height, 1.5 / height), shape))
    return textures.mix(image, road, np.broadcast_to(textures.step(y - ground - 0.035, 2 / height), shape))


def _house(rng: Rng, shape: Shape, tones: np.ndarray, height: int) -> np.ndarray:
    """A front with rows of windows: float32 (h, w, 3)."""
    h, w = shape
    wall = textures.mute(tones[rng.integers(1, len(tones))], 0.75, 0.62, 0.7)
    if rng.random() < 0.5:
        front = textures.planks(
            rng, (h, w), np.stack([wall * 0.9, wall * 1.08]), rows=min(h, w) / height * 55, length=2
        )
    else:
        front = textures.grain(rng, np.broadcast_to(wall, (h, w, 3)), 0.08)
    columns = max(1, round(w / height / 0.075))
    rows = max(1, round(h / height / 0.1))
    u = (np.arange(w) + 0.5) / w * columns
    v = (np.arange(h) + 0.5) / h * rows
    lit = textures.ramp(
        rng.random((rows, columns)).astype(np.float32), np.clip(np.stack([tones[-1] * 0.7, tones[3], tones[0]]), 0, 1)
    )
    soft = 1.5 * columns / w
    pane_x, pane_y = np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5)
    inside = textures.step(0.27 - pane_x, soft)[None, :] * textures.step(0.3 - pane_y, soft)[:, None]
    frame = textures.step(0.33 - pane_x, soft)[None, :] * textures.step(0.36 - pane_y, soft)[:, None]
    front = textures.mix(front, np.broadcast_to(wall * 0.4 + 0.55, front.shape), frame)
    glass = lit[np.minimum(v.astype(int), rows - 1)][:, np.minimum(u.astype(int), columns - 1)]
    bars = textures.step(pane_x - 0.02, soft)[None, :] * np.ones((h, 1), np.float32)
    front = textures.mix(front, glass * (0.8 + 0.3 * (v % 1))[:, None, None], inside * bars)
    front[: max(2, h // 40)] *= 0.7
    return np.clip(front, 0, 1)


def sea(rng: Rng, shape: Shape, tones: np.ndarray, ground: float) -> np.ndarray:
    """Under water: light from above, rocks, weeds, sand."""
    height, width = shape
    x, y = textures.coordinates(shape)
    y = y / y[-1, 0]
    blues = textures.colours(("#bfe8e6", "#5fb3c4", "#2b7a9b", "#1d4f73"))
    water = np.clip(y / ground + 0.25 * (textures.noise(rng, shape, 2, 4) - 0.5), 0, 1)
    image = textures.ramp(water, 0.85 * blues + 0.15 * tones[1])
    slant = x + 0.45 * y + 0.05 * textures.noise(rng, shape, 3, 2)
    rays = 0.5 + 0.5 * np.sin(9 * slant + 2 * np.sin(5.3 * slant + rng.uniform(0, 6)))
    image = image + (0.14 * rays**3 * np.clip(1 - 1.2 * y, 0, 1))[..., None]
    for i, base in enumerate((0.62, 0.8)):
        line = ground * (base + 0.22 * _ridge(rng, width, 2.5 + i))
        rock = textures.leaves(rng, shape, textures.mute(tones[1:], 0.7, 0.4, 0.55), 0.05) if i else None
        rough = textures.ramp(textures.noise(rng, shape, 9, 5), np.stack([blues[3] * 0.8, blues[2], tones[2]]))
        rock = rough if rock is None else 0.55 * rough + 0.45 * rock
        image = textures.mix(image, rock + (0.5, 0.2)[i] * (image - rock), textures.step(y - line[None, :], 3 / height))
    sand = textures.ramp(
        np.clip(textures.noise(rng, shape, 10, 5, stretch=3), 0, 1), textures.colours(("#b99a6b", "#dcc391", "#f2e2bb"))
    )
    sand = sand * 0.85 + 0.15 * blues[1]
    edge = ground - 0.03 + 0.03 * _ridge(rng, width, 3)
    return np.clip(textures.mix(image, sand, textures.step(y - edge[None, :], 4 / height)), 0, 1)


def table(rng: Rng, shape: Shape, tones: np.ndarray, ground: float) -> np.ndarray:
    """Seen from above: dead leaves from edge to edge."""
    soft = textures.mute(tones, 0.75, 0.55, 0.7)
    image = textures.leaves(rng, shape, soft, rng.uniform(0.09, 0.2))
    return textures.grain(rng, image, 0.07) * (0.85 + 0.3 * textures.noise(rng, shape, 1.5, 2))[..., None]


def stone(rng: Rng, shape: Shape, tones: np.ndarray, ground: float) -> np.ndarray:
    """Seen from above: marble, boards or woven cloth."""
    soft = textures.mute(tones, 0.7, 0.55, 0.7)
    kind = rng.integers(3)
    if kind == 0:
        image = textures.marble(rng, shape, soft[rng.permutation(6)[:4]])
    elif kind == 1:
        image = textures.planks(rng, shape, soft[[1, 2, 3]], rows=rng.uniform(4, 7), length=rng.uniform(3, 6))
    else:
        image = textures.stripes(rng, shape, soft[rng.permutation(6)[:4]])
    return textures.grain(rng, image, 0.1)


def _ridge(rng: Rng, width: int, bumps: float) -> np.ndarray:
    """A smooth random line (W,) of about unit height."""
    raw = rng.standard_normal(width + 1).astype(np.float32)
    line = gaussian_filter1d(raw, width / bumps / 5, mode="wrap")[:width]
    return line / (np.abs(line).max() + 1e-6)


BACKDROPS: dict[str, Callable[[Rng, Shape, np.ndarray, float], np.ndarray]] = {
    "meadow": meadow,
    "room": room,
    "street": street,
    "sea": sea,
    "table": table,
    "stone": stone,
}
