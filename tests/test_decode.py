"""Chosen frames of video files of every kind: the right ones, upright, in the right colours; broken files with a
reason.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from coded_videos import coded_frame, read_code, write_sound, write_video
from PIL import Image

from tcore_lib.data import decode, images
from tcore_lib.data.decode import Timeline
from tcore_lib.data.images import BadFile

REAL = Path(__file__).parents[2] / "shared" / "data" / "videos"


def numbers(path: Path | bytes, num_frames: int = 20, fps: float | None = None) -> tuple[list[int], list[int]]:
    """(numbers shown by the frames that were read, positions that were chosen)."""
    with decode.open_video(path) as (container, stream):
        timeline = decode.timeline(container, stream)
        chosen = decode.choose(timeline, num_frames, fps)
        stamps = timeline.timestamps[chosen].tolist()
        frames = list(decode.read_frames(container, stream, stamps, timeline.sequential))
    return [read_code(frame) for frame in frames], chosen.tolist()


def test_evenly_spread_frames_by_hand() -> None:
    clip = Timeline(np.arange(100), 0.1, False)
    assert decode.choose(clip, 5, None).tolist() == [0, 25, 50, 74, 99]  # 0, 24.75, 49.5, 74.25, 99 rounded to even
    assert decode.choose(clip, 1, None).tolist() == [49]
    assert decode.choose(clip, 200, None).tolist() == list(range(100))  # never a frame twice
    assert len(decode.choose(clip, 20, None)) == 20


def test_frames_by_rate_by_hand() -> None:
    clip = Timeline(np.arange(100), 0.1, False)  # 10 frames a second, the last at 9.9 s
    assert decode.choose(clip, 20, 2.0).tolist() == list(range(0, 100, 5))
    assert decode.choose(clip, 20, 50.0).tolist() == list(range(100))
    uneven = Timeline(np.array([0, 1, 5, 6, 30]), 0.1, False)
    assert decode.choose(uneven, 20, 1.0).tolist() == [0, 3, 4]  # shown at 0 s, at 1 s (since 0.6 s) and at 3 s
    assert uneven.seconds == pytest.approx(3.0 * 5 / 4)


CONTAINERS: dict[str, dict[str, object]] = {
    "h264.mp4": {},
    "short_gops.mp4": {"options": {"g": "5", "bf": "2"}},
    "open_gops.mp4": {"options": {"x264-params": "keyint=12:open-gop=1:bframes=3:b-pyramid=normal"}},
    "hevc.mkv": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=10:open-gop=1:bframes=4"}},
    "h264.mov": {},
    "vp8_hidden_frames.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "h264.avi": {},
    "mpeg4_b_frames.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "odd_444.mkv": {"pix_fmt": "yuv444p", "size": (65, 49)},
    "ten_bits.mkv": {"pix_fmt": "yuv420p10le"},
    "grey.mkv": {"pix_fmt": "gray"},
    "alpha.mov": {"codec": "qtrle", "pix_fmt": "argb"},
    "lossless_rgb.mkv": {"codec": "ffv1", "pix_fmt": "bgr0"},
    "uneven_times.mp4": {"times": [7 * k + k % 4 for k in range(90)]},
    "with_sound.mp4": {"sound": True},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_chosen_frames_come_out(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, frames=90, **CONTAINERS[name])
    for num_frames in (20, 4, 1):
        shown, chosen = numbers(path, num_frames)
        assert shown == chosen
    assert numbers(path.read_bytes(), 3)[0] == [0, 44, 89]  # 44.5 rounded to even; a file in memory (a tar member)


def test_frames_in_any_order_for_training(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.avi"):
        path = write_video(tmp_path / name, frames=60, options={"g": "12"})
        with decode.open_video(path) as (container, stream):
            timeline = decode.timeline(container, stream)
        stamps = timeline.timestamps[[40, 7, 40, 59]].tolist()
        frames = decode.read_video(path, stamps, timeline.sequential, 24)
        assert [frame.shape for frame in frames] == [(24, 32, 3)] * 4
        assert [read_code(frame) for frame in frames] == [40, 7, 40, 59]


def test_seeking_gives_the_very_pixels_of_decoding_everything(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=90, size=(160, 120), options={"g": "20", "bf": "3"})
    with av.open(str(path)) as container:
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with decode.open_video(path) as (container, stream):
        timeline = decode.timeline(container, stream)
        chosen = decode.choose(timeline, 20, None)
        read = list(decode.read_frames(container, stream, timeline.timestamps[chosen].tolist(), False))
    for frame, position in zip(read, chosen, strict=True):
        assert np.array_equal(frame, everything[position])


# --- geometry and colour ---


def test_a_phone_video_stands_upright(tmp_path: Path) -> None:
    """The display matrix (0, 1, -1, 0) of a phone held upright means: turn clockwise to show."""
    path = write_video(tmp_path / "a.mp4", frames=3)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version 0: 40 bytes stand before the matrix of nine 4-byte numbers
    identity = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    assert content[at : at + 36] == identity
    turned = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], dtype=">i4")
    content[at : at + 36] = turned.tobytes()
    path.write_bytes(content)
    with decode.open_video(path) as (container, stream):
        frame = next(decode.read_frames(container, stream, [0], False))
    expected = np.rot90(coded_frame(0, (64, 48)), -1)  # clockwise: the red corner moves from bottom left to top left
    assert frame.shape == (64, 48, 3)
    assert np.abs(frame.astype(int) - expected).mean() < 8
    assert frame[5, 5, 0] > 180 > 80 > frame[5, 5, 1]


@pytest.mark.parametrize(
    ("luma_chroma", "matrix", "full_range"),
    [
        ((81, 90, 240), 5, 1),  # pure red in BT.601, studio range
        ((63, 102, 240), 1, 1),  # pure red in BT.709
        ((54, 99, 255), 1, 2),  # ... and in full range
        ((81, 90, 240), 0, 0),  # nothing stated: BT.601, as FFmpeg
    ],
)
def test_red_is_red(tmp_path: Path, luma_chroma: tuple[int, int, int], matrix: int, full_range: int) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv444p"
        frame = av.VideoFrame(32, 32, "yuv444p")
        for plane, value in zip(frame.planes, luma_chroma, strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        if matrix:
            stream.codec_context.colorspace = frame.colorspace = matrix
            stream.codec_context.color_range = frame.color_range = full_range
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with decode.open_video(path) as (opened, stream):
        red = next(decode.read_frames(opened, stream, [0], False))
    assert np.abs(red.astype(int) - (255, 0, 0)).max() <= 3


def test_short_side_is_reduced_never_enlarged() -> None:
    assert images.reduced_size(1920, 1080, 256) == (455, 256)  # 455.1
    assert images.reduced_size(1080, 1920, 256) == (256, 455)
    assert images.reduced_size(340, 256, 256) == (340, 256)
    assert images.reduced_size(100, 80, 256) == (100, 80)
    assert images.reduced_size(4000, 1, None) == (4000, 1)
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    assert images.reduce_short_side(stripes, 64).std() < 3  # antialiased: one-pixel stripes become grey


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_images_of_every_mode(tmp_path: Path, mode: str) -> None:
    grey = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path, **({"transparency": bytes(256)} if mode == "P" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = images.read_image(path, 15)
    assert read.shape == (15, 20, 3)
    assert read.dtype == np.uint8
    assert np.abs(read.mean(axis=-1)[7] - np.linspace(3, 252, 20)).max() < (130 if mode == "1" else 12)


# --- files that cannot be used ---


def cut(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return damage


def faststart(path: Path) -> None:
    """Put the header in front, as web videos have it: a cut file then still opens."""
    plain = path.with_name("plain.mp4")
    path.rename(plain)
    with av.open(str(plain)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)


def overwrite(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) * 6 // 10
    content[middle : middle + 200] = np.random.default_rng(0).bytes(200)
    path.write_bytes(content)


def test_broken_files_say_why(tmp_path: Path) -> None:
    def video(name: str, *damages: Callable[[Path], None]) -> Path:
        path = write_video(tmp_path / name, frames=60, size=(160, 120))
        for damage in damages:
            damage(path)
        return path

    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "text.mp4").write_text("#EXTM3U\nhttp://127.0.0.1:9/a.ts\n")
    with av.open(str(tmp_path / "zero.mp4"), "w", options={"movflags": "empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    cases = {
        tmp_path / "missing.mp4": "missing",
        tmp_path / "empty.mp4": "empty",
        tmp_path / "noise.mp4": "not a readable video",
        tmp_path / "text.mp4": "not a readable video",
        tmp_path / "zero.mp4": "no frames",
        write_sound(tmp_path / "sound.mp4"): "audio only",
        video("header_lost.mp4", cut(0.5)): "not a readable video|no video stream|codec",
        video("tail_lost.mp4", faststart, cut(0.97)): "truncated",
        video("half.mp4", faststart, cut(0.5)): "truncated",
        video("tail_lost.mkv", cut(0.8)): "truncated|damaged",
        video("half.avi", cut(0.5)): "truncated|damaged|not a readable",
        video("noise_inside.mp4", faststart, overwrite): "damaged|cannot be decoded",
    }
    for path, reason in cases.items():
        with pytest.raises(BadFile, match=reason):
            numbers(path)


def test_what_precedes_the_first_keyframe_is_left_out(tmp_path: Path) -> None:
    """A clip cut without re-encoding starts with frames nobody can decode."""
    whole = write_video(tmp_path / "whole.mp4", frames=50, options={"g": "10", "bf": "0"})
    path = tmp_path / "a.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None and number >= 7:
                packet.stream = stream
                target.mux(packet)
    assert numbers(path, 4)[0] == [10, 23, 36, 49]


@pytest.mark.parametrize("path", sorted(REAL.glob("*/*")) or [REAL], ids=lambda path: path.name)
def test_real_videos(path: Path) -> None:
    if not path.is_file():
        pytest.skip(f"{REAL} is not here")
    with decode.open_video(path) as (container, stream):
        timeline = decode.timeline(container, stream)
        chosen = decode.choose(timeline, 8, None)
        frames = list(decode.read_frames(container, stream, timeline.timestamps[chosen].tolist(), timeline.sequential))
    count = 0
    with av.open(str(path)) as container:
        for position, frame in enumerate(container.decode(video=0)):
            count += 1
            if position in chosen:
                assert np.array_equal(frame.to_ndarray(format="rgb24"), frames[chosen.tolist().index(position)])
    assert count == len(timeline.timestamps)
