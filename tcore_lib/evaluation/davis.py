"""DAVIS-2017, video object segmentation: everything that is this benchmark's.

(docs/protocol.md; scores as in the official davis2017-evaluation toolkit.) J and F are fractions.
Letters: N frames, H W pixels, C label channels, K objects.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles, idmaps, labels as labelmaps, metrics
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.idmaps import (
    Ids,
    has_predictions as has_predictions,
    predictions as predictions,
    truth as truth,
)
from tcore_lib.figures import style
from tcore_lib.params import Davis

TITLE = "DAVIS-2017"
OFFICIAL = ("val", 30, 1999)  # split, clips and frames that published figures are measured on
TABLE = "objects"  # a row of the table is an object
SCORES = {  # official name -> column
    "J&F_m": "JF_mean", "J_m": "J_mean", "J_r": "J_recall", "J_d": "J_decay",
    "F_m": "F_mean", "F_r": "F_recall", "F_d": "F_decay",
}  # fmt: skip
HEADLINE = "J&F_m"
RESIZED = (480, 880)  # the masks of the variant DAVIS_480_880


def names(settings: Davis, root: Path) -> list[str]:
    """Clips of the split, or those chosen from it, in its order."""
    split = root / "ImageSets" / "2017" / f"{settings.split}.txt"
    return clipfiles.chosen(clipfiles.lines_of(split), settings.clips, split)


def load(settings: Davis, root: Path, name: str) -> Clip:
    """One clip. Every frame has its annotation, or only the first one has (test-dev): then nothing can be scored here.

    Raises:
        InputError: names what is missing or does not fit.
    """
    folder = root / "Annotations" / "480p" / name
    clip = idmaps.load(name, root / "JPEGImages" / "480p" / name, folder)
    missing = [frame.stem for frame, path in zip(clip.frames, clip.annotations, strict=True) if path is None]
    if missing and len(missing) < len(clip) - 1:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(f"{folder / (missing[0] + '.png')}{more} is missing; every frame needs its annotation.")
    return clip


def counted(clip: Clip) -> list[int]:
    """The frames that are scored: all with annotation but the first and the last."""
    return [frame for frame in range(1, len(clip) - 1) if clip.annotations[frame] is not None]


class Scorer(idmaps.IdScorer):
    """One encoder on one clip, see `IdScorer`."""

    def __init__(self, clip: Clip, settings: Davis, patch_size: int = 16, folder: Path | None = None) -> None:
        shown = f"{clip.name} ({clip.size[1]}x{clip.size[0]})"
        size = labelmaps.whole_patches(settings.input_size, patch_size, shown)
        super().__init__(clip, first_objects(clip), size, counted(clip), settings.upsampling, folder)
        self.largest = max(self.channels)  # number of objects
        self.score_size = settings.score_size

    def resize(self, ids: Ids, size: tuple[int, ...]) -> Ids:
        """As OpenCV does."""
        return labelmaps.resize_ids(ids, size)

    def measure(self, native: Ids, true: Ids, at_input: Ids | None = None) -> NDArray[np.float64]:
        """J and F of one frame, (K, 2)."""
        if self.score_size == "input" and at_input is not None:
            return frame_scores(at_input, labelmaps.resize_ids(true, self.size), self.largest)
        return frame_scores(native, true, self.largest)

    def rows(self, results: Sequence[NDArray[np.float64] | None]) -> list[dict[str, Any]]:
        """One row per object; without any scored frame all is NaN."""
        found = [result for result in results if result is not None]
        scores = np.stack(found) if found else np.empty((0, self.largest, 2))  # (N, K, 2)
        rows = []
        for index in range(self.largest):
            row: dict[str, Any] = {"clip": self.clip.name, "object": index + 1, "frames": len(scores)}
            for column, measure in enumerate("JF"):
                mean, recall, decay = metrics.sequence_statistics(scores[:, index, column])
                row |= {f"{measure}_mean": mean, f"{measure}_recall": recall, f"{measure}_decay": decay}
            rows.append({**row, "JF_mean": (row["J_mean"] + row["F_mean"]) / 2})
        return rows


def first_objects(clip: Clip) -> Ids:
    """The first annotation with void pixels as background: what is propagated. Objects are 1 ... its largest id.

    Raises:
        InputError: it shows no object.
    """
    ids = truth(clip, 0)
    assert ids is not None
    objects = np.where(ids == metrics.VOID, 0, ids).astype(np.uint8)
    if objects.max() == 0:
        void = (ids == metrics.VOID).any()
        reason = "only 0 and 255, and 255 means void in DAVIS; write the object's id, 1" if void else "no object"
        raise InputError(f"{clip.annotations[0]} shows {reason}; a DAVIS clip needs an object in its first frame.")
    return objects


def frame_scores(prediction: Ids, truth: Ids, objects: int) -> NDArray[np.float64]:
    """J and F of every object in one frame, (K, 2). An object that is neither there nor predicted scores 1 and 1."""
    tolerance = metrics.boundary_tolerance(truth.shape)
    void = truth == metrics.VOID
    if void.any():  # as if nothing were there, in both maps
        prediction, truth = np.where(void, 0, prediction), np.where(void, 0, truth)
    scores = np.empty((objects, 2))
    for index in range(objects):
        found, true = prediction == index + 1, truth == index + 1
        window = _window(found | true)
        found, true = found[window], true[window]
        scores[index] = metrics.region_similarity(found, true), metrics.boundary_measure(found, true, tolerance)
    return scores


def _window(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The part of an image that holds a mask and one pixel around it: boundaries there are those of the whole image."""
    limits = []
    for axis in (1, 0):
        places = np.flatnonzero(mask.any(axis))
        limits.append(slice(max(0, places[0] - 1), places[-1] + 2) if len(places) else slice(0, 1))
    return limits[0], limits[1]


