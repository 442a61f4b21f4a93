"""The things of the synthetic scenes: balls, stars, gears, leaves, fish, birds, cars, balloons, each textured anew.

An object is drawn within a circle of about one unit (its radius); a path says where that circle goes. Objects of
several pieces (a bird's wings, a car's wheels) are several layers with one owner.
"""

import numpy as np

from tcore_lib.scenes import textures
from tcore_lib.scenes.paths import Path
from tcore_lib.scenes.sprites import Layer, Sprite, cut, ellipse
from tcore_lib.scenes.textures import Rng


def outline(rng: Rng, shape: str) -> list[np.ndarray]:
    """Polygons (k, 2) whose union is the shape, within about one unit of the origin."""
    a = np.linspace(0, 2 * np.pi, 144, endpoint=False)
    radius = {
        "ball": np.ones_like(a),
        "star": 0.74 + 0.26 * np.cos(5 * a),
        "gear": 0.88 + 0.1 * np.tanh(4 * np.cos(rng.integers(7, 11) * a)),
        "donut": np.ones_like(a),
        "flower": 0.72 + 0.28 * np.abs(np.cos(rng.integers(5, 8) * a / 2)) ** 0.7,
        "blob": 0.8
        + 0.16 * np.sin(2 * a + rng.uniform(0, 6)) * rng.uniform(0.5, 1)
        + 0.1 * np.sin(3 * a + rng.uniform(0, 6)),
    }.get(shape)
    if radius is not None:
        return [np.stack([radius * np.sin(a), -radius * np.cos(a)], 1)]
    if shape == "heart":
        return [
            np.stack(
                [16 * np.sin(a) ** 3, -(13 * np.cos(a) - 5 * np.cos(2 * a) - 2 * np.cos(3 * a) - np.cos(4 * a))], 1
            )
            / 17
        ]
    if shape == "leaf":
        x = np.linspace(-1, 1, 50)
        half = 0.5 * np.sin(np.pi * (x + 1) / 2) ** 0.75 * (1 - 0.25 * x)
        return [
            np.concatenate([np.stack([x, half], 1), np.stack([x, -half], 1)[::-1]]),
            np.array([[-1.2, -0.03], [-0.9, -0.04], [-0.9, 0.04], [-1.2, 0.03]]),
        ]
    if shape == "fish":
        x = np.linspace(-0.75, 1, 50)
        half = 0.52 * np.sin(np.pi * ((x + 0.75) / 1.75) ** 0.75) ** 0.8 + 0.07 * (1 - x) / 1.75
        body = np.concatenate([np.stack([x, half], 1), np.stack([x, -half], 1)[::-1]])
        tail = np.array(
            [[-0.6, 0.0], [-0.85, -0.32], [-1.15, -0.52], [-1.0, -0.1], [-1.0, 0.1], [-1.15, 0.52], [-0.85, 0.32]]
        )
        fin = np.array([[-0.3, -0.4], [-0.35, -0.72], [0.05, -0.7], [0.45, -0.4]])
        return [body, tail, fin, np.array([[-0.1, 0.4], [-0.3, 0.72], [-0.05, 0.7], [0.3, 0.42]])]
    if shape == "bird":
        beak = np.array([[0.9, -0.34], [1.2, -0.2], [0.9, -0.12]])
        tail = np.array([[-0.6, -0.05], [-1.15, -0.3], [-1.2, -0.08], [-1.1, 0.12], [-0.6, 0.2]])
        return [ellipse(0.75, 0.4, -0.05, 0.05), ellipse(0.36, 0.34, 0.62, -0.25), beak, tail]
    if shape == "balloon":
        y = np.linspace(-1, 0.95, 60)
        tip = np.clip((y + 0.15) / 1.1, 0, 1) ** 1.15
        half = 0.8 * np.sqrt(np.clip(1 - np.where(y < -0.15, (y + 0.15) / 0.85, tip) ** 2, 0, 1))
        knot = np.array([[-0.03, 0.9], [0.03, 0.9], [0.12, 1.08], [-0.12, 1.08]])
        return [np.concatenate([np.stack([half, y], 1), np.stack([-half, y], 1)[::-1]]), knot]
    if shape == "car":
        x = np.array([-1.15, -1.1, -0.75, -0.5, 0.3, 0.65, 1.05, 1.18, 1.16, -1.14])
        y = np.array([0.1, -0.12, -0.18, -0.52, -0.55, -0.18, -0.1, 0.08, 0.36, 0.36])
        return [_rounded(np.stack([x, y], 1))]
    raise ValueError(f"unknown shape {shape!r}")


