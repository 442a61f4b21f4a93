"""Preparing what lies on disk for training: videos to folders of frames, and one index over everything.

A finished video folder appears under its name in one step (a rename): that it exists means that it is finished. So a
preparation may be killed at any moment, shared among machines (`--shard i/n`) and started again. Folders of frames and
single images are indexed where they lie.
"""

import csv
import io
import multiprocessing
import os
import re
import shutil
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pebble import ProcessExpired, ProcessPool
from PIL import Image
from tqdm import tqdm

from tcore_lib import params
from tcore_lib.data import decode, images
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.sources import Layout, Source, find
from tcore_lib.errors import InputError
from tcore_lib.files import read_json, reading, writable, write_json, write_text
from tcore_lib.machine import cores

JPEG_QUALITY = 95
PATIENCE_S = 300  # that a worker may take for a video, and a second more for every 200 kB of it
Row = tuple[int, int, int, int]  # what the index says of one video: frames, width, height, bytes
Call = tuple[Any, ...]  # (function that gives a Row, path, further arguments)


@dataclass(frozen=True)
class Prepared:
    """What a call of `prepare` did."""

    index: Path  # the index file; it covers what all shards have finished so far
    bad_files: Path  # a CSV: file, reason
    videos: int  # rows of the index
    done: int  # finished by this call
    skipped: int  # finished before
    bad: int  # lines of bad_files
    complete: bool  # everything in the source is in the index or in bad_files

    def __str__(self) -> str:
        """One line for a person."""
        return (
            f"{self.videos} videos in {self.index} ({self.done} prepared now, {self.skipped} before); {self.bad} bad files "
            f"in {self.bad_files}{'' if self.complete else '; when all shards have ended, run it once without --shard'}"
        )


def index_path(cfg: params.Data) -> Path:
    """Where `prepare` writes the index of a split."""
    return params.resolve(cfg.root) / f"index-{cfg.split}.parquet"


