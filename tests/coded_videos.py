"""Tiny videos whose frames say their own number, in containers and states of every kind. Used by test_videos."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 8


def coded_frame(number: int, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3): grey; above, `number` as 8 black or white bars, the lowest bit left; bottom left is red."""
    width, height = size
    image = np.full((height, width, 3), 128, np.uint8)
    edges = np.linspace(0, width, BITS + 1).astype(int)
    for bit in range(BITS):
        image[: height // 2, edges[bit] : edges[bit + 1]] = 255 * (number >> bit & 1)
    image[height // 2 :, : width // 4] = (220, 30, 30)
    return image


def read_code(image: np.ndarray) -> int:
    """The number of a coded frame, from the middle of each bar."""
    height, width = image.shape[:2]
    centres = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    bits = image[height // 4, centres].mean(axis=-1) > 128
    return int((bits * 2 ** np.arange(BITS)).sum())


def write_video(
    path: Path,
    frames: int = 40,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    fps: int = 10,
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
    sound: bool = False,
    **context: object,
) -> Path:
    """Write a video of coded frames 0 ... frames - 1, shown at `times` in units of 1 / (10 fps)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.thread_count = 1
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 10 * fps)
        audio = container.add_stream("aac", rate=8000) if sound else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(coded_frame(number, size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 10 * fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            _write_silence(container, audio)
    return path


def write_sound(path: Path) -> Path:
    """An .mp4 with an audio track and nothing else."""
    with av.open(str(path), "w") as container:
        _write_silence(container, container.add_stream("aac", rate=8000))
    return path


def _write_silence(container: object, stream: object) -> None:
    for k in range(10):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, 1024 * k
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
