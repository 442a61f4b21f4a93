"""VIP, propagation of body parts: everything that is this benchmark's. (docs/protocol.md.) IoU is a fraction.

Letters: H W pixels, C label channels, K = 20 classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from tcore_lib.bodies import PARTS
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
from tcore_lib.params import Vip

TITLE = "VIP"
OFFICIAL = ("val", 50, None)  # split, clips and frames (not known) that published figures are measured on
TABLE = "parts"  # a row of the table is a class
HEADLINE = "mIoU"
STEP = 64  # pixels; the short side of the input is a multiple of it


def names(settings: Vip, root: Path) -> list[str]:
    """Clips of the split, or those chosen from it, in its order."""
    split = root / "lists" / f"{settings.split}_videos.txt"
    return clipfiles.chosen([line.split()[0].strip("/") for line in clipfiles.lines_of(split)], settings.clips, split)


def load(settings: Vip, root: Path, name: str) -> Clip:
    """One clip. Its first frame needs an annotation; others without one are carried through and not scored.

    Raises:
        InputError: names what is missing or does not fit.
    """
    return idmaps.load(name, root / "Images" / name, root / "Annotations" / "Category_ids" / name)


def counted(clip: Clip) -> list[int]:
    """The frames that are scored: all with annotation, also the first (as in the released scorer)."""
    return [frame for frame, path in enumerate(clip.annotations) if path is not None]


class Scorer(idmaps.IdScorer):
    """One encoder on one clip, see `IdScorer`.

    The long side of the input is given, the short one is scaled by `int()` and floored to a multiple of 64, both then to
    whole patches.
    """

    largest = len(PARTS) - 1
    any_size = True

    def __init__(self, clip: Clip, settings: Vip, patch_size: int = 16, folder: Path | None = None) -> None:
        h, w = clip.size
        long = settings.long_side
        short = int(min(h, w) * long / max(h, w)) // STEP * STEP
        size = labelmaps.whole_patches((short, long) if w > h else (long, short), patch_size, f"{clip.name} ({w}x{h})")
        first = truth(clip, 0)
        assert first is not None
        if first.max() > self.largest:
            raise InputError(f"{clip.annotations[0]} has the id {first.max()}; VIP's classes are 0 ... {self.largest}.")
        super().__init__(clip, first, size, counted(clip), settings.upsampling, folder)

    def resize(self, ids: Ids, size: tuple[int, ...]) -> Ids:
        """As Pillow does, like the released VIP scorer."""
        return resize_classes(ids, size)

    def measure(self, native: Ids, true: Ids, at_input: Ids | None = None) -> NDArray[np.int64]:
        """Confusion matrix (K, K) of one frame, rows true."""
        return metrics.confusion(native, true, len(PARTS))

    def rows(self, results: Sequence[NDArray[np.int64] | None]) -> list[dict[str, Any]]:
        """One row per class: pixel counts, which add up over clips, and the clip's own IoU (NaN if the class is absent)."""
        confusion = np.sum([result for result in results if result is not None], axis=0)  # (K, K)
        columns = {
            "hit": np.diagonal(confusion).tolist(),
            "true": confusion.sum(1).tolist(),
            "predicted": confusion.sum(0).tolist(),
            "IoU": metrics.class_iou(confusion).tolist(),
        }
        return [
            {
                "clip": self.clip.name,
                "part": part,
                "frames": len(self.counted),
                **{name: values[index] for name, values in columns.items()},
            }
            for index, part in enumerate(PARTS)
        ]


def resize_classes(labels: Ids, size: tuple[int, ...]) -> Ids:
    """Nearest resize of a prediction to its annotation's (H, W), the pixel that Pillow's NEAREST takes.

    The released VIP scorer resizes with Pillow, the DAVIS conversion with OpenCV; their nearest pixels differ.
    """
    if labels.shape == tuple(size):
        return labels
    return np.array(Image.fromarray(labels).resize((size[1], size[0]), Image.Resampling.NEAREST))


def sums(rows: pd.DataFrame) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Intersection and union of each class per clip, each (clips, K): mIoU is the mean over classes of their ratio."""
    order = rows["clip"].unique()
    hit, true, predicted = (
        rows.pivot(index="clip", columns="part", values=column).loc[order].to_numpy(float)
        for column in ("hit", "true", "predicted")
    )
    return {HEADLINE: (hit, true + predicted - hit)}


def check(clip: Clip, settings: Vip, decode: bool) -> tuple[list[str], list[str]]:
    """Problems and remarks about a clip's annotations: sizes and class ids. Without `decode` only the first one is read."""
    paths = [path for path in clip.annotations if path is not None]
    maps, problems = idmaps.readable(paths if decode else paths[:1])
    remarks = []
    for path, ids in maps:
        if ids.max() >= len(PARTS):
            problems.append(f"{path} has the id {ids.max()}, not one of 0 ... 19; take Category_ids, not instances.")
        elif ids.shape != clip.size:
            own, size = f"{ids.shape[1]}x{ids.shape[0]}", f"{clip.size[1]}x{clip.size[0]}"
            remarks.append(f"{path.name} is {own}, its frame {size}; scored at its own size")
    if len(paths) == 1:
        remarks.append("only the first frame is annotated, which was given")
    return problems, remarks


def draw(image: NDArray[np.uint8], ids: Ids) -> NDArray[np.uint8]:
    """A class map over a frame (H, W, 3)."""
    return style.overlay_labels(image, ids, style.VIP_PALETTE)


def legend(channels: Sequence[int]) -> tuple[list[str], NDArray[np.uint8]]:
    """Names and colours (C, 3) of a soft map's channels."""
    return [PARTS[index] for index in channels], style.VIP_PALETTE[list(channels)]
