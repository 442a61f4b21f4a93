"""Synthetic scenes: labels are exact, sets are complete and in their true formats. Pictures: test_golden_scenes."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import scipy.io
from PIL import Image

from tcore_lib.bodies import PARTS
from tcore_lib.errors import InputError
from tcore_lib.params import SyntheticData
from tcore_lib.randomness import generator
from tcore_lib.scenes import scenes, synthetic
from tcore_lib.scenes.figure import JOINTS, MEETING
from tcore_lib.scenes.layers import Camera, Layer, cut, ellipse

SMALL = SyntheticData(
    videos=3, classes=3, video_size=(96, 64), video_seconds=0.6, fps=10,
    davis_clips=2, jhmdb_clips=2, vip_clips=1, eval_frames=3,
)  # fmt: skip


def disc(radius: float, centre: list[tuple[float, float]], depth: list[float], owner: int) -> Layer:
    """A grey disc of a radius in world units."""
    sprite = cut(np.full((96, 96, 3), 0.5, np.float32), [ellipse(1, 1)], (-1.2, -1.2, 1.2, 1.2), 0.3)
    axes = np.broadcast_to(radius * np.eye(2), (len(centre), 2, 2))
    return Layer(sprite, np.array(centre), axes, np.array(depth), owner)


def test_discs_of_known_place_and_depth() -> None:
    # 100 pixels per unit, origin at pixel (74.5, 49.5). Discs of 20 and 30 pixels, 20 pixels apart; the order of depth
    # changes from the first frame to the second.
    camera = Camera(np.zeros((2, 2)), np.ones(2), np.zeros(2), (150, 100))
    near_far = [disc(0.2, [(0.1, 0.0)] * 2, [2.0, 1.0], 1), disc(0.3, [(-0.1, 0.0)] * 2, [1.5, 1.5], 2)]
    stage = scenes.Stage(near_far, np.full((3, 50, 75), 0.2, np.float32), (0.75, 0.5), camera, None, np.ones(2))
    objects = scenes.render(stage).objects
    x, y = np.arange(150)[None] - 74.5, np.arange(100)[:, None] - 49.5
    first, second = np.hypot(x - 10, y), np.hypot(x + 10, y)
    sure = (np.abs(first - 20) > 1) & (np.abs(second - 30) > 1)  # all but the pixels on the outlines
    for frame, truth in (
        (0, np.where(first < 20, 1, np.where(second < 30, 2, 0))),
        (1, np.where(second < 30, 2, np.where(first < 20, 1, 0))),
    ):
        assert (objects[frame][sure] == truth[sure]).all()
    assert abs((objects[0] == 1).sum() - np.pi * 20**2) < 0.02 * np.pi * 20**2  # 1256.6 pixels


@pytest.mark.parametrize("kind", ["walking", "waving", "jumping", "dancing"])
def test_a_joint_lies_inside_its_limb(kind: str) -> None:
    """Draw only the limbs that meet in a joint: the joint's pixel belongs to them, in every frame."""
    stage = scenes.compose(kind, generator(3, "scenes", 9, 0), (160, 120), np.arange(6) * 0.4, 2.4)
    scene = scenes.render(stage)
    x, y = np.rint(scene.joints).astype(int).transpose(2, 0, 1)
    height, width = scene.objects.shape[1:]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    assert inside.mean() > 0.9
    for joint, name in enumerate(JOINTS):
        alone = scenes.render(replace(stage, layers=[layer for layer in stage.layers if layer.limb in MEETING[name]]))
        for t in np.flatnonzero(inside[:, joint]):
            assert alone.objects[t, y[t, joint], x[t, joint]] == 1, (name, t)
            if scene.visible[t, joint]:
                assert scene.objects[t, y[t, joint], x[t, joint]] == 1
    assert 0.4 < scene.visible.mean() <= inside.mean()
    assert not scene.visible[~inside].any()


@pytest.mark.parametrize("kind", list(scenes.KINDS))
def test_a_scene_is_a_function_of_its_counter_and_a_frame_of_its_time(kind: str) -> None:
    first = scenes.render_scene(kind, 5, 4, 2, size=(80, 64), num_frames=4, seconds=1.0)
    again = scenes.render_scene(kind, 5, 4, 2, size=(80, 64), num_frames=2, seconds=1.0)
    other = scenes.render_scene(kind, 5, 4, 3, size=(80, 64), num_frames=2, seconds=1.0)
    assert first.frames.shape == (4, 64, 80, 3)
    assert (first.frames[::2] == again.frames).all()  # times 0 and 0.5
    assert (first.objects[::2] == again.objects).all()
    assert np.abs(first.frames[::2].astype(int) - other.frames).mean() > 8
    assert np.abs(first.frames[0].astype(int) - first.frames[2]).mean() > 2  # things and camera move
    assert first.objects.max() >= 2


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def write(root: Path, what: str, seed: int = 7, workers: int = 1) -> Path:
    synthetic.write_set(what, root, SMALL, seed, progress=False, workers=workers)
    return root


