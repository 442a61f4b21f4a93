"""One video, frame folder or image -> one row of the index. This is what a worker process does; it imports little.

A checksum is the BLAKE2b-64 (16 hex digits) of a clip's frame files one after the other, or of the video or image file.
"""

import hashlib
import io
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tcore_lib.data import decode, images


@dataclass(frozen=True)
class Task:
    """What to do with one source.

    Attributes:
        target: `<class>/<name>`, for the one who asked.
        kind: "extract" = video to frames in `folder`; "video" = index a video file; "frames", "image" = index as they
            lie.
        source: the file or folder, or a video's bytes.
        folder: empty or missing folder that "extract" fills.
        num_frames, fps, short_side, jpeg_quality: see `params.Data`.
    """

    target: str
    kind: str
    source: Path | bytes
    folder: Path
    num_frames: int
    fps: float | None
    short_side: int
    jpeg_quality: int


@dataclass(frozen=True)
class Row:
    """One row of the index (`FrameIndex`), and how many bytes of frames were written for it."""

    num_frames: int
    width: int
    height: int
    checksum: str
    bytes: int = 0
    numbered: bool = True
    sequential: bool = False
    timestamps: list[int] | None = None


def task(item: Any, kind: str, folder: Path, settings: Any) -> Task:
    """The task for a `sources.Item` under `params.Data` settings."""
    source = item.data if item.data is not None else item.path
    s = settings
    return Task(item.target, kind, source, folder, s.num_frames, s.fps, s.short_side, s.jpeg_quality)


def work(task: Task) -> Row:
    """Do one task.

    Raises:
        images.BadFile: the source cannot be used.
        OSError: the disk is full, or another fault of the machine.
    """
    if task.kind in ("extract", "video"):
        return _video(task)
    if not isinstance(task.source, Path):
        raise images.BadFile("only videos are read from archives")
    return _folder(task.source, task.short_side) if task.kind == "frames" else _image(task.source, task.short_side)


def encode(image: np.ndarray, quality: int) -> bytes:
    """uint8 (H, W, 3) RGB -> JPEG bytes, chroma at half resolution as JPEGs of the field are."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def _video(task: Task) -> Row:
    with decode.open_video(task.source) as (container, stream):
        try:
            return _keep(task, container, stream, decode.timeline(container, stream))
        except decode.Missed:  # packets that are no frames: the frames themselves have to say where they are
            shutil.rmtree(task.folder, ignore_errors=True)
            return _keep(task, container, stream, decode.decoded_timeline(container, stream))


def _keep(task: Task, container: Any, stream: Any, timeline: decode.Timeline) -> Row:
    """Write the chosen frames (kind "extract"), or decode them only to see that they are there (kind "video")."""
    if task.kind == "extract":
        task.folder.mkdir(parents=True)
    digest = hashlib.blake2b(digest_size=8)
    count = size = width = height = 0
    stamps = timeline.timestamps[decode.choose(timeline, task.num_frames, task.fps)].tolist()
    for image in decode.read_frames(container, stream, stamps, timeline.sequential, task.short_side):
        height, width = image.shape[:2]
        if task.kind == "extract":
            data = encode(image, task.jpeg_quality)
            (task.folder / f"{count:05d}.jpg").write_bytes(data)
            digest.update(data)
            size += len(data)
        count += 1
    if task.kind == "extract":
        return Row(count, width, height, digest.hexdigest(), size)
    return Row(count, width, height, checksum_file(task.source), 0, True, timeline.sequential, stamps)


def _folder(folder: Path, short_side: int) -> Row:
    names = images.frame_names(folder)
    if not names:
        raise images.BadFile("no frames")
    digest = hashlib.blake2b(digest_size=8)
    sizes = set()
    for name in names:
        data = (folder / name).read_bytes()
        digest.update(data)
        sizes.add(check_image(data, name))
    if len(sizes) > 1:
        raise images.BadFile(f"frames of different sizes: {', '.join(f'{w}x{h}' for w, h in sorted(sizes)[:3])}")
    width, height = images.reduced_size(*sizes.pop(), short_side)
    return Row(len(names), width, height, digest.hexdigest(), numbered=images.are_numbered(names))


def _image(path: Path, short_side: int) -> Row:
    data = path.read_bytes()
    width, height = images.reduced_size(*check_image(data, path.name), short_side)
    return Row(1, width, height, hashlib.blake2b(data, digest_size=8).hexdigest())


def check_image(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) of an image file's bytes, with a cheap look at whether it is whole: header and end are there.

    Raises:
        images.BadFile: empty, not an image or cut off.
    """
    if not data:
        raise images.BadFile(f"{name} is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            size, kind = image.size, image.format
    except images.UNREADABLE as error:
        raise images.BadFile(f"{name} is not a readable image") from error
    end = data[-64:]
    if (kind == "JPEG" and b"\xff\xd9" not in end) or (kind == "PNG" and b"IEND" not in end):
        try:  # an unusual end: decode to be sure
            images.read_image(data)
        except images.BadFile as error:
            raise images.BadFile(f"{name} is truncated") from error
    return size


def examine(folder: Path) -> tuple[int, str, list[str]]:
    """One frame folder: (number of frames, checksum, what is wrong with it)."""
    names = images.frame_names(folder)
    if not names:
        return 0, "", ["has no frames"]
    faults: list[str] = []
    sizes: Counter[tuple[int, ...]] = Counter()
    for name in names:
        try:
            sizes[images.read_image(folder / name).shape[1::-1]] += 1
        except images.BadFile as error:
            faults.append(f"{name}: {error}")
    if len(sizes) > 1:
        faults.append(f"frames of different sizes: {', '.join(f'{w}x{h}' for w, h in sizes)}")
    stems = [Path(name).stem for name in names]
    if all(stem.isdecimal() for stem in stems):
        numbers = sorted(int(stem) for stem in stems)
        gaps = sorted(set(range(numbers[0], numbers[-1])) - set(numbers))
        if gaps:
            faults.append(f"{len(gaps)} missing in the numbering, the first is {gaps[0]}")
    return len(names), checksum_frames(folder), faults


def checksum_file(source: Path | bytes) -> str:
    """BLAKE2b-64 of a file's bytes."""
    if isinstance(source, bytes):
        return hashlib.blake2b(source, digest_size=8).hexdigest()
    with open(source, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def checksum_frames(folder: Path) -> str:
    """Checksum of a frame folder: its frame files in the order of their names."""
    digest = hashlib.blake2b(digest_size=8)
    for name in images.frame_names(folder):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def stamp(path: Path) -> list[int]:
    """[size, modification time in ns] of a file; [-1, -1] where it is gone. Tells whether a bad file was replaced."""
    try:
        status = os.stat(path)
    except OSError:
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]
