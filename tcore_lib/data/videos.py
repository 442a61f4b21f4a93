"""Preparing what lies on disk for training: videos to folders of frames, and one index over everything.

A finished video folder appears under its name in one step (a rename): that it exists means that it is finished. So a
preparation may be killed at any moment, shared among machines (`--shard i/n`) and started again. Folders of frames and
single images are indexed where they lie.
"""

import csv
import io
import itertools
import multiprocessing
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from pebble import ProcessExpired, ProcessPool
from PIL import Image
from tqdm import tqdm

from tcore_lib import params
from tcore_lib.data import decode, images
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.sources import Item, Source, find, frames_folder, recipe_file
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, read_json, writable, write_json
from tcore_lib.machine import cores

JPEG_QUALITY = 95
PATIENCE_S = 300  # that a worker may take for a file, and a second more for every 200 kB of it
BAD_COLUMNS = ("split", "class", "file", "reason")


class Row(NamedTuple):
    """What the index says of one video; see `FrameIndex`."""

    num_frames: int
    width: int
    height: int
    bytes: int
    numbered: bool


@dataclass(frozen=True)
class Prepared:
    """What a call of `prepare` did."""

    index: Path  # the index file; it covers what all shards have finished so far
    videos: int  # rows of the index
    done: int  # finished by this call
    skipped: int  # of this shard, finished before
    bad: int  # files of this split in bad_files.csv
    left_out: int  # lines of left_out.csv
    complete: bool  # everything in the source is in the index or in bad_files.csv
    seconds: float  # this call took

    def __str__(self) -> str:
        """One line for a person."""
        return (
            f"{self.videos} videos in {self.index} ({self.done} prepared now, {self.skipped} before); {self.bad} bad files "
            f"and {self.left_out} left out, see bad_files.csv and left_out.csv there"
            f"{'' if self.complete else '; other shards are not finished'}"
        )


def index_path(cfg: params.Data) -> Path:
    """Where `prepare` writes the index of a split."""
    return params.resolve(cfg.root) / f"index-{cfg.split}.parquet"