def test_mini_kinetics(tmp_path: Path) -> None:
    left = tmp_path / ".videos.tmp" / "walking"  # of a killed writer; whoever holds the set's lock is alone
    left.mkdir(parents=True)
    (left / "walking_099.mp4").write_bytes(b"half")
    videos = sorted(write(tmp_path / "videos", "videos").rglob("*.mp4"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".videos.lock", "videos"]
    names = [path.relative_to(tmp_path / "videos").as_posix() for path in videos]
    assert names == ["bouncing/bouncing_000.mp4", "swimming/swimming_000.mp4", "walking/walking_000.mp4"]
    with av.open(str(videos[2])) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert frames.shape == (6, 64, 96, 3)  # 0.6 s x 10
    scene = scenes.render_scene("walking", 7, scenes.DOMAINS["videos"], 0, size=(96, 64), num_frames=6, seconds=0.6)
    assert np.abs(frames.astype(int) - scene.frames).mean() < 6  # what compression and 4:2:0 colour cost
    two = sorted(write(tmp_path / "two", "videos", workers=2).rglob("*.mp4"))
    assert [path.read_bytes() for path in videos] == [path.read_bytes() for path in two]


def test_mini_davis(tmp_path: Path) -> None:
    root = write(tmp_path, "davis")
    names = (root / "ImageSets/2017/val.txt").read_text().split()
    assert names == ["bouncing-00", "swimming-01"]
    for name, size in zip(names, [(854, 480), (640, 480)], strict=True):
        for t in range(3):
            mask = opened(root / f"Annotations/480p/{name}/{t:05d}.png")
            assert opened(root / f"JPEGImages/480p/{name}/{t:05d}.jpg").size == mask.size == size
            # DAVIS: black, dark red, dark green, olive, dark blue
            assert mask.getpalette()[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
        first = np.asarray(opened(root / f"Annotations/480p/{name}/00000.png"))
        ids = np.unique(first)
        assert ids.tolist() == list(range(max(3, len(ids))))
        assert min((first == i).mean() for i in ids) > 0.005


def test_mini_jhmdb(tmp_path: Path) -> None:
    root = write(tmp_path, "jhmdb")
    clips = [
        root / f"Rename_Images/{kind}/Synthetic_{kind}_f_cm_np1_fr_med_{i}" for i, kind in enumerate(("walk", "wave"))
    ]
    for clip in clips:
        assert (root / f"splits/{clip.parent.name}_test_split1.txt").read_text() == f"{clip.name}.avi 2\n"
        assert [path.name for path in sorted(clip.iterdir())] == ["00001.png", "00002.png", "00003.png"]
        assert opened(clip / "00001.png").size == (320, 240)
    # 1-based: the joints on disk are one more than those of the scene whose frame is on disk
    frame = np.asarray(opened(clips[0] / "00002.png"))
    drawn = (scenes.render_scene("walking", 7, 2, 0, i, size=(320, 240), num_frames=3, seconds=0.3) for i in range(10))
    scene = next(scene for scene in drawn if (scene.frames[1] == frame).all())
    joints = scipy.io.loadmat(root / "joint_positions/walk" / clips[0].name / "joint_positions.mat")["pos_img"]
    np.testing.assert_allclose(joints, scene.joints.transpose(2, 1, 0) + 1, atol=1e-9)  # (2, 15, T)


def test_mini_vip(tmp_path: Path) -> None:
    write(tmp_path, "vip")
    assert (tmp_path / "lists/val_videos.txt").read_text() == "videos1\n"
    images = sorted((tmp_path / "Images/videos1").iterdir())
    masks = sorted((tmp_path / "Annotations/Category_ids/videos1").iterdir())
    assert [path.stem for path in images] == [path.stem for path in masks] == [f"{i:012d}" for i in (1, 2, 3)]
    for image, mask in zip(images, masks, strict=True):
        ids = np.asarray(opened(mask))
        assert opened(image).size == opened(mask).size == (640, 360)
        assert ids.max() <= 19
        assert len(np.unique(ids)) >= 8
        assert PARTS.index("face") in ids


def test_a_set_is_kept_replaced_or_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "videos", "videos")
    first = sorted(root.rglob("*.mp4"))
    before = [path.stat().st_mtime_ns for path in first]
    synthetic.write_set("videos", root, SMALL.model_copy(update={"davis_clips": 9}), 7)  # not its settings
    assert [path.stat().st_mtime_ns for path in first] == before
    first[0].unlink()
    write(root, "videos")
    assert first[0].exists()  # no longer complete: drawn again
    content = first[1].read_bytes()
    write(root, "videos", seed=8)
    assert first[1].read_bytes() != content
    with pytest.raises(InputError, match="another kind of data set"):
        write(root, "vip")
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(InputError, match="not written by the scene renderer"):
        write(tmp_path, "davis")
    assert (tmp_path / "precious.txt").read_text() == "x"
