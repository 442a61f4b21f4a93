"""Damaged files: every reader reads, skips or refuses in a sentence. A part of them here, the full number in tests/soak."""

import os
import pickle
import resource
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from mutations import READERS, Ran, Reader, media_outcomes, outcome, png_claiming, spoil

from tcore_lib import params
from tcore_lib.data import decode, images
from tcore_lib.data.index import FrameIndex
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips, jhmdb
from tcore_lib.evaluation.benchmarks import load_clips
from tcore_lib.training import checkpoints

EACH = 40  # damaged files of every kind


def spoil_and_read(reader: Reader, folder: Path, count: int, seed: int) -> dict[str, int]:
    """Outcomes of a reader on `count` damaged files; nothing appears outside their folder."""
    inside = folder / "inside"
    inside.mkdir(parents=True)
    path = reader.make(inside)
    whole = path.read_bytes()
    assert outcome(reader, path) == "read", "the undamaged file is read"
    others = [
        b"\x89PNG\r\n\x1a\n" + bytes(50),
        b"PK\x03\x04" + bytes(60),
        b"PAR1" + bytes(60),
        pickle.dumps(Ran(folder / "ran")),
    ]
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(("read", "skipped", "refused"), 0)
    for number in range(count):
        path.write_bytes(spoil(whole, rng, others))
        try:
            counts[outcome(reader, path)] += 1
        except Exception as error:
            error.add_note(f"{reader.name}, seed {seed}, damaged file number {number}")
            raise
    assert os.listdir(folder) == ["inside"], "nothing is written elsewhere, nothing in a file is executed"
    return counts


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
@pytest.mark.filterwarnings("default")  # a library may warn of what it then refuses
def test_damaged_files_are_read_skipped_or_refused(reader: Reader, tmp_path: Path) -> None:
    counts = spoil_and_read(reader, tmp_path, EACH, seed=0)
    assert counts["refused"] + counts["skipped"] > 0


def test_damaged_media_stop_nobody(tmp_path: Path) -> None:
    counts = media_outcomes(tmp_path, 40, seed=0)
    assert sum(counts.values()) == 40
    assert counts["skipped"] > 10


def test_no_damage_of_a_checkpoint_goes_unnoticed(tmp_path: Path) -> None:
    """Any flipped bit in the values is caught by the archive's checksums; torch itself would read on."""
    path = checkpoints.save(tmp_path, 1, {"student": {"w": torch.arange(4096.0)}})
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
    n = 300
    lengths = np.arange(n) % 90 + 3
    columns = {"class_ids": [0] * n, "widths": [64] * n, "heights": [48] * n}
    index = FrameIndex(
        root=tmp_path, paths=[f"v{i}" for i in range(n)], class_names=["any"], num_frames=lengths, **columns
    )
    index.save(tmp_path / "index.parquet")
    whole = (tmp_path / "index.parquet").read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    rng = np.random.default_rng(0)
    for _ in range(40):
        spoilt = bytearray(whole)
        spoilt[int(rng.integers(4, len(whole) - footer))] ^= 1 << int(rng.integers(8))
        (tmp_path / "index.parquet").write_bytes(spoilt)
        try:
            assert np.array_equal(FrameIndex.load(tmp_path / "index.parquet").num_frames, lengths)
        except InputError as error:
            assert "index.parquet cannot be read" in str(error)  # noqa: PT017 (either is right)


# ---------------------------------------------------------------------------------------------- sizes that lie


def peak() -> int:
    """Most bytes this process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("size", [(10_001, 10_000), (12_000, 12_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_that_claims_a_huge_size_costs_no_memory(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(*size))
    before = peak()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns, depending on the size, of what we refuse
        for read in (clips.read_frame, clips.read_ids, images.read_rgb, images.size_of):
            with pytest.raises(InputError, match="pixels"):
                read(path)
        with pytest.raises(InputError):
            images.read_rgb(path.read_bytes())
    assert peak() - before < 50e6


def test_a_mat_file_with_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "joint_positions.mat"
    scipy.io.savemat(path, {"pos_img": np.full((2, 15, 3), 1e300)})
    with pytest.raises(InputError, match="nowhere near an image"):
        jhmdb.read_joints(path)
    scipy.io.savemat(path, {"pos_img": np.array([["text"] * 15] * 2, dtype=object)})
    with pytest.raises(InputError, match="joint_positions"):
        jhmdb.read_joints(path)


# ---------------------------------------------------------------------------------------------- names that mislead


@pytest.mark.parametrize("name", ["../one", "one/../../evil", "/etc", ".", "x" * 400, "a\\b", "a//b"])
def test_no_clip_of_a_list_leads_outside(tmp_path: Path, name: str) -> None:
    """A split list from a stranger would name the folder that predictions are written to."""
    for settings, file in (
        (params.Davis(), "ImageSets/2017/val.txt"),
        (params.Vip(), "lists/val_videos.txt"),
        (params.Jhmdb(), "splits/catch_test_split1.txt"),
    ):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}.avi 2\n" if isinstance(settings, params.Jhmdb) else f"{name}\n")
        if isinstance(settings, params.Vip) and name.startswith("/"):
            name = "a/../b"  # VIP's lists begin their lines with a slash
            path.write_text(f"{name}\n")
        if name == "." and isinstance(settings, params.Jhmdb):
            continue  # becomes "catch/..avi", a folder's name
        with pytest.raises(InputError, match="no name of a folder inside"):
            load_clips(settings, tmp_path)


def test_links_in_circles_and_longest_names_are_refused_or_read(tmp_path: Path) -> None:
    longest = "ü" * 125 + ".png"  # 254 bytes of 255
    circle = tmp_path / "circle.png"
    circle.symlink_to(circle)
    for read in (clips.read_frame, clips.read_ids, clips.image_size):
        with pytest.raises(InputError, match=r"circle\.png"):
            read(circle)
    with pytest.raises(InputError, match=r"circle"):
        checkpoints.load(circle)
    with pytest.raises(InputError):
        decode.keep_frames(circle, 8)
    clips.write_ids(tmp_path / longest, np.ones((4, 4), np.uint8))
    assert clips.read_ids(tmp_path / longest).tolist() == [[1] * 4] * 4
    with pytest.raises(InputError, match="cannot be written"):
        clips.write_ids(tmp_path / ("x" * 300 + ".png"), np.ones((4, 4), np.uint8))
    with pytest.raises(InputError, match="cannot be written"):
        clips.write_ids(circle / "below" / "a.png", np.ones((4, 4), np.uint8))
    assert sorted(os.listdir(tmp_path)) == sorted([longest, "circle.png"])


def test_a_checkpoint_that_wants_to_run_code_is_not_opened(tmp_path: Path) -> None:
    path = checkpoints.path_of(tmp_path, 5)
    torch.save({"format": 1, "step": 5, "student": Ran(tmp_path / "ran")}, path)
    with pytest.raises(InputError, match="is damaged or no checkpoint"):
        checkpoints.load(path)
    path.write_bytes(pickle.dumps({"format": 1, "step": 5, "student": Ran(tmp_path / "ran")}))
    with pytest.raises(InputError, match="is damaged or no checkpoint"):
        checkpoints.load(path)
    assert not (tmp_path / "ran").exists()
