"""Benchmarks of a few small clips in their real file layouts: textured squares that move over a textured ground.

Small enough for a test to evaluate, real enough for every file to be read as in the full benchmark.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image

from tcore_lib.bodies import JOINTS
from tcore_lib.evaluation.clips import write_ids

H, W = 96, 160


def scene(seed: int, frame: int, objects: int = 2) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A frame (H, W, 3) and its id map (H, W); object i moves by 4 pixels a frame, in its own direction."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 120, (H // 8, W // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    ids = np.zeros((H, W), np.uint8)
    for index in range(objects):
        texture = rng.integers(130, 255, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        top = 16 + 40 * (index % 2)
        left = (16 + 4 * frame) if index % 2 == 0 else (W - 64 - 4 * frame)
        image[top : top + 32, left : left + 32] = texture
        ids[top : top + 32, left : left + 32] = index + 1
    return image, ids


def write_small_davis(root: Path, names: Sequence[str] = ("one", "two"), frames: int = 6) -> Path:
    """Two clips of different objects; `two` has one object, the others two."""
    for seed, name in enumerate(names):
        for frame in range(frames):
            image, ids = scene(seed, frame, objects=1 if name == "two" else 2)
            _save(image, root / "JPEGImages" / "480p" / name / f"{frame:05d}.jpg")
            write_ids(root / "Annotations" / "480p" / name / f"{frame:05d}.png", ids)
    _write(root / "ImageSets" / "2017" / "val.txt", "\n".join(names) + "\n")
    return root


def write_small_vip(root: Path, names: Sequence[str] = ("videos1", "videos2"), frames: int = 5) -> Path:
    """Two clips; every second frame is annotated, with the classes 0, 2 and 13."""
    for seed, name in enumerate(names):
        for frame in range(frames):
            image, ids = scene(seed, frame)
            stem = f"{frame + 1:012d}"
            _save(image, root / "Images" / name / f"{stem}.jpg")
            if frame % 2 == 0:
                write_ids(
                    root / "Annotations" / "Category_ids" / name / f"{stem}.png", np.array([0, 2, 13], np.uint8)[ids]
                )
    _write(root / "lists" / "val_videos.txt", "\n".join(names) + "\n")
    return root


def write_small_jhmdb(root: Path, names: Sequence[str] = ("ball_1", "ball_2"), frames: int = 5) -> Path:
    """Two test clips of the class catch whose joints lie on the moving squares, and a training clip without files."""
    for seed, name in enumerate(names):
        joints = np.zeros((2, len(JOINTS), frames))
        for frame in range(frames):
            image, _ = scene(seed, frame)
            _save(image, root / "Rename_Images" / "catch" / name / f"{frame + 1:05d}.png")
            for joint in range(len(JOINTS)):
                on_first = joint % 2 == 0
                left, top = (16 + 4 * frame, 16) if on_first else (W - 64 - 4 * frame, 56)
                joints[:, joint, frame] = left + 2 * joint + 1, top + 2 * joint + 1  # counted from 1
        target = root / "joint_positions" / "catch" / name / "joint_positions.mat"
        target.parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(target, {"pos_img": joints})
    lines = [f"{name}.avi 2" for name in names] + ["train_1.avi 1"]
    _write(root / "splits" / "catch_test_split1.txt", "\n".join(lines) + "\n")
    return root


def _save(image: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def damage(path: Path) -> None:
    """Cut a file in the middle."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
