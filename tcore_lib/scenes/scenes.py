"""Short synthetic videos with exact labels: what stands in a scene, how it moves, and `render_scene`.

A scene is a function of (kind, seed, counter) and of the frame's size, a frame of it a function of its time: the same
scene can be drawn at any frame rate. Letters: N frames, H W pixels; world units and pixel coordinates: see `layers`.
"""

from dataclasses import dataclass, replace

import numpy as np

from tcore_lib.randomness import generator
from tcore_lib.scenes import textures
from tcore_lib.scenes.figure import ACTIONS, JOINTS, MEETING, figure_layers
from tcore_lib.scenes.layers import Camera, Layer, World, backdrop_frame, paint, view
from tcore_lib.scenes.objects import crossing, object_layers, pass_by
from tcore_lib.scenes.textures import Rng

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
# Who takes part in the kinds without a figure.
CAST = {
    "bouncing": ("ball", "blob", "star", "donut"),
    "swimming": ("fish",),
    "orbiting": ("star", "gear", "flower", "heart", "donut", "ball", "leaf", "blob"),
    "rolling": ("ball", "gear", "donut", "car"),
    "drifting": ("balloon", "bird", "leaf"),
    "spinning": ("gear", "flower", "star", "heart", "donut", "leaf"),
}
COMPANIONS = {
    "street": ("car", "bird", "ball"),
    "meadow": ("bird", "balloon", "ball"),
    "room": ("ball", "balloon", "blob"),
}


@dataclass(frozen=True)
class Scene:
    """A rendered scene. Objects and parts are those seen in a pixel; 0 = none of them."""

    frames: np.ndarray  # uint8 (N, H, W, 3), RGB
    objects: np.ndarray  # uint8 (N, H, W), ids, which count from 1
    parts: np.ndarray  # uint8 (N, H, W), VIP class of the body part
    joints: np.ndarray  # float64 (N, 15, 2), (x, y) of `figure.JOINTS` in 0-based pixels; NaN without a figure
    visible: np.ndarray  # bool (N, 15), whether the joint's own limb is what is seen at the joint


@dataclass(frozen=True)
class Stage:
    """A scene before it is drawn."""

    layers: list[Layer]  # everything that moves
    canvas: np.ndarray  # (3, Hc, Wc) backdrop
    reach: tuple[float, float]  # half width and half height of the canvas in world units
    camera: Camera
    joints: np.ndarray | None  # (N, 15, 2) world positions of the figure's joints
    exposure: np.ndarray  # (N,) brightness of the frames


def render_scene(
    kind: str, seed: int, *counter: int, size: tuple[int, int] = (340, 256), num_frames: int = 20, seconds: float = 4.0
) -> Scene:
    """Draw one scene of a kind of motion, a key of `KINDS`; everything random follows from the seed and the counter.

    `size` is (width, height) in pixels, at least 32; the frames are spread evenly over `seconds`.
    """
    times = np.arange(num_frames) * seconds / num_frames
    return render(compose(kind, generator(seed, "scenes", *counter), size, times, seconds))


def render(stage: Stage) -> Scene:
    """Draw what `compose` has put on the stage."""
    camera, n = stage.camera, len(stage.exposure)
    width, height = camera.size
    views = [view(layer, camera) for layer in stage.layers]
    x = (np.arange(width, dtype=np.float32) - (width - 1) / 2) / max(width, height)
    y = (np.arange(height, dtype=np.float32) - (height - 1) / 2) / max(width, height)
    vignette = 255 * (1.05 - 0.42 * (x[None, :] ** 2 + y[:, None] ** 2))
    frames = np.empty((n, height, width, 3), np.uint8)
    top = np.zeros((n, height, width), np.uint8)  # 1 + number of the nearest layer that covers at least half of a pixel
    for i in range(n):
        image = backdrop_frame(stage.canvas, stage.reach, camera, i)
        for number in np.argsort([layer.depth[i] for layer in stage.layers], kind="stable"):  # farthest first
            place, cover = paint(image, stage.layers[number], views[number], i)
            top[i][place][cover >= 0.5] = number + 1
        image *= vignette * np.float32(stage.exposure[i])
        image += 0.5
        frames[i] = np.moveaxis(np.clip(image, 0, 255, out=image).astype(np.uint8), 0, -1)
    owners = np.array([0] + [layer.owner for layer in stage.layers], np.uint8)
    labels = np.array([0] + [layer.label for layer in stage.layers], np.uint8)
    return Scene(frames, owners.take(top), labels.take(top), *_project_joints(stage, top))


