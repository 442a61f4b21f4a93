"""Prepare training data: whatever lies on disk -> frames in the released layout and the index that training reads.

Sized for Kinetics-400: all cores, bounded memory, shards over machines, resumable after a kill, and no file that stops it.
"""

import csv
import errno
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tcore_lib import extract, params, workpool
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path
from tcore_lib.index import FrameIndex, export_released, read_released
from tcore_lib.journal import Journal
from tcore_lib.sources import Item, Source, find

__all__ = ["FrameIndex", "PrepareReport", "export_released", "index_path", "prepare", "read_released"]


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

    Videos are extracted to `<root>/frames/<split>/<class>/<video>/00000.jpg ...`, or with `direct` only indexed. Frame folders and
    images are indexed where they lie. Written under `<root>`: the frames, `index-<split>.parquet`, `bad_files.csv` (one line per
    file that cannot be used, with the reason) and `.prepare-<split>/` (what is finished).

    Args:
        settings: the section `data` of a parameter file.
        source: used instead of `settings.source`, e.g. the folder of synthetic videos.
        shard: (i, n): this process does part i of n. Default: RANK and WORLD_SIZE where torchrun set them, else (0, 1).
        progress: show a progress bar.

    Raises:
        InputError: nothing usable in the source; `root` holds something prepared otherwise; the disk is full (with the space that
            is missing; what is finished is kept).
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
    job = _Job(settings, found, shard)
    try:
        done, skipped, size = job.run(progress)
        index, bad, complete = job.merge()
    finally:
        job.journal.close()
    missing = None
    if found.annotations is not None and not found.archives:
        missing = len(found.annotations.labels) - len(found.items)
    return PrepareReport(
        index_path(settings),
        len(index),
        done,
        skipped,
        bad,
        job.bad_files,
        missing,
        found.unlisted,
        complete,
        time.monotonic() - started,
        size,
    )


