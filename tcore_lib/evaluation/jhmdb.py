"""JHMDB, pose propagation: everything that is this benchmark's. (docs/protocol.md.) PCK is in percent.

Letters: B N frames, H W pixels, h w grid, K = 15 joints.
"""

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from tcore_lib.bodies import JOINTS
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles, labels as labelmaps, metrics
from tcore_lib.evaluation.clips import Clip
from tcore_lib.figures import style
from tcore_lib.files import read_json, reading, write_json
from tcore_lib.params import Jhmdb

TITLE = "JHMDB"
OFFICIAL = ("1", 268, None)  # split, clips and frames (not known) that published figures are measured on
TABLE = "joints"  # a row of the table is a joint
SCORES = {f"PCK@{threshold}": f"correct@{threshold}" for threshold in metrics.PCK_THRESHOLDS}
HEADLINE = "PCK@0.1"
JOINT_CELLS = 5  # largest cells whose weighted mean is a joint's position
JOINT_SIGMA = 0.5  # of a joint's Gaussian on the grid, in cells
FARTHEST = 1e5  # pixels a joint may lie from the image's corner


def names(settings: Jhmdb, root: Path) -> list[str]:
    """Test clips of the split, or those chosen from them, as `<class>/<clip>`."""
    folder, pattern = root / "splits", f"*_test_split{settings.split}.txt"
    lists = sorted(path for path in folder.glob(pattern) if path.name[0] != ".")
    if not lists:
        there = sorted(path.name for path in folder.glob("*.txt"))[:3]
        found = f"; it has {', '.join(there)}, which is not JHMDB's own list" if there else ""
        raise InputError(f"{folder} holds no {pattern}{found}. Unpack JHMDB's splits there.")
    class_of: dict[str, str] = {}
    for path in lists:
        for line in clipfiles.lines_of(path):
            words = line.split()
            if len(words) != 2 or words[1] not in ("0", "1", "2"):
                raise InputError(f"{path} has the line {line!r}; each should be `<clip>.avi` and 0, 1 or 2.")
            if words[1] == "2":  # 1 = training, 0 = not used
                class_of[words[0].removesuffix(".avi")] = path.name.removesuffix(pattern[1:])
    return [f"{class_of[name]}/{name}" for name in clipfiles.chosen(list(class_of), settings.clips, folder)]


def load(settings: Jhmdb, root: Path, name: str) -> Clip:
    """One clip, with as many joints as frames.

    Raises:
        InputError: names what is missing or does not fit.
    """
    frames = clipfiles.images_in(root / "Rename_Images" / name)
    source = root / "joint_positions" / name / "joint_positions.mat"
    joints = read_joints(source)
    if len(joints) != len(frames):
        raise InputError(
            f"{source} has joints of {len(joints)} frames, {frames[0].parent} has {len(frames)}; unpack both again."
        )
    size = clipfiles.image_size(frames[0])
    return Clip(name.split("/")[-1], tuple(frames), size, joints=joints)


def read_joints(path: Path) -> NDArray[np.float64]:
    """Joints of a `joint_positions.mat`, (N, 15, 2), x then y in pixels counted from 0.

    Raises:
        InputError: the file is missing, is no .mat file, or lacks a `pos_img` of 2 x 15 x N plausible numbers.
    """
    with reading(path, "take joint_positions.mat from JHMDB's joint_positions.zip"):
        if path.read_bytes()[:10] == b"MATLAB 7.3":
            raise InputError(f"{path} is a MATLAB 7.3 file; save it in MATLAB with save(..., '-v7').")
        variables = scipy.io.loadmat(path, variable_names=["pos_img"])
        if "pos_img" not in variables:
            raise ValueError("it has no variable pos_img")
        positions = np.asarray(variables["pos_img"], dtype=np.float64)
    if positions.ndim == 2:
        positions = positions[..., None]  # MATLAB drops the last axis of a single frame
    if positions.ndim != 3 or positions.shape[:2] != (2, len(JOINTS)):
        raise InputError(f"{path} has a pos_img of {positions.shape}, not 2 x 15 x frames of numbers; fetch it again.")
    if np.isnan(positions).any():
        _, joint, frame = np.argwhere(np.isnan(positions))[0]
        raise InputError(
            f"{path} has NaN for the joint {JOINTS[joint]!r} in frame {frame + 1} ({np.isnan(positions).sum()} NaN in all); "
            "PCK needs every joint: leave the clip out of the split list, or fill the joints in."
        )
    if not (np.abs(positions) <= FARTHEST).all():
        raise InputError(f"{path} has joints that lie nowhere near an image; fetch this file again.")
    return positions.transpose(2, 1, 0) - 1.0


def counted(clip: Clip) -> list[int]:
    """The frames that are scored: all but the first."""
    return list(range(1, len(clip)))


# ---------------------------------------------------------------------------------------------- joints on the grid


