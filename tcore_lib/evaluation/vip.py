"""VIP, propagation of body parts: everything that is this benchmark's. (docs/protocol.md.) IoU is a fraction.

Letters: H W pixels, K = 20 classes.
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from tcore_lib.bodies import PARTS
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles, labels as labelmaps
from tcore_lib.evaluation.clips import Clip, Ids

STEP = 64  # pixels; the short side of the input is a multiple of it


def resize_classes(labels: Ids, size: tuple[int, ...]) -> Ids:
    """Nearest resize of a prediction to its annotation's (H, W), the pixel that Pillow's NEAREST takes.

    The released VIP scorer resizes with Pillow, the DAVIS conversion with OpenCV; their nearest pixels differ.
    """
    return np.array(Image.fromarray(labels).resize((size[1], size[0]), Image.Resampling.NEAREST))


class Vip(labelmaps.IdMaps):
    """See `benchmarks`."""

    title, official, table, headline = "VIP", ("val", 50, None), "parts", "mIoU"
    lists, folders = "lists/{}_videos.txt", ("Images", "Annotations/Category_ids")
    classes = len(PARTS)
    resize = staticmethod(resize_classes)

    def check(self, clip: Clip) -> None:
        """An `InputError` where an id is no class."""
        for path in filter(None, clip.annotations):
            if (found := clipfiles.read_ids(path).max()) >= len(PARTS):
                raise InputError(f"{path} has the id {found}, not one of 0 ... 19; take Category_ids, not instances.")

    def counted(self, clip: Clip) -> list[int]:
        """The frames that are scored: all with annotation, also the first (as in the released scorer)."""
        return [frame for frame, path in enumerate(clip.annotations) if path is not None]

    def input_size(self, clip: Clip, patch_size: int) -> tuple[int, int]:
        """(H, W): the long side as set, the short one scaled by `int()` and floored to STEP, both then to whole patches."""
        h, w = clip.size
        long = self.settings.long_side
        short = int(min(h, w) * long / max(h, w)) // STEP * STEP
        return labelmaps.whole_patches((short, long) if w > h else (long, short), patch_size)

    def score(self, clip: Clip, read: Callable[[int], Ids]) -> pd.DataFrame:
        """One row per class: pixel counts, which add up over clips, and the clip's own IoU (NaN if the class is absent)."""
        counted, matrix = self.counted(clip), np.zeros((len(PARTS), len(PARTS)), np.int64)  # rows true
        for frame in counted:
            true = clip.truth(frame)
            assert true is not None
            matrix += confusion(self.resize(read(frame), true.shape), true, len(PARTS))
        return pd.DataFrame({
            "clip": clip.name, "part": PARTS, "frames": len(counted), "hit": np.diagonal(matrix),
            "true": matrix.sum(1), "predicted": matrix.sum(0), "IoU": class_iou(matrix),
        })  # fmt: skip

    @classmethod
    def sums(cls, rows: pd.DataFrame) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Intersection and union of each class per clip, each (clips, K)."""
        wide = rows.pivot(index="clip", columns="part", values=["hit", "true", "predicted"]).loc[rows["clip"].unique()]
        hit, true, predicted = (wide[column].to_numpy(float) for column in ("hit", "true", "predicted"))
        return {cls.headline: (hit, true + predicted - hit)}


def confusion(prediction: NDArray[np.integer], truth: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Pixel counts (true class, predicted class), (K, K), of two label maps (H, W); true ids beyond the classes are left out."""
    assert prediction.max(initial=0) < classes
    counted = truth < classes
    pairs = truth[counted].astype(np.int64) * classes + prediction[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_iou(matrix: NDArray[np.integer]) -> NDArray[np.float64]:
    """Intersection over union per class (..., K) of confusion matrices (..., K, K); NaN for a class neither true nor predicted."""
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    union = matrix.sum(-1) + matrix.sum(-2) - hit
    return np.divide(hit, union, out=np.full(hit.shape, math.nan), where=union > 0)
