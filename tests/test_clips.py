"""The three benchmarks on disk: what is read, in which order, and which sentence a broken folder gets."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from small_clips import H, W, write_small_davis, write_small_jhmdb, write_small_vip

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips

DAVIS, JHMDB, VIP = params.Davis(), params.Jhmdb(), params.Vip()


# ---------------------------------------------------------------------------------------------- reading


def test_davis(tmp_path: Path) -> None:
    one, two = clips.load_clips(DAVIS, write_small_davis(tmp_path))
    assert (one.name, one.kind, len(one), one.size) == ("one", "davis", 6, (H, W))
    assert [path.name for path in one.frames] == [f"{i:05d}.jpg" for i in range(6)]
    assert np.unique(clips.read_ids(one.annotations[0])).tolist() == [0, 1, 2]
    assert np.unique(clips.read_ids(two.annotations[0])).tolist() == [0, 1]
    assert clips.read_frame(one.frames[0]).shape == (H, W, 3)


def test_jhmdb(tmp_path: Path) -> None:
    first, _ = clips.load_clips(JHMDB, write_small_jhmdb(tmp_path))
    assert (first.name, first.kind, first.size) == ("ball_1", "jhmdb", (H, W))
    assert first.joints.shape == (5, 15, 2)
    # Joint 3 (right shoulder) of frame 1 lies on the second square: left W - 64 - 4, top 56, 6 further; from 0, not 1.
    assert first.joints[1, 3].tolist() == [W - 68 + 6, 56 + 6]


def test_vip(tmp_path: Path) -> None:
    first, _ = clips.load_clips(VIP, write_small_vip(tmp_path))
    assert (first.name, first.kind, len(first)) == ("videos1", "vip", 5)
    assert [path is not None for path in first.annotations] == [True, False, True, False, True]
    assert np.unique(clips.read_ids(first.annotations[0])).tolist() == [0, 2, 13]


def test_frames_are_ordered_by_number_not_by_name(tmp_path: Path) -> None:
    root = write_small_vip(tmp_path, frames=3)
    folder = root / "Images" / "videos1"
    for number, path in enumerate(sorted(folder.iterdir()), 8):  # 8, 9, 10
        path.rename(folder / f"{number}.jpg")
    labels = root / "Annotations" / "Category_ids" / "videos1"
    for number, path in zip((8, 10), sorted(labels.iterdir()), strict=True):
        path.rename(labels / f"{number}.png")
    first = clips.load_clips(VIP, root)[0]
    assert [path.stem for path in first.frames] == ["8", "9", "10"]


def test_chosen_clips_keep_the_order_of_the_split(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path, ("one", "two", "three"))
    found = clips.load_clips(params.Davis(clips=["three", "one"]), root)
    assert [clip.name for clip in found] == ["one", "three"]


def test_the_digest_follows_contents_and_names(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    one, two = (clip.digest() for clip in clips.load_clips(DAVIS, root))
    assert one == clips.load_clips(DAVIS, root)[0].digest()
    assert one != two
    clips.write_ids(root / "Annotations" / "480p" / "one" / "00003.png", np.zeros((H, W), np.uint8))
    assert one != clips.load_clips(DAVIS, root)[0].digest()


# ---------------------------------------------------------------------------------------------- writing


def test_written_ids_are_a_palette_png_with_the_davis_colours(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    clips.write_ids(tmp_path / "x.png", ids)
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    assert (clips.read_ids(tmp_path / "x.png") == ids).all()


def test_palette_deals_the_bits_of_an_id() -> None:
    colours = np.array(clips.palette()).reshape(256, 3)
    assert colours[8].tolist() == [64, 0, 0]  # bit 3 is the second bit of red
    assert colours[255].tolist() == [224, 224, 192]  # 3, 3 and 2 bits from the top
    assert len({tuple(colour) for colour in colours}) == 256


def test_joints_survive_writing(tmp_path: Path) -> None:
    clip = clips.load_clips(JHMDB, write_small_jhmdb(tmp_path / "data"))[0]
    joints = clip.joints.copy()
    joints[2, 4] = np.nan
    clips.write_joints(tmp_path / "out.json", clip, joints)
    np.testing.assert_array_equal(clips.read_predicted_joints(tmp_path / "out.json"), joints)


# ---------------------------------------------------------------------------------------------- faults


def damage(path: Path) -> None:
    """Cut a file in the middle."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_faults_of_davis_are_named(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    with pytest.raises(InputError, match=r"train\.txt cannot be read"):
        clips.load_clips(params.Davis(split="train"), root)
    with pytest.raises(InputError, match=r"'three' is not in .*val\.txt"):
        clips.load_clips(params.Davis(clips=["three"]), root)
    label = root / "Annotations" / "480p" / "two" / "00004.png"
    label.rename(label.with_name("00077.png"))
    with pytest.raises(InputError, match=r"00004\.png is missing"):
        clips.load_clips(DAVIS, root)
    clips.write_ids(label, np.zeros((H, W), np.uint8))
    with pytest.raises(InputError, match=r"00077\.png has no frame of that name"):
        clips.load_clips(DAVIS, root)
    (root / "ImageSets" / "2017" / "val.txt").write_text("one\nabsent\n")
    with pytest.raises(InputError, match="absent is not a folder"):
        clips.load_clips(DAVIS, root)
    (root / "ImageSets" / "2017" / "val.txt").write_text("one\none\n")
    with pytest.raises(InputError, match="names the clip one twice"):
        clips.load_clips(DAVIS, root)