def prepare(
    cfg: params.Data, *, source: Path | None = None, shard: tuple[int, int] = (0, 1), progress: bool = True
) -> Prepared:
    """Prepare `cfg.source` (or `source`), or continue doing so; of n shards the part i, shard = (i, n).

    What is going to be used is printed before anything is written. Written under `<root>`:
    `frames/<split>/<class>/<video>/00000.jpg ...` (of videos), `index-<split>.parquet`, `bad_files-<split>.csv` (what
    cannot be used, with the reason), `left_out-<split>.csv` (what is no video, with the reason) and `.prepare-<split>/`.

    Raises:
        InputError: nothing usable in the source; `root` holds frames that were made otherwise; the disk is full (what is
            finished is kept).
    """
    part, parts = shard
    if not 0 <= part < parts:
        raise InputError(f"shard = {part}/{parts} is not possible; shards of n are numbered 0 to n - 1.")
    found = find(cfg, source)
    if found.layout != "videos" and parts > 1:
        raise InputError(f"Folders of {found.layout} are indexed by one process; --shard is for videos.")
    if progress:
        print(found.summary(), flush=True)
    root, mine = params.resolve(cfg.root), list(found.items)[part::parts]
    name = cfg.split if parts == 1 else f"{cfg.split}-{part}-of-{parts}"
    state, frames = root / f".prepare-{cfg.split}", root / "frames" / cfg.split
    bad_files = root / f"bad_files-{name}.csv"
    with writable(root):
        calls: dict[str, Call]
        if found.layout == "videos":
            _check_recipe(cfg, state / "settings.json", frames)
            scratch = state / f"unfinished-{name}"
            todo = [target for target in mine if not (frames / target).is_dir()]
            calls = {target: (extract, found.items[target], frames / target, scratch, cfg) for target in todo}
        else:
            calls = {target: (examine, found.items[target], found.layout, cfg.short_side) for target in mine}
        rows, bad = _run(calls, cfg.workers or cores(), progress)
        done = len(rows)
        if found.layout == "videos":
            shutil.rmtree(scratch, ignore_errors=True)
            rows, damaged = _finished(frames)  # whichever shard or call made them
            bad |= damaged
        lines = sorted((str(found.items.get(target, frames / target)), reason) for target, reason in bad.items())
        _write_csv(bad_files, lines)
        _write_csv(root / f"left_out-{cfg.split}.csv", found.left_out)
        if not rows:
            reason = lines[0][1] if lines else ""
            raise InputError(f"None of the files in {found.root} can be used. {reason} See {bad_files}.")
        _index(cfg, found, rows, frames).save(index_path(cfg))
    return Prepared(
        index=index_path(cfg),
        bad_files=bad_files,
        videos=len(rows),
        done=done,
        skipped=len(mine) - len(calls),
        bad=len(bad),
        complete=found.items.keys() <= rows.keys() | bad.keys(),
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
    numbers = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not numbers:
        raise InputError(f"--shard {shard!r} is not possible; write i/n, such as 0/8.")
    data: dict[str, Any] = {"source": str(source.absolute()), "root": str(root.absolute()), "num_frames": frames}
    data |= {"split": split, "layout": layout, "fps": fps, "short_side": short_side, "workers": workers}
    data["annotations"] = None if annotations is None else str(annotations.absolute())
    print(prepare(params.parse({"data": data}, "the command").data, shard=(int(numbers[1]), int(numbers[2]))))


# ---------------------------------------------------------------------------------------------- one video


def extract(video: Path, folder: Path, scratch: Path, cfg: params.Data) -> Row:
    """Write the chosen frames of a video to `folder`, which appears when all of them are there.

    What is unfinished lies in `scratch`, on the same disk.

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
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.rename(part, folder)
    except OSError:
        if not folder.is_dir():  # else another process was quicker
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return finished_row(folder)


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
    with reading(folder, f"remove {folder}, which `tcore prepare` wrote, and run it again: it makes that video anew"):
        sizes = [entry.stat().st_size for entry in os.scandir(folder)]
        if not sizes or not all(sizes):
            raise ValueError("it holds an empty file or none")
        with Image.open(folder / "00000.jpg") as image:
            return len(sizes), *image.size, sum(sizes)


def examine(path: Path, layout: Layout, short_side: int) -> Row:
    """The row of a folder of frames or of an image that stays where it is; each picture is decoded once.

    Raises:
        InputError: it cannot be used.
    """
    files = [path] if layout == "images" else [path / name for name in images.frame_names(path)]
    sizes = {(image.shape[1], image.shape[0]) for image in map(images.read_rgb, files)}
    if len(sizes) > 1:
        shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
        raise InputError(f"{path} holds frames of different sizes ({shown}); give each size a folder of its own.")
    size = sum(file.stat().st_size for file in files)
    return len(files), *images.reduced_size(*sizes.pop(), short_side), size


# ---------------------------------------------------------------------------------------------- all of them


def _run(calls: dict[str, Call], workers: int, progress: bool) -> tuple[dict[str, Row], dict[str, str]]:
    """Make calls in processes: their rows, and why the others have none. A decoder that dies or hangs costs its file."""
    rows: dict[str, Row] = {}
    bad: dict[str, str] = {}
    # Forking a process that has threads (Jupyter, torch) may deadlock.
    pool = ProcessPool(max_workers=workers, context=multiprocessing.get_context("spawn"))
    try:
        futures = {}
        for target, (function, path, *others) in calls.items():
            # a folder of pictures, of which none lets a decoder hang, takes what it takes
            patience = PATIENCE_S + path.stat().st_size / 200_000 if path.is_file() else None
            futures[target] = pool.schedule(function, args=(path, *others), timeout=patience)
        bar = tqdm(futures.items(), unit="clip", desc="prepare", file=sys.stdout, disable=not progress or not futures)
        for target, future in bar:
            try:
                rows[target] = future.result()
            except InputError as error:
                bad[target] = str(error)
            except (ProcessExpired, TimeoutError) as error:
                bad[target] = f"{calls[target][1]} ended its decoder, or kept it too long ({error}); {decode.REMEDY}."
    finally:
        pool.stop()
        pool.join()
    return rows, bad


def _check_recipe(cfg: params.Data, known: Path, frames: Path) -> None:
    """Frames made with other settings, or by somebody else, are never mixed with ours."""
    recipe = {"num_frames": cfg.num_frames, "fps": cfg.fps, "short_side": cfg.short_side, "layout": "videos"}
    if not known.exists() and not (frames.is_dir() and any(frames.iterdir())):
        write_json(known, recipe)
    earlier = read_json(known) if known.exists() else "another tool"
    if earlier != recipe:
        raise InputError(
            f"{frames} holds frames made with {earlier}, not with {recipe}; choose another data.root, or index them where "
            "they lie with data.layout: frames."
        )


def _finished(frames: Path) -> tuple[dict[str, Row], dict[str, str]]:
    """Rows of the finished folders; and what is wrong with the damaged ones."""
    rows: dict[str, Row] = {}
    damaged: dict[str, str] = {}
    for folder in frames.glob("*/*/"):
        target = f"{folder.parent.name}/{folder.name}"
        try:
            rows[target] = finished_row(folder)
        except InputError as error:
            damaged[target] = str(error)
    return rows, damaged


def _index(cfg: params.Data, found: Source, rows: dict[str, Row], frames: Path) -> FrameIndex:
    targets = sorted(rows)
    num_frames, widths, heights, sizes = np.array([rows[target] for target in targets]).T
    ours = found.layout == "videos"
    paths = targets if ours else [os.path.relpath(found.items[target], found.root) for target in targets]
    return FrameIndex(
        root=frames if ours else found.root,
        paths=np.array(paths),
        num_frames=num_frames,
        widths=widths,
        heights=heights,
        bytes=sizes,
        kind=found.layout,
        short_side=cfg.short_side,
    )


def _write_csv(path: Path, lines: list[tuple[str, str]]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([("file", "reason"), *lines])
    write_text(path, stream.getvalue().encode(errors="backslashreplace").decode())
