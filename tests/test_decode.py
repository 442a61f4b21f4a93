"""Chosen frames of video files of every kind: the right ones, upright, in the right colours; broken ones with a reason."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from coded_videos import coded_frame, read_code, write_sound, write_video
from PIL import Image

from tcore_lib.data import decode, images
from tcore_lib.errors import InputError


def codes(path: Path, num_frames: int | None = 20) -> list[int]:
    """The numbers that the kept frames show."""
    return decode.keep_frames(path, num_frames, convert=read_code)


def test_choice_by_hand() -> None:
    assert decode.choose(100, 5).tolist() == [0, 25, 50, 74, 99]  # 0, 24.75, 49.5, 74.25, 99 rounded to even
    assert decode.choose(100, 1).tolist() == [49]
    assert decode.choose(100, 200).tolist() == decode.choose(100, None).tolist() == list(range(100))


CONTAINERS: dict[str, dict[str, Any]] = {
    "open_gops.mp4": {"options": {"x264-params": "keyint=12:open-gop=1:bframes=3:b-pyramid=normal"}},
    "hevc.mkv": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=10:open-gop=1:bframes=4"}},
    "vp8_hidden_frames.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "mpeg4_b_frames.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "odd_444.mkv": {"pix_fmt": "yuv444p", "size": (65, 49)},
    "ten_bits.mkv": {"pix_fmt": "yuv420p10le"},
    "alpha.mov": {"codec": "qtrle", "pix_fmt": "argb"},
    "uneven_times.mp4": {"times": [7 * k + k % 4 for k in range(90)]},
    "with_sound.mp4": {"sound": True},
    "stream.ts": {},
    "dvd.mpg": {"codec": "mpeg2video", "fps": 25},
    "flash.flv": {"codec": "flv"},
    "windows.wmv": {"codec": "wmv2"},
    "phone.3gp": {"codec": "mpeg4"},
    "animated.gif": {"codec": "gif", "pix_fmt": "rgb8"},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_chosen_frames_come_out(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, frames=90, **CONTAINERS[name])
    assert path.suffix.lower() in decode.VIDEO_SUFFIXES
    for num_frames in (20, 3):
        assert codes(path, num_frames) == decode.choose(90, num_frames).tolist()


def test_a_phone_video_stands_upright(tmp_path: Path) -> None:
    """The display matrix (0, 1, -1, 0) of a phone held upright means: turn clockwise to show."""
    path = write_video(tmp_path / "a.mp4", frames=3)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version 0: 40 bytes stand before the matrix of nine 4-byte numbers
    identity = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    assert content[at : at + 36] == identity
    content[at : at + 36] = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    path.write_bytes(content)
    frame = decode.read_video(path)[0]
    expected = np.rot90(coded_frame(0, (64, 48)), -1)  # clockwise: the red corner moves from bottom left to top left
    assert frame.shape == (64, 48, 3)
    assert np.abs(frame.astype(int) - expected).mean() < 8
    assert frame[5, 5, 0] > 180 > 80 > frame[5, 5, 1]


def test_the_default_stream_is_read(tmp_path: Path) -> None:
    """A player shows the stream that is marked as default, whichever comes first."""
    with av.open(str(tmp_path / "two.mkv"), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, disposition in zip(streams, (0, av.stream.Disposition.default), strict=True):
            stream.width, stream.height, stream.pix_fmt, stream.disposition = 64, 48, "yuv420p", disposition
        for k in range(6):
            for stream, number in zip(streams, (200, k), strict=True):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(coded_frame(number, (64, 48)), format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    assert codes(tmp_path / "two.mkv") == list(range(6))


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
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
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
    red = decode.read_video(tmp_path / "a.mp4")[0]
    assert np.abs(red.astype(int) - (255, 0, 0)).max() <= 3


def test_short_side_is_reduced_never_enlarged(tmp_path: Path) -> None:
    sizes = [images.reduced_size(*size, 256) for size in ((1920, 1080), (1080, 1920), (100, 80))]
    assert sizes == [(455, 256), (256, 455), (100, 80)]  # 1920 * 256 / 1080 = 455.1
    small = decode.keep_frames(write_video(tmp_path / "a.mp4", frames=3), None, short_side=24)
    assert {frame.shape for frame in small} == {(24, 32, 3)}


def test_read_video_takes_what_people_have(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=12)
    frames = decode.read_video(str(path))
    assert (frames.shape, frames.dtype) == ((12, 48, 64, 3), np.uint8)
    assert [read_code(frame) for frame in decode.read_video(path, 4)] == [0, 4, 7, 11]
    folder = tmp_path / "frames"
    folder.mkdir()
    for k in range(12):
        Image.fromarray(coded_frame(k, (64, 48))).save(folder / f"{k + 1}.png")
    assert [read_code(frame) for frame in decode.read_video(folder)] == list(range(12))
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)  # (T, 3, H, W)
    for given in (frames, torch.from_numpy(frames), tensor):
        assert np.array_equal(decode.read_video(given, 4), frames[[0, 4, 7, 11]])
    for wrong in (frames / 255, frames[0], frames[:0]):
        with pytest.raises(InputError, match="uint8 frames"):
            decode.read_video(wrong)
    Image.fromarray(coded_frame(0, (32, 24))).save(folder / "13.png")
    for problem, given in (("different sizes", folder), ("cannot be read", tmp_path / "none.mp4")):
        with pytest.raises(InputError, match=problem):
            decode.read_video(given)


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def remux(source: Path, target: Path, skip: int = 0, **options: str) -> None:
    """Copy the packets of a video after the first ones, without decoding."""
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(read.demux(video=0)):
            if packet.dts is not None and number >= skip:
                packet.stream = stream
                written.mux(packet)


def faststart(path: Path) -> None:
    """Put the header in front, as web videos have it: a cut file then still opens."""
    remux(path.rename(path.with_name("plain.mp4")), path, movflags="faststart")


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
    cases = {
        tmp_path / "missing.mp4": "No such file",
        tmp_path / "empty.mp4": "the file is empty",
        tmp_path / "noise.mp4": "Invalid data",
        tmp_path / "text.mp4": "Invalid data|whitelist|not permitted",
        write_sound(tmp_path / "sound.mp4"): "audio only",
        video("header_lost.mp4", cut(0.5)): "Invalid data|no video stream|codec",
        video("half.mp4", faststart, cut(0.5)): "cut off or damaged at frame",
        video("half.avi", cut(0.5)): "cut off or damaged|Invalid data",
        video("noise_inside.mp4", faststart, overwrite): "damaged|Invalid data",
    }
    for path, reason in cases.items():
        with pytest.raises(InputError, match=rf"{path.name} cannot be read \(.*({reason})") as caught:
            codes(path)
        assert str(caught.value).endswith(f"; {decode.REMEDY}.")


def test_a_count_in_a_header_is_no_proof_of_damage(tmp_path: Path) -> None:
    """An AVI whose header counts 600 frames holds 40: they are read."""
    path = write_video(tmp_path / "a.avi", frames=40, codec="mpeg4")
    content = bytearray(path.read_bytes())
    for place in (content.index(b"avih") + 8 + 16, content.index(b"strh") + 8 + 32):  # dwTotalFrames, dwLength
        assert int.from_bytes(content[place : place + 4], "little") == 40
        content[place : place + 4] = (600).to_bytes(4, "little")
    path.write_bytes(content)
    assert codes(path, 4) == [0, 13, 26, 39]


def test_what_precedes_the_first_keyframe_is_left_out(tmp_path: Path) -> None:
    """A clip cut without re-encoding starts with frames nobody can decode."""
    remux(write_video(tmp_path / "whole.mp4", frames=50, options={"g": "10", "bf": "0"}), tmp_path / "a.mkv", skip=7)
    assert codes(tmp_path / "a.mkv", 4) == [10, 23, 36, 49]
