"""How objects of the synthetic scenes move: bouncing, rolling, swimming, orbiting, drifting, spinning, passing by."""

from dataclasses import dataclass

import numpy as np

from tcore_lib.scenes.sprites import turned
from tcore_lib.scenes.textures import Rng


@dataclass(frozen=True)
class World:
    """What the makers of a scene's parts share; lengths in world units."""

    rng: Rng
    tones: np.ndarray  # (6, 3) palette
    aspect: float  # width of the frame
    tall: float  # height of the frame
    ground: float  # y that things stand on
    times: np.ndarray  # (N,) seconds at which the frames look
    seconds: float  # length of the clip
    resolution: float  # pixels per world unit

    @property
    def width(self) -> float:
        """What the objects of a scene without a figure share."""
        return min(self.aspect, 1.8) - 0.35

    def some_tones(self) -> np.ndarray:
        """Three or four of the scene's colours, the darkest and lightest among them: things look alike on purpose."""
        order = self.tones[np.argsort(self.tones.sum(1))]
        middle = order[1:5][self.rng.permutation(4)[: self.rng.integers(1, 3)]]
        return np.concatenate([order[-1:], middle, order[:1]])[self.rng.permutation(len(middle) + 2)]


@dataclass(frozen=True)
class Path:
    """An object's way through a clip.

    Attributes:
        centre: (N, 2) world position.
        angle: (N,) radians, clockwise in the picture.
        scale: (N, 2) of its own axes; a negative x faces left.
        depth: (N,) larger is nearer to the viewer.
        phase: (N,) radians of its inner motion: a fish's tail, a bird's wings, a car's wheels.
    """

    centre: np.ndarray
    angle: np.ndarray
    scale: np.ndarray
    depth: np.ndarray
    phase: np.ndarray

    def axes(self, radius: float) -> np.ndarray:
        """(N, 2, 2) world vectors of the object's units, as columns."""
        return radius * turned(self.angle) * self.scale[:, None, :]

    def at(self, radius: float, x: float, y: float) -> np.ndarray:
        """World position (N, 2) of a point of the object."""
        return self.centre + np.einsum("nij,j->ni", self.axes(radius), [x, y])


def path(
    x: np.ndarray,
    y: np.ndarray | float,
    depth: np.ndarray | float,
    phase: np.ndarray,
    angle: np.ndarray | float = 0.0,
    stretch: tuple[np.ndarray | float, np.ndarray | float] = (1.0, 1.0),
) -> Path:
    """A path of parts that may be constants."""
    x, y, depth, phase, angle, wide, tall = np.broadcast_arrays(x, y, depth, phase, angle, *stretch)
    return Path(np.stack([x, y], -1), angle, np.stack([wide, tall], -1), depth, phase)


def facing(speed: np.ndarray) -> np.ndarray:
    """Scale of x of something that looks where it goes: it turns about through a narrow view, never through nothing."""
    turn = np.tanh(4 * speed)
    return np.where(np.abs(turn) < 0.12, np.where(turn < 0, -0.12, 0.12), turn)


