"""Prepare training data: whatever lies on disk -> frames in the released layout and the index that training reads.

Sized for Kinetics-400: all cores, bounded memory, shards over machines, resumable after a kill, and no file that stops
it.
"""

import csv
import errno
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tcore_lib import params
from tcore_lib.data import extract
from tcore_lib.data.index import FrameIndex, Kind
from tcore_lib.data.journal import Journal
from tcore_lib.data.sources import Item, Source, find
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, writable
from tcore_lib.machine import workpool

__all__ = ["FrameIndex", "PrepareReport", "index_path", "prepare"]

_GUESSED_BYTES = 400_000  # of a clip's 20 frames, before one is measured
_ROW_COLUMNS = {  # key of `extract.Row` -> column of the index
    "num_frames": "num_frames",
    "width": "widths",
    "height": "heights",
    "checksum": "checksums",
    "numbered": "numbered",
    "sequential": "sequential",
}


@dataclass(frozen=True)
class PrepareReport:
    """What a call of `prepare` did.

    Attributes:
        index: the index file; it covers what all shards have finished so far.
        videos: rows of the index.
        done: clips finished by this call.
        skipped: clips of this shard that were finished before.
        bad: files in bad_files.csv, of all shards.
        bad_files: that file.
        missing: rows of the annotations for which no file was found (None without annotations, or with archives).
        unlisted: files left out because the annotations do not name them.
        complete: every video of the source is either in the index or in bad_files.csv.
        seconds: time this call took.
        bytes: size of the frames this call wrote.
    """

    index: Path
    videos: int
    done: int
    skipped: int
    bad: int
    bad_files: Path
    missing: int | None
    unlisted: int
    complete: bool
    seconds: float
    bytes: int

    @property
    def clips_per_second(self) -> float:
        """Over all workers of this call."""
        return self.done / self.seconds if self.seconds else 0.0


def index_path(settings: params.Data) -> Path:
    """Where `prepare` writes the index of a split."""
    return params.resolve(settings.root) / f"index-{settings.split}.parquet"


