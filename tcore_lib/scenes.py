"""Short synthetic videos with exact labels: what stands in a scene, how it moves, and `render_scene`.

A scene is a function of (kind, seed, counter) alone, and a frame of it a function of its time: the same scene can be drawn
at any size and frame rate. Ground truth comes from the coverage that the pixels were blended with.

Letters: N frames, H W pixels. World units and pixel coordinates: see `scene_sprites`.
"""

from dataclasses import dataclass

import numpy as np

from tcore_lib import scene_figure, scene_textures
from tcore_lib.errors import InputError
from tcore_lib.randomness import generator
from tcore_lib.scene_backdrops import BACKDROPS
from tcore_lib.scene_objects import Path, object_layers
from tcore_lib.scene_sprites import Camera, Layer, backdrop_frame, composite, draw
from tcore_lib.scene_textures import Rng

# First counter of a scene: what it is drawn for. Scenes of different purposes are never the same.
DOMAINS = {"videos": 0, "davis": 1, "jhmdb": 2, "vip": 3, "fresh": 4}

# Kind of motion -> backdrops it happens before. The first ones are the classes of a small set.
KINDS: dict[str, tuple[str, ...]] = {
    "walking": ("street", "meadow", "room"),
    "bouncing": ("room", "meadow", "street"),
    "swimming": ("sea",),
    "jumping": ("meadow", "room", "street"),
    "orbiting": ("table", "stone"),
    "waving": ("room", "meadow", "street"),
    "rolling": ("street", "room", "meadow"),
    "drifting": ("meadow", "street"),
    "dancing": ("room", "street", "meadow"),
    "spinning": ("stone", "table"),
}
ACTION = {"walking": "walk", "jumping": "jump", "waving": "wave", "dancing": "dance"}
# Who takes part in the kinds without a figure.
CAST = {
    "bouncing": ("ball", "blob", "star", "donut"),
    "swimming": ("fish",),
    "orbiting": ("star", "gear", "flower", "heart", "donut", "ball", "leaf", "blob"),
    "rolling": ("ball", "gear", "donut", "car"),
    "drifting": ("balloon", "bird", "leaf"),
    "spinning": ("gear", "flower", "star", "heart", "donut", "leaf"),
}
COMPANIONS = {"street": ("car", "bird", "ball"), "meadow": ("bird", "balloon", "ball"), "room": ("ball", "balloon", "blob")}


@dataclass(frozen=True)
class Scene:
    """A rendered scene.

    Attributes:
        kind: kind of motion, a key of `KINDS`.
        frames: uint8 (N, H, W, 3), RGB.
        objects: uint8 (N, H, W), id of the object that is seen in a pixel, 0 = backdrop. Ids count from 1.
        parts: uint8 (N, H, W), VIP class of the body part that is seen in a pixel, 0 = none.
        joints: float64 (N, 15, 2), (x, y) of the figure's joints (JHMDB's order) in 0-based pixels; NaN without a figure.
        visible: bool (N, 15), whether the joint's own limb is what is seen at the joint.
    """

    kind: str
    frames: np.ndarray
    objects: np.ndarray
    parts: np.ndarray
    joints: np.ndarray
    visible: np.ndarray


@dataclass(frozen=True)
class Stage:
    """A scene before it is drawn.

    Attributes:
        kind: kind of motion.
        layers: everything that moves.
        canvas: (3, Hc, Wc) backdrop.
        reach: half width and half height of the canvas in world units.
        camera: where the frames look.
        joints: (N, 15, 2) world positions of the figure's joints, or None.
        exposure: (N,) brightness of the frames.
    """

    kind: str
    layers: list[Layer]
    canvas: np.ndarray
    reach: tuple[float, float]
    camera: Camera
    joints: np.ndarray | None
    exposure: np.ndarray


def render_scene(
    kind: str, seed: int, *counter: int, size: tuple[int, int] = (340, 256), num_frames: int = 20, seconds: float = 4.0
) -> Scene:
    """Draw one scene.

    Args:
        kind: a key of `KINDS`.
        seed: the run's seed.
        counter: which scene; with the seed it decides everything random.
        size: (width, height) in pixels.
        num_frames: frames, spread evenly over `seconds`.
        seconds: length of the clip.

    Raises:
        InputError: an unknown kind or a frame too small to draw in.
    """
    if kind not in KINDS:
        raise InputError(f"The scene kind {kind!r} does not exist; known are {', '.join(KINDS)}.")
    if min(size) < 32 or num_frames < 1:
        raise InputError(f"A scene of {size[0]}x{size[1]} pixels and {num_frames} frames cannot be drawn; 32x32 and 1 are least.")
    times = np.arange(num_frames) * seconds / num_frames
    return render(compose(kind, generator(seed, "scenes", *counter), size, times, seconds))


