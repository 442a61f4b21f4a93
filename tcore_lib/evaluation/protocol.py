"""What a benchmark asks of one clip: input size, first labels, and the way from soft maps to scored predictions.

Letters: B frames of a batch, H W pixels, h w grid, C label channels, K joints.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tcore_lib.bodies import PARTS
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles, labels as labelmaps, scoring
from tcore_lib.evaluation.clips import Clip
from tcore_lib.params import Benchmark, Davis, Vip


def input_size(clip: Clip, settings: Benchmark, patch_size: int) -> tuple[int, int]:
    """(H, W) that a clip's frames are resized to: the benchmark's, floored to multiples of the encoder's patch.

    VIP: the long side is given, the short side is scaled by `int()` and floored to a multiple of 64 (EVALUATION).

    Raises:
        InputError: nothing is left of a side.
    """
    if isinstance(settings, Vip):
        h, w = clip.size
        long = settings.long_side
        short = int(min(h, w) * long / max(h, w)) // 64 * 64
        size = (short, long) if w > h else (long, short)
    else:
        size = tuple(settings.input_size)  # type: ignore[attr-defined]
    return in_whole_patches(size, patch_size, f"{clip.name} ({clip.size[1]}x{clip.size[0]})")


def in_whole_patches(size: tuple[int, int], patch_size: int, what: str) -> tuple[int, int]:
    """(H, W) in pixels, floored to multiples of the patch; `what` is resized to it, for the message.

    Raises:
        InputError: nothing is left of a side.
    """
    floored = (size[0] // patch_size * patch_size, size[1] // patch_size * patch_size)
    if min(floored) == 0:
        raise InputError(
            f"{what} would be resized to {size[1]}x{size[0]}, less than one patch of {patch_size} pixels; enlarge the "
            "input size."
        )
    return floored


def propagator_settings(settings: Benchmark) -> dict[str, Any]:
    """The arguments of `Propagator`."""
    names = ("top_k", "temperature", "radius", "context", "long_memory", "precision")
    variants = ("radius_inclusive", "restrict_first", "repeat_first")
    return {name: getattr(settings, name) for name in (*names, *variants)}


def _resized(labels: NDArray[np.uint8], size: tuple[int, ...], davis: bool) -> NDArray[np.uint8]:
    """Nearest resize of an id map to (H, W), as the benchmark's released code does it."""
    if not davis:
        return scoring.resize_part_ids(labels, (size[0], size[1]))
    return labelmaps.resize_ids(labels, (size[0], size[1]))


class MaskScorer:
    """DAVIS and VIP: soft maps to id maps, scored (and written) by threads."""

    def __init__(self, clip: Clip, settings: Benchmark, size: tuple[int, int], folder: Path | None) -> None:
        self.clip, self.settings, self.size, self.folder = clip, settings, size, folder
        first = clipfiles.read_ids(clip.annotations[0])  # type: ignore[arg-type]
        self.labels = scoring.without_void(first) if clip.kind == "davis" else first
        self.objects = scoring.number_of_objects(first)
        if clip.kind == "davis" and self.objects == 0:
            raise InputError(f"{clip.annotations[0]} shows no object; a DAVIS clip needs one in its first frame.")
        if clip.kind == "vip" and first.max() >= len(PARTS):
            raise InputError(f"{clip.annotations[0]} has the id {first.max()}; VIP's classes are 0 ... 19.")

    def soft_map(self, grid: tuple[int, int]) -> Tensor:
        """Labels of the first frame on the grid, (C, h, w)."""
        soft, self.ids = labelmaps.first_soft_map(self.labels, self.size, grid)
        return soft

    def predict(self, soft: Tensor) -> list[NDArray[Any]]:
        """Soft maps (B, C, h, w) to id maps (H, W) of input size."""
        return list(labelmaps.to_ids(soft, self.ids, self.size, self.settings.upsampling).cpu().numpy())

    def score(self, frame: int, prediction: NDArray[np.uint8]) -> NDArray[Any] | None:
        """J and F, or the confusion matrix, of one frame; None where it does not count. Runs in a thread."""
        path, davis = self.clip.annotations[frame], self.clip.kind == "davis"
        counts = path is not None and not (davis and frame in (0, len(self.clip) - 1))
        if not counts and self.folder is None:
            return None
        truth = None if path is None else clipfiles.read_ids(path)
        native = _resized(prediction, self.clip.size if truth is None else truth.shape, davis)
        if self.folder is not None:
            clipfiles.write_ids(clipfiles.prediction_path(self.folder, self.clip, frame), native)
        if not counts or truth is None:
            return None
        if not davis:
            return scoring.vip_frame(native, truth)
        if isinstance(self.settings, Davis) and self.settings.score_size == "input":
            return scoring.davis_frame(prediction, _resized(truth, self.size, davis), self.objects)
        return scoring.davis_frame(native, truth, self.objects)

    def rows(self, results: Sequence[NDArray[Any] | None]) -> list[dict[str, Any]]:
        """Rows of the table."""
        counted = [result for result in results if result is not None]
        if self.clip.kind == "vip":
            return scoring.vip_rows(self.clip, np.sum(counted, axis=0))
        return scoring.davis_rows(self.clip, np.stack(counted) if counted else np.empty((0, self.objects, 2)))


class JointScorer:
    """JHMDB: soft maps to joints, scored when all are there."""

    def __init__(self, clip: Clip, size: tuple[int, int], patch_size: int, folder: Path | None) -> None:
        self.clip, self.size, self.patch_size, self.folder = clip, size, patch_size, folder

    def soft_map(self, grid: tuple[int, int]) -> Tensor:
        """Joints of the first frame on the grid, (1 + K, h, w)."""
        assert self.clip.joints is not None
        to_grid = np.array([self.size[1] / self.clip.size[1], self.size[0] / self.clip.size[0]]) / self.patch_size
        return labelmaps.joint_soft_map(self.clip.joints[0] * to_grid, grid)

    def predict(self, soft: Tensor) -> list[NDArray[Any]]:
        """Soft maps (B, 1 + K, h, w) to joints (K, 2) in pixels of the clip's own size."""
        h, w = soft.shape[2:]
        joints = labelmaps.to_joints(soft).cpu().numpy()
        return list(joints / (w, h) * (self.clip.size[1], self.clip.size[0]))

    def score(self, frame: int, prediction: NDArray[np.float64]) -> NDArray[Any]:
        """Nothing to do per frame."""
        return prediction

    def rows(self, results: Sequence[NDArray[Any]]) -> list[dict[str, Any]]:
        """Rows of the table."""
        joints = np.stack(results)
        if self.folder is not None:
            clipfiles.write_joints(clipfiles.prediction_path(self.folder, self.clip, 0), self.clip, joints)
        return scoring.jhmdb_rows(self.clip, joints)


def make_scorer(
    clip: Clip, settings: Benchmark, patch_size: int, folder: Path | None = None
) -> MaskScorer | JointScorer:
    """What turns a clip's first labels into a soft map and its soft maps into scores."""
    size = input_size(clip, settings, patch_size)
    if clip.kind == "jhmdb":
        return JointScorer(clip, size, patch_size, folder)
    return MaskScorer(clip, settings, size, folder)
