"""The articulated figure of the synthetic scenes: a skeleton of 15 joints that walks, waves, jumps or dances, in clothes.

The skeleton lives in three dimensions (x to the figure's left, y down, z forward), in units of its height with the origin
between the feet, is turned by a yaw and seen from the front without perspective. Joints are JHMDB's, in its order; clothes
and body parts carry the class ids of VIP. Left and right are the figure's own.
"""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from tcore_lib import scene_textures as textures
from tcore_lib.scene_sprites import NO_LIMB, Layer, Sprite, cut
from tcore_lib.scene_textures import Rng

JOINTS = (
    "neck", "belly", "face", "right_shoulder", "left_shoulder", "right_hip", "left_hip", "right_elbow", "left_elbow",
    "right_knee", "left_knee", "right_wrist", "left_wrist", "right_ankle", "left_ankle",
)  # fmt: skip
PARTS = (
    "background", "hat", "hair", "gloves", "sunglasses", "upper-clothes", "dress", "coat", "socks", "pants", "torso-skin",
    "scarf", "skirt", "face", "left-arm", "right-arm", "left-leg", "right-leg", "left-shoe", "right-shoe",
)  # fmt: skip
LABEL = {name: i for i, name in enumerate(PARTS)}
LIMBS = ("torso", "head", "right_upper_arm", "left_upper_arm", "right_forearm", "left_forearm", "right_thigh",
         "left_thigh", "right_shank", "left_shank")  # fmt: skip
LIMB = {name: i for i, name in enumerate(LIMBS)}
ACTIONS = ("walk", "wave", "jump", "dance")

# Lengths and radii in units of the figure's height.
THIGH, SHANK, UPPER, FORE, TORSO, FOOT = 0.205, 0.205, 0.15, 0.14, 0.315, 0.04
SHOULDER, HIP, FACE_X, FACE_Y = 0.112, 0.058, 0.084, 0.1

SKIN = ("#f3d0b4", "#e8b994", "#c98f63", "#9a623d", "#6b4029")
HAIR = ("#2b1d16", "#5a3825", "#8b5a2b", "#c9a15a", "#a33b22", "#70757c")


def limbs_of(joint: int) -> tuple[int, ...]:
    """Limbs that meet in a joint: it is visible where one of them is the nearest thing."""
    name = JOINTS[joint]
    if name in ("neck", "belly"):
        return (LIMB["torso"],)
    if name == "face":
        return (LIMB["head"],)
    side, kind = name.split("_")
    meeting = {
        "shoulder": ("torso", f"{side}_upper_arm"),
        "hip": ("torso", f"{side}_thigh"),
        "elbow": (f"{side}_upper_arm", f"{side}_forearm"),
        "knee": (f"{side}_thigh", f"{side}_shank"),
        "wrist": (f"{side}_forearm",),
        "ankle": (f"{side}_shank",),
    }[kind]
    return tuple(LIMB[limb] for limb in meeting)


@dataclass(frozen=True)
class Pose:
    """Angles (radians) and shifts over time, each (N,); limbs as (N, 2): right, left.

    A limb hangs down at 0; `swing` lifts it forward, `spread` to its own side. Angles of lower limbs are absolute too.
    """

    thigh: np.ndarray
    shank: np.ndarray
    leg_spread: np.ndarray
    upper: np.ndarray
    upper_spread: np.ndarray
    fore: np.ndarray
    fore_spread: np.ndarray
    lean: np.ndarray
    sway: np.ndarray
    lift: np.ndarray


