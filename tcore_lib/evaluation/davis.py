"""DAVIS-2017, video object segmentation: everything that is this benchmark's.

(EVALUATION; scores as in the official davis2017-evaluation toolkit.) J and F are fractions.
Letters: B N frames, H W pixels, h w grid, C label channels, K objects.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles, labels as labelmaps, metrics
from tcore_lib.evaluation.clips import Clip
from tcore_lib.figures import style
from tcore_lib.params import Davis

TITLE = "DAVIS-2017"
OFFICIAL: tuple[str, int, int | None] = (
    "val",
    30,
    1999,
)  # split, clips and frames that published figures are measured on
TABLE = "objects"  # a row of the table is an object
SCORES = {  # official name -> column
    "J&F_m": "JF_mean", "J_m": "J_mean", "J_r": "J_recall", "J_d": "J_decay",
    "F_m": "F_mean", "F_r": "F_recall", "F_d": "F_decay",
}  # fmt: skip
HEADLINE = "J&F_m"
RESIZED = (480, 880)  # the masks of the variant DAVIS_480_880

Ids = NDArray[np.uint8]
# Predictions and truth are label images.
has_predictions, predictions, truth = clipfiles.has_label_files, clipfiles.read_label_files, clipfiles.annotation


# ---------------------------------------------------------------------------------------------- clips


def names(settings: Davis, root: Path) -> list[str]:
    """Clips of the split, or those chosen from it, in its order."""
    split = root / "ImageSets" / "2017" / f"{settings.split}.txt"
    return clipfiles.chosen(clipfiles.lines_of(split), settings.clips, split)


def load(settings: Davis, root: Path, name: str) -> Clip:
    """One clip. Every frame has its annotation, or only the first one has (test-dev): then nothing can be scored here.

    Raises:
        InputError: names what is missing or does not fit.
    """
    frames = clipfiles.images_in(root / "JPEGImages" / "480p" / name)
    folder = root / "Annotations" / "480p" / name
    annotations = clipfiles.annotations_of(folder, frames)
    missing = [frame.stem for frame, path in zip(frames, annotations, strict=True) if path is None]
    if missing and len(missing) < len(frames) - 1:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(f"{folder / (missing[0] + '.png')}{more} is missing; every frame needs its annotation.")
    return Clip(name, tuple(frames), clipfiles.image_size(frames[0]), annotations, source=folder)


def counted(clip: Clip) -> list[int]:
    """The frames that are scored: all with annotation but the first and the last."""
    return [frame for frame in range(1, len(clip) - 1) if clip.annotations[frame] is not None]


# ---------------------------------------------------------------------------------------------- one encoder, one clip


class Scorer:
    """From a clip's first annotation to a soft map, from soft maps to id maps, from these to rows of the table.

    Attributes:
        size: (H, W) of the network input.
        channels: id of each channel, 0 = background.
    """

    def __init__(self, clip: Clip, settings: Davis, patch_size: int, folder: Path | None = None) -> None:
        self.clip, self.settings, self.folder = clip, settings, folder
        shown = f"{clip.name} ({clip.size[1]}x{clip.size[0]})"
        self.size = labelmaps.whole_patches(settings.input_size, patch_size, shown)
        self.first = first_objects(clip)
        self.channels: list[int] = np.unique(self.first).tolist()
        self.objects, self.counted = max(self.channels), set(counted(clip))

    def first_map(self, grid: tuple[int, int]) -> Tensor:
        """Labels of the first frame on the grid, (C, h, w)."""
        return labelmaps.first_soft_map(self.first, self.size, grid)[0]

    def predict(self, soft: Tensor) -> list[Ids]:
        """Soft maps (B, C, h, w) to id maps (H, W) of input size."""
        return list(labelmaps.to_ids(soft, self.channels, self.size, self.settings.upsampling).cpu().numpy())

    def score(self, frame: int, prediction: Ids) -> NDArray[np.float64] | None:
        """J and F of one frame, (K, 2); None where it does not count. Writes the prediction. Runs in a thread."""
        if frame not in self.counted and self.folder is None:
            return None
        true = truth(self.clip, frame)
        native = labelmaps.resize_ids(prediction, self.clip.size if true is None else true.shape)
        if self.folder is not None:
            clipfiles.write_ids(clipfiles.label_file(self.folder, self.clip, frame), native)
        if frame not in self.counted or true is None:
            return None
        if self.settings.score_size == "input":
            return frame_scores(prediction, labelmaps.resize_ids(true, self.size), self.objects)
        return frame_scores(native, true, self.objects)

    def rows(self, results: Sequence[NDArray[np.float64] | None]) -> list[dict[str, Any]]:
        """One row per object, from the results of all frames."""
        scores = [result for result in results if result is not None]
        return object_rows(self.clip, np.stack(scores) if scores else np.empty((0, self.objects, 2)))


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


def object_rows(clip: Clip, scores: NDArray[np.floating]) -> list[dict[str, Any]]:
    """One row per object from J and F of the scored frames, (N, K, 2); without any frame all is NaN."""
    rows = []
    for index in range(scores.shape[1]):
        row: dict[str, Any] = {"clip": clip.name, "object": index + 1, "frames": len(scores)}
        for column, measure in enumerate("JF"):
            statistics = metrics.sequence_statistics(scores[:, index, column])
            row |= {f"{measure}_{n}": v for n, v in zip(("mean", "recall", "decay"), statistics, strict=True)}
        rows.append({**row, "JF_mean": (row["J_mean"] + row["F_mean"]) / 2})
    return rows


def score_files(clip: Clip, folder: Path, pool: Executor) -> list[dict[str, Any]]:
    """Rows of label PNGs that somebody else made: of every scored frame, in the annotation's size, ids 0 ... K.

    Raises:
        InputError: names the file that is missing, misnamed or unreadable, or has a wrong size or id.
    """
    objects = int(first_objects(clip).max())

    def score(path: Path, frame: int) -> NDArray[np.float64]:
        prediction, true = clipfiles.read_prediction(path), truth(clip, frame)
        assert true is not None
        if prediction.shape != true.shape:
            raise InputError(
                f"{path} is {prediction.shape[0]}x{prediction.shape[1]} pixels (height x width), its annotation "
                f"{true.shape[0]}x{true.shape[1]}; resize predictions to the annotation's size (nearest)."
            )
        if prediction.max() > objects:
            raise InputError(
                f"{path} has the id {prediction.max()}, but {clip.name} has {objects} object(s); ids must be those of the "
                "first annotation, 0 = background: no masks of 0 and 255, no probabilities."
            )
        return frame_scores(prediction, true, objects)

    frames = counted(clip)
    scores = list(pool.map(score, clipfiles.label_files(folder, clip, frames), frames))
    return object_rows(clip, np.stack(scores) if scores else np.empty((0, objects, 2)))


def sums(rows: pd.DataFrame) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Score -> per clip the sum over its objects and their number, each (clips, 1): the score is sum / number."""
    per_clip = {name: rows.groupby("clip", sort=False)[column].agg(["sum", "count"]) for name, column in SCORES.items()}
    return {
        name: (found[["sum"]].to_numpy(float), found[["count"]].to_numpy(float)) for name, found in per_clip.items()
    }


