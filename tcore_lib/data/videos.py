"""Preparing what lies on disk for training: videos to folders of frames, and one index over everything.

A finished video folder appears under its name in one step (a rename): that it exists means that it is finished. So a
preparation may be killed at any moment, shared among machines (`--shard i/n`) and started again. Folders of frames and
single images are indexed where they lie.
"""

import csv
import io
import multiprocessing
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future
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
from tcore_lib.data.sources import Item, Source, find
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, read_json, writable, write_json
from tcore_lib.machine import cores

JPEG_QUALITY = 95
PATIENCE_S = 300  # that a worker may take for a file, and a second more for every 200 kB of it
BAD_COLUMNS = ("split", "class", "file", "reason")  # of bad_files.csv
Line = tuple[str, ...]  # of a CSV


class Row(NamedTuple):
    """What the index says of one video; see `FrameIndex`."""

    num_frames: int
    widths: int
    heights: int
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
    part, parts = shard or (int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    if not 0 <= part < parts:
        raise InputError(f"shard = {part}/{parts} is not possible; shards of n are numbered 0 to n - 1.")
    found = find(cfg, Path(source) if source is not None else None)
    if found.layout != "videos" and parts > 1:
        raise InputError(f"Folders of {found.layout} are indexed by one process; --shard is for videos.")
    if progress:
        print(found.summary(), flush=True)
    root = params.resolve(cfg.root)
    state, frames, name = root / f".prepare-{cfg.split}", root / "frames" / cfg.split, f"{part}-of-{parts}"
    mine = found.items[part::parts]
    with writable(root):
        state.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(state / f"{name}.lock", timeout=0):
                if found.layout == "videos":
                    _check_recipe(cfg, state / "settings.json", frames)
                    results = _extract_all(mine, frames, state / f"unfinished-{name}", cfg, progress)
                else:
                    arguments = {item: (item.path, found.layout, cfg.short_side) for item in mine}
                    results = _run(examine, arguments, worker_count(cfg), progress)
                reasons = {item: result for item, result in results.items() if isinstance(result, str)}
                lines = [(cfg.split, item.class_name, str(item.path), reason) for item, reason in reasons.items()]
                _write_csv(state / f"bad-{name}.csv", lines)
        except Timeout as error:
            raise InputError(f"Another process is preparing this shard ({state / name}); wait for it.") from error
        rows = {item.target: result for item, result in results.items() if isinstance(result, Row)}
        bad: list[Line] = []
        if found.layout == "videos":
            rows, bad = _finished(frames, cfg.split)
        waiting = {str(item.path) for item in found.items if item.target not in rows}
        noted = [line for path in sorted(state.glob("bad-*.csv")) for line in read_bad(path) if line[2] in waiting]
        bad = sorted({line[2]: line for line in noted + bad}.values())
        other_splits = [line for line in read_bad(root / "bad_files.csv") if line[0] != cfg.split]
        _write_csv(root / "bad_files.csv", [BAD_COLUMNS, *sorted(other_splits + bad)])
        _write_csv(root / "left_out.csv", [("what", "reason"), *found.left_out])
        if not rows:
            first = f"; {bad[0][3]}" if bad else ""
            raise InputError(f"None of the files in {found.root} can be used{first} See {root / 'bad_files.csv'}.")
        _index(cfg, found, rows, frames).save(index_path(cfg))
    return Prepared(
        index=index_path(cfg),
        videos=len(rows),
        done=len(results) - len(reasons),
        skipped=len(mine) - len(results),
        bad=len(bad),
        left_out=len(found.left_out),
        complete=waiting <= {line[2] for line in bad},
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
        sizes = [entry.stat().st_size for entry in entries]
    remedy = f"remove {folder}, which `tcore prepare` wrote, and run it again: it makes that video anew"
    if not sizes or not all(sizes):
        raise InputError(f"{folder} holds an empty file or none; {remedy}.")
    return Row(len(sizes), *images.size_of(folder / "00000.jpg", remedy), sum(sizes), True)


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


def worker_count(cfg: params.Data) -> int:
    """Processes that decode: as set, else one per core, shared with the other ranks on this machine."""
    return cfg.workers or max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _extract_all(
    items: list[Item], frames: Path, scratch: Path, cfg: params.Data, progress: bool
) -> dict[Item, Row | str]:
    """Extract what has no folder yet. Unfinished folders of this call and of one that was killed are removed."""
    todo = [item for item in items if not (frames / item.target).is_dir()]
    arguments = {item: (item.path, frames / item.target, scratch, cfg) for item in todo}
    _remove_unfinished(scratch)
    results = _run(extract, arguments, worker_count(cfg), progress)
    _remove_unfinished(scratch)
    return results


def _remove_unfinished(scratch: Path) -> None:
    """Rename first, so that a worker that outlives its killed call cannot finish half a folder."""
    if scratch.exists():
        os.rename(scratch, scratch.with_name(f"{scratch.name}-{uuid.uuid4().hex}"))
    for old in scratch.parent.glob(f"{scratch.name}-*"):
        shutil.rmtree(old, ignore_errors=True)


def _run(
    function: Callable[..., Row], arguments: dict[Item, tuple[Any, ...]], workers: int, progress: bool
) -> dict[Item, Row | str]:
    """Call the function for each item in processes; its row, or the reason why it has none.

    A decoder that dies or hangs costs the file it was given.
    """
    # Forking a process that has threads (Jupyter, torch) may deadlock.
    pool = ProcessPool(max_workers=workers, context=multiprocessing.get_context("spawn"))
    try:
        futures = {
            item: pool.schedule(function, args=given, timeout=_patience(item.path)) for item, given in arguments.items()
        }
        bar = tqdm(futures.items(), unit="clip", desc="prepare", file=sys.stdout, disable=not progress or not futures)
        return {item: _result(future, item.path) for item, future in bar}
    finally:
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


def _recipe(cfg: params.Data) -> dict[str, Any]:
    """What the frames of videos depend on."""
    return {"num_frames": cfg.num_frames, "fps": cfg.fps, "short_side": cfg.short_side, "layout": "videos"}


def _check_recipe(cfg: params.Data, known: Path, frames: Path) -> None:
    """Frames made with other settings, or by somebody else, are never mixed with ours."""
    if not known.exists():
        if frames.is_dir() and any(frames.iterdir()):
            raise InputError(
                f"{frames} holds frames that `tcore prepare` did not make; choose another data.root, or index them where "
                "they lie with data.layout: frames."
            )
        write_json(known, _recipe(cfg))
    earlier = read_json(known, "choose another data.root")
    for key, value in _recipe(cfg).items():
        if earlier.get(key) != value:
            raise InputError(
                f"{frames} was prepared with data.{key} = {earlier.get(key)!r}, not {value!r}; choose another data.root, "
                "or that value."
            )


def _finished(frames: Path, split: str) -> tuple[dict[str, Row], list[Line]]:
    """Rows of every finished folder, whichever shard or call made it; and lines for bad_files.csv of the damaged ones."""
    rows: dict[str, Row] = {}
    bad: list[Line] = []
    for folder in sorted(frames.glob("*/*/")):
        try:
            rows[f"{folder.parent.name}/{folder.name}"] = finished_row(folder)
        except InputError as error:
            bad.append((split, folder.parent.name, str(folder), str(error)))
    return rows, bad


def _index(cfg: params.Data, found: Source, rows: dict[str, Row], frames: Path) -> FrameIndex:
    targets = sorted(rows)
    class_of = [target.split("/")[0] for target in targets]
    class_names = found.class_names + sorted(set(class_of) - set(found.class_names))
    numbers = {name: number for number, name in enumerate(class_names)}
    columns = dict(
        zip(Row._fields, map(np.array, zip(*(rows[target] for target in targets), strict=True)), strict=True)
    )
    if found.layout == "videos":
        paths, settings = targets, _recipe(cfg)
    else:
        relative = {item.target: os.path.relpath(item.path, found.root) for item in found.items}
        paths = [relative[target] for target in targets]
        settings = {"layout": found.layout, "source": str(found.root.absolute())}
    return FrameIndex(
        root=frames if found.layout == "videos" else found.root,
        paths=np.array(paths, dtype=np.dtypes.StringDType()),
        class_ids=np.array([numbers[name] for name in class_of]),
        class_names=class_names,
        kind="images" if found.layout == "images" else "frames",
        short_side=cfg.short_side,
        settings=settings,
        **columns,
    )


def read_bad(path: Path) -> list[Line]:
    """The lines of a file like bad_files.csv, without their header; none where it is missing."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", errors="replace", newline="") as stream:
        lines = [tuple(line) for line in csv.reader(stream)]
    return [line for line in lines if len(line) == len(BAD_COLUMNS) and line != BAD_COLUMNS]


def _write_csv(path: Path, lines: Iterable[Line]) -> None:
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream,
    ):
        csv.writer(stream).writerows(lines)
