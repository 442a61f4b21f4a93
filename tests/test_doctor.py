"""The data doctor finds every fault that is planted, says it in one sentence, and lets whole data pass."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from small_clips import H, W, write_small_davis, write_small_jhmdb, write_small_vip
from test_clips import damage

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips, doctor

DAVIS, JHMDB, VIP = params.Davis(), params.Jhmdb(), params.Vip()


def mask(root: Path, clip: str, frame: int) -> Path:
    return root / "Annotations" / "480p" / clip / f"{frame:05d}.png"


def sole_problem(settings: params.Benchmark, root: Path) -> str:
    report = doctor.examine(settings, root, progress=False)
    assert not report.ok
    assert len(report.problems) == 1, report.problems
    assert "NOT fit for evaluation" in str(report)
    assert report.problems[0] in str(report)
    with pytest.raises(InputError) as raised:
        report.require()
    assert str(raised.value) == report.problems[0]
    return report.problems[0]


def test_whole_data_passes(tmp_path: Path) -> None:
    for settings, write in ((DAVIS, write_small_davis), (JHMDB, write_small_jhmdb), (VIP, write_small_vip)):
        root = write(tmp_path / write.__name__)
        before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
        report = doctor.examine(settings, root, progress=False)
        report.require()
        assert ("clips", "2 complete of 2 listed") in report.facts
        assert ("sizes", f"{W}x{H}: 2") in report.facts
        assert len(report.remarks) == 1
        assert "not comparable with published ones" in report.remarks[0]
        assert "fit for evaluation" in str(report)
        assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before


def test_a_missing_list_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    assert "val.txt cannot be read" in sole_problem(DAVIS, tmp_path)
    assert "holds no *_test_split1.txt" in sole_problem(JHMDB, tmp_path)
    assert "val_videos.txt cannot be read" in sole_problem(VIP, tmp_path)


def test_a_missing_clip(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    (root / "ImageSets" / "2017" / "val.txt").write_text("one\ntwo\nthree\n")
    assert "480p/three is not a folder" in sole_problem(DAVIS, root)
    assert doctor.examine(DAVIS, root, progress=False).facts[0] == ("clips", "2 complete of 3 listed")
    assert doctor.examine(params.Davis(clips=["one"]), root, progress=False).ok


def test_missing_annotations_are_counted(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    for frame in (2, 3, 5):
        mask(root, "one", frame).unlink()
    assert "one/00002.png (and 2 more) is missing" in sole_problem(DAVIS, root)


def test_files_that_do_not_decode(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    damage(root / "JPEGImages" / "480p" / "two" / "00003.jpg")
    assert "two/00003.jpg cannot be decoded" in sole_problem(DAVIS, root)
    damage(mask(root, "one", 4))
    report = doctor.examine(DAVIS, root, progress=False)
    assert len(report.problems) == 2
    with pytest.raises(InputError, match=r"\(1 more problems are in the report\)"):
        report.require()
    assert doctor.examine(DAVIS, root, decode=False, progress=False).ok  # asked not to read images


def test_resized_annotations(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    for frame in range(6):
        clips.write_ids(mask(root, "one", frame), np.ones((480, 880), np.uint8))
    problem = sole_problem(DAVIS, root)
    assert "6 annotations are resized to 880x480, the frames are 160x96" in problem
    asked_for = doctor.examine(params.Davis(score_size="input"), root, progress=False)
    assert asked_for.ok
    assert any("a variant" in remark for remark in asked_for.remarks)


def test_annotations_of_another_size(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    clips.write_ids(mask(root, "two", 1), np.ones((H, W + 2), np.uint8))
    assert "two/00001.png is 162x96, its frame 160x96" in sole_problem(DAVIS, root)


def test_frames_of_two_sizes(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    Image.new("RGB", (W, H - 1)).save(root / "JPEGImages" / "480p" / "two" / "00002.jpg")
    assert "00002.jpg is 160x95, the clip's first frame 160x96" in sole_problem(DAVIS, root)


def test_annotations_in_colour(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    Image.new("RGB", (W, H)).save(mask(root, "two", 1))
    assert "RGB image, not a palette or grey one" in sole_problem(DAVIS, root)


def test_a_first_frame_without_object(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    clips.write_ids(mask(root, "two", 0), np.zeros((H, W), np.uint8))
    assert "two/00000.png shows no object" in sole_problem(DAVIS, root)


def test_unusual_ids_are_remarked(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    ids = clips.read_ids(mask(root, "one", 0))
    clips.write_ids(mask(root, "one", 0), np.where(ids == 2, 3, ids).astype(np.uint8))
    ids[0, 0] = 255
    clips.write_ids(mask(root, "one", 4), ids)
    report = doctor.examine(DAVIS, root, progress=False)
    assert report.ok
    text = "\n".join(report.remarks)
    assert "ids [1, 3] of the first frame are not 1 ... 3" in text
    assert "ids [2] appear after the first frame" in text
    assert "1 annotations have void pixels" in text


def test_a_gap_in_the_numbers_is_remarked(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    (root / "JPEGImages" / "480p" / "one" / "00003.jpg").unlink()
    mask(root, "one", 3).unlink()
    assert "one: frame 3 and 0 more are missing" in "\n".join(doctor.examine(DAVIS, root, progress=False).remarks)


def test_a_mat_file_without_joints(tmp_path: Path) -> None:
    root = write_small_jhmdb(tmp_path)
    scipy.io.savemat(root / "joint_positions" / "catch" / "ball_1" / "joint_positions.mat", {"scale": np.ones(5)})
    assert "ball_1/joint_positions.mat has no variable pos_img" in sole_problem(JHMDB, root)


def test_a_vip_clip_without_annotations_and_one_with_instances(tmp_path: Path) -> None:
    root = write_small_vip(tmp_path)
    folder = root / "Annotations" / "Category_ids"
    ids = clips.read_ids(folder / "videos2" / f"{3:012d}.png")
    ids[0, 0] = 20
    clips.write_ids(folder / "videos2" / f"{3:012d}.png", ids)
    assert "has the id 20, not one of 0 ... 19" in sole_problem(VIP, root)
    for path in (folder / "videos2").iterdir():
        path.unlink()
    assert "videos2 holds no .png file" in sole_problem(VIP, root)


def test_chosen_clips_and_other_splits_are_compared_fairly(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    assert doctor.examine(params.Davis(clips=["one"]), root, progress=False).remarks == []
    (root / "ImageSets" / "2017" / "train.txt").write_text("one\n")
    remarks = doctor.examine(params.Davis(split="train"), root, progress=False).remarks
    assert remarks == ["published figures are of split val, not train"]