def joint_soft_map(joints: NDArray[np.floating], grid: tuple[int, int]) -> Tensor:
    """Soft map of the first frame's joints.

    Each joint is a Gaussian in a 4 x 4 window whose first cell is (int(u - 1.5), int(v - 1.5)) and whose peak is its
    third cell. `int` truncates towards zero, also at the window's end `int(u + 2.5)`: of a joint less than 1.5 cells
    from the left or upper border the released code keeps one column or row less than the window has, and so do we.

    Args:
        joints: (K, 2), grid coordinates u (along the width), v.
        grid: (h, w).

    Returns:
        float32 (1 + K, h, w). Channel 0, the background, is 1 where no joint has any mass. A joint wholly outside the
        grid has an empty channel.
    """
    maps = np.stack([np.outer(_gaussian(v, grid[0]), _gaussian(u, grid[1])) for u, v in joints])
    background = maps.sum(0, keepdims=True) == 0
    return torch.from_numpy(np.concatenate([background, maps]).astype(np.float32))


def _gaussian(coordinate: float, cells: int) -> NDArray[np.float64]:
    """A joint's Gaussian along one axis, (cells,), 0 outside its window."""
    first, end = int(coordinate - 3 * JOINT_SIGMA), int(coordinate + 3 * JOINT_SIGMA + 1)
    cell = np.arange(cells)
    mass = np.exp(-((cell - (first + 2)) ** 2) / (2 * JOINT_SIGMA**2))
    return np.where((cell >= first) & (cell < end), mass, 0.0)


def to_joints(soft: Tensor) -> Tensor:
    """Soft maps float (B, 1 + K, h, w) -> joints float64 (B, K, 2), grid coordinates x then y.

    The weighted mean of the 5 largest cells (fewer if the grid has fewer); NaN for a joint whose map is all 0. Equal
    cells are frequent (copies of one first label) and which of them counts moves the joint: the earlier one does, and
    cells less than 1e-6 apart are equal, so that the number of threads decides nothing.
    """
    maps = soft[:, 1:].flatten(2)  # (B, K, P)
    order = torch.round(maps * 2**20).sort(dim=2, descending=True, stable=True).indices
    cells = order[..., :JOINT_CELLS]
    values = maps.gather(2, cells)
    weights = (values / values.sum(2, keepdim=True)).double()
    x, y = cells % soft.shape[3], cells.div(soft.shape[3], rounding_mode="floor")
    joints = torch.stack([(x * weights).sum(2), (y * weights).sum(2)], dim=-1)
    return joints.masked_fill((maps.sum(2) == 0)[..., None], math.nan)


# ---------------------------------------------------------------------------------------------- one encoder, one clip


class Scorer:
    """From a clip's first joints to a soft map, from soft maps to joints, from these to rows of the table.

    Attributes:
        size: (H, W) of the network input.
        channels: what each channel of a soft map is.
    """

    def __init__(self, clip: Clip, settings: Jhmdb, patch_size: int = 16, folder: Path | None = None) -> None:
        self.clip, self.patch_size, self.folder = clip, patch_size, folder
        shown = f"{clip.name} ({clip.size[1]}x{clip.size[0]})"
        self.size = labelmaps.whole_patches(settings.input_size, patch_size, shown)
        self.channels = ["background", *JOINTS]

    def first_map(self, grid: tuple[int, int]) -> Tensor:
        """Joints of the first frame on the grid, (1 + K, h, w)."""
        assert self.clip.joints is not None
        to_grid = np.array([self.size[1] / self.clip.size[1], self.size[0] / self.clip.size[0]]) / self.patch_size
        return joint_soft_map(self.clip.joints[0] * to_grid, grid)

    def predict(self, soft: Tensor) -> list[NDArray[np.float64]]:
        """Soft maps (B, 1 + K, h, w) to joints (K, 2) in pixels of the clip's own size; NaN = not found."""
        h, w = soft.shape[2:]
        joints = to_joints(soft).cpu().numpy()
        return list(joints / (w, h) * (self.clip.size[1], self.clip.size[0]))

    def score(self, frame: int, prediction: NDArray[np.float64]) -> NDArray[np.float64]:
        """Nothing to do for a single frame."""
        return prediction

    def rows(self, results: Sequence[NDArray[np.float64]]) -> list[dict[str, Any]]:
        """One row per joint: how often it was found and correct, and the percentages, without frame 0.

        Writes the prediction.
        """
        joints = np.stack(results)  # (N, K, 2)
        if self.folder is not None:
            write_joints(joint_file(self.folder, self.clip), self.clip, joints)
        assert self.clip.joints is not None
        found, correct = metrics.joint_counts(metrics.joint_distances(joints, self.clip.joints)[1:])
        percent = metrics.pck(found, correct)
        rows = []
        for index, joint in enumerate(JOINTS):
            row = {"clip": self.clip.name, "joint": joint, "frames": len(joints) - 1, "found": int(found[index])}
            for column, threshold in enumerate(metrics.PCK_THRESHOLDS):
                row[f"correct@{threshold}"] = int(correct[index, column])
                row[f"PCK@{threshold}"] = float(percent[index, column])
            rows.append(row)
        return rows

    def score_files(self, folder: Path, pool: Executor) -> list[dict[str, Any]]:
        """Rows of joints that somebody else predicted, `<clip>.json` as `write_joints` writes it.

        Raises:
            InputError: the file is missing or damaged, or has another number of frames.
        """
        path = joint_file(folder, self.clip)
        joints = read_predicted_joints(path)
        if len(joints) != len(self.clip):
            raise InputError(f"{path} has {len(joints)} frames, the clip {len(self.clip)}; predict all of them.")
        return self.rows(list(joints))


