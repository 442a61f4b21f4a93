"""The three benchmarks on disk: what is read, in which order. Broken folders: test_doctor."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_clips import H, W, write_small_davis, write_small_jhmdb, write_small_vip

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips
from tcore_lib.evaluation.benchmarks import benchmark_of, load_clips

DAVIS, JHMDB, VIP = params.Davis(), params.Jhmdb(), params.Vip()


def test_davis(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path, ("one", "two", "three"))
    one, three = load_clips(params.Davis(clips=["three", "one"]), root)
    assert (one.name, len(one), one.size, three.name) == ("one", 6, (H, W), "three")
    assert [path.name for path in one.frames] == [f"{i:05d}.jpg" for i in range(6)]
    assert one.channels == [0, 1, 2]
    assert load_clips(DAVIS, root)[1].channels == [0, 1]
    with pytest.raises(InputError, match=r"clip 'thre' is not in .*val\.txt; choose from its 3"):
        load_clips(params.Davis(clips=["thre"]), root)


def test_jhmdb(tmp_path: Path) -> None:
    first, _ = load_clips(JHMDB, write_small_jhmdb(tmp_path))
    assert (first.name, first.size, first.joints.shape) == ("ball_1", (H, W), (5, 15, 2))
    # Joint 3 (right shoulder) of frame 1 lies on the second square: left W - 64 - 4, top 56, 6 further; from 0, not 1.
    assert first.joints[1, 3].tolist() == [W - 68 + 6, 56 + 6]
    joints, benchmark = first.joints.copy(), benchmark_of(JHMDB)
    joints[2, 4] = np.nan
    benchmark.save(tmp_path, first, joints)
    np.testing.assert_array_equal(benchmark.predictions(tmp_path, first, range(5)), joints)
    np.save(tmp_path / "ball_1.npy", joints[1:])
    with pytest.raises(InputError, match=r"ball_1\.npy cannot be read .*predict the joints of all frames"):
        benchmark.predictions(tmp_path, first, [0])


def test_vip(tmp_path: Path) -> None:
    first, _ = load_clips(VIP, write_small_vip(tmp_path))
    assert (first.name, len(first), first.channels) == ("videos1", 5, [0, 2, 13])
    assert [first.truth(frame) is not None for frame in range(5)] == [True, False, True, False, True]


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
    assert len({tuple(colour) for colour in colours}) == 256
