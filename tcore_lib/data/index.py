"""The index that training reads: one row per video, opened in a fraction of a second for all of Kinetics-400.

A parquet file holds the columns; its metadata holds the rest. Letters: n videos, T frames of a video, H W pixels.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tcore_lib.data import images
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, reading
from tcore_lib.params import Layout

META = b"tcore_index"
COLUMNS = {
    "path": "paths",
    "num_frames": "num_frames",
    "width": "widths",
    "height": "heights",
}  # of the file -> attribute


@dataclass
class FrameIndex:
    """What training reads. The columns, given as lists or arrays, are kept as NumPy arrays of length n."""

    root: Path  # folder that `paths` are relative to
    paths: np.ndarray  # (n,) str, <class>/<name> of a folder of frames or an image file
    num_frames: np.ndarray  # (n,) int32, T of each video
    widths: np.ndarray  # (n,) int32, pixels of a frame as `read` returns it
    heights: np.ndarray  # (n,) int32
    kind: Layout = "frames"  # not auto; "videos": made by `prepare`, 00000.jpg, 00001.jpg, ...
    short_side: int | None = None  # frames whose short side is larger are reduced to it when read

    def __post_init__(self) -> None:
        """Give every column its type."""
        self.paths = np.asarray(self.paths, dtype=np.dtypes.StringDType())
        self.num_frames, self.widths, self.heights = (
            np.asarray(column, dtype=np.int32) for column in (self.num_frames, self.widths, self.heights)
        )

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.paths)

    def path(self, i: int) -> Path:
        """Folder or file of video i."""
        return self.root / self.paths[i]

    def frame_paths(self, i: int, frame_indices: Sequence[int]) -> list[Path]:
        """Files that hold frames of video i, in the order asked for."""
        folder, total = self.path(i), int(self.num_frames[i])
        assert all(0 <= j < total for j in frame_indices), f"{folder} has frames 0 to {total - 1}"
        if self.kind == "images":
            return [folder] * len(frame_indices)
        if self.kind == "videos":
            return [folder / f"{j:05d}.jpg" for j in frame_indices]
        names: list[str] = []
        with suppress(InputError, OSError):
            names = images.frame_names(folder)
        if len(names) != total:
            raise InputError(f"{folder} held {total} frames and now holds {len(names)}; {self.remedy(i)}.")
        return [folder / names[j] for j in frame_indices]

    def read(self, i: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        """Frames of video i as uint8 (H, W, 3) RGB, in the order asked for. InputError: a file is missing or damaged."""
        files = self.frame_paths(i, frame_indices)
        return [images.reduce_short_side(images.read_rgb(file, self.remedy(i)), self.short_side) for file in files]

    def remedy(self, i: int) -> str:
        """What repairs a damaged frame of video i, as the end of a sentence."""
        if self.kind == "videos":
            return f"remove {self.path(i)}, which `tcore prepare` wrote, and run it again: it makes that video anew"
        return "put a whole file in its place, or move it out of the data and run `tcore prepare` again"

    def save(self, path: Path) -> None:
        """Write the index as parquet, atomically. A root below the file's folder is kept relative: both may move."""
        path, root = path.absolute(), self.root.absolute()
        place = os.path.relpath(root, path.parent) if root.is_relative_to(path.parent) else str(root)
        meta = {"kind": self.kind, "root": place, "short_side": self.short_side}
        columns = {name: getattr(self, attribute).tolist() for name, attribute in COLUMNS.items()}
        table = pa.table(columns).replace_schema_metadata({META: json.dumps(meta).encode()})
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)

    @classmethod
    def load(cls, path: Path, remedy: str = "prepare the data (notebook 00, or `tcore prepare`)") -> "FrameIndex":
        """Read an index file. InputError: it is missing or is no index; with the remedy."""
        path = path.absolute()
        with reading(path, remedy), open(path, "rb") as stream:
            table = pq.ParquetFile(stream, page_checksum_verification=True).read()
            meta = json.loads(table.schema.metadata[META])
            columns = {attribute: table.column(name).to_numpy() for name, attribute in COLUMNS.items()}
            return cls(**meta | {"root": path.parent / meta["root"]}, **columns)
