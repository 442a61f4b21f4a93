"""The three benchmarks on disk: what is read, in which order; the data doctor finds every fault that is planted."""

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
from tcore_lib.evaluation import clips
from tcore_lib.evaluation.benchmarks import benchmark_of, examine, load_clips

DAVIS, JHMDB, VIP = params.Davis(), params.Jhmdb(), params.Vip()
WRITERS = {"davis": (DAVIS, write_small_davis), "jhmdb": (JHMDB, write_small_jhmdb), "vip": (VIP, write_small_vip)}


def test_davis_and_vip(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path / "davis", ("one", "two", "three"))
    one, three = load_clips(params.Davis(clips=["three", "one"]), root)
    assert (one.name, len(one), one.size, three.name) == ("one", 6, (H, W), "three")
    assert [path.name for path in one.frames] == [f"{i:05d}.jpg" for i in range(6)]
    assert [clip.channels for clip in load_clips(DAVIS, root)] == [[0, 1, 2], [0, 1], [0, 1, 2]]
    with pytest.raises(InputError, match=r"clip 'thre' is not in .*val\.txt; choose from its 3"):
        load_clips(params.Davis(clips=["thre"]), root)
    first, _ = load_clips(VIP, write_small_vip(tmp_path / "vip"))
    assert (first.name, len(first), first.channels) == ("videos1", 5, [0, 2, 13])
    assert [first.truth(frame) is not None for frame in range(5)] == [True, False, True, False, True]


def test_jhmdb(tmp_path: Path) -> None:
    first, _ = load_clips(JHMDB, write_small_jhmdb(tmp_path))
    assert (first.name, first.size, first.joints.shape) == ("ball_1", (H, W), (5, 15, 2))
    # Joint 3 (right shoulder) of frame 1 lies on the second square: left W - 64 - 4, top 56, 6 further; from 0, not 1.
    assert first.joints[1, 3].tolist() == [W - 68 + 6, 56 + 6]
    joints, benchmark = first.joints.copy(), benchmark_of(JHMDB)
    joints[2, 4] = np.nan
    benchmark.save(tmp_path, first, joints)
    read = benchmark.predictions(tmp_path, first)
    np.testing.assert_array_equal([read(frame) for frame in range(5)], joints)
    np.save(tmp_path / "ball_1.npy", joints[1:])
    with pytest.raises(InputError, match=r"ball_1\.npy cannot be read .*predict the joints of all frames"):
        benchmark.predictions(tmp_path, first)


