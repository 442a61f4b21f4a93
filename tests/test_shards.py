"""Tar shards: the same bytes and the same batches as frame folders, and what is said when something is missing."""

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tcore_lib.__main__ import main
from tcore_lib.data import shards, videos
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.sandwich import SandwichDataset, collate
from tcore_lib.data.shards import ShardIndex, open_index, write_shards
from tcore_lib.errors import InputError
from tcore_lib.params import Sandwich, load

LENGTHS = [20, 20, 9, 1, 20, 33, 20]  # frames of the videos


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> FrameIndex:
    """Seven videos of two classes, read at half their size; one has PNG frames with names of its own."""
    root, rng = tmp_path_factory.mktemp("frames"), np.random.default_rng(0)
    paths = [f"class {i % 2}/video {i}" for i in range(len(LENGTHS))]
    for i, (path, length) in enumerate(zip(paths, LENGTHS, strict=True)):
        (root / path).mkdir(parents=True)
        for j in range(length):
            frame = Image.fromarray(rng.integers(0, 256, (40, 52, 3), dtype=np.uint8))
            frame.save(root / path / (f"frame-{j:03d}.png" if i == 4 else f"{j:05d}.jpg"))
    sizes = {"widths": [26] * 7, "heights": [20] * 7, "short_side": 20}
    return FrameIndex(root=root, paths=paths, num_frames=LENGTHS, **sizes)


def test_the_layout_is_webdatasets(index: FrameIndex, tmp_path: Path) -> None:
    """Read with nothing but tarfile: members of a video follow each other, share a key, and are the files' bytes."""
    write_shards(index, tmp_path, videos_per_shard=4, progress=False)
    keys: list[str] = []
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                key, frame, _ = member.name.split(".")
                keys += [key] if not keys or keys[-1] != key else []
                assert tar.extractfile(member).read() == index.frame_paths(int(key), [int(frame)])[0].read_bytes()
    assert keys == [f"{i:09d}" for i in range(7)]


def test_frames_and_batches_are_those_of_the_frame_folders(index: FrameIndex, tmp_path: Path) -> None:
    """Pickled, as for a worker; more than two epochs of seven videos."""
    write_shards(index, tmp_path, videos_per_shard=2, progress=False)
    got = pickle.loads(pickle.dumps(ShardIndex(tmp_path)))
    assert got.num_frames.tolist() == LENGTHS
    for i, length in enumerate(LENGTHS):
        order = np.random.default_rng(i).permutation(length).tolist()
        assert np.array_equal(got.read(i, order), index.read(i, order))
    datasets = [SandwichDataset(source, Sandwich(), 3) for source in (index, got)]
    for step in range(4):
        a, b = (collate([dataset[counter] for counter in range(4 * step, 4 * step + 4)]) for dataset in datasets)
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_an_interrupted_writing_leaves_no_index(
    index: FrameIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(index, tmp_path, videos_per_shard=2, progress=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def breaks(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shards, "_write_video", breaks)
        with pytest.raises(KeyboardInterrupt):
            write_shards(index, tmp_path, videos_per_shard=2, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {*before} - {"index.parquet"}  # no half shard
    with pytest.raises(InputError, match=r"index\.parquet cannot be read .*; write the shards again"):
        ShardIndex(tmp_path)
    write_shards(index, tmp_path, videos_per_shard=2, progress=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_changed_cut_and_missing_shards_are_named(index: FrameIndex, tmp_path: Path) -> None:
    write_shards(index, tmp_path, videos_per_shard=4, progress=False)
    path, got = tmp_path / "shard-000000.tar", ShardIndex(tmp_path)
    whole = path.read_bytes()
    position = whole.index(b"000000000.00000.jpg")
    start = position + 512
    for content, problem in (
        (whole[: position + 600], "has changed"),
        (whole[:position] + b"000000000.00007" + whole[position + 15 :], "has changed"),  # another frame in its place
        (whole[:start] + b"\0" * 64 + whole[start + 64 :], r"holds it as frame 0 of class 0/video 0"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=problem):
            got.read(0, [0])
    path.unlink()
    with pytest.raises(InputError, match=r"shard-000000\.tar cannot be read \(No such file"):
        got.read(0, [0])
    with pytest.raises(InputError, match=r"shard-000001\.tar does not belong"):
        write_shards(index, tmp_path, videos_per_shard=7, progress=False)


def test_command_and_setting(index: FrameIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A profile's index -> shards -> the same profile with `data.shards`, without its frames."""
    profile, folder = tmp_path / "mine.yaml", tmp_path / "shards"
    data = {"root": "data"}
    profile.write_text(yaml.safe_dump({"data": data}))
    index.save(videos.index_path(load(profile).data))
    assert isinstance(open_index(load(profile).data), FrameIndex)
    assert main(["shard", str(profile), str(folder), "--videos-per-shard", "2"]) == 0
    assert "4 shards" in capsys.readouterr().out
    profile.write_text(yaml.safe_dump({"data": data | {"shards": "shards"}}))
    got = open_index(load(profile).data)
    assert isinstance(got, ShardIndex)
    assert got.num_frames.tolist() == LENGTHS
