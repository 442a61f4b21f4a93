"""The figure of the synthetic scenes: 15 joints that walk, wave, jump or dance, dressed in cut-outs of VIP's classes.

Axes: x to the figure's left, y down, z forward; unit = its height; origin on the ground between the feet. Left and right are
the figure's own. It is turned by a yaw and seen without perspective; a limb keeps its width, its length is projected.
"""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from tcore_lib import bodies
from tcore_lib.scenes import textures
from tcore_lib.scenes.layers import Layer, Sprite, World, cut, ellipse, mirrored, sheet
from tcore_lib.scenes.textures import Rng

JOINTS = tuple(name.replace(" ", "_") for name in bodies.JOINTS)
# Limbs that meet in a joint: it is visible where one of them is the nearest thing.
MEETING = {"neck": ["torso"], "belly": ["torso"], "face": ["head"]}
for _side in ("right", "left"):
    _arm, _fore, _thigh, _shank = (f"{_side}_{limb}" for limb in ("upper_arm", "forearm", "thigh", "shank"))
    MEETING |= {f"{_side}_shoulder": ["torso", _arm], f"{_side}_elbow": [_arm, _fore], f"{_side}_wrist": [_fore]}
    MEETING |= {f"{_side}_hip": ["torso", _thigh], f"{_side}_knee": [_thigh, _shank], f"{_side}_ankle": [_shank]}

# Lengths in units of the figure's height.
THIGH, SHANK, UPPER, FORE, TORSO, FOOT = 0.205, 0.205, 0.15, 0.14, 0.315, 0.04
SHOULDER, HIP = 0.112, 0.058
FACE_X, FACE_Y = 0.084, 0.1  # half width and half height of the face
SIDES = np.array([-1.0, 1.0])  # right, left

LABEL = {name.replace(" ", "-"): number for number, name in enumerate(bodies.PARTS)}  # VIP class of a garment or limb
SKIN = ("#f3d0b4", "#e8b994", "#d9a075", "#c98f63", "#9a623d", "#6b4029")
HAIR = ("#2b1d16", "#5a3825", "#8b5a2b", "#c9a15a", "#a33b22", "#70757c")


