"""Training frames in tar files, for sets of millions of small files or of several file systems.

A folder of shards is complete in itself:

    shard-000000.tar  shard-000001.tar  ...     each written atomically, a gigabyte or so
    index.parquet                               where every frame lies; written last

Inside, in WebDataset's naming (members of one sample share what stands before the first dot, and follow each other):

    000000041.json                              {"path", "class", "num_frames", "width", "height", "short_side"}
    000000041.00000.jpg  000000041.00001.jpg    the frame files, byte for byte

The number is the video's row in the index it was written from. So a folder, or several that hold consecutive rows, is
the same list of videos as that index, and the same seed draws the same batches from it.
"""

import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from tcore_lib.data import images
from tcore_lib.data.index import FrameIndex
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path

INDEX = "index.parquet"
BLOCK = 512  # bytes of a tar header; a member's content follows it
_META = b"tcore_shards"
_MEMBER = re.compile(r"(\d{9})\.(?:json|(\d{5})\.[a-z]+)")


@dataclass(frozen=True)
class ShardReport:
    """What a call of `write_shards` did: shards of the folder, those it wrote, videos and bytes they hold."""

    folder: Path
    shards: int
    written: int
    videos: int
    bytes: int


def part_of(videos: int, part: tuple[int, int]) -> range:
    """The rows of part i of n: consecutive, and of nearly equal number."""
    i, n = part
    if not 0 <= i < n:
        raise InputError(f"part = {i}/{n} is not possible; parts of n are numbered 0 to n - 1.")
    return range(videos * i // n, videos * (i + 1) // n)


def write_shards(
    index: FrameIndex,
    folder: str | Path,
    *,
    part: tuple[int, int] = (0, 1),
    videos_per_shard: int = 3000,
    progress: bool = True,
) -> ShardReport:
    """Write the frames of an index, or of a part of its rows, as tar shards, or go on writing them.

    The bytes of a shard follow from the frames alone. A shard that stands complete is left as it is.

    Args:
        index: of kind `frames` or `images`.
        folder: created. Other parts go to other folders, e.g. on other file systems.
        part: (i, n), this call's share of the rows.
        videos_per_shard: 3,000 of 20 frames of 340x256 are about 1 GB.
        progress: show a progress bar.

    Raises:
        InputError: the index is of videos; a frame is missing; the folder holds shards of something else.
    """
    folder, rows = Path(folder), part_of(len(index), part)
    if index.kind == "video":
        raise InputError(
            f"The index of {index.root} is of video files, and shards hold frames; prepare it with data.direct: false."
        )
    if not rows:
        raise InputError(f"part = {part[0]}/{part[1]} of {len(index)} videos is empty; make fewer parts.")
    chunks = [rows[i : i + videos_per_shard] for i in range(0, len(rows), videos_per_shard)]
    names = {f"shard-{i:06d}.tar" for i in range(len(chunks))}
    strange = sorted(path.name for path in folder.glob("*.tar") if path.name not in names)
    if strange:
        raise InputError(f"{folder} holds {strange[0]}, which does not belong to these shards; choose another folder.")
    (folder / INDEX).unlink(missing_ok=True)  # it says that all shards are there
    tables, written = [], 0
    with tqdm(total=len(rows), unit="video", desc="shards", file=sys.stdout, disable=not progress) as bar:
        for name, chunk in zip(sorted(names), chunks, strict=True):
            path = folder / name
            if not path.exists():
                with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
                    for i in chunk:
                        for member, content in _members(index, i):
                            header = tarfile.TarInfo(member)
                            header.size = len(content)
                            tar.addfile(header, io.BytesIO(content))
                        bar.update()
                written += 1
            else:
                bar.update(len(chunk))
            tables.append(_scan(path, chunk, index))
    table = pa.concat_tables(tables)
    meta = {"class_names": index.class_names, "first": rows.start, "short_side": index.short_side}
    with atomic_path(folder / INDEX) as temporary:
        pq.write_table(table.replace_schema_metadata({_META: json.dumps(meta).encode()}), temporary, compression="zstd")
    size = sum((folder / name).stat().st_size for name in names)
    return ShardReport(folder, len(chunks), written, len(rows), size)


def _members(index: FrameIndex, i: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of what a shard holds of one video."""
    facts = {
        "path": str(index.paths[i]),
        "class": index.class_name(i),
        "num_frames": int(index.num_frames[i]),
        "width": int(index.widths[i]),
        "height": int(index.heights[i]),
        "short_side": index.short_side,
    }
    yield f"{i:09d}.json", json.dumps(facts).encode()
    for j in range(index.num_frames[i]):
        try:
            path = index.frame_path(i, j)
            yield f"{i:09d}.{j:05d}{path.suffix.lower()}", path.read_bytes()
        except (OSError, IndexError) as error:
            raise InputError(
                f"Frame {j} of {index.path(i)} cannot be read ({images.one_line(error)}); prepare the data again."
            ) from error


def _scan(path: Path, rows: range, index: FrameIndex) -> pa.Table:
    """Where the frames of a shard lie, one row per video, from the headers of its members.

    Raises:
        InputError: it does not hold these rows of the index.
    """
    offsets: dict[int, list[int]] = {i: [] for i in rows}
    sizes: dict[int, list[int]] = {i: [] for i in rows}
    paths: dict[int, str] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                found = _MEMBER.fullmatch(member.name)
                if found is None:
                    raise KeyError(member.name)
                row, frame = int(found[1]), found[2]
                if frame is None:
                    paths[row] = json.loads(tar.extractfile(member).read())["path"]  # type: ignore[union-attr]
                elif int(frame) != len(offsets[row]):
                    raise KeyError(member.name)
                else:
                    offsets[row].append(member.offset_data)
                    sizes[row].append(member.size)
    except (tarfile.TarError, KeyError, ValueError, OSError) as error:
        raise InputError(
            f"{path} is not a shard of rows {rows.start} to {rows.stop - 1} ({error}); delete it and write it again."
        ) from error
    for i in rows:
        if paths.get(i) != str(index.paths[i]) or len(offsets[i]) != index.num_frames[i]:
            raise InputError(
                f"{path} holds {paths.get(i)!r} as video {i}, but the index has {str(index.paths[i])!r} with "
                f"{index.num_frames[i]} frames; write the shards into an empty folder."
            )
    chosen = list(rows)
    return pa.table(
        {
            "path": pa.array([paths[i] for i in rows], pa.string()),
            "class_id": pa.array(index.class_ids[chosen]),
            "num_frames": pa.array(index.num_frames[chosen]),
            "width": pa.array(index.widths[chosen]),
            "height": pa.array(index.heights[chosen]),
            "shard": pa.array([path.name] * len(rows), pa.string()),
            "shard_bytes": pa.array([path.stat().st_size] * len(rows), pa.int64()),
            "offsets": pa.array([offsets[i] for i in rows], pa.large_list(pa.int64())),
            "sizes": pa.array([sizes[i] for i in rows], pa.large_list(pa.int32())),
        }
    )


def read_tables(folders: Sequence[str | Path]) -> list[tuple[Path, pa.Table, dict[str, Any]]]:
    """The index of each folder of shards, checked to be consecutive parts of one list of videos.

    Returns:
        (folder, table, {"class_names", "first", "short_side"}) of each.

    Raises:
        InputError: an index is missing or damaged, or the folders do not fit together.
    """
    found: list[tuple[Path, pa.Table, dict[str, Any]]] = []
    following = 0
    for folder in map(Path, folders):
        try:
            table = pq.ParquetFile(folder / INDEX).read()
            meta = json.loads(table.schema.metadata[_META])
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder} has no usable {INDEX} ({type(error).__name__}), which writing shards ends with; "
                "run `python -m tcore_lib shard` again."
            ) from error
        if meta["first"] != following or (found and meta["class_names"] != found[0][2]["class_names"]):
            raise InputError(
                f"{folder} begins with video {meta['first']} where {following} comes next; list the folders of all "
                "parts of one set in their order in data.shards."
            )
        following += len(table)
        found.append((folder, table, meta))
    return found
