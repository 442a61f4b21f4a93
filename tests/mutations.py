"""Damaged files for every reader of the library: whole ones, ways to spoil them, and what reading them may end in.

A reader's outcome is "read" (the damage does not matter, or lies where the format has no checksum), "skipped" (reported in
a line of bad_files.csv) or "refused" (one sentence). Everything else is a bug: another exception, a message of several
lines, a file that appears elsewhere.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
import torch
from coded_videos import write_video
from PIL import Image
from small_clips import scene

from tcore_lib import params, runs
from tcore_lib.data import videos
from tcore_lib.data.index import FrameIndex
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips, jhmdb
from tcore_lib.files import write_json
from tcore_lib.model.encoders import load_encoder, random_encoder
from tcore_lib.model.export import export
from tcore_lib.training import checkpoints, log as training_log

LONGEST_SENTENCE = 700  # letters, paths included


class Ran:
    """Unpickling this touches a file: what a hostile weight file would do."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


# ---------------------------------------------------------------------------------------------- ways to spoil a file


def truncated(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(0, max(1, len(data))))]


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    spoilt = np.frombuffer(data, np.uint8).copy()
    for place in rng.integers(0, max(1, len(spoilt)), int(rng.integers(1, 9))) if len(spoilt) else ():
        spoilt[place] ^= 1 << int(rng.integers(8))
    return spoilt.tobytes()


def header_flipped(data: bytes, rng: np.random.Generator) -> bytes:
    return flipped(data[:200], rng) + data[200:]


def overwritten(data: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(0, max(1, len(data))))
    return data[:start] + rng.bytes(int(rng.integers(1, 65))) + data[start + 64 :]


def huge_number(data: bytes, rng: np.random.Generator) -> bytes:
    """Four or eight bytes of the first kilobyte become a large number, in either byte order: a declared size, with luck."""
    size = int(rng.choice([4, 8]))
    start = int(rng.integers(0, max(1, min(1024, len(data)) - size)))
    value = int(rng.choice([2**31 - 1, 2**31, 2**28, 10**6])) if size == 4 else int(rng.choice([2**62, 2**40, 2**33]))
    return data[:start] + value.to_bytes(size, str(rng.choice(["big", "little"])), signed=False) + data[start + size :]  # type: ignore[arg-type]


def doubled(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    return data[:end] + data[start:]


def empty(data: bytes, rng: np.random.Generator) -> bytes:
    return b""


def zeros(data: bytes, rng: np.random.Generator) -> bytes:
    return bytes(len(data))


def noise(data: bytes, rng: np.random.Generator) -> bytes:
    return rng.bytes(int(rng.integers(1, 4096)))


def text(data: bytes, rng: np.random.Generator) -> bytes:
    pages = (
        "<!DOCTYPE html><title>404</title>",
        "version https://git-lfs.github.com/spec/v1\n",
        "[1, 2",
        "ä" * 999,
        "\0" * 9,
    )
    return str(rng.choice(pages)).encode()


SPOILERS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    truncated, truncated, flipped, flipped, header_flipped, overwritten, huge_number, huge_number, doubled, empty, zeros,
    noise, text,
)  # fmt: skip


