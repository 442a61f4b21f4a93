"""The index that training reads: one row per video, opened in a fraction of a second for all of Kinetics-400.

A parquet file holds the columns; its metadata holds the kind, the root, the class names and the settings that made it. Nothing in it
is ever unpickled. The released code's own index (`entries-TRAIN.npy` and companions) is read and written too.
"""

import csv
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tcore_lib import decode
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, write_text

Kind = Literal["frames", "video", "images"]
UNLABELLED = "unlabelled"
_KEY = b"tcore_index"
_COLUMNS = ("path", "class_id", "num_frames", "width", "height", "checksum", "numbered", "sequential")


@dataclass
class FrameIndex:
    """What training reads. Columns are NumPy arrays of length n, in the order of `paths`.

    Attributes:
        root: folder that `paths` are relative to.
        paths: (n,) str: a folder of frames, a video file or an image file.
        class_ids: (n,) int32 into `class_names`.
        class_names: names of the classes; one, "unlabelled", where there are none.
        num_frames: (n,) int32.
        widths, heights: (n,) int32, pixels of a frame as `read` returns it.
        checksums: (n,) str, see `videos`; empty where unknown.
        kind: "frames" = folders of frames, "video" = video files, "images" = single images (clips of one frame).
        numbered: (n,) bool; True = frames are named 00000.jpg, 00001.jpg, ...; False = sorted by name. Of kind "frames".
        sequential: (n,) bool, and timestamps: (sum of num_frames,) int64: where the frames of a video file lie
            (`decode.Timeline`). Of kind "video".
        short_side: frames whose short side is larger are reduced to it when read; None = never.
        settings: what made the index, for the reader.
    """

    root: Path
    paths: np.ndarray
    class_ids: np.ndarray
    class_names: list[str]
    num_frames: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    checksums: np.ndarray
    kind: Kind = "frames"
    numbered: np.ndarray | None = None
    sequential: np.ndarray | None = None
    timestamps: np.ndarray | None = None
    short_side: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Give every column its type and check that they belong together."""
        n = len(self.paths)
        self.root = Path(self.root)
        self.paths = np.asarray(self.paths, dtype=np.dtypes.StringDType())
        self.checksums = np.asarray(self.checksums, dtype=np.dtypes.StringDType())
        for name in ("class_ids", "num_frames", "widths", "heights"):
            setattr(self, name, np.asarray(getattr(self, name), dtype=np.int32))
        self.numbered = np.ones(n, bool) if self.numbered is None else np.asarray(self.numbered, bool)
        self.sequential = np.zeros(n, bool) if self.sequential is None else np.asarray(self.sequential, bool)
        self.timestamps = np.zeros(0, np.int64) if self.timestamps is None else np.asarray(self.timestamps, np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.num_frames, dtype=np.int64)])  # into timestamps
        problem = self._problem()
        if problem:
            raise InputError(f"The index of {self.root} is inconsistent ({problem}); prepare the data again.")

    def _problem(self) -> str:
        n = len(self.paths)
        columns = ("class_ids", "num_frames", "widths", "heights", "checksums", "numbered", "sequential")
        wrong = [name for name in columns if getattr(self, name).shape != (n,)]
        if wrong:
            return f"column {wrong[0]} has another length than paths, {n}"
        if self.kind not in get_args(Kind):
            return f"unknown kind {self.kind!r}"
        if n and (
            self.num_frames.min() < 1 or self.class_ids.min() < 0 or self.class_ids.max() >= len(self.class_names)
        ):
            return "a video without frames or a class without name"
        if self.kind == "video" and len(self.timestamps) != self._starts[-1]:
            return "timestamps do not match num_frames"
        return ""

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.paths)

    def class_name(self, i: int) -> str:
        """Class of video i."""
        return self.class_names[self.class_ids[i]]

    def path(self, i: int) -> Path:
        """Folder or file of video i."""
        return self.root / str(self.paths[i])

    def frame_path(self, i: int, j: int) -> Path:
        """File that holds frame j of video i; for kinds "video" and "images" the one file of that video."""
        if self.kind != "frames":
            return self.path(i)
        if self.numbered[i]:
            return self.path(i) / f"{j:05d}.jpg"
        return self.path(i) / decode.frame_names(self.path(i))[j]

    def read(self, i: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        """Frames of video i as uint8 (H, W, 3) RGB, in the order asked for.

        Raises:
            InputError: an index is out of range; a file is missing or damaged.
        """
        outside = [j for j in frame_indices if not 0 <= j < self.num_frames[i]]
        if outside:
            raise InputError(
                f"{self.path(i)} has frames 0 to {self.num_frames[i] - 1}; there is no frame {outside[0]}."
            )
        where = self.path(i)
        try:
            if self.kind == "video":
                stamps = self.timestamps[self._starts[i] : self._starts[i + 1]]
                return decode.read_video(
                    where, stamps[list(frame_indices)].tolist(), bool(self.sequential[i]), self.short_side
                )
            if self.kind == "images":
                return [decode.read_image(where, self.short_side)] * len(frame_indices)
            frames = []
            names = None if self.numbered[i] else decode.frame_names(where)
            for j in frame_indices:
                where = self.path(i) / (names[j] if names else f"{j:05d}.jpg")
                frames.append(decode.read_image(where, self.short_side))
            return frames
        except decode.BadFile as error:
            raise InputError(
                f"{where} cannot be read: {error}; prepare the data again or remove it from the index."
            ) from error
        except (IndexError, OSError) as error:
            raise InputError(f"{where} has lost frames since it was indexed; prepare the data again.") from error

    def subset(self, rows: Sequence[int] | np.ndarray) -> "FrameIndex":
        """An index of some of the videos, in that order; class ids stay as they are."""
        rows = np.asarray(rows, dtype=np.int64)
        stamps = None
        if self.kind == "video":
            pieces = [self.timestamps[self._starts[i] : self._starts[i + 1]] for i in rows]
            stamps = np.concatenate([*pieces, np.zeros(0, np.int64)])
        return FrameIndex(
            self.root,
            self.paths[rows],
            self.class_ids[rows],
            self.class_names,
            self.num_frames[rows],
            self.widths[rows],
            self.heights[rows],
            self.checksums[rows],
            self.kind,
            self.numbered[rows],
            self.sequential[rows],
            stamps,
            self.short_side,
            self.settings,
        )

    def save(self, path: str | Path) -> None:
        """Write the index as parquet, atomically. A root beside or below the file is kept relative: the folder may move."""
        path = Path(path).absolute()
        root = self.root.absolute()
        meta = {
            "kind": self.kind,
            "root": os.path.relpath(root, path.parent) if root.is_relative_to(path.parent) else str(root),
            "class_names": self.class_names,
            "short_side": self.short_side,
            "settings": self.settings,
        }
        values = (
            self.paths,
            self.class_ids,
            self.num_frames,
            self.widths,
            self.heights,
            self.checksums,
            self.numbered,
            self.sequential,
        )
        arrays = [pa.array(v.tolist(), pa.string()) if v.dtype.kind == "T" else pa.array(v) for v in values]
        names = list(_COLUMNS)
        if self.kind == "video":
            arrays.append(pa.ListArray.from_arrays(pa.array(self._starts.astype(np.int32)), pa.array(self.timestamps)))
            names.append("timestamps")
        table = pa.table(arrays, names=names).replace_schema_metadata({_KEY: json.dumps(meta).encode()})
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @classmethod
    def load(cls, path: str | Path) -> "FrameIndex":
        """Read an index file.

        Raises:
            InputError: the file is missing or is no index.
        """
        path = Path(path).absolute()
        try:
            table = pq.read_table(path, partitioning=None)
            meta = json.loads(table.schema.metadata[_KEY])
            columns = {name: table.column(name).to_numpy() for name in _COLUMNS}
            stamps = (
                table.column("timestamps").combine_chunks().flatten().to_numpy() if meta["kind"] == "video" else None
            )
            return cls(
                path.parent / meta["root"],
                columns["path"],
                columns["class_id"],
                list(meta["class_names"]),
                columns["num_frames"],
                columns["width"],
                columns["height"],
                columns["checksum"],
                meta["kind"],
                columns["numbered"],
                columns["sequential"],
                stamps,
                meta["short_side"],
                meta["settings"],
            )
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist; prepare the data first (notebook 00).") from error
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path} is not an index of frames ({type(error).__name__}); prepare the data again."
            ) from error


# --- the released code's index: entries-TRAIN.npy, class-ids-TRAIN.npy, class-names-TRAIN.npy, labels.txt ---


def export_released(index: FrameIndex, folder: str | Path, split: str = "train") -> list[Path]:
    """Write the four files of the released code (`base_model/data/datasets/kinetics.py`) for an index of kind "frames".

    `labels.txt` has a line `id,name` per class; the arrays are plain NumPy records and strings, no pickle.

    Raises:
        InputError: the index is not of `<class>/<video>` folders, or a video's name is longer than the released 25 characters... is
            kept whole, as the released loader reads any length.
    """
    folder = Path(folder)
    parts = [str(path).split("/") for path in index.paths]
    if index.kind != "frames" or any(len(part) != 2 for part in parts):
        raise InputError(
            f"The index of {index.root} is not of <class>/<video> frame folders; only such a one can be exported."
        )
    if any(part[0] != index.class_name(i) for i, part in enumerate(parts)):
        raise InputError(
            f"The index of {index.root} names classes otherwise than their folders; the released code cannot read that."
        )
    used = sorted({part[0] for part in parts})  # the released class index: position among the sorted class folders
    ids = np.array([f"class_{index.class_names.index(name)}" for name in used])
    position = {name: k for k, name in enumerate(used)}
    name_width = max(map(len, used), default=1)
    video_width = max(25, *(len(part[1]) for part in parts)) if parts else 25
    dtype = [
        ("video_id", f"<U{video_width}"),
        ("class_index", "<u4"),
        ("class_id", ids.dtype),
        ("class_name", f"<U{name_width}"),
    ]
    rows = [(video, position[name], ids[position[name]], name) for name, video in parts]
    arrays = {
        f"entries-{split.upper()}.npy": np.array(rows, dtype=dtype),
        f"class-ids-{split.upper()}.npy": ids,
        f"class-names-{split.upper()}.npy": np.array(used),
    }
    for name, array in arrays.items():
        with atomic_path(folder / name) as temporary:
            np.save(temporary, array, allow_pickle=False)
    write_text(folder / "labels.txt", "".join(f"{k},{name}\n" for k, name in enumerate(index.class_names)))
    return [folder / name for name in (*arrays, "labels.txt")]


def read_released(folder: str | Path, split: str = "train") -> tuple[list[tuple[str, str]], list[str]]:
    """Read the released code's index.

    Args:
        folder: holds `entries-TRAIN.npy` and, optionally, `labels.txt`.
        split: the part of the name after the dash, in any case.

    Returns:
        (class, video) of every entry, in its order, and the class names in the order of their ids.

    Raises:
        InputError: a file is missing, is no plain array (pickled objects are refused) or names a path outside the data.
    """
    path = Path(folder) / f"entries-{split.upper()}.npy"
    try:
        entries = np.load(path, allow_pickle=False)
        pairs = list(zip(entries["class_name"].tolist(), entries["video_id"].tolist(), strict=True))
        ids = dict(zip(entries["class_name"].tolist(), entries["class_id"].tolist(), strict=True))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; it is written by the released code's dump_files.py.") from error
    except (OSError, ValueError, KeyError, IndexError, TypeError, EOFError) as error:
        raise InputError(f"{path} is not a released index ({decode.one_line(error)}); write it again.") from error
    unsafe = next((p for p in pairs if not all(_plain_name(str(part)) for part in p)), None)
    if unsafe:
        raise InputError(
            f"{path} names the video {unsafe[1]!r} of class {unsafe[0]!r}, which is no plain folder name; write it again."
        )
    labels = Path(folder) / "labels.txt"
    if labels.is_file():
        with open(labels, encoding="utf-8", newline="") as stream:
            numbered = {row[1]: int(row[0]) for row in csv.reader(stream) if len(row) == 2 and row[0].isdecimal()}
    else:
        numbered = {name: int(found[0]) for name, text in ids.items() if (found := re.findall(r"\d+$", str(text)))}
    missing = sorted(set(ids) - set(numbered))
    names = [name for name, _ in sorted(numbered.items(), key=lambda item: item[1])] + missing
    return pairs, names


def _plain_name(name: str) -> bool:
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\\0")