def render(stage: Stage) -> Scene:
    """Draw what `compose` has put on the stage."""
    camera, layers = stage.camera, stage.layers
    width, height = camera.size
    drawn = [draw(layer, camera) for layer in layers]
    x = (np.arange(width, dtype=np.float32) - (width - 1) / 2) / max(width, height)
    y = (np.arange(height, dtype=np.float32) - (height - 1) / 2) / max(width, height)
    vignette = 255 * (1.03 - 0.45 * (x[None, :] ** 2 + y[:, None] ** 2))
    n = len(stage.exposure)
    frames = np.empty((n, height, width, 3), np.uint8)
    top = np.empty((n, height, width), np.int16)
    for i in range(n):
        image = backdrop_frame(stage.canvas, stage.reach, camera, i)
        top[i] = composite(image, layers, drawn, i)
        image *= vignette * np.float32(stage.exposure[i])
        frames[i] = np.moveaxis(np.clip(image + 0.5, 0, 255).astype(np.uint8), 0, -1)
    owners = np.array([0] + [layer.owner for layer in layers], np.uint8)
    labels = np.array([0] + [layer.label for layer in layers], np.uint8)
    joints, visible = _project_joints(stage, top)
    return Scene(stage.kind, frames, owners[top + 1], labels[top + 1], joints, visible)