# ---- the skeleton ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pose:
    """Angles (radians) and shifts (heights) over time; limbs as (N, 2): right, left; the rest as (N,).

    A limb hangs down at 0; an angle lifts it forward, `..._spread` to its own side; no angle is relative to another.
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
    speed: float = 0.0  # forward, heights per second, so that the feet do not slide


def _walk(rng: Rng, beat: np.ndarray, tempo: float, extent: float) -> Pose:
    stride = 0.95 * beat[:, None] + [0, np.pi]
    zero, still = np.zeros_like(stride), np.zeros_like(beat)
    thigh = 0.5 * extent * np.sin(stride) + 0.06
    bend = 0.1 + 0.75 * np.clip(np.cos(stride - 0.2), 0, 1) ** 1.5
    upper = -0.5 * extent * np.sin(stride)
    # A foot on the ground moves back by two half strides per step, two steps per stride.
    speed = 4 * np.sin(0.5 * extent) * (THIGH + SHANK) * 0.95 * tempo
    arms = (upper, zero + 0.1, upper + 0.45, zero + 0.02)
    return Pose(thigh, thigh - bend, zero + 0.03, *arms, still + 0.05, still, still, speed)


def _wave(rng: Rng, beat: np.ndarray, tempo: float, extent: float) -> Pose:
    zero, still = np.zeros((len(beat), 2)), np.zeros_like(beat)
    up = (np.arange(2) == rng.integers(2)).astype(float)
    waving = 0.5 * extent * np.sin(1.7 * beat)[:, None]
    spread = up * (1.9 + 0.25 * waving) + (1 - up) * 0.18
    fore_spread = up * (2.75 + waving) + (1 - up) * (0.08 + 0.06 * np.sin(beat)[:, None])
    upper = zero + (1 - up) * 0.12 * np.sin(beat)[:, None]
    sway, breath = 0.02 * np.sin(beat * 0.8), 0.012 * np.sin(0.5 * beat)
    return Pose(zero, zero - 0.04, zero + 0.1, upper, spread, upper + 0.15, fore_spread, still, sway, breath)


def _jump(rng: Rng, beat: np.ndarray, tempo: float, extent: float) -> Pose:
    zero, still = np.zeros((len(beat), 2)), np.zeros_like(beat)
    open_ = (0.5 - 0.5 * np.cos(beat))[:, None] + zero
    spread = 0.2 + 2.35 * extent * open_
    knee = 0.2 * np.clip(-np.cos(2 * beat), 0, 1)[:, None] + zero
    hop = 0.1 * extent * np.abs(np.sin(beat))
    fore_spread = spread + 0.15 * open_ - 0.05
    return Pose(knee, -knee, 0.06 + 0.42 * open_, zero, spread, zero + 0.1, fore_spread, still, still, hop)


def _dance(rng: Rng, beat: np.ndarray, tempo: float, extent: float) -> Pose:
    zero = np.zeros((len(beat), 2))
    turn = np.sin(beat)[:, None] * SIDES
    spread = 1.25 + 0.95 * extent * turn
    fore_spread = spread + 0.9 * np.sin(beat + 0.8)[:, None] * SIDES
    dip = 0.3 + 0.28 * np.sin(2 * beat)[:, None] + zero
    lean, sway, hop = 0.04 * np.sin(beat), 0.05 * np.sin(beat), 0.02 * np.abs(np.sin(beat))
    return Pose(dip + 0.15 * turn, -dip, zero + 0.2, zero + 0.25, spread, zero + 0.35, fore_spread, lean, sway, hop)


ACTIONS = {"walking": _walk, "waving": _wave, "jumping": _jump, "dancing": _dance}  # kind of motion -> how


def _skeleton(held: Pose) -> dict[str, np.ndarray]:
    """Positions (N, 3) of `JOINTS` and `pelvis` by name, and (N,) pitch of `right_foot`, `left_foot` in radians."""
    n = len(held.lift)
    pelvis = np.zeros((n, 3))
    up = np.stack([held.sway * 0.8, -np.cos(held.lean), np.sin(held.lean)], -1)
    nod = np.stack([0.6 * held.sway, -np.ones(n), 0.5 * np.sin(held.lean) + 0.03], -1)
    neck = pelvis + TORSO * up
    lateral = np.stack([SIDES, [0.0, 0.0], [0.0, 0.0]], -1)  # (2, 3): right, left
    hip = pelvis[:, None] + HIP * lateral  # (N, 2, 3), as everything that there are two of
    shoulder = (neck - 0.05 * up)[:, None] + SHOULDER * lateral
    knee = hip + THIGH * _direction(held.leg_spread, held.thigh)
    ankle = knee + SHANK * _direction(held.leg_spread, held.shank)
    elbow = shoulder + UPPER * _direction(held.upper_spread, held.upper)
    wrist = elbow + FORE * _direction(held.fore_spread, held.fore)
    pairs = {"hip": hip, "knee": knee, "ankle": ankle, "shoulder": shoulder, "elbow": elbow, "wrist": wrist}
    out = {"pelvis": pelvis, "neck": neck, "belly": pelvis + 0.45 * TORSO * up, "face": neck + 0.122 * nod}
    out |= {f"{side}_{name}": both[:, i] for name, both in pairs.items() for i, side in enumerate(("right", "left"))}
    # The lower foot stands on the ground (y = 0), or is lifted above it.
    shift = np.stack([held.sway, -FOOT - ankle[..., 1].max(1) - held.lift, np.zeros(n)], -1)
    out = {name: place + shift for name, place in out.items()}
    pitch = np.clip(0.7 * held.shank, -0.9, 0.3)
    return out | {"right_foot": pitch[:, 0], "left_foot": pitch[:, 1]}


def _direction(spread: np.ndarray, swing: np.ndarray) -> np.ndarray:
    """Unit vectors (N, 2, 3) along the right and the left limb."""
    return np.stack([SIDES * np.sin(spread), np.cos(spread) * np.cos(swing), np.cos(spread) * np.sin(swing)], -1)


# ---- the clothes -----------------------------------------------------------------------------------------------------


class Figure:
    """A figure that stands at `foot`: picks its clothes, cuts its sprites and puts them onto its joints.

    `tones` (6, 3) are the clothes' palette, `joints` come from `_skeleton`, `foot` (N, 2) is the world point between the feet,
    `height` is in world units; a yaw of 0 radians faces the viewer, a positive one turns to the right of the picture.
    """

    owner, depth = 1, 2.0  # its object id; its parts stay within half a unit of its depth

    def __init__(
        self,
        world: World,
        tones: np.ndarray,
        joints: dict[str, np.ndarray],
        foot: np.ndarray,
        height: float,
        yaw: float,
    ) -> None:
        rng = world.rng
        self.rng, self.joints, self.foot, self.height, self.yaw = rng, joints, foot, height, yaw
        self.resolution = world.resolution * height * 1.15  # pixels per figure height
        self.layers: list[Layer] = []
        self.upper = str(rng.choice(["upper-clothes", "upper-clothes", "coat", "dress"]))
        self.lower = "skirt" if self.upper == "dress" else str(rng.choice(["pants", "shorts", "skirt"]))
        self.long_sleeves, self.gloves, self.socks, self.scarf, self.sunglasses = (
            rng.random(5) < [0.5, 0.35, 0.7, 0.4, 0.35]
        ).tolist()
        self.long_sleeves |= self.upper == "coat"
        self.socks &= self.lower != "pants"
        self.hat = str(rng.choice(["none", "cap", "beanie", "brim"]))
        self.hair = str(rng.choice(["short", "long", "bun"]))
        order = tones[rng.permutation(len(tones))]
        self.plain = {
            "skin": textures.colours(SKIN)[rng.integers(len(SKIN))],
            "hair": textures.colours(HAIR)[rng.integers(len(HAIR))],
            "shoe": np.clip(order[5] * 0.7 + 0.05, 0, 1),
            "glass": np.array([0.07, 0.08, 0.1], np.float32),
        }
        # One bolt of cloth per garment, so that sleeves match the shirt and the trouser legs one another.
        side = max(24, round(0.3 * self.resolution))
        shares = {"top": order[:3], "bottom": order[[3, 4, 0]], "extra": order[[4, 5, 1]]}
        self.cloth = {name: textures.pattern(rng, (2 * side, side), three) for name, three in shares.items()}

    def cut(
        self, name: str, outlines: list[np.ndarray], bevel: float, *, length: float = 0, rim: float = 0.3
    ) -> Sprite:
        """Cut a garment or body part around its outlines, from a cloth or a plain colour with a little grain."""
        (rows, columns), bounds = sheet(outlines, self.resolution, 0.026)
        if name in self.plain:
            fabric = textures.grain(self.rng, np.broadcast_to(self.plain[name], (rows, columns, 3)), 0.03, 6)
        else:
            cloth = self.cloth[name]
            y, x = (int(self.rng.integers(max(1, cloth.shape[i] - (rows, columns)[i] + 1))) for i in (0, 1))
            short = (max(0, y + rows - cloth.shape[0]), max(0, x + columns - cloth.shape[1]))
            wide = np.pad(cloth, ((0, short[0]), (0, short[1]), (0, 0)), "symmetric")
            fabric = wide[y : y + rows, x : x + columns]
        return cut(fabric, outlines, bounds, bevel, length=length, rim=rim)

    def limb(self, name: str, length: float, r0: float, r1: float) -> Sprite:
        """A tapered limb from (0, 0) to (0, length), with round ends of radius r0 and r1."""
        ends = [ellipse(r1, r1, 0, length, 0, np.pi), ellipse(r0, r0, 0, 0, np.pi, 2 * np.pi)]
        return self.cut(name, [np.concatenate(ends)], 0.9 * (r0 + r1), length=length, rim=0.22)

    def gown(self, name: str, heights: list[float], widths: list[float]) -> Sprite:
        """A symmetric garment with half widths given at some heights below the neck."""
        y = np.linspace(heights[0], heights[-1], 40)
        outline = mirrored(y, PchipInterpolator(heights, widths)(y), upright=True)
        return self.cut(name, [outline], 0.13, length=TORSO, rim=0.25)

    def flat(self, points: np.ndarray) -> np.ndarray:
        """Figure coordinates (N, 3) -> world (N, 2)."""
        x = points[:, 0] * np.cos(self.yaw) + points[:, 2] * np.sin(self.yaw)
        return self.foot + self.height * np.stack([x, points[:, 1]], -1)

    def near(self, points: np.ndarray, bias: float) -> np.ndarray:
        """(N,) depth of figure points, brought nearer by `bias` heights."""
        z = points[:, 2] * np.cos(self.yaw) - points[:, 0] * np.sin(self.yaw)
        return self.depth + 0.4 * np.clip(z + bias, -1, 1)

    def put(self, sprite: Sprite, at: np.ndarray, axes: np.ndarray, depth: np.ndarray, label: str, limb: str) -> Layer:
        """Add a sprite at world points (N, 2); `axes` (2, 2) or (N, 2, 2) in figure heights."""
        full = np.broadcast_to(axes, (len(at), 2, 2)) * self.height
        layer = Layer(sprite, at, full, depth, self.owner, LABEL[label], limb)
        self.layers.append(layer)
        return layer

    def bone(
        self, sprite: Sprite, a: np.ndarray, b: np.ndarray, depth: np.ndarray, label: str, limb: str, width: float = 1
    ) -> None:
        """Add a limb between two joints a and b (N, 3), with a small shadow on what lies behind it."""
        p = self.flat(a)
        along = self.flat(b) - p
        size = np.linalg.norm(along, axis=1, keepdims=True)
        along = np.where(size > 1e-4, along / np.maximum(size, 1e-4), [0.0, 1.0])
        axes = np.stack([np.stack([along[:, 1], -along[:, 0]], -1) * width, along], -1)
        layer = self.put(sprite, p, axes, depth, label, limb)
        layer.shadow = (0.012 * self.height, 0.018 * self.height, 0.4)
        if sprite.length:
            layer.shown = size[:, 0] / self.height


def _legs(figure: Figure) -> None:
    bare, long = figure.lower == "skirt", figure.lower == "pants"
    thigh = figure.limb("skin", THIGH, 0.05, 0.038) if bare else figure.limb("bottom", THIGH, 0.062, 0.05)
    shank = figure.limb("bottom", SHANK, 0.05, 0.04) if long else figure.limb("skin", SHANK, 0.038, 0.026)
    sock = figure.limb("extra", 0.45 * SHANK, 0.034, 0.028)
    x = np.linspace(-0.045, 0.098, 24)
    instep = PchipInterpolator([-0.045, -0.04, 0.0, 0.05, 0.09, 0.098], [0.02, 0.0, -0.026, -0.004, 0.012, 0.03])(x)
    shoe = figure.cut("shoe", [np.concatenate([np.stack([x, instep], 1), [[0.098, 0.042], [-0.045, 0.042]]])], 0.05)
    for name, side in (("right", -1), ("left", 1)):
        hip, knee, ankle = (figure.joints[f"{name}_{kind}"] for kind in ("hip", "knee", "ankle"))
        # One depth per leg, that of its hip: garments hang over both legs, however far they swing.
        depth = figure.near(hip, -0.12)
        figure.bone(shank, knee, ankle, depth, "trousers" if long else f"{name}-leg", f"{name}_shank")
        if figure.socks:
            figure.bone(sock, knee + 0.55 * (ankle - knee), ankle, depth + 0.001, "socks", f"{name}_shank")
        figure.bone(thigh, hip, knee, depth + 0.002, f"{name}-leg" if bare else "trousers", f"{name}_thigh")
        # Feet point outwards; a foot seen from the front is drawn half as long.
        facing = np.sin(figure.yaw + 0.65 * side * np.cos(figure.yaw))
        pitch = figure.joints[f"{name}_foot"] * np.sign(facing) * min(1.0, 1.4 * abs(facing))
        c, s, wide = np.cos(pitch), -np.sin(pitch), np.sign(facing) * max(0.5, abs(facing))
        axes = np.stack([np.stack([c * wide, s * wide], -1), np.stack([-s, c], -1)], -1)
        figure.put(shoe, figure.flat(ankle), axes, depth + 0.003, f"{name}-shoe", "")


def _torso(figure: Figure) -> None:
    neck, pelvis, face = figure.joints["neck"], figure.joints["pelvis"], figure.joints["face"]
    # A body is two thirds as deep as it is wide.
    slim = float(np.hypot(np.cos(figure.yaw), 0.66 * np.sin(figure.yaw)))
    throat = figure.limb("skin", 0.08, 0.034, 0.032)
    figure.bone(throat, neck, neck + 0.65 * (face - neck), figure.near(neck, -0.004), "torso-skin", "torso")
    if figure.lower == "skirt" and figure.upper != "dress":
        skirt = figure.gown("bottom", [0.24, 0.3, 0.5], [0.098, 0.112, 0.17])
        figure.bone(skirt, neck, pelvis, figure.near(pelvis, 0.03), "skirt", "torso", slim)
    heights, widths = [-0.02, 0.0, 0.03, 0.07, 0.2, 0.3], [0.035, 0.08, 0.118, 0.126, 0.1, 0.105]
    hem = {
        "upper-clothes": ([0.36], [0.11]),
        "coat": ([0.4, 0.52], [0.118, 0.135]),
        "dress": ([0.36, 0.55], [0.125, 0.19]),
    }
    shirt = figure.gown("top", heights + hem[figure.upper][0], widths + hem[figure.upper][1])
    figure.bone(shirt, neck, pelvis, figure.near(pelvis, 0.035), figure.upper, "torso", slim)
    if figure.scarf:
        tail = figure.limb("extra", 0.15, 0.024, 0.03)
        top = neck + np.array([0.03, 0.0, 0.05])
        figure.bone(tail, top, top + np.array([0.02, 0.15, 0.0]), figure.near(neck, 0.045), "scarf", "torso")
        wrap = figure.cut("extra", [ellipse(0.07, 0.034, 0, -0.012)], 0.05)
        figure.put(wrap, figure.flat(neck), np.eye(2), figure.near(neck, 0.05), "scarf", "torso")


def _arms(figure: Figure) -> None:
    cloth = "top" if figure.long_sleeves else "skin"
    upper = figure.limb(cloth, UPPER, 0.042 if figure.long_sleeves else 0.036, 0.034)
    fore = figure.limb(cloth, FORE, 0.034, 0.027)
    sleeve = figure.limb("top", 0.55 * UPPER, 0.046, 0.046)
    hand = figure.cut("extra" if figure.gloves else "skin", [ellipse(0.03, 0.036, 0, 0.026)], 0.04)
    for name in ("right", "left"):
        shoulder, elbow, wrist = (figure.joints[f"{name}_{kind}"] for kind in ("shoulder", "elbow", "wrist"))
        skin = f"{name}-arm"
        label = figure.upper if figure.long_sleeves else skin
        depth = figure.near((shoulder + elbow + wrist) / 3, 0.045)
        figure.bone(upper, shoulder, elbow, depth, label, f"{name}_upper_arm")
        figure.bone(hand, wrist, 2 * wrist - elbow, depth + 0.001, "gloves" if figure.gloves else skin, "")
        figure.bone(fore, elbow, wrist, depth + 0.002, label, f"{name}_forearm")
        if not figure.long_sleeves:
            cuff = shoulder + 0.55 * (elbow - shoulder)
            figure.bone(sleeve, shoulder, cuff, depth + 0.003, figure.upper, f"{name}_upper_arm")


def _head(figure: Figure) -> None:
    """Hair behind, face, features, hair in front, glasses, hat. What lies on the face turns with the yaw."""
    face = figure.joints["face"]
    centre = figure.flat(face)
    turn, front = float(np.sin(figure.yaw)), max(0.45, float(np.cos(figure.yaw)))

    def put(sprite: Sprite, shift: float, bias: float, label: str, width: float = 1.0) -> None:
        at = centre + np.array([shift * FACE_X * turn * figure.height, 0.0])
        figure.put(sprite, at, np.diag([width, 1.0]), figure.near(face, bias), label, "head")

    back = [ellipse(FACE_X * 1.18, FACE_Y * 1.08, 0, -0.012)]
    if figure.hair == "long":
        half, y = np.array([[0.098, -0.01], [0.112, 0.11], [0.1, 0.14], [0.06, 0.15]]).T
        back.append(mirrored(y, half, upright=True))
    if figure.hair == "bun" and figure.hat == "none":
        back.append(ellipse(0.042, 0.042, 0, -0.135))
    put(figure.cut("hair", back, 0.06), -0.25, -0.16 if figure.hair == "long" else -0.06, "hair")
    put(figure.cut("skin", [ellipse(FACE_X, FACE_Y)], 0.1, rim=0.15), 0.0, 0.06, "face")
    put(_features(figure), 0.5, 0.065, "face", front)
    arc = ellipse(FACE_X * 1.08, FACE_Y * 1.1, 0, 0, np.pi, 2 * np.pi)
    fringe = np.concatenate([arc, [[0.07, -0.045], [0.02, -0.06], [-0.05, -0.035]]])
    put(figure.cut("hair", [fringe], 0.05), -0.22, 0.068, "hair")
    if figure.sunglasses:
        bar = np.array([[-0.08, -0.02], [0.08, -0.02], [0.08, -0.012], [-0.08, -0.012]])
        lenses = [ellipse(0.03, 0.024, x, -0.01) for x in (-0.035, 0.035)]
        put(figure.cut("glass", [*lenses, bar], 0.03, rim=0.1), 0.5, 0.07, "sunglasses", front)
    if figure.hat != "none":
        put(figure.cut("extra", _hat(figure.hat, -1.0 if turn < 0 else 1.0), 0.06), -0.05, 0.075, "hat")


def _hat(kind: str, ahead: float) -> list[np.ndarray]:
    """Outlines of a hat around the middle of the face; `ahead` is the sign of x that the figure faces."""
    dome = ellipse(FACE_X * 1.15, FACE_Y * 0.98, 0, -0.04, np.pi, 2 * np.pi)
    if kind == "cap":
        return [dome, np.array([[0.0, -0.055], [0.13, -0.05], [0.15, -0.033], [0.0, -0.033]]) * [ahead, 1]]
    if kind == "beanie":
        band = np.array([[-0.102, -0.065], [0.102, -0.065], [0.102, -0.026], [-0.102, -0.026]])
        return [dome, band, ellipse(0.03, 0.03, 0, -0.15)]
    return [dome, ellipse(0.16, 0.022, 0, -0.045)]


def _features(figure: Figure) -> Sprite:
    """Eyes, brows, nose and mouth as one cut-out."""
    eyes = [ellipse(0.0155, 0.0175, x, -0.008) for x in (-0.035, 0.035)]
    brow = np.array([[-0.018, -0.038], [0.018, -0.038], [0.016, -0.031], [-0.016, -0.031]])
    brows = [brow + np.array([x, 0]) for x in (-0.036, 0.036)]
    nose, mouth = ellipse(0.008, 0.012, 0, 0.016), ellipse(0.026, 0.018, 0, 0.042, 0, np.pi)
    columns, rows = max(16, round(0.16 * figure.resolution)), max(14, round(0.14 * figure.resolution))
    pixel = 0.16 / columns
    x, y = (np.arange(columns) + 0.5) * pixel - 0.08, ((np.arange(rows) + 0.5) * pixel - 0.06)[:, None]
    soft = 1.5 * pixel
    image = np.broadcast_to(figure.plain["skin"] * 0.82, (rows, columns, 3))
    image = np.where((y < -0.028)[..., None], figure.plain["hair"], image)
    white = textures.step(np.abs(x) - 0.012, soft) * ((y > -0.028) & (y < 0.012))
    image = textures.mix(image, np.ones(3), white)
    for centre in (-0.035, 0.035):
        image = textures.mix(image, np.full(3, 0.08), textures.step(0.0095 - np.hypot(x - centre, y + 0.006), soft))
    lips = textures.step(y - 0.036, soft) * np.ones_like(x)
    image = textures.mix(image, np.array([0.65, 0.2, 0.2]), lips).astype(np.float32)
    bounds = (-0.08, -0.06, 0.08, -0.06 + rows * pixel)
    return cut(image, [*eyes, *brows, mouth, nose], bounds, 0.012, rim=0.1)


def figure_layers(world: World, kind: str) -> tuple[list[Layer], np.ndarray, float]:
    """A figure that moves in a way of `ACTIONS`, with random tempo, phase and extent.

    Returns its layers, its joints (N, 15, 2) in world units in the order of `JOINTS`, and how far it walks.
    """
    rng = world.rng
    height = rng.uniform(0.62, 0.72) if kind != "jumping" else rng.uniform(0.56, 0.62)
    tempo, phase, extent = rng.uniform(0.85, 1.15), rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.15)
    held = ACTIONS[kind](rng, 2 * np.pi * tempo * world.times + phase, tempo, extent)
    towards = float(rng.choice([-1.0, 1.0]))
    yaw = towards * (rng.uniform(0.75, 1.2) if kind == "walking" else rng.uniform(0.0, 0.45))
    # A long walk is slowed down, so that it ends within the backdrop.
    walk = towards * min(held.speed * np.sin(abs(yaw)) * height * world.seconds, 2.5)
    x = rng.uniform(-0.12, 0.12) + walk * (world.times / world.seconds - 0.5)
    foot = np.stack([x, np.full_like(x, world.ground + 0.03)], -1)
    clothes = 0.75 * textures.palette(rng) + 0.25 * world.tones
    figure = Figure(world, clothes, _skeleton(held), foot, height, yaw)
    for part in (_legs, _torso, _arms, _head):
        part(figure)
    return figure.layers, np.stack([figure.flat(figure.joints[name]) for name in JOINTS], 1), walk
