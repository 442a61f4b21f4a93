"""Looking at training data: what a preparation will cost, which files were bad, which frames are broken."""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from tcore_lib import params, randomness
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.sources import find
from tcore_lib.data.videos import BAD_COLUMNS, examine, extract, read_bad
from tcore_lib.errors import InputError
from tcore_lib.machine import cores


def bad_files(root: Path) -> pd.DataFrame:
    """bad_files.csv of a prepared root: columns split, class, file, reason. Empty where nothing was bad."""
    return pd.DataFrame(read_bad(root / "bad_files.csv"), columns=BAD_COLUMNS)


def estimate(
    cfg: params.Data, *, source: Path | None = None, sample: int = 16, seed: int = 0, progress: bool = True
) -> pd.DataFrame:
    """Prepare a few videos, drawn at random, into a folder that is thrown away, and extrapolate to all.

    Args:
        cfg: as for `videos.prepare`.
        source: used instead of `cfg.source`.
        sample: how many videos.
        seed: which ones.
        progress: show a progress bar.

    Returns:
        One column `estimate` in words and units.

    Raises:
        InputError: nothing usable in the source.
    """
    found = find(cfg, source)
    paths, workers = list(found.items.values()), cfg.workers or cores()
    chosen = sorted(randomness.generator(seed, "order").permutation(len(paths))[:sample])
    bad = size = 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        for k in tqdm(chosen, desc="estimate", unit="clip", file=sys.stdout, disable=not progress):
            try:
                if found.layout == "videos":
                    size += extract(paths[k], Path(scratch, str(k)), Path(scratch), cfg).bytes
                else:
                    examine(paths[k], found.layout, cfg.short_side)
            except InputError:
                bad += 1
    each, bytes_each = (time.perf_counter() - started) / len(chosen), size / len(chosen)
    root = params.resolve(cfg.root).absolute()
    disk = next(folder for folder in (root, *root.parents) if folder.exists())
    rows = {
        "videos found": f"{len(paths):,}",
        "tried": f"{len(chosen)}, {bad} of them bad",
        "one video takes": f"{each:.2f} s of one core, {bytes_each / 1e3:,.0f} kB of frames",
        "all videos take": f"{len(paths) * each / workers / 3600:.2f} h with {workers} process{'es' * (workers > 1)}",
        "disk needed": f"{len(paths) * bytes_each / 1e9:,.2f} GB",
        "disk free": f"{shutil.disk_usage(disk).free / 1e9:,.0f} GB",
    }
    return pd.Series(rows, name="estimate", dtype=object).to_frame()


def broken_frames(root: Path, *, split: str = "train", progress: bool = True) -> dict[str, str]:
    """Decode every frame of a prepared root and compare with what its index recorded.

    Returns:
        Video -> what is wrong with it: a missing, cut or undecodable file, another size, another number of bytes.

    Raises:
        InputError: there is no index.
    """
    index = FrameIndex.load(root / f"index-{split}.parquet")
    broken: dict[str, str] = {}
    for i in tqdm(range(len(index)), desc="doctor", unit="clip", file=sys.stdout, disable=not progress):
        try:
            every = range(index.num_frames[i])
            sizes = {f"{frame.shape[1]}x{frame.shape[0]}" for j in every for frame in index.read(i, [j])}
            held = sum(path.stat().st_size for path in index.frame_paths(i, every))
            if sizes != {f"{index.widths[i]}x{index.heights[i]}"}:
                broken[index.paths[i]] = f"frames of different sizes ({', '.join(sorted(sizes))}); {index.remedy(i)}"
            elif index.bytes[i] and held != index.bytes[i]:
                broken[index.paths[i]] = f"{held} bytes, where {index.bytes[i]} were prepared; {index.remedy(i)}"
        except InputError as error:
            broken[index.paths[i]] = str(error)
    return broken
