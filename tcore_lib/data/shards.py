"""Training frames in tar files, for file systems that do not like millions of small ones.

A folder of shards is complete in itself: `shard-000000.tar`, ... in WebDataset's naming, and `index.parquet`, which is
written last and says where every frame lies. Inside, the members of video number 41:

    000000041.json                              {"path", "class", "num_frames", "width", "height"}
    000000041.00000.jpg  000000041.00001.jpg    the frame files, byte for byte

The number is the video's row in the index it was written from. So a folder, or several that hold consecutive rows, is the
same list of videos as that index, and the same seed draws the same batches from it. A frame is one read of known place
and length; WebDataset's own indexed reader (wids) lists a whole tar again whenever it opens one (see CONTRIBUTING).
"""

import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from tcore_lib import params
from tcore_lib.data import images
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.videos import index_path, parse_part
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, reading

INDEX = "index.parquet"
BLOCK = 512  # bytes of a tar header; a member's content follows it
_META = b"tcore_shards"
_MEMBER = re.compile(r"(\d{9})\.(?:json|(\d{5})\.\w+)")
_AGAIN = "write the shards again into an empty folder (`tcore shard`)"


def write_shards(
    index: FrameIndex,
    folder: str | Path,
    *,
    part: tuple[int, int] = (0, 1),
    videos_per_shard: int = 3000,
    progress: bool = True,
) -> list[Path]:
    """Write the frames of an index, or of a part of its rows, as tar shards, or go on writing them.

    The bytes of a shard follow from the frames alone. A shard that stands complete is left as it is.

    Args:
        index: what `prepare` made.
        folder: created. Other parts go to other folders, e.g. on other file systems.
        part: (i, n), this call's share of the rows: consecutive, of nearly equal number.
        videos_per_shard: 3,000 of 20 frames of 340x256 are about 1 GB.
        progress: show a progress bar.

    Returns:
        The shards of the folder, in order.

    Raises:
        InputError: a part that does not exist or is empty; a frame is missing; the folder holds something else.
    """
    folder, (i, n) = Path(folder), part
    rows = range(len(index) * i // n, len(index) * (i + 1) // n) if 0 <= i < n else range(0)
    if not rows:
        raise InputError(f"part = {i}/{n} of {len(index)} videos is empty; parts of n are numbered 0 to n - 1.")
    chunks = {
        folder / f"shard-{k:06d}.tar": rows[start : start + videos_per_shard]
        for k, start in enumerate(range(0, len(rows), videos_per_shard))
    }
    strange = sorted(set(folder.glob("*.tar")) - set(chunks))
    if strange:
        raise InputError(f"{strange[0]} does not belong to these shards; choose another folder.")
    (folder / INDEX).unlink(missing_ok=True)  # it says that all shards are there
    tables = []
    with tqdm(total=len(rows), unit="video", desc="shards", file=sys.stdout, disable=not progress) as bar:
        for path, chunk in chunks.items():
            if not path.exists():
                with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
                    for name, content in (member for row in chunk for member in _members(index, row)):
                        header = tarfile.TarInfo(name)
                        header.size = len(content)
                        tar.addfile(header, io.BytesIO(content))
            bar.update(len(chunk))
            tables.append(_places(path, chunk, index))
    meta = {"class_names": index.class_names, "first": rows.start, "short_side": index.short_side}
    table = pa.concat_tables(tables).replace_schema_metadata({_META: json.dumps(meta).encode()})
    with atomic_path(folder / INDEX) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    return list(chunks)


def _members(index: FrameIndex, i: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of what a shard holds of one video."""
    size = {"num_frames": int(index.num_frames[i]), "width": int(index.widths[i]), "height": int(index.heights[i])}
    yield f"{i:09d}.json", json.dumps({"path": str(index.paths[i]), "class": index.class_name(i), **size}).encode()
    for j in range(index.num_frames[i]):
        path = index.frame_path(i, j)
        with reading(path, index.remedy(i)):
            content = path.read_bytes()
        yield f"{i:09d}.{j:05d}{path.suffix.lower()}", content


def _places(path: Path, rows: range, index: FrameIndex) -> pa.Table:
    """Where the frames of a shard lie, one row per video, from the headers of its members.

    Raises:
        InputError: it does not hold these rows of the index.
    """
    places: dict[int, list[tuple[int, int]]] = {i: [] for i in rows}  # row -> (offset, size) of each frame
    with reading(path, _AGAIN), tarfile.open(path, "r:") as tar:
        for member in tar:
            found = _MEMBER.fullmatch(member.name)
            if found is None or int(found[1]) not in places:
                raise ValueError(f"{member.name} does not belong here")
            if found[2] is not None:
                places[int(found[1])].append((member.offset_data, member.size))
            elif json.loads(tar.extractfile(member).read())["path"] != index.paths[int(found[1])]:  # type: ignore[union-attr]
                raise ValueError(f"{member.name} is of another index")
        if [len(places[i]) for i in rows] != index.num_frames[rows.start : rows.stop].tolist():
            raise ValueError("a video has another number of frames than in the index")
    part = index.subset(rows)
    return pa.table(
        {
            "path": pa.array(part.paths.tolist(), pa.string()),
            "class_id": part.class_ids,
            "num_frames": part.num_frames,
            "width": part.widths,
            "height": part.heights,
            "shard": pa.array([path.name] * len(rows), pa.string()),
            "offsets": pa.array([[offset for offset, _ in places[i]] for i in rows], pa.large_list(pa.int64())),
            "sizes": pa.array([[size for _, size in places[i]] for i in rows], pa.large_list(pa.int64())),
        }
    )


class ShardIndex:
    """The videos of one or several folders of shards (`write_shards`), in the order of the folders.

    Args:
        folders: all parts of one set.

    Attributes:
        paths: (n,) str, where each video came from.
        class_ids, class_names, num_frames, widths, heights: as in `FrameIndex`.

    Raises:
        InputError: a folder has no index, or they do not belong together.
    """

    def __init__(self, folders: Sequence[str | Path]) -> None:
        if not folders:
            raise InputError("data.shards names no folder; name those that `tcore shard` wrote.")
        tables: list[pa.Table] = []
        self._shards: list[Path] = []  # (n,), the tar of each video
        for folder in map(Path, folders):
            with reading(folder / INDEX, f"it is written last; {_AGAIN}"):
                table = pq.ParquetFile(folder / INDEX, page_checksum_verification=True).read()
                meta: dict[str, Any] = json.loads(table.schema.metadata[_META])
            if meta["first"] != len(self._shards):
                raise InputError(
                    f"{folder} begins with video {meta['first']} where {len(self._shards)} comes next; list the folders "
                    "of all parts of one set in their order in data.shards."
                )
            self.class_names, self.short_side = list(meta["class_names"]), meta["short_side"]
            self._shards += [folder / name for name in table.column("shard").to_pylist()]
            tables.append(table.replace_schema_metadata(None))
        table = pa.concat_tables(tables)
        self.paths = np.array(table.column("path").to_pylist(), dtype=np.dtypes.StringDType())
        self.class_ids, self.num_frames, self.widths, self.heights = (
            np.array(table.column(name).to_pylist(), dtype=np.int32)
            for name in ("class_id", "num_frames", "width", "height")
        )
        self._starts = np.concatenate([[0], np.cumsum(self.num_frames, dtype=np.int64)])  # (n + 1,) into the next two
        self._offsets, self._sizes = (
            table.column(name).combine_chunks().flatten().to_numpy() for name in ("offsets", "sizes")
        )

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.paths)

    def class_name(self, i: int) -> str:
        """Class of video i."""
        return self.class_names[self.class_ids[i]]

    def read(self, i: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        """Frames of video i as uint8 (H, W, 3) RGB, in the order asked for.

        Raises:
            InputError: an index is out of range; a shard is missing, has changed or holds a damaged frame.
        """
        shard, total = self._shards[i], int(self.num_frames[i])
        outside = [j for j in frame_indices if not 0 <= j < total]
        if outside:
            raise InputError(f"{self.paths[i]} in {shard} has frames 0 to {total - 1}; there is no frame {outside[0]}.")
        with reading(shard, _AGAIN), open(shard, "rb") as stream:
            found = []
            for j in frame_indices:
                offset, size = (int(column[self._starts[i] + j]) for column in (self._offsets, self._sizes))
                stream.seek(offset - BLOCK)
                data = stream.read(BLOCK + size)
                # the member's header stands before its content, and its name says whether this is the frame
                if len(data) != BLOCK + size or f".{j:05d}." not in data[:100].decode("ascii", "replace"):
                    raise ValueError("it has changed since it was indexed")
                image = images.read_rgb(data[BLOCK:], f"{shard} holds it as frame {j} of {self.paths[i]}; {_AGAIN}")
                found.append(images.reduce_short_side(image, self.short_side))
        return found


def open_index(cfg: params.Data) -> FrameIndex | ShardIndex:
    """The videos a profile trains on: its shards where it names any, else the index that notebook 00 made.

    Raises:
        InputError: what is named is not there.
    """
    if cfg.shards:
        return ShardIndex([params.resolve(folder) for folder in cfg.shards])
    return FrameIndex.load(index_path(cfg))


def shard_command(profile: str, folder: Path, /, *, part: str = "0/1", videos_per_shard: int = 3000) -> None:
    """Write the frames of a profile's index as tar shards that training can read (data.shards). Continues if run again.

    Args:
        profile: name of a profile, or a parameter file.
        folder: folder for the shards.
        part: this folder's share of the videos, such as 0/4, where several file systems share them.
        videos_per_shard: videos of one tar file.
    """
    index = FrameIndex.load(index_path(params.load(profile).data))
    paths = write_shards(index, folder, part=parse_part(part), videos_per_shard=videos_per_shard)
    print(f"{folder}: {len(paths)} shards, {sum(path.stat().st_size for path in paths) / 1e9:.3f} GB")