def hopping(beat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height 0..1 of a hop and how flat the thing is pressed at its lowest points."""
    hop = np.abs(np.sin(beat))
    return hop, 0.25 * np.exp(-hop / 0.12)


def pass_by(world: World, shape: str, start: float, velocity: float, radius: float, front: bool) -> Path:
    """Pass a figure, before it (`front`) or behind it: cars drive, birds and balloons fly, everything else hops.

    From world x `start` at time 0, with world units per second.
    """
    rng, ground, x = world.rng, world.ground, start + velocity * world.times
    beat = rng.uniform(3.5, 5) * world.times + rng.uniform(0, 6)
    depth, side = 3.0 if front else 1.0, float(np.sign(velocity))
    if shape == "car":
        lane = ground + (0.1 if front else -0.02)
        wheels = (x - start) / (0.29 * radius)
        return path(x, lane - 0.66 * radius, depth, wheels, 0.01 * np.sin(3 * beat), (side, 1.0))
    if shape in ("bird", "balloon"):
        y = rng.uniform(-0.3, -0.12) + 0.05 * np.sin(0.6 * beat)
        return path(x, y, depth, beat, 0.12 * np.sin(0.6 * beat + 1), (side if shape == "bird" else 1.0, 1.0))
    hop, flat = hopping(0.75 * beat)
    y = ground + (0.1 if front else 0.0) - radius * (1 - flat) - rng.uniform(0.18, 0.32) * hop
    return path(x, y, depth, beat, 0.2 * np.sin(beat) * (shape == "blob"), (1 + 0.8 * flat, 1 - flat))


def crossing(world: World, kind: str, shape: str, place: tuple[int, int], slot: float, radius: float) -> Path:
    """The way of object `place` = (i, count) of a scene without a figure; the ways cross one another.

    `kind` is the kind of motion, `slot` the world x where it starts.
    """
    (i, count), rng, ground, width, times = place, world.rng, world.ground, world.width, world.times
    tempo, phase = rng.uniform(0.8, 1.25), rng.uniform(0, 2 * np.pi)
    beat = 4.2 * tempo * times + phase
    if kind == "orbiting":
        around = 2 * np.pi * i / count + 0.9 * times
        near = 1 + 0.22 * np.sin(around)
        ring = 0.3 * width + 0.08  # seen from the side: who comes round in front hides who is behind
        spin = (1 - 2 * (i % 2)) * 0.7 * tempo * times + phase
        return path(ring * np.cos(around), 0.13 * np.sin(around), 1 + np.sin(around), beat, spin, (near, near))
    if kind == "spinning":
        x = slot + 0.12 * (np.sin(0.5 * beat) - np.sin(0.5 * phase))
        y = rng.uniform(-0.24, 0.24) + 0.04 * np.sin(0.4 * beat)
        size = 1.25 + 0.15 * np.sin(0.5 * beat)
        return path(x, y, 1.0 + i, beat, (1 - 2 * (i % 2)) * 1.3 * tempo * times + phase, (size, size))
    # To the other side of the scene and back, under way already at time 0.
    far = -np.sign(slot + 1e-6) * rng.uniform(0.4, 0.65) * width
    begin = rng.uniform(0.35, 0.8)
    swing = 0.95 * tempo * times + begin
    x = slot + far * 0.5 * (np.cos(begin) - np.cos(swing))
    ahead = facing(np.sign(far) * np.sin(swing))
    high = (i + 0.5) / count
    if kind == "swimming":
        y = -0.32 + 0.6 * high + rng.uniform(-0.05, 0.05) + 0.06 * np.sin(0.4 * beat)
        return path(x, y, 1.0 + i, -1.6 * beat, 0.12 * np.sin(0.4 * beat + 1.5), (ahead, 1.0))
    if kind == "drifting":
        y = -0.3 + 0.5 * high + 0.1 * np.sin(0.3 * beat)
        tilt = 0.8 * np.sin(0.4 * beat) if shape == "leaf" else 0.15 * np.sin(0.35 * beat)
        return path(x, y, 1.0 + i, beat, tilt, (ahead if shape == "bird" else 1.0, 1.0))
    if kind == "rolling":
        lane = ground - 0.02 + 0.09 * high
        if shape == "car":
            wheels = (x - slot) / (0.29 * radius)
            return path(x, lane - 0.66 * radius, 1.0 + i, wheels, 0.012 * np.sin(3 * beat))
        return path(x, lane - radius, 1.0 + i, beat, (x - slot) / radius)
    # Bouncing. What spins keeps its shape; a blob is pressed flat against the floor.
    hop, flat = hopping(0.8 * beat)
    flat = flat * (shape == "blob")
    y = ground + 0.03 * i - radius * (1 - flat) - rng.uniform(0.25, 0.5) * hop
    spin = 0.2 * np.sin(beat) if shape == "blob" else 0.5 * (x - slot) / radius
    return path(x, y, 1.0 + i, beat, spin, (1 + 0.8 * flat, 1 - flat))
