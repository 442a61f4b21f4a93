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
from tiny_problem import tiny

from tcore_lib.__main__ import main
from tcore_lib.data import shards, videos
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.sharded import ShardIndex, open_index
from tcore_lib.data.shards import write_shards
from tcore_lib.errors import InputError
from tcore_lib.machine.distributed import Place
from tcore_lib.params import Data, load
from tcore_lib.training import loop as pretrain
from tcore_lib.training.batches import loader

LENGTHS = [20, 20, 9, 1, 20, 33, 20]  # frames of the videos
CPU = torch.device("cpu")


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
        checksums=np.array([""] * number), numbered=np.arange(number) != 4,
    )  # fmt: skip


def test_every_frame_is_the_same(index: FrameIndex, tmp_path: Path) -> None:
    report = write_shards(index, tmp_path, videos_per_shard=3, progress=False)
    assert (report.shards, report.written, report.videos) == (3, 3, 7)
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


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("parts", [1, 3])
def test_batches_are_those_of_the_frame_folders(index: FrameIndex, tmp_path: Path, parts: int, workers: int) -> None:
    """One folder, or three of consecutive parts; in this process or in workers; two epochs; frames, views and masks."""
    folders = [tmp_path / str(i) for i in range(parts)]
    for i, folder in enumerate(folders):
        write_shards(index, folder, part=(i, parts), videos_per_shard=2, progress=False)
    settings = tiny(seed=3, loop={"workers": workers})
    pairs = zip(*(loader(settings, source, Place(), CPU, 0, 4) for source in (index, ShardIndex(folders))), strict=True)
    seen = 0
    for a, b in pairs:
        assert torch.equal(a.frames, b.frames)
        assert torch.equal(a.counters, b.counters)
        assert torch.equal(a.plan.masks, b.plan.masks)
        assert np.array_equal(a.views.boxes, b.views.boxes)
        seen += len(a.counters)
    assert seen == 16  # more than two epochs of seven


def test_a_training_does_not_see_the_difference(index: FrameIndex, tmp_path: Path) -> None:
    write_shards(index, tmp_path / "shards", progress=False)
    settings = tiny(loop={"max_steps": 3})
    logs = [
        pretrain.pretrain(settings, source, tmp_path / name, progress=False)
        for name, source in (("a", index), ("b", ShardIndex([tmp_path / "shards"])))
    ]
    same = [name for name in logs[0] if name not in ("samples_per_second", "peak_memory_gb")]
    assert logs[0][same].equals(logs[1][same])


def test_images_are_reduced_as_they_are_without_shards(tmp_path: Path) -> None:
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


