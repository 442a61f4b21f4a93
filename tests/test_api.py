"""The five names of `tcore_lib`, each on an array, a tensor and a path; README's example; torch.hub; nothing heavy at import."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from test_encoder import SMALL, drawn_vit

import tcore_lib
from tcore_lib import features, load_encoder, matches, propagate, read_video
from tcore_lib.errors import InputError
from tcore_lib.model.encoders import FeatureEncoder
from tcore_lib.training.checkpoints import read_model

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "results" / "encoders" / "small.safetensors"


def test_the_shipped_file_is_a_whole_model() -> None:
    """Its settings, written by an earlier version, are settings of this one; `params/explore.yaml` needs its decoder."""
    assert read_model(SHIPPED).decoder is not None


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """Ten frames of a bright square of noise that moves 16 pixels a frame over dark noise: uint8 (10, 96, 224, 3)."""
    draw = np.random.default_rng(0)
    ground, square = draw.integers(0, 60, (96, 224, 3)), draw.integers(120, 256, (48, 48, 3))
    frames = np.stack([ground] * 10)
    for i, frame in enumerate(frames):
        frame[16:64, 16 * i : 16 * i + 48] = square
    return frames.astype(np.uint8)


@pytest.fixture
def video(clip: np.ndarray, tmp_path: Path) -> Path:
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 224, 96, "yuv444p"
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return tmp_path / "clip.mp4"


def test_features_of_a_path_an_array_and_a_tensor(clip: np.ndarray, tmp_path: Path) -> None:
    encoder = FeatureEncoder(drawn_vit(SMALL), "x").eval()
    whole = features(encoder, clip)
    assert whole.shape == (10, 6, 14, 64)
    assert torch.allclose(whole.norm(dim=-1), torch.ones(10, 6, 14))
    Image.fromarray(clip[3]).save(tmp_path / "frame.png")
    for one in (clip[3], torch.from_numpy(clip[3]), tmp_path / "frame.png", str(tmp_path / "frame.png")):
        assert torch.equal(features(encoder, one)[0], whole[3])
    assert features(encoder, clip[0], (50, 120)).shape == (1, 3, 8, 64)  # rounded to whole patches
    with pytest.raises(InputError, match="uint8"):
        features(encoder, clip.astype(np.float32))


def test_matches_of_frames_are_those_of_their_features(clip: np.ndarray) -> None:
    first, second = features(SHIPPED, clip[0])[0], features(SHIPPED, clip[2])[0]
    found = matches(clip[0], torch.from_numpy(clip[2]), SHIPPED, count=4)
    assert found.equals(matches(first, second.numpy(), count=4))
    with pytest.raises(InputError, match="of one encoder"):
        matches(clip[0], first)


def test_a_mask_follows_its_square(clip: np.ndarray, video: Path, tmp_path: Path) -> None:
    """The square moves by whole patches, so raw pixels find it again: the mask moves with it, to the pixel or nearly so."""
    mask = np.zeros((96, 224), np.uint8)
    mask[16:64, :48] = 7
    Image.fromarray(mask).save(tmp_path / "mask.png")
    encoder = load_encoder("pixels")
    labels = propagate(clip, mask, encoder)
    assert labels.shape == (10, 96, 224)
    assert set(np.unique(labels)) == {0, 7}
    np.testing.assert_array_equal(labels[0], mask)
    for i, found in enumerate(labels):
        truth = np.roll(mask, 16 * i, axis=1) == 7
        assert ((found == 7) & truth).sum() / ((found == 7) | truth).sum() > 0.8
    np.testing.assert_array_equal(propagate(torch.from_numpy(clip), torch.from_numpy(mask), encoder), labels)
    from_files = propagate(video, tmp_path / "mask.png", "pixels", context=5)
    assert (from_files != labels).mean() < 0.02  # H.264 loses a little
    with pytest.raises(InputError, match="of the first frame's own size"):
        propagate(clip, mask[:50], encoder)


def test_readme_example(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README's ten lines, run as they stand beside a video and an encoder: they end in a picture."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    snippet = next(block for block in blocks if "from tcore_lib import" in block and "matches(" in block)
    assert len(snippet.strip().splitlines()) <= 10
    matplotlib.use("Agg")
    monkeypatch.chdir(ROOT)
    exec(snippet.replace("my_video.mp4", str(video)).replace("matches.png", str(tmp_path / "matches.png")), {})
    with Image.open(tmp_path / "matches.png") as picture:
        assert picture.size[0] > 300


def test_import_brings_no_torch() -> None:
    code = "import tcore_lib, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tcore_lib.nothing  # type: ignore[attr-defined]
    assert read_video is tcore_lib.read_video


def test_torch_hub(clip: np.ndarray) -> None:
    loaded: Any = torch.hub.load(str(ROOT), "small", source="local")
    assert torch.equal(features(loaded, clip[0]), features(SHIPPED, clip[0]))
    code = "import hubconf; print(sorted(name for name in vars(hubconf) if name[0] != '_'))"
    names = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert eval(names) == ["dependencies", "small", "vitb16_k400", "vits16_inet", "vits16_k400"]