def pose(rng: Rng, action: str, t: np.ndarray) -> tuple[Pose, float]:
    """A pose over time.

    Args:
        rng: tempo, phase and extent are drawn from it.
        action: one of `ACTIONS`.
        t: (N,) seconds.

    Returns:
        The pose and the speed (heights per second, forward) that keeps its feet from sliding.
    """
    zero = np.zeros((len(t), 2))
    tempo, phase, extent = rng.uniform(0.85, 1.15), rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.15)
    side = np.array([-1.0, 1.0])
    still = np.zeros(len(t))
    if action == "walk":
        stride = 2 * np.pi * 0.95 * tempo * t[:, None] + phase + np.array([0, np.pi])
        thigh = 0.5 * extent * np.sin(stride) + 0.06
        bend = 0.1 + 0.75 * np.clip(np.cos(stride - 0.2), 0, 1) ** 1.5
        upper = -0.5 * extent * np.sin(stride)
        speed = 4 * np.sin(0.5 * extent) * (THIGH + SHANK) * 0.95 * tempo
        return Pose(thigh, thigh - bend, zero + 0.03, upper, zero + 0.1, upper + 0.45, zero + 0.02, still + 0.05, still, still), speed
    beat = 2 * np.pi * tempo * t + phase
    breath = 0.012 * np.sin(0.5 * beat)
    if action == "wave":
        arm = rng.integers(2)
        raised = (np.arange(2) == arm).astype(float)
        waving = 0.5 * extent * np.sin(1.7 * beat)[:, None]
        spread = raised * (1.9 + 0.25 * waving) + (1 - raised) * 0.18
        fore = raised * (2.75 + waving) + (1 - raised) * (0.08 + 0.06 * np.sin(beat)[:, None])
        swing = zero + (1 - raised) * 0.12 * np.sin(beat)[:, None]
        legs = zero + 0.1
        return Pose(zero, zero - 0.04, legs, swing, spread, swing + 0.15, fore, still, 0.02 * np.sin(beat * 0.8), breath), 0.0
    if action == "jump":
        open_ = (0.5 - 0.5 * np.cos(beat))[:, None]
        spread = 0.2 + 2.35 * extent * open_ + zero
        legs = 0.06 + 0.42 * open_ + zero
        hop = 0.1 * extent * np.abs(np.sin(beat))
        knee = 0.5 * np.clip(-np.cos(2 * beat), 0, 1)[:, None] * 0.4 + zero
        return Pose(knee, -knee, legs, zero, spread, zero + 0.1, spread + 0.15 * open_ - 0.05, still, still, hop), 0.0
    if action != "dance":
        raise ValueError(f"unknown action {action!r}")
    turn = np.sin(beat)[:, None] * side
    spread = 1.25 + 0.95 * extent * turn
    fore = spread + 0.9 * np.sin(beat + 0.8)[:, None] * side
    dip = 0.3 + 0.28 * np.sin(2 * beat)[:, None]
    return Pose(
        dip + 0.15 * turn, zero - dip, zero + 0.2, zero + 0.25, spread, zero + 0.35, fore, 0.04 * np.sin(beat), 0.05 * np.sin(beat),
        0.02 * np.abs(np.sin(beat)),
    ), 0.0  # fmt: skip


def skeleton(figure: Pose) -> dict[str, np.ndarray]:
    """Joint positions (N, 3) by name, plus `pelvis` and the toes' `right_foot`, `left_foot` pitch (N,) as swing angles."""
    n = len(figure.lift)
    out: dict[str, np.ndarray] = {}
    pelvis = np.zeros((n, 3))
    up = np.stack([figure.sway * 0.8, -np.cos(figure.lean), np.sin(figure.lean)], -1)
    out["pelvis"], out["neck"], out["belly"] = pelvis, pelvis + TORSO * up, pelvis + 0.45 * TORSO * up
    nod = np.stack([0.6 * figure.sway, -np.ones(n), 0.5 * np.sin(figure.lean) + 0.03], -1)
    out["face"] = out["neck"] + 0.122 * nod
    for i, name in enumerate(("right", "left")):
        side = 2 * i - 1
        leg_1 = _down(figure.leg_spread[:, i], figure.thigh[:, i], side)
        leg_2 = _down(figure.leg_spread[:, i], figure.shank[:, i], side)
        out[f"{name}_hip"] = pelvis + [side * HIP, 0.0, 0.0]
        out[f"{name}_knee"] = out[f"{name}_hip"] + THIGH * leg_1
        out[f"{name}_ankle"] = out[f"{name}_knee"] + SHANK * leg_2
        shoulder = out["neck"] - 0.05 * up
        out[f"{name}_shoulder"] = shoulder + [side * SHOULDER, 0.0, 0.0]
        arm_1 = _down(figure.upper_spread[:, i], figure.upper[:, i], side)
        arm_2 = _down(figure.fore_spread[:, i], figure.fore[:, i], side)
        out[f"{name}_elbow"] = out[f"{name}_shoulder"] + UPPER * arm_1
        out[f"{name}_wrist"] = out[f"{name}_elbow"] + FORE * arm_2
        out[f"{name}_foot"] = np.clip(figure.shank[:, i] * 0.7, -0.9, 0.3)
    # The lower foot stands on the ground (y = 0), raised by the lift.
    lowest = np.maximum(out["right_ankle"][:, 1], out["left_ankle"][:, 1])
    shift = np.stack([figure.sway, -FOOT - lowest - figure.lift, np.zeros(n)], -1)
    return {key: value + shift if value.ndim == 2 else value for key, value in out.items()}