# ---------------------------------------------------------------------------------------------- checks and pictures


def check(clip: Clip, settings: Davis, decode: bool) -> tuple[list[str], list[str]]:
    """Problems and remarks about a clip's annotations: sizes, ids, void. Without `decode` only the first one is read."""
    problems: list[str] = []
    remarks: list[str] = []
    first: set[int] = set()
    later: set[int] = set()
    resized = void = 0
    try:
        first = set(np.unique(first_objects(clip)).tolist()) - {0}
    except InputError as error:
        problems.append(str(error))
    paths = [path for path in clip.annotations if path is not None]
    for path in paths if decode else paths[:1]:
        try:
            ids = clipfiles.read_ids(path)
        except InputError as error:
            problems.append(str(error))
            continue
        if ids.shape == RESIZED and clip.size != RESIZED:
            resized += 1
        elif ids.shape != clip.size:
            problems.append(
                f"{path} is {ids.shape[1]}x{ids.shape[0]}, its frame {clip.size[1]}x{clip.size[0]}; fetch the native "
                "annotations."
            )
        present = set(np.unique(ids).tolist())
        void += metrics.VOID in present
        later |= present - {0, metrics.VOID}
    text = f"{resized} annotations are resized to 880x480, the frames are {clip.size[1]}x{clip.size[0]}"
    if resized and settings.score_size == "input":
        remarks.append(f"{text}; scored at input size, a variant")
    elif resized:
        problems.append(f"{clip.source}: {text}; fetch the native ones, scores on resized masks are off by points.")
    elif clip.size == RESIZED:
        remarks.append("frames and annotations are 880x480, which no clip of DAVIS-2017 is: resized data?")
    if first and first != set(range(1, max(first) + 1)):
        remarks.append(f"ids {sorted(first)} of the first frame are not 1 ... {max(first)}; gaps score 1 if unused")
    if first and later - first:
        remarks.append(f"ids {sorted(later - first)} appear after the first frame; they are not scored")
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
