"""Patterns of the synthetic scenes and the palettes they come in; the backdrops painted with them, once per clip.

Patterns and backdrops are float32 (H, W, 3), sRGB in 0..1; lengths are in short sides of the picture, so that it looks the
same at every resolution. A backdrop is larger than a frame: the camera pans and zooms over it. `ground` is the row (a share
of H) that things stand on; the floor begins above it and reaches down to the lower edge; y is a share of H there.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter1d

Rng = np.random.Generator
Shape = tuple[int, int]

# Six colours each, from light to dark with one or two accents; a scene keeps to one of them.
PALETTES = (
    ("#f4e9cd", "#e8b44f", "#d9663b", "#8a3033", "#4f6d44", "#2f3e46"),
    ("#e9f1f4", "#a8cfd8", "#4b8ea8", "#22577a", "#f2b880", "#c8553d"),
    ("#f3f2d8", "#c9d99e", "#7fa650", "#3f6b43", "#e6a54a", "#b5483a"),
    ("#fde2e4", "#f5a6b8", "#c8619b", "#6a4c93", "#8ac4d0", "#f7d08a"),
    ("#f7e3c6", "#e3b27c", "#c67b4e", "#8c4a32", "#5d737e", "#31465a"),
    ("#eef3f7", "#c4d7e6", "#86a8c8", "#4d6f94", "#b65f5f", "#2d3a4f"),
    ("#e6e2c3", "#a9b388", "#6b8f5e", "#345e45", "#d08c4a", "#7a3e2b"),
    ("#f6d7c3", "#eb9f8b", "#b8627d", "#6b4a7a", "#3a3c63", "#f2c76e"),
    ("#e8f6ef", "#93d3c1", "#2f9c95", "#1c5d66", "#f4a259", "#e4572e"),
    ("#f1e4c8", "#e0a53b", "#cf5a36", "#7b9a8c", "#3d6772", "#452f3d"),
)


def colours(codes: Sequence[str]) -> np.ndarray:
    """`#rrggbb` codes -> float32 (n, 3) in 0..1."""
    return np.array([[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in codes], np.float32) / 255


def palette(rng: Rng) -> np.ndarray:
    """One of `PALETTES`, slightly shifted in colour: float32 (6, 3)."""
    chosen = colours(PALETTES[rng.integers(len(PALETTES))])
    return np.clip(chosen * rng.uniform(0.93, 1.05, 3).astype(np.float32), 0, 1)


def mute(colour: np.ndarray, saturation: float, towards: float = 0.6, contrast: float = 1.0) -> np.ndarray:
    """Take saturation and contrast away, for what should stay in the background."""
    grey = colour.mean(-1, keepdims=True)
    return np.clip((grey + (colour - grey) * saturation - towards) * contrast + towards, 0, 1).astype(np.float32)


def coordinates(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Places of the pixels, x as (1, W) and y as (H, 1), in short sides from the upper left corner."""
    x, y = ((np.arange(side, dtype=np.float32) + 0.5) / min(shape) for side in shape[::-1])
    return x[None, :], y[:, None]


def noise(rng: Rng, shape: Shape, cells: float, octaves: int = 5, stretch: float = 1.0) -> np.ndarray:
    """Fractal noise: octaves of smooth random grids, each twice as fine and half as strong.

    The first octave has `cells` along the short side; octaves finer than two pixels are left out. `stretch` draws it out
    horizontally. Returns float32 (H, W) in 0..1, mean 0.5, standard deviation about 0.2.
    """
    height, width = shape
    total = np.zeros((1, 1), np.float32)
    for octave in range(octaves):
        fine = cells / min(shape) * 2**octave
        size = (max(2, round(width * fine / stretch)) + 1, max(2, round(height * fine)) + 1)
        if octave and size[1] > height // 2:
            break
        grid = rng.standard_normal(size[::-1], np.float32) * 0.5**octave
        # A coarse octave is enlarged step by step: one resize to the full size instead of one per octave.
        total = grid + _resize(total, size)
    total = _resize(total, (width, height))
    return np.clip(0.5 + 0.2 * (total - total.mean()) / (total.std() + 1e-6), 0, 1)


def _resize(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC))