def test_written_ids_are_a_palette_png_with_the_davis_colours(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    clips.write_ids(tmp_path / "x.png", ids)
    with Image.open(tmp_path / "x.png") as image:
        colours = np.array(image.getpalette()).reshape(-1, 3)
    assert colours[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[8].tolist() == [64, 0, 0]  # bit 3 is the second bit of red
    assert (clips.read_ids(tmp_path / "x.png") == ids).all()


# ---------------------------------------------------------------------------------------------- the doctor


@pytest.mark.parametrize("kind", WRITERS)
def test_whole_data_passes(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, write_small = WRITERS[kind]
    root = write_small(tmp_path)
    assert [clip.name for clip in examine(settings, root)] == [clip.name for clip in load_clips(settings, root)]
    report = capsys.readouterr().out
    for said in ("2 complete of 2 listed", "remark      not comparable", "\n  fit for evaluation"):
        assert said in report
    assert not [path for path in root.rglob("*") if path.suffix not in ("", ".jpg", ".png", ".txt", ".mat")]


Plant = Callable[[Path], Any]


def ids(name: str, labels: np.ndarray) -> Plant:
    return lambda root: clips.write_ids(root / name, labels.astype(np.uint8))


def write(name: str, text: str) -> Plant:
    return lambda root: (root / name).write_text(text)


def lose(name: str) -> Plant:
    return lambda root: (root / name).unlink()


def joints(value: Any) -> Plant:
    return lambda root: scipy.io.savemat(root / MAT, {"pos_img": value})


IMAGES, NOTES, VAL = "JPEGImages/480p", "Annotations/480p", "ImageSets/2017/val.txt"
PARTS, SPLIT = "Annotations/Category_ids/videos2", "splits/catch_test_split1.txt"
MAT = "joint_positions/catch/ball_1/joint_positions.mat"
NAN = np.zeros((2, 15, 5))
NAN[:, 3, 4] = np.nan
FAULTS: list[tuple[str, Plant, str]] = [
    ("davis", lose(VAL), "val.txt cannot be read"),
    ("davis", write(VAL, "\n"), "names no clip"),
    ("davis", write(VAL, "one\none\n"), "names the clip one twice"),
    ("davis", write(VAL, "one\nthree\n"), "480p/three is not a folder"),
    ("davis", lambda root: damage(root / IMAGES / "two/00003.jpg"), "two/00003.jpg cannot be read"),
    ("davis", ids(f"{NOTES}/two/00001.png", np.ones((480, 880))), "two/00001.png is 880x480, the frames are 160x96"),
    ("davis", ids(f"{NOTES}/two/00000.png", np.zeros((H, W))), "two/00000.png shows no object"),
    ("davis", lambda root: Image.new("L", (W, 9)).save(root / IMAGES / "two/00002.jpg"), "160x9 pixels, the clip's first frame"),
    ("davis", lose(f"{NOTES}/one/00002.png"), "one/00002.png is missing (1 in all); every frame needs"),
    ("davis", lose(f"{IMAGES}/one/00004.jpg"), "00004.png has no frame of that name"),
    ("vip", ids(f"{PARTS}/{3:012d}.png", np.full((H, W), 20)), "has the id 20"),
    ("vip", lose(f"{PARTS}/{1:012d}.png"), "no annotation of the clip's first frame"),
    ("jhmdb", lose(SPLIT), "holds no *_test_split1.txt"),
    ("jhmdb", lose(MAT), "joint_positions.mat cannot be read (No such file"),
    ("jhmdb", lambda root: (root / MAT).write_bytes(b"MATLAB 7.3".ljust(124) + b"\0\2IM"), "save it in MATLAB with save("),
    ("jhmdb", joints(NAN), "it has joints that are NaN, and PCK needs every joint"),
    ("jhmdb", joints(NAN.transpose(1, 0, 2)), "of (15, 2, 5), not 2 x 15"),
    ("jhmdb", joints(np.zeros((2, 15))), "has joints of 1 frames"),
    ("jhmdb", joints(np.full((2, 15, 5), 1e9)), "nowhere near an image"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "plant", "said"), FAULTS, ids=[said for _, _, said in FAULTS])
def test_a_planted_fault_is_the_sole_problem(kind: str, plant: Plant, said: str, tmp_path: Path) -> None:
    settings, write_small = WRITERS[kind]
    root = write_small(tmp_path)
    plant(root)
    with pytest.raises(InputError) as raised:
        examine(settings, root, progress=False)
    assert said in str(raised.value)
    assert "more problems" not in str(raised.value)


def test_one_problem_of_each_clip_is_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_small_davis(tmp_path)
    for name in ("two/00003.jpg", "two/00004.jpg", "one/00003.jpg"):
        damage(root / IMAGES / name)
    with pytest.raises(InputError, match=r"one/00003\.jpg .*\(1 more problems\)"):
        examine(DAVIS, root)
    report = capsys.readouterr().out
    assert "NOT fit for evaluation" in report
    assert "two/00003.jpg" in report
    assert "two/00004.jpg" not in report


def test_resized_masks_are_a_variant_and_another_split_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_small_davis(tmp_path)
    ids(f"{NOTES}/two/00001.png", np.ones((480, 880)))(root)
    write("ImageSets/2017/train.txt", "one\ntwo\n")(root)
    examine(params.Davis(score_size="input", split="train"), root)
    assert "not comparable with published scores, which are of 30 clips of split val" in capsys.readouterr().out
