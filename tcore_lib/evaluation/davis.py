"""DAVIS-2017, video object segmentation: everything that is this benchmark's.

(docs/protocol.md; scores as in the official davis2017-evaluation toolkit.) J and F are fractions.
Letters: N frames, H W pixels, K objects.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tcore_lib.errors import InputError
from tcore_lib.evaluation import labels as labelmaps, metrics
from tcore_lib.evaluation.clips import Clip, Ids

SCORES = {  # official name -> column
    "J&F_m": "JF_mean", "J_m": "J_mean", "J_r": "J_recall", "J_d": "J_decay",
    "F_m": "F_mean", "F_r": "F_recall", "F_d": "F_decay",
}  # fmt: skip
RESIZED = (480, 880)  # the masks of the variant DAVIS_480_880


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
        void = clip.first == metrics.VOID
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

    def score(self, clip: Clip, read: Callable[[int], Ids], each: Callable[..., Any] = map) -> list[dict[str, Any]]:
        """One row per object, from what `read` gives for a counted frame; without any such frame all is NaN."""

        def measure(frame: int) -> NDArray[np.float64]:
            ids, true = read(frame), clip.truth(frame)
            assert true is not None
            size = ids.shape if self.settings.score_size == "input" else true.shape
            return frame_scores(self.resize(ids, size), self.resize(true, size), self.largest(clip))

        scores = np.array(list(each(measure, self.counted(clip)))).reshape(-1, self.largest(clip), 2)  # (N, K, 2)
        rows = []
        for index in range(self.largest(clip)):
            row: dict[str, Any] = {"clip": clip.name, "object": index + 1, "frames": len(scores)}
            for column, letter in enumerate("JF"):
                mean, recall, decay = metrics.sequence_statistics(scores[:, index, column])
                row |= {f"{letter}_mean": mean, f"{letter}_recall": recall, f"{letter}_decay": decay}
            rows.append({**row, "JF_mean": (row["J_mean"] + row["F_mean"]) / 2})
        return rows

    @classmethod
    def sums(cls, rows: pd.DataFrame) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Per clip the sum over its objects and their number, each (clips, 1)."""
        clips = rows.groupby("clip", sort=False)
        per_clip = {name: clips[column].agg(["sum", "count"]).to_numpy(float) for name, column in SCORES.items()}
        return {name: (found[:, :1], found[:, 1:]) for name, found in per_clip.items()}


def frame_scores(prediction: Ids, truth: Ids, objects: int) -> NDArray[np.float64]:
    """J and F of every object in one frame, (K, 2). An object that is neither there nor predicted scores 1 and 1."""
    tolerance = metrics.boundary_tolerance(truth.shape)
    void = truth == metrics.VOID  # as if nothing were there, in both maps
    prediction, truth = np.where(void, 0, prediction), np.where(void, 0, truth)
    scores = np.empty((objects, 2))
    for index in range(objects):
        found, true = prediction == index + 1, truth == index + 1
        window = _window(found | true)
        found, true = found[window], true[window]
        scores[index] = metrics.region_similarity(found, true), metrics.boundary_measure(found, true, tolerance)
    return scores


def _window(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The part of an image that holds a mask and one pixel around it: boundaries there are those of the whole image."""
    places = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
    return tuple(slice(max(0, one[0] - 1), one[-1] + 2) if len(one) else slice(0, 1) for one in places)
