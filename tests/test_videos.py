"""Preparation: from what lies on disk to frames and an index; resumable, shared, and stopped by no file."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from coded_videos import read_code, write_sound, write_video
from PIL import Image

from tcore_lib.data import videos
from tcore_lib.data.index import FrameIndex
from tcore_lib.errors import InputError
from tcore_lib.params import Data

ROOT = Path(__file__).parents[1]


def prepare(source: Path, root: Path, shard: str = "0/1", **changes: Any) -> videos.Prepared:
    cfg = Data(**{"source": str(source), "root": str(root), "num_frames": 8, "workers": 1} | changes)
    return videos.prepare(cfg, shard=shard, progress=False)


def bad_files(report: videos.Prepared) -> dict[str, str]:
    """Name -> reason."""
    table = pd.read_csv(report.bad_files)
    return {Path(file).name: reason for file, reason in zip(table["file"], table["reason"], strict=True)}


def tree(root: Path) -> dict[str, int]:
    """Every file below a root with its modification time."""
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def copies(folder: Path, count: int, **options: Any) -> None:
    first = write_video(folder / "v00.mp4", **{"frames": 8} | options)
    for k in range(1, count):
        shutil.copy(first, folder / f"v{k:02d}.mp4")


def test_videos_of_all_kinds_and_all_defects(tmp_path: Path, here: None) -> None:
    source, root = tmp_path / "in", tmp_path / "out"
    for name in ("run/a.mp4", "run/b.mov", "jump/a.mkv", "jump/b.avi", "jump/deep/c.webm"):
        codec = {"codec": "libvpx-vp9"} if name.endswith("webm") else {}
        write_video(source / name, frames=29, size=(64, 48), **codec)
    write_video(source / "run/short.mp4", frames=3)
    write_video(source / "run/large.mp4", frames=9, size=(96, 80))
    (source / "run/empty.mp4").touch()
    (source / "jump/noise.mp4").write_bytes(b"no video" * 100)
    write_sound(source / "jump/sound.mp4")
    (source / "run/notes.txt").write_text("not a video")
    (source / ".hidden").mkdir()
    shutil.copy(source / "run/a.mp4", source / ".hidden/a.mp4")

    report = prepare(source, root, short_side=40)
    assert (report.videos, report.done, report.bad, report.complete) == (7, 7, 3, True)
    index = FrameIndex.load(report.index)
    assert index.paths.tolist() == ["jump/a", "jump/b", "jump/deep_c", "run/a", "run/b", "run/large", "run/short"]
    assert index.num_frames.tolist() == [8, 8, 8, 8, 8, 8, 3]
    assert index.widths.tolist() == [53, 53, 53, 53, 53, 48, 53]  # 64 * 40 / 48 = 53.3; 96 * 40 / 80 = 48
    assert set(index.heights.tolist()) == {40}
    shown = [[read_code(frame) for frame in index.read(i, range(index.num_frames[i]))] for i in (0, 1, 2, 3, 4, 6)]
    assert shown == [[0, 4, 8, 12, 16, 20, 24, 28]] * 5 + [[0, 1, 2]]
    reasons = bad_files(report)
    assert "the file is empty" in reasons["empty.mp4"]
    assert "audio only" in reasons["sound.mp4"]
    assert "cannot be read" in reasons["noise.mp4"]
    assert "notes.txt,files of type '.txt'" in (root / "left_out-train.csv").read_text()

    before = tree(root / "frames")
    again = prepare(source, root, short_side=40)
    assert (again.videos, again.done, again.skipped, again.bad) == (7, 0, 7, 3)
    assert tree(root / "frames") == before
    write_video(source / "run/empty.mp4", frames=29)  # the bad file is replaced by a good one
    third = prepare(source, root, short_side=40)
    assert (third.videos, third.done, third.bad) == (8, 1, 2)


def misbehaving(video: Path, folder: Path, scratch: Path, cfg: Data) -> videos.Row:
    """In place of `extract`, in a worker process."""
    if video.stem == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if video.stem == "hangs":
        time.sleep(60)
    folder.mkdir(parents=True)
    Image.new("RGB", (3, 2)).save(folder / "00000.jpg")
    return videos.finished_row(folder)


def test_a_decoder_that_dies_or_hangs_costs_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "dies", "b", "hangs", "c"):
        write_video(tmp_path / f"in/{name}.mp4", frames=2)
    monkeypatch.setattr(videos, "extract", misbehaving)
    monkeypatch.setattr(videos, "PATIENCE_S", 4)
    report = prepare(tmp_path / "in", tmp_path / "out", workers=2)
    assert FrameIndex.load(report.index).paths.tolist() == [f"unlabelled/{name}" for name in "abc"]
    reasons = bad_files(report)
    assert "ended its decoder, or kept it too long (Abnormal termination)" in reasons["dies.mp4"]
    assert "Task timeout" in reasons["hangs.mp4"]


SCRIPT = """
import sys
from tcore_lib import params
from tcore_lib.data import videos
if __name__ == "__main__":
    videos.prepare(params.Data(source=sys.argv[1], root=sys.argv[2], num_frames=8, workers=2), progress=False)
