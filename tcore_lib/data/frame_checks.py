"""Looking at training data before it is trained on: what an index holds, what a preparation will cost, what is broken.

Everything is an array or a DataFrame, for notebook 00 to show.
"""

import csv
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
from tcore_lib.data import extract, images
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.sources import Item, find
from tcore_lib.data.videos import task_kind, worker_count
from tcore_lib.errors import InputError
from tcore_lib.machine import workpool


def class_counts(index: FrameIndex) -> pd.Series:
    """Videos per class, largest first; classes without a video count 0."""
    counts = np.bincount(index.class_ids, minlength=len(index.class_names))
    return pd.Series(counts, index=pd.Index(index.class_names, name="class"), name="videos").sort_values(
        ascending=False, kind="stable"
    )


def size_counts(index: FrameIndex) -> pd.DataFrame:
    """Videos per frame size: columns width, height (pixels), videos; the most frequent first."""
    sizes, counts = np.unique(np.stack([index.widths, index.heights], axis=1), axis=0, return_counts=True)
    table = pd.DataFrame({"width": sizes[:, 0], "height": sizes[:, 1], "videos": counts})
    return table.sort_values("videos", ascending=False, kind="stable", ignore_index=True)


def bad_files(root: str | Path) -> pd.DataFrame:
    """bad_files.csv of a prepared root: columns split, class, file, reason. Empty where nothing was bad."""
    path = Path(root) / "bad_files.csv"
    columns = ["split", "class", "file", "reason"]
    if not path.exists():
        return pd.DataFrame(columns=columns)
    with open(path, encoding="utf-8", newline="") as stream:
        return pd.DataFrame(list(csv.DictReader(stream)), columns=columns)


def bad_share(index: FrameIndex, root: str | Path, split: str = "train") -> float:
    """Bad files as a share (0..1) of all files of a split."""
    bad = int((bad_files(root)["split"] == split).sum())
    return bad / (bad + len(index)) if bad + len(index) else 0.0


@dataclass(frozen=True)
class Estimate:
    """What preparing the whole source will take, from a sample of it.

    Attributes:
        videos: videos in the source; None where only reading archives would tell.
        sampled: videos tried; bad: how many of them cannot be used.
        seconds_per_clip: of one core.
        bytes_per_clip: of kept frames.
        hours: for all videos with `workers` processes of this machine; None where `videos` is.
        gigabytes: of all kept frames; None where `videos` is.
        free_gigabytes: on the disk of `data.root`.
        workers: processes.
    """

    videos: int | None
    sampled: int
    bad: int
    seconds_per_clip: float
    bytes_per_clip: float
    hours: float | None
    gigabytes: float | None
    free_gigabytes: float
    workers: int

    @property
    def fits(self) -> bool | None:
        """Whether the frames fit on the disk; None where it is unknown."""
        return None if self.gigabytes is None else self.gigabytes < self.free_gigabytes

    def table(self) -> pd.DataFrame:
        """The estimate in words and units: one row per question, one column `estimate`."""
        unknown, hours = "known once the archives are read", self.hours
        time_needed = unknown if hours is None else f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} minutes"
        rows = {
            "videos found": unknown if self.videos is None else f"{self.videos:,}",
            "tried": f"{self.sampled}, {self.bad} of them bad",
            "one video takes": f"{self.seconds_per_clip:.2f} s of one core, {self.bytes_per_clip / 1e3:,.0f} kB of frames",
            "all videos take": f"{time_needed} with {self.workers} process{'' if self.workers == 1 else 'es'}",
            "disk needed": unknown if self.gigabytes is None else f"{self.gigabytes:,.2f} GB",
            "disk free": f"{self.free_gigabytes:,.0f} GB",
        }
        return pd.Series(rows, name="estimate", dtype=object).to_frame()


def estimate(
    settings: params.Data, *, source: str | Path | None = None, sample: int = 16, seed: int = 0, progress: bool = True
) -> Estimate:
    """Prepare a few videos, drawn at random, into a folder that is thrown away, and extrapolate.

    Args:
        settings: as for `videos.prepare`.
        source: used instead of `settings.source`.
        sample: how many videos.
        seed: which ones.
        progress: show a progress bar.

    Raises:
        InputError: nothing usable in the source.
    """
    found = find(settings, Path(source) if source is not None else None)
    chosen = _sample(found.items, sample, seed)
    if not chosen:  # archives only: their first members
        chosen = [item for item, _ in zip(found.shard((0, 1)), range(sample), strict=False)]
    kind, times, sizes, bad = task_kind(settings, found), [], [], 0
    root = _existing_parent(params.resolve(settings.root))
    with tempfile.TemporaryDirectory() as scratch:
        for item in tqdm(chosen, desc="estimate", unit="clip", file=sys.stdout, disable=not progress):
            task = extract.task(item, kind, Path(scratch) / "clip", settings)
            started = time.perf_counter()
            try:
                sizes.append(extract.work(task).bytes)
            except images.BadFile:
                bad += 1
            times.append(time.perf_counter() - started)
            shutil.rmtree(task.folder, ignore_errors=True)
    seconds, size = float(np.mean(times)), float(np.mean(sizes)) if sizes else 0.0
    videos = found.total
    if videos is None and found.annotations is not None:
        videos = len(found.annotations.labels)
    workers, good = worker_count(settings), 1 - bad / len(times)
    return Estimate(
        videos=videos,
        sampled=len(times),
        bad=bad,
        seconds_per_clip=seconds,
        bytes_per_clip=size,
        hours=None if videos is None else videos * seconds / workers / 3600,
        gigabytes=None if videos is None else videos * good * size / 1e9,
        free_gigabytes=shutil.disk_usage(root).free / 1e9,
        workers=workers,
    )


