"""Which class a video belongs to, from the official CSV of Kinetics or the released entries-TRAIN.npy."""

import csv
from pathlib import Path

from tcore_lib.data.released_index import read_released
from tcore_lib.errors import InputError

UNLABELLED = "unlabelled"
_VAL = dict.fromkeys(("val", "valid", "validate", "validation"), "val")
SPLITS = {"train": "train", "test": "test", **_VAL}  # as people write it -> what it is


def canonical(split: str) -> str:
    """The short name of a split: "validate" and "validation" are "val"; others stay."""
    return SPLITS.get(split, split)


class Annotations:
    """Which class a video belongs to: the official CSV or the released entries-TRAIN.npy.

    The CSV has columns label (where known), youtube_id, time_start, time_end and split.

    Attributes:
        labels: name of a video (`<youtube id>_<start>_<end>`) -> its class folder.
        class_names: all classes in the order of their ids.

    Raises:
        InputError: the file is missing, of another format, or without a row of the split.
    """

    def __init__(self, path: Path, split: str) -> None:
        self.labels: dict[str, str] = {}
        self._by_id: dict[str, str] = {}
        if path.suffix == ".npy":
            pairs, self.class_names = read_released(path)
            self.labels = {video: class_name for class_name, video in pairs}
            return
        try:
            with open(path, encoding="utf-8", newline="") as stream:
                self._read_rows(csv.DictReader(stream), canonical(split))
        except OSError as error:
            raise InputError(f"data.annotations = {path} cannot be read ({error.strerror}); check the path.") from error
        except (KeyError, ValueError, TypeError, csv.Error) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(
                f"{path} is not the official CSV with youtube_id, time_start, time_end ({reason})."
            ) from error
        if not self.labels:
            raise InputError(f"{path} has no row of split {split!r}; check data.split and data.annotations.")
        self.class_names = sorted(set(self.labels.values()))

    def _read_rows(self, rows: "csv.DictReader[str]", split: str) -> None:
        for row in rows:
            given = row.get("split") or split
            if canonical(given) == split:
                start, end = (int(float(row[key])) for key in ("time_start", "time_end"))
                label = class_folder(row.get("label") or UNLABELLED)
                self.labels[f"{row['youtube_id']}_{start:06d}_{end:06d}"] = label
                self._by_id[row["youtube_id"]] = label

    def label(self, name: str) -> str | None:
        """Class folder of the video `name`, by the whole name or by its YouTube id alone; None if it is not listed."""
        return self.labels.get(name) or self._by_id.get(name)


def class_folder(label: str) -> str:
    """A label as the released layout names its folder: "golf (putting)" -> "golf_putting"."""
    cleaned = label.strip().replace("/", "_").replace(" ", "_")
    return "".join(c for c in cleaned if c not in '()"\\\0').lstrip(".") or UNLABELLED
