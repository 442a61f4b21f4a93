"""The frames of one video file, upright, RGB: all of them, or those to keep.

Which frames are kept follows from how many there are. The container's list of packets says that without decoding; where
decoding gives another number (hidden or lost frames), the decoder is right and the choice is made again.
Letters: T frames of a video, N frames kept, H W pixels.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np

from tcore_lib.data import images
from tcore_lib.errors import InputError
from tcore_lib.files import reading

VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mkv", ".mov",
    ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})  # fmt: skip
REMEDY = "replace the file or leave it out"


def choose(total: int, num_frames: int | None) -> np.ndarray:
    """Positions (N,) int64 of the frames to keep out of T = `total`: spread evenly, the first and last included.

    All, where there are fewer or None are asked for; the middle one, where one is.
    """
    if num_frames == 1:
        return np.array([(total - 1) // 2])
    return np.round(np.linspace(0, total - 1, min(num_frames or total, total))).astype(np.int64)


def keep_frames(
    path: Path,
    num_frames: int | None,
    short_side: int | None = None,
    convert: Callable[[np.ndarray], Any] = lambda image: image,
) -> list[Any]:
    """Decode the frames to keep (see `choose`) and convert each at once, so that large frames are held one at a time.

    Frames whose short side exceeds `short_side` pixels are reduced to it; all get the size of the first. `convert` takes
    uint8 (H, W, 3) RGB.

    Raises:
        InputError: missing, no video, or damaged, in one sentence.
    """
    with reading(path, REMEDY):
        total = _listed(path)
        while True:
            wanted, decoded = set(choose(total, num_frames).tolist()), 0
            kept: list[Any] = []
            for decoded, frame in enumerate(_decoded(path), 1):
                if decoded - 1 in wanted:
                    # uint8 (H, W, 3), turned as the display matrix says
                    image = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
                    if not kept:
                        size = images.reduced_size(image.shape[1], image.shape[0], short_side)
                    kept.append(convert(images.resize(image, size)))
            if not decoded:
                raise ValueError("no frame can be decoded")
            if decoded == total:
                return kept
            total = decoded


def read_video(video: Any, num_frames: int | None = None) -> np.ndarray:
    """Frames of a video as uint8 (T, H, W, 3) RGB, from whatever it is given as.

    Args:
        video: a video file; a folder of frames; or uint8 frames already, array or tensor, (T, H, W, 3) or (T, 3, H, W).
        num_frames: that many, spread evenly, first and last included; None = all.

    Raises:
        InputError: the path cannot be read, its frames differ in size, or the array is of another kind.
    """
    if not isinstance(video, str | os.PathLike):
        array = np.asarray(video)
        if array.ndim == 4 and array.shape[1] == 3 != array.shape[3]:
            array = array.transpose(0, 2, 3, 1)
        if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8 or not len(array):
            raise InputError(f"A video is uint8 frames (T, H, W, 3), not {array.dtype} {array.shape}; convert it.")
        return array[choose(len(array), num_frames)]
    path = Path(video)
    if not path.is_dir():
        return np.stack(keep_frames(path, num_frames))
    names = images.frame_names(path)
    frames = [images.read_rgb(path / names[k]) for k in choose(len(names), num_frames)]
    images.common_size(path, frames)
    return np.stack(frames)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Iterator[av.Packet]]]:
    """The stream that a player would show, and its packets from the first keyframe on. No network address is followed."""
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError("the file is empty")
    with av.open(str(path.absolute()), options={"protocol_whitelist": "file"}) as container:
        kinds = av.stream.Disposition
        streams = [stream for stream in container.streams.video if not stream.disposition & kinds.attached_pic]
        if not streams:
            raise ValueError("audio only" if container.streams.audio else "no video stream")
        stream = next((one for one in streams if one.disposition & kinds.default), streams[0])
        if stream.codec_context is None:
            raise ValueError("unknown video codec")
        images.refuse_huge(stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.thread_count = 1  # one process per core does better than threads
        yield stream, itertools.dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream))


def _listed(path: Path) -> int:
    """T, from the packets alone; at least 1."""
    listed = 0
    with _opened(path) as (stream, packets):
        for packet in packets:
            if packet.is_corrupt:  # a file cut off ends within a packet
                raise ValueError(f"cut off or damaged at frame {listed} of {stream.frames or 'unknown'}")
            listed += bool(packet.size and not packet.is_discard)
    return max(1, listed)


def _decoded(path: Path) -> Iterator[av.VideoFrame]:
    """Every frame in the order of showing; a frame that the decoder calls damaged ends the video."""
    with _opened(path) as (_, packets):
        for frame in itertools.chain.from_iterable(packet.decode() for packet in packets):
            if frame.is_corrupt:
                raise ValueError("a frame is damaged")
            yield frame