def _rounded(points: np.ndarray, rounds: int = 3) -> np.ndarray:
    """Cut the corners of a polygon (Chaikin), `rounds` times."""
    for _ in range(rounds):
        ahead = np.roll(points, -1, 0)
        points = np.stack([0.8 * points + 0.2 * ahead, 0.2 * points + 0.8 * ahead], 1).reshape(-1, 2)
    return points


def object_layers(
    rng: Rng, shape: str, tones: np.ndarray, radius: float, path: Path, owner: int, resolution: float
) -> list[Layer]:
    """Layers of one object.

    Args:
        rng: texture and proportions are drawn from it.
        shape: one that `outline` knows.
        tones: (n, 3) colours of its texture.
        radius: in world units.
        path: where it goes.
        owner: object id.
        resolution: pixels per world unit.
    """
    pixels = max(8.0, 1.2 * resolution * radius)
    shapes = outline(rng, shape)
    margin = max(2.5 / pixels, 0.28 if shape in ("fish", "leaf", "blob") else 0.16)
    points = np.concatenate(shapes)
    x0, y0 = points.min(0) - margin
    x1, y1 = points.max(0) + margin
    texture = _texture(rng, shape, tones, (round((y1 - y0) * pixels), round((x1 - x0) * pixels)), (x0, y0), pixels)
    bounds = (x0, y0, x0 + texture.shape[1] / pixels, y0 + texture.shape[0] / pixels)
    holes = [ellipse(0.4, 0.4)] if shape == "donut" else [ellipse(0.22, 0.22)] if shape == "gear" else []
    bevel = {"ball": 0.9, "balloon": 0.8, "leaf": 0.2, "gear": 0.16, "star": 0.35, "donut": 0.5}.get(shape, 0.4)
    sprite = cut(texture, shapes, bounds, bevel, holes=holes, rim=0.28)
    wave = {"fish": (0.16, 2.6, 2.2 * path.phase), "leaf": (0.2, 2.2, path.phase), "blob": (0.14, 3.2, path.phase)}.get(
        shape
    )
    shadow = (0.14 * radius, 0.2 * radius, 0.4)
    body = Layer(sprite, path.centre, path.axes(radius), path.depth, owner, wave=wave, shadow=shadow)
    extra = {"bird": _wings, "car": _wheels, "balloon": _string}.get(shape)
    return [body] + (extra(rng, tones, radius, path, owner, pixels) if extra else [])


