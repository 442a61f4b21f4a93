"""The articulated figure of the synthetic scenes: a skeleton dressed in cut-outs, each with its class of VIP.

Sprites are cut in units of the figure's height. The skeleton is turned by a yaw and seen from the front without
perspective; a limb keeps its width and is shortened along its length, as its projection is.
"""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from tcore_lib.bodies import PARTS
from tcore_lib.scenes import textures
from tcore_lib.scenes.skeleton import FORE, JOINTS, LIMB, SHANK, THIGH, TORSO, UPPER
from tcore_lib.scenes.sprites import NO_LIMB, Layer, Sprite, cut, ellipse
from tcore_lib.scenes.textures import Rng

LABEL = {name.replace(" ", "-"): number for number, name in enumerate(PARTS)}  # VIP class of a garment or limb
SKIN = ("#f3d0b4", "#e8b994", "#d9a075", "#c98f63", "#9a623d", "#6b4029")
HAIR = ("#2b1d16", "#5a3825", "#8b5a2b", "#c9a15a", "#a33b22", "#70757c")
FACE_X, FACE_Y = 0.084, 0.1  # half width and half height of the face

Joints = dict[str, np.ndarray]


@dataclass(frozen=True)
class Outfit:
    """What a figure wears."""

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
    chance = rng.random(5)
    return Outfit(
        upper=upper,
        lower=lower,
        long_sleeves=upper == "coat" or bool(chance[0] < 0.5),
        gloves=bool(chance[1] < 0.35),
        socks=lower != "pants" and bool(chance[2] < 0.7),
        scarf=bool(chance[3] < 0.4),
        sunglasses=bool(chance[4] < 0.35),
        hat=str(rng.choice(["none", "cap", "beanie", "brim"])),
        hair=str(rng.choice(["short", "long", "bun"])),
    )


class Wardrobe:
    """Cuts the sprites of one figure.

    Args:
        rng: cloth and colours are drawn from it.
        tones: (6, 3) palette of the clothes.
        resolution: pixels per figure height.
    """

    def __init__(self, rng: Rng, tones: np.ndarray, resolution: float) -> None:
        self.rng, self.resolution = rng, resolution
        order = tones[rng.permutation(len(tones))]
        self.plain = {
            "skin": textures.colours(SKIN)[rng.integers(len(SKIN))],
            "hair": textures.colours(HAIR)[rng.integers(len(HAIR))],
            "shoe": np.clip(order[5] * 0.7 + 0.05, 0, 1),
            "glass": np.array([0.07, 0.08, 0.1], np.float32),
        }
        # One bolt of cloth per garment, so that sleeves match the shirt and the trouser legs one another.
        side = max(24, round(0.3 * resolution))
        shares = {"top": order[:3], "bottom": order[[3, 4, 0]], "extra": order[[4, 5, 1]]}
        self.cloth = {name: textures.pattern(rng, (2 * side, side), three) for name, three in shares.items()}

    def fabric(self, name: str, rows: int, columns: int) -> np.ndarray:
        """A piece (rows, columns, 3) of a cloth, or of a plain colour with a little grain."""
        if name in self.plain:
            return textures.grain(self.rng, np.broadcast_to(self.plain[name], (rows, columns, 3)), 0.03, 6)
        cloth = self.cloth[name]
        y, x = (int(self.rng.integers(max(1, cloth.shape[i] - (rows, columns)[i] + 1))) for i in (0, 1))
        short = (max(0, y + rows - cloth.shape[0]), max(0, x + columns - cloth.shape[1]))
        wide = np.pad(cloth, ((0, short[0]), (0, short[1]), (0, 0)), "symmetric")
        return wide[y : y + rows, x : x + columns]

    def cut(
        self, name: str, outlines: list[np.ndarray], bevel: float, *, length: float = 0, rim: float = 0.3
    ) -> Sprite:
        """Cut a garment or body part around its outlines."""
        points = np.concatenate(outlines)
        margin = max(0.026, 2.5 / self.resolution)
        (x0, y0), (x1, y1) = points.min(0) - margin, points.max(0) + margin
        rows, columns = (max(6, round(size * self.resolution)) for size in (y1 - y0, x1 - x0))
        bounds = (x0, y0, x0 + columns / self.resolution, y0 + rows / self.resolution)
        return cut(self.fabric(name, rows, columns), outlines, bounds, bevel, length=length, rim=rim)

    def limb(self, name: str, length: float, r0: float, r1: float) -> Sprite:
        """A tapered limb from (0, 0) to (0, length), with round ends of radius r0 and r1."""
        lower = ellipse(r1, r1, 0, length, 0, np.pi)
        upper = ellipse(r0, r0, 0, 0, np.pi, 2 * np.pi)
        return self.cut(name, [np.concatenate([lower, upper])], 0.9 * (r0 + r1), length=length, rim=0.22)

    def gown(self, name: str, heights: list[float], widths: list[float]) -> Sprite:
        """A symmetric garment with half widths given at some heights below the neck."""
        y = np.linspace(heights[0], heights[-1], 40)
        half = PchipInterpolator(heights, widths)(y)
        outline = np.concatenate([np.stack([half, y], 1), np.stack([-half, y], 1)[::-1]])
        return self.cut(name, [outline], 0.13, length=TORSO, rim=0.25)


