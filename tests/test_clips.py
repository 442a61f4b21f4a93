"""The three benchmarks on disk: what is read, in which order, and which sentence a broken folder gets."""

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
from tcore_lib.evaluation import clips, jhmdb
from tcore_lib.evaluation.benchmarks import load_clips

DAVIS, JHMDB, VIP = params.Davis(), params.Jhmdb(), params.Vip()
ANNOTATIONS = {"davis": "Annotations/480p", "vip": "Annotations/Category_ids"}


# ---------------------------------------------------------------------------------------------- reading


def test_davis(tmp_path: Path) -> None:
    one, two = load_clips(DAVIS, write_small_davis(tmp_path))
    assert (one.name, len(one), one.size) == ("one", 6, (H, W))
    assert [path.name for path in one.frames] == [f"{i:05d}.jpg" for i in range(6)]
    assert np.unique(clips.read_ids(one.annotations[0])).tolist() == [0, 1, 2]
    assert np.unique(clips.read_ids(two.annotations[0])).tolist() == [0, 1]
    assert clips.read_frame(one.frames[0]).shape == (H, W, 3)
    root = write_small_davis(tmp_path / "more", ("one", "two", "three"))
    assert [clip.name for clip in load_clips(params.Davis(clips=["three", "one"]), root)] == ["one", "three"]


def test_jhmdb(tmp_path: Path) -> None:
    first, _ = load_clips(JHMDB, write_small_jhmdb(tmp_path))
    assert (first.name, first.size, first.joints.shape) == ("ball_1", (H, W), (5, 15, 2))
    # Joint 3 (right shoulder) of frame 1 lies on the second square: left W - 64 - 4, top 56, 6 further; from 0, not 1.
    assert first.joints[1, 3].tolist() == [W - 68 + 6, 56 + 6]


def test_vip(tmp_path: Path) -> None:
    first, _ = load_clips(VIP, write_small_vip(tmp_path))
    assert (first.name, len(first)) == ("videos1", 5)
    assert [path is not None for path in first.annotations] == [True, False, True, False, True]
    assert np.unique(clips.read_ids(first.annotations[0])).tolist() == [0, 2, 13]


def test_the_digest_follows_contents_and_names(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    one, two = (clip.digest() for clip in load_clips(DAVIS, root))
    assert one == load_clips(DAVIS, root)[0].digest()
    assert one != two
    clips.write_ids(root / "Annotations/480p/one/00003.png", np.zeros((H, W), np.uint8))
    assert one != load_clips(DAVIS, root)[0].digest()


# ---------------------------------------------------------------------------------------------- writing


def test_written_ids_are_a_palette_png_with_the_davis_colours(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    clips.write_ids(tmp_path / "x.png", ids)
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    assert (clips.read_ids(tmp_path / "x.png") == ids).all()
    colours = np.array(clips.palette()).reshape(256, 3)
    assert colours[8].tolist() == [64, 0, 0]  # bit 3 is the second bit of red
    assert colours[255].tolist() == [224, 224, 192]  # 3, 3 and 2 bits from the top
    assert len({tuple(colour) for colour in colours}) == 256


def test_joints_survive_writing(tmp_path: Path) -> None:
    clip = load_clips(JHMDB, write_small_jhmdb(tmp_path / "data"))[0]
    joints = clip.joints.copy()
    joints[2, 4] = np.nan
    jhmdb.write_joints(tmp_path / "out.json", clip, joints)
    np.testing.assert_array_equal(jhmdb.read_predicted_joints(tmp_path / "out.json"), joints)
    (tmp_path / "out.json").write_text('{"frames": [[1]]}')
    with pytest.raises(InputError, match=r"out\.json cannot be read .*evaluate the clip again"):
        jhmdb.read_predicted_joints(tmp_path / "out.json")


# ---------------------------------------------------------------------------------------------- faults


def lose(name: str) -> Callable[[Path], Any]:
    return lambda root: (root / name).unlink()


def write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda root: (root / name).write_text(text)


def joints(**variables: Any) -> Callable[[Path], Any]:
    return lambda root: scipy.io.savemat(root / "joint_positions/catch/ball_2/joint_positions.mat", variables)


FIRST = "Annotations/Category_ids/videos2/000000000001.png"
FAULTS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("davis", lose("Annotations/480p/one/00002.png"), r"one/00002\.png is missing; every frame needs"),
    ("davis", lose("JPEGImages/480p/one/00004.jpg"), r"00004\.png has no frame of that name"),
    ("davis", lose("Annotations/480p/one/00000.png"), r"no annotation of the clip's first frame, 00000\.jpg"),
    ("davis", lose("ImageSets/2017/val.txt"), r"val\.txt cannot be read .*split list"),
    ("davis", write("ImageSets/2017/val.txt", "one\nthree\n"), r"480p/three is not a folder"),
    ("davis", write("ImageSets/2017/val.txt", "one\none\n"), r"names the clip one twice"),
    ("davis", write("ImageSets/2017/val.txt", "\n"), r"names no clip"),
    (
        "jhmdb",
        joints(pos_world=np.zeros((2, 15, 5))),
        r"ball_2/joint_positions\.mat cannot be read .it has no variable pos_img",
    ),
    ("jhmdb", joints(pos_img=np.zeros((2, 13, 5))), r"pos_img of \(2, 13, 5\), not 2 x 15 x frames"),
    ("jhmdb", joints(pos_img=np.zeros((2, 15, 4))), r"joints of 4 frames, .* has 5; unpack"),
    ("jhmdb", joints(pos_img=np.full((2, 15, 5), 1e9)), "nowhere near an image"),
    ("jhmdb", write("joint_positions/catch/ball_2/joint_positions.mat", "no mat"), r"\.mat cannot be read"),
    ("jhmdb", lose("joint_positions/catch/ball_2/joint_positions.mat"), r"\.mat cannot be read \(No such file"),
    ("jhmdb", write("splits/catch_test_split1.txt", "ball_1.avi\n"), "each should be `<clip>.avi` and 0, 1 or 2"),
    ("vip", lose(FIRST), "no annotation of the clip's first frame"),
    ("vip", write("lists/val_videos.txt", "videos1\nvideos9\n"), r"Images/videos9 is not a folder"),
]


@pytest.mark.parametrize(("kind", "plant", "said"), FAULTS, ids=[said for _, _, said in FAULTS])
def test_faults_are_named(kind: str, plant: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    write = {"davis": write_small_davis, "jhmdb": write_small_jhmdb, "vip": write_small_vip}[kind]
    root = write(tmp_path)
    plant(root)
    with pytest.raises(InputError, match=said):
        load_clips({"davis": DAVIS, "jhmdb": JHMDB, "vip": VIP}[kind], root)


def test_unknown_clips_and_images_that_do_not_decode(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    with pytest.raises(InputError, match=r"clip 'thre' is not in .*val\.txt; choose from its 2"):
        load_clips(params.Davis(clips=["thre"]), root)
    frame, label = root / "JPEGImages/480p/one/00002.jpg", root / "Annotations/480p/one/00002.png"
    for path, read in ((frame, clips.read_frame), (label, clips.read_ids)):
        damage(path)
        with pytest.raises(InputError, match=rf"{path.name} cannot be read .*this file again"):
            read(path)
        with pytest.raises(InputError, match=r"absent\.png cannot be read"):
            read(root / "absent.png")
