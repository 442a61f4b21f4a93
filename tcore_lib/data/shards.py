"""Training frames in tar files, for file systems that do not like millions of small ones.

A folder of shards is complete in itself: `shard-000000.tar`, ... in WebDataset's naming; `places.npy`, where every frame
lies; and `index.parquet`, the `FrameIndex` of its videos, which is written last. Frame 7 of video 41 is the member
`000000041.00007.jpg`, byte for byte the frame's file. The videos keep their order, so the same seed draws the same batches.

A frame is one read of known place and length; WebDataset's own indexed reader (wids) lists a whole tar again whenever it
opens one (see CONTRIBUTING).
"""

import io
import itertools
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tcore_lib import params
from tcore_lib.data import images
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.videos import index_path
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, reading

INDEX, PLACES = "index.parquet", "places.npy"
BLOCK = 512  # bytes of a tar header; a member's content follows it
AGAIN = "write the shards again (`tcore shard`)"


def write_shards(index: FrameIndex, folder: Path, *, videos_per_shard: int = 3000, progress: bool = True) -> list[Path]:
    """Write the frames of an index as tar shards; 3,000 videos of 20 frames of 340x256 are about 1 GB.

    InputError: a frame is missing; the folder holds other shards.
    """
    paths = [folder / f"shard-{k:06d}.tar" for k in range(-(-len(index) // videos_per_shard))]
    if strange := sorted(set(folder.glob("*.tar")) - set(paths)):
        raise InputError(f"{strange[0]} does not belong to these shards; choose another folder.")
    (folder / INDEX).unlink(missing_ok=True)  # it says that all shards are there
    places: list[tuple[int, int, int]] = []  # (shard, offset, size) of each frame's content
    videos = iter(tqdm(range(len(index)), unit="video", desc="shards", file=sys.stdout, disable=not progress))
    for k, path in enumerate(paths):
        with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in itertools.islice(videos, videos_per_shard):
                places += [(k, *place) for place in _write_video(tar, index, i)]
    with atomic_path(folder / PLACES) as temporary:
        np.save(temporary, np.array(places))
    index.save(folder / INDEX)
    return paths


def _write_video(tar: tarfile.TarFile, index: FrameIndex, i: int) -> list[tuple[int, int]]:
    """Add the frames of one video. Returns (offset, size) of each frame's content."""
    places = []
    for j, path in enumerate(index.frame_paths(i, range(index.num_frames[i]))):
        with reading(path, index.remedy(i)):
            content = path.read_bytes()
        header = tarfile.TarInfo(f"{i:09d}.{j:05d}{path.suffix.lower()}")
        header.size = len(content)
        places.append((tar.offset + BLOCK, len(content)))
        tar.addfile(header, io.BytesIO(content))
    return places


class ShardIndex(FrameIndex):
    """The videos of a folder of shards (`write_shards`), as training reads them. InputError: the folder has no index."""

    def __init__(self, folder: Path) -> None:
        super().__init__(**vars(FrameIndex.load(folder / INDEX, AGAIN)))
        self.folder = folder
        with reading(folder / PLACES, AGAIN):
            self._places = np.load(folder / PLACES)  # (all frames, 3) int64
        self._starts = np.cumsum(self.num_frames, dtype=np.int64) - self.num_frames  # (n,), each video's first place

    def read(self, i: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        """Frames of video i as uint8 (H, W, 3) RGB. InputError: a shard is missing, has changed or holds a damaged frame."""
        found = []
        for j in frame_indices:
            shard, offset, size = self._places[self._starts[i] + j].tolist()
            path = self.folder / f"shard-{shard:06d}.tar"
            with reading(path, AGAIN), open(path, "rb") as stream:
                stream.seek(offset - BLOCK)
                data = stream.read(BLOCK + size)
                # the member's header stands before its content, and its name says whether this is the frame
                if len(data) != BLOCK + size or not data.startswith(f"{i:09d}.{j:05d}.".encode()):
                    raise ValueError("it has changed since it was indexed")
            frame = images.read_rgb(data[BLOCK:], f"{path} holds it as frame {j} of {self.paths[i]}; {AGAIN}")
            found.append(images.reduce_short_side(frame, self.short_side))
        return found


def open_index(cfg: params.Data) -> FrameIndex:
    """The videos a profile trains on: its shards where it names any, else the index that notebook 00 made."""
    return ShardIndex(params.resolve(cfg.shards)) if cfg.shards else FrameIndex.load(index_path(cfg))


def shard_command(profile: str, folder: Path, /, *, videos_per_shard: int = 3000) -> None:
    """Write the frames of a profile's index as tar shards that training can read (data.shards).

    Args:
        profile: name of a profile, or a parameter file.
        folder: folder for the shards.
        videos_per_shard: videos of one tar file.
    """
    index = FrameIndex.load(index_path(params.load(profile).data))
    paths = write_shards(index, folder, videos_per_shard=videos_per_shard)
    print(f"{folder}: {len(paths)} shards, {sum(path.stat().st_size for path in paths) / 1e9:.3f} GB")