@dataclass
class Stand:
    """Where a figure stands; collects its layers.

    Attributes:
        foot: (N, 2) world point between the feet.
        height: world units.
        yaw: radians; 0 faces the viewer, positive turns to the right of the picture.
        depth: of the figure among the objects; its parts stay within half a unit of it.
        owner: object id.
        layers: what has been put on.
    """

    foot: np.ndarray
    height: float
    yaw: float
    depth: float
    owner: int
    layers: list[Layer]

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
        layer = Layer(sprite, at, full, depth, self.owner, LABEL[label], LIMB.get(limb, NO_LIMB))
        self.layers.append(layer)
        return layer

    def bone(
        self,
        sprite: Sprite,
        start: np.ndarray,
        end: np.ndarray,
        depth: np.ndarray,
        label: str,
        limb: str,
        width: float = 1.0,
    ) -> None:
        """Add a limb between two joints (N, 3), with a small shadow on what lies behind it."""
        p, q = self.flat(start), self.flat(end)
        along = q - p
        size = np.linalg.norm(along, axis=1, keepdims=True)
        along = np.where(size > 1e-4, along / np.maximum(size, 1e-4), [0.0, 1.0])
        axes = np.stack([np.stack([along[:, 1], -along[:, 0]], -1) * width, along], -1)
        layer = self.put(sprite, p, axes, depth, label, limb)
        layer.shadow = (0.012 * self.height, 0.018 * self.height, 0.4)
        if sprite.length:
            layer.shown = size[:, 0] / self.height


def figure_layers(
    rng: Rng, joints: Joints, worn: Outfit, tones: np.ndarray, stand: Stand, resolution: float
) -> tuple[list[Layer], np.ndarray]:
    """Dress a skeleton.

    Args:
        rng: textures are drawn from it.
        joints: from `skeleton.skeleton`.
        worn: from `outfit`.
        tones: (6, 3) palette of the clothes.
        stand: where it stands.
        resolution: pixels per world unit.

    Returns:
        Layers, and joints as (N, 15, 2) world points in the order of `JOINTS`.
    """
    wardrobe = Wardrobe(rng, tones, resolution * stand.height * 1.15)
    _legs(stand, wardrobe, joints, worn)
    _torso(stand, wardrobe, joints, worn)
    _arms(stand, wardrobe, joints, worn)
    _head(stand, wardrobe, joints["face"], worn)
    return stand.layers, np.stack([stand.flat(joints[name]) for name in JOINTS], 1)


def _legs(stand: Stand, wardrobe: Wardrobe, joints: Joints, worn: Outfit) -> None:
    bare, long = worn.lower == "skirt", worn.lower == "pants"
    thigh = wardrobe.limb("skin", THIGH, 0.05, 0.038) if bare else wardrobe.limb("bottom", THIGH, 0.062, 0.05)
    shank = wardrobe.limb("bottom", SHANK, 0.05, 0.04) if long else wardrobe.limb("skin", SHANK, 0.038, 0.026)
    sock = wardrobe.limb("extra", 0.45 * SHANK, 0.034, 0.028)
    x = np.linspace(-0.045, 0.098, 24)
    instep = PchipInterpolator([-0.045, -0.04, 0.0, 0.05, 0.09, 0.098], [0.02, 0.0, -0.026, -0.004, 0.012, 0.03])(x)
    shoe = wardrobe.cut("shoe", [np.concatenate([np.stack([x, instep], 1), [[0.098, 0.042], [-0.045, 0.042]]])], 0.05)
    for name, side in (("right", -1), ("left", 1)):
        hip, knee, ankle = (joints[f"{name}_{kind}"] for kind in ("hip", "knee", "ankle"))
        # One depth per leg, that of its hip: garments hang over both legs, however far they swing.
        depth = stand.near(hip, -0.12)
        stand.bone(shank, knee, ankle, depth, "trousers" if long else f"{name}-leg", f"{name}_shank")
        if worn.socks:
            stand.bone(sock, knee + 0.55 * (ankle - knee), ankle, depth + 0.001, "socks", f"{name}_shank")
        stand.bone(thigh, hip, knee, depth + 0.002, f"{name}-leg" if bare else "trousers", f"{name}_thigh")
        # Feet point outwards; a foot seen from the front is drawn half as long.
        facing = np.sin(stand.yaw + 0.65 * side * np.cos(stand.yaw))
        pitch = joints[f"{name}_foot"] * np.sign(facing) * min(1.0, 1.4 * abs(facing))
        c, s, wide = np.cos(pitch), -np.sin(pitch), np.sign(facing) * max(0.5, abs(facing))
        axes = np.stack([np.stack([c * wide, s * wide], -1), np.stack([-s, c], -1)], -1)
        stand.put(shoe, stand.flat(ankle), axes, depth + 0.003, f"{name}-shoe", "")