def _sample(items: list[Item], count: int, seed: int) -> list[Item]:
    chosen = randomness.generator(seed, "order").permutation(len(items))[:count]
    return [items[k] for k in sorted(chosen)]


def _existing_parent(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


@dataclass(frozen=True)
class FrameReport:
    """What `doctor_frames` found.

    Attributes:
        root: the folder that was looked at.
        videos: frame folders; frames: files in them.
        lengths: videos per number of frames.
        problems: columns video, problem; one line per thing that is wrong. Empty = healthy.
    """

    root: Path
    videos: int
    frames: int
    lengths: pd.Series
    problems: pd.DataFrame

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return self.problems.empty

    def __str__(self) -> str:
        """The report as lines of text; of many problems the first 20."""
        lines = [f"frames in {self.root}", f"  videos      {self.videos}", f"  frames      {self.frames}"]
        lines += [f"  {count} videos have {length} frames" for length, count in self.lengths.items()][:10]
        lines += [f"  problem     {row.video}: {row.problem}" for row in self.problems.head(20).itertuples()]
        if len(self.problems) > 20:
            lines.append(f"  problem     and {len(self.problems) - 20} more")
        lines.append("  fit for training" if self.ok else "  NOT fit for training")
        return "\n".join(lines)


def doctor_frames(
    root: str | Path, *, split: str = "train", workers: int | None = None, progress: bool = True
) -> FrameReport:
    """Decode every frame of a folder of frame folders and compare with its index, if it has one.

    Found are: empty folders, undecodable or cut files, gaps in the numbering, frames of different sizes, folders with
    another number of frames than most, content that is not what the index recorded, and folders that are in the index
    or on disk only.

    Args:
        root: a prepared root (with `frames/<split>` and perhaps `index-<split>.parquet`), or a folder of frame folders.
        split: which split.
        workers: processes; None = one per core.
        progress: show a progress bar.

    Raises:
        InputError: there are no frame folders.
    """
    root = Path(root)
    index_file = root / f"index-{split}.parquet"
    index = FrameIndex.load(index_file) if index_file.exists() else None
    if index is not None and index.kind != "frames":
        raise InputError(f"{index_file} is of kind {index.kind!r}, not of frame folders; there are no frames to check.")
    given = {"layout": "frames", "split": split, "workers": workers}
    settings = params.parse({"data": given}, "doctor frames").data
    found = find(settings, root if index is None else index.root)
    recorded = {} if index is None else dict(zip(index.paths.tolist(), index.checksums.tolist(), strict=True))
    names = {item.path: item.path.relative_to(found.root).as_posix() for item in found.items}
    problems: list[tuple[str, str]] = []
    lengths: dict[str, int] = {}
    tasks = [item.path for item in found.items]
    outcomes = workpool.run(extract.examine, tasks, worker_count(settings))
    for path, outcome in tqdm(
        outcomes, total=len(tasks), desc="doctor", unit="clip", file=sys.stdout, disable=not progress
    ):
        name = names[path]
        if isinstance(outcome, workpool.Failed):
            problems.append((name, outcome.reason))
            continue
        lengths[name], checksum, faults = outcome
        problems += [(name, fault) for fault in faults]
        if index is not None and name not in recorded:
            problems.append((name, "is on disk but not in the index"))
        elif recorded.get(name) and recorded[name] != checksum:
            problems.append((name, "is not what the index recorded (checksum)"))
    problems += [(name, "is in the index but not on disk") for name in sorted(set(recorded) - set(names.values()))]
    problems += _unusual_lengths(lengths)
    return FrameReport(
        root=found.root,
        videos=len(tasks),
        frames=sum(lengths.values()),
        lengths=pd.Series(lengths, dtype=int).value_counts().sort_index().rename_axis("frames").rename("videos"),
        problems=pd.DataFrame(sorted(problems), columns=["video", "problem"]),
    )


def _unusual_lengths(lengths: dict[str, int]) -> list[tuple[str, str]]:
    """Folders with another number of frames than most, where nearly all (90 %) agree; else lengths simply vary."""
    if not lengths:
        return []
    usual, count = Counter(lengths.values()).most_common(1)[0]
    if count < 0.9 * len(lengths):
        return []
    return [(name, f"has {n} frames, the others {usual}") for name, n in lengths.items() if n not in (0, usual)]
