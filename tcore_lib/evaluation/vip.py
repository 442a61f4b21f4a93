"""VIP, propagation of body parts: everything that is this benchmark's. (EVALUATION.) IoU is a fraction.

Letters: B N frames, H W pixels, h w grid, C label channels, K = 20 classes.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tcore_lib.bodies import PARTS
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles, labels as labelmaps, metrics
from tcore_lib.evaluation.clips import Clip
from tcore_lib.figures import style
from tcore_lib.params import Vip

TITLE = "VIP"
OFFICIAL: tuple[str, int, int | None] = (
    "val",
    50,
    None,
)  # split, clips and frames that published figures are measured on
TABLE = "parts"  # a row of the table is a class
HEADLINE = "mIoU"
STEP = 64  # pixels; the short side of the input is a multiple of it

Ids = NDArray[np.uint8]
# Predictions and truth are label images.
has_predictions, predictions, truth = clipfiles.has_label_files, clipfiles.read_label_files, clipfiles.annotation


# ---------------------------------------------------------------------------------------------- clips


def names(settings: Vip, root: Path) -> list[str]:
    """Clips of the split, or those chosen from it, in its order."""
    split = root / "lists" / f"{settings.split}_videos.txt"
    return clipfiles.chosen([line.split()[0].strip("/") for line in clipfiles.lines_of(split)], settings.clips, split)


def load(settings: Vip, root: Path, name: str) -> Clip:
    """One clip. Its first frame needs an annotation; others without one are carried through and not scored.

    Raises:
        InputError: names what is missing or does not fit.
    """
    frames = clipfiles.images_in(root / "Images" / name)
    folder = root / "Annotations" / "Category_ids" / name
    annotations = clipfiles.annotations_of(folder, frames)
    return Clip(name, tuple(frames), clipfiles.image_size(frames[0]), annotations, source=folder)


def counted(clip: Clip) -> list[int]:
    """The frames that are scored: all with annotation, also the first (as in the released scorer)."""
    return [frame for frame, path in enumerate(clip.annotations) if path is not None]


# ---------------------------------------------------------------------------------------------- one encoder, one clip


class Scorer:
    """From a clip's first annotation to a soft map, from soft maps to class maps, from these to rows of the table.

    Attributes:
        size: (H, W) of the network input: the long side is given, the short one is scaled by `int()` and floored to a
            multiple of 64, both then to whole patches.
        channels: class of each channel.
    """

    def __init__(self, clip: Clip, settings: Vip, patch_size: int, folder: Path | None = None) -> None:
        self.clip, self.settings, self.folder = clip, settings, folder
        h, w = clip.size
        long = settings.long_side
        short = int(min(h, w) * long / max(h, w)) // STEP * STEP
        size = (short, long) if w > h else (long, short)
        self.size = labelmaps.whole_patches(size, patch_size, f"{clip.name} ({w}x{h})")
        first = truth(clip, 0)
        assert first is not None
        if first.max() >= len(PARTS):
            raise InputError(
                f"{clip.annotations[0]} has the id {first.max()}; VIP's classes are 0 ... {len(PARTS) - 1}."
            )
        self.first = first
        self.channels: list[int] = np.unique(first).tolist()

    def first_map(self, grid: tuple[int, int]) -> Tensor:
        """Labels of the first frame on the grid, (C, h, w)."""
        return labelmaps.first_soft_map(self.first, self.size, grid)[0]

    def predict(self, soft: Tensor) -> list[Ids]:
        """Soft maps (B, C, h, w) to class maps (H, W) of input size."""
        return list(labelmaps.to_ids(soft, self.channels, self.size, self.settings.upsampling).cpu().numpy())

    def score(self, frame: int, prediction: Ids) -> NDArray[np.int64] | None:
        """Confusion matrix (K, K) of one frame, rows true; None without annotation. Writes the prediction. In a thread."""
        true = truth(self.clip, frame)
        native = resize_classes(prediction, self.clip.size if true is None else true.shape)
        if self.folder is not None:
            clipfiles.write_ids(clipfiles.label_file(self.folder, self.clip, frame), native)
        return None if true is None else metrics.confusion(native, true, len(PARTS))

    def rows(self, results: Sequence[NDArray[np.int64] | None]) -> list[dict[str, Any]]:
        """One row per class, from the results of all frames."""
        return class_rows(self.clip, np.sum([result for result in results if result is not None], axis=0))


def resize_classes(labels: Ids, size: tuple[int, ...]) -> Ids:
    """Nearest resize of a prediction to its annotation's (H, W), the pixel that Pillow's NEAREST takes.

    The released VIP scorer resizes with Pillow, the DAVIS conversion with OpenCV; their nearest pixels differ.
    """
    if labels.shape == tuple(size):
        return labels
    return np.array(Image.fromarray(labels).resize((size[1], size[0]), Image.Resampling.NEAREST))


def class_rows(clip: Clip, confusion: NDArray[np.integer]) -> list[dict[str, Any]]:
    """One row per class: pixel counts, which add up over clips, and the clip's own IoU (NaN if the class is absent).

    Args:
        clip: whose annotated frames these are.
        confusion: (K, K), summed over them, rows true.
    """
    iou = metrics.class_iou(confusion)
    return [
        {
            "clip": clip.name,
            "part": part,
            "frames": len(counted(clip)),
            "hit": int(confusion[index, index]),
            "true": int(confusion[index].sum()),
            "predicted": int(confusion[:, index].sum()),
            "IoU": float(iou[index]),
        }
        for index, part in enumerate(PARTS)
    ]


def score_files(clip: Clip, folder: Path, pool: Executor) -> list[dict[str, Any]]:
    """Rows of label PNGs that somebody else made: of every annotated frame, ids 0 ... 19, any size (resized nearest).

    Raises:
        InputError: names the file that is missing, misnamed or unreadable, or has a wrong id.
    """

    def score(path: Path, frame: int) -> NDArray[np.int64]:
        prediction, true = clipfiles.read_prediction(path), truth(clip, frame)
        assert true is not None
        if prediction.max() >= len(PARTS):
            raise InputError(f"{path} has the id {prediction.max()}; VIP's classes are 0 ... {len(PARTS) - 1}.")
        return metrics.confusion(resize_classes(prediction, true.shape), true, len(PARTS))

    frames = counted(clip)
    return class_rows(clip, np.sum(list(pool.map(score, clipfiles.label_files(folder, clip, frames), frames)), axis=0))


def sums(rows: pd.DataFrame) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Intersection and union of each class per clip, each (clips, K): mIoU is the mean over classes of their ratio."""
    order = rows["clip"].unique()
    hit, true, predicted = (
        rows.pivot(index="clip", columns="part", values=column).loc[order].to_numpy(float)
        for column in ("hit", "true", "predicted")
    )
    return {HEADLINE: (hit, true + predicted - hit)}


