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
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
BAD_COLUMNS = ("split", "class", "file", "reason")  # of bad_files.csv
Line = tuple[str, ...]  # of a CSV
Call = tuple[Any, ...]  # (function that gives a Row, path, further arguments)


class Row(NamedTuple):
    """What the index says of one video; see `FrameIndex`."""

    num_frames: int
    widths: int
    heights: int
    bytes: int


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
    cfg: params.Data, *, source: Path | None = None, shard: tuple[int, int] = (0, 1), progress: bool = True
) -> Prepared:
    """Prepare `cfg.source`, or continue doing so.

    What is going to be used is printed before anything is written. Written under `<root>`:
    `frames/<split>/<class>/<video>/00000.jpg ...` (of videos), `index-<split>.parquet`, `bad_files.csv` (what cannot be
    used, with the reason), `left_out.csv` (what is no video, with the reason) and `.prepare-<split>/`.

    Args:
        cfg: the section `data` of a parameter file.
        source: used instead of `cfg.source`, e.g. the folder of synthetic videos.
        shard: (i, n): this process does part i of n.
        progress: print what was found, and show a progress bar.

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
    root, mine, name = params.resolve(cfg.root), list(found.items)[part::parts], f"{part}-of-{parts}"
    state, frames = root / f".prepare-{cfg.split}", root / "frames" / cfg.split
    scratch = state / f"unfinished-{name}"
    with writable(root):
        state.mkdir(parents=True, exist_ok=True)
        calls: dict[str, Call]
        if found.layout == "videos":
            _check_recipe(_recipe(cfg), state / "settings.json", frames)
            todo = [target for target in mine if not (frames / target).is_dir()]
            calls = {target: (extract, found.items[target], frames / target, scratch, cfg) for target in todo}
        else:
            calls = {target: (examine, found.items[target], found.layout, cfg.short_side) for target in mine}
        rows, reasons = _run(calls, cfg.workers or cores(), progress)
        done = len(rows)
        shutil.rmtree(scratch, ignore_errors=True)

        refused = [(cfg.split, target.split("/")[0], str(found.items[target]), why) for target, why in reasons.items()]
        _write_csv(state / f"bad-{name}.csv", refused)
        damaged: list[Line] = []
        if found.layout == "videos":  # whichever shard or call made them
            rows, damaged = _finished(frames, cfg.split)
        waiting = {str(path) for target, path in found.items.items() if target not in rows}
        noted = [line for path in sorted(state.glob("bad-*.csv")) for line in read_bad(path) if line[2] in waiting]
        bad = {line[2]: line for line in noted + damaged}
        other_splits = [line for line in read_bad(root / "bad_files.csv") if line[0] != cfg.split]
        _write_csv(root / "bad_files.csv", [BAD_COLUMNS, *sorted([*other_splits, *bad.values()])])
        _write_csv(root / "left_out.csv", [("what", "reason"), *found.left_out])
        if not rows:
            why = "".join(line[3] for line in list(bad.values())[:1])
            raise InputError(f"None of the files in {found.root} can be used. {why} See {root / 'bad_files.csv'}.")
        _index(cfg, found, rows, frames).save(index_path(cfg))
    return Prepared(
        index=index_path(cfg),
        videos=len(rows),
        done=done,
        skipped=len(mine) - len(calls),
        bad=len(bad),
        left_out=len(found.left_out),
        complete=waiting <= set(bad),
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
    with reading(folder, f"remove {folder}, which `tcore prepare` wrote, and run it again: it makes that video anew"):
        sizes = [entry.stat().st_size for entry in os.scandir(folder)]
        if not sizes or not all(sizes):
            raise ValueError("it holds an empty file or none")
        with Image.open(folder / "00000.jpg") as image:
            return Row(len(sizes), *image.size, sum(sizes))


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
    return Row(len(files), *images.reduced_size(*sizes.pop(), short_side), size)


# ---------------------------------------------------------------------------------------------- all of them


def _run(calls: dict[str, Call], workers: int, progress: bool) -> tuple[dict[str, Row], dict[str, str]]:
    """Make calls in processes: their rows, and why the others have none.

    A decoder that dies or hangs costs the file it was given.
    """
    rows: dict[str, Row] = {}
    reasons: dict[str, str] = {}
    # Forking a process that has threads (Jupyter, torch) may deadlock.
    pool = ProcessPool(max_workers=workers, context=multiprocessing.get_context("spawn"))
    try:
        futures = {
            target: pool.schedule(function, args=(path, *others), timeout=_patience(path))
            for target, (function, path, *others) in calls.items()
        }
        bar = tqdm(futures.items(), unit="clip", desc="prepare", file=sys.stdout, disable=not progress or not futures)
        for target, future in bar:
            path = calls[target][1]
            try:
                rows[target] = future.result()
            except InputError as error:
                reasons[target] = str(error)
            except ProcessExpired as error:
                died = f"the decoding process died with code {error.exitcode}"
                reasons[target] = f"{path} cannot be read ({died}); {decode.REMEDY}."
            except TimeoutError:
                slow = f"it took longer than {_patience(path):.0f} s"
                reasons[target] = f"{path} cannot be read ({slow}); {decode.REMEDY}."
    finally:
        pool.stop()
        pool.join()
    return rows, reasons


def _patience(path: Path) -> float | None:
    """Seconds for a file; a folder of pictures, of which none lets a decoder hang, takes what it takes."""
    return PATIENCE_S + path.stat().st_size / 200_000 if path.is_file() else None


def _recipe(cfg: params.Data) -> dict[str, Any]:
    """What the frames of videos depend on."""
    return {"num_frames": cfg.num_frames, "fps": cfg.fps, "short_side": cfg.short_side, "layout": "videos"}


def _check_recipe(recipe: dict[str, Any], known: Path, frames: Path) -> None:
    """Frames made with other settings, or by somebody else, are never mixed with ours."""
    if not known.exists() and not (frames.is_dir() and any(frames.iterdir())):
        write_json(known, recipe)
    earlier = read_json(known) if known.exists() else "another tool"
    if earlier != recipe:
        raise InputError(
            f"{frames} holds frames made with {earlier}, not with {recipe}; choose another data.root, or index them where "
            "they lie with data.layout: frames."
        )


def _finished(frames: Path, split: str) -> tuple[dict[str, Row], list[Line]]:
    """Rows of every finished folder, whichever shard or call made it; and lines for bad_files.csv of the damaged ones."""
    rows: dict[str, Row] = {}
    damaged: list[Line] = []
    for folder in frames.glob("*/*/"):
        try:
            rows[f"{folder.parent.name}/{folder.name}"] = finished_row(folder)
        except InputError as error:
            damaged.append((split, folder.parent.name, str(folder), str(error)))
    return rows, damaged


def _index(cfg: params.Data, found: Source, rows: dict[str, Row], frames: Path) -> FrameIndex:
    targets = sorted(rows)
    columns: dict[str, Any] = dict(
        zip(Row._fields, zip(*(rows[target] for target in targets), strict=True), strict=True)
    )
    class_names, class_ids = np.unique([target.split("/")[0] for target in targets], return_inverse=True)
    root, paths, settings = frames, targets, _recipe(cfg)
    if found.layout != "videos":
        root, paths = found.root, [os.path.relpath(found.items[target], found.root) for target in targets]
        settings = {"layout": found.layout, "source": str(root.absolute())}
    return FrameIndex(
        root=root,
        paths=np.array(paths),
        class_ids=class_ids,
        class_names=class_names.tolist(),
        kind="images" if found.layout == "images" else "frames",
        short_side=cfg.short_side,
        settings=settings,
        **columns,
    )


def read_bad(path: Path) -> list[Line]:
    """The lines of a file like bad_files.csv, without their header; none where it is missing."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as stream:
        lines = [tuple(line) for line in csv.reader(stream)]
    return [line for line in lines if len(line) == len(BAD_COLUMNS) and line != BAD_COLUMNS]


def _write_csv(path: Path, lines: Iterable[Line]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(lines)
    write_text(path, stream.getvalue().encode(errors="backslashreplace").decode())
