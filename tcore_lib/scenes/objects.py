"""The things of the synthetic scenes, each textured anew: what they look like, and how they move.

An object is drawn within a circle of about one unit (its radius); a path says where that circle goes. Objects of
several pieces (a bird's wings, a car's wheels) are several layers with one owner.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tcore_lib.scenes.layers import Bounds, Layer, Sprite, World, cut, ellipse, mirrored, sheet, turned
from tcore_lib.scenes.textures import Rng, Shape, mix, pattern, step

Number = np.ndarray | float


@dataclass(frozen=True)
class Path:
    """An object's way through a clip."""

    centre: np.ndarray  # (N, 2) world position
    angle: np.ndarray  # (N,) radians, clockwise in the picture
    scale: np.ndarray  # (N, 2) of its own axes; a negative x faces left
    depth: np.ndarray  # (N,) larger is nearer to the viewer
    phase: np.ndarray  # (N,) radians of its inner motion: a fish's tail, a bird's wings, a car's wheels

    def axes(self, radius: float) -> np.ndarray:
        """(N, 2, 2) world vectors of the object's units, as columns."""
        return radius * turned(self.angle) * self.scale[:, None, :]

    def at(self, radius: float, x: float, y: float) -> np.ndarray:
        """World position (N, 2) of a point of the object."""
        return self.centre + np.einsum("nij,j->ni", self.axes(radius), [x, y])


def _path(
    x: np.ndarray, y: Number, depth: Number, phase: np.ndarray, angle: Number = 0.0, stretch: Any = (1.0, 1.0)
) -> Path:
    """A path of parts that may be constants."""
    x, y, depth, phase, angle, wide, tall = np.broadcast_arrays(x, y, depth, phase, angle, *stretch)
    return Path(np.stack([x, y], -1), angle, np.stack([wide, tall], -1), depth, phase)


