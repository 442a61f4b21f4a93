"""The room `data` held to what it gave before it was rewritten: frames, boxes, photometry, masks, draws.

golden/data.json was written by the code of commit f7b8651. Integers are compared exactly. Decoded frames and crops also by
the means of their quarters, because another processor may round the last bit of a pixel differently.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coded_videos import write_video
from conftest import SHARED

from tcore_lib import params
from tcore_lib.data import videos
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.masking import block_masks
from tcore_lib.data.sandwich import SandwichDataset, sandwich_indices, video_of
from tcore_lib.data.views import draw_views, make_views
from tcore_lib.randomness import generator
from tcore_lib.training.draws import draw_keep

GOLDEN = json.loads((Path(__file__).parent / "golden" / "data.json").read_text())
SIZES = [(256, 340), (240, 426), (400, 200), (90, 120)]  # of the frames of counters 0, 1, ...
LENGTHS = [1, 3, 4, 7, 8, 20, 33, 90, 300]  # frames of a video
COUNTERS = range(64)
# The small profiles as they were when the draws were recorded; the paper's row is read from its file.
SMALL = {
    "run": {"seed": 0},
    "pretrain": {
        "encoder": {"arch": "custom", "width": 128, "depth": 4, "heads": 4},
        "views": {"global_size": 96, "local_size": 48},
        "loop": {"batch_size": 16},
    },
}


def digest(array: np.ndarray) -> str:
    array = np.ascontiguousarray(array)
    return hashlib.sha256(str(array.dtype).encode() + str(array.shape).encode() + array.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("profile", GOLDEN["profiles"])
def test_draws_of_the_first_counters(profile: str) -> None:
    golden = GOLDEN["profiles"][profile]
    small = profile in ("quick", "small_scale")
    loaded = params.parse(SMALL, profile) if small else params.load(f"params/{profile}.yaml")
    cfg, seed = loaded.pretrain, loaded.run.seed
    drawn = draw_views(seed, COUNTERS, [SIZES[counter % 4] for counter in COUNTERS], cfg.views)
    assert drawn.boxes[0].tolist() == golden["boxes_first"]
    exact = {"boxes": drawn.boxes, "flips": drawn.flips, "order": drawn.order, "blurred": drawn.sigma > 0}
    exact |= {name: drawn[name] for name in ("jitter", "grayscale", "solarize")}
    for name, array in exact.items():
        assert digest(array) == golden[name], name
    for name in ("factors", "sigma"):
        np.testing.assert_allclose(drawn[name][::16, ::5], golden[name], atol=1e-5, err_msg=name)

    batch, side = cfg.loop.batch_size, cfg.views.global_size // cfg.encoder.patch_size
    steps = range(max(1, -(-len(COUNTERS) // batch)))
    masks = [block_masks(seed, k, 2 * batch, (side, side), cfg.masks.share, cfg.masks.ratio) for k in steps]
    assert sum(mask.sum() for mask in masks) == golden["masked_patches"]
    assert [digest(mask) for mask in masks] == golden["masks"]

    three = [[sandwich_indices(T, cfg.sandwich, generator(seed, "frames", c)) for T in LENGTHS] for c in COUNTERS]
    assert [list(roles) for roles in three[0]] == golden["sandwich_first"]
    assert digest(np.array(three)) == golden["sandwich"]
    assert [video_of(seed, counter, 50) for counter in COUNTERS] == golden["videos"]
    keep = draw_keep(seed, COUNTERS, 6 + cfg.views.num_local, cfg.encoder.shape[1], cfg.encoder.drop_path).numpy()
    assert (int(keep.sum()), digest(keep)) == (golden["kept"], golden["keep"])


@pytest.mark.parametrize("batched", [False, True])
def test_crops(batched: bool) -> None:
    """Fourteen crops of two made-up samples, by the means of their quarters."""
    y, x = np.mgrid[0:90, 0:120]
    planes = [[np.stack([x * 2 + 9 * r, y * 2 + 20 * b, (x + y) % 40 * 6]) % 256 for r in range(3)] for b in range(2)]
    frames = torch.from_numpy(np.array(planes).astype(np.uint8))
    cfg = params.Views(global_size=64, local_size=32)
    made = make_views(frames, draw_views(3, [5, 6], [(90, 120)] * 2, cfg), cfg, batched=batched)
    for name, crops in made.items():
        found = F.adaptive_avg_pool2d(crops, 2).flatten(1)[::5].numpy()
        expected = GOLDEN["crops"]["batched" if batched else "one by one"][name]
        np.testing.assert_allclose(found, expected, atol=2e-3, err_msg=name)


def assert_frames(index: FrameIndex, golden: dict[str, Any]) -> None:
    assert sorted(index.paths.tolist()) == sorted(golden)
    for i, path in enumerate(index.paths.tolist()):
        frames = np.stack(index.read(i, range(index.num_frames[i])))
        assert list(frames.shape) == golden[path]["shape"], path
        if digest(frames) != golden[path]["sha"]:
            grid = F.adaptive_avg_pool2d(torch.from_numpy(frames.astype(np.float32)).permute(0, 3, 1, 2), 2).flatten(1)
            np.testing.assert_allclose(grid[::3], golden[path]["grid"], atol=0.5, err_msg=path)


def test_frames_of_coded_videos(tmp_path: Path, here: None) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "run/a.mp4": {"frames": 61, "size": (160, 120), "options": {"g": "12", "bf": "3"}},
        "run/b.avi": {"frames": 45, "size": (96, 64), "codec": "mpeg4"},
        "jump/c.webm": {"frames": 50, "size": (64, 48), "codec": "libvpx-vp9"},
        "jump/d.mkv": {"frames": 9, "size": (340, 288)},
        "jump/hidden.webm": {"frames": 50, "codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    }
    for name, options in kinds.items():
        write_video(tmp_path / "in" / name, **options)
    cfg = params.Data(source=str(tmp_path / "in"), root=str(tmp_path / "out"), num_frames=8)
    assert_frames(FrameIndex.load(videos.prepare(cfg, progress=False).index), GOLDEN["coded"])


def test_frames_and_samples_of_real_videos(tmp_path: Path, here: None) -> None:
    if not (SHARED / "data/videos").is_dir():
        pytest.skip(f"{SHARED / 'data/videos'} is not here")
    cfg = params.Data(source=str(SHARED / "data/videos"), root=str(tmp_path), num_frames=20)
    index = FrameIndex.load(videos.prepare(cfg, progress=False).index)
    assert_frames(index, GOLDEN["real"])
    dataset = SandwichDataset(index, params.Sandwich(), 0)
    samples = [dataset[counter] for counter in range(12)]
    assert [sample["video"] for sample in samples] == [golden["video"] for golden in GOLDEN["samples"]]
    same = [
        digest(s["frames"].contiguous().numpy()) == g["sha"] for s, g in zip(samples, GOLDEN["samples"], strict=True)
    ]
    assert all(same) or not any(same), "another processor changes all samples, another draw changes some"
