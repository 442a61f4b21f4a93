"""300 damaged files through the one boundary: each is read, or refused in one sentence; nothing in it is executed.

"Read" is an allowed end: the damage may not matter, or lie where the format has no checksum.
"""

import os
import pickle
import resource
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import yaml
from coded_videos import write_video
from PIL import Image
from small_clips import scene

from tcore_lib import params, runs
from tcore_lib.data import images, videos
from tcore_lib.data.index import FrameIndex
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips, jhmdb
from tcore_lib.evaluation.benchmarks import load_clips
from tcore_lib.files import write_json
from tcore_lib.model.encoders import load_encoder, random_encoder
from tcore_lib.model.export import export
from tcore_lib.training import checkpoints, log as training_log
from tcore_lib.training.schedules import Schedules

EACH = 24  # damaged files of each of 13 kinds
LONGEST_SENTENCE = 700  # letters, paths included
ROOT = Path(__file__).parents[1]


class Ran:
    """Unpickling this touches a file: what a hostile weight file would do."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


def spoil(data: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """A damaged version of a file: cut, flipped, overwritten, with a huge number, doubled, empty, or something else."""
    start, end = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    near = min(start, 1024)  # where declared sizes stand
    size, order = int(rng.choice([4, 8])), str(rng.choice(["big", "little"]))
    number = int(rng.choice([2**31 - 1, 2**28, 10**6])).to_bytes(size, order)  # type: ignore[arg-type]
    flipped = bytearray(data)
    for place in rng.integers(0, len(data) if rng.integers(2) else min(200, len(data)), 8):
        flipped[place] ^= 1 << int(rng.integers(8))
    page = str(
        rng.choice(["<!DOCTYPE html><title>404</title>", "version https://git-lfs", "[1, 2", "ä" * 999, "\0" * 9])
    )
    damaged = (
        data[:start], bytes(flipped), data[:start] + rng.bytes(64) + data[start + 64 :],
        data[:near] + number + data[near + size :], data[:end] + data[start:], b"", bytes(len(data)), rng.bytes(999),
        page.encode(), *others,
    )  # fmt: skip
    return damaged[int(rng.integers(len(damaged)))]


# ---- whole files: each function writes one into a folder and returns its path ------------------------------------------


def write_index(folder: Path, lengths: Any = (20,) * 40) -> Path:
    n = len(lengths)
    columns = {"num_frames": lengths, "widths": [64] * n, "heights": [48] * n}
    FrameIndex(root=folder, paths=[f"v{i}" for i in range(n)], **columns).save(folder / "i.parquet")
    return folder / "i.parquet"


def write_frame(folder: Path, name: str) -> Path:
    Image.fromarray(scene(0, 0)[0]).save(folder / name)
    return folder / name


def write_ids(folder: Path, classes: list[int]) -> Path:
    clips.write_ids(folder / "ids.png", np.array(classes, np.uint8)[scene(1, 0)[1]])
    return folder / "ids.png"


def write_joints(folder: Path) -> Path:
    """Compressed, as JHMDB's own: a damaged file that is not ends scipy's process now and then."""
    joints = {"pos_img": np.random.default_rng(0).uniform(1, 300, (2, 15, 30)), "viewpoint": "NNE"}
    scipy.io.savemat(folder / "joint_positions.mat", joints, do_compression=True)
    return folder / "joint_positions.mat"


def write_checkpoint(folder: Path) -> Path:
    tensors = {f"layer{i}.weight": torch.arange(576.0).reshape(24, 24) for i in range(4)}
    return checkpoints.write(folder, 3, {"student": tensors, "centres": {"cls": torch.ones(24)}, "num_videos": 7})


def write_weights(folder: Path, suffix: str) -> Path:
    encoder = random_encoder(params.Encoder(arch="custom", width=64, depth=1, heads=1), 32, seed=0)
    return export(encoder, folder / f"w{suffix}", "safetensors" if suffix == ".safetensors" else "official")


STAGE = "03_davis_evaluation"


def write_result(folder: Path) -> Path:
    record = {"stage": STAGE, "result": {"scores": [{"score": "J", "value": 61.5}]}, "settings": {"run": {}}}
    write_json(folder / f"{STAGE}.json", record | {"provenance": {"commit": "0" * 40, "seconds": 3.5}})
    return folder / f"{STAGE}.json"


def write_text(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


TABLE = "clip,object,JF_mean\n" + "".join(f"clip{i},{i},0.{i}\n" for i in range(50))
LOG = "step,samples,total\n" + "".join(f"{i},{4 * i},{1 / i:.6f}\n" for i in range(1, 60))
QUICK = (ROOT / "params" / "quick.yaml").read_text()
READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "frame index": (write_index, FrameIndex.load),
    "frame (.jpg)": (lambda folder: write_frame(folder, "a.jpg"), clips.read_frame),
    "frame (.png)": (lambda folder: write_frame(folder, "a.png"), clips.read_frame),
    "DAVIS annotation": (lambda folder: write_ids(folder, [0, 1, 2]), clips.read_ids),
    "VIP label": (lambda folder: write_ids(folder, [0, 2, 13]), clips.read_ids),
    "joints (.mat)": (write_joints, jhmdb.read_joints),
    "training checkpoint": (write_checkpoint, checkpoints.load),
    "weights (.pth)": (lambda folder: write_weights(folder, ".pth"), load_encoder),
    "weights (.safetensors)": (lambda folder: write_weights(folder, ".safetensors"), load_encoder),
    "result (.json)": (write_result, lambda path: runs.read_results(path.parent)[STAGE]),
    "table (.csv)": (
        lambda folder: write_text(folder, f"{STAGE}.objects.csv", TABLE),
        lambda path: runs.read_table(path.parent, STAGE, "objects"),
    ),
    "training log (.csv)": (lambda folder: write_text(folder, "log.csv", LOG), training_log.read_log),
    "parameter file": (lambda folder: write_text(folder, "quick.yaml", QUICK), params.load),
}


def refused(read: Callable[[], Any]) -> bool:
    """Whether reading ends in a sentence (several wrong settings: a list of sentences); any other exception is a bug."""
    try:
        read()
    except InputError as error:
        said = str(error)
    else:
        return False
    first, *others = said.splitlines()
    assert all(line.startswith("  - ") for line in others), said
    assert 0 < len(first) < LONGEST_SENTENCE, said
    return True


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("default")  # a library may warn of what it then refuses
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    write, read = READERS[name]
    (tmp_path / "inside").mkdir()
    path = write(tmp_path / "inside")
    whole = path.read_bytes()
    assert not refused(lambda: read(path)), "the undamaged file is read"
    others = [b"\x89PNG\r\n\x1a\n" + bytes(50), b"PK\x03\x04" + bytes(60), b"PAR1" + bytes(60)]
    rng, count = np.random.default_rng(len(name)), 0
    for number in range(EACH):
        path.write_bytes(spoil(whole, rng, [*others, pickle.dumps(Ran(tmp_path / "ran"))]))
        try:
            count += refused(lambda: read(path))
        except Exception as error:
            error.add_note(f"{name}, damaged file number {number}")
            raise
    assert count > 0
    assert os.listdir(tmp_path) == ["inside"], "nothing is written elsewhere, nothing in a file is executed"


def test_damaged_media_stop_nobody(tmp_path: Path) -> None:
    """Of 40 damaged videos and images each is prepared or stands among the bad files with a reason of one line."""
    (tmp_path / "whole").mkdir()
    for name, codec in {"a.mp4": "libx264", "b.mkv": "libx264", "c.webm": "libvpx-vp9"}.items():
        write_video(tmp_path / "whole" / name, frames=24, codec=codec)
    for name in ("f.jpg", "g.png", "h.webp", "j.tif"):
        write_frame(tmp_path / "whole", name)
    media = {path.name: path.read_bytes() for path in sorted((tmp_path / "whole").iterdir())}
    rng, skipped = np.random.default_rng(0), 0
    for layout, names in (("videos", ("a.mp4", "b.mkv", "c.webm")), ("images", ("f.jpg", "g.png", "h.webp", "j.tif"))):
        for number in range(20):
            path = tmp_path / layout / f"{number:04d}" / names[number % len(names)]
            path.parent.mkdir(parents=True)
            path.write_bytes(spoil(media[path.name], rng, list(media.values())))
        root = tmp_path / f"{layout}-out"
        report = videos.prepare(
            params.Data(source=str(tmp_path / layout), root=str(root), layout=layout, num_frames=8, workers=1),
            progress=False,
        )
        assert report.complete
        assert report.videos + report.bad == 20
        rows = report.bad_files.read_text().splitlines()[1:]
        assert max(map(len, rows)) < LONGEST_SENTENCE
        skipped += report.bad
    assert skipped > 10


# ---- a profile, as people and editors spoil it -------------------------------------------------------------------------

STRANGE = (
    None, True, 0, -1, 3, 2**63, 10**400, 1.5, -0.1, float("inf"), float("nan"), 1e-320, 1e308, "", "1e-4", "auto", "cuda:99",
    "../..", "~", "synthetic", "\x00", "a" * 300, "1_000", [], [1, 2], {}, {"a": 1}, {1: None},
)  # fmt: skip


@pytest.mark.parametrize("part", range(5))
def test_any_damage_to_a_profile_gives_a_plan_or_a_sentence(part: int, tmp_path: Path) -> None:
    known = params.dotted(params.Params().model_dump(mode="json"))
    profiles = sorted((ROOT / "params").glob("*.yaml"))
    path = tmp_path / "damaged.yaml"

    def plan() -> None:
        loaded = params.load(path)
        if loaded.pretrain.enabled:
            schedules = Schedules(loaded.pretrain)
            assert np.isfinite([schedules.at(step).lr for step in (0, schedules.steps // 2, schedules.steps - 1)]).all()

    for seed in range(30 * part, 30 * part + 30):
        rng = np.random.default_rng(seed)
        content = params.read_yaml(profiles[seed % len(profiles)])
        for name in rng.choice(list(known), 3):
            *above, key = str(name).split(".")
            place = content
            for section in above:
                place[section] = place[section] if isinstance(place.get(section), dict) else {}
                place = place[section]
            match int(rng.integers(5)):
                case 0:
                    place[key] = STRANGE[int(rng.integers(len(STRANGE)))]
                case 1 | 2:  # another switch, a number some times as large
                    value = place.get(key, known[str(name)])
                    place[key] = value * int(rng.choice([0, 2, 10, 1000])) if isinstance(value, int | float) else value
                case 3:
                    place[f"{key}s"] = place.pop(key, None)
                case _:
                    content[key] = place.pop(key, None)
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        refused(plan)


# ---- silent damage, sizes that lie, names that mislead -------------------------------------------------------------------


def test_no_damage_of_a_checkpoint_goes_unnoticed(tmp_path: Path) -> None:
    """Any flipped bit in the values is caught by the archive's checksums; torch itself would read on."""
    path = checkpoints.write(tmp_path, 1, {"student": {"w": torch.arange(4096.0)}})
    whole = path.read_bytes()
    place = whole.index(torch.arange(4096.0)[2000:2010].numpy().tobytes())
    for bit in (0, 7, 30):
        spoilt = bytearray(whole)
        spoilt[place + bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        assert torch.load(path, weights_only=True)["student"]["w"].shape == (4096,)
        with pytest.raises(InputError, match=r"step-00000001\.pt cannot be read .*checksum"):
            checkpoints.load(path)


def test_no_damage_of_an_index_goes_unnoticed(tmp_path: Path) -> None:
    """A flipped bit in a column of numbers is caught by the pages' checksums."""
    lengths = np.arange(300) % 90 + 3
    path = write_index(tmp_path, lengths)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    for place in rng.integers(4, len(whole) - footer, 40):
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoilt)
        assert refused(lambda: FrameIndex.load(path)) or np.array_equal(FrameIndex.load(path).num_frames, lengths)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x\x9cc\0\0\0\1\0\1") + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_001, 10_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_that_claims_a_huge_size_costs_no_memory(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(*size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns, depending on the size, of what we refuse
        for read in (clips.read_frame, clips.read_ids, images.read_rgb):
            with pytest.raises(InputError, match="pixels"):
                read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50e3  # kB


@pytest.mark.parametrize("name", ["../one", "one/../../evil", ".", "x" * 400, "a\\b", "a//b"])
def test_no_clip_of_a_list_leads_outside(tmp_path: Path, name: str) -> None:
    """A split list from a stranger would name the folder that predictions are written to."""
    for settings, file, line in (
        (params.Davis(), "ImageSets/2017/val.txt", name),
        (params.Vip(), "lists/val_videos.txt", name),
        (params.Jhmdb(), "splits/catch_test_split1.txt", f"{name}/..avi 2"),
    ):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(f"{line}\n")
        with pytest.raises(InputError, match="no name of a folder inside"):
            load_clips(settings, tmp_path)


def test_a_checkpoint_that_wants_to_run_code_is_not_opened(tmp_path: Path) -> None:
    path = checkpoints.path_of(tmp_path, 5)
    hostile = {"format": 1, "step": 5, "student": Ran(tmp_path / "ran")}
    for write in (lambda: torch.save(hostile, path), lambda: path.write_bytes(pickle.dumps(hostile))):
        write()
        with pytest.raises(InputError, match=r"wants to run code|is damaged or no checkpoint"):
            checkpoints.load(path)
    assert not (tmp_path / "ran").exists()