def sums(rows: pd.DataFrame) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Score -> per clip the sum over its objects and their number, each (clips, 1): the score is sum / number."""
    clips = rows.groupby("clip", sort=False)
    per_clip = {name: clips[column].agg(["sum", "count"]).to_numpy(float) for name, column in SCORES.items()}
    return {name: (found[:, :1], found[:, 1:]) for name, found in per_clip.items()}


def check(clip: Clip, settings: Davis, decode: bool) -> tuple[list[str], list[str]]:
    """Problems and remarks about a clip's annotations: sizes, ids, void. Without `decode` only the first one is read."""
    paths = [path for path in clip.annotations if path is not None]
    maps, problems = idmaps.readable(paths if decode else paths[:1])
    first: set[int] = set()
    try:
        first = set(np.unique(first_objects(clip)).tolist()) - {0}
    except InputError as error:
        problems.append(str(error))
    native = f"the frames are {clip.size[1]}x{clip.size[0]}"
    resized = sum(ids.shape == RESIZED and clip.size != RESIZED for _, ids in maps)
    problems += [
        f"{path} is {ids.shape[1]}x{ids.shape[0]}, its frame {clip.size[1]}x{clip.size[0]}; fetch the native annotations."
        for path, ids in maps
        if ids.shape not in (RESIZED, clip.size)
    ]
    present = [set(np.unique(ids).tolist()) for _, ids in maps]
    later = set().union(*present) - first - {0, metrics.VOID}
    void = sum(metrics.VOID in ids for ids in present)
    remarks = []
    if resized and settings.score_size == "input":
        remarks.append(f"{resized} annotations are resized to 880x480, {native}; scored at input size, a variant")
    elif resized:
        problems.append(
            f"{paths[0].parent}: {resized} annotations are resized to 880x480, {native}; fetch the native ones, scores on "
            "resized masks are off by points."
        )
    elif clip.size == RESIZED:
        remarks.append("frames and annotations are 880x480, which no clip of DAVIS-2017 is: resized data?")
    if first and first != set(range(1, max(first) + 1)):
        remarks.append(f"ids {sorted(first)} of the first frame are not 1 ... {max(first)}; gaps score 1 if unused")
    if first and later:
        remarks.append(f"ids {sorted(later)} appear after the first frame; they are not scored")
    if void:
        remarks.append(f"{void} annotations have void pixels (id 255), which are left out")
    return list(dict.fromkeys(problems)), remarks


def draw(image: NDArray[np.uint8], ids: Ids) -> NDArray[np.uint8]:
    """An id map over a frame (H, W, 3)."""
    return style.overlay_labels(image, ids, style.object_palette())


def legend(channels: Sequence[int]) -> tuple[list[str], NDArray[np.uint8]]:
    """Names and colours (C, 3) of a soft map's channels."""
    names = [f"object {index}" if index else "background" for index in channels]
    return names, style.object_palette()[list(channels)]
