"""Preparation: from what lies on disk to frames and index; resumable, sharded, and stopped by no file."""

import csv
import dataclasses
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from coded_videos import coded_frame, misbehave, read_code, write_sound, write_video
from PIL import Image

from tcore_lib.data import extract, frame_checks, videos
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.released_index import export_released, read_released
from tcore_lib.errors import InputError
from tcore_lib.machine import workpool
from tcore_lib.params import Data

REAL = Path(__file__).parents[2] / "shared" / "data" / "videos"


def settings(source: Path, root: Path, **changes: Any) -> Data:
    return Data(**{"source": str(source), "root": str(root), "num_frames": 8, "workers": 1} | changes)


def prepare(source: Path, root: Path, shard: tuple[int, int] | None = None, **changes: Any) -> videos.PrepareReport:
    return videos.prepare(settings(source, root, **changes), shard=shard, progress=False)


def work_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Work in this process, as starting others takes a second each; gives the targets that are worked on."""
    worked: list[str] = []

    def run(function: Callable[[Any], Any], tasks: Iterator[Any], workers: int) -> Iterator[tuple[Any, Any]]:
        for task in tasks:
            worked.append(getattr(task, "target", str(task)))
            try:
                yield task, function(task)
            except Exception as error:
                yield task, workpool.Failed(str(error), type(error).__name__, getattr(error, "errno", None))

    monkeypatch.setattr(workpool, "run", run)
    return worked


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return work_here(monkeypatch)


def codes(index: FrameIndex, i: int) -> list[int]:
    return [read_code(frame) for frame in index.read(i, range(index.num_frames[i]))]


def tree(root: Path) -> dict[str, int]:
    """Every file below a root with its modification time."""
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


# --- one run over everything, with real worker processes ---


def test_videos_of_all_kinds_and_all_defects(tmp_path: Path) -> None:
    source, root = tmp_path / "in", tmp_path / "out"
    for name in ("run/a.mp4", "run/b.mov", "jump/a.mkv", "jump/b.avi", "jump/deep/c.webm"):
        codec = {"codec": "libvpx-vp9"} if name.endswith("webm") else {}
        write_video(source / name, frames=29, size=(64, 48), **codec)
    write_video(source / "run/short.mp4", frames=3)
    write_video(source / "run/large.mp4", frames=9, size=(96, 80))
    (source / "run/empty.mp4").touch()
    (source / "jump/noise.mp4").write_bytes(b"no video" * 100)
    (source / "jump/cut.mkv").write_bytes((source / "jump/a.mkv").read_bytes()[:-600])
    write_sound(source / "jump/sound.mp4")
    (source / "run/notes.txt").write_text("not a video")
    (source / ".hidden").mkdir()
    shutil.copy(source / "run/a.mp4", source / ".hidden/a.mp4")

    report = prepare(source, root, short_side=40, workers=2)
    assert (report.videos, report.done, report.bad, report.complete) == (7, 7, 4, True)
    index = FrameIndex.load(report.index)
    assert index.paths.tolist() == ["jump/a", "jump/b", "jump/deep_c", "run/a", "run/b", "run/large", "run/short"]
    assert index.class_names == ["jump", "run"]
    assert index.class_ids.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert index.num_frames.tolist() == [8, 8, 8, 8, 8, 8, 3]
    assert index.widths.tolist() == [53, 53, 53, 53, 53, 48, 53]  # 64 * 40 / 48 = 53.3; 96 * 40 / 80 = 48
    assert set(index.heights.tolist()) == {40}
    for i in range(5):
        assert codes(index, i) == [0, 4, 8, 12, 16, 20, 24, 28]
    assert codes(index, 6) == [0, 1, 2]
    assert index.frame_path(3, 7) == root / "frames/train/run/a/00007.jpg"
    assert index.checksums[3] == extract.checksum_frames(root / "frames/train/run/a")
    assert sorted(p.name for p in (root / "frames/train/run/a").iterdir()) == [f"{k:05d}.jpg" for k in range(8)]

    bad = frame_checks.bad_files(root)
    assert bad["split"].tolist() == ["train"] * 4
    reasons = {Path(file).name: reason for file, reason in zip(bad["file"], bad["reason"], strict=True)}
    assert reasons["empty.mp4"] == "empty file"
    assert reasons["sound.mp4"] == "audio only"
    assert "not a readable video" in reasons["noise.mp4"]
    assert "truncated" in reasons["cut.mkv"]
    assert frame_checks.bad_share(index, root) == 4 / 11

    before = tree(root / "frames")
    again = prepare(source, root, short_side=40, workers=2)
    assert (again.videos, again.done, again.skipped, again.bad) == (7, 0, 11, 4)
    assert tree(root / "frames") == before

    write_video(source / "run/empty.mp4", frames=29)  # the bad file is replaced by a good one: it alone is done
    third = prepare(source, root, short_side=40)
    assert (third.videos, third.done, third.bad) == (8, 1, 3)


def test_killed_in_the_middle_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, root = tmp_path / "in", tmp_path / "out"
    first = write_video(source / "c/000.mp4", frames=40, size=(160, 120))
    for k in range(1, 60):
        shutil.copy(first, source / f"c/{k:03d}.mp4")
    command = (
        "import sys; from tcore_lib import params\nfrom tcore_lib.data import videos\n"
        "if __name__ == '__main__':\n"
        "    given = params.Data(source=sys.argv[1], root=sys.argv[2], num_frames=8, workers=2)\n"
        "    videos.prepare(given, progress=False)\n"
    )
    script = tmp_path / "prepare.py"
    script.write_text(command)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    frames = root / "frames/train/c"

    process = subprocess.Popen([sys.executable, str(script), str(source), str(root)], env=environment)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not frames.is_dir() or len(list(frames.iterdir())) < 12):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = list(frames.iterdir())
    assert 12 <= len(finished) < 60, "killed in the middle"
    assert all(len(list(folder.iterdir())) == 8 for folder in finished), "no half-written folder has its final name"
    before = tree(frames)
    work_here(monkeypatch)
    report = prepare(source, root)
    assert (report.videos, report.complete, report.bad) == (60, True, 0)
    assert report.done == 60 - len(before) // 8, "nothing is done twice"
    assert {name: stamp for name, stamp in tree(frames).items() if name in before} == before
    assert not list((root / ".prepare-train").glob("scratch*")), "unfinished folders are removed"
    assert len(set(FrameIndex.load(report.index).checksums.tolist())) == 1


# --- sharing the work ---


def test_shards_partition_the_work_and_the_last_index_has_all(tmp_path: Path, here: list[str]) -> None:
    source, root = tmp_path / "in", tmp_path / "out"
    for k in range(7):
        write_video(source / f"v{k}.mp4", frames=4)
    (source / "v7.mp4").touch()
    reports = [prepare(source, root, shard=(i, 3)) for i in (2, 0, 1)]
    assert sorted(here) == [f"unlabelled/v{k}" for k in range(8)], "each once"
    assert [report.done for report in reports] == [2, 3, 2]  # of 2, 3 and 3: v7 is bad
    assert [report.videos for report in reports] == [2, 5, 7]
    assert [report.complete for report in reports] == [False, False, True]
    assert frame_checks.bad_files(root)["file"].tolist() == [str(source / "v7.mp4")]
    assert prepare(source, root).skipped == 8, "another division finds everything done"


def test_torchrun_ranks_are_shards(tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(4):
        write_video(tmp_path / f"in/v{k}.mp4", frames=4)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    prepare(tmp_path / "in", tmp_path / "out")
    assert here == ["unlabelled/v1", "unlabelled/v3"]
    with pytest.raises(InputError, match="2/2 is not possible"):
        prepare(tmp_path / "in", tmp_path / "out", shard=(2, 2))


def test_the_same_shard_twice_at_once_is_refused(
    tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "in/a.mp4", frames=4)
    inside, leave = threading.Event(), threading.Event()
    original = extract.work

    def slow(task: extract.Task) -> extract.Row:
        inside.set()
        leave.wait(20)
        return original(task)

    monkeypatch.setattr(extract, "work", slow)
    other = threading.Thread(target=prepare, args=(tmp_path / "in", tmp_path / "out"))
    other.start()
    inside.wait(20)
    with pytest.raises(InputError, match="Another process"):
        prepare(tmp_path / "in", tmp_path / "out")
    leave.set()
    other.join()


# --- what may go wrong ---


def test_a_full_disk_stops_cleanly_and_says_what_is_needed(
    tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(6):
        write_video(tmp_path / f"in/v{k}.mp4", frames=8)
    original = extract.work

    def fills_up(task: extract.Task) -> extract.Row:
        if len(here) == 4:
            task.folder.mkdir(parents=True)
            raise OSError(28, "No space left on device")
        return original(task)

    with monkeypatch.context() as full:
        full.setattr(extract, "work", fills_up)
        with pytest.raises(InputError, match=r"full after 3 of 6 clips; this part needs about [0-9.e-]+ GB more"):
            prepare(tmp_path / "in", tmp_path / "out")
    report = prepare(tmp_path / "in", tmp_path / "out")
    assert (report.done, report.skipped, report.videos, report.bad) == (3, 3, 6, 0), "a full disk makes no file bad"


def test_other_settings_or_foreign_folders_are_refused(tmp_path: Path, here: list[str]) -> None:
    write_video(tmp_path / "in/a.mp4", frames=8)
    prepare(tmp_path / "in", tmp_path / "out")
    with pytest.raises(InputError, match=r"data\.num_frames = 8, not 9"):
        prepare(tmp_path / "in", tmp_path / "out", num_frames=9)
    half = tmp_path / "out/frames/train/unlabelled/b"
    half.mkdir()
    (half / "00000.jpg").touch()
    write_video(tmp_path / "in/b.mp4", frames=8)
    with pytest.raises(InputError, match="unlabelled/b was not written by this preparation"):
        prepare(tmp_path / "in", tmp_path / "out")


def test_a_deleted_folder_is_made_again(tmp_path: Path, here: list[str]) -> None:
    for name in "ab":
        write_video(tmp_path / f"in/{name}.mp4", frames=8)
    prepare(tmp_path / "in", tmp_path / "out")
    shutil.rmtree(tmp_path / "out/frames/train/unlabelled/a")
    assert prepare(tmp_path / "in", tmp_path / "out").done == 1
    assert here == ["unlabelled/a", "unlabelled/b", "unlabelled/a"]


def test_a_torn_journal_line_costs_one_video(tmp_path: Path, here: list[str]) -> None:
    for name in "ab":
        write_video(tmp_path / f"in/{name}.mp4", frames=8)
    prepare(tmp_path / "in", tmp_path / "out")
    journal = tmp_path / "out/.prepare-train/0-of-1.jsonl"
    journal.write_bytes(journal.read_bytes()[:-40])
    shutil.rmtree(tmp_path / "out/frames/train/unlabelled/b")  # the folder gets its name after the line is written
    report = prepare(tmp_path / "in", tmp_path / "out")
    assert (report.done, report.videos) == (1, 2)


def test_nothing_usable_is_said_at_once(tmp_path: Path, here: list[str]) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match=r"data\.source is synthetic"):
        videos.prepare(Data(root=str(tmp_path / "out")), progress=False)
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="holds no videos, frame folders or images"):
        prepare(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/a.mp4").touch()
    with pytest.raises(InputError, match=r"None of the files .*a\.mp4: empty file"):
        prepare(tmp_path / "in", tmp_path / "out")
    with pytest.raises(InputError, match="holds no images"):
        prepare(tmp_path / "in", tmp_path / "out", layout="images")


def test_workers_may_die_hang_and_raise() -> None:
    tasks = ["a", "kill", "b", "raise", "hang", "c"]
    got = dict(workpool.run(misbehave, iter(tasks), workers=2, limit_s=1.0))
    assert {task: got[task] for task in "abc"} == {"a": "A", "b": "B", "c": "C"}
    assert got["kill"] == workpool.Failed("the decoding process died (SIGSEGV)", "died")
    assert got["raise"] == workpool.Failed("no good", "ValueError")
    assert got["hang"].kind == "hung"


# --- what people have on disk ---


def official_csv(path: Path, rows: list[tuple[str, str, int, int, str]]) -> Path:
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("label", "youtube_id", "time_start", "time_end", "split"))
        writer.writerows(rows)
    return path


def test_flat_folder_with_official_csv(tmp_path: Path, here: list[str]) -> None:
    source = tmp_path / "k400"
    annotations = official_csv(
        tmp_path / "train.csv",
        [
            ("golf putting", "abcdefghij-", 7, 17, "train"),
            ("passing American football (in game)", "_bcdefghijk", 1, 11, "train"),
            ("golf putting", "validation_", 1, 11, "val"),
            ("golf putting", "gone_gone_g", 1, 11, "train"),
        ],
    )
    write_video(source / "abcdefghij-_000007_000017.mp4", frames=8)
    write_video(source / "_bcdefghijk_000001_000011.mp4", frames=8)
    write_video(source / "validation__000001_000011.mp4", frames=8)
    report = prepare(source, tmp_path / "out", annotations=str(annotations))
    index = FrameIndex.load(report.index)
    assert index.paths.tolist() == [
        "golf_putting/abcdefghij-_000007_000017",
        "passing_American_football_in_game/_bcdefghijk_000001_000011",
    ]
    assert (report.missing, report.unlisted) == (1, 1)
    with pytest.raises(InputError, match="no row of split 'test'"):
        prepare(source, tmp_path / "out2", annotations=str(annotations), split="test")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="is not the official CSV"):
        prepare(source, tmp_path / "out2", annotations=str(tmp_path / "bad.csv"))


def test_archives_are_read_without_unpacking(tmp_path: Path, here: list[str]) -> None:
    """The CVDF layout: k400/train/part_N.tar.gz beside the other splits, and one archive cut off."""
    rows = [(f"class {k % 2}", f"id_{k:08d}", 0, 10, "train") for k in range(6)]
    annotations = official_csv(tmp_path / "train.csv", rows)
    train = tmp_path / "k400/train"
    train.mkdir(parents=True)
    (tmp_path / "k400/val").mkdir()
    for part in range(2):
        with tarfile.open(train / f"part_{part}.tar.gz", "w:gz") as tar:
            for k in range(3 * part, 3 * part + 3):
                path = write_video(tmp_path / f"id_{k:08d}_000000_000010.mp4", frames=20 + k)
                tar.add(path, f"./{path.name}")
    whole = settings(tmp_path / "k400", tmp_path / "out", annotations=str(annotations))
    for shard in ((0, 2), (1, 2)):
        report = videos.prepare(whole, shard=shard, progress=False)
    assert (report.videos, report.bad, report.complete) == (6, 0, True)
    index = FrameIndex.load(report.index)
    assert index.paths.tolist() == [
        f"class_{c}/id_{k:08d}_000000_000010" for c in (0, 1) for k in range(6) if k % 2 == c
    ]
    assert codes(index, 0)[-1] == 19
    assert videos.prepare(whole, shard=(0, 3), progress=False).done == 0, (
        "fewer archives than shards: members are shared"
    )
    cut = train / "part_1.tar.gz"
    cut.write_bytes(cut.read_bytes()[:-3000])
    report = prepare(tmp_path / "k400", tmp_path / "out2", annotations=str(annotations))
    assert 3 <= report.videos < 6, "part_0 and what could be read of part_1"
    assert report.bad == 1
    assert "archive is damaged" in frame_checks.bad_files(tmp_path / "out2")["reason"][0]
    with pytest.raises(InputError, match=r"part_0.tar.gz is an archive, which data.direct cannot"):
        prepare(tmp_path / "k400", tmp_path / "out3", annotations=str(annotations), direct=True)


def test_replacements_of_corrupted_files_are_taken(tmp_path: Path, here: list[str]) -> None:
    """CVDF ships whole versions of corrupted clips in k400/replacement, of all splits together."""
    k400 = tmp_path / "k400"
    names = [f"id_{k:08d}_000000_000010.mp4" for k in range(4)]
    annotations = official_csv(tmp_path / "train.csv", [("run", name[:11], 0, 10, "train") for name in names[:3]])
    write_video(k400 / "train" / names[0], frames=8)
    (k400 / "train" / names[1]).write_bytes(b"corrupted")
    with tarfile.open(k400 / "train/part_0.tar", "w") as tar:
        member = tarfile.TarInfo(names[2])
        member.size = 9
        tar.addfile(member, io.BytesIO(b"corrupted"))
    for name in names[1:]:  # the last one is of another split
        write_video(k400 / "replacement/replacement_for_corrupted_k400" / name, frames=12)
    report = prepare(k400, tmp_path / "out", annotations=str(annotations))
    assert (report.videos, report.bad) == (3, 0)
    index = FrameIndex.load(report.index)
    assert [codes(index, i)[-1] for i in range(3)] == [7, 11, 11]


def test_names_that_meet(tmp_path: Path, here: list[str]) -> None:
    source = tmp_path / "in"
    write_video(source / "train/a.mp4", frames=8)  # a class called train, as the other class shows
    write_video(source / "train/a.avi", frames=8)
    write_video(source / "bus/a.mp4", frames=8)
    (source / "bus/a.jpg").touch()  # a thumbnail makes it no folder of images
    index = FrameIndex.load(prepare(source, tmp_path / "out").index)
    assert index.paths.tolist() == ["bus/a", "train/a", "train/a.mp4"]


def test_links_and_names_that_are_no_text(tmp_path: Path, here: list[str]) -> None:
    source = tmp_path / "in"
    first = write_video(source / "c/a.mp4", frames=8)
    (source / "c/round").symlink_to(source)
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    write_video(tmp_path / "elsewhere/b.mp4", frames=8)
    shutil.copy(first, os.fsencode(source) + b"/c/\xff\n.mp4")
    shutil.copy(first, source / "c/\u00fcber\u202f\u65e5\u672c.mp4")
    report = prepare(source, tmp_path / "out")
    assert FrameIndex.load(report.index).paths.tolist() == ["c/a", "c/\u00fcber\u202f\u65e5\u672c", "linked/b"]
    bad = frame_checks.bad_files(tmp_path / "out")
    assert bad["reason"].tolist() == ["the file's or folder's name is not plain text; rename it"]
    assert bad["file"][0].endswith(r"/c/\udcff\n.mp4")
    assert prepare(source, tmp_path / "out").done == 0


def write_frames(folder: Path, count: int, name: str = "{:05d}.jpg", size: tuple[int, int] = (64, 48)) -> None:
    folder.mkdir(parents=True)
    for k in range(count):
        Image.fromarray(coded_frame(k, size)).save(folder / name.format(k), quality=95)


def test_existing_frame_folders_are_indexed_where_they_lie(tmp_path: Path, here: list[str]) -> None:
    source, root = tmp_path / "k400", tmp_path / "out"
    write_frames(source / "frames/train/run/v1", 20)
    write_frames(source / "frames/train/run/v2", 5, "img_{:03d}.png", (128, 96))
    (source / "frames/train/run/v3").mkdir()
    write_frames(source / "frames/train/jump/v4", 3)
    (source / "frames/train/jump/v4/00001.jpg").write_bytes(b"\xff\xd8 cut")
    report = prepare(source, root, short_side=48)
    index = FrameIndex.load(report.index)
    assert index.paths.tolist() == ["run/v1", "run/v2"]
    assert index.num_frames.tolist() == [20, 5]
    assert index.numbered.tolist() == [True, False]
    assert index.root == source / "frames/train"
    assert codes(index, 0) == list(range(20))
    assert codes(index, 1) == list(range(5))
    assert index.read(1, [0])[0].shape == (48, 64, 3) == (index.heights[1], index.widths[1], 3)
    assert index.frame_path(1, 2).name == "img_002.png"
    reasons = frame_checks.bad_files(root)["reason"].tolist()
    assert reasons == ["00001.jpg is not a readable image", "no frames"]
    assert not (root / "frames").exists(), "nothing is copied"
    shutil.rmtree(source / "frames/train/run/v1")
    assert prepare(source, root, short_side=48).videos == 1, "the index follows the folder"


def test_images_are_clips_of_one_frame(tmp_path: Path, here: list[str]) -> None:
    source = tmp_path / "imagenet"
    for name in ("n01/n01_1.JPEG", "n01/n01_2.JPEG", "n02/n02_1.JPEG"):
        (source / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coded_frame(3, (128, 96))).save(source / "train" / name, "JPEG")
    index = FrameIndex.load(prepare(source, tmp_path / "out", short_side=48).index)
    assert index.kind == "images"
    assert index.paths.tolist() == ["n01/n01_1.JPEG", "n01/n01_2.JPEG", "n02/n02_1.JPEG"]
    assert index.class_ids.tolist() == [0, 0, 1]
    assert index.num_frames.tolist() == [1, 1, 1]
    assert [frame.shape for frame in index.read(2, [0, 0])] == [(48, 64, 3)] * 2


def test_direct_gives_the_frames_that_extraction_gives(tmp_path: Path, here: list[str]) -> None:
    source = tmp_path / "in"
    write_video(source / "a.mp4", frames=61, size=(96, 64), options={"g": "15"})
    write_video(source / "b.avi", frames=45, size=(96, 64))
    write_video(source / "c.webm", frames=3, size=(96, 64), codec="libvpx-vp9")
    extracted = FrameIndex.load(prepare(source, tmp_path / "out", short_side=32, jpeg_quality=100).index)
    direct = FrameIndex.load(prepare(source, tmp_path / "direct", short_side=32, direct=True).index)
    assert direct.kind == "video"
    assert not (tmp_path / "direct/frames").exists()
    assert direct.num_frames.tolist() == extracted.num_frames.tolist() == [8, 8, 3]
    for i in range(3):
        wanted = [2, 0, 1]
        for a, b in zip(extracted.read(i, wanted), direct.read(i, wanted), strict=True):
            assert a.shape == b.shape == (32, 48, 3)
            assert np.abs(a.astype(int) - b).mean() < 3  # JPEG
            assert read_code(a) == read_code(b)
    by_rate = FrameIndex.load(prepare(source, tmp_path / "rate", direct=True, fps=1.0).index)
    assert by_rate.num_frames.tolist() == [7, 5, 1]  # 0..6 s of 6.0 s, 0..4 s of 4.4 s, 0 s of 0.2 s
    (source / "a.mp4").unlink()
    with pytest.raises(InputError, match=r"a\.mp4 cannot be read: file is missing"):
        direct.read(0, [1])


# --- the index ---


def large_index(n: int, root: Path) -> FrameIndex:
    return FrameIndex(
        root=root,
        paths=[f"class {k % 7}/video {k}" for k in range(n)],
        class_ids=[k % 7 for k in range(n)],
        class_names=[f"class {k}" for k in range(7)],
        num_frames=[1 + k % 30 for k in range(n)],
        widths=[340] * n,
        heights=[256] * n,
        checksums=["0" * 16] * n,
        kind="video",
        sequential=[k % 2 for k in range(n)],
        timestamps=np.concatenate([np.arange(1 + k % 30) + 100 * k for k in range(n)]),
        short_side=256,
        settings={"fps": None},
    )


def same(a: FrameIndex, b: FrameIndex) -> bool:
    names = (
        "paths",
        "class_ids",
        "num_frames",
        "widths",
        "heights",
        "checksums",
        "numbered",
        "sequential",
        "timestamps",
    )
    scalars = ("root", "class_names", "kind", "short_side", "settings")
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names) and all(
        getattr(a, n) == getattr(b, n) for n in scalars
    )


def test_index_survives_saving_moving_and_pickling(tmp_path: Path) -> None:
    index = large_index(5000, tmp_path / "one/videos")
    index.save(tmp_path / "one/index.parquet")
    loaded = FrameIndex.load(tmp_path / "one/index.parquet")
    assert same(loaded, index)
    assert same(pickle.loads(pickle.dumps(index)), index)
    assert pd.read_parquet(tmp_path / "one/index.parquet")["path"][3] == "class 3/video 3"
    (tmp_path / "one").rename(tmp_path / "two")
    assert FrameIndex.load(tmp_path / "two/index.parquet").path(3) == tmp_path / "two/videos/class 3/video 3"
    part = index.subset([4, 2])
    assert part.paths.tolist() == ["class 4/video 4", "class 2/video 2"]
    assert part.timestamps.tolist() == [400, 401, 402, 403, 404, 200, 201, 202]
    assert index.class_name(4) == "class 4"


def test_a_wrong_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; prepare the data first"):
        FrameIndex.load(tmp_path / "none.parquet")
    (tmp_path / "noise.parquet").write_bytes(b"noise" * 100)
    with pytest.raises(InputError, match="is not an index"):
        FrameIndex.load(tmp_path / "noise.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(InputError, match="is not an index"):
        FrameIndex.load(tmp_path / "other.parquet")
    given: dict[str, Any] = {
        "root": tmp_path,
        "paths": ["a"],
        "class_ids": [0],
        "class_names": ["c"],
        "num_frames": [2],
    }
    given |= {"widths": [1], "heights": [1], "checksums": [""], "timestamps": [0, 1]}
    for change, problem in {
        "num_frames": ([0], "without frames"),
        "class_ids": ([1], "class without a name"),
        "widths": ([1, 1], "widths has shape"),
        "kind": ("films", "unknown kind"),
        "timestamps": ([0], "timestamps and num_frames do not match"),
    }.items():
        with pytest.raises(InputError, match=problem[1]):
            FrameIndex(**{"kind": "video"} | given | {change: problem[0]})


def test_reading_what_is_not_there(tmp_path: Path, here: list[str]) -> None:
    write_frames(tmp_path / "in/c/v", 5)
    index = FrameIndex.load(prepare(tmp_path / "in", tmp_path / "out").index)
    with pytest.raises(InputError, match="frames 0 to 4; there is no frame 5"):
        index.read(0, [0, 5])
    (tmp_path / "in/c/v/00003.jpg").unlink()
    with pytest.raises(InputError, match=r"00003.jpg cannot be read"):
        index.read(0, [3])


def test_released_index_there_and_back(tmp_path: Path, here: list[str]) -> None:
    source = tmp_path / "k400/frames/train"
    for name in ("run/abcdefghijk_000001_000011", "run/b", "jump/c"):
        write_frames(source / name, 4)
    report = prepare(tmp_path / "k400", tmp_path / "out")
    written = export_released(FrameIndex.load(report.index), tmp_path / "released")
    assert [p.name for p in written] == [
        "entries-TRAIN.npy",
        "class-ids-TRAIN.npy",
        "class-names-TRAIN.npy",
        "labels.txt",
    ]
    entries = np.load(written[0], allow_pickle=False)
    assert entries.dtype.names == ("video_id", "class_index", "class_id", "class_name")
    assert entries.tolist() == [
        ("c", 0, "class_0", "jump"),
        ("abcdefghijk_000001_000011", 1, "class_1", "run"),
        ("b", 1, "class_1", "run"),
    ]
    assert written[3].read_text() == "0,jump\n1,run\n"
    pairs, names = read_released(written[0])
    assert pairs == [("jump", "c"), ("run", "abcdefghijk_000001_000011"), ("run", "b")]
    assert names == ["jump", "run"]

    np.save(written[0], entries[[0, 2]])  # someone's shorter list, and their ids
    written[3].write_text("7,jump\n3,run\n5,swim\n")
    report = prepare(tmp_path / "k400", tmp_path / "again", annotations=str(written[0]))
    index = FrameIndex.load(report.index)
    assert index.paths.tolist() == ["jump/c", "run/b"]
    assert index.class_names == ["run", "swim", "jump"]
    assert index.class_ids.tolist() == [2, 0]
    assert (report.unlisted, report.missing) == (1, 0)


def test_hostile_released_indexes_are_refused(tmp_path: Path) -> None:
    dtype = [("video_id", "<U25"), ("class_index", "<u4"), ("class_id", "<U9"), ("class_name", "<U9")]
    path = tmp_path / "entries-TRAIN.npy"
    np.save(path, np.array([("../../x", 0, "class_0", "run")], dtype=dtype))
    with pytest.raises(InputError, match=r"'../../x' .*no plain folder name"):
        read_released(path)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="is not a released index"):
        read_released(path)


@pytest.mark.parametrize("content", [b"\xff\xfe0,run\n", b"0," + b"x" * 200_000, b"1" * 5000 + b",run\n"])
def test_a_damaged_list_of_labels_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    dtype = [("video_id", "<U25"), ("class_index", "<u4"), ("class_id", "<U9"), ("class_name", "<U9")]
    np.save(tmp_path / "entries-TRAIN.npy", np.array([("a", 0, "class_0", "run")], dtype=dtype))
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"labels\.txt cannot be read"):
        read_released(tmp_path / "entries-TRAIN.npy")


# --- looking at it ---


def test_counts_and_histograms() -> None:
    index = large_index(70, Path("/nowhere"))
    assert frame_checks.class_counts(index).tolist() == [10] * 7
    assert frame_checks.size_counts(index).to_dict("records") == [{"width": 340, "height": 256, "videos": 70}]
    assert frame_checks.bad_files("/nowhere").empty


def test_estimate_before_starting(tmp_path: Path, here: list[str]) -> None:
    for k in range(6):
        write_video(tmp_path / f"in/v{k}.mp4", frames=8, size=(160, 120))
    (tmp_path / "in/v6.mp4").touch()
    given = settings(tmp_path / "in", tmp_path / "out", workers=2)
    guess = frame_checks.estimate(given, sample=7, progress=False)
    assert (guess.videos, guess.sampled, guess.bad, guess.workers, guess.fits) == (7, 7, 1, 2, True)
    assert guess.hours == pytest.approx(7 * guess.seconds_per_clip / 2 / 3600)
    assert guess.table().loc["tried", "estimate"] == "7, 1 of them bad"
    assert guess.table().loc["all videos take", "estimate"].endswith("minutes with 2 processes")
    assert "archives" in dataclasses.replace(guess, videos=None, hours=None).table().loc["videos found", "estimate"]
    assert not (tmp_path / "out").exists(), "an estimate leaves nothing behind"
    report = videos.prepare(given, progress=False)
    assert guess.gigabytes == pytest.approx(report.bytes / 1e9)


def test_doctor_finds_what_is_wrong_with_frames(tmp_path: Path, here: list[str]) -> None:
    source, root = tmp_path / "in", tmp_path / "out"
    for k in range(20):
        write_video(source / f"v{k:02d}.mp4", frames=8)
    prepare(source, root)
    healthy = frame_checks.doctor_frames(root, workers=1, progress=False)
    assert healthy.ok
    assert "20 videos have 8 frames" in str(healthy)
    assert "fit for training" in str(healthy)
    frames = root / "frames/train/unlabelled"
    (frames / "v00/00003.jpg").unlink()
    (frames / "v01/00003.jpg").write_bytes((frames / "v01/00003.jpg").read_bytes()[:300])
    Image.fromarray(coded_frame(0, (32, 24))).save(frames / "v02/00000.jpg")
    shutil.rmtree(frames / "v03")
    (frames / "v04b").mkdir()
    report = frame_checks.doctor_frames(root, workers=2, progress=False)
    found = report.problems.groupby("video")["problem"].apply(" | ".join).to_dict()
    assert sorted(found) == [f"unlabelled/{name}" for name in ("v00", "v01", "v02", "v03", "v04b")]
    assert "1 missing in the numbering, the first is 3" in found["unlabelled/v00"]
    assert "has 7 frames, the others 8" in found["unlabelled/v00"]
    assert "00003.jpg: not a readable image" in found["unlabelled/v01"]
    assert "checksum" in found["unlabelled/v01"]
    assert "different sizes: 32x24, 64x48" in found["unlabelled/v02"]
    assert found["unlabelled/v03"] == "is in the index but not on disk"
    assert "has no frames" in found["unlabelled/v04b"]
    assert not report.ok
    assert "problem     unlabelled/v03: is in the index but not on disk" in str(report)
    assert (report.videos, report.frames) == (20, 18 * 8 + 7)


def test_real_videos(tmp_path: Path, here: list[str]) -> None:
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is not here")
    report = prepare(REAL, tmp_path / "out", num_frames=5)
    index = FrameIndex.load(report.index)
    assert (report.videos, report.bad) == (6, 0)
    assert index.class_names == ["arm wrestling", "unlabelled"]
    assert index.num_frames.tolist() == [5] * 6
    assert sorted(zip(index.widths.tolist(), index.heights.tolist(), strict=True)) == [
        (320, 240),
        (340, 256),
        (340, 256),
        (340, 256),
        (426, 240),
        (455, 256),
    ]
