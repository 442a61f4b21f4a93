"""Benchmarks of a few small clips in their real file layouts: textured squares that move over a textured ground."""

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
            Image.fromarray(image).save(made(root / f"JPEGImages/480p/{name}/{frame:05d}.jpg"), quality=95)
            write_ids(root / f"Annotations/480p/{name}/{frame:05d}.png", ids)
    made(root / "ImageSets/2017/val.txt").write_text("\n".join(names) + "\n")
    return root


def write_small_vip(root: Path, names: Sequence[str] = ("videos1", "videos2"), frames: int = 5) -> Path:
    """Two clips; every second frame is annotated, with the classes 0, 2 and 13."""
    for seed, name in enumerate(names):
        for frame in range(frames):
            image, ids = scene(seed, frame)
            Image.fromarray(image).save(made(root / f"Images/{name}/{frame + 1:012d}.jpg"), quality=95)
            if frame % 2 == 0:
                classes = np.array([0, 2, 13], np.uint8)[ids]
                write_ids(root / f"Annotations/Category_ids/{name}/{frame + 1:012d}.png", classes)
    made(root / "lists/val_videos.txt").write_text("\n".join(names) + "\n")
    return root


def write_small_jhmdb(root: Path, names: Sequence[str] = ("ball_1", "ball_2"), frames: int = 5) -> Path:
    """Two test clips of the class catch whose joints lie on the moving squares, and a training clip without files."""
    for seed, name in enumerate(names):
        joints = np.zeros((2, len(JOINTS), frames))
        for frame in range(frames):
            Image.fromarray(scene(seed, frame)[0]).save(made(root / f"Rename_Images/catch/{name}/{frame + 1:05d}.png"))
            for joint in range(len(JOINTS)):
                left, top = (W - 64 - 4 * frame, 56) if joint % 2 else (16 + 4 * frame, 16)
                joints[:, joint, frame] = left + 2 * joint + 1, top + 2 * joint + 1  # counted from 1
        scipy.io.savemat(made(root / f"joint_positions/catch/{name}/joint_positions.mat"), {"pos_img": joints})
    lines = [f"{name}.avi 2" for name in names] + ["train_1.avi 1"]
    made(root / "splits/catch_test_split1.txt").write_text("\n".join(lines) + "\n")
    return root


def made(path: Path) -> Path:
    """The path, its folder created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def damage(path: Path) -> None:
    """Cut a file in the middle."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