def _torso(stand: Stand, wardrobe: Wardrobe, joints: Joints, worn: Outfit) -> None:
    neck, pelvis, face = joints["neck"], joints["pelvis"], joints["face"]
    # A body is two thirds as deep as it is wide.
    slim = float(np.hypot(np.cos(stand.yaw), 0.66 * np.sin(stand.yaw)))
    throat = wardrobe.limb("skin", 0.08, 0.034, 0.032)
    stand.bone(throat, neck, neck + 0.65 * (face - neck), stand.near(neck, -0.004), "torso-skin", "torso")
    if worn.lower == "skirt" and worn.upper != "dress":
        skirt = wardrobe.gown("bottom", [0.24, 0.3, 0.5], [0.098, 0.112, 0.17])
        stand.bone(skirt, neck, pelvis, stand.near(pelvis, 0.03), "skirt", "torso", slim)
    heights, widths = [-0.02, 0.0, 0.03, 0.07, 0.2, 0.3], [0.035, 0.08, 0.118, 0.126, 0.1, 0.105]
    hem = {
        "upper-clothes": ([0.36], [0.11]),
        "coat": ([0.4, 0.52], [0.118, 0.135]),
        "dress": ([0.36, 0.55], [0.125, 0.19]),
    }
    shirt = wardrobe.gown("top", heights + hem[worn.upper][0], widths + hem[worn.upper][1])
    stand.bone(shirt, neck, pelvis, stand.near(pelvis, 0.035), worn.upper, "torso", slim)
    if worn.scarf:
        tail = wardrobe.limb("extra", 0.15, 0.024, 0.03)
        top = neck + np.array([0.03, 0.0, 0.05])
        stand.bone(tail, top, top + np.array([0.02, 0.15, 0.0]), stand.near(neck, 0.045), "scarf", "torso")
        wrap = wardrobe.cut("extra", [ellipse(0.07, 0.034, 0, -0.012)], 0.05)
        stand.put(wrap, stand.flat(neck), np.eye(2), stand.near(neck, 0.05), "scarf", "torso")


def _arms(stand: Stand, wardrobe: Wardrobe, joints: Joints, worn: Outfit) -> None:
    cloth = "top" if worn.long_sleeves else "skin"
    upper = wardrobe.limb(cloth, UPPER, 0.042 if worn.long_sleeves else 0.036, 0.034)
    fore = wardrobe.limb(cloth, FORE, 0.034, 0.027)
    sleeve = wardrobe.limb("top", 0.55 * UPPER, 0.046, 0.046)
    hand = wardrobe.cut("extra" if worn.gloves else "skin", [ellipse(0.03, 0.036, 0, 0.026)], 0.04)
    for name in ("right", "left"):
        shoulder, elbow, wrist = (joints[f"{name}_{kind}"] for kind in ("shoulder", "elbow", "wrist"))
        skin = f"{name}-arm"
        label = worn.upper if worn.long_sleeves else skin
        depth = stand.near((shoulder + elbow + wrist) / 3, 0.045)
        stand.bone(upper, shoulder, elbow, depth, label, f"{name}_upper_arm")
        stand.bone(hand, wrist, 2 * wrist - elbow, depth + 0.001, "gloves" if worn.gloves else skin, "")
        stand.bone(fore, elbow, wrist, depth + 0.002, label, f"{name}_forearm")
        if not worn.long_sleeves:
            cuff = shoulder + 0.55 * (elbow - shoulder)
            stand.bone(sleeve, shoulder, cuff, depth + 0.003, worn.upper, f"{name}_upper_arm")


