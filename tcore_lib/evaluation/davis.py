"""DAVIS-2017, video object segmentation: everything that is this benchmark's.

(docs/protocol.md; scores as in the official davis2017-evaluation toolkit.) J and F are fractions.
Letters: N frames, H W pixels, K objects.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import KDTree

from tcore_lib.errors import InputError
from tcore_lib.evaluation import labels as labelmaps
from tcore_lib.evaluation.clips import Clip, Ids

SCORES = {  # official name -> column
    "J&F_m": "JF_mean", "J_m": "J_mean", "J_r": "J_recall", "J_d": "J_decay",
    "F_m": "F_mean", "F_r": "F_recall", "F_d": "F_decay",
}  # fmt: skip
RESIZED = (480, 880)  # the masks of the variant DAVIS_480_880
VOID = 255  # pixels of this id are left out of J and F (`frame_scores`)
BOUNDARY_TOLERANCE = 0.008  # share of the image diagonal
Mask = NDArray[np.bool_]  # (H, W)


class Davis(labelmaps.IdMaps):
    """See `benchmarks`."""

    title, official, table, headline = "DAVIS-2017", ("val", 30, 1999), "objects", "J&F_m"
    lists, folders = "ImageSets/2017/{}.txt", ("JPEGImages/480p", "Annotations/480p")
    resize = staticmethod(labelmaps.resize_ids)  # as OpenCV does

    def load(self, root: Path, name: str) -> Clip:
        """One clip. Every frame has its annotation, or only the first one (test-dev): then nothing can be scored here."""
        clip = super().load(root, name)
        missing = [frame.stem for frame, path in zip(clip.frames, clip.annotations, strict=True) if path is None]
        if missing and len(missing) < len(clip) - 1:
            first = root / self.folders[1] / name / f"{missing[0]}.png"
            raise InputError(f"{first} is missing ({len(missing)} in all); every frame needs its annotation.")
        assert clip.first is not None
        void = clip.first == VOID
        ids = np.where(void, 0, clip.first).astype(np.uint8)
        if not ids.any():
            only = (
                "only 0 and 255, and 255 means void in DAVIS; write the object's id, 1" if void.any() else "no object"
            )
            raise InputError(f"{clip.annotations[0]} shows {only}; a DAVIS clip needs an object in its first frame.")
        return replace(clip, first=ids)

    def check(self, clip: Clip) -> None:
        """An `InputError` where an annotation has another size than the frames; RESIZED is a variant."""
        sizes = {clip.size, RESIZED} if self.settings.score_size == "input" else {clip.size}
        for frame, path in enumerate(clip.annotations):
            ids = clip.truth(frame)
            if ids is not None and ids.shape not in sizes:
                said = f"{path} is {ids.shape[1]}x{ids.shape[0]}, the frames are {clip.size[1]}x{clip.size[0]}"
                raise InputError(f"{said}; fetch the native annotations, scores on resized ones are off by points.")

    def counted(self, clip: Clip) -> list[int]:
        """The frames that are scored: all with annotation but the first and the last."""
        return [frame for frame in range(1, len(clip) - 1) if clip.annotations[frame] is not None]

    def input_size(self, clip: Clip, patch_size: int) -> tuple[int, int]:
        """(H, W) of the network input: as set."""
        return labelmaps.whole_patches(self.settings.input_size, patch_size)

    def score(self, clip: Clip, read: Callable[[int], Ids]) -> pd.DataFrame:
        """One row per object, from what `read` gives for a counted frame; without any such frame all is NaN."""
        scores: list[NDArray[np.float64]] = []  # of each frame (K, 2)
        for frame in self.counted(clip):
            ids, true = read(frame), clip.truth(frame)
            assert true is not None
            size = ids.shape if self.settings.score_size == "input" else true.shape
            scores.append(frame_scores(self.resize(ids, size), self.resize(true, size), self.largest(clip)))
        rows = []
        for index in range(self.largest(clip)):
            row: dict[str, Any] = {"clip": clip.name, "object": index + 1, "frames": len(scores)}
            for column, letter in enumerate("JF"):
                mean, recall, decay = sequence_statistics(np.array([frame[index, column] for frame in scores]))
                row |= {f"{letter}_mean": mean, f"{letter}_recall": recall, f"{letter}_decay": decay}
            rows.append({**row, "JF_mean": (row["J_mean"] + row["F_mean"]) / 2})
        return pd.DataFrame(rows)

    @classmethod
    def sums(cls, rows: pd.DataFrame) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Per clip the sum over its objects and their number, each (clips, 1)."""
        clips = rows.groupby("clip", sort=False)
        per_clip = {name: clips[column].agg(["sum", "count"]).to_numpy(float) for name, column in SCORES.items()}
        return {name: (found[:, :1], found[:, 1:]) for name, found in per_clip.items()}