def _down(spread: np.ndarray, swing: np.ndarray, side: int) -> np.ndarray:
    """Direction (N, 3) of a limb."""
    return np.stack([side * np.sin(spread), np.cos(spread) * np.cos(swing), np.cos(spread) * np.sin(swing)], -1)


@dataclass(frozen=True)
class Outfit:
    """What a figure wears; textures are drawn from `tones`."""

    upper: str  # upper-clothes | coat | dress
    lower: str  # pants | shorts | skirt
    long_sleeves: bool
    gloves: bool
    socks: bool
    scarf: bool
    sunglasses: bool
    hat: str  # none | cap | beanie | brim
    hair: str  # short | long | bun


def outfit(rng: Rng) -> Outfit:
    """Random clothes."""
    upper = str(rng.choice(["upper-clothes", "upper-clothes", "coat", "dress"]))
    lower = "skirt" if upper == "dress" else str(rng.choice(["pants", "shorts", "skirt"]))
    return Outfit(
        upper=upper,
        lower=lower,
        long_sleeves=upper == "coat" or bool(rng.random() < 0.5),
        gloves=bool(rng.random() < 0.35),
        socks=lower != "pants" and bool(rng.random() < 0.7),
        scarf=bool(rng.random() < 0.4),
        sunglasses=bool(rng.random() < 0.35),
        hat=str(rng.choice(["none", "cap", "beanie", "brim"])),
        hair=str(rng.choice(["short", "long", "bun"])),
    )


class Wardrobe:
    """Cuts the sprites of one figure. `resolution` is pixels per figure height."""

    def __init__(self, rng: Rng, tones: np.ndarray, resolution: float) -> None:
        self.rng, self.resolution = rng, resolution
        order = tones[rng.permutation(len(tones))]
        self.tones = {"top": order[:3], "bottom": order[[3, 4, 0]], "extra": order[[4, 5, 1]]}
        skin = textures.colours(SKIN)[rng.integers(len(SKIN))]
        hair = textures.colours(HAIR)[rng.integers(len(HAIR))]
        self.plain = {"skin": skin, "hair": hair, "shoe": np.clip(order[5] * 0.7 + 0.05, 0, 1)}
        self.cloth = {name: self._cloth(name) for name in self.tones}

    def _cloth(self, name: str) -> np.ndarray:
        """One bolt of cloth per garment, (2R, R, 3) over 0.5 x 1 heights: sleeves match the shirt."""
        kinds = (textures.stripes, textures.plaid, textures.dots, textures.knit, textures.leaves, textures.marble)
        side = max(24, round(0.3 * self.resolution))
        return textures.pattern(self.rng, (2 * side, side), self.tones[name], kinds)

    def fabric(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        """A piece (rows, columns, 3) of a cloth, or of a plain colour with a little grain."""
        rows, columns = max(shape[0], 6), max(shape[1], 6)
        if name in self.plain:
            return textures.grain(self.rng, np.broadcast_to(self.plain[name], (rows, columns, 3)), 0.03, 6)
        cloth = self.cloth[name]
        y, x = (self.rng.integers(max(1, have - need + 1)) for have, need in zip(cloth.shape, (rows, columns), strict=False))
        reach = np.pad(cloth, ((0, max(0, y + rows - cloth.shape[0])), (0, max(0, x + columns - cloth.shape[1])), (0, 0)), "symmetric")
        return reach[y : y + rows, x : x + columns]

    def cut(self, name: str, outlines: list[np.ndarray], bevel: float, **options: float) -> Sprite:
        """Cut a garment or body part around its outlines."""
        points = np.concatenate(outlines)
        margin = 0.026
        x0, y0 = points.min(0) - margin
        x1, y1 = points.max(0) + margin
        shape = (round((y1 - y0) * self.resolution), round((x1 - x0) * self.resolution))
        texture = self.fabric(name, shape)
        x1, y1 = x0 + texture.shape[1] / self.resolution, y0 + texture.shape[0] / self.resolution
        return cut(texture, outlines, (x0, y0, x1, y1), bevel, **options)

    def limb(self, name: str, length: float, r0: float, r1: float) -> Sprite:
        """A tapered limb from (0, 0) to (0, length)."""
        angle = np.linspace(0, np.pi, 14)
        lower = np.stack([r1 * np.cos(angle), length + r1 * np.sin(angle)], 1)
        upper = np.stack([-r0 * np.cos(angle), -r0 * np.sin(angle)], 1)
        return self.cut(name, [np.concatenate([lower, upper])], 0.9 * (r0 + r1), length=length, rim=0.22)

    def gown(self, name: str, heights: list[float], widths: list[float], length: float) -> Sprite:
        """A symmetric garment with half widths given at some heights below the neck."""
        y = np.linspace(heights[0], heights[-1], 40)
        half = PchipInterpolator(heights, widths)(y)
        outline = np.concatenate([np.stack([half, y], 1), np.stack([-half, y], 1)[::-1]])
        return self.cut(name, [outline], 0.13, length=length, rim=0.25)


def ellipse(rx: float, ry: float, x: float = 0.0, y: float = 0.0, start: float = 0.0, stop: float = 2 * np.pi) -> np.ndarray:
    """Outline (k, 2) of an ellipse or of a sector of one; angles clockwise from the right."""
    angle = np.linspace(start, stop, 36)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1)


