"""The skeleton of the synthetic figure: 15 joints in three dimensions that walk, wave, jump or dance.

Axes: x to the figure's left, y down, z forward; unit = the figure's height; origin on the ground between the feet.
Joints are JHMDB's, in its order. Left and right are the figure's own.
"""

from dataclasses import dataclass

import numpy as np

from tcore_lib import bodies
from tcore_lib.scenes.textures import Rng

JOINTS = tuple(name.replace(" ", "_") for name in bodies.JOINTS)
PAIRS = [f"{side}_{limb}" for limb in ("upper_arm", "forearm", "thigh", "shank") for side in ("right", "left")]
LIMB = {name: number for number, name in enumerate(("torso", "head", *PAIRS))}

# Lengths in units of the figure's height.
THIGH, SHANK, UPPER, FORE, TORSO, FOOT = 0.205, 0.205, 0.15, 0.14, 0.315, 0.04
SHOULDER, HIP = 0.112, 0.058


def limbs_of(joint: str) -> tuple[int, ...]:
    """Limbs that meet in a joint, one of `JOINTS`: it is visible where one of them is the nearest thing."""
    side, _, kind = joint.partition("_")
    meeting = {
        "neck": ("torso",),
        "belly": ("torso",),
        "face": ("head",),
        "shoulder": ("torso", f"{side}_upper_arm"),
        "hip": ("torso", f"{side}_thigh"),
        "elbow": (f"{side}_upper_arm", f"{side}_forearm"),
        "knee": (f"{side}_thigh", f"{side}_shank"),
        "wrist": (f"{side}_forearm",),
        "ankle": (f"{side}_shank",),
    }
    return tuple(LIMB[limb] for limb in meeting[kind or side])


@dataclass(frozen=True)
class Pose:
    """Angles (radians) and shifts (heights) over time; limbs as (N, 2): right, left; the rest as (N,).

    A limb hangs down at 0; an angle lifts it forward, `..._spread` to its own side. Angles of shank and forearm are
    absolute too, not relative to thigh and upper arm.
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


SIDES = np.array([-1.0, 1.0])  # right, left


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


def pose(rng: Rng, kind: str, times: np.ndarray) -> Pose:
    """A kind of motion (a key of `ACTIONS`) at the times (N,) in seconds, with random tempo, phase and extent."""
    tempo, phase, extent = rng.uniform(0.85, 1.15), rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.15)
    return ACTIONS[kind](rng, 2 * np.pi * tempo * times + phase, tempo, extent)


def skeleton(held: Pose) -> dict[str, np.ndarray]:
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
