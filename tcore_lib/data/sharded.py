"""Reading frames out of tar shards: an index like `FrameIndex` to the training, with its own way to a frame's bytes.

A frame is one read of known place and length, so shards need no unpacking and workers no order: the sample drawn for a
counter is the one that frame folders would give.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcore_lib import params
from tcore_lib.data import images
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.shards import BLOCK, read_tables
from tcore_lib.data.videos import index_path
from tcore_lib.errors import InputError

OPEN_FILES = 128  # shards a process keeps open


class ShardIndex:
    """The videos of one or several folders of shards (`shards.write_shards`), in the order of the folders.

    Args:
        folders: all parts of one set.

    Attributes:
        paths: (n,) str, where each video came from.
        class_ids, class_names, num_frames, widths, heights: as in `FrameIndex`.

    Raises:
        InputError: a folder has no index, or they do not belong together.
    """

    def __init__(self, folders: Sequence[str | Path]) -> None:
        tables = read_tables(folders)
        if not tables:
            raise InputError("data.shards names no folder; name those that `python -m tcore_lib shard` wrote.")

        def column(name: str) -> list[Any]:
            return [value for _, table, _ in tables for value in table.column(name).to_pylist()]

        self.class_names: list[str] = tables[0][2]["class_names"]
        self.short_side: int | None = tables[0][2]["short_side"]
        self.paths = np.array(column("path"), dtype=np.dtypes.StringDType())
        self.class_ids, self.num_frames, self.widths, self.heights = (
            np.array(column(name), dtype=np.int32) for name in ("class_id", "num_frames", "width", "height")
        )
        files: dict[tuple[Path, str], int] = {}  # folder, shard -> its number
        shard_of, self._bytes = [], []
        for folder, table, _ in tables:
            names, sizes = (table.column(name).to_pylist() for name in ("shard", "shard_bytes"))
            for name, size in zip(names, sizes, strict=True):
                if (folder, name) not in files:
                    files[folder, name] = len(files)
                    self._bytes.append(size)
                shard_of.append(files[folder, name])
        self._files = [folder / name for folder, name in files]
        self._shard_of = np.array(shard_of, dtype=np.int32)  # (n,)
        self._starts = np.concatenate([[0], np.cumsum(self.num_frames, dtype=np.int64)])  # (n + 1,) into the next two
        flat = [
            table.column(name).combine_chunks().flatten() for name in ("offsets", "sizes") for _, table, _ in tables
        ]
        self._offsets = np.concatenate([part.to_numpy() for part in flat[: len(tables)]])
        self._sizes = np.concatenate([part.to_numpy() for part in flat[len(tables) :]])
        self._open: OrderedDict[int, int] = OrderedDict()  # shard -> file descriptor, the latest last
        self._owner = 0  # process the descriptors belong to

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        """Without open files: a worker opens its own."""
        return {**self.__dict__, "_open": OrderedDict(), "_owner": 0}

    def class_name(self, i: int) -> str:
        """Class of video i."""
        return self.class_names[self.class_ids[i]]

    def read(self, i: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        """Frames of video i as uint8 (H, W, 3) RGB, in the order asked for.

        Raises:
            InputError: an index is out of range; a shard is missing, has changed or holds a damaged frame.
        """
        outside = [j for j in frame_indices if not 0 <= j < self.num_frames[i]]
        where = self._files[self._shard_of[i]]
        if outside:
            last = self.num_frames[i] - 1
            raise InputError(f"{self.paths[i]} in {where} has frames 0 to {last}; there is no frame {outside[0]}.")
        return [self._frame(i, int(j), where) for j in frame_indices]

    def _frame(self, i: int, j: int, where: Path) -> np.ndarray:
        start, size = (int(column[self._starts[i] + j]) for column in (self._offsets, self._sizes))
        try:
            got = os.pread(self._descriptor(int(self._shard_of[i])), size + BLOCK, start - BLOCK)
        except OSError as error:
            raise InputError(
                f"{where} cannot be read ({images.one_line(error)}); the shards of data.shards must all be there."
            ) from error
        # the member's header stands before its content, and its name says whether this is the frame
        if len(got) != size + BLOCK or f".{j:05d}." not in got[:100].decode("ascii", "replace"):
            raise InputError(f"{where} has changed since it was indexed; write the shards again.")
        try:
            return images.read_image(got[BLOCK:], self.short_side)
        except images.BadFile as error:
            raise InputError(
                f"Frame {j} of {self.paths[i]} in {where} cannot be read: {error}; write the shards again."
            ) from error

    def _descriptor(self, shard: int) -> int:
        """An open file of a shard, checked to be the size it had when it was written."""
        if self._owner != os.getpid():  # forked: the parent's files are not ours to close
            self._open, self._owner = OrderedDict(), os.getpid()
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        while len(self._open) >= OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        found = os.open(self._files[shard], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        if os.fstat(found).st_size != self._bytes[shard]:
            os.close(found)
            raise InputError(f"{self._files[shard]} has changed since it was indexed; write the shards again.")
        self._open[shard] = found
        return found

    def __del__(self) -> None:
        """Close what this process opened."""
        if getattr(self, "_owner", 0) == os.getpid():
            for descriptor in self._open.values():
                os.close(descriptor)


def open_index(settings: params.Data) -> "FrameIndex | ShardIndex":
    """The videos a profile trains on: its shards where it names any, else the index that notebook 00 made.

    Raises:
        InputError: what is named is not there.
    """
    if settings.shards:
        return ShardIndex([params.resolve(folder) for folder in settings.shards])
    return FrameIndex.load(index_path(settings))
