"""Looking at training data: what an index holds, what a preparation will cost, which frames are broken."""

import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from tcore_lib import params, randomness
from tcore_lib.data import images
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.sources import find
from tcore_lib.data.videos import examine, extract, worker_count
from tcore_lib.errors import InputError


def class_counts(index: FrameIndex) -> pd.Series:
    """Videos per class, largest first; classes without a video count 0."""
    counts = np.bincount(index.class_ids, minlength=len(index.class_names))
    names = pd.Index(index.class_names, name="class")
    return pd.Series(counts, index=names, name="videos").sort_values(ascending=False, kind="stable")


def size_counts(index: FrameIndex) -> pd.DataFrame:
    """Videos per frame size: columns width, height (pixels), videos; the most frequent first."""
    sizes, counts = np.unique(np.stack([index.widths, index.heights], axis=1), axis=0, return_counts=True)
    table = pd.DataFrame({"width": sizes[:, 0], "height": sizes[:, 1], "videos": counts})
    return table.sort_values("videos", ascending=False, kind="stable", ignore_index=True)


def bad_files(root: str | Path) -> pd.DataFrame:
    """bad_files.csv of a prepared root: columns split, class, file, reason. Empty where nothing was bad."""
    path = Path(root) / "bad_files.csv"
    if not path.exists():
        return pd.DataFrame(columns=["split", "class", "file", "reason"])
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def bad_share(index: FrameIndex, root: str | Path, split: str = "train") -> float:
    """Bad files as a share (0..1) of all files of a split."""
    bad = int((bad_files(root)["split"] == split).sum())
    return bad / (bad + len(index)) if bad + len(index) else 0.0


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
    chosen = randomness.generator(seed, "order").permutation(len(found.items))[:sample]
    bad = size = 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        for k in tqdm(sorted(chosen), desc="estimate", unit="clip", file=sys.stdout, disable=not progress):
            path = found.items[k].path
            try:
                if found.layout == "videos":
                    size += extract(path, Path(scratch) / str(k), Path(scratch), cfg).bytes
                else:
                    examine(path, found.layout, cfg.short_side)
            except InputError:
                bad += 1
    each, total, workers = (time.perf_counter() - started) / len(chosen), len(found.items), worker_count(cfg)
    minutes = total * each / workers / 60
    root = params.resolve(cfg.root)
    disk = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    rows = {
        "videos found": f"{total:,}",
        "tried": f"{len(chosen)}, {bad} of them bad",
        "one video takes": f"{each:.2f} s of one core, {size / len(chosen) / 1e3:,.0f} kB of frames",
        "all videos take": f"{minutes:.1f} minutes" if minutes < 60 else f"{minutes / 60:.1f} h",
        "disk needed": f"{total * size / len(chosen) / 1e9:,.2f} GB",
        "disk free": f"{shutil.disk_usage(disk).free / 1e9:,.0f} GB",
    }
    rows["all videos take"] += f" with {workers} process{'es' * (workers > 1)}"
    return pd.Series(rows, name="estimate", dtype=object).to_frame()


@dataclass(frozen=True)
class FrameReport:
    """What `doctor_frames` found."""

    root: Path  # the folder that was looked at
    videos: int
    frames: int
    problems: pd.DataFrame  # columns video, problem; one line per thing that is wrong

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return self.problems.empty

    def __str__(self) -> str:
        """The report as lines of text; of many problems the first 20."""
        lines = [f"frames in {self.root}", f"  videos      {self.videos}", f"  frames      {self.frames}"]
        lines += [f"  problem     {row.video}: {row.problem}" for row in self.problems.head(20).itertuples()]
        lines += [f"  problem     and {len(self.problems) - 20} more"] * (len(self.problems) > 20)
        return "\n".join([*lines, "  fit for training" if self.ok else "  NOT fit for training"])


def doctor_frames(root: str | Path, *, split: str = "train", progress: bool = True) -> FrameReport:
    """Decode every frame of an index and compare with what it recorded.

    Found are: missing, empty, cut and undecodable files, frames of different sizes, folders with more or fewer frames
    than recorded or of another size in bytes, and videos with another number of frames than nearly all.

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
        name, total = str(index.paths[i]), int(index.num_frames[i])
        sizes: Counter[tuple[int, int]] = Counter()
        files = 0
        for j in range(total):
            try:
                path = index.frame_path(i, j)
                height, width, _ = images.read_rgb(path, index.remedy(i)).shape
                sizes[width, height] += 1
                files += path.stat().st_size
            except InputError as error:
                problems.append((name, str(error)))
        if len(sizes) > 1:
            shown = ", ".join(f"{width}x{height}" for width, height in sizes)
            problems.append((name, f"frames of different sizes ({shown}); {index.remedy(i)}"))
        if sizes.total() == total and index.bytes[i] and files != index.bytes[i]:
            problems.append((name, f"{files} bytes, where {index.bytes[i]} were prepared; {index.remedy(i)}"))
    lengths = Counter(index.num_frames.tolist())
    usual, count = lengths.most_common(1)[0] if lengths else (0, 0)
    if count >= 0.9 * len(index):  # else lengths simply vary
        odd = np.flatnonzero(index.num_frames != usual).tolist()
        problems += [(str(index.paths[i]), f"has {index.num_frames[i]} frames, the others {usual}") for i in odd]
    table = pd.DataFrame(problems, columns=["video", "problem"])
    return FrameReport(Path(root), len(index), int(index.num_frames.sum()), table)
