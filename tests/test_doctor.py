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


def mask(frame: int, ids: np.ndarray, clip: str = "two") -> Callable[[Path], Any]:
    return lambda root: clips.write_ids(root / f"Annotations/480p/{clip}/{frame:05d}.png", ids.astype(np.uint8))


def picture(name: str, size: tuple[int, int] = (W, H)) -> Callable[[Path], Any]:
    return lambda root: Image.new("RGB", size).save(root / name)


def cut(name: str) -> Callable[[Path], Any]:
    return lambda root: damage(root / name)


def empty(name: str) -> Callable[[Path], Any]:
    return lambda root: [path.unlink() for path in (root / name).iterdir()]


def write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda root: (root / name).write_text(text)


def lose(name: str) -> Callable[[Path], Any]:
    return lambda root: (root / name).unlink()


def joints(**variables: Any) -> Callable[[Path], Any]:
    return lambda root: scipy.io.savemat(root / MAT, variables)


MAT = "joint_positions/catch/ball_1/joint_positions.mat"
FAULTS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("davis", lose("ImageSets/2017/val.txt"), "val.txt cannot be read"),
    ("jhmdb", lose("splits/catch_test_split1.txt"), "holds no *_test_split1.txt"),
    ("davis", write("ImageSets/2017/val.txt", "one\nthree\n"), "480p/three is not a folder"),
    ("davis", cut("JPEGImages/480p/two/00003.jpg"), "two/00003.jpg cannot be read"),
    ("davis", cut("Annotations/480p/one/00004.png"), "one/00004.png cannot be read"),
    ("davis", mask(1, np.ones((480, 880))), "1 annotations are resized to 880x480, the frames are 160x96"),
    ("davis", mask(1, np.ones((H, W + 2))), "two/00001.png is 162x96, the frames are 160x96"),
    ("davis", mask(0, np.zeros((H, W))), "two/00000.png shows no object"),
    ("davis", picture("JPEGImages/480p/two/00002.jpg", (W, H - 1)), "00002.jpg is 160x95 pixels, the clip's first frame 160x96"),
    ("davis", picture("Annotations/480p/two/00001.png"), "RGB image, not a palette or grey one: it holds colours"),
    ("vip", lambda root: clips.write_ids(root / PARTS / f"{3:012d}.png", np.full((H, W), 20, np.uint8)), "has the id 20"),
    ("vip", empty(PARTS), "videos2 holds no image"),
    ("jhmdb", joints(scale=1.0), "ball_1/joint_positions.mat cannot be read (it has no variable pos_img)"),
    ("jhmdb", joints(pos_img=np.zeros((2, 13, 5))), "it has a pos_img of (2, 13, 5), not 2 x 15 x frames"),
    ("jhmdb", joints(pos_img=np.zeros((2, 15, 4))), "has joints of 4 frames"),
    ("jhmdb", joints(pos_img=np.full((2, 15, 5), 1e9)), "nowhere near an image"),
    ("jhmdb", write(MAT, "no mat"), "ball_1/joint_positions.mat cannot be read"),
    ("jhmdb", lose(MAT), "joint_positions.mat cannot be read (No such file"),
    ("jhmdb", write("splits/catch_test_split1.txt", "ball_1.avi\n"), "each should be `<clip>.avi` and 0, 1 or 2"),
    ("davis", write("ImageSets/2017/val.txt", "one\none\n"), "names the clip one twice"),
    ("davis", write("ImageSets/2017/val.txt", "one\n../two\n"), "which is no name of a folder inside the benchmark"),
    ("davis", write("ImageSets/2017/val.txt", "\n"), "names no clip"),
    ("davis", lose("Annotations/480p/one/00002.png"), "one/00002.png is missing; every frame needs"),
    ("davis", lose("JPEGImages/480p/one/00004.jpg"), "00004.png has no frame of that name"),
    ("vip", lose(f"{PARTS}/{1:012d}.png"), "no annotation of the clip's first frame"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "plant", "said"), FAULTS, ids=[said for _, _, said in FAULTS])
def test_a_planted_fault_is_the_sole_problem(
    kind: str, plant: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
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
    ids = clips.read_ids(root / "Annotations/480p/one/00000.png")
    mask(0, np.where(ids == 2, 3, ids), "one")(root)
    ids[0, 0] = 255
    mask(4, ids, "one")(root)
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (root / folder / f"480p/one/00003.{suffix}").unlink()
    mask(1, np.ones((480, 880)))(root)
    (root / "ImageSets/2017/train.txt").write_text("one\ntwo\n")
    report = examine(params.Davis(score_size="input", split="train"), root)
    assert not report.problems
    text = "\n".join(report.remarks)
    for said in (
        "published figures are of split val, not train",
        "ids [2] appear after the first frame", "1 annotations have void pixels", "frame 3 and 0 more are missing",
        "scored at input size, a variant",
    ):  # fmt: skip
        assert said in text