def _project_joints(stage: Stage, top: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joints in pixels (N, 15, 2), and whether each is seen (N, 15)."""
    n, height, width = top.shape
    if stage.joints is None:
        return np.full((n, len(JOINTS), 2), np.nan), np.zeros((n, len(JOINTS)), bool)
    joints = stage.camera.project(stage.joints)
    limb = np.array([""] + [layer.limb for layer in stage.layers])
    x, y = np.rint(joints).astype(int).transpose(2, 0, 1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    seen = limb[top[np.arange(n)[:, None], np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]]
    return joints, inside & np.stack([np.isin(seen[:, j], MEETING[name]) for j, name in enumerate(JOINTS)], 1)


def compose(kind: str, rng: Rng, size: tuple[int, int], times: np.ndarray, seconds: float) -> Stage:
    """Decide what stands in a scene and where everything is: see `render_scene`.

    Everything random is drawn from `rng`, and no draw depends on `times`, the (N,) seconds at which the frames look.
    """
    place = KINDS[kind][rng.integers(len(KINDS[kind]))]
    tones = textures.palette(rng)
    aspect, tall, resolution = size[0] / min(size), size[1] / min(size), float(min(size))
    world = World(rng, tones, aspect, float(rng.uniform(0.3, 0.36)) * tall, times, seconds, resolution)
    joints, walk = None, 0.0
    camera_rng, backdrop_rng, cast_rng = rng.spawn(3)
    if kind in ACTIONS:
        layers, joints, walk = figure_layers(world, kind)
        layers += _companions(replace(world, rng=cast_rng), COMPANIONS[place][: int(rng.integers(1, 4))])
    else:
        layers = _objects(replace(world, rng=cast_rng), kind)
    # Slow pan, zoom and a little roll; a walk is followed through the middle of the scene.
    slow, phases = camera_rng.uniform(0.6, 1.3, 4), camera_rng.uniform(0, 2 * np.pi, 4)
    wave = np.sin(slow * times[:, None] + phases)
    centre = wave[:, :2] * [camera_rng.uniform(0.08, 0.2), camera_rng.uniform(0.02, 0.06)]
    centre[:, 0] += 0.6 * walk * (times / seconds - 0.5)
    zoom = np.exp(0.12 + camera_rng.uniform(0.06, 0.16) * wave[:, 2])
    camera = Camera(centre, zoom, camera_rng.uniform(0.005, 0.03) * wave[:, 3], size)
    reach = (aspect / 2 + 0.37 + 0.32 * abs(walk), tall / 2 + 0.17)
    shape = (round(2 * reach[1] * resolution), round(2 * reach[0] * resolution))
    canvas = textures.BACKDROPS[place](backdrop_rng, shape, tones, (world.ground + reach[1]) / (2 * reach[1]))
    canvas = np.ascontiguousarray(np.moveaxis(np.clip(canvas, 0, 1), -1, 0), np.float32)
    exposure = 1 + rng.uniform(0.02, 0.07) * np.sin(rng.uniform(0.5, 1.5) * times + rng.uniform(0, 6))
    return Stage(layers, canvas, reach, camera, joints, exposure)


def _companions(world: World, cast: tuple[str, ...]) -> list[Layer]:
    """Objects that pass a figure, in turn behind it and before it, from both sides."""
    rng = world.rng
    layers: list[Layer] = []
    first = rng.choice([-1, 1])
    for i, shape in enumerate(cast):
        side = first * (1 - 2 * (i % 2))
        radius = float(rng.uniform(0.085, 0.125)) * (1.35 if shape == "car" else 1)
        start, velocity = side * rng.uniform(0.22, 0.32) * world.aspect, -side * rng.uniform(0.12, 0.3)
        way = pass_by(world, shape, start, velocity, radius, bool(i % 2))
        layers += object_layers(world, shape, radius, way, 2 + i)
    return layers


def _objects(world: World, kind: str) -> list[Layer]:
    """The cast of a kind without a figure, each in a place of its own at first."""
    rng = world.rng
    count = int(rng.integers(3, 5))
    order = rng.permutation(len(CAST[kind])).tolist() * count
    slots = (np.arange(count) + 0.5) / count - 0.5 + rng.uniform(-0.06, 0.06, count)
    slots = slots[rng.permutation(count)]
    layers: list[Layer] = []
    for i in range(count):
        shape = CAST[kind][order[i]]
        radius = float(rng.uniform(0.11, 0.16)) * (1.1 if shape in ("fish", "leaf", "bird") else 1.0)
        way = crossing(world, kind, shape, (i, count), slots[i], radius)
        layers += object_layers(world, shape, radius, way, i + 1)
    return layers