def _hopping(beat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height 0..1 of a hop and how flat the thing is pressed at its lowest points."""
    hop = np.abs(np.sin(beat))
    return hop, 0.25 * np.exp(-hop / 0.12)


def pass_by(world: World, shape: str, start: float, velocity: float, radius: float, front: bool) -> Path:
    """The way of something that passes a figure, before it (`front`) or behind it, from world x `start` at time 0.

    Cars drive, birds and balloons fly, everything else hops; `velocity` in world units per second.
    """
    rng, ground, x = world.rng, world.ground, start + velocity * world.times
    beat = rng.uniform(3.5, 5) * world.times + rng.uniform(0, 6)
    depth, side = 3.0 if front else 1.0, float(np.sign(velocity))
    if shape == "car":
        lane = ground + (0.1 if front else -0.02)
        wheels = (x - start) / (0.29 * radius)
        return _path(x, lane - 0.66 * radius, depth, wheels, 0.01 * np.sin(3 * beat), (side, 1.0))
    if shape in ("bird", "balloon"):
        y = rng.uniform(-0.3, -0.12) + 0.05 * np.sin(0.6 * beat)
        return _path(x, y, depth, beat, 0.12 * np.sin(0.6 * beat + 1), (side if shape == "bird" else 1.0, 1.0))
    hop, flat = _hopping(0.75 * beat)
    y = ground + (0.1 if front else 0.0) - radius * (1 - flat) - rng.uniform(0.18, 0.32) * hop
    return _path(x, y, depth, beat, 0.2 * np.sin(beat) * (shape == "blob"), (1 + 0.8 * flat, 1 - flat))


def crossing(world: World, kind: str, shape: str, place: tuple[int, int], slot: float, radius: float) -> Path:
    """The way of object `place` = (i, count) of a scene without a figure; the ways cross one another.

    `kind` is the kind of motion, `slot` where it starts, from -1/2 to 1/2 of the width that they share.
    """
    (i, count), rng, ground, times = place, world.rng, world.ground, world.times
    width = min(world.aspect, 1.8) - 0.35
    slot = slot * width
    tempo, phase = rng.uniform(0.8, 1.25), rng.uniform(0, 2 * np.pi)
    beat = 4.2 * tempo * times + phase
    if kind == "orbiting":
        around = 2 * np.pi * i / count + 0.9 * times
        near = 1 + 0.22 * np.sin(around)
        ring = 0.3 * width + 0.08  # seen from the side: who comes round in front hides who is behind
        spin = (1 - 2 * (i % 2)) * 0.7 * tempo * times + phase
        return _path(ring * np.cos(around), 0.13 * np.sin(around), 1 + np.sin(around), beat, spin, (near, near))
    if kind == "spinning":
        x = slot + 0.12 * (np.sin(0.5 * beat) - np.sin(0.5 * phase))
        y = rng.uniform(-0.24, 0.24) + 0.04 * np.sin(0.4 * beat)
        size = 1.25 + 0.15 * np.sin(0.5 * beat)
        return _path(x, y, 1.0 + i, beat, (1 - 2 * (i % 2)) * 1.3 * tempo * times + phase, (size, size))
    # To the other side of the scene and back, under way already at time 0.
    far = -np.sign(slot + 1e-6) * rng.uniform(0.4, 0.65) * width
    begin = rng.uniform(0.35, 0.8)
    swing = 0.95 * tempo * times + begin
    x = slot + far * 0.5 * (np.cos(begin) - np.cos(swing))
    # It looks where it goes and turns about through a narrow view, never through nothing.
    turn = np.tanh(4 * np.sign(far) * np.sin(swing))
    ahead = np.where(np.abs(turn) < 0.12, np.where(turn < 0, -0.12, 0.12), turn)
    high = (i + 0.5) / count
    if kind == "swimming":
        y = -0.32 + 0.6 * high + rng.uniform(-0.05, 0.05) + 0.06 * np.sin(0.4 * beat)
        return _path(x, y, 1.0 + i, -1.6 * beat, 0.12 * np.sin(0.4 * beat + 1.5), (ahead, 1.0))
    if kind == "drifting":
        y = -0.3 + 0.5 * high + 0.1 * np.sin(0.3 * beat)
        tilt = 0.8 * np.sin(0.4 * beat) if shape == "leaf" else 0.15 * np.sin(0.35 * beat)
        return _path(x, y, 1.0 + i, beat, tilt, (ahead if shape == "bird" else 1.0, 1.0))
    if kind == "rolling":
        lane = ground - 0.02 + 0.09 * high
        if shape == "car":
            wheels = (x - slot) / (0.29 * radius)
            return _path(x, lane - 0.66 * radius, 1.0 + i, wheels, 0.012 * np.sin(3 * beat))
        return _path(x, lane - radius, 1.0 + i, beat, (x - slot) / radius)
    # Bouncing. What spins keeps its shape; a blob is pressed flat against the floor.
    hop, flat = _hopping(0.8 * beat)
    flat = flat * (shape == "blob")
    y = ground + 0.03 * i - radius * (1 - flat) - rng.uniform(0.25, 0.5) * hop
    spin = 0.2 * np.sin(beat) if shape == "blob" else 0.5 * (x - slot) / radius
    return _path(x, y, 1.0 + i, beat, spin, (1 + 0.8 * flat, 1 - flat))


# ---- what they look like ---------------------------------------------------------------------------------------------


def _outline(rng: Rng, shape: str) -> list[np.ndarray]:
    """Polygons (k, 2) whose union is the shape, within about one unit of the origin."""
    a = np.linspace(0, 2 * np.pi, 144, endpoint=False)
    # Every shape draws for all: the random numbers after it do not depend on it.
    teeth, petals = rng.integers(7, 11), rng.integers(5, 8)
    two, deep, three = rng.uniform(0, 6), rng.uniform(0.5, 1), rng.uniform(0, 6)
    radius = {
        "ball": np.ones_like(a),
        "star": 0.74 + 0.26 * np.cos(5 * a),
        "gear": 0.88 + 0.1 * np.tanh(4 * np.cos(teeth * a)),
        "donut": np.ones_like(a),
        "flower": 0.72 + 0.28 * np.abs(np.cos(petals * a / 2)) ** 0.7,
        "blob": 0.8 + 0.16 * np.sin(2 * a + two) * deep + 0.1 * np.sin(3 * a + three),
    }.get(shape)
    if radius is not None:
        return [np.stack([radius * np.sin(a), -radius * np.cos(a)], 1)]
    if shape == "heart":
        y = -(13 * np.cos(a) - 5 * np.cos(2 * a) - 2 * np.cos(3 * a) - np.cos(4 * a))
        return [np.stack([16 * np.sin(a) ** 3, y], 1) / 17]
    if shape == "leaf":
        x = np.linspace(-1, 1, 50)
        half = 0.5 * np.sin(np.pi * (x + 1) / 2) ** 0.75 * (1 - 0.25 * x)
        return [mirrored(x, half), np.array([[-1.2, -0.03], [-0.9, -0.04], [-0.9, 0.04], [-1.2, 0.03]])]
    if shape == "fish":
        x = np.linspace(-0.75, 1, 50)
        half = 0.52 * np.sin(np.pi * ((x + 0.75) / 1.75) ** 0.75) ** 0.8 + 0.07 * (1 - x) / 1.75
        tail = np.array(
            [[-0.6, 0.0], [-0.85, -0.32], [-1.15, -0.52], [-1.0, -0.1], [-1.0, 0.1], [-1.15, 0.52], [-0.85, 0.32]]
        )
        fin = np.array([[-0.3, -0.4], [-0.35, -0.72], [0.05, -0.7], [0.45, -0.4]])
        return [mirrored(x, half), tail, fin, np.array([[-0.1, 0.4], [-0.3, 0.72], [-0.05, 0.7], [0.3, 0.42]])]
    if shape == "bird":
        beak = np.array([[0.9, -0.34], [1.2, -0.2], [0.9, -0.12]])
        tail = np.array([[-0.6, -0.05], [-1.15, -0.3], [-1.2, -0.08], [-1.1, 0.12], [-0.6, 0.2]])
        return [ellipse(0.75, 0.4, -0.05, 0.05), ellipse(0.36, 0.34, 0.62, -0.25), beak, tail]
    if shape == "balloon":
        y = np.linspace(-1, 0.95, 60)
        tip = np.clip((y + 0.15) / 1.1, 0, 1) ** 1.15
        half = 0.8 * np.sqrt(np.clip(1 - np.where(y < -0.15, (y + 0.15) / 0.85, tip) ** 2, 0, 1))
        knot = np.array([[-0.03, 0.9], [0.03, 0.9], [0.12, 1.08], [-0.12, 1.08]])
        return [mirrored(y, half, upright=True), knot]
    x = np.array([-1.15, -1.1, -0.75, -0.5, 0.3, 0.65, 1.05, 1.18, 1.16, -1.14])  # a car
    y = np.array([0.1, -0.12, -0.18, -0.52, -0.55, -0.18, -0.1, 0.08, 0.36, 0.36])
    return [_rounded(np.stack([x, y], 1))]


def _rounded(points: np.ndarray, rounds: int = 3) -> np.ndarray:
    """Cut the corners of a polygon (Chaikin), `rounds` times."""
    for _ in range(rounds):
        ahead = np.roll(points, -1, 0)
        points = np.stack([0.8 * points + 0.2 * ahead, 0.2 * points + 0.8 * ahead], 1).reshape(-1, 2)
    return points


def object_layers(world: World, shape: str, radius: float, path: Path, owner: int) -> list[Layer]:
    """Layers of one object: its shape, of a radius in world units, on its way; `owner` is its id."""
    rng, pixels = world.rng, max(8.0, 1.2 * world.resolution * radius)  # per unit
    # Three or four of the scene's colours, the darkest and lightest among them: things look alike on purpose.
    order = world.tones[np.argsort(world.tones.sum(1))]
    middle = order[1:5][rng.permutation(4)[: rng.integers(1, 3)]]
    tones = np.concatenate([order[-1:], middle, order[:1]])[rng.permutation(len(middle) + 2)]
    shapes = _outline(rng, shape)
    size, bounds = sheet(shapes, pixels, 0.28 if shape in ("fish", "leaf", "blob") else 0.16)
    holes = {"donut": [ellipse(0.4, 0.4)], "gear": [ellipse(0.22, 0.22)]}.get(shape, [])
    bevel = {"ball": 0.9, "balloon": 0.8, "leaf": 0.2, "gear": 0.16, "star": 0.35, "donut": 0.5}.get(shape, 0.4)
    sprite = cut(_texture(rng, shape, tones, size, bounds, pixels), shapes, bounds, bevel, holes=holes, rim=0.28)
    wave = {"fish": (0.16, 2.6, 2.2 * path.phase), "leaf": (0.2, 2.2, path.phase), "blob": (0.14, 3.2, path.phase)}
    shadow = (0.14 * radius, 0.2 * radius, 0.4)
    body = Layer(sprite, path.centre, path.axes(radius), path.depth, owner, wave=wave.get(shape), shadow=shadow)
    extra = {"bird": _wings, "car": _wheels, "balloon": _string}.get(shape)
    return [body] + (extra(rng, tones, radius, path, owner, pixels) if extra else [])


def _texture(rng: Rng, shape: str, tones: np.ndarray, size: Shape, bounds: Bounds, pixels: float) -> np.ndarray:
    """A pattern with what makes the shape recognisable painted on: eyes, windows, veins."""
    image = pattern(rng, size, tones)
    x = bounds[0] + (np.arange(size[1]) + 0.5)[None, :] / pixels
    y = bounds[1] + (np.arange(size[0]) + 0.5)[:, None] / pixels
    soft = 1.5 / pixels

    def spot(at_x: float, at_y: float, r: float, colour: float | np.ndarray) -> None:
        nonlocal image
        image = mix(image, np.broadcast_to(colour, (3,)), step(r - np.hypot(x - at_x, y - at_y), soft))

    if shape in ("blob", "star", "flower"):
        for side in (-0.2, 0.2):
            spot(side, -0.12, 0.15, 1.0)
            spot(side + 0.03, -0.1, 0.075, 0.06)
        smile = step(0.035 - np.abs(np.hypot(x, y - 0.08) - 0.2), soft) * (y > 0.16)
        image = mix(image, np.full(3, 0.08), smile)
    elif shape == "fish":
        image = mix(image, np.ones(3), 0.35 * step(y - 0.15, 0.4))
        gill = step(0.03 - np.abs(np.hypot(x - 0.75, y) - 0.42), soft) * (x < 0.55) * (np.abs(y) < 0.3)
        image = mix(image, tones[-1] * 0.5, gill)
        spot(0.62, -0.12, 0.14, 1.0)
        spot(0.66, -0.12, 0.075, 0.05)
    elif shape == "bird":
        head = step(0.4 - np.hypot(x - 0.62, y + 0.25), 0.1)
        image = mix(image, np.clip(tones[0] * 1.05, 0, 1), 0.8 * head)
        image = mix(image, np.array([0.95, 0.62, 0.15]), step(x - 0.93, soft))
        spot(0.72, -0.32, 0.1, 1.0)
        spot(0.74, -0.32, 0.055, 0.05)
    elif shape == "car":
        window = np.maximum(np.abs(y + 0.31) - 0.12, np.abs(x + 0.1) - 0.36 - 0.35 * (y + 0.31))
        glass = step(0.02 - window, soft)
        pillar = 1 - step(0.035 - np.abs(x + 0.1), soft)
        image = mix(image, np.array([0.68, 0.84, 0.92]), glass * pillar)
        spot(1.02, 0.06, 0.09, np.array([1.0, 0.93, 0.65]))
        for axle in (-0.62, 0.62):
            spot(axle, 0.38, 0.36, 0.08)
    elif shape == "leaf":
        vein = np.minimum(np.abs(y), np.abs(((x - np.abs(y) * 0.9) * 4) % 1 - 0.5) / 4)
        image = mix(image, tones[0], 0.7 * step(0.018 - vein, soft))
    return image.astype(np.float32)


def _piece(rng: Rng, tones: np.ndarray, polygon: np.ndarray, pixels: float, bevel: float) -> Sprite:
    """A patterned cut-out of one polygon."""
    size, bounds = sheet([polygon], pixels, 0.1)
    return cut(pattern(rng, size, tones), [polygon], bounds, bevel)


def _wings(rng: Rng, tones: np.ndarray, radius: float, path: Path, owner: int, pixels: float) -> list[Layer]:
    wing = _rounded(np.array([[0.25, 0.0], [-0.3, 0.05], [-0.75, -0.85], [-0.45, -1.0], [0.0, -0.7]]), 2)
    sprite = _piece(rng, tones[::-1], wing, pixels, 0.25)
    flap = np.sin(2 * path.phase)
    layers = []
    for far in (0, 1):
        axes = path.axes(radius)
        axes[:, :, 1] *= (0.15 + 0.85 * flap * (0.85 if far else 1.0))[:, None]
        axes[:, :, 1] += 0.35 * far * axes[:, :, 0]
        degenerate = np.abs(np.linalg.det(axes)) < 0.02 * radius**2
        axes[degenerate, :, 1] += 0.05 * path.axes(radius)[degenerate, :, 1]
        layers.append(Layer(sprite, path.at(radius, 0.05, -0.08), axes, path.depth + (-1e-3 if far else 1e-3), owner))
    return layers


def _wheels(rng: Rng, tones: np.ndarray, radius: float, path: Path, owner: int, pixels: float) -> list[Layer]:
    size = round(0.78 * pixels)
    x = (np.arange(size) + 0.5) / pixels - 0.39
    away, angle = np.hypot(x[None, :], x[:, None]), np.arctan2(x[:, None], x[None, :])
    spokes = 0.5 + 0.5 * np.cos(5 * angle)
    rim = mix(tones[0], tones[-1] * 0.6, step(spokes - 0.5, 0.3))
    tyre = mix(rim, np.full(3, 0.13), step(away - 0.19, 2 / pixels)).astype(np.float32)
    sprite = cut(tyre, [ellipse(0.29, 0.29)], (-0.39, -0.39, -0.39 + size / pixels, -0.39 + size / pixels), 0.1)
    rolling = Path(path.centre, path.phase, np.ones_like(path.scale), path.depth, path.phase)
    return [
        Layer(sprite, path.at(radius, x, 0.38), rolling.axes(radius), path.depth + 1e-3, owner) for x in (-0.62, 0.62)
    ]


def _string(rng: Rng, tones: np.ndarray, radius: float, path: Path, owner: int, pixels: float) -> list[Layer]:
    line = np.array([[-1.3, -0.025], [0.0, -0.025], [0.0, 0.025], [-1.3, 0.025]])
    sprite = _piece(rng, tones[-2:] * 0.5, line, pixels, 0.05)
    axes = path.axes(radius)[:, :, ::-1] * [-1, 1]
    return [Layer(sprite, path.at(radius, 0.0, 1.0), axes, path.depth - 1e-3, owner, wave=(0.06, 5.0, path.phase))]