def sums(rows: pd.DataFrame) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Score -> correct and found joints per clip, each (clips, K): PCK is the mean over joints of correct / found."""
    order = rows["clip"].unique()
    wide = {
        column: rows.pivot(index="clip", columns="joint", values=column).loc[order].to_numpy(float)
        for column in ("found", *SCORES.values())
    }
    return {name: (wide[column], wide["found"]) for name, column in SCORES.items()}


# ---------------------------------------------------------------------------------------------- files, checks, pictures


def joint_file(folder: Path, clip: Clip) -> Path:
    """Where a clip's predicted joints go."""
    return folder / f"{clip.name}.json"


def write_joints(target: Path, clip: Clip, joints: NDArray[np.floating]) -> None:
    """Write predicted joints (N, 15, 2), pixels of the clip's own size counted from 0, as JSON; null = not found."""
    rows = [
        [None if np.isnan(joint).any() else [round(float(c), 4) for c in joint] for joint in frame] for frame in joints
    ]
    write_json(target, {"clip": clip.name, "joints": list(JOINTS), "unit": "pixels from 0, x then y", "frames": rows})


def read_predicted_joints(path: Path) -> NDArray[np.float64]:
    """What `write_joints` wrote, (N, 15, 2), NaN where a joint was not found.

    Raises:
        InputError: the file is missing or damaged.
    """
    content = read_json(path)
    with reading(path, "it should hold predicted joints; evaluate the clip again"):
        frames = [[[np.nan] * 2 if joint is None else joint for joint in frame] for frame in content["frames"]]
        joints = np.array(frames, dtype=np.float64)
        if joints.shape[1:] != (len(JOINTS), 2):
            raise ValueError(f"joints of shape {joints.shape}, not frames x 15 x 2")
    return joints


def check(clip: Clip, settings: Jhmdb, decode: bool) -> tuple[list[str], list[str]]:
    """Problems and remarks about a clip's joints: do they lie inside the image?"""
    assert clip.joints is not None
    h, w = clip.size
    outside = ((clip.joints < 0) | (clip.joints > (w - 1, h - 1))).any(-1)  # (N, 15)
    return [], [f"{outside.sum()} of {outside.size} joints lie outside the image"] if outside.mean() > 0.1 else []


def has_predictions(folder: Path, clip: Clip) -> bool:
    """Whether the clip's predicted joints are there."""
    return joint_file(folder, clip).exists()


def predictions(folder: Path, clip: Clip, frames: Sequence[int]) -> NDArray[np.float64]:
    """Predicted joints of some frames, (n, 15, 2)."""
    return read_predicted_joints(joint_file(folder, clip))[np.asarray(frames)]


def truth(clip: Clip, frame: int) -> NDArray[np.float64] | None:
    """The joints of a frame, (15, 2)."""
    return None if clip.joints is None else clip.joints[frame]


def draw(image: NDArray[np.uint8], joints: NDArray[np.floating]) -> NDArray[np.uint8]:
    """A pose over a frame (H, W, 3): joints (15, 2) in pixels, x then y; NaN = not found, not drawn.

    Colours tell the sides of the body apart (`style.SIDE_COLOURS`).
    """
    scale = 2  # drawn at twice the size: Pillow's lines have jagged edges
    width = scale * max(2, round(min(image.shape[:2]) / 90))
    picture = Image.fromarray(image).resize((scale * image.shape[1], scale * image.shape[0]))
    canvas = ImageDraw.Draw(picture)
    colours = [style.SIDE_COLOURS[style.side_of(joint)] for joint in range(len(joints))]
    points = {
        joint: tuple((joints[joint] + 0.5) * scale) for joint in range(len(joints)) if np.isfinite(joints[joint]).all()
    }
    for first, second in style.JHMDB_BONES:
        if first in points and second in points:
            canvas.line([points[first], points[second]], fill=colours[second], width=width)
    for joint, place in points.items():
        canvas.circle(place, 1.7 * width, fill="black")  # a dark rim keeps it visible on any ground
        canvas.circle(place, 1.2 * width, fill=colours[joint])
    return np.array(picture.resize(image.shape[1::-1], Image.Resampling.LANCZOS))


def legend(channels: Sequence[str]) -> tuple[list[str], NDArray[np.uint8]]:
    """Names and colours (C, 3) of a soft map's channels."""
    return list(channels), style.object_palette()[: len(channels)]