def prepare(
    settings: params.Data,
    *,
    source: str | Path | None = None,
    shard: tuple[int, int] | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Prepare `settings.source`, or continue doing so.

    Videos are extracted to `<root>/frames/<split>/<class>/<video>/00000.jpg ...`, or with `direct` only indexed. Frame
    folders and images are indexed where they lie. Written under `<root>`: the frames, `index-<split>.parquet`,
    `bad_files.csv` (one line per file that cannot be used, with the reason) and `.prepare-<split>/` (what is finished).

    Args:
        settings: the section `data` of a parameter file.
        source: used instead of `settings.source`, e.g. the folder of synthetic videos.
        shard: (i, n): this process does part i of n. Default: RANK and WORLD_SIZE where torchrun set them, else (0, 1).
        progress: show a progress bar.

    Raises:
        InputError: nothing usable in the source; `root` holds something prepared otherwise; the disk is full (with the
            space that is missing; what is finished is kept).
    """
    started = time.monotonic()
    shard = shard or (int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    if not 0 <= shard[0] < shard[1]:
        raise InputError(f"shard = {shard[0]}/{shard[1]} is not possible; shards of n are numbered 0 to n - 1.")
    found = find(settings, Path(source) if source is not None else None)
    if settings.direct and found.archives:
        raise InputError(
            f"{found.archives[0]} is an archive, which data.direct cannot read from; unpack it or set direct: false."
        )
    with writable(params.resolve(settings.root)):
        job = _Job(settings, found, shard)
    try:
        job.run(progress)
        index, bad, complete = job.merge()
    finally:
        job.journal.close()
    missing = None
    if found.annotations is not None and found.total is not None:
        missing = len(found.annotations.labels) - len(found.items)
    return PrepareReport(
        index=index_path(settings),
        videos=len(index),
        done=job.done,
        skipped=job.skipped,
        bad=bad,
        bad_files=job.bad_files,
        missing=missing,
        unlisted=found.unlisted,
        complete=complete,
        seconds=time.monotonic() - started,
        bytes=job.size,
    )


class _Job:
    """One call of `prepare`."""

    def __init__(self, settings: params.Data, found: Source, shard: tuple[int, int]) -> None:
        self.settings, self.found, self.shard = settings, found, shard
        self.root = params.resolve(settings.root)
        self.bad_files = self.root / "bad_files.csv"
        self.frames = self.root / "frames" / settings.split
        self.kind = task_kind(settings, found)
        kept = ("num_frames", "fps", "short_side", "jpeg_quality", "direct")
        self.recipe = {name: getattr(settings, name) for name in kept} | {"layout": found.layout}
        if self.kind != "extract":
            self.recipe["source"] = str(found.root.absolute())
        self.journal = Journal(self.root / f".prepare-{settings.split}", self.recipe, shard)
        self.done = self.skipped = self.bad = self.size = 0

    def run(self, progress: bool) -> None:
        """Work through this shard; counts into `done`, `skipped`, `bad` and `size` (bytes written)."""
        entries = self.journal.entries()
        present = self._present()
        self._refuse_foreign(entries, present)
        finished = {target for target, entry in entries.items() if _is_finished(entry, present)}
        total = self._remaining(finished)
        items: dict[str, Item] = {}  # those under way
        outcomes = workpool.run(extract.work, self._tasks(finished, items), worker_count(self.settings))
        try:
            with tqdm(
                total=total, unit="clip", desc="prepare", file=sys.stdout, disable=not progress or total == 0
            ) as bar:
                for task, outcome in outcomes:
                    item = items.pop(task.target)
                    if isinstance(outcome, workpool.Failed):
                        self._refuse_full_disk(outcome.errno, total)
                        self._note_bad(item, outcome)
                    else:
                        self._finish(task, outcome)
                    bar.set_postfix(bad=self.bad, refresh=False)
                    bar.update()
        except OSError as error:  # this process's own writes
            self._refuse_full_disk(error.errno, total)
            with writable(self.root):
                raise
        finally:
            outcomes.close()

    def _present(self) -> set[str] | None:
        """Targets whose frame folder is there; None where no frames are written."""
        if self.kind != "extract":
            return None
        if not self.frames.is_dir():
            return set()
        classes = [entry.name for entry in os.scandir(self.frames) if entry.is_dir()]
        return {f"{c}/{e.name}" for c in classes for e in os.scandir(self.frames / c) if e.is_dir()}

    def _refuse_foreign(self, entries: dict[str, dict[str, Any]], present: set[str] | None) -> None:
        foreign = sorted((present or set()) - {target for target, entry in entries.items() if "row" in entry})
        if foreign:
            raise InputError(
                f"{self.frames / foreign[0]} was not written by this preparation; choose another data.root, or index "
                "existing frames with data.layout: frames."
            )

    def _remaining(self, finished: set[str]) -> int | None:
        """Clips this shard has still to do; None where only reading the archives would tell."""
        if self.found.total is not None:
            return sum(item.target not in finished for item in self.found.items[self.shard[0] :: self.shard[1]])
        if self.found.annotations is not None:
            return max(0, len(self.found.annotations.labels) - len(finished)) // self.shard[1]
        return None

    def _tasks(self, finished: set[str], items: dict[str, Item]) -> Iterator[extract.Task]:
        seen: set[str] = set()

        def skip(target: str) -> bool:
            self.skipped += target in finished
            return target in finished

        for number, item in enumerate(self.found.shard(self.shard, skip)):
            if item.problem is None and item.target in seen:
                item = replace(item, name=f"{item.name} again", problem=f"has the name of another video, {item.target}")
            seen.add(item.target)
            if item.problem is not None:
                if item.target not in finished:
                    self._note_bad(item, workpool.Failed(item.problem, "BadFile"))
                continue
            items[item.target] = item
            folder = self.journal.scratch / f"{os.getpid()}-{number}"
            yield extract.task(item, self.kind, folder, self.settings)

    def _finish(self, task: extract.Task, row: extract.Row) -> None:
        entry: dict[str, Any] = {"target": task.target, "row": asdict(row)}
        if self.kind != "extract":
            entry["path"] = os.path.relpath(str(task.source), self.found.root)
        self.journal.append(entry)  # before the rename: see journal.py
        if self.kind == "extract":
            final = self.frames / task.target
            final.parent.mkdir(parents=True, exist_ok=True)
            os.rename(task.folder, final)
        self.size += row.bytes
        self.done += 1

    def _note_bad(self, item: Item, failed: workpool.Failed) -> None:
        reason = failed.reason if failed.kind in ("BadFile", "died", "hung") else f"{failed.kind}: {failed.reason}"
        stamp = extract.stamp(item.path)
        self.journal.append(
            {"target": item.target, "bad": reason, "file": item.shown, "of": str(item.path), "stamp": stamp}
        )
        self.bad += 1

    def _refuse_full_disk(self, code: int | None, total: int | None) -> None:
        if code not in (errno.ENOSPC, errno.EDQUOT):
            return
        need, of = "more space", ""
        if total is not None:
            of = f"of {total} "
            each = self.size / self.done if self.done else _GUESSED_BYTES
            need = f"about {(total - self.done) * each / 1e9:.3g} GB more"
        raise InputError(
            f"The disk of {self.root} is full after {self.done} {of}clips; this part needs {need}: free it and run the "
            "same command again, which continues."
        )

    def merge(self) -> tuple[FrameIndex, int, bool]:
        """Write the index and bad_files.csv from what all shards have finished.

        Returns:
            The index, the number of bad files, and whether all of the source is in one or the other.
        """
        with self.journal.merging():
            entries = self.journal.entries()
            present = self._present()
            if present is None:  # the index follows the folder it describes
                present = {item.target for item in self.found.items}
            ordered = [entries[target] for target in sorted(entries)]
            rows = [entry for entry in ordered if "row" in entry and entry["target"] in present]
            bad = [entry for entry in ordered if "bad" in entry]
            write_bad_files(self.bad_files, self.settings.split, bad)
            if not rows:
                reason = f"; {bad[0]['file']}: {bad[0]['bad']}" if bad else ""
                raise InputError(f"None of the files in {self.found.root} can be used{reason}; see {self.bad_files}.")
            index = self._index(rows)
            index.save(index_path(self.settings))
            self.journal.mark_finished()
            if self.found.total is None:
                return index, len(bad), self.journal.all_finished()
            return index, len(bad), all(item.target in entries for item in self.found.items)

    def _index(self, rows: list[dict[str, Any]]) -> FrameIndex:
        class_of = [entry["target"].split("/")[0] for entry in rows]
        annotated = self.found.annotations.class_names if self.found.annotations is not None else []
        class_names = annotated + sorted(set(class_of) - set(annotated))
        number = {name: k for k, name in enumerate(class_names)}
        columns: dict[str, Any] = {name: [entry["row"][key] for entry in rows] for key, name in _ROW_COLUMNS.items()}
        if self.kind == "video":
            columns["timestamps"] = [stamp for entry in rows for stamp in entry["row"]["timestamps"]]
        kinds: dict[str, Kind] = {"extract": "frames", "video": "video", "frames": "frames", "image": "images"}
        return FrameIndex(
            root=self.frames if self.kind == "extract" else self.found.root,
            paths=np.array([entry.get("path", entry["target"]) for entry in rows], dtype=np.dtypes.StringDType()),
            class_ids=np.array([number[name] for name in class_of]),
            class_names=class_names,
            kind=kinds[self.kind],
            short_side=self.settings.short_side,
            settings=self.recipe,
            **columns,
        )


def task_kind(settings: params.Data, found: Source) -> str:
    """What a worker does with an item of this source (`extract.Task`)."""
    return {"videos": "video" if settings.direct else "extract", "frames": "frames", "images": "image"}[found.layout]


def worker_count(settings: params.Data) -> int:
    """Processes that decode: as set, else one per core, shared with the other ranks on this machine."""
    return settings.workers or max(1, workpool.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def write_bad_files(path: Path, split: str, bad: list[dict[str, Any]]) -> None:
    """Write bad_files.csv (split, class, file, reason); the lines of other splits stay."""
    others: list[list[str]] = []
    if path.exists():
        with open(path, encoding="utf-8", newline="") as stream:
            others = [row for row in csv.reader(stream) if len(row) == 4 and row[0] not in ("split", split)]
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("split", "class", "file", "reason"))
        writer.writerows(others)
        writer.writerows((split, entry["target"].split("/")[0], entry["file"], entry["bad"]) for entry in bad)


def _is_finished(entry: dict[str, Any], present: set[str] | None) -> bool:
    """A bad file counts as finished until it is replaced."""
    if "row" in entry:
        return present is None or entry["target"] in present
    return entry["stamp"] == extract.stamp(Path(entry["of"]))