def _head(stand: Stand, wardrobe: Wardrobe, face: np.ndarray, worn: Outfit) -> None:
    """Hair behind, face, features, hair in front, glasses, hat. What lies on the face turns with the yaw."""
    centre = stand.flat(face)
    turn, front = float(np.sin(stand.yaw)), max(0.45, float(np.cos(stand.yaw)))

    def put(sprite: Sprite, shift: float, bias: float, label: str, width: float = 1.0) -> None:
        at = centre + np.array([shift * FACE_X * turn * stand.height, 0.0])
        stand.put(sprite, at, np.diag([width, 1.0]), stand.near(face, bias), label, "head")

    back = [ellipse(FACE_X * 1.18, FACE_Y * 1.08, 0, -0.012)]
    if worn.hair == "long":
        half = np.array([[0.098, -0.01], [0.112, 0.11], [0.1, 0.14], [0.06, 0.15]])
        back.append(np.concatenate([half, half[::-1] * [-1, 1]]))
    if worn.hair == "bun" and worn.hat == "none":
        back.append(ellipse(0.042, 0.042, 0, -0.135))
    put(wardrobe.cut("hair", back, 0.06), -0.25, -0.16 if worn.hair == "long" else -0.06, "hair")
    put(wardrobe.cut("skin", [ellipse(FACE_X, FACE_Y)], 0.1, rim=0.15), 0.0, 0.06, "face")
    put(_features(wardrobe), 0.5, 0.065, "face", front)
    arc = ellipse(FACE_X * 1.08, FACE_Y * 1.1, 0, 0, np.pi, 2 * np.pi)
    put(
        wardrobe.cut("hair", [np.concatenate([arc, [[0.07, -0.045], [0.02, -0.06], [-0.05, -0.035]]])], 0.05),
        -0.22,
        0.068,
        "hair",
    )
    if worn.sunglasses:
        bar = np.array([[-0.08, -0.02], [0.08, -0.02], [0.08, -0.012], [-0.08, -0.012]])
        lenses = [ellipse(0.03, 0.024, x, -0.01) for x in (-0.035, 0.035)]
        put(wardrobe.cut("glass", [*lenses, bar], 0.03, rim=0.1), 0.5, 0.07, "sunglasses", front)
    if worn.hat != "none":
        put(wardrobe.cut("extra", _hat(worn.hat, -1.0 if turn < 0 else 1.0), 0.06), -0.05, 0.075, "hat")


def _hat(kind: str, ahead: float) -> list[np.ndarray]:
    """Outlines of a hat around the middle of the face; `ahead` is the sign of x that the figure faces."""
    dome = ellipse(FACE_X * 1.15, FACE_Y * 0.98, 0, -0.04, np.pi, 2 * np.pi)
    if kind == "cap":
        return [dome, np.array([[0.0, -0.055], [0.13, -0.05], [0.15, -0.033], [0.0, -0.033]]) * [ahead, 1]]
    if kind == "beanie":
        band = np.array([[-0.102, -0.065], [0.102, -0.065], [0.102, -0.026], [-0.102, -0.026]])
        return [dome, band, ellipse(0.03, 0.03, 0, -0.15)]
    return [dome, ellipse(0.16, 0.022, 0, -0.045)]


def _features(wardrobe: Wardrobe) -> Sprite:
    """Eyes, brows, nose and mouth as one cut-out."""
    eyes = [ellipse(0.0155, 0.0175, x, -0.008) for x in (-0.035, 0.035)]
    brow = np.array([[-0.018, -0.038], [0.018, -0.038], [0.016, -0.031], [-0.016, -0.031]])
    brows = [brow + np.array([x, 0]) for x in (-0.036, 0.036)]
    nose, mouth = ellipse(0.008, 0.012, 0, 0.016), ellipse(0.026, 0.018, 0, 0.042, 0, np.pi)
    columns, rows = max(16, round(0.16 * wardrobe.resolution)), max(14, round(0.14 * wardrobe.resolution))
    pixel = 0.16 / columns
    x, y = (np.arange(columns) + 0.5) * pixel - 0.08, ((np.arange(rows) + 0.5) * pixel - 0.06)[:, None]
    soft = 1.5 * pixel
    image = np.broadcast_to(wardrobe.plain["skin"] * 0.82, (rows, columns, 3))
    image = np.where((y < -0.028)[..., None], wardrobe.plain["hair"], image)
    white = textures.step(np.abs(x) - 0.012, soft) * ((y > -0.028) & (y < 0.012))
    image = textures.mix(image, np.ones(3), white)
    for centre in (-0.035, 0.035):
        image = textures.mix(image, np.full(3, 0.08), textures.step(0.0095 - np.hypot(x - centre, y + 0.006), soft))
    lips = textures.step(y - 0.036, soft) * np.ones_like(x)
    image = textures.mix(image, np.array([0.65, 0.2, 0.2]), lips).astype(np.float32)
    bounds = (-0.08, -0.06, 0.08, -0.06 + rows * pixel)
    return cut(image, [*eyes, *brows, mouth, nose], bounds, 0.012, rim=0.1)