@dataclass
class _Stage:
    """Where a figure's layers are collected: world placement and depth."""

    foot: np.ndarray  # (N, 2) world point between the feet
    height: float
    depth: float
    owner: int
    yaw: float
    layers: list[Layer]

    def flat(self, points: np.ndarray) -> np.ndarray:
        """Figure coordinates (N, 3) -> world (N, 2)."""
        x = points[:, 0] * np.cos(self.yaw) + points[:, 2] * np.sin(self.yaw)
        return self.foot + self.height * np.stack([x, points[:, 1]], -1)

    def near(self, points: np.ndarray, bias: float) -> np.ndarray:
        """(N,) depth of figure points; the figure as a whole stays within half a unit."""
        z = points[:, 2] * np.cos(self.yaw) - points[:, 0] * np.sin(self.yaw)
        return self.depth + 0.4 * np.clip(z + bias, -1, 1)

    def put(self, sprite: Sprite, at: np.ndarray, axes: np.ndarray, z: np.ndarray, label: str, limb: str, **more: object) -> None:
        """Add a layer; `axes` (2, 2) or (N, 2, 2) in figure units."""
        full = np.broadcast_to(axes, (len(at), 2, 2)) * self.height
        where = LIMB.get(limb, NO_LIMB)
        self.layers.append(Layer(sprite, at, full, z, self.owner, LABEL[label], where, **more))  # type: ignore[arg-type]

    def bone(
        self, sprite: Sprite, start: np.ndarray, end: np.ndarray, z: np.ndarray, label: str, limb: str, width: float = 1.0
    ) -> None:
        """Add a limb between two joints (N, 3), shortened as its projection is."""
        p, q = self.flat(start), self.flat(end)
        along = q - p
        size = np.linalg.norm(along, axis=1, keepdims=True)
        along = np.where(size > 1e-4, along / np.maximum(size, 1e-4), [0.0, 1.0])
        axes = np.stack([np.stack([along[:, 1], -along[:, 0]], -1) * width, along], -1)
        shadow = (0.012 * self.height, 0.018 * self.height, 0.4)
        self.put(sprite, p, axes, z, label, limb, shown=size[:, 0] / self.height, shadow=shadow)