def frame_scores(prediction: Ids, truth: Ids, objects: int) -> NDArray[np.float64]:
    """J and F of every object in one frame, (K, 2). An object that is neither there nor predicted scores 1 and 1."""
    tolerance = boundary_tolerance(truth.shape)
    void = truth == VOID  # as if nothing were there, in both maps
    prediction, truth = np.where(void, 0, prediction), np.where(void, 0, truth)
    scores = np.empty((objects, 2))
    for index in range(objects):
        found, true = prediction == index + 1, truth == index + 1
        window = _window(found | true)
        found, true = found[window], true[window]
        scores[index] = region_similarity(found, true), boundary_measure(found, true, tolerance)
    return scores


def _window(mask: Mask) -> tuple[slice, ...]:
    """The part of an image that holds a mask and one pixel around it: boundaries there are those of the whole image."""
    places = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
    return tuple(slice(max(0, one[0] - 1), one[-1] + 2) if len(one) else slice(0, 1) for one in places)


def region_similarity(prediction: Mask, truth: Mask) -> float:
    """J: intersection over union of two masks (H, W), 1 if both are empty, as in the DAVIS-2017 toolkit."""
    union = np.count_nonzero(prediction | truth)
    return 1.0 if union == 0 else np.count_nonzero(prediction & truth) / union


def boundary(mask: Mask) -> Mask:
    """One-pixel boundary of a mask (H, W): pixels that differ from the next one right, below, or below right.

    The last row looks right only, the last column below only, the corner is never boundary (DAVIS-2017 toolkit).
    """
    edge = np.zeros(mask.shape, bool)
    edge[:, :-1] = mask[:, 1:] ^ mask[:, :-1]
    edge[:-1] |= mask[1:] ^ mask[:-1]
    edge[:-1, :-1] |= mask[1:, 1:] ^ mask[:-1, :-1]
    return edge


def boundary_tolerance(shape: tuple[int, ...]) -> int:
    """Pixels by which boundaries may miss each other: 0.8 % of the diagonal of (H, W), rounded up."""
    return math.ceil(BOUNDARY_TOLERANCE * math.hypot(*shape[:2]))


def boundary_measure(prediction: Mask, truth: Mask, tolerance: float | None = None) -> float:
    """F: harmonic mean of boundary precision and recall of two masks (H, W), as in the DAVIS-2017 toolkit.

    A boundary pixel is matched if the other boundary has a pixel within `tolerance` (pixels; None = 0.8 % of the
    diagonal, rounded up). Both boundaries empty give 1, one empty gives 0.
    """
    reach = boundary_tolerance(prediction.shape) if tolerance is None else tolerance
    found, true = np.argwhere(boundary(prediction)), np.argwhere(boundary(truth))
    if len(found) == 0 or len(true) == 0:
        return float(len(found) == len(true))
    # The tree wants a bound that is never reached; squared distances of pixels are integers, so half of one is room.
    bound = math.sqrt(reach**2 + 0.5)
    precision = np.isfinite(KDTree(true).query(found, distance_upper_bound=bound)[0]).mean()
    recall = np.isfinite(KDTree(found).query(true, distance_upper_bound=bound)[0]).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def sequence_statistics(values: NDArray[np.floating]) -> tuple[float, float, float]:
    """Mean, recall (share above 0.5) and decay of a measure over a clip's frames (N,), as in the toolkit; NaN without a frame.

    Decay is the mean of the first minus that of the last of four bins; a limit belongs to both its bins.
    """
    if len(values) == 0:
        return math.nan, math.nan, math.nan
    limits = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(int)
    first, last = values[limits[0] : limits[1] + 1], values[limits[3] : limits[4] + 1]
    return float(np.mean(values)), float(np.mean(values > 0.5)), float(np.mean(first) - np.mean(last))
