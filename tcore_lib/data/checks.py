"""Looking at training data: what an index holds, what a preparation will cost, which frames are broken."""

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from tcore_lib import params, randomness
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.sources import find
from tcore_lib.data.videos import BAD_COLUMNS, examine, extract, read_bad, worker_count
from tcore_lib.errors import InputError


def class_counts(index: FrameIndex) -> pd.Series:
    """Videos per class, largest first; classes without a video count 0."""
    counts = np.bincount(index.class_ids, minlength=len(index.class_names))
    names = pd.Index(index.class_names, name="class")
    return pd.Series(counts, index=names, name="videos").sort_values(ascending=False, kind="stable")


def size_counts(index: FrameIndex) -> pd.DataFrame:
    """Videos per frame size: columns width, height (pixels), videos; the most frequent first."""
    sizes = pd.DataFrame({"width": index.widths, "height": index.heights})
    return sizes.value_counts().rename("videos").reset_index()


def bad_files(root: str | Path) -> pd.DataFrame:
    """bad_files.csv of a prepared root: columns split, class, file, reason. Empty where nothing was bad."""
    return pd.DataFrame(read_bad(Path(root) / "bad_files.csv"), columns=BAD_COLUMNS)


def bad_share(index: FrameIndex, root: str | Path, split: str = "train") -> float:
    """Bad files as a share (0..1) of all files of a split."""
    bad = int((bad_files(root)["split"] == split).sum())
    return bad / (bad + len(index))


def estimate(
    cfg: params.Data, *, source: str | Path | None = None, sample: int = 16, seed: int = 0, progress: bool = True
) -> pd.DataFrame:
    """Prepare a few videos, drawn at random, into a folder that is thrown away, and extrapolate to all.

    Args:
        cfg: as for `videos.prepare`.
        source: used instead of `cfg.source`.
        sample: how many videos.
        seed: which ones.
        progress: show a progress bar.

    Returns:
        One column `estimate` in words and units; rows videos found, tried, one video takes, all videos take, disk
        needed, disk free.

    Raises:
        InputError: nothing usable in the source.
    """
    found = find(cfg, Path(source) if source is not None else None)
    total, workers = len(found.items), worker_count(cfg)
    chosen = sorted(randomness.generator(seed, "order").permutation(total)[:sample])
    bad = size = 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        for k in tqdm(chosen, desc="estimate", unit="clip", file=sys.stdout, disable=not progress):
            path = found.items[k].path
            try:
                if found.layout == "videos":
                    size += extract(path, Path(scratch) / str(k), Path(scratch), cfg).bytes
                else:
                    examine(path, found.layout, cfg.short_side)
            except InputError:
                bad += 1
    each, bytes_each = (time.perf_counter() - started) / len(chosen), size / len(chosen)
    root = params.resolve(cfg.root).absolute()
    disk = next(folder for folder in (root, *root.parents) if folder.exists())
    rows = {
        "videos found": f"{total:,}",
        "tried": f"{len(chosen)}, {bad} of them bad",
        "one video takes": f"{each:.2f} s of one core, {bytes_each / 1e3:,.0f} kB of frames",
        "all videos take": f"{total * each / workers / 3600:.2f} h with {workers} process{'es' * (workers > 1)}",
        "disk needed": f"{total * bytes_each / 1e9:,.2f} GB",
        "disk free": f"{shutil.disk_usage(disk).free / 1e9:,.0f} GB",
    }
    return pd.Series(rows, name="estimate", dtype=object).to_frame()


class FrameReport(NamedTuple):
    """What `doctor_frames` found."""

    root: Path  # the folder that was looked at
    videos: int
    frames: int
    problems: list[tuple[str, str]]  # (video, what is wrong with it)

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        """The report as lines of text; of many problems the first 20."""
        lines = [f"frames in {self.root}", f"  videos      {self.videos}", f"  frames      {self.frames}"]
        lines += [f"  problem     {video}: {problem}" for video, problem in self.problems[:20]]
        if len(self.problems) > 20:
            lines.append(f"  problem     and {len(self.problems) - 20} more")
        return "\n".join([*lines, "  fit for training" if self.ok else "  NOT fit for training"])


def doctor_frames(root: str | Path, *, split: str = "train", progress: bool = True) -> FrameReport:
    """Decode every frame of an index and compare with what it recorded.

    Found are, one of each video: missing, empty, cut and undecodable files, frames of another size than recorded, and
    folders whose files have another size in bytes.

    Args:
        root: a prepared root, with `index-<split>.parquet`.
        split: which split.
        progress: show a progress bar.

    Raises:
        InputError: there is no index.
    """
    index = FrameIndex.load(Path(root) / f"index-{split}.parquet")
    problems: list[tuple[str, str]] = []
    for i in tqdm(range(len(index)), desc="doctor", unit="clip", file=sys.stdout, disable=not progress):
        video, frames = str(index.paths[i]), range(index.num_frames[i])
        sizes = set()
        try:
            for j in frames:
                height, width, _ = index.read(i, [j])[0].shape
                sizes.add(f"{width}x{height}")
            files = sum(index.frame_path(i, j).stat().st_size for j in frames)
        except InputError as error:
            problems.append((video, str(error)))
            continue
        if sizes != {f"{index.widths[i]}x{index.heights[i]}"}:
            problems.append((video, f"frames of different sizes ({', '.join(sorted(sizes))}); {index.remedy(i)}"))
        elif index.bytes[i] and files != index.bytes[i]:
            problems.append((video, f"{files} bytes, where {index.bytes[i]} were prepared; {index.remedy(i)}"))
    return FrameReport(Path(root), len(index), int(index.num_frames.sum()), problems)