def prepare(
    cfg: params.Data, *, source: str | Path | None = None, shard: tuple[int, int] | None = None, progress: bool = True
) -> Prepared:
    """Prepare `cfg.source`, or continue doing so.

    What is going to be used is printed before anything is written. Written under `<root>`:
    `frames/<split>/<class>/<video>/00000.jpg ...` (of videos), `index-<split>.parquet`, `bad_files.csv` (what cannot be
    used, with the reason), `left_out.csv` (what is no video, with the reason) and `.prepare-<split>/`.

    Args:
        cfg: the section `data` of a parameter file.
        source: used instead of `cfg.source`, e.g. the folder of synthetic videos.
        shard: (i, n): this process does part i of n. Default: RANK and WORLD_SIZE where torchrun set them, else (0, 1).
        progress: print what was found, and show a progress bar.

    Raises:
        InputError: nothing usable in the source; `root` holds frames that were made otherwise; the disk is full (what is
            finished is kept).
    """
    started = time.monotonic()
    shard = shard or (int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    if not 0 <= shard[0] < shard[1]:
        raise InputError(f"shard = {shard[0]}/{shard[1]} is not possible; shards of n are numbered 0 to n - 1.")
    found = find(cfg, Path(source) if source is not None else None)
    if found.layout != "videos" and shard != (0, 1):
        raise InputError(f"Folders of {found.layout} are indexed by one process; --shard is for videos.")
    if progress:
        print(found.summary(), flush=True)
    root, state = params.resolve(cfg.root), recipe_file(cfg).parent
    name, frames = f"{shard[0]}-of-{shard[1]}", frames_folder(cfg)
    with writable(root):
        if found.layout == "videos":
            _check_recipe(cfg)
        with _only_one(state / f"{name}.lock"):
            scratch = state / f"unfinished-{name}"
            _remove_unfinished(scratch)
            mine = found.items[shard[0] :: shard[1]]
            tasks: Iterator[Task]
            if found.layout == "videos":
                todo = [item for item in mine if not (frames / item.target).is_dir()]
                tasks = ((item, extract, (item.path, frames / item.target, scratch, cfg)) for item in todo)
            else:
                todo = mine
                tasks = ((item, examine, (item.path, found.layout, cfg.short_side)) for item in todo)
            results = dict(_run(tasks, len(todo), worker_count(cfg), progress))
            _remove_unfinished(scratch)
            reasons = {item: result for item, result in results.items() if isinstance(result, str)}
            noted = [(cfg.split, item.class_name, str(item.path), reason) for item, reason in reasons.items()]
            _write_csv(state / f"bad-{name}.csv", noted)
        rows = {item.target: result for item, result in results.items() if isinstance(result, Row)}
        rows |= _finished(frames, state / "bad-folders.csv", cfg.split) if found.layout == "videos" else {}
        bad = _bad_files(root, cfg.split, found, rows)
        _write_csv(root / "bad_files.csv", [BAD_COLUMNS, *bad])
        _write_csv(root / "left_out.csv", [("what", "reason"), *found.left_out])
        bad = [line for line in bad if line[0] == cfg.split]
        if not rows:
            first = f"; {bad[0][3]}" if bad else ""
            raise InputError(f"None of the files in {found.root} can be used{first} See {root / 'bad_files.csv'}.")
        _index(cfg, found, rows).save(index_path(cfg))
    unusable = {line[2] for line in bad}
    return Prepared(
        index=index_path(cfg),
        videos=len(rows),
        done=len(results) - len(reasons),
        skipped=len(mine) - len(todo),
        bad=len(bad),
        left_out=len(found.left_out),
        complete=all(item.target in rows or str(item.path) in unusable for item in found.items),
        seconds=time.monotonic() - started,
    )


def prepare_command(
    source: Path,
    root: Path,
    /,
    *,
    split: str = "train",
    layout: Literal["auto", "videos", "frames", "images"] = "auto",
    annotations: Path | None = None,
    frames: int = 20,
    fps: float | None = None,
    short_side: int = 256,
    workers: int | None = None,
    shard: str = "0/1",
) -> None:
    """Prepare a folder of videos, of frame folders or of images for training. Interrupted, it continues when run again.

    Args:
        source: folder that holds them: <class>/<video>.mp4, <class>/<video>/<frame>.jpg, or any folder of videos.
        root: folder for the frames and the index; videos are not changed.
        split: name of the split.
        layout: what the folder holds, where that cannot be guessed.
        annotations: official Kinetics CSV, from which the classes are taken.
        frames: frames kept of each video, evenly spread.
        fps: frames kept per second, instead of a number.
        short_side: short side of the kept frames in pixels; smaller videos stay as they are.
        workers: processes; default: one per core.
        shard: this call's part, such as 0/8, where several machines share the work.
    """
    given: dict[str, Any] = {"source": str(source.absolute()), "root": str(root.absolute()), "num_frames": frames}
    given |= {"split": split, "layout": layout, "fps": fps, "short_side": short_side, "workers": workers}
    given["annotations"] = None if annotations is None else str(annotations.absolute())
    print(prepare(params.parse({"data": given}, "the command").data, shard=parse_part(shard)))


def parse_part(text: str) -> tuple[int, int]:
    """Part and number of parts: 0/8 is (0, 8).

    Raises:
        InputError: it is not written like that.
    """
    first, slash, second = text.partition("/")
    if not (slash and first.isdigit() and second.isdigit()):
        raise InputError(f"The part {text!r} is not possible; write i/n, such as 0/8.")
    return int(first), int(second)


# ---------------------------------------------------------------------------------------------- one video


def extract(video: Path, folder: Path, scratch: Path, cfg: params.Data) -> Row:
    """Write the chosen frames of a video to `folder`, which appears when all of them are there.

    Args:
        video: the file.
        folder: of the frames; must not exist.
        scratch: folder on the same disk for what is unfinished.
        cfg: num_frames, fps and short_side are read.

    Raises:
        InputError: the video cannot be used.
        OSError: the disk is full.
    """
    frames = decode.keep_frames(video, cfg.num_frames, cfg.fps, cfg.short_side, encode)
    part = scratch / uuid.uuid4().hex
    try:
        part.mkdir(parents=True)
        for number, data in enumerate(frames):
            (part / f"{number:05d}.jpg").write_bytes(data)
        row = finished_row(part)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.rename(part, folder)
    except OSError:
        if not folder.is_dir():  # else another process was quicker
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return row


def encode(image: np.ndarray) -> bytes:
    """uint8 (H, W, 3) RGB -> JPEG bytes, chroma at half resolution as JPEGs of the field are."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def finished_row(folder: Path) -> Row:
    """The row of a finished folder, from its listing and the header of one frame.

    Raises:
        InputError: it is empty or holds an empty file, as after a power cut.
    """
    with os.scandir(folder) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
    remedy = f"remove {folder}, which `tcore prepare` wrote, and run it again: it makes that video anew"
    if not sizes or not all(sizes.values()):
        raise InputError(f"{folder} holds an empty file or none; {remedy}.")
    return Row(len(sizes), *images.size_of(folder / "00000.jpg", remedy), sum(sizes.values()), True)


def examine(path: Path, layout: str, short_side: int) -> Row:
    """The row of a folder of frames or of an image that stays where it is.

    Raises:
        InputError: it cannot be used.
    """
    folder, names = (path.parent, [path.name]) if layout == "images" else (path, images.frame_names(path))
    sizes = {images.size_of(folder / name) for name in names}
    if len(sizes) > 1:
        shown = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:3])
        raise InputError(f"{path} holds frames of different sizes ({shown}); give each size a folder of its own.")
    numbered = names == [f"{j:05d}.jpg" for j in range(len(names))]
    size = sum((folder / name).stat().st_size for name in names)
    return Row(len(names), *images.reduced_size(*sizes.pop(), short_side), size, numbered)


# ---------------------------------------------------------------------------------------------- all of them


Task = tuple[Item, Callable[..., Row], tuple[Any, ...]]


def _run(tasks: Iterable[Task], total: int, workers: int, progress: bool) -> Iterator[tuple[Item, Row | str]]:
    """Work through the tasks in processes; yields each item with its row, or with the reason why it has none.

    A decoder that dies or hangs costs the file it was given. A few tasks per worker are under way at a time.
    """
    pending: dict[Future[Row], Item] = {}
    bad = 0
    # Forking a process that has threads (Jupyter, torch) may deadlock.
    pool = ProcessPool(max_workers=workers, context=multiprocessing.get_context("spawn"))
    bar = tqdm(total=total, unit="clip", desc="prepare", file=sys.stdout, disable=not progress or not total)
    try:
        for task in itertools.chain(tasks, [None]):
            while pending and (task is None or len(pending) >= 4 * workers):
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    item = pending.pop(future)
                    result = _result(future, item.path)
                    bad += isinstance(result, str)
                    bar.set_postfix(bad=bad, refresh=False)
                    bar.update()
                    yield item, result
            if task is not None:
                item, function, arguments = task
                pending[pool.schedule(function, args=arguments, timeout=_patience(item.path))] = item
        pool.close()
    finally:
        bar.close()
        pool.stop()
        pool.join()


def _result(future: "Future[Row]", path: Path) -> Row | str:
    try:
        return future.result()
    except InputError as error:
        return str(error)
    except ProcessExpired as error:
        return f"{path} cannot be read (the decoding process died with code {error.exitcode}); {decode.REMEDY}."
    except TimeoutError:
        return f"{path} cannot be read (it took longer than {_patience(path):.0f} s); {decode.REMEDY}."


def _patience(path: Path) -> float:
    return PATIENCE_S + (path.stat().st_size / 200_000 if path.exists() else 0)


def worker_count(cfg: params.Data) -> int:
    """Processes that decode: as set, else one per core, shared with the other ranks on this machine."""
    return cfg.workers or max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """One process for each shard."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout as error:
        raise InputError(f"Another process is preparing this shard ({lock}); wait for it.") from error


def _remove_unfinished(scratch: Path) -> None:
    """Remove what a killed call left; renamed first, so that a worker that outlives it cannot finish half a folder."""
    if scratch.exists():
        os.rename(scratch, scratch.with_name(f"{scratch.name}-{uuid.uuid4().hex}"))
    for old in scratch.parent.glob(f"{scratch.name}-*"):
        shutil.rmtree(old, ignore_errors=True)


def _recipe(cfg: params.Data) -> dict[str, Any]:
    """What the frames of videos depend on."""
    return {name: getattr(cfg, name) for name in ("num_frames", "fps", "short_side")} | {"layout": "videos"}


def _check_recipe(cfg: params.Data) -> None:
    """Frames made with other settings, or by somebody else, are never mixed with ours."""
    known, frames = recipe_file(cfg), frames_folder(cfg)
    if not known.exists():
        if frames.is_dir() and any(frames.iterdir()):
            raise InputError(
                f"{frames} holds frames that `tcore prepare` did not make; choose another data.root, or index them where "
                "they lie with data.layout: frames."
            )
        write_json(known, _recipe(cfg))
    earlier = read_json(known, "choose another data.root")
    for key, value in _recipe(cfg).items():
        before = earlier.get(key) if isinstance(earlier, dict) else None
        if before != value:
            raise InputError(
                f"{frames} was prepared with data.{key} = {before!r}, not {value!r}; choose another data.root, or that value."
            )


def _finished(frames: Path, damaged: Path, split: str) -> dict[str, Row]:
    """Rows of every finished folder, whichever shard or call made it; the `damaged` ones are listed in that file."""
    rows: dict[str, Row] = {}
    bad: list[tuple[str, ...]] = []
    for group in sorted(frames.iterdir()) if frames.is_dir() else ():
        for folder in sorted(group.iterdir()) if group.is_dir() else ():
            try:
                rows[f"{group.name}/{folder.name}"] = finished_row(folder)
            except (InputError, NotADirectoryError) as error:
                bad.append((split, group.name, str(folder), str(error)))
    _write_csv(damaged, bad)
    return rows


def _bad_files(root: Path, split: str, found: Source, rows: dict[str, Row]) -> list[tuple[str, ...]]:
    """What the shards of all splits noted, without what is finished or gone by now."""
    unfinished = {str(item.path) for item in found.items if item.target not in rows}
    bad: dict[str, tuple[str, ...]] = {}
    for path in sorted(root.glob(".prepare-*/bad-*.csv"), key=lambda path: path.stat().st_mtime):
        for line in _read_csv(path):
            if len(line) == 4 and (line[0] != split or line[2] in unfinished or path.stem == "bad-folders"):
                bad[line[2]] = tuple(line)
    return sorted(bad.values())


def _index(cfg: params.Data, found: Source, rows: dict[str, Row]) -> FrameIndex:
    targets = sorted(rows)
    class_of = [target.split("/")[0] for target in targets]
    class_names = found.class_names + sorted(set(class_of) - set(found.class_names))
    number = {name: k for k, name in enumerate(class_names)}
    num_frames, widths, heights, sizes, numbered = map(
        np.array, zip(*(rows[target] for target in targets), strict=True)
    )
    extracted = found.layout == "videos"
    paths = {item.target: os.path.relpath(item.path, found.root) for item in found.items}
    return FrameIndex(
        root=frames_folder(cfg) if extracted else found.root,
        paths=np.array([t if extracted else paths[t] for t in targets], dtype=np.dtypes.StringDType()),
        class_ids=np.array([number[name] for name in class_of]),
        class_names=class_names,
        num_frames=num_frames,
        widths=widths,
        heights=heights,
        bytes=sizes,
        numbered=numbered,
        kind="images" if found.layout == "images" else "frames",
        short_side=cfg.short_side,
        settings=_recipe(cfg) if extracted else {"layout": found.layout, "source": str(found.root.absolute())},
    )


def _read_csv(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8-sig", newline="", errors="replace") as stream:
        return list(csv.reader(stream))


def _write_csv(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream,
    ):
        csv.writer(stream).writerows(rows)