def test_faults_of_images_are_named(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path)
    frame = root / "JPEGImages" / "480p" / "one" / "00002.jpg"
    damage(frame)
    with pytest.raises(InputError, match=r"00002\.jpg cannot be decoded"):
        clips.read_frame(frame)
    label = root / "Annotations" / "480p" / "one" / "00002.png"
    damage(label)
    with pytest.raises(InputError, match=r"00002\.png cannot be decoded"):
        clips.read_ids(label)
    Image.new("RGB", (4, 4)).save(label)
    with pytest.raises(InputError, match="RGB image, not a palette or grey one"):
        clips.read_ids(label)
    with pytest.raises(InputError, match=r"absent\.png cannot be decoded"):
        clips.read_ids(root / "absent.png")


def test_faults_of_jhmdb_are_named(tmp_path: Path) -> None:
    root = write_small_jhmdb(tmp_path)
    with pytest.raises(InputError, match=r"_test_split3\.txt"):
        clips.load_clips(params.Jhmdb(split=3), root)
    file = root / "joint_positions" / "catch" / "ball_2" / "joint_positions.mat"
    scipy.io.savemat(file, {"pos_world": np.zeros((2, 15, 5))})
    with pytest.raises(InputError, match=r"ball_2/joint_positions\.mat has no variable pos_img"):
        clips.load_clips(JHMDB, root)
    scipy.io.savemat(file, {"pos_img": np.zeros((2, 13, 5))})
    with pytest.raises(InputError, match=r"pos_img of \(2, 13, 5\), not 2 x 15 x frames"):
        clips.load_clips(JHMDB, root)
    scipy.io.savemat(file, {"pos_img": np.zeros((2, 15, 4))})
    with pytest.raises(InputError, match=r"joints of 4 frames, .* has 5; unpack"):
        clips.load_clips(JHMDB, root)
    file.write_bytes(b"no mat file at all")
    with pytest.raises(InputError, match=r"cannot be read as a \.mat file"):
        clips.load_clips(JHMDB, root)
    file.unlink()
    with pytest.raises(InputError, match=r"cannot be read as a \.mat file"):
        clips.load_clips(JHMDB, root)


def test_faults_of_vip_are_named(tmp_path: Path) -> None:
    root = write_small_vip(tmp_path)
    folder = root / "Annotations" / "Category_ids" / "videos2"
    (folder / f"{1:012d}.png").unlink()
    with pytest.raises(InputError, match="no annotation of the clip's first frame"):
        clips.load_clips(VIP, root)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"videos2 holds no \.png file"):
        clips.load_clips(VIP, root)