def _project_joints(stage: Stage, top: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joints in pixels (N, 15, 2), and whether each is seen (N, 15)."""
    n, height, width = top.shape
    visible = np.zeros((n, len(scene_figure.JOINTS)), bool)
    if stage.joints is None:
        return np.full((*visible.shape, 2), np.nan), visible
    joints = stage.camera.project(stage.joints)
    limb = np.array([-2] + [layer.limb for layer in stage.layers])[top + 1]
    x, y = np.rint(joints).astype(int).transpose(2, 0, 1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    seen = limb[np.arange(n)[:, None], np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    for joint in range(visible.shape[1]):
        visible[:, joint] = inside[:, joint] & np.isin(seen[:, joint], scene_figure.limbs_of(joint))
    return joints, visible


def compose(kind: str, rng: Rng, size: tuple[int, int], times: np.ndarray, seconds: float) -> Stage:
    """Decide what stands in a scene and where everything is at the given times (N,) of a clip of some seconds."""
    place = KINDS[kind][rng.integers(len(KINDS[kind]))]
    tones = scene_textures.palette(rng)
    aspect = size[0] / min(size)
    tall = size[1] / min(size)
    ground = float(rng.uniform(0.3, 0.36)) * tall
    resolution = float(min(size))
    walk = 0.0
    layers: list[Layer] = []
    joints = None
    if kind in ACTION:
        figure, joints, walk = _figure(rng, ACTION[kind], tones, ground, tall, times, seconds, resolution)
        layers += figure
        cast = COMPANIONS[place][: int(rng.integers(1, 4))]
        layers += _companions(rng, cast, tones, ground, aspect, times, resolution)
    else:
        layers += _objects(rng, kind, tones, ground, aspect, times, seconds, resolution)
    camera = _camera(rng, size, times, seconds, walk)
    reach = (aspect / 2 + 0.37 + 0.32 * abs(walk), tall / 2 + 0.17)
    share = (ground + reach[1]) / (2 * reach[1])
    shape = (round(2 * reach[1] * resolution), round(2 * reach[0] * resolution))
    canvas = BACKDROPS[place](rng, shape, tones, share)
    canvas = np.ascontiguousarray(np.moveaxis(np.clip(canvas, 0, 1), -1, 0), np.float32)
    exposure = 1 + rng.uniform(0.02, 0.07) * np.sin(rng.uniform(0.5, 1.5) * times + rng.uniform(0, 6))
    return Stage(kind, layers, canvas, reach, camera, joints, exposure)


def _camera(rng: Rng, size: tuple[int, int], times: np.ndarray, seconds: float, walk: float) -> Camera:
    """Slow pan, zoom and a little roll; follows a walk of `walk` units through the middle of the scene."""
    tempo = rng.uniform(0.6, 1.3, 4)
    phase = rng.uniform(0, 2 * np.pi, 4)
    wave = np.sin(tempo * times[:, None] + phase)
    pan = np.array([rng.uniform(0.08, 0.2), rng.uniform(0.02, 0.06)])
    centre = wave[:, :2] * pan
    centre[:, 0] += 0.6 * walk * (times / seconds - 0.5)
    zoom = np.exp(0.12 + rng.uniform(0.06, 0.16) * wave[:, 2])
    return Camera(centre, zoom, rng.uniform(0.005, 0.03) * wave[:, 3], size)


def _figure(
    rng: Rng, action: str, tones: np.ndarray, ground: float, tall: float, times: np.ndarray, seconds: float, resolution: float
) -> tuple[list[Layer], np.ndarray, float]:
    """The figure: its layers, its joints (N, 15, 2) in world units, and how far it walks."""
    height = rng.uniform(0.62, 0.72) if action != "jump" else rng.uniform(0.56, 0.62)
    pose, speed = scene_figure.pose(rng, action, times)
    towards = rng.choice([-1.0, 1.0])
    yaw = towards * (rng.uniform(0.75, 1.2) if action == "walk" else rng.uniform(0.0, 0.45))
    # A long walk is slowed down, so that it ends within the backdrop.
    walk = towards * min(speed * np.sin(abs(yaw)) * height * seconds, 2.5)
    x = rng.uniform(-0.12, 0.12) + walk * (times / seconds - 0.5)
    foot = np.stack([x, np.full_like(x, ground + 0.03)], -1)
    worn = scene_figure.outfit(rng)
    clothes = 0.75 * scene_textures.palette(rng) + 0.25 * tones
    layers, joints = scene_figure.figure_layers(
        rng, scene_figure.skeleton(pose), worn, clothes,
        foot=foot, height=height, yaw=yaw, depth=2.0, owner=1, resolution=resolution,
    )  # fmt: skip
    return layers, joints, walk


def _tones(rng: Rng, tones: np.ndarray) -> np.ndarray:
    """Three or four of the scene's colours, at least one dark and one light."""
    order = tones[np.argsort(tones.sum(1))]
    middle = order[1:5][rng.permutation(4)[: rng.integers(1, 3)]]
    return np.concatenate([order[-1:], middle, order[:1]])[rng.permutation(len(middle) + 2)]


def _companions(
    rng: Rng, cast: tuple[str, ...], tones: np.ndarray, ground: float, aspect: float, times: np.ndarray, resolution: float
) -> list[Layer]:
    """Objects around a figure, before and behind it."""
    layers: list[Layer] = []
    for i, shape in enumerate(cast):
        side = rng.choice([-1, 1]) if i == 0 else -side  # noqa: F821
        radius = rng.uniform(0.07, 0.1) * (1.35 if shape == "car" else 1)
        depth = 3.0 if i % 2 else 1.0
        start = side * rng.uniform(0.22, 0.32) * aspect
        path = _roam(rng, shape, start, -side * rng.uniform(0.12, 0.3), radius, ground, depth, times)
        layers += object_layers(rng, shape, _tones(rng, tones), radius, path, 2 + i, resolution)
    return layers


def _roam(
    rng: Rng, shape: str, start: float, velocity: float, radius: float, ground: float, depth: float, times: np.ndarray
) -> Path:
    """A path fit for the shape: cars drive, balls bounce, birds fly, balloons rise and sink."""
    x = start + velocity * times
    one = np.ones_like(times)
    beat = rng.uniform(3.5, 5) * times + rng.uniform(0, 6)
    scale = np.stack([one, one], -1)
    if shape == "car":
        y = one * (ground + (0.1 if depth > 2 else -0.02) - 0.66 * radius)
        return Path(np.stack([x, y], -1), 0.01 * np.sin(3 * beat), scale * [np.sign(velocity), 1], depth * one, (x - start) / (0.29 * radius))
    if shape in ("bird", "balloon"):
        y = rng.uniform(-0.3, -0.12) + 0.05 * np.sin(0.6 * beat)
        facing = [np.sign(velocity), 1] if shape == "bird" else [1, 1]
        return Path(np.stack([x, y], -1), 0.12 * np.sin(0.6 * beat + 1), scale * facing, depth * one, beat)
    hop = np.abs(np.sin(0.75 * beat))
    squash = 0.22 * np.exp(-hop / 0.12)
    y = ground + (0.1 if depth > 2 else 0.0) - radius * (1 - squash) - rng.uniform(0.18, 0.32) * hop
    scale = np.stack([1 + 0.8 * squash, 1 - squash], -1)
    upright = 0.25 * np.sin(beat) if shape == "blob" else 0 * x
    spin = upright if shape == "blob" else 0.0 * x
    path = Path(np.stack([x, y], -1), spin, scale, depth * one, beat)
    return path


def _objects(
    rng: Rng, kind: str, tones: np.ndarray, ground: float, aspect: float, times: np.ndarray, seconds: float, resolution: float
) -> list[Layer]:
    """The cast of a kind without a figure, each in a place of its own at first; their ways cross."""
    count = int(rng.integers(3, 5))
    cast = [CAST[kind][i % len(CAST[kind])] for i in rng.permutation(len(CAST[kind])).tolist() * count][:count]
    width = min(aspect, 1.8) - 0.35
    slots = (np.arange(count) + 0.5) / count - 0.5 + rng.uniform(-0.06, 0.06, count)
    slots = slots[rng.permutation(count)] * width
    layers: list[Layer] = []
    for i, shape in enumerate(cast):
        radius = float(rng.uniform(0.11, 0.16)) * (1.1 if shape in ("fish", "leaf", "bird") else 1.0)
        path = _way(rng, kind, shape, i, count, slots[i], radius, ground, width, times)
        layers += object_layers(rng, shape, _tones(rng, tones), radius, path, i + 1, resolution)
    return layers


def _way(
    rng: Rng, kind: str, shape: str, i: int, count: int, slot: float, radius: float, ground: float, width: float, times: np.ndarray
) -> Path:
    """The path of object i of `count` that starts in its slot (world x)."""
    one = np.ones_like(times)
    tempo, phase = rng.uniform(0.8, 1.25), rng.uniform(0, 2 * np.pi)
    depth = (1.0 + i) * one
    # To the other side of the scene and back, so that ways cross: x(0) = slot, and under way already.
    far = -np.sign(slot + 1e-6) * rng.uniform(0.4, 0.65) * width
    swing = 0.95 * tempo * times + rng.uniform(0.35, 0.8)
    x = slot + far * 0.5 * (np.cos(swing[:1] - 0.95 * tempo * times[:1]) - np.cos(swing))
    speed = np.sign(far) * np.sin(swing)
    plain = np.stack([one, one], -1)
    beat = 4.2 * tempo * times + phase
    if kind == "bouncing":
        hop = np.abs(np.sin(0.8 * beat))
        squash = 0.25 * np.exp(-hop / 0.12)
        y = ground + 0.03 * i - radius * (1 - squash) - rng.uniform(0.25, 0.5) * hop
        angle = (x - slot) / radius * 0.5 if shape != "blob" else 0.2 * np.sin(beat)
        # Squashed against the floor, not along its own axes: only upright things are squashed.
        squash = squash if shape == "blob" else 0 * squash
        return Path(np.stack([x, y], -1), angle, np.stack([1 + 0.8 * squash, 1 - squash], -1), depth, beat)
    if kind == "rolling":
        lane = ground - 0.02 + 0.09 * i / count
        if shape == "car":
            return Path(np.stack([x, one * lane - 0.66 * radius], -1), 0.012 * np.sin(3 * beat), plain, depth, (x - slot) / (0.29 * radius))
        return Path(np.stack([x, one * lane - radius], -1), (x - slot) / radius, plain, depth, beat)
    if kind == "swimming":
        y = -0.32 + 0.6 * (i + 0.5) / count + rng.uniform(-0.05, 0.05) + 0.06 * np.sin(0.4 * beat)
        turn = np.tanh(4 * speed)
        turn = np.where(np.abs(turn) < 0.12, 0.12 * np.sign(turn + 1e-9), turn)
        return Path(np.stack([x, y], -1), 0.12 * np.sin(0.4 * beat + 1.5), np.stack([turn, one], -1), depth, -1.6 * beat)
    if kind == "orbiting":
        around = 2 * np.pi * i / count + phase * 0 + 0.9 * times
        ring = np.array([0.3 * width + 0.08, 0.24])
        centre = np.stack([ring[0] * np.cos(around), ring[1] * np.sin(around)], -1)
        near = 1 + 0.22 * np.sin(around)
        return Path(centre, 0.7 * tempo * times * (1 - 2 * (i % 2)) + phase, plain * near[:, None], 1 + np.sin(around), beat)
    if kind == "drifting":
        y = -0.3 + 0.5 * (i + 0.5) / count + 0.1 * np.sin(0.3 * beat)
        facing = np.tanh(4 * speed) if shape == "bird" else one
        facing = np.where(np.abs(facing) < 0.12, 0.12, facing)
        angle = (0.8 * np.sin(0.4 * beat)) if shape == "leaf" else 0.15 * np.sin(0.35 * beat)
        return Path(np.stack([x, y], -1), angle, np.stack([facing, one], -1), depth, beat)
    # spinning: in place, fast, while growing and shrinking
    y = rng.uniform(-0.24, 0.24) + 0.04 * np.sin(0.4 * beat)
    x = slot + 0.12 * np.sin(0.5 * beat) - 0.12 * np.sin(0.5 * phase)
    return Path(np.stack([x, y], -1), (1 - 2 * (i % 2)) * 1.3 * tempo * times + phase, plain * (1.25 + 0.15 * np.sin(0.5 * beat))[:, None], depth, beat)
