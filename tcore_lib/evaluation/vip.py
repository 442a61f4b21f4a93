"""VIP, propagation of body parts: everything that is this benchmark's. (docs/protocol.md.) IoU is a fraction.

Letters: H W pixels, K = 20 classes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from tcore_lib.bodies import PARTS
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles, idmaps, labels as labelmaps, metrics
from tcore_lib.evaluation.clips import Clip, Ids
from tcore_lib.figures import style

STEP = 64  # pixels; the short side of the input is a multiple of it


def resize_classes(labels: Ids, size: tuple[int, ...]) -> Ids:
    """Nearest resize of a prediction to its annotation's (H, W), the pixel that Pillow's NEAREST takes.

    The released VIP scorer resizes with Pillow, the DAVIS conversion with OpenCV; their nearest pixels differ.
    """
    return np.array(Image.fromarray(labels).resize((size[1], size[0]), Image.Resampling.NEAREST))


class Vip(idmaps.IdMaps):
    """See `benchmarks`."""

    title, official, table, headline = "VIP", ("val", 50, None), "parts", "mIoU"
    palette, classes, any_size = style.VIP_PALETTE, len(PARTS), True
    resize = staticmethod(resize_classes)

    def names(self, root: Path) -> list[str]:
        """Clips of the split, or those chosen from it, in its order."""
        split = root / "lists" / f"{self.settings.split}_videos.txt"
        listed = [line.split()[0].strip("/") for line in clipfiles.lines_of(split)]
        return clipfiles.chosen(listed, self.settings.clips, split)

    def load(self, root: Path, name: str) -> Clip:
        """One clip. Its first frame needs an annotation; others without one are carried through and not scored."""
        return idmaps.load(name, root / "Images" / name, root / "Annotations" / "Category_ids" / name)

    def check(self, clip: Clip) -> list[str]:
        """Remarks about annotations; an `InputError` where an id is no class."""
        other = 0
        for frame in self.counted(clip):
            ids = clip.truth(frame)
            assert ids is not None
            if ids.max() > self.largest(clip):
                named = f"{clip.annotations[frame]} has the id {ids.max()}"
                raise InputError(f"{named}, not one of 0 ... 19; take Category_ids, not instances.")
            other += ids.shape != clip.size
        return [f"{other} annotations have another size than their frame; scored at their own size"] if other else []

    def counted(self, clip: Clip) -> list[int]:
        """The frames that are scored: all with annotation, also the first (as in the released scorer)."""
        return [frame for frame, path in enumerate(clip.annotations) if path is not None]

    def input_size(self, clip: Clip, patch_size: int) -> tuple[int, int]:
        """(H, W) of the network input.

        The long side is given, the short one is scaled by `int()` and floored to a multiple of 64, both then to whole patches.
        """
        h, w = clip.size
        long = self.settings.long_side
        short = int(min(h, w) * long / max(h, w)) // STEP * STEP
        return labelmaps.whole_patches((short, long) if w > h else (long, short), patch_size)

    def score(self, clip: Clip, read: Callable[[int], Ids], each: Callable[..., Any] = map) -> list[dict[str, Any]]:
        """One row per class: pixel counts, which add up over clips, and the clip's own IoU (NaN if the class is absent)."""

        def measure(frame: int) -> NDArray[np.int64]:
            true = clip.truth(frame)
            assert true is not None
            return metrics.confusion(self.resize(read(frame), true.shape), true, len(PARTS))

        counted = self.counted(clip)
        confusion = np.sum(list(each(measure, counted)), axis=0)  # (K, K), rows true
        table = pd.DataFrame({
            "clip": clip.name, "part": PARTS, "frames": len(counted), "hit": np.diagonal(confusion),
            "true": confusion.sum(1), "predicted": confusion.sum(0), "IoU": metrics.class_iou(confusion),
        })  # fmt: skip
        return table.to_dict("records")

    @classmethod
    def sums(cls, rows: pd.DataFrame) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Intersection and union of each class per clip, each (clips, K)."""
        wide = rows.pivot(index="clip", columns="part", values=["hit", "true", "predicted"]).loc[rows["clip"].unique()]
        hit, true, predicted = (wide[column].to_numpy(float) for column in ("hit", "true", "predicted"))
        return {cls.headline: (hit, true + predicted - hit)}

    def legend(self, clip: Clip) -> tuple[list[str], NDArray[np.uint8]]:
        """Names and colours of a soft map's channels."""
        return [PARTS[i] for i in clip.channels], self.palette[clip.channels]
