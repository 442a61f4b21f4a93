"""Backdrops of the synthetic scenes: meadow, room, street, sea, leaves and stone, painted once per clip.

A backdrop is float32 (H, W, 3), sRGB in 0..1, larger than a frame: the camera pans and zooms over it. `ground` is the
row (a share of H) that things stand on; the floor begins above it and reaches down to the lower edge. x is (1, W) in
short sides of the backdrop, y is (H, 1) as a share of H.
"""

import numpy as np
from scipy.ndimage import gaussian_filter1d

from tcore_lib.scenes import textures
from tcore_lib.scenes.textures import Rng, Shape, colours, grain, mix, mute, noise, planks, ramp, step


def _coordinates(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    x, y = textures.coordinates(shape)
    return x, y / y[-1, 0]


def _ridge(rng: Rng, width: int, bumps: float) -> np.ndarray:
    """A smooth random line (W,) of about unit height."""
    raw = rng.standard_normal(width + 1).astype(np.float32)
    line = gaussian_filter1d(raw, width / bumps / 5, mode="wrap")[:width]
    return line / (np.abs(line).max() + 1e-6)


def _sky(rng: Rng, shape: Shape, stops: np.ndarray, ground: float, clouds: float) -> tuple[np.ndarray, np.ndarray]:
    """A sky (H, 1, 3) between the stops, and noise (H, W) for its clouds."""
    return ramp(_coordinates(shape)[1] / ground, stops), noise(rng, shape, clouds, 5, stretch=2)


def meadow(rng: Rng, shape: Shape, tones: np.ndarray, ground: float) -> np.ndarray:
    """Sky with clouds, three ranges of hills with trees, grass with flowers."""
    height, width = shape
    _, y = _coordinates(shape)
    sky = colours(("#7fb2d9", "#a8d0e6", "#f4ecd8"))[[*rng.permutation(2), 2]]
    image, clouds = _sky(rng, shape, mute(sky + 0.15 * (tones[0] - sky), 0.9), ground, 2.5)
    image = mix(image, 1.0, 0.75 * step(clouds - 0.62, 0.25) * (1 - y / ground).clip(0, 1))
    greens = colours(("#9dbb86", "#6f9a5b", "#48743f"))
    for i, (base, haze) in enumerate(((0.52, 0.45), (0.68, 0.25), (0.84, 0.05))):
        line = ground * (base + 0.1 * _ridge(rng, width, 2.0 + i))
        rows = noise(rng, shape, 14, 4)
        far = ramp(rows, np.stack([greens[i] * 0.72, greens[i] * 1.1]))
        far = 0.8 * far + 0.2 * tones[1 + i % 3] * (0.6 + 0.5 * rows[..., None])
        line = line - 0.025 * np.abs(_ridge(rng, width, 30)) * (i > 0)
        image = mix(image, far + haze * (image - far), step(y - line, 2.5 / height))
    grass = ramp(noise(rng, shape, 22, 4), np.stack([greens[2] * 0.8, greens[1], greens[0]]))
    flowers = textures.leaves(rng, shape, np.clip(tones[[0, 1, 2]] * 1.25 + 0.1, 0, 1), 0.014, 500)
    grass = mix(grass, flowers, 0.85 * step(noise(rng, shape, 48, 2) - 0.84, 0.05))
    near = np.clip((y - ground) / (1 - ground + 1e-6), 0, 1)
    floor = step(y - ground + 0.06 + 0.01 * _ridge(rng, width, 6), 2.5 / height)
    return mix(image, grass * (1.05 - 0.3 * near[..., None]), floor)


def room(rng: Rng, shape: Shape, tones: np.ndarray, ground: float) -> np.ndarray:
    """A papered wall with pictures and a window, a skirting board, a floor of boards or carpet."""
    height = shape[0]
    _, y = _coordinates(shape)
    pale = mute(tones, 0.75, 0.75, 0.45)
    paper = (textures.stripes, textures.dots, textures.plaid, textures.leaves, textures.marble)[rng.integers(5)]
    image = grain(rng, paper(rng, shape, pale[[0, 1, 2, 4]]), 0.05)
    image = image * (0.85 + 0.3 * noise(rng, shape, 1.2, 2))[..., None]
    _hang_pictures(rng, image, tones, ground)
    edge = ground - 0.09
    wood = colours(("#c79a6b", "#a87a4f", "#8b6242"))
    boards = mute(tones[[2, 3, 4]], 0.7, 0.45, 0.6) * 0.6 + 0.4 * wood
    if rng.random() < 0.65:
        floor = planks(rng, shape, boards, rows=rng.uniform(13, 19), length=rng.uniform(5, 9))
    else:
        floor = grain(rng, textures.plaid(rng, shape, mute(tones, 0.8, 0.5, 0.7)), 0.12)
    floor = floor * (0.72 + 0.4 * np.clip((y - edge) / (1 - edge), 0, 1))[..., None]
    image = mix(image, floor, step(y - edge, 2 / height))
    board = step(0.018 - np.abs(y - edge + 0.018), 2 / height)
    shade = 0.8 + 0.2 * np.clip((y - edge + 0.036) / 0.036, 0, 1)
    return mix(image, pale[0] * shade[..., None], board)


def _hang_pictures(rng: Rng, image: np.ndarray, tones: np.ndarray, ground: float) -> None:
    """Framed patterns on the wall, in place."""
    height, width = image.shape[:2]
    unit = min(height, width)
    left = rng.uniform(0.02, 0.15) * width
    while left < 0.92 * width:
        w, h = int(unit * rng.uniform(0.14, 0.26)), int(unit * rng.uniform(0.14, 0.26))
        top, x = int(height * rng.uniform(0.12, max(0.13, ground - 0.55))), int(left)
        frame = max(2, unit // 60)
        image[top + 2 * frame : top + h + 2 * frame, x + frame : x + w + frame] *= 0.75  # its shadow
        target = image[top : top + h, x : x + w]
        target[:] = tones[-1] * 0.8 + 0.15
        inner = target[frame:-frame, frame:-frame]
        if min(inner.shape[:2]) > 8:
            inner[:] = textures.pattern(rng, inner.shape[:2], tones[rng.permutation(len(tones))[:4]])
        left += w + unit * rng.uniform(0.12, 0.4)


def street(rng: Rng, shape: Shape, tones: np.ndarray, ground: float) -> np.ndarray:
    """Two rows of houses with windows, a pavement and a road."""
    height, width = shape
    x, y = _coordinates(shape)
    sky = np.stack([tones[1] * 0.4 + np.array([0.35, 0.45, 0.55]), tones[0] * 0.5 + 0.48]).astype(np.float32)
    image, clouds = _sky(rng, shape, np.clip(sky, 0, 1), ground, 2.0)
    image = mix(image, 1.0, 0.5 * step(clouds - 0.6, 0.3))
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
    pavement = planks(rng, shape, mute(tones[[0, 1]], 0.3, 0.6, 0.4), rows=14, length=2.0)
    road = ramp(noise(rng, shape, 60, 3), colours(("#55585e", "#7d8086")))
    line = step(0.006 - np.abs(y - ground - 0.12), 2 / height) * step(((x * 3) % 1) - 0.45, 0.05)
    road = mix(road, 0.9, line * 0.8)
    image = mix(image, pavement, step(y - kerb / height, 1.5 / height))
    return mix(image, road, step(y - ground - 0.035, 2 / height))


def _house(rng: Rng, shape: Shape, tones: np.ndarray, height: int) -> np.ndarray:
    """A front with rows of windows: float32 (h, w, 3)."""
    h, w = shape
    wall = mute(tones[rng.integers(1, len(tones))], 0.75, 0.62, 0.7)
    if rng.random() < 0.5:
        front = planks(rng, shape, np.stack([wall * 0.9, wall * 1.08]), rows=min(h, w) / height * 55, length=2)
    else:
        front = grain(rng, np.broadcast_to(wall, (h, w, 3)), 0.08)
    columns, rows = max(1, round(w / height / 0.075)), max(1, round(h / height / 0.1))
    u, v = (np.arange(w) + 0.5) / w * columns, ((np.arange(h) + 0.5) / h * rows)[:, None]
    light = np.clip(np.stack([tones[-1] * 0.7, tones[3], tones[0]]), 0, 1)
    lit = ramp(rng.random((rows, columns)).astype(np.float32), light)  # a window each
    soft = 1.5 * columns / w
    pane_x, pane_y = np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5)
    inside = step(0.27 - pane_x, soft) * step(0.3 - pane_y, soft)
    frame = step(0.33 - pane_x, soft) * step(0.36 - pane_y, soft)
    front = mix(front, wall * 0.4 + 0.55, frame)
    glass = lit[np.minimum(v.astype(int), rows - 1), np.minimum(u.astype(int), columns - 1)]
    front = mix(front, glass * (0.8 + 0.3 * (v % 1))[..., None], inside * step(pane_x - 0.02, soft))
    front[: max(2, h // 40)] *= 0.7
    return np.clip(front, 0, 1)


def sea(rng: Rng, shape: Shape, tones: np.ndarray, ground: float) -> np.ndarray:
    """Under water: light from above, rocks, weeds, sand."""
    height, width = shape
    x, y = _coordinates(shape)
    blues = colours(("#bfe8e6", "#5fb3c4", "#2b7a9b", "#1d4f73"))
    water = np.clip(y / ground + 0.25 * (noise(rng, shape, 2, 4) - 0.5), 0, 1)
    image = ramp(water, 0.85 * blues + 0.15 * tones[1])
    slant = x + 0.45 * y + 0.05 * noise(rng, shape, 3, 2)
    rays = 0.5 + 0.5 * np.sin(9 * slant + 2 * np.sin(5.3 * slant + rng.uniform(0, 6)))
    image = image + (0.14 * rays**3 * np.clip(1 - 1.2 * y, 0, 1))[..., None]
    for i, (base, haze) in enumerate(((0.62, 0.5), (0.8, 0.2))):
        line = ground * (base + 0.22 * _ridge(rng, width, 2.5 + i))
        weed = textures.leaves(rng, shape, mute(tones[1:], 0.7, 0.4, 0.55), 0.05) if i else None
        rock = ramp(noise(rng, shape, 9, 5), np.stack([blues[3] * 0.8, blues[2], tones[2]]))
        if weed is not None:
            rock = 0.55 * rock + 0.45 * weed
        image = mix(image, rock + haze * (image - rock), step(y - line, 3 / height))
    sand = ramp(np.clip(noise(rng, shape, 10, 5, stretch=3), 0, 1), colours(("#b99a6b", "#dcc391", "#f2e2bb")))
    sand = sand * 0.85 + 0.15 * blues[1]
    edge = ground - 0.03 + 0.03 * _ridge(rng, width, 3)
    return np.clip(mix(image, sand, step(y - edge, 4 / height)), 0, 1)


def tabletop(rng: Rng, shape: Shape, tones: np.ndarray, ground: float) -> np.ndarray:
    """Seen from above: dead leaves from edge to edge."""
    image = textures.leaves(rng, shape, mute(tones, 0.75, 0.55, 0.7), rng.uniform(0.09, 0.2))
    return grain(rng, image, 0.07) * (0.85 + 0.3 * noise(rng, shape, 1.5, 2))[..., None]


def stone(rng: Rng, shape: Shape, tones: np.ndarray, ground: float) -> np.ndarray:
    """Seen from above: marble, boards or woven cloth."""
    soft = mute(tones, 0.7, 0.55, 0.7)
    kind = rng.integers(3)
    if kind == 1:
        image = planks(rng, shape, soft[[1, 2, 3]], rows=rng.uniform(4, 7), length=rng.uniform(3, 6))
    else:
        image = (textures.stripes if kind else textures.marble)(rng, shape, soft[rng.permutation(6)[:4]])
    return grain(rng, image, 0.1)


BACKDROPS = {"meadow": meadow, "room": room, "street": street, "sea": sea, "table": tabletop, "stone": stone}
