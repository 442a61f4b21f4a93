"""The data doctor finds every fault that is planted, says it in one sentence, and lets whole data pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image
from small_clips import H, W, damage, write_small_davis, write_small_jhmdb, write_small_vip

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips, doctor

DAVIS, JHMDB, VIP = params.Davis(), params.Jhmdb(), params.Vip()
WRITERS = {"davis": (DAVIS, write_small_davis), "jhmdb": (JHMDB, write_small_jhmdb), "vip": (VIP, write_small_vip)}
PARTS = "Annotations/Category_ids/videos2"


def examine(settings: params.Benchmark, root: Path) -> doctor.Report:
    return doctor.examine(settings, root, progress=False)


@pytest.mark.parametrize("kind", WRITERS)
def test_whole_data_passes(kind: str, tmp_path: Path) -> None:
    settings, write_small = WRITERS[kind]
    root = write_small(tmp_path)
    report = examine(settings, root)
    report.require()
    for said in ("2 complete of 2 listed", f"{W}x{H}: 2"):
        assert said in str(report)
    (remark,) = report.remarks
    assert "not comparable with published ones" in remark
    assert "fit for evaluation" in str(report)
    assert not [path for path in root.rglob("*") if path.suffix not in ("", ".jpg", ".png", ".txt", ".mat")]


Plant = Callable[[Path], Any]


def ids(name: str, labels: np.ndarray) -> Plant:
    return lambda root: clips.write_ids(root / name, labels.astype(np.uint8))


def picture(name: str, size: tuple[int, int] = (W, H)) -> Plant:
    return lambda root: Image.new("RGB", size).save(root / name)


def cut(name: str) -> Plant:
    return lambda root: damage(root / name)


def write(name: str, text: str) -> Plant:
    return lambda root: (root / name).write_text(text)


def lose(name: str) -> Plant:
    return lambda root: (root / name).unlink()


def joints(**variables: Any) -> Plant:
    return lambda root: scipy.io.savemat(root / MAT, variables)


NOTES, VAL = "Annotations/480p", "ImageSets/2017/val.txt"
MAT = "joint_positions/catch/ball_1/joint_positions.mat"
FAULTS: list[tuple[str, Plant, str]] = [
    ("davis", lose(VAL), "val.txt cannot be read"),
    ("davis", write(VAL, "\n"), "names no clip"),
    ("davis", write(VAL, "one\none\n"), "names the clip one twice"),
    ("davis", write(VAL, "one\n../two\n"), "which is no name of a folder inside the benchmark"),
    ("davis", write(VAL, "one\nthree\n"), "480p/three is not a folder"),
    ("davis", cut("JPEGImages/480p/two/00003.jpg"), "two/00003.jpg cannot be read"),
    ("davis", cut(f"{NOTES}/one/00004.png"), "one/00004.png cannot be read"),
    ("davis", ids(f"{NOTES}/two/00001.png", np.ones((480, 880))), "1 annotations are resized to 880x480, the frames are 160x96"),
    ("davis", ids(f"{NOTES}/two/00001.png", np.ones((H, W + 2))), "two/00001.png is 162x96, the frames are 160x96"),
    ("davis", ids(f"{NOTES}/two/00000.png", np.zeros((H, W))), "two/00000.png shows no object"),
    ("davis", picture("JPEGImages/480p/two/00002.jpg", (W, H - 1)), "00002.jpg is 160x95 pixels, the clip's first frame 160x96"),
    ("davis", lose(f"{NOTES}/one/00002.png"), "one/00002.png is missing; every frame needs"),
    ("davis", lose("JPEGImages/480p/one/00004.jpg"), "00004.png has no frame of that name"),
    ("vip", ids(f"{PARTS}/{3:012d}.png", np.full((H, W), 20)), "has the id 20"),
    ("vip", lose(f"{PARTS}/{1:012d}.png"), "no annotation of the clip's first frame"),
    ("jhmdb", lose("splits/catch_test_split1.txt"), "holds no *_test_split1.txt"),
    ("jhmdb", write("splits/catch_test_split1.txt", "ball_1.avi\n"), "each should be `<clip>.avi` and 0, 1 or 2"),
    ("jhmdb", lose(MAT), "joint_positions.mat cannot be read (No such file"),
    ("jhmdb", write(MAT, "no mat"), "ball_1/joint_positions.mat cannot be read"),
    ("jhmdb", joints(scale=1.0), "ball_1/joint_positions.mat cannot be read (it has no variable pos_img)"),
    ("jhmdb", joints(pos_img=np.zeros((2, 15, 4))), "has joints of 4 frames"),
    ("jhmdb", joints(pos_img=np.full((2, 15, 5), 1e9)), "nowhere near an image"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "plant", "said"), FAULTS, ids=[said for _, _, said in FAULTS])
def test_a_planted_fault_is_the_sole_problem(kind: str, plant: Plant, said: str, tmp_path: Path) -> None:
    settings, write_small = WRITERS[kind]
    root = write_small(tmp_path)
    plant(root)
    report = examine(settings, root)
    assert len(report.problems) == 1, report.problems
    assert said in report.problems[0]
    assert "NOT fit for evaluation" in str(report)
    with pytest.raises(InputError) as raised:
        report.require()
    assert str(raised.value) == report.problems[0]


def test_one_problem_of_each_clip_is_named_and_counted(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    for name in ("JPEGImages/480p/two/00003.jpg", "JPEGImages/480p/two/00004.jpg", "Annotations/480p/one/00004.png"):
        damage(root / name)
    with pytest.raises(InputError, match=r"one/00004\.png .*\(1 more problems are in the report\)"):
        examine(DAVIS, root).require()
    (problem,) = examine(params.Davis(clips=["two"]), root).problems
    assert "two/00003.jpg" in problem


def test_remarks(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    labels = clips.read_ids(root / NOTES / "one/00000.png")
    ids(f"{NOTES}/one/00000.png", np.where(labels == 2, 3, labels))(root)
    labels[0, 0] = 255
    ids(f"{NOTES}/one/00004.png", labels)(root)
    ids(f"{NOTES}/two/00001.png", np.ones((480, 880)))(root)
    lose("JPEGImages/480p/one/00003.jpg")(root)
    lose(f"{NOTES}/one/00003.png")(root)
    write("ImageSets/2017/train.txt", "one\ntwo\n")(root)
    report = examine(params.Davis(score_size="input", split="train"), root)
    assert not report.problems
    for said in (
        "published figures are of split val, not train", "ids [2] appear after the first frame",
        "1 annotations have void pixels", "frame 3 and 0 more are missing", "scored at input size, a variant",
    ):  # fmt: skip
        assert said in "\n".join(report.remarks)
