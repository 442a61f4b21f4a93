"""The three benchmarks on disk: what is read, in which order. Broken folders: test_doctor."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_clips import H, W, damage, write_small_davis, write_small_jhmdb, write_small_vip

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips
from tcore_lib.evaluation.benchmarks import benchmark_of, load_clips

DAVIS, JHMDB, VIP = params.Davis(), params.Jhmdb(), params.Vip()


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
    benchmark = benchmark_of(JHMDB)
    benchmark.save(tmp_path, clip, joints)
    np.testing.assert_array_equal(benchmark.predictions(tmp_path, clip, range(len(clip))), joints)
    (tmp_path / "ball_1.json").write_text('{"frames": [[1]]}')
    with pytest.raises(InputError, match=r"ball_1\.json cannot be read .*predict the joints of all frames"):
        benchmark.predictions(tmp_path, clip, [0])


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
