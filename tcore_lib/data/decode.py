"""Chosen frames of one video file, upright, RGB, reduced; as few of them decoded as the container allows.

A video is first read without decoding (`timeline`); from the times of its frames those to keep are chosen (`choose`),
and only then is it decoded (`read_frames`): seeking over groups of pictures nobody asked for, and inside a group
skipping the frames that no other frame refers to. AVI stores no presentation times, so it is decoded from the start and
frames are counted.
"""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from tcore_lib.data.images import MOST_PIXELS, BadFile, one_line, reduced_size, resize

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".webm", ".mov"})
_TIMED = frozenset({"mov", "mp4", "matroska", "webm"})  # FFmpeg's names of the containers that store presentation times
_EXACT = frozenset({"mov", "mp4"})  # ... and of those whose header counts the frames exactly


class Missed(BadFile):
    """The container lists a frame that decoding does not give (a hidden or empty one, or damage)."""


@dataclass(frozen=True)
class Timeline:
    """The frames of a video as its container lists them, without any being decoded.

    Attributes:
        timestamps: (T,) int64, ascending, in units of `time_base` seconds; for a sequential video 0 ... T - 1.
        time_base: seconds per unit of `timestamps`.
        sequential: True where frames are found by counting, not by time.
    """

    timestamps: np.ndarray
    time_base: float
    sequential: bool

    @property
    def seconds(self) -> float:
        """Length, including the last frame's own duration."""
        span = float(self.timestamps[-1] - self.timestamps[0]) * self.time_base
        return span * len(self.timestamps) / max(len(self.timestamps) - 1, 1)


