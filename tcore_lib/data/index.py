"""The index that training reads: one row per video, opened in a fraction of a second for all of Kinetics-400.

A parquet file holds the columns; its metadata holds the kind, the root, the class names and the settings that made it.
Letters: n videos, H W pixels, T frames of a video.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tcore_lib.data import decode, images
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path

Kind = Literal["frames", "video", "images"]
_META = b"tcore_index"
UNREADABLE = (
    OSError, pa.ArrowException, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, MemoryError,
    RecursionError,
)  # fmt: skip
# column of the file -> attribute, type
_COLUMNS: dict[str, tuple[str, Any]] = {
    "path": ("paths", np.dtypes.StringDType()),
    "class_id": ("class_ids", np.int32),
    "num_frames": ("num_frames", np.int32),
    "width": ("widths", np.int32),
    "height": ("heights", np.int32),
    "checksum": ("checksums", np.dtypes.StringDType()),
    "numbered": ("numbered", np.bool_),
    "sequential": ("sequential", np.bool_),
}


def _none() -> np.ndarray:
    return np.zeros(0)


@dataclass
class FrameIndex:
    """What training reads. The columns, given as lists or arrays, are kept as NumPy arrays of length n.

    Attributes:
        root: folder that `paths` are relative to.
        paths: (n,) str: a folder of frames, a video file or an image file.
        class_ids: (n,) int32 into `class_names`.
        class_names: names of the classes; the one "unlabelled" where there are none.
        num_frames: (n,) int32, T of each video.
        widths: (n,) int32, pixels of a frame as `read` returns it.
        heights: (n,) int32, likewise.
        checksums: (n,) str, 16 hex digits (see `extract`); empty where unknown.
        kind: "frames" = folders of frames, "video" = video files, "images" = single images (clips of one frame).
        numbered: (n,) bool; True = frames are named 00000.jpg, 00001.jpg, ...; False = any names, sorted. Of kind
            "frames".
        sequential: (n,) bool; True = frames of the file are found by counting, not by time. Of kind "video".
        timestamps: (sum of num_frames,) int64, where the frames lie in the file (`decode.Timeline`). Of kind "video".
        short_side: frames whose short side is larger are reduced to it when read; None = never.
        settings: what made the index, for people.

    Raises:
        InputError: the columns do not belong together.
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
    numbered: np.ndarray = field(default_factory=_none)
    sequential: np.ndarray = field(default_factory=_none)
    timestamps: np.ndarray = field(default_factory=_none)
    short_side: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Give every column its type and check that they belong together."""
        self.root = Path(self.root)
        n = len(self.paths)
        self.numbered = self.numbered if len(self.numbered) else np.ones(n)
        self.sequential = self.sequential if len(self.sequential) else np.zeros(n)
        for name, kind in _COLUMNS.values():
            column = np.asarray(getattr(self, name), dtype=kind)
            if column.shape != (n,):
                self._refuse(f"{name} has shape {column.shape}, paths {(n,)}")
            setattr(self, name, column)
        self.timestamps = np.asarray(self.timestamps, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.num_frames, dtype=np.int64)])  # (n + 1,) into timestamps
        if self.kind not in get_args(Kind):
            self._refuse(f"unknown kind {self.kind!r}")
        if n and self.num_frames.min() < 1:
            self._refuse("a video without frames")
        if n and not 0 <= self.class_ids.min() <= self.class_ids.max() < len(self.class_names):
            self._refuse("a class without a name")
        if self.kind == "video" and len(self.timestamps) != self._starts[-1]:
            self._refuse("timestamps and num_frames do not match")

    def _refuse(self, problem: str) -> None:
        raise InputError(f"The index of {self.root} is inconsistent ({problem}); prepare the data again.")

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.paths)

    def class_name(self, i: int) -> str:
        """Class of video i."""
        return self.class_names[self.class_ids[i]]

    def path(self, i: int) -> Path:
        """Folder or file of video i."""
        return self.root / self.paths[i]

    def frame_path(self, i: int, j: int) -> Path:
        """File that holds frame j of video i; for kinds "video" and "images" the one file of that video."""
        if self.kind != "frames":
            return self.path(i)
        name = f"{j:05d}.jpg" if self.numbered[i] else images.frame_names(self.path(i))[j]
        return self.path(i) / name

    def read(self, i: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        """Frames of video i as uint8 (H, W, 3) RGB, in the order asked for.

        Raises:
            InputError: an index is out of range; a file is missing or damaged.
        """
        frames = list(frame_indices)
        outside = [j for j in frames if not 0 <= j < self.num_frames[i]]
        if outside:
            last = self.num_frames[i] - 1
            raise InputError(f"{self.path(i)} has frames 0 to {last}; there is no frame {outside[0]}.")
        where = self.path(i)
        try:
            if self.kind == "video":
                stamps = self.timestamps[self._starts[i] : self._starts[i + 1]][frames].tolist()
                return decode.read_video(where, stamps, bool(self.sequential[i]), self.short_side)
            if self.kind == "images":
                return [images.read_image(where, self.short_side)] * len(frames)
            names = None if self.numbered[i] else images.frame_names(where)
            read = []
            for j in frames:
                where = self.path(i) / (names[j] if names else f"{j:05d}.jpg")
                read.append(images.read_image(where, self.short_side))
            return read
        except images.BadFile as error:
            raise InputError(f"{where} cannot be read: {error}; prepare the data again.") from error
        except (IndexError, OSError) as error:
            raise InputError(f"{where} has changed since it was indexed; prepare the data again.") from error

    def subset(self, rows: npt.ArrayLike) -> "FrameIndex":
        """An index of some of the videos, in that order; class ids stay as they are."""
        chosen = np.asarray(rows, dtype=np.int64)
        columns = {name: getattr(self, name)[chosen] for name, _ in _COLUMNS.values()}
        stamps = (
            [self.timestamps[self._starts[i] : self._starts[i + 1]] for i in chosen] if self.kind == "video" else []
        )
        return FrameIndex(
            root=self.root,
            class_names=self.class_names,
            kind=self.kind,
            timestamps=np.concatenate([np.zeros(0, np.int64), *stamps]),
            short_side=self.short_side,
            settings=self.settings,
            **columns,
        )

    def save(self, path: str | Path) -> None:
        """Write the index as parquet, atomically. A root below the file's folder is kept relative: both may move."""
        path = Path(path).absolute()
        root = self.root.absolute()
        meta = {
            "kind": self.kind,
            "root": os.path.relpath(root, path.parent) if root.is_relative_to(path.parent) else str(root),
            "class_names": self.class_names,
            "short_side": self.short_side,
            "settings": self.settings,
        }
        columns = {}
        for name, (attribute, kind) in _COLUMNS.items():
            values = getattr(self, attribute)
            columns[name] = (
                pa.array(values.tolist(), pa.string()) if kind == np.dtypes.StringDType() else pa.array(values)
            )
        if self.kind == "video":
            columns["timestamps"] = pa.LargeListArray.from_arrays(pa.array(self._starts), pa.array(self.timestamps))
        table = pa.table(columns).replace_schema_metadata({_META: json.dumps(meta).encode()})
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)

    @classmethod
    def load(cls, path: str | Path) -> "FrameIndex":
        """Read an index file.

        Raises:
            InputError: the file is missing or is no index.
        """
        path = Path(path).absolute()
        try:
            table = pq.ParquetFile(path, page_checksum_verification=True).read()
            meta = json.loads(table.schema.metadata[_META])
            columns = {attribute: _values(table.column(name)) for name, (attribute, _) in _COLUMNS.items()}
            if meta["kind"] == "video":
                columns["timestamps"] = _values(table.column("timestamps").combine_chunks().flatten())
            return cls(
                root=path.parent / meta["root"],
                class_names=list(meta["class_names"]),
                kind=meta["kind"],
                short_side=meta["short_side"],
                settings=meta["settings"],
                **columns,
            )
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist; prepare the data first (notebook 00).") from error
        except InputError:
            raise
        except UNREADABLE as error:
            reason = type(error).__name__
            raise InputError(f"{path} is not an index of frames ({reason}); prepare the data again.") from error


def _values(column: pa.ChunkedArray | pa.Array) -> Any:
    """A column for NumPy. `to_numpy` would import pandas, which takes longer than opening the index."""
    if pa.types.is_integer(column.type):
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        return np.from_dlpack(whole) if len(whole) else np.zeros(0, np.int64)
    return column.to_pylist()
