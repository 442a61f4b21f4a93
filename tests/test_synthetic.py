"""Synthetic scenes: labels are exact, textures move with their objects, sets are complete and in their true formats."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import scipy.io
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion

from tcore_lib.bodies import PARTS
from tcore_lib.errors import InputError
from tcore_lib.params import SyntheticData
from tcore_lib.randomness import generator
from tcore_lib.scenes import scenes, synthetic
from tcore_lib.scenes.skeleton import JOINTS, limbs_of
from tcore_lib.scenes.sprites import Camera, Layer, cut, ellipse

SMALL = SyntheticData(
    videos=3, classes=3, video_size=(96, 64), video_seconds=0.6, fps=10,
    davis_clips=2, jhmdb_clips=2, vip_clips=1, eval_frames=3,
)  # fmt: skip


def stage_of(kind: str, counter: int = 0, frames: int = 4, size: tuple[int, int] = (160, 120)) -> scenes.Stage:
    times = np.arange(frames) * 0.4
    return scenes.compose(kind, generator(3, "scenes", 9, counter), size, times, 0.4 * frames)


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


@pytest.mark.parametrize("kind", ["bouncing", "swimming", "walking"])
def test_a_mask_is_where_the_object_is_seen(kind: str) -> None:
    """Paint one object black, then white: what changes in the picture is its mask, give or take the outline."""
    stage = stage_of(kind)
    truth = scenes.render(stage)
    owner = 1
    seen = []
    for paint in (0.0, 1.0):
        layers = []
        for layer in stage.layers:
            if layer.owner == owner:
                maps = layer.sprite.maps.clone()
                maps[:3] = paint * maps[3]
                layer = replace(layer, sprite=replace(layer.sprite, maps=maps))
            layers.append(layer)
        seen.append(scenes.render(replace(stage, layers=layers)).frames.astype(int))
    changed = np.abs(seen[1] - seen[0]).max(-1)
    mask = truth.objects == owner
    assert mask.mean() > 0.01
    ring = np.ones((3, 3), bool)
    for t in range(len(mask)):
        assert changed[t][binary_erosion(mask[t], ring, border_value=1)].min(initial=255) > 70
        # Elsewhere only slivers are seen, less than half a pixel each: behind another object's edge, a finger's tip.
        elsewhere = changed[t] * ~binary_dilation(mask[t], ring, iterations=2)
        assert (elsewhere > 0).mean() < 0.001
        assert elsewhere.max() < 150


@pytest.mark.parametrize("kind", ["orbiting", "swimming", "dancing"])
def test_occlusion(kind: str) -> None:
    """Take an object away: the rest of the labels stays, and where it hid another object, that one appears."""
    uncovered = 0
    for counter in range(3):
        stage = stage_of(kind, counter, frames=8)
        truth = scenes.render(stage).objects
        for owner in np.unique(truth[truth > 0]):
            others = [layer for layer in stage.layers if layer.owner != owner]
            without = scenes.render(replace(stage, layers=others)).objects
            assert (without[truth != owner] == truth[truth != owner]).all()
            assert not (without == owner).any()
            uncovered += int((without[truth == owner] > 0).sum())
    assert uncovered > 30  # pixels


@pytest.mark.parametrize("kind", ["walking", "waving", "jumping", "dancing"])
def test_a_joint_lies_inside_its_limb(kind: str) -> None:
    """Draw only the limbs that meet in a joint: the joint's pixel belongs to them, in every frame."""
    stage = stage_of(kind, frames=6)
    scene = scenes.render(stage)
    x, y = np.rint(scene.joints).astype(int).transpose(2, 0, 1)
    height, width = scene.objects.shape[1:]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    assert inside.mean() > 0.9
    for joint, name in enumerate(JOINTS):
        alone = scenes.render(replace(stage, layers=[layer for layer in stage.layers if layer.limb in limbs_of(name)]))
        for t in np.flatnonzero(inside[:, joint]):
            assert alone.objects[t, y[t, joint], x[t, joint]] == 1, (name, t)
            if scene.visible[t, joint]:
                assert scene.objects[t, y[t, joint], x[t, joint]] == 1
    assert 0.4 < scene.visible.mean() <= inside.mean()
    assert not scene.visible[~inside].any()


def forward(layer: Layer, points: np.ndarray, camera: Camera) -> np.ndarray:
    """Pixels (N, k, 2) of points (k, 2) of a sprite: the renderer's inverse map, turned round by hand."""
    x, y = np.broadcast_to(points, (len(layer.centre), *points.shape)).transpose(2, 0, 1)
    if layer.wave is not None:
        amplitude, number, phase = layer.wave
        x0, _, x1, _ = layer.sprite.bounds
        y = y - amplitude * (0.3 + 0.7 * (x1 - x) / (x1 - x0)) * np.sin(number * x + phase[:, None])
    world = layer.centre[:, None] + np.einsum("nij,nkj->nki", layer.axes, np.stack([x, y], -1))
    return np.rint(camera.project(world)).astype(int)