def ramp(values: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Values in 0..1 (H, W) -> colours between the stops (n, 3): (H, W, 3)."""
    places = np.linspace(0, len(stops) - 1, 512)
    low = np.minimum(places.astype(int), len(stops) - 2)
    share = (places - low)[:, None]
    colour = (stops[low] * (1 - share) + stops[low + 1] * share).astype(np.float32)
    return colour[np.clip(values * 511, 0, 511).astype(np.int32)]


def step(values: np.ndarray, width: float) -> np.ndarray:
    """0 below -width/2, 1 above width/2, straight in between: an edge without jaggies."""
    return np.clip(values / width + 0.5, 0, 1)


def mix(below: np.ndarray, above: np.ndarray | float, share: np.ndarray) -> np.ndarray:
    """Blend `above` over `below` by a share (H, W) in 0..1; all three may be narrower where they are the same throughout."""
    return below + (above - below) * share[..., None]


def grain(rng: Rng, image: np.ndarray, strength: float = 0.08, cells: float = 24) -> np.ndarray:
    """Multiply fine noise onto a pattern, so that no surface is flat."""
    return np.clip(image * (1 + strength * 4 * (noise(rng, image.shape[:2], cells, 3) - 0.5))[..., None], 0, 1)


def bands(phase: np.ndarray, stops: np.ndarray, soft: float) -> np.ndarray:
    """Periodic bands: phase (H, W) in bands -> colour n at n..n+1, edges `soft` bands wide."""
    index = np.floor(phase).astype(np.int32) % len(stops)
    share = np.clip((phase % 1 - 1 + soft) / soft, 0, 1)
    return mix(stops[index], stops[(index + 1) % len(stops)], share)


def marble(rng: Rng, shape: Shape, tones: np.ndarray) -> np.ndarray:
    """Veins: a ramp through noise bent by other noise."""
    x, y = coordinates(shape)
    bent = noise(rng, shape, rng.uniform(1.5, 3.5), 5)
    wave = 0.5 + 0.5 * np.sin(6 * (x * rng.normal() + y * rng.normal()) + 14 * bent)
    return ramp(0.65 * wave + 0.35 * noise(rng, shape, 6, 4), tones)


def stripes(rng: Rng, shape: Shape, tones: np.ndarray) -> np.ndarray:
    """Stripes at any angle, straight or wavy."""
    x, y = coordinates(shape)
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(7, 16)
    wobble = rng.choice([0.0, 0.6, 2.5]) * noise(rng, shape, 2, 2)
    phase = frequency * (x * np.cos(angle) + y * np.sin(angle)) + wobble
    return bands(phase.astype(np.float32), tones, max(0.08, 1.5 * frequency / min(shape)))


def plaid(rng: Rng, shape: Shape, tones: np.ndarray) -> np.ndarray:
    """Two sets of bands laid over one another."""
    x, y = coordinates(shape)
    frequency = rng.uniform(5, 9)
    soft = max(0.08, 1.5 * frequency / min(shape))
    order = tones[rng.permutation(len(tones))]
    across, down = bands(frequency * x, order, soft), bands(frequency * y, order, soft)
    thin = step(np.abs((frequency * x / 2 + frequency * y / 2) % 1 - 0.5) - 0.44, 0.08)
    return mix(0.5 * across + 0.5 * down, tones[0], 0.5 * thin)


def dots(rng: Rng, shape: Shape, tones: np.ndarray) -> np.ndarray:
    """A hexagonal lattice of dots; each has one of the tones, the ground is another."""
    x, y = coordinates(shape)
    pitch = 1 / rng.uniform(5, 9)
    row = np.floor(y / pitch)
    shifted = x / pitch + 0.5 * (row % 2)
    column = np.floor(shifted)
    distance = np.hypot(shifted - column - 0.5, y / pitch - row - 0.5)
    spot = tones[rng.integers(1, len(tones), (16, 16))][row.astype(int) % 16, column.astype(int) % 16]
    inside = step(rng.uniform(0.26, 0.38) - distance, 1.6 / (pitch * min(shape)))
    return mix(tones[0], spot, inside)


def planks(rng: Rng, shape: Shape, tones: np.ndarray, rows: float = 6, length: float = 3.0) -> np.ndarray:
    """Boards or bricks: rows of shifted rectangles of slightly different colours with dark joints."""
    x, y = coordinates(shape)
    v = y * rows
    row = np.floor(v).astype(int)
    shift = rng.random(64) if length > 2.5 else 0.5 * (np.arange(64) % 2)
    u = x * rows / length + shift[row % 64]
    column = np.floor(u).astype(int)
    tone = ramp(rng.random((64, 64), np.float32), tones)[row % 64, column % 64]
    edge = np.minimum(np.minimum(v % 1, 1 - v % 1), np.minimum(u % 1, 1 - u % 1) * length)
    streaks = noise(rng, shape, 8, 4, stretch=6 if length > 2.5 else 1)
    lit = (0.55 + 0.45 * step(edge - 0.05, max(0.06, 2 * rows / min(shape)))) * (0.85 + 0.3 * streaks)
    return np.clip(tone * lit[..., None], 0, 1).astype(np.float32)


def leaves(rng: Rng, shape: Shape, tones: np.ndarray, largest: float = 0.16, count: int | None = None) -> np.ndarray:
    """Dead leaves: shapes of many sizes dropped on one another until nothing else is seen."""
    height, width = shape
    short = min(shape)
    fine = 2 if max(shape) < 700 else 1
    sheet = Image.new("RGB", (width * fine, height * fine), tuple((tones[-1] * 150).astype(int).tolist()))
    draw = ImageDraw.Draw(sheet)
    count = count or int(np.clip(9 * height * width / (largest * short) ** 2, 60, 1500))
    sizes = np.sort(largest * rng.power(1.6, count) * 0.9 + 0.012)[::-1]
    # Large ones first, so that small ones stay visible; a little disorder keeps occlusion going both ways.
    sizes = sizes[np.argsort(np.arange(count) + rng.uniform(0, 0.45 * count, count))]
    theta = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    lobes, wave, angle, slim = rng.integers(2, 6, count), rng.choice([0, 0.2, 0.3], count), *rng.random((2, count))
    radius = (sizes * short)[:, None] * (1 + wave[:, None] * np.cos(lobes[:, None] * theta))
    angle, slim = 2 * np.pi * angle[:, None], 0.45 + 0.55 * slim[:, None]
    u, v = radius * np.cos(theta), radius * slim * np.sin(theta)
    outlines = np.stack([u * np.cos(angle) - v * np.sin(angle), u * np.sin(angle) + v * np.cos(angle)], -1)
    centres = rng.random((count, 1, 2)) * (width, height)
    tone = tones[rng.integers(len(tones), size=count)] * rng.uniform(0.8, 1.12, (count, 1))
    coats = []
    # Each leaf: a dark edge, its own colour, a lighter spot towards the light.
    for scale, light, offset in ((1.0, 0.72, 0.05), (0.92, 1.0, 0.0), (0.5, 1.1, -0.12)):
        points = (centres + outlines * scale + offset * short * sizes[:, None, None]) * fine
        fill = np.clip(tone * light * 255, 0, 255).astype(int)
        coats.append((points.reshape(count, -1).tolist(), fill.tolist()))
    for i in range(count):
        for polygons, fills in coats:
            draw.polygon(polygons[i], fill=tuple(fills[i]))
    return np.asarray(sheet.reduce(fine), np.float32) / 255


def knit(rng: Rng, shape: Shape, tones: np.ndarray) -> np.ndarray:
    """Wool: rows of small V stitches over broad bands."""
    x, y = coordinates(shape)
    pitch = rng.uniform(22, 30)
    bend = np.abs((x * pitch) % 1 - 0.5)
    ridge = 0.5 + 0.5 * np.cos(2 * np.pi * (y * pitch * 0.8 + bend))
    base = bands(y * rng.uniform(4, 8), tones, 0.25)
    return base * (0.8 + 0.25 * ridge)[..., None]


PATTERNS: tuple[Callable[[Rng, Shape, np.ndarray], np.ndarray], ...] = (marble, stripes, plaid, dots, leaves, knit)


def pattern(rng: Rng, shape: Shape, tones: np.ndarray) -> np.ndarray:
    """A random one of `PATTERNS`, with grain."""
    return grain(rng, PATTERNS[int(rng.integers(len(PATTERNS)))](rng, shape, tones), 0.06)


# ---- backdrops -------------------------------------------------------------------------------------------------------


def _shares(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    x, y = coordinates(shape)
    return x, y / y[-1, 0]


def _ridge(rng: Rng, width: int, bumps: float) -> np.ndarray:
    """A smooth random line (W,) of about unit height."""
    raw = rng.standard_normal(width + 1).astype(np.float32)
    line = gaussian_filter1d(raw, width / bumps / 5, mode="wrap")[:width]
    return line / (np.abs(line).max() + 1e-6)


def meadow(rng: Rng, shape: Shape, tones: np.ndarray, ground: float) -> np.ndarray:
    """Sky with clouds, three ranges of hills with trees, grass with flowers."""
    height, width = shape
    _, y = _shares(shape)
    sky = colours(("#7fb2d9", "#a8d0e6", "#f4ecd8"))[[*rng.permutation(2), 2]]
    image = ramp(y / ground, mute(sky + 0.15 * (tones[0] - sky), 0.9))
    clouds = noise(rng, shape, 2.5, 5, stretch=2)
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
    flowers = leaves(rng, shape, np.clip(tones[[0, 1, 2]] * 1.25 + 0.1, 0, 1), 0.014, 500)
    grass = mix(grass, flowers, 0.85 * step(noise(rng, shape, 48, 2) - 0.84, 0.05))
    near = np.clip((y - ground) / (1 - ground + 1e-6), 0, 1)
    floor = step(y - ground + 0.06 + 0.01 * _ridge(rng, width, 6), 2.5 / height)
    return mix(image, grass * (1.05 - 0.3 * near[..., None]), floor)


def room(rng: Rng, shape: Shape, tones: np.ndarray, ground: float) -> np.ndarray:
    """A papered wall with pictures and a window, a skirting board, a floor of boards or carpet."""
    height, width = shape
    _, y = _shares(shape)
    pale = mute(tones, 0.75, 0.75, 0.45)
    paper = (stripes, dots, plaid, leaves, marble)[rng.integers(5)]
    image = grain(rng, paper(rng, shape, pale[[0, 1, 2, 4]]), 0.05)
    image = image * (0.85 + 0.3 * noise(rng, shape, 1.2, 2))[..., None]
    unit = min(shape)
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
            inner[:] = pattern(rng, inner.shape[:2], tones[rng.permutation(len(tones))[:4]])
        left += w + unit * rng.uniform(0.12, 0.4)
    edge = ground - 0.09
    wood = colours(("#c79a6b", "#a87a4f", "#8b6242"))
    boards = mute(tones[[2, 3, 4]], 0.7, 0.45, 0.6) * 0.6 + 0.4 * wood
    if rng.random() < 0.65:
        floor = planks(rng, shape, boards, rows=rng.uniform(13, 19), length=rng.uniform(5, 9))
    else:
        floor = grain(rng, plaid(rng, shape, mute(tones, 0.8, 0.5, 0.7)), 0.12)
    floor = floor * (0.72 + 0.4 * np.clip((y - edge) / (1 - edge), 0, 1))[..., None]
    image = mix(image, floor, step(y - edge, 2 / height))
    board = step(0.018 - np.abs(y - edge + 0.018), 2 / height)
    shade = 0.8 + 0.2 * np.clip((y - edge + 0.036) / 0.036, 0, 1)
    return mix(image, pale[0] * shade[..., None], board)


def street(rng: Rng, shape: Shape, tones: np.ndarray, ground: float) -> np.ndarray:
    """Two rows of houses with windows, a pavement and a road."""
    height, width = shape
    x, y = _shares(shape)
    sky = np.stack([tones[1] * 0.4 + np.array([0.35, 0.45, 0.55]), tones[0] * 0.5 + 0.48]).astype(np.float32)
    image, clouds = ramp(y / ground, np.clip(sky, 0, 1)), noise(rng, shape, 2.0, 5, stretch=2)
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
    x, y = _shares(shape)
    blues = colours(("#bfe8e6", "#5fb3c4", "#2b7a9b", "#1d4f73"))
    water = np.clip(y / ground + 0.25 * (noise(rng, shape, 2, 4) - 0.5), 0, 1)
    image = ramp(water, 0.85 * blues + 0.15 * tones[1])
    slant = x + 0.45 * y + 0.05 * noise(rng, shape, 3, 2)
    rays = 0.5 + 0.5 * np.sin(9 * slant + 2 * np.sin(5.3 * slant + rng.uniform(0, 6)))
    image = image + (0.14 * rays**3 * np.clip(1 - 1.2 * y, 0, 1))[..., None]
    for i, (base, haze) in enumerate(((0.62, 0.5), (0.8, 0.2))):
        line = ground * (base + 0.22 * _ridge(rng, width, 2.5 + i))
        weed = leaves(rng, shape, mute(tones[1:], 0.7, 0.4, 0.55), 0.05) if i else None
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
    image = leaves(rng, shape, mute(tones, 0.75, 0.55, 0.7), rng.uniform(0.09, 0.2))
    return grain(rng, image, 0.07) * (0.85 + 0.3 * noise(rng, shape, 1.5, 2))[..., None]


def stone(rng: Rng, shape: Shape, tones: np.ndarray, ground: float) -> np.ndarray:
    """Seen from above: marble, boards or woven cloth."""
    soft = mute(tones, 0.7, 0.55, 0.7)
    kind = rng.integers(3)
    if kind == 1:
        image = planks(rng, shape, soft[[1, 2, 3]], rows=rng.uniform(4, 7), length=rng.uniform(3, 6))
    else:
        image = (stripes if kind else marble)(rng, shape, soft[rng.permutation(6)[:4]])
    return grain(rng, image, 0.1)


BACKDROPS = {"meadow": meadow, "room": room, "street": street, "sea": sea, "table": tabletop, "stone": stone}
