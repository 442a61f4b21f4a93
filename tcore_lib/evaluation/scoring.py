"""From the predictions of one clip to the rows of the table; from folders of label PNGs made by others to a table.

Units: J, F and IoU are fractions, PCK is in percent, counts are pixels or joints.
Letters: N frames, H W pixels, K objects, joints or classes.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from tcore_lib.bodies import JOINTS, PARTS
from tcore_lib.errors import InputError
from tcore_lib.evaluation import metrics
from tcore_lib.evaluation.clips import Clip, prediction_path, read_ids

Ids = NDArray[np.uint8]
Row = dict[str, Any]


def without_void(labels: Ids) -> Ids:
    """The map with void pixels as background: what may be propagated."""
    return np.where(labels == metrics.VOID, 0, labels).astype(np.uint8)


def number_of_objects(first: Ids) -> int:
    """The largest id of a DAVIS clip's first annotation; objects are 1 ... that, as in the DAVIS-2017 toolkit."""
    return int(without_void(first).max())


def davis_frame(prediction: Ids, truth: Ids, objects: int) -> NDArray[np.float64]:
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


def davis_rows(clip: Clip, scores: NDArray[np.floating]) -> list[Row]:
    """One row per object.

    Args:
        clip: DAVIS.
        scores: (N - 2, K, 2), J and F of all frames but the first and the last.
    """
    rows = []
    for index in range(scores.shape[1]):
        row: Row = {"clip": clip.name, "object": index + 1, "frames": len(scores)}
        for column, measure in enumerate("JF"):
            statistics = metrics.sequence_statistics(scores[:, index, column])
            row |= {f"{measure}_{n}": v for n, v in zip(("mean", "recall", "decay"), statistics, strict=True)}
        rows.append({**row, "JF_mean": (row["J_mean"] + row["F_mean"]) / 2})
    return rows


def jhmdb_rows(clip: Clip, joints: NDArray[np.floating]) -> list[Row]:
    """One row per joint: how often it was found and correct, and the percentages, without frame 0.

    Args:
        clip: JHMDB.
        joints: predicted (N, 15, 2) in pixels of the clip's own size, NaN = not found.
    """
    assert clip.joints is not None
    found, correct = metrics.joint_counts(metrics.joint_distances(joints, clip.joints)[1:])
    percent = metrics.pck(found, correct)
    rows = []
    for index, joint in enumerate(JOINTS):
        row: Row = {"clip": clip.name, "joint": joint, "frames": len(joints) - 1, "found": int(found[index])}
        for column, threshold in enumerate(metrics.PCK_THRESHOLDS):
            row[f"correct@{threshold}"] = int(correct[index, column])
            row[f"PCK@{threshold}"] = float(percent[index, column])
        rows.append(row)
    return rows


def vip_frame(prediction: Ids, truth: Ids) -> NDArray[np.int64]:
    """Confusion matrix (20, 20) of one frame, rows true."""
    return metrics.confusion(prediction, truth, len(PARTS))


def vip_rows(clip: Clip, confusion: NDArray[np.integer]) -> list[Row]:
    """One row per class: pixel counts, which add up over clips, and the clip's own IoU (NaN if the class is absent).

    Args:
        clip: VIP.
        confusion: (20, 20), summed over the clip's annotated frames.
    """
    iou = metrics.class_iou(confusion)
    return [
        {
            "clip": clip.name,
            "part": part,
            "frames": sum(path is not None for path in clip.annotations),
            "hit": int(confusion[index, index]),
            "true": int(confusion[index].sum()),
            "predicted": int(confusion[:, index].sum()),
            "IoU": float(iou[index]),
        }
        for index, part in enumerate(PARTS)
    ]


def resize_part_ids(labels: Ids, size: tuple[int, int]) -> Ids:
    """Nearest resize of a VIP prediction to its annotation's (H, W), the pixel that Pillow's NEAREST takes.

    The released VIP scorer resizes with Pillow, the DAVIS conversion with OpenCV; their nearest pixels differ.
    """
    if labels.shape == tuple(size):
        return labels
    return np.array(Image.fromarray(labels).resize((size[1], size[0]), Image.Resampling.NEAREST))


# ---------------------------------------------------------------------------------------------- predictions of others


def _read_prediction(folder: Path, clip: Clip, frame: int) -> tuple[Path, Ids]:
    path = prediction_path(folder, clip, frame)
    if not path.exists():
        raise InputError(f"{path} is missing; a score needs a prediction of every scored frame of every clip.")
    return path, read_ids(path)


def _score_davis_clip(clip: Clip, folder: Path, pool: ThreadPoolExecutor) -> list[Row]:
    objects = number_of_objects(_annotation(clip, 0))

    def score(frame: int) -> NDArray[np.float64]:
        path, prediction = _read_prediction(folder, clip, frame)
        truth = _annotation(clip, frame)
        if prediction.shape != truth.shape:
            raise InputError(
                f"{path} is {prediction.shape[0]}x{prediction.shape[1]} pixels (height x width), its annotation "
                f"{truth.shape[0]}x{truth.shape[1]}; resize predictions to the annotation's size (nearest)."
            )
        if prediction.max() > objects:
            raise InputError(
                f"{path} has the id {prediction.max()}, but {clip.name} has {objects} object(s); "
                "ids must be those of the first annotation, 0 = background."
            )
        return davis_frame(prediction, truth, objects)

    scores = list(pool.map(score, range(1, len(clip) - 1)))
    return davis_rows(clip, np.stack(scores) if scores else np.empty((0, objects, 2)))


def _score_vip_clip(clip: Clip, folder: Path, pool: ThreadPoolExecutor) -> list[Row]:
    def score(frame: int) -> NDArray[np.int64]:
        path, prediction = _read_prediction(folder, clip, frame)
        if prediction.max() >= len(PARTS):
            raise InputError(f"{path} has the id {prediction.max()}; VIP's classes are 0 ... {len(PARTS) - 1}.")
        truth = _annotation(clip, frame)
        return vip_frame(resize_part_ids(prediction, truth.shape), truth)

    annotated = [frame for frame, path in enumerate(clip.annotations) if path is not None]
    return vip_rows(clip, sum(pool.map(score, annotated), np.zeros((len(PARTS), len(PARTS)), np.int64)))


def _annotation(clip: Clip, frame: int) -> Ids:
    path = clip.annotations[frame]
    assert path is not None
    return read_ids(path)


def score_predictions(clips: Sequence[Clip], folder: str | Path) -> pd.DataFrame:
    """Table of label PNGs that somebody else made, one row per object (DAVIS) or class (VIP).

    Args:
        clips: of DAVIS or VIP; a clip without predictions is an error, not a skip.
        folder: holds `<clip>/<frame>.png`, palette or grey. DAVIS: every frame but the first and the last, in the
            annotation's size, ids 0 ... number of objects; an id that never appears counts as an empty prediction.
            VIP: every annotated frame, ids 0 ... 19, any size (resized nearest).

    Raises:
        InputError: names the file that is missing, unreadable, or has a wrong size or id.
    """
    folder, score = Path(folder), {"davis": _score_davis_clip, "vip": _score_vip_clip}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return pd.DataFrame([row for clip in clips for row in score[clip.kind](clip, folder, pool)])
