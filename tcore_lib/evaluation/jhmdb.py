"""JHMDB, pose propagation: everything that is this benchmark's. (docs/protocol.md.) PCK is in percent.

Letters: B N frames, H W pixels, h w grid, P = h * w, K = 15 joints.
"""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io
import torch
from numpy.typing import NDArray
from torch import Tensor

from tcore_lib.bodies import JOINTS
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles, labels as labelmaps
from tcore_lib.evaluation.clips import Clip
from tcore_lib.files import atomic_path, reading

PCK_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
BOX_SHARE = 0.6  # of the person box's diagonal, that a distance is divided by
SCORES = {f"PCK@{threshold}": f"correct@{threshold}" for threshold in PCK_THRESHOLDS}
JOINT_CELLS = 5  # largest cells whose weighted mean is a joint's position
JOINT_SIGMA = 0.5  # of a joint's Gaussian on the grid, in cells
FARTHEST = 1e5  # pixels a joint may lie from the image's corner


class Jhmdb:
    """See `benchmarks`."""

    title, official, table, headline = "JHMDB", ("1", 268, None), "joints", "PCK@0.1"

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def names(self, root: Path) -> list[str]:
        """Test clips of the split, or those chosen from them, as `<class>/<clip>`."""
        folder, ending = root / "splits", f"_test_split{self.settings.split}.txt"
        lists = sorted(folder.glob(f"[!.]*{ending}"))
        if not lists:
            raise InputError(f"{folder} holds no *{ending}; unpack JHMDB's own splits there.")
        lines = [(line.split(), path.name.removesuffix(ending)) for path in lists for line in clipfiles.lines_of(path)]
        class_of = {  # a line is `<clip>.avi` and 2; 1 = training, 0 = not used
            words[0].removesuffix(".avi"): kind for words, kind in lines if words[-1] == "2"
        }
        chosen = clipfiles.chosen(list(class_of), self.settings.clips, folder)
        return [f"{class_of[name]}/{name}" for name in chosen]

    def load(self, root: Path, name: str) -> Clip:
        """One clip, with as many joints as frames."""
        frames = clipfiles.images_in(root / "Rename_Images" / name)
        source = root / "joint_positions" / name / "joint_positions.mat"
        joints = read_joints(source)
        if len(joints) != len(frames):
            raise InputError(
                f"{source} has joints of {len(joints)} frames, but there are {len(frames)}; unpack both again."
            )
        height, width, _ = clipfiles.read_frame(frames[0]).shape
        return Clip(name.split("/")[-1], tuple(frames), (height, width), joints=joints)

    def check(self, clip: Clip) -> None:
        """Nothing: `load` has read the joints."""

    def counted(self, clip: Clip) -> list[int]:
        """The frames that are scored: all but the first."""
        return list(range(1, len(clip)))

    def input_size(self, clip: Clip, patch_size: int) -> tuple[int, int]:
        """(H, W) of the network input: as set."""
        return labelmaps.whole_patches(self.settings.input_size, patch_size)

    def first_map(self, clip: Clip, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """Joints of the first frame on the grid, (1 + K, h, w)."""
        assert clip.joints is not None
        to_grid = np.array([size[1] / clip.size[1], size[0] / clip.size[0]]) / (size[0] // grid[0])
        return joint_soft_map(clip.joints[0] * to_grid, grid)

    def predict(self, clip: Clip, soft: Tensor, size: tuple[int, int]) -> list[NDArray[np.float64]]:
        """Soft maps (B, 1 + K, h, w) to joints (K, 2) in pixels of the clip's own size; NaN = not found."""
        h, w = soft.shape[2:]
        return list(to_joints(soft).cpu().numpy() / (w, h) * (clip.size[1], clip.size[0]))

    def score(self, clip: Clip, read: Callable[[int], NDArray[np.float64]]) -> pd.DataFrame:
        """One row per joint, from what `read` gives for a counted frame: how often found and correct, and percentages."""
        assert clip.joints is not None
        counted = self.counted(clip)
        joints = np.array([read(frame) for frame in counted]).reshape(-1, len(JOINTS), 2)  # (N, K, 2)
        found, correct = joint_counts(joint_distances(joints, clip.joints[counted]))
        table = pd.DataFrame({"clip": clip.name, "joint": JOINTS, "frames": len(counted), "found": found})
        for column, (score, counts) in enumerate(SCORES.items()):
            table[counts] = correct[:, column]
            table[score] = 100 * (table[counts] / table["found"])  # NaN for a joint that was never found
        return table

    @classmethod
    def sums(cls, rows: pd.DataFrame) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Correct and found joints per clip, each (clips, K)."""
        columns = ["found", *SCORES.values()]
        wide = rows.pivot(index="clip", columns="joint", values=columns).loc[rows["clip"].unique()]
        return {name: (wide[column].to_numpy(float), wide["found"].to_numpy(float)) for name, column in SCORES.items()}

    def prediction_files(self, folder: Path, clip: Clip) -> list[Path]:
        """Where a clip's predicted joints go: (N, 15, 2), x then y in pixels of the clip from 0, NaN = not found."""
        return [folder / f"{clip.name}.npy"]

    def save(self, folder: Path, clip: Clip, predictions: Any) -> None:
        """Write the predictions of all frames."""
        with atomic_path(self.prediction_files(folder, clip)[0]) as temporary:
            np.save(temporary, np.stack(predictions))

    def predictions(self, folder: Path, clip: Clip) -> Callable[[int], NDArray[np.float64]]:
        """What gives the predicted joints of a frame (15, 2), ours or somebody else's."""
        path = self.prediction_files(folder, clip)[0]
        with reading(path, "predict the joints of all frames of this clip again"):
            joints = np.load(path, allow_pickle=False).astype(np.float64)
            if joints.shape != (len(clip), len(JOINTS), 2):
                raise ValueError(f"joints of shape {joints.shape}, not {len(clip)} frames x 15 x 2")
        return joints.__getitem__


def read_joints(path: Path) -> NDArray[np.float64]:
    """Joints of a `joint_positions.mat`, (N, 15, 2), x then y in pixels counted from 0."""
    remedy = "take JHMDB's own joint_positions.mat, or save it in MATLAB with save(..., '-v7')"
    with reading(path, remedy):
        positions = scipy.io.loadmat(io.BytesIO(path.read_bytes()), variable_names=["pos_img"]).get("pos_img", ())
        positions = np.asarray(positions, dtype=np.float64)
        if positions.ndim == 2:
            positions = positions[..., None]  # MATLAB drops the last axis of a single frame
        if positions.shape[:2] != (2, len(JOINTS)):
            raise ValueError(f"it has a pos_img of {positions.shape}, not 2 x 15 x frames")
        if np.isnan(positions).any():
            raise ValueError("it has joints that are NaN, and PCK needs every joint: leave the clip out of the list")
        if (np.abs(positions) > FARTHEST).any():
            raise ValueError("it has joints that lie nowhere near an image")
    return positions.transpose(2, 1, 0) - 1.0


def joint_soft_map(joints: NDArray[np.floating], grid: tuple[int, int]) -> Tensor:
    """Joints (K, 2) of the first frame, grid coordinates u (along the width), v -> soft map float32 (1 + K, h, w).

    Each joint is a Gaussian in a 4 x 4 window whose first cell is (int(u - 1.5), int(v - 1.5)) and whose peak is its
    third cell. `int` truncates towards zero, also at the window's end `int(u + 2.5)`: near the left or upper border one
    column or row is lost, as in the released code. Channel 0, the background, is 1 where no joint has any mass.
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


def joint_distances(prediction: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.float64]:
    """Distance (N, K) of predicted and true joints (N, K, 2), in units of 0.6 x the person's box diagonal; NaN = not found.

    The box is that around the true joints *whose prediction was found* (docs/protocol.md); without extent: infinite.
    """
    found = np.isfinite(prediction).all(-1)  # (N, K)
    distances = np.full(found.shape, math.nan)
    for frame in np.flatnonzero(found.any(1)):
        here = found[frame]
        joints = truth[frame, here]  # (found, 2)
        diagonal = BOX_SHARE * np.linalg.norm(joints.max(0) - joints.min(0))
        missed = np.linalg.norm(prediction[frame, here] - joints, axis=-1)
        distances[frame, here] = missed / diagonal if diagonal > 0 else math.inf
    return distances


def joint_counts(distances: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distances (N, K) -> how often each joint was found (K,) and correct (K, 5), at most a threshold of `PCK_THRESHOLDS` away."""
    found = ~np.isnan(distances)
    correct = [(distances <= threshold).sum(0) for threshold in PCK_THRESHOLDS]
    return found.sum(0), np.stack(correct, axis=-1)