# ---------------------------------------------------------------------------------------------- checks and pictures


def check(clip: Clip, settings: Vip, decode: bool) -> tuple[list[str], list[str]]:
    """Problems and remarks about a clip's annotations: sizes and class ids. Without `decode` only the first one is read."""
    problems: list[str] = []
    remarks: list[str] = []
    for frame in counted(clip) if decode else [0]:
        path = clip.annotations[frame]
        assert path is not None
        try:
            ids = clipfiles.read_ids(path)
        except InputError as error:
            problems.append(str(error))
            continue
        if ids.max() >= len(PARTS):
            problems.append(f"{path} has the id {ids.max()}, not one of 0 ... 19; take Category_ids, not instances.")
        elif ids.shape != clip.size:
            own, size = f"{ids.shape[1]}x{ids.shape[0]}", f"{clip.size[1]}x{clip.size[0]}"
            remarks.append(f"{path.name} is {own}, its frame {size}; scored at its own size")
    if len(counted(clip)) == 1:
        remarks.append("only the first frame is annotated, which was given")
    return problems, remarks


def draw(image: NDArray[np.uint8], ids: Ids) -> NDArray[np.uint8]:
    """A class map over a frame (H, W, 3)."""
    return style.overlay_labels(image, ids, style.VIP_PALETTE)


def legend(channels: Sequence[int]) -> tuple[list[str], NDArray[np.uint8]]:
    """Names and colours (C, 3) of a soft map's channels."""
    return [PARTS[index] for index in channels], style.VIP_PALETTE[list(channels)]
