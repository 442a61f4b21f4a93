"""Preparing what lies on disk for training: videos to folders of frames, and one index over everything.

A finished video folder appears under its name in one step (a rename): that it exists means that it is finished. So a
preparation may be killed at any moment, shared among machines (`--shard i/n`) and started again. Folders of frames and
single images are indexed where they lie.
"""

import io
import multiprocessing
import os
import re
import shutil
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pebble import ProcessExpired, ProcessPool
from PIL import Image
from tqdm import tqdm

from tcore_lib import params
from tcore_lib.data import decode, images
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.sources import Layout, find
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, read_json, reading, writable, write_json
from tcore_lib.machine import cores

PATIENCE_S = 300  # that a worker may take for a video, and a second more for every 200 kB of it
Row = tuple[int, int, int]  # what the index says of one video: frames, width, height
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


def index_path(cfg: params.Data) -> Path:
    """Where `prepare` writes the index of a split."""
    return params.resolve(cfg.root) / f"index-{cfg.split}.parquet"


def prepare(cfg: params.Data, *, source: Path | None = None, shard: str = "0/1", progress: bool = True) -> Prepared:
    """Prepare `cfg.source` (or `source`), or continue doing so; of n shards the part i, shard = "i/n".

    What is going to be used is printed before anything is written. Written under `<root>`:
    `frames/<split>/<class>/<video>/00000.jpg ...` (of videos), `index-<split>.parquet`, `bad_files-<split>.csv` (what
    cannot be used, with the reason), `left_out-<split>.csv` (what is no video, with the reason) and `.prepare-<split>/`.

    Raises:
        InputError: nothing usable in the source; `root` holds frames that were made otherwise; the disk is full (what is
            finished is kept).
    """
    numbers = re.fullmatch(r"(\d+)/(\d+)", shard)
    part, parts = map(int, numbers.groups()) if numbers else (0, 0)
    if part >= parts:
        raise InputError(f"--shard {shard!r} is not possible; write i/n with i from 0 to n - 1, such as 0/8.")
    found = find(cfg, source)
    are_videos = found.layout == "videos"
    if parts > 1 and not are_videos:
        raise InputError(f"Folders of {found.layout} are indexed by one process; --shard is for videos.")
    if progress:
        print(found.summary(), flush=True)
    root, mine = params.resolve(cfg.root), list(found.items.items())[part::parts]
    name = cfg.split if parts == 1 else f"{cfg.split}-{part}-of-{parts}"
    state, frames = root / f".prepare-{cfg.split}", root / "frames" / cfg.split
    scratch, bad_files = state / f"unfinished-{name}", root / f"bad_files-{name}.csv"
    with writable(root):
        if are_videos:
            _check_recipe(cfg, state / "settings.json", frames)
            todo = [(target, path) for target, path in mine if not (frames / target).is_dir()]
            calls: dict[str, Call] = {target: (extract, path, frames / target, scratch, cfg) for target, path in todo}
        else:
            calls = {target: (examine, path, found.layout, cfg.short_side) for target, path in mine}
        rows, bad = _run(calls, cfg.workers or cores(), progress)
        done = len(rows)
        if are_videos:
            shutil.rmtree(scratch, ignore_errors=True)
            rows = {}
            for folder in frames.glob("*/*/"):  # whichever shard or call made them
                target = f"{folder.parent.name}/{folder.name}"
                try:
                    rows[target] = finished_row(folder)
                except InputError as error:
                    bad[target] = str(error)
        lines = sorted((str(found.items.get(target, frames / target)), reason) for target, reason in bad.items())
        _write_csv(bad_files, lines)
        _write_csv(root / f"left_out-{cfg.split}.csv", found.left_out)
        if not rows:
            reason = lines[0][1] if lines else ""
            raise InputError(f"None of the files in {found.root} can be used. {reason} See {bad_files}.")
        targets = sorted(rows)
        paths = targets if are_videos else [os.path.relpath(found.items[target], found.root) for target in targets]
        num_frames, widths, heights = np.array([rows[target] for target in targets]).T
        where, kind = frames if are_videos else found.root, found.layout
        FrameIndex(where, np.array(paths), num_frames, widths, heights, kind, cfg.short_side).save(index_path(cfg))
    complete = found.items.keys() <= rows.keys() | bad.keys()
    return Prepared(index_path(cfg), bad_files, len(rows), done, len(mine) - len(calls), len(bad), complete)