def spoil(data: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """A damaged version of a file: one of `SPOILERS`, or the content of another type under this name."""
    choice = int(rng.integers(len(SPOILERS) + 1))
    return others[int(rng.integers(len(others)))] if choice == len(SPOILERS) else SPOILERS[choice](data, rng)


# ---------------------------------------------------------------------------------------------- whole files


@dataclass(frozen=True)
class Reader:
    """A reader of the library.

    Attributes:
        name: in the table of outcomes.
        make: writes a whole file into a folder and returns its path.
        read: reads it; given as (the spoilt file); returns "read" or "skipped", or raises InputError.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], str]


def _make_index(folder: Path) -> Path:
    n = 40
    columns = {"class_ids": [0] * n, "num_frames": [20] * n, "widths": [64] * n, "heights": [48] * n}
    names = [f"any/clip{i}" for i in range(n)]
    index = FrameIndex(root=folder, paths=names, class_names=["any"], **columns)
    index.save(folder / "index-train.parquet")
    return folder / "index-train.parquet"


def _make_frame(folder: Path, suffix: str) -> Path:
    path = folder / f"frames{suffix[1:]}" / f"00000{suffix}"
    path.parent.mkdir()
    Image.fromarray(scene(0, 0)[0]).save(path)
    return path


def _make_ids(folder: Path, name: str, classes: list[int]) -> Path:
    path = folder / f"{name}.png"
    clips.write_ids(path, np.array(classes, np.uint8)[scene(1, 0)[1]])
    return path


def _make_mat(folder: Path) -> Path:
    """Compressed, as JHMDB's own: a damaged file that is not ends scipy's process now and then."""
    path = folder / "joint_positions.mat"
    joints = np.random.default_rng(0).uniform(1, 300, (2, 15, 30))
    scipy.io.savemat(path, {"pos_img": joints, "scale": np.ones((1, 30)), "viewpoint": "NNE"}, do_compression=True)
    return path


def _make_checkpoint(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    weights_of = {f"layer{i}.weight": torch.randn(24, 24, generator=generator) for i in range(4)}
    return checkpoints.save(folder, 3, {"student": weights_of, "centres": {"cls": torch.ones(24)}, "num_videos": 7})


def _make_weights(folder: Path, suffix: str) -> Path:
    encoder = random_encoder(params.Encoder(arch="custom", width=64, depth=1, heads=1), 32, seed=0)
    return export(encoder, folder / f"weights{suffix}", "safetensors" if suffix == ".safetensors" else "official")


def _make_result(folder: Path) -> Path:
    path = folder / "03_davis_evaluation.json"
    record = {
        "stage": "03_davis_evaluation",
        "result": {"scores": [{"score": "J", "value": 61.5}]},
        "settings": {"run": {}},
    }
    write_json(path, record | {"provenance": {"commit": "0" * 40, "seconds": 3.5}})
    return path


def _make_table(folder: Path) -> Path:
    path = folder / "03_davis_evaluation.objects.csv"
    path.write_text("clip,object,JF_mean\n" + "".join(f"clip{i},{i},0.{i}\n" for i in range(50)))
    return path


def _make_log(folder: Path) -> Path:
    path = folder / "log.csv"
    path.write_text("step,samples,total\n" + "".join(f"{i},{8 * i},{1 / i:.6f}\n" for i in range(1, 60)))
    return path


def _make_params(folder: Path) -> Path:
    path = folder / "quick.yaml"
    path.write_bytes((Path(__file__).parents[1] / "params" / "quick.yaml").read_bytes())
    return path


def _did(function: Callable[[Path], object]) -> Callable[[Path], str]:
    def read(path: Path) -> str:
        return "read" if function(path) is not None else "skipped"

    return read


def _read_params(path: Path) -> object:
    return params.load(path)


READERS = (
    Reader("frame index", _make_index, _did(FrameIndex.load)),
    Reader("benchmark frame (.jpg)", lambda folder: _make_frame(folder, ".jpg"), _did(clips.read_frame)),
    Reader("benchmark frame (.png)", lambda folder: _make_frame(folder, ".png"), _did(clips.read_frame)),
    Reader("DAVIS annotation (.png)", lambda f: _make_ids(f, "davis", [0, 1, 2]), _did(clips.read_ids)),
    Reader("VIP label (.png)", lambda f: _make_ids(f, "vip", [0, 2, 13]), _did(clips.read_ids)),
    Reader("joints (.mat)", _make_mat, _did(jhmdb.read_joints)),
    Reader("training checkpoint", _make_checkpoint, _did(checkpoints.load)),
    Reader("weights (.pth)", lambda f: _make_weights(f, ".pth"), _did(load_encoder)),
    Reader("weights (.safetensors)", lambda f: _make_weights(f, ".safetensors"), _did(load_encoder)),
    Reader("result (.json)", _make_result, _did(lambda p: runs.read_result(p.parent, "03_davis_evaluation"))),
    Reader("table (.csv)", _make_table, _did(lambda p: runs.read_table(p.parent, "03_davis_evaluation", "objects"))),
    Reader("training log (.csv)", _make_log, _did(training_log.read_log)),
    Reader("parameter file", _make_params, _did(_read_params)),
)


def outcome(reader: Reader, path: Path) -> str:
    """ "read", "skipped" or "refused".

    Raises:
        AssertionError: the refusal is not one sentence of sensible length.
        Exception: whatever else the reader raises; that is a bug.
    """
    try:
        return reader.read(path)
    except InputError as error:
        message = str(error)
        assert message.strip(), reader.name
        for line in message.split("\n  - "):  # a parameter file's mistakes are a list
            assert "\n" not in line, f"{reader.name}: {message!r}"
            assert len(line) < LONGEST_SENTENCE, f"{reader.name}: {message!r}"
        return "refused"


# ---------------------------------------------------------------------------------------------- what workers decode


def write_media(folder: Path) -> dict[str, bytes]:
    """Small whole files by name: videos of several containers, and images."""
    for name, options in {
        "a.mp4": {}, "b.mkv": {}, "c.avi": {}, "d.webm": {"codec": "libvpx-vp9"}, "e.mov": {"options": {"g": "5"}},
    }.items():  # fmt: skip
        write_video(folder / name, frames=24, **options)  # type: ignore[arg-type]
    for name in ("f.jpg", "g.png", "h.webp", "i.bmp", "j.tif"):
        Image.fromarray(scene(2, 0)[0]).save(folder / name)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def media_outcomes(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Outcome -> how many, of damaged videos and images that are prepared; reasons are one line each, nothing is lost."""
    whole = folder / "whole"
    whole.mkdir(parents=True)
    media, rng = write_media(whole), np.random.default_rng(seed)
    counts = {"read": 0, "skipped": 0}
    for layout, suffixes in (("videos", ".mp4 .mkv .avi .webm .mov"), ("images", ".jpg .png .webp .bmp .tif")):
        names = [name for name in media if Path(name).suffix in suffixes.split()]
        for number in range(count // 2):
            damaged = folder / layout / f"{number:04d}" / names[number % len(names)]
            damaged.parent.mkdir(parents=True)
            damaged.write_bytes(spoil(media[damaged.name], rng, list(media.values())))
        given = {
            "source": str(folder / layout),
            "root": str(folder / f"{layout}-out"),
            "layout": layout,
            "num_frames": 8,
        }
        report = videos.prepare(params.parse({"data": given | {"workers": 1}}, "test").data, progress=False)
        assert report.complete
        assert report.videos + report.bad == count // 2
        for _, _, file, reason in videos.read_bad(folder / f"{layout}-out" / "bad_files.csv"):
            assert "\n" not in reason, (file, reason)
            assert len(reason) < LONGEST_SENTENCE, (file, reason)
        counts["read"] += report.videos
        counts["skipped"] += report.bad
    return counts


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        import zlib

        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x\x9cc\0\0\0\1\0\1") + chunk(b"IEND", b"")