class _Job:
    """One call of `prepare`."""

    def __init__(self, settings: params.Data, found: Source, shard: tuple[int, int]) -> None:
        self.settings, self.found, self.shard = settings, found, shard
        self.root = params.resolve(settings.root)
        self.bad_files = self.root / "bad_files.csv"
        self.kind = {"videos": "video" if settings.direct else "extract", "frames": "frames", "images": "image"}[
            found.layout
        ]
        self.frames = self.root / "frames" / settings.split
        kept = ("num_frames", "fps", "short_side", "jpeg_quality", "direct")
        self.recipe = {name: getattr(settings, name) for name in kept} | {"layout": found.layout}
        if self.kind != "extract":
            self.recipe["source"] = str(found.root.absolute())
        self.journal = Journal(self.root / f".prepare-{settings.split}", self.recipe, shard)
        self.size = 0

    def run(self, progress: bool) -> tuple[int, int, int]:
        """Work through this shard: (clips done now, clips done before, bytes written)."""
        entries = self.journal.entries()
        present = self._present()
        finished = {target for target, entry in entries.items() if _is_finished(entry, present)}
        foreign = sorted((present or set()) - {target for target, entry in entries.items() if "row" in entry})
        if foreign:
            raise InputError(
                f"{self.frames / foreign[0]} was not written by this preparation; choose another data.root, or index existing "
                "frames with data.layout: frames."
            )
        skipped = 0

        def skip(target: str) -> bool:
            nonlocal skipped
            skipped += target in finished
            return target in finished

        total = None
        if self.found.total is not None:
            mine = self.found.items[self.shard[0] :: self.shard[1]]
            total = sum(item.target not in finished for item in mine)
        workers = self.settings.workers or os.cpu_count() or 1
        done = bad = 0
        items: dict[str, Item] = {}  # those under way
        outcomes = workpool.run(extract.work, self._tasks(skip, items), workers)
        try:
            with tqdm(
                total=total, unit="clip", desc="prepare", file=sys.stdout, disable=not progress, smoothing=0.05
            ) as bar:
                for task, outcome in outcomes:
                    item = items.pop(task.target)
                    if isinstance(outcome, workpool.Failed):
                        self._refuse_full_disk(outcome, done, total)
                        self._note_bad(item, outcome)
                        bad += 1
                    else:
                        self._finish(task, outcome)
                        done += 1
                    bar.set_postfix(bad=bad, refresh=False)
                    bar.update()
        except OSError as error:  # this process's own writes: journal, rename
            self._refuse_full_disk(workpool.Failed(str(error), "OSError", error.errno), done, total)
            raise
        finally:
            outcomes.close()
        return done, skipped, self.size

    def _present(self) -> set[str] | None:
        """Targets whose frame folder is there; None where no frames are written."""
        if self.kind != "extract":
            return None
        classes = [entry.name for entry in os.scandir(self.frames) if entry.is_dir()] if self.frames.is_dir() else []
        return {f"{name}/{entry.name}" for name in classes for entry in os.scandir(self.frames / name)}

    def _tasks(self, skip: Any, items: dict[str, Item]) -> Iterator[extract.Task]:
        s = self.settings
        for number, item in enumerate(self.found.shard(self.shard, skip)):
            if item.problem is not None:
                self._note_bad(item, workpool.Failed(item.problem, "BadFile"))
                continue
            items[item.target] = item
            folder = self.journal.scratch / f"{os.getpid()}-{number}"
            where = item.data if item.data is not None else item.path
            yield extract.Task(item.target, self.kind, where, folder, s.num_frames, s.fps, s.short_side, s.jpeg_quality)

    def _finish(self, task: extract.Task, row: extract.Row) -> None:
        entry = {"target": task.target, "row": {k: v for k, v in asdict(row).items() if v is not None}}
        if self.kind != "extract":
            entry["path"] = os.path.relpath(str(task.source), self.found.root)
        self.journal.append(entry)  # before the rename: see journal.py
        if self.kind == "extract":
            final = self.frames / task.target
            final.parent.mkdir(parents=True, exist_ok=True)
            os.rename(task.folder, final)
        self.size += row.bytes

    def _note_bad(self, item: Item, failed: workpool.Failed) -> None:
        reason = failed.reason if failed.kind in ("BadFile", "died", "hung") else f"{failed.kind}: {failed.reason}"
        entry = {
            "target": item.target,
            "bad": reason,
            "file": item.shown,
            "stamp": extract.stamp(item.path),
            "of": str(item.path),
        }
        self.journal.append(entry)

    def _refuse_full_disk(self, failed: workpool.Failed, done: int, total: int | None) -> None:
        if failed.errno not in (errno.ENOSPC, errno.EDQUOT):
            return
        need = "the space for the rest"
        if total is not None and done:
            need = f"about {(total - done) * self.size / done / 1e9:.2f} GB more"
        of = f"of {total} " if total is not None else ""
        raise InputError(
            f"The disk of {self.root} is full after {done} {of}clips; this part needs {need}: free it and run the same command again."
        )

    def merge(self) -> tuple[FrameIndex, int, bool]:
        """Write the index and bad_files.csv from what all shards have finished: (index, bad files, all of the source covered)."""
        with self.journal.merging():
            entries = self.journal.entries()
            if self.kind != "extract":  # the index follows the folder it describes
                known = {item.target for item in self.found.items}
                entries = {target: entry for target, entry in entries.items() if target in known}
            rows = {target: entries[target] for target in sorted(entries) if "row" in entries[target]}
            bad = [entries[target] for target in sorted(entries) if "bad" in entries[target]]
            self._write_bad(bad)
            if not rows:
                reason = f"; the first: {bad[0]['file']}: {bad[0]['bad']}" if bad else ""
                raise InputError(f"None of the files in {self.found.root} can be used{reason}; see {self.bad_files}.")
            index = self._index(rows)
            index.save(index_path(self.settings))
        covered = self.shard[1] == 1
        if self.found.total is not None:
            covered = all(item.target in entries for item in self.found.items)
        return index, len(bad), covered

    def _index(self, rows: dict[str, dict[str, Any]]) -> FrameIndex:
        names = {target.split("/")[0] for target in rows}
        if self.found.annotations is not None:
            names |= set(self.found.annotations.labels.values())
        class_names = sorted(names)
        number = {name: k for k, name in enumerate(class_names)}
        column = {
            key: [entry["row"][key] for entry in rows.values()] for key in ("num_frames", "width", "height", "checksum")
        }
        flags = {key: [entry["row"][key] for entry in rows.values()] for key in ("numbered", "sequential")}
        kind = {"extract": "frames", "video": "video", "frames": "frames", "image": "images"}[self.kind]
        stamps = [stamp for entry in rows.values() for stamp in entry["row"]["timestamps"]] if kind == "video" else None
        return FrameIndex(
            self.frames if self.kind == "extract" else self.found.root,
            [entry.get("path", target) for target, entry in rows.items()],
            [number[target.split("/")[0]] for target in rows],
            class_names,
            column["num_frames"],
            column["width"],
            column["height"],
            column["checksum"],
            kind,
            flags["numbered"],
            flags["sequential"],
            stamps,
            self.settings.short_side,
            self.recipe,
        )

    def _write_bad(self, bad: list[dict[str, Any]]) -> None:
        others: list[list[str]] = []
        if self.bad_files.exists():
            with open(self.bad_files, encoding="utf-8", newline="") as stream:
                others = [
                    row for row in csv.reader(stream) if len(row) == 4 and row[0] not in ("split", self.settings.split)
                ]
        with atomic_path(self.bad_files) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("split", "class", "file", "reason"))
            writer.writerows(others)
            writer.writerows((self.settings.split, e["target"].split("/")[0], e["file"], e["bad"]) for e in bad)


def _is_finished(entry: dict[str, Any], present: set[str] | None) -> bool:
    """A bad file counts as finished until it is replaced."""
    if "row" in entry:
        return present is None or entry["target"] in present
    return entry["stamp"] == extract.stamp(Path(entry["of"]))