def prepare_command(
    source: Path,
    root: Path,
    /,
    *,
    layout: Layout = "auto",
    annotations: Path | None = None,
    frames: int = 20,
    short_side: int = 256,
    workers: int | None = None,
    shard: str = "0/1",
) -> None:
    """Prepare a folder of videos, of frame folders or of images for training. Interrupted, it continues when run again.

    Args:
        source: folder that holds them: <class>/<video>.mp4, <class>/<video>/<frame>.jpg, or any folder of videos.
        root: folder for the frames and the index; videos are not changed.
        layout: what the folder holds, where that cannot be guessed.
        annotations: official Kinetics CSV, from which the classes are taken.
        frames: frames kept of each video, evenly spread.
        short_side: short side of the kept frames in pixels; smaller videos stay as they are.
        workers: processes; default: one per core.
        shard: this call's part, such as 0/8, where several machines share the work.
    """
    data: dict[str, Any] = {"source": str(source.absolute()), "root": str(root.absolute()), "num_frames": frames}
    data |= {"layout": layout, "short_side": short_side, "workers": workers}
    data["annotations"] = None if annotations is None else str(annotations.absolute())
    done = prepare(params.parse({"data": data}, "the command").data, shard=shard)
    print(f"{done.videos} videos in {done.index} ({done.done} prepared now, {done.skipped} before); ", end="")
    print(f"{done.bad} bad files in {done.bad_files}", end="")
    print("" if done.complete else "; when all shards have ended, run it once without --shard")


def extract(video: Path, folder: Path, scratch: Path, cfg: params.Data) -> Row:
    """Write the chosen frames of a video to `folder`, which appears when all of them are there; until then to `scratch`.

    InputError: the video cannot be used. OSError: the disk is full.
    """
    frames = decode.keep_frames(video, cfg.num_frames, cfg.short_side, encode)
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
    Image.fromarray(image).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def finished_row(folder: Path) -> Row:
    """The row of a finished folder. InputError: it is empty or holds an empty file, as after a power cut."""
    with reading(folder, f"remove {folder}, which `tcore prepare` wrote, and run it again: it makes that video anew"):
        sizes = [entry.stat().st_size for entry in os.scandir(folder)]
        if not sizes or not all(sizes):
            raise ValueError("it holds an empty file or none")
        with Image.open(folder / "00000.jpg") as image:
            return len(sizes), *image.size


def examine(path: Path, layout: Layout, short_side: int) -> Row:
    """The row of a folder of frames or of an image that stays where it is. InputError: it cannot be used."""
    files = [path] if layout == "images" else [path / name for name in images.frame_names(path)]
    return len(files), *images.reduced_size(*images.common_size(path, map(images.read_rgb, files)), short_side)


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
    recipe = {"num_frames": cfg.num_frames, "short_side": cfg.short_side}
    if not known.exists() and not (frames.is_dir() and any(frames.iterdir())):
        write_json(known, recipe)
    earlier = read_json(known) if known.exists() else {}
    if not recipe.items() <= earlier.items() or earlier.get("fps"):  # a number per second: an earlier version could
        raise InputError(
            f"{frames} holds frames made with {earlier or 'another tool'}, not with {recipe}; choose another data.root, or "
            "index them where they lie with data.layout: frames."
        )


def _write_csv(path: Path, lines: list[tuple[str, str]]) -> None:
    import pandas as pd  # late: the workers, which import this module, do without

    with atomic_path(path) as temporary:
        pd.DataFrame(lines, columns=["file", "reason"]).to_csv(temporary, index=False, errors="backslashreplace")