"""


def test_killed_in_the_middle_and_started_again(tmp_path: Path, here: None) -> None:
    """TCORE_KILLS=25 kills it as often, whenever it has done a few more."""
    kills = int(os.environ.get("TCORE_KILLS", "1"))
    source, root = tmp_path / "in", tmp_path / "out"
    copies(source / "c", 30 + 10 * kills, frames=40, size=(160, 120))
    (tmp_path / "prepare.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "prepare.py"), str(source), str(root)]
    frames, rng = root / "frames/train/c", np.random.default_rng(0)
    before: dict[str, int] = {}
    for _ in range(kills):
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
        wanted = len(before) // 8 + int(rng.integers(1, 8))
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and (not frames.is_dir() or len(list(frames.iterdir())) < wanted):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert all(len(list(folder.iterdir())) == 8 for folder in frames.iterdir()), (
            "no half-written folder has its name"
        )
        after = tree(frames)
        assert {name: stamp for name, stamp in after.items() if name in before} == before, "nothing is done twice"
        before = after
    assert 0 < len(before) // 8 < 30 + 10 * kills, "killed in the middle"
    report = prepare(source, root)
    assert report.skipped >= len(before) // 8  # the killed one's workers finish what they are at
    assert (report.videos, report.complete, report.bad) == (30 + 10 * kills, True, 0)
    assert {name: stamp for name, stamp in tree(frames).items() if name in before} == before
    assert not list((root / ".prepare-train").glob("unfinished*")), "unfinished folders are removed"
    prepare(source, tmp_path / "whole")
    resumed, whole = (FrameIndex.load(folder / "index-train.parquet") for folder in (root, tmp_path / "whole"))
    for name in ("paths", "num_frames", "widths", "heights"):
        assert np.array_equal(getattr(resumed, name), getattr(whole, name)), name


def test_shards_partition_the_work_and_the_last_index_has_all(tmp_path: Path, here: None) -> None:
    source, root = tmp_path / "in", tmp_path / "out"
    copies(source, 7)
    (source / "v07.mp4").touch()
    reports = [prepare(source, root, shard=f"{i}/3") for i in (2, 0, 1)]
    assert [report.done for report in reports] == [2, 3, 2]  # of 2, 3 and 3: v07 is bad
    assert [report.videos for report in reports] == [2, 5, 7]
    assert [report.complete for report in reports] == [False, False, True]
    assert [list(bad_files(report)) for report in reports] == [[], [], ["v07.mp4"]]
    again = prepare(source, root)
    assert (again.skipped, again.bad, again.complete) == (7, 1, True), "another division finds everything done"
    with pytest.raises(InputError, match="'2/2' is not possible"):
        prepare(source, root, shard="2/2")


def test_other_settings_and_other_peoples_frames_are_refused(tmp_path: Path, here: None) -> None:
    copies(tmp_path / "in", 1)
    prepare(tmp_path / "in", tmp_path / "out")
    with pytest.raises(InputError, match=r"made with .*'num_frames': 8, .* not with .*'num_frames': 9"):
        prepare(tmp_path / "in", tmp_path / "out", num_frames=9)
    foreign = tmp_path / "foreign/frames/train/c/b"
    foreign.mkdir(parents=True)
    (foreign / "00000.jpg").touch()
    with pytest.raises(InputError, match="holds frames made with another tool, not with"):
        prepare(tmp_path / "in", tmp_path / "foreign")


def test_the_named_remedy_repairs_a_damaged_frame(tmp_path: Path, here: None) -> None:
    copies(tmp_path / "in", 2)
    index = FrameIndex.load(prepare(tmp_path / "in", tmp_path / "out").index)
    whole = index.read(1, [5])[0]
    os.truncate(index.frame_paths(1, [5])[0], 300)
    with pytest.raises(
        InputError, match=r"00005\.jpg cannot be read \(.*\); remove \S+v01, which `tcore prepare` wrote"
    ):
        index.read(1, [5])
    shutil.rmtree(index.path(1))
    assert prepare(tmp_path / "in", tmp_path / "out").done == 1
    assert np.array_equal(index.read(1, [5])[0], whole)
    os.truncate(index.frame_paths(0, [3])[0], 0)  # as after a power cut: noticed when the folders are looked at
    report = prepare(tmp_path / "in", tmp_path / "out")
    assert (report.done, report.videos, report.bad) == (0, 1, 1)
    assert f"remove {index.path(0)}, which" in report.bad_files.read_text()


def test_a_source_that_is_its_own_root(tmp_path: Path, here: None) -> None:
    """`prepare x x`, twice: the second time everything is found finished, and the frames are no input."""
    copies(tmp_path / "walk", 3)
    for done in (3, 0):
        report = prepare(tmp_path, tmp_path)
        assert (report.done, report.skipped, report.videos) == (done, 3 - done, 3)
    assert len((tmp_path / "left_out-train.csv").read_text().splitlines()) == 1
    assert len(list((tmp_path / "walk").iterdir())) == 3


def test_nothing_usable_is_said_at_once(tmp_path: Path, here: None) -> None:
    def refused(problem: str, source: str = "in", **changes: Any) -> None:
        with pytest.raises(InputError, match=problem):
            prepare(tmp_path / source, tmp_path / "out", **changes)

    refused("is not a folder", "nowhere")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.xyz").touch()
    refused(r"nothing to use in .*: 0 videos in 0 classes; .*; left out: 1 files of type '\.xyz'")
    (tmp_path / "in/a.mp4").touch()
    refused(r"None of the files .*a\.mp4 cannot be read \(the file is empty\)")
    refused("nothing to use in .*: 0 single images", layout="images")


def test_index_survives_saving_moving_and_pickling(tmp_path: Path) -> None:
    n = 5000
    index = FrameIndex(
        root=tmp_path / "one/videos",
        paths=[f"class {k % 7}/video {k}" for k in range(n)],
        num_frames=1 + np.arange(n) % 30,
        widths=[340] * n,
        heights=[256] * n,
        short_side=256,
    )
    index.save(tmp_path / "one/index.parquet")
    for copy in (FrameIndex.load(tmp_path / "one/index.parquet"), pickle.loads(pickle.dumps(index))):
        assert all(np.array_equal(value, vars(index)[name]) for name, value in vars(copy).items())
    assert pd.read_parquet(tmp_path / "one/index.parquet")["path"][3] == "class 3/video 3"
    (tmp_path / "one").rename(tmp_path / "two")
    assert FrameIndex.load(tmp_path / "two/index.parquet").path(3) == tmp_path / "two/videos/class 3/video 3"


def test_a_wrong_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 damaged")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    for name in ("none", "damaged", "other"):
        with pytest.raises(InputError, match=rf"{name}\.parquet cannot be read .*; prepare the data"):
            FrameIndex.load(tmp_path / f"{name}.parquet")