def test_texture_moves_turns_and_bends_with_its_object() -> None:
    """Follow points of objects from the first frame to the last: their colour goes along, the place's does not."""
    points = np.random.default_rng(0).uniform(-0.6, 0.6, (400, 2))
    followed, stayed, bent = [], [], 0
    for kind, counter in (("spinning", 0), ("spinning", 3), ("swimming", 0), ("swimming", 1)):
        stage = stage_of(kind, counter, frames=3, size=(320, 240))
        scene = scenes.render(stage)
        for layer in stage.layers:
            pixels = forward(layer, points, stage.camera)
            (x, y), (u, v) = np.clip(pixels[0], 0, [319, 239]).T, np.clip(pixels[2], 0, [319, 239]).T
            owned = (scene.objects[0, y, x] == layer.owner) & (scene.objects[2, v, u] == layer.owner)
            if owned.sum() < 100 or np.linalg.det(layer.axes[0]) * np.linalg.det(layer.axes[2]) < 0:
                continue  # hidden, or a fish that has turned about
            first, last = scene.frames[0].mean(-1), scene.frames[2].mean(-1)
            followed.append(np.corrcoef(first[y, x][owned], last[v, u][owned])[0, 1])
            stayed.append(np.corrcoef(first[y, x][owned], last[y, x][owned])[0, 1])
            bent += layer.wave is not None
    assert len(followed) >= 6
    assert bent >= 3
    assert min(followed) > 0.6  # light stands still while things turn, so it is not 1
    assert np.mean(followed) > 0.8
    assert np.mean(stayed) < 0.4


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


def written(root: Path, what: str, seed: int = 7, workers: int = 1) -> list[Path]:
    return synthetic.write_set(what, root, SMALL, seed, progress=False, workers=workers)


def test_mini_kinetics(tmp_path: Path) -> None:
    left = tmp_path / ".videos.tmp" / "walking"  # of a killed writer; whoever holds the set's lock is alone
    left.mkdir(parents=True)
    (left / "walking_099.mp4").write_bytes(b"half")
    videos = written(tmp_path / "videos", "videos")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".videos.lock", "videos"]
    names = [path.relative_to(tmp_path / "videos").as_posix() for path in videos]
    assert names == ["walking/walking_000.mp4", "bouncing/bouncing_000.mp4", "swimming/swimming_000.mp4"]
    with av.open(str(videos[0])) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert frames.shape == (6, 64, 96, 3)  # 0.6 s x 10
    scene = scenes.render_scene("walking", 7, scenes.DOMAINS["videos"], 0, size=(96, 64), num_frames=6, seconds=0.6)
    assert np.abs(frames.astype(int) - scene.frames).mean() < 6  # what compression and 4:2:0 colour cost
    two = written(tmp_path / "two", "videos", workers=2)
    assert [path.read_bytes() for path in videos] == [path.read_bytes() for path in two]


def test_mini_davis(tmp_path: Path) -> None:
    root = tmp_path / "davis"
    names = [clip.name for clip in written(root, "davis")]
    assert names == (root / "ImageSets/2017/val.txt").read_text().split() == ["bouncing-00", "swimming-01"]
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
    root = tmp_path / "jhmdb"
    clips = written(root, "jhmdb")
    assert [clip.parent.name for clip in clips] == ["walk", "wave"]
    for clip in clips:
        name = clip.parent.name
        assert (root / f"splits/{name}_test_split1.txt").read_text() == f"{clip.name}.avi 2\n"
        assert [path.name for path in sorted(clip.iterdir())] == ["00001.png", "00002.png", "00003.png"]
        assert opened(clip / "00001.png").size == (320, 240)
    # 1-based: the joints on disk are one more than those of the scene whose frame is on disk
    frame = np.asarray(opened(clips[0] / "00002.png"))
    drawn = (scenes.render_scene("walking", 7, 2, 0, i, size=(320, 240), num_frames=3, seconds=0.3) for i in range(10))
    scene = next(scene for scene in drawn if (scene.frames[1] == frame).all())
    joints = scipy.io.loadmat(root / "joint_positions/walk" / clips[0].name / "joint_positions.mat")["pos_img"]
    np.testing.assert_allclose(joints, scene.joints.transpose(2, 1, 0) + 1, atol=1e-9)  # (2, 15, T)


def test_mini_vip(tmp_path: Path) -> None:
    clips = written(tmp_path, "vip")
    assert (tmp_path / "lists/val_videos.txt").read_text() == "videos1\n"
    images = sorted(clips[0].iterdir())
    masks = sorted((tmp_path / "Annotations/Category_ids/videos1").iterdir())
    assert [path.stem for path in images] == [path.stem for path in masks] == [f"{i:012d}" for i in (1, 2, 3)]
    for image, mask in zip(images, masks, strict=True):
        ids = np.asarray(opened(mask))
        assert opened(image).size == opened(mask).size == (640, 360)
        assert ids.max() <= 19
        assert len(np.unique(ids)) >= 8
        assert PARTS.index("face") in ids


def test_a_set_is_kept_replaced_or_refused(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    first = written(root, "videos")
    before = [path.stat().st_mtime_ns for path in first]
    settings = SMALL.model_copy(update={"davis_clips": 9})  # not its settings
    assert synthetic.write_set("videos", root, settings, 7, progress=False) == first
    assert [path.stat().st_mtime_ns for path in first] == before
    first[0].unlink()
    written(root, "videos")
    assert first[0].exists()  # no longer complete: drawn again
    content = first[1].read_bytes()
    written(root, "videos", seed=8)
    assert first[1].read_bytes() != content
    with pytest.raises(InputError, match="another kind of data set"):
        written(root, "vip")
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "precious.txt").write_text("x")
    with pytest.raises(InputError, match="not written by the scene renderer"):
        written(foreign, "davis")
    assert (foreign / "precious.txt").read_text() == "x"