def test_writing_again_gives_the_same_bytes_and_goes_on_where_it_stopped(index: FrameIndex, tmp_path: Path) -> None:
    write_shards(index, tmp_path / "a", videos_per_shard=2, progress=False)
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    (tmp_path / "a/shard-000002.tar").unlink()
    (tmp_path / "a/index.parquet").unlink()
    report = write_shards(index, tmp_path / "a", videos_per_shard=2, progress=False)
    assert (report.shards, report.written) == (4, 1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


def test_an_interrupted_writing_leaves_no_index(
    index: FrameIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(index, tmp_path, videos_per_shard=2, progress=False)
    (tmp_path / "shard-000001.tar").unlink()
    real = shards._members

    def breaks(source: FrameIndex, i: int) -> object:
        if i == 3:
            raise KeyboardInterrupt
        return real(source, i)

    monkeypatch.setattr(shards, "_members", breaks)
    with pytest.raises(KeyboardInterrupt):
        write_shards(index, tmp_path, videos_per_shard=2, progress=False)
    names = [f"shard-00000{i}.tar" for i in (0, 2, 3)]  # no half shard, no temporary file
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    with pytest.raises(InputError, match=r"has no usable index\.parquet"):
        ShardIndex([tmp_path])


# ---- what is refused -----------------------------------------------------------------------------------


def test_parts_in_the_wrong_order_or_missing_are_refused(index: FrameIndex, tmp_path: Path) -> None:
    for i in range(2):
        write_shards(index, tmp_path / str(i), part=(i, 2), progress=False)
    with pytest.raises(InputError, match="begins with video 3 where 0 comes next"):
        ShardIndex([tmp_path / "1", tmp_path / "0"])
    with pytest.raises(InputError, match="begins with video 0 where 3 comes next"):
        ShardIndex([tmp_path / "0", tmp_path / "0"])
    with pytest.raises(InputError, match="names no folder"):
        ShardIndex([])


def test_changed_cut_and_missing_shards_are_named(index: FrameIndex, tmp_path: Path) -> None:
    write_shards(index, tmp_path, videos_per_shard=4, progress=False)
    path = tmp_path / "shard-000000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"shard-000000\.tar has changed"):
        ShardIndex([tmp_path]).read(0, [0])
    position = whole.index(b"000000000.00000.jpg")
    path.write_bytes(whole[:position] + b"000000000.00007" + whole[position + 15 :])  # another frame in its place
    with pytest.raises(InputError, match="has changed"):
        ShardIndex([tmp_path]).read(0, [0])
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        start = tar.getmember("000000000.00000.jpg").offset_data
    path.write_bytes(whole[:start] + b"\0" * 64 + whole[start + 64 :])
    with pytest.raises(InputError, match=r"Frame 0 of class 0/video 0 in .*shard-000000\.tar cannot be read"):
        ShardIndex([tmp_path]).read(0, [0])
    got = ShardIndex([tmp_path])
    path.unlink()
    with pytest.raises(InputError, match=r"shard-000000\.tar cannot be read \(No such file"):
        got.read(0, [0])
    with pytest.raises(InputError, match="has frames 0 to 19; there is no frame 20"):
        got.read(0, [20])


def test_a_shard_of_another_size_is_refused_every_time(index: FrameIndex, tmp_path: Path) -> None:
    write_shards(index, tmp_path, progress=False)
    with open(tmp_path / "shard-000000.tar", "ab") as shard:
        shard.write(b"more")
    got = ShardIndex([tmp_path])
    for _ in range(2):
        with pytest.raises(InputError, match=r"shard-000000\.tar has changed"):
            got.read(0, [0])


def test_only_frames_of_this_index_go_into_a_folder(index: FrameIndex, tmp_path: Path) -> None:
    write_shards(index, tmp_path / "a", videos_per_shard=3, progress=False)
    with pytest.raises(InputError, match=r"shard-000002\.tar, which does not belong"):
        write_shards(index, tmp_path / "a", videos_per_shard=4, progress=False)
    with pytest.raises(InputError, match=r"not a shard of rows 0 to 2|holds 'class 0/video 0' as video 0"):
        write_shards(index.subset([1, 0, 2, 3, 4, 5, 6]), tmp_path / "a", videos_per_shard=3, progress=False)
    with pytest.raises(InputError, match="3/3 is not possible"):
        write_shards(index, tmp_path / "b", part=(3, 3), progress=False)
    with pytest.raises(InputError, match="is empty; make fewer parts"):
        write_shards(index, tmp_path / "b", part=(0, 99), progress=False)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "shard-000000.tar").write_bytes(b"no archive" * 999)
    with pytest.raises(InputError, match=r"shard-000000\.tar is not a shard of rows 0 to 6"):
        write_shards(index, tmp_path / "c", progress=False)


def test_a_missing_frame_stops_the_writing(index: FrameIndex, tmp_path: Path) -> None:
    lost = index.subset(range(7))
    lost.root = tmp_path / "nowhere"
    with pytest.raises(InputError, match=r"Frame 0 of .*nowhere.* cannot be read"):
        write_shards(lost, tmp_path / "shards", progress=False)
    assert not list((tmp_path / "shards").iterdir())


def test_files_are_closed_reopened_and_not_shared_with_workers(
    index: FrameIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcore_lib.data.sharded.OPEN_FILES", 2)
    write_shards(index, tmp_path, videos_per_shard=1, progress=False)
    got = ShardIndex([tmp_path])
    for i in (0, 1, 2, 5, 0, 1):
        assert np.array_equal(got.read(i, [0])[0], index.read(i, [0])[0])
        assert len(got._open) <= 2
    copy = pickle.loads(pickle.dumps(got))
    assert not copy._open
    assert np.array_equal(copy.read(6, [3])[0], index.read(6, [3])[0])


def test_command_and_setting(index: FrameIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A profile's index -> two parts of shards -> the same profile with `data.shards`, without its frames."""
    profile = tmp_path / "mine.yaml"
    data = {"root": str(tmp_path / "data")}
    profile.write_text(yaml.safe_dump({"data": data}))
    index.save(videos.index_path(load(profile).data))
    folders = [str(tmp_path / f"part{i}") for i in range(2)]
    for i, folder in enumerate(folders):
        assert main(["shard", str(profile), folder, "--part", f"{i}/2", "--videos-per-shard", "2"]) == 0
    assert "4 videos" in capsys.readouterr().out
    profile.write_text(yaml.safe_dump({"data": data | {"shards": folders}}))
    got = open_index(load(profile).data)
    assert isinstance(got, ShardIndex)
    assert got.num_frames.tolist() == LENGTHS
    assert isinstance(open_index(Data(root=str(tmp_path / "data"))), FrameIndex)
    assert main(["shard", str(profile), folders[0], "--part", "2"]) == 2
    assert "--part = '2' is not possible" in capsys.readouterr().err