def choose(timeline: Timeline, num_frames: int, fps: float | None) -> np.ndarray:
    """Positions (N,) int64 of the frames to keep, ascending, no frame twice.

    Without `fps`, `num_frames` frames spread evenly over the clip, the first and last included (all, where it has
    fewer; the middle one, where one is wanted). With `fps`, for k = 0, 1, ... the frame shown k / fps seconds after the
    first.
    """
    total = len(timeline.timestamps)
    if fps is None:
        if num_frames == 1:
            return np.array([(total - 1) // 2])
        return np.round(np.linspace(0, total - 1, min(num_frames, total))).astype(np.int64)
    seconds = (timeline.timestamps - timeline.timestamps[0]) * timeline.time_base
    wanted = np.arange(math.floor(seconds[-1] * fps + 1e-6) + 1) / fps
    return np.unique(np.searchsorted(seconds, wanted + 1e-6, side="right") - 1)


@contextmanager
def open_video(source: Path | bytes) -> Iterator[tuple[Any, "VideoStream"]]:
    """Open a video file (or its bytes) at its first real video stream. No network address is ever followed.

    Raises:
        BadFile: missing, empty, no video container, or without a video stream.
    """
    if isinstance(source, Path) and not source.is_file():
        raise BadFile("file is missing")
    if (len(source) if isinstance(source, bytes) else source.stat().st_size) == 0:
        raise BadFile("empty file")
    try:
        opened = io.BytesIO(source) if isinstance(source, bytes) else str(source.absolute())
        container = av.open(opened, options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadFile(f"not a readable video ({one_line(error)})") from error
    with container:
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise BadFile("audio only" if container.streams.audio else "no video stream")
        if streams[0].codec_context is None:
            raise BadFile("unknown video codec")
        context = streams[0].codec_context
        if context.width * context.height > MOST_PIXELS:
            raise BadFile(f"{context.width}x{context.height} pixels, which no training video has")
        context.thread_count = 1  # one process per core does better than threads
        yield container, streams[0]


def timeline(container: "InputContainer", stream: "VideoStream") -> Timeline:
    """List a video's frames by reading its packets, decoding none.

    Raises:
        BadFile: no frames, or fewer than the file declares (truncated).
    """
    names = set(container.format.name.split(","))
    times: list[int | None] = []
    packets = started = 0
    try:
        for packet in container.demux(stream):
            packets += packet.size > 0
            started += packet.is_keyframe
            if packet.size and started and not packet.is_discard:  # before the first keyframe nothing can be decoded
                times.append(packet.pts)
            if packet.is_corrupt:
                raise BadFile(f"truncated or damaged at frame {packets} of {stream.frames or 'unknown'}")
    except av.FFmpegError as error:
        raise BadFile(f"truncated or damaged at frame {packets + 1} ({one_line(error)})") from error
    if not times:
        raise BadFile("no frames")
    tolerance = 0 if names & _EXACT else 2 + stream.frames // 50  # an AVI's header is an estimate
    if packets < stream.frames - tolerance:
        raise BadFile(f"truncated: {packets} of {stream.frames} frames")
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    stamps = [time for time in times if time is not None]
    if not names & _TIMED or len(set(stamps)) < len(times):
        return Timeline(np.arange(len(times), dtype=np.int64), 1 / rate, True)
    found = Timeline(np.sort(np.array(stamps, dtype=np.int64)), float(stream.time_base or 1), False)
    declared = 0.0 if names & _EXACT else _declared_seconds(stream)  # an edit list shortens what an MP4 declares
    end = max(found.seconds, float(found.timestamps[-1]) * found.time_base + 1 / rate)
    if end < 0.98 * declared - 2 / rate:
        raise BadFile(f"truncated: {end:.1f} of {declared:.1f} seconds")
    return found


def decoded_timeline(container: "InputContainer", stream: "VideoStream") -> Timeline:
    """As `timeline`, but from decoding every frame: for files whose packets are not their frames.

    Raises:
        BadFile: no frame can be decoded, or one is damaged.
    """
    try:
        times = [frame.pts for frame in _from_start(container, stream)]
    except av.FFmpegError as error:
        raise BadFile(f"cannot be decoded to the end ({one_line(error)})") from error
    if not times:
        raise BadFile("no frame can be decoded")
    stamps = np.array([-1 if time is None else time for time in times], dtype=np.int64)
    if _TIMED & set(container.format.name.split(",")) and None not in times and (np.diff(stamps) > 0).all():
        return Timeline(stamps, float(stream.time_base or 1), False)
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    return Timeline(np.arange(len(times), dtype=np.int64), 1 / rate, True)


def read_frames(
    container: "InputContainer",
    stream: "VideoStream",
    timestamps: Sequence[int],
    sequential: bool,
    short_side: int | None = None,
) -> Iterator[np.ndarray]:
    """Yield the frames at ascending `timestamps` (see `Timeline`) as uint8 (H, W, 3) RGB, upright, short side reduced.

    Frames of a video that changes its resolution on the way are resized to the first one's size.

    Raises:
        Missed: a frame is not where the container says.
        BadFile: decoding reports damage.
    """
    size: tuple[int, int] | None = None
    given = 0
    attempts = (_counted,) if sequential else (_timed, _timed_slowly)
    for attempt in attempts:
        last = attempt is attempts[-1]
        try:
            for frame in attempt(container, stream, list(timestamps)[given:]):
                image = _upright(frame)
                size = size or reduced_size(image.shape[1], image.shape[0], short_side)
                yield resize(image, size)
                given += 1
            return
        except Missed:  # an unusual group structure: what is left is decoded without shortcuts
            if last:
                raise Missed(f"kept frame {given + 1} of {len(timestamps)} is missing or damaged") from None
        except av.FFmpegError as error:
            if last:
                raise BadFile(f"kept frame {given + 1} cannot be decoded ({one_line(error)})") from error


def read_video(
    source: Path | bytes, timestamps: Sequence[int], sequential: bool, short_side: int | None
) -> list[np.ndarray]:
    """`read_frames` of a file for any order of `timestamps`, repeated ones included."""
    wanted = sorted({int(stamp) for stamp in timestamps})
    with open_video(source) as (container, stream):
        frames = dict(zip(wanted, read_frames(container, stream, wanted, sequential, short_side), strict=True))
    return [frames[int(stamp)] for stamp in timestamps]


def _timed(container: "InputContainer", stream: "VideoStream", wanted: list[int]) -> Iterator["VideoFrame"]:
    """Frames by timestamp, in order, seeking to the keyframe before each where that skips something."""
    entries = getattr(stream, "index_entries", ())  # older PyAV has none: then one seek, to the first frame
    keyframes = np.array([entry.timestamp for entry in entries if entry.is_keyframe])  # decoding times
    context = stream.codec_context
    container.seek(wanted[0], stream=stream, backward=True)
    remaining, targets = wanted[::-1], set(wanted)
    delay = 0  # largest distance of presentation and decoding time so far
    sought = -math.inf  # a container may land before the keyframe it lists: never ask for the same one twice
    for packet in container.demux(stream):
        if packet.size:
            delay = max(delay, (packet.pts or 0) - (packet.dts or 0))
        context.skip_frame = "DEFAULT" if packet.pts in targets or not packet.size else "NONREF"
        for frame in packet.decode():
            if frame.pts is None or frame.pts > remaining[-1] or (frame.pts == remaining[-1] and frame.is_corrupt):
                raise Missed
            if frame.pts == remaining[-1]:
                yield frame
                remaining.pop()
                if not remaining:
                    return
        if packet.size and packet.dts is not None:
            ahead = keyframes[(keyframes > max(packet.dts, sought)) & (keyframes + delay <= remaining[-1])]
            if len(ahead):
                sought = ahead.max()
                container.seek(remaining[-1], stream=stream, backward=True)
    raise Missed


def _timed_slowly(container: "InputContainer", stream: "VideoStream", wanted: list[int]) -> Iterator["VideoFrame"]:
    """Frames by timestamp, everything from the start of the file decoded."""
    remaining = wanted[::-1]
    for frame in _from_start(container, stream):
        if frame.pts == remaining[-1]:
            yield frame
            remaining.pop()
            if not remaining:
                return
    raise Missed


def _counted(container: "InputContainer", stream: "VideoStream", wanted: list[int]) -> Iterator["VideoFrame"]:
    """Frames by their position in the output of the decoder."""
    remaining = wanted[::-1]
    for position, frame in enumerate(_from_start(container, stream)):
        if position == remaining[-1]:
            yield frame
            remaining.pop()
            if not remaining:
                return
    raise Missed


def _from_start(container: "InputContainer", stream: "VideoStream") -> Iterator["VideoFrame"]:
    """Every frame; what precedes the first keyframe is left out, a frame the decoder calls damaged ends the clip."""
    stream.codec_context.skip_frame = "DEFAULT"
    container.seek(stream.start_time or 0, stream=stream, backward=True)
    started = False
    for packet in container.demux(stream):
        started |= packet.is_keyframe
        if started:
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise BadFile("a frame is damaged")
                yield frame


def _upright(frame: "VideoFrame") -> np.ndarray:
    """A decoded frame of any pixel format as uint8 (H, W, 3) RGB, turned as its display matrix says."""
    image = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


def _declared_seconds(stream: "VideoStream") -> float:
    """Length the container declares for this stream; 0 where it declares none."""
    if stream.duration is not None:
        return float(stream.duration * (stream.time_base or 1))
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")  # Matroska: 00:00:10.010000000
    minutes, _, seconds = rest.partition(":")
    try:
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return 0.0
