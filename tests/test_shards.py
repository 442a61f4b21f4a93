"""Tar shards: the same bytes and the same batches as frame folders, and what is said when something is missing."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import DataLoader

from tcore_lib.__main__ import main
from tcore_lib.data import shards, videos
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.sandwich import CounterBatches, SandwichDataset, loader_settings
from tcore_lib.data.shards import ShardIndex, open_index, write_shards
from tcore_lib.errors import InputError
from tcore_lib.params import Data, Sandwich, load

LENGTHS = [20, 20, 9, 1, 20, 33, 20]  # frames of the videos


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> FrameIndex:
    """Seven videos of two classes in frame folders; one has PNG frames with names of its own."""
    root, rng = tmp_path_factory.mktemp("frames"), np.random.default_rng(0)
    paths = [f"class {i % 2}/video {i}" for i in range(len(LENGTHS))]
    for i, (path, length) in enumerate(zip(paths, LENGTHS, strict=True)):
        (root / path).mkdir(parents=True)
        for j in range(length):
            frame = Image.fromarray(rng.integers(0, 256, (40, 52, 3), dtype=np.uint8))
            frame.save(root / path / (f"frame-{j:03d}.png" if i == 4 else f"{j:05d}.jpg"))
    number = len(LENGTHS)
    return FrameIndex(
        root=root, paths=np.array(paths), class_ids=np.arange(number) % 2, class_names=["class 0", "class 1"],
        num_frames=np.array(LENGTHS), widths=np.full(number, 52), heights=np.full(number, 40),
        numbered=np.arange(number) != 4,
    )  # fmt: skip


def test_every_frame_is_the_same(index: FrameIndex, tmp_path: Path) -> None:
    assert len(write_shards(index, tmp_path, videos_per_shard=3, progress=False)) == 3
    got = ShardIndex([tmp_path])
    assert len(got) == 7
    assert got.paths.tolist() == index.paths.tolist()
    assert [got.class_name(i) for i in range(7)] == [index.class_name(i) for i in range(7)]
    for name in ("num_frames", "widths", "heights", "class_ids"):
        assert (getattr(got, name) == getattr(index, name)).all(), name
    for i, length in enumerate(LENGTHS):
        order = np.random.default_rng(i).permutation(length).tolist()
        for a, b in zip(got.read(i, order), index.read(i, order), strict=True):
            assert np.array_equal(a, b)


def test_the_layout_is_webdatasets(index: FrameIndex, tmp_path: Path) -> None:
    """Read with nothing but tarfile: members of a video follow each other, share a key, and are the files' bytes."""
    write_shards(index, tmp_path, videos_per_shard=4, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.parquet", "shard-000000.tar", "shard-000001.tar"]
    keys: list[str] = []
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                key, extension = member.name.split(".", 1)
                keys += [key] if not keys or keys[-1] != key else []
                content = tar.extractfile(member).read()
                if extension == "json":
                    assert json.loads(content)["path"] == index.paths[int(key)]
                else:
                    assert content == index.frame_path(int(key), int(extension.split(".")[0])).read_bytes()
    assert keys == [f"{i:09d}" for i in range(7)]


@pytest.mark.parametrize("parts", [1, 3])
def test_batches_are_those_of_the_frame_folders(index: FrameIndex, tmp_path: Path, parts: int) -> None:
    """One folder, or three of consecutive parts; pickled, as for a worker; more than two epochs of seven videos."""
    folders = [tmp_path / str(i) for i in range(parts)]
    for i, folder in enumerate(folders):
        write_shards(index, folder, part=(i, parts), videos_per_shard=2, progress=False)
    batches = [
        DataLoader(
            SandwichDataset(source, Sandwich(), 3), batch_sampler=CounterBatches(0, 4, 4, 0, 1, 1), **loader_settings(0)
        )
        for source in (index, pickle.loads(pickle.dumps(ShardIndex(folders))))
    ]
    for a, b in zip(*batches, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_images_are_reduced_as_they_are_without_shards(tmp_path: Path, here: None) -> None:
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(1)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(tmp_path / "in" / f"{i}.png")
    data = Data(source=str(tmp_path / "in"), root=str(tmp_path / "out"), layout="images", short_side=48, workers=1)
    index = FrameIndex.load(videos.prepare(data, progress=False).index)
    write_shards(index, tmp_path / "shards", progress=False)
    got = ShardIndex([tmp_path / "shards"])
    for i in range(3):
        (a,), (b,) = got.read(i, [0]), index.read(i, [0])
        assert a.shape == (48, 64, 3)
        assert np.array_equal(a, b)


def test_an_interrupted_writing_leaves_no_index(
    index: FrameIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(index, tmp_path, videos_per_shard=2, progress=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = shards._write_video

    def breaks(tar: tarfile.TarFile, source: FrameIndex, i: int) -> object:
        if i == 3:
            raise KeyboardInterrupt
        return real(tar, source, i)

    with monkeypatch.context() as patched:
        patched.setattr(shards, "_write_video", breaks)
        with pytest.raises(KeyboardInterrupt):
            write_shards(index, tmp_path, videos_per_shard=2, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {*before} - {
        "index.parquet"
    }  # no half shard, nothing temporary
    with pytest.raises(InputError, match=r"index\.parquet cannot be read"):
        ShardIndex([tmp_path])
    write_shards(index, tmp_path, videos_per_shard=2, progress=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---------------------------------------------------------------------------------------------- what is refused


def test_parts_in_the_wrong_order_or_missing_are_refused(index: FrameIndex, tmp_path: Path) -> None:
    for i in range(2):
        write_shards(index, tmp_path / str(i), part=(i, 2), progress=False)
    for order, problem in (
        ("10", "begins with video 3 where 0 comes next"),
        ("00", "begins with video 0 where 3 comes"),
    ):
        with pytest.raises(InputError, match=problem):
            ShardIndex([tmp_path / name for name in order])
    with pytest.raises(InputError, match="names no folder"):
        ShardIndex([])


def test_changed_cut_and_missing_shards_are_named(index: FrameIndex, tmp_path: Path) -> None:
    write_shards(index, tmp_path, videos_per_shard=4, progress=False)
    path, got = tmp_path / "shard-000000.tar", ShardIndex([tmp_path])
    whole = path.read_bytes()
    position = whole.index(b"000000000.00000.jpg")
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        start = tar.getmember("000000000.00000.jpg").offset_data
    for content, problem in (
        (whole[: position + 600], "has changed"),
        (whole[:position] + b"000000000.00007" + whole[position + 15 :], "has changed"),  # another frame in its place
        (whole[:start] + b"\0" * 64 + whole[start + 64 :], r"holds it as frame 0 of class 0/video 0"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"shard-000000\.tar.*{problem}|{problem}"):
            got.read(0, [0])
    path.unlink()
    with pytest.raises(InputError, match=r"shard-000000\.tar cannot be read \(No such file"):
        got.read(0, [0])
    with pytest.raises(InputError, match="has frames 0 to 19; there is no frame 20"):
        got.read(0, [20])


def test_only_frames_of_this_index_go_into_a_folder(index: FrameIndex, tmp_path: Path) -> None:
    write_shards(index, tmp_path / "a", videos_per_shard=3, progress=False)
    with pytest.raises(InputError, match=r"shard-000002\.tar does not belong"):
        write_shards(index, tmp_path / "a", videos_per_shard=4, progress=False)
    for part in ((3, 3), (0, 99)):
        with pytest.raises(InputError, match="is empty; parts of n are numbered 0 to n - 1"):
            write_shards(index, tmp_path / "b", part=part, progress=False)
    lost = index.subset(range(7))
    lost.root = tmp_path / "nowhere"
    with pytest.raises(InputError, match=r"nowhere.*00000\.jpg cannot be read"):
        write_shards(lost, tmp_path / "d", progress=False)
    assert not list((tmp_path / "d").iterdir())


def test_command_and_setting(index: FrameIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A profile's index -> two parts of shards -> the same profile with `data.shards`, without its frames."""
    profile = tmp_path / "mine.yaml"
    data = {"root": str(tmp_path / "data")}
    profile.write_text(yaml.safe_dump({"data": data}))
    index.save(videos.index_path(load(profile).data))
    folders = [tmp_path / f"part{i}" for i in range(2)]
    for i, folder in enumerate(folders):
        assert main(["shard", str(profile), str(folder), "--part", f"{i}/2", "--videos-per-shard", "2"]) == 0
    assert "2 shards" in capsys.readouterr().out
    profile.write_text(yaml.safe_dump({"data": data | {"shards": list(map(str, folders))}}))
    got = open_index(load(profile).data)
    assert isinstance(got, ShardIndex)
    assert got.num_frames.tolist() == LENGTHS
    assert isinstance(open_index(Data(root=str(tmp_path / "data"))), FrameIndex)
    with pytest.raises(InputError, match="'2' is not possible"):
        shards.shard_command(str(profile), folders[0], part="2")