def figure_layers(
    rng: Rng,
    joints: dict[str, np.ndarray],
    worn: Outfit,
    tones: np.ndarray,
    *,
    foot: np.ndarray,
    height: float,
    yaw: float,
    depth: float,
    owner: int,
    resolution: float,
) -> tuple[list[Layer], np.ndarray]:
    """Dress a skeleton.

    Args:
        rng: textures are drawn from it.
        joints: from `skeleton`.
        worn: from `outfit`.
        tones: (6, 3) palette of the clothes.
        foot: (N, 2) world point between the feet.
        height: of the figure in world units.
        yaw: 0 faces the viewer, positive turns to the right of the picture.
        depth: of the figure among the objects.
        owner: object id.
        resolution: pixels per world unit.

    Returns:
        Layers, and joints as (N, 15, 2) world points in the order of `JOINTS`.
    """
    stage = _Stage(foot, height, depth, owner, yaw, [])
    wardrobe = Wardrobe(rng, tones, resolution * height * 1.15)
    _legs(stage, wardrobe, joints, worn)
    _torso(stage, wardrobe, joints, worn)
    _arms(stage, wardrobe, joints, worn)
    _head(stage, wardrobe, joints, worn)
    return stage.layers, np.stack([stage.flat(joints[name]) for name in JOINTS], 1)


def _legs(stage: _Stage, wardrobe: Wardrobe, joints: dict[str, np.ndarray], worn: Outfit) -> None:
    bare = worn.lower == "skirt"
    long = worn.lower == "pants"
    skin_thigh, skin_shank = wardrobe.limb("skin", THIGH, 0.05, 0.038), wardrobe.limb("skin", SHANK, 0.038, 0.026)
    thigh = skin_thigh if bare else wardrobe.limb("bottom", THIGH, 0.062, 0.05)
    shank = wardrobe.limb("bottom", SHANK, 0.05, 0.04) if long else skin_shank
    sock = wardrobe.limb("extra", 0.45 * SHANK, 0.034, 0.028)
    shoe_outline = PchipInterpolator([-0.045, -0.04, 0.0, 0.05, 0.09, 0.098], [0.02, 0.0, -0.026, -0.004, 0.012, 0.03])
    x = np.linspace(-0.045, 0.098, 24)
    sole = np.array([[0.098, 0.042], [-0.045, 0.042]])
    shoe = wardrobe.cut("shoe", [np.concatenate([np.stack([x, shoe_outline(x)], 1), sole])], 0.05, rim=0.25)
    for name, side in (("right", -1), ("left", 1)):
        hip, knee, ankle = joints[f"{name}_hip"], joints[f"{name}_knee"], joints[f"{name}_ankle"]
        leg = f"{name}-leg"
        # One depth per leg, from its hip: garments hang over both legs, however far they swing.
        z = stage.near(hip, -0.12)
        stage.bone(shank, knee, ankle, z, "pants" if long else leg, f"{name}_shank")
        if worn.socks:
            stage.bone(sock, knee + 0.55 * (ankle - knee), ankle, z + 0.001, "socks", f"{name}_shank")
        stage.bone(thigh, hip, knee, z + 0.002, leg if bare else "pants", f"{name}_thigh")
        facing = np.sin(stage.yaw + 0.65 * side * np.cos(stage.yaw))
        pitch = joints[f"{name}_foot"] * np.sign(facing) * min(1.0, 1.4 * abs(facing))
        c, s = np.cos(-pitch), np.sin(-pitch)
        wide = np.sign(facing) * max(0.5, abs(facing))
        axes = np.stack([np.stack([c * wide, s * wide], -1), np.stack([-s, c], -1)], -1)
        stage.put(shoe, stage.flat(ankle), axes, z + 0.003, f"{name}-shoe", "")