def _texture(
    rng: Rng, shape: str, tones: np.ndarray, size: tuple[int, int], corner: tuple[float, float], pixels: float
) -> np.ndarray:
    """A pattern with what makes the shape recognisable painted on: eyes, windows, veins."""
    image = textures.pattern(rng, size, tones)
    x = corner[0] + (np.arange(size[1]) + 0.5)[None, :] / pixels
    y = corner[1] + (np.arange(size[0]) + 0.5)[:, None] / pixels
    soft = 1.5 / pixels

    def spot(at_x: float, at_y: float, r: float, colour: float | np.ndarray) -> None:
        nonlocal image
        image = textures.mix(
            image, np.broadcast_to(colour, (3,)), textures.step(r - np.hypot(x - at_x, y - at_y), soft)
        )

    if shape in ("blob", "star", "flower"):
        for side in (-0.2, 0.2):
            spot(side, -0.12, 0.15, 1.0)
            spot(side + 0.03, -0.1, 0.075, 0.06)
        smile = textures.step(0.035 - np.abs(np.hypot(x, y - 0.08) - 0.2), soft) * (y > 0.16)
        image = textures.mix(image, np.full(3, 0.08), smile)
    elif shape == "fish":
        image = textures.mix(image, np.ones(3), 0.35 * textures.step(y - 0.15, 0.4) * np.ones_like(x))
        gill = textures.step(0.03 - np.abs(np.hypot(x - 0.75, y) - 0.42), soft) * (x < 0.55) * (np.abs(y) < 0.3)
        image = textures.mix(image, tones[-1] * 0.5, gill)
        spot(0.62, -0.12, 0.14, 1.0)
        spot(0.66, -0.12, 0.075, 0.05)
    elif shape == "bird":
        head = textures.step(0.4 - np.hypot(x - 0.62, y + 0.25), 0.1)
        image = textures.mix(image, np.clip(tones[0] * 1.05, 0, 1), 0.8 * head)
        image = textures.mix(image, np.array([0.95, 0.62, 0.15]), textures.step(x - 0.93, soft) * np.ones_like(y))
        spot(0.72, -0.32, 0.1, 1.0)
        spot(0.74, -0.32, 0.055, 0.05)
    elif shape == "car":
        glass = textures.step(
            0.02 - np.maximum(np.abs(y + 0.31) - 0.12, np.abs(x + 0.1) - 0.36 - 0.35 * (y + 0.31)), soft
        )
        pillar = 1 - textures.step(0.035 - np.abs(x + 0.1), soft)
        image = textures.mix(image, np.array([0.68, 0.84, 0.92]), glass * pillar)
        spot(1.02, 0.06, 0.09, np.array([1.0, 0.93, 0.65]))
        for axle in (-0.62, 0.62):
            spot(axle, 0.38, 0.36, 0.08)
    elif shape == "leaf":
        vein = np.minimum(np.abs(y), np.abs(((x - np.abs(y) * 0.9) * 4) % 1 - 0.5) / 4)
        image = textures.mix(image, tones[0], 0.7 * textures.step(0.018 - vein, soft))
    return image.astype(np.float32)


def _piece(rng: Rng, tones: np.ndarray, polygon: np.ndarray, pixels: float, bevel: float) -> Sprite:
    """A patterned cut-out of one polygon."""
    margin = max(0.1, 2.5 / pixels)
    x0, y0 = polygon.min(0) - margin
    x1, y1 = polygon.max(0) + margin
    texture = textures.pattern(rng, (max(6, round((y1 - y0) * pixels)), max(6, round((x1 - x0) * pixels))), tones)
    return cut(texture, [polygon], (x0, y0, x0 + texture.shape[1] / pixels, y0 + texture.shape[0] / pixels), bevel)


def _wings(rng: Rng, tones: np.ndarray, radius: float, path: Path, owner: int, pixels: float) -> list[Layer]:
    wing = _rounded(np.array([[0.25, 0.0], [-0.3, 0.05], [-0.75, -0.85], [-0.45, -1.0], [0.0, -0.7]]), 2)
    sprite = _piece(rng, tones[::-1], wing, pixels, 0.25)
    flap = np.sin(2 * path.phase)
    layers = []
    for far in (0, 1):
        axes = path.axes(radius).copy()
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
    rim = textures.mix(np.broadcast_to(tones[0], (size, size, 3)), tones[-1] * 0.6, textures.step(spokes - 0.5, 0.3))
    tyre = textures.mix(rim, np.full(3, 0.13), textures.step(away - 0.19, 2 / pixels)).astype(np.float32)
    sprite = cut(tyre, [ellipse(0.29, 0.29)], (-0.39, -0.39, -0.39 + size / pixels, -0.39 + size / pixels), 0.1)
    turned = Path(path.centre, path.phase, np.ones_like(path.scale), path.depth, path.phase)
    return [
        Layer(sprite, path.at(radius, x, 0.38), turned.axes(radius), path.depth + 1e-3, owner) for x in (-0.62, 0.62)
    ]


def _string(rng: Rng, tones: np.ndarray, radius: float, path: Path, owner: int, pixels: float) -> list[Layer]:
    line = np.array([[-1.3, -0.025], [0.0, -0.025], [0.0, 0.025], [-1.3, 0.025]])
    sprite = _piece(rng, tones[-2:] * 0.5, line, pixels, 0.05)
    axes = path.axes(radius)[:, :, ::-1] * [-1, 1]
    return [Layer(sprite, path.at(radius, 0.0, 1.0), axes, path.depth - 1e-3, owner, wave=(0.06, 5.0, path.phase))]