def _torso(stage: _Stage, wardrobe: Wardrobe, joints: dict[str, np.ndarray], worn: Outfit) -> None:
    neck, pelvis, face = joints["neck"], joints["pelvis"], joints["face"]
    slim = float(np.hypot(np.cos(stage.yaw), 0.66 * np.sin(stage.yaw)))
    stage.bone(wardrobe.limb("skin", 0.08, 0.034, 0.032), neck, neck + 0.65 * (face - neck), stage.near(neck, -0.004), "torso-skin", "torso")
    heights, widths = [-0.02, 0.0, 0.03, 0.07, 0.2, 0.3], [0.035, 0.08, 0.118, 0.126, 0.1, 0.105]
    if worn.lower == "skirt" and worn.upper != "dress":
        skirt = wardrobe.gown("bottom", [0.24, 0.3, 0.5], [0.098, 0.112, 0.17], TORSO)
        stage.bone(skirt, neck, pelvis, stage.near(pelvis, 0.03), "skirt", "torso", slim)
    ends = {"upper-clothes": ([0.36], [0.11]), "coat": ([0.4, 0.52], [0.118, 0.135]), "dress": ([0.36, 0.55], [0.125, 0.19])}
    more_heights, more_widths = ends[worn.upper]
    shirt = wardrobe.gown("top", heights + more_heights, widths + more_widths, TORSO)
    stage.bone(shirt, neck, pelvis, stage.near(pelvis, 0.035), worn.upper, "torso", slim)
    if worn.scarf:
        wrap = wardrobe.cut("extra", [ellipse(0.07, 0.034, 0, -0.012)], 0.05)
        tail = wardrobe.limb("extra", 0.15, 0.024, 0.03)
        forward = np.array([0.03, 0.0, 0.09])
        stage.bone(tail, neck + forward, neck + forward + [0.02, 0.15, 0.0], stage.near(neck, 0.045), "scarf", "torso")
        stage.put(wrap, stage.flat(neck), np.eye(2), stage.near(neck, 0.05), "scarf", "torso")


def _arms(stage: _Stage, wardrobe: Wardrobe, joints: dict[str, np.ndarray], worn: Outfit) -> None:
    cloth = "top" if worn.long_sleeves else "skin"
    upper = wardrobe.limb(cloth, UPPER, 0.042 if worn.long_sleeves else 0.036, 0.034)
    fore = wardrobe.limb(cloth, FORE, 0.034, 0.027)
    sleeve = wardrobe.limb("top", 0.55 * UPPER, 0.046, 0.046)
    hand = wardrobe.cut("extra" if worn.gloves else "skin", [ellipse(0.03, 0.036, 0, 0.026)], 0.04)
    for name in ("right", "left"):
        shoulder, elbow, wrist = (joints[f"{name}_{kind}"] for kind in ("shoulder", "elbow", "wrist"))
        label = worn.upper if worn.long_sleeves else f"{name}-arm"
        z = stage.near((shoulder + elbow + wrist) / 3, 0.045)
        stage.bone(upper, shoulder, elbow, z, label, f"{name}_upper_arm")
        stage.bone(hand, wrist, wrist + 0.25 * (wrist - elbow), z + 0.001, "gloves" if worn.gloves else f"{name}-arm", "")
        stage.layers[-1].shown = None
        stage.bone(fore, elbow, wrist, z + 0.002, label, f"{name}_forearm")
        if not worn.long_sleeves:
            stage.bone(sleeve, shoulder, shoulder + 0.55 * (elbow - shoulder), z + 0.003, worn.upper, f"{name}_upper_arm")


def _head(stage: _Stage, wardrobe: Wardrobe, joints: dict[str, np.ndarray], worn: Outfit) -> None:
    face = joints["face"]
    centre = stage.flat(face)
    turn, front = np.sin(stage.yaw), max(0.45, float(np.cos(stage.yaw)))

    def put(sprite: Sprite, x: float, bias: float, label: str, width: float = 1.0) -> None:
        at = centre + np.array([x * stage.height, 0.0])
        stage.put(sprite, at, np.diag([width, 1.0]), stage.near(face, bias), label, "head")

    back = [ellipse(FACE_X * 1.18, FACE_Y * 1.08, 0, -0.012)]
    if worn.hair == "long":
        back.append(np.array([[-0.098, -0.01], [-0.11, 0.13], [-0.06, 0.15], [0.06, 0.15], [0.11, 0.13], [0.098, -0.01]]))
    if worn.hair == "bun" and worn.hat == "none":
        back.append(ellipse(0.042, 0.042, 0, -0.135))
    put(wardrobe.cut("hair", back, 0.06), -0.25 * FACE_X * turn, -0.06 - 0.1 * (worn.hair == "long"), "hair")
    put(wardrobe.cut("skin", [ellipse(FACE_X, FACE_Y)], 0.1, rim=0.15), 0.0, 0.06, "face")
    put(_features(wardrobe), 0.5 * FACE_X * turn, 0.065, "face", front)
    fringe = np.concatenate([ellipse(FACE_X * 1.08, FACE_Y * 1.1, 0, 0, np.pi, 2 * np.pi), [[0.07, -0.045], [0.02, -0.06], [-0.05, -0.035]]])
    put(wardrobe.cut("hair", [fringe], 0.05), -0.22 * FACE_X * turn, 0.068, "hair")
    if worn.sunglasses:
        lenses = [ellipse(0.03, 0.024, -0.035, -0.01), ellipse(0.03, 0.024, 0.035, -0.01), np.array([[-0.08, -0.02], [0.08, -0.02], [0.08, -0.012], [-0.08, -0.012]])]
        dark = wardrobe.plain | {"glass": np.array([0.07, 0.08, 0.1], np.float32)}
        wardrobe.plain = dark
        put(wardrobe.cut("glass", lenses, 0.03, rim=0.1), 0.5 * FACE_X * turn, 0.07, "sunglasses", front)
    if worn.hat != "none":
        dome = ellipse(FACE_X * 1.15, FACE_Y * 0.98, 0, -0.04, np.pi, 2 * np.pi)
        brim = {
            "cap": np.array([[0.0, -0.055], [0.13, -0.05], [0.15, -0.033], [0.0, -0.033]]) * [np.sign(turn) or 1, 1],
            "beanie": np.array([[-0.102, -0.065], [0.102, -0.065], [0.102, -0.026], [-0.102, -0.026]]),
            "brim": ellipse(0.16, 0.022, 0, -0.045),
        }[worn.hat]
        extra = [ellipse(0.03, 0.03, 0, -0.15)] if worn.hat == "beanie" else []
        put(wardrobe.cut("extra", [dome, brim, *extra], 0.06), -0.05 * FACE_X * turn, 0.075, "hat")


def _features(wardrobe: Wardrobe) -> Sprite:
    """Eyes, brows, nose and mouth as one cut-out."""
    scale = wardrobe.resolution
    eyes = [ellipse(0.0155, 0.0175, x, -0.008) for x in (-0.035, 0.035)]
    brows = [np.array([[x - 0.018, -0.038], [x + 0.018, -0.038], [x + 0.016, -0.031], [x - 0.016, -0.031]]) for x in (-0.036, 0.036)]
    mouth = np.concatenate([ellipse(0.026, 0.018, 0, 0.042, 0, np.pi)])
    nose = ellipse(0.008, 0.012, 0, 0.016)
    bounds = (-0.08, -0.06, 0.08, 0.08)
    columns, rows = max(16, round(0.16 * scale)), max(14, round(0.14 * scale))
    bounds = (-0.08, -0.06, -0.08 + 0.16, -0.06 + 0.16 * rows / columns)
    x = bounds[0] + (np.arange(columns) + 0.5) * 0.16 / columns
    y = (bounds[1] + (np.arange(rows) + 0.5) * 0.16 / columns)[:, None]
    skin, hair = wardrobe.plain["skin"], wardrobe.plain["hair"]
    texture = np.broadcast_to(skin * 0.82, (rows, columns, 3)).copy()
    texture[(y < -0.028) & (x == x)] = hair
    edge = 1.5 * 0.16 / columns
    white = textures.step(-0.024 + 0 * x - y, edge) * 0 + textures.step(0.03 - np.abs(y + 0.008), edge) * textures.step(np.abs(x) - 0.012, edge)
    texture = textures.mix(texture, np.ones(3), white * (y > -0.028) * (y < 0.012))
    for centre in (-0.035, 0.035):
        pupil = textures.step(0.0095 - np.hypot(x - centre, y + 0.006), edge)
        texture = textures.mix(texture, np.full(3, 0.08), pupil)
    texture = textures.mix(texture, np.array([0.65, 0.2, 0.2]), textures.step(y - 0.036, edge) * np.ones_like(x))
    return cut(texture.astype(np.float32), [*eyes, *brows, mouth, nose], bounds, 0.012, rim=0.1)
