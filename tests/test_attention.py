"""Where a network looks: the decoder's rows, checked against direct passes and arithmetic; the explorer of a profile."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_clips import write_small_davis
from tiny_problem import Pictures, tiny

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips
from tcore_lib.model import attention
from tcore_lib.model.attention import CrossAttention
from tcore_lib.model.encoders import random_encoder
from tcore_lib.model.features import to_input
from tcore_lib.reproduction import profile as profiles, scene as correspondences
from tcore_lib.training.tcore import TCoRe

RUN = tiny()
FRAMES = Pictures().read(0, [0, 5, 10, 15])  # 48 x 64
SIZE, H, W = (64, 96), 4, 6


@pytest.fixture(scope="module")
def model() -> TCoRe:
    return TCoRe(RUN.pretrain, 0)


def test_every_patch_looks_while_it_is_hidden(model: TCoRe) -> None:
    maps = attention.attention_of_every_query(model, FRAMES, SIZE, reach=1)
    assert set(maps) == {(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)}
    for weights in maps.values():
        assert weights.shape == (4, H * W, H * W)  # four heads
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    # The patch in row 2, column 1 is hidden together with the 2 x 2 squares that lie two rows or columns further.
    hidden = np.zeros((H, W), bool)
    hidden[2:4, [0, 1, 4, 5]] = True
    model.eval()
    with torch.no_grad():
        encoder = model.student.encoder
        current = encoder(to_input(torch.from_numpy(FRAMES[1])[None], SIZE), torch.from_numpy(hidden.reshape(1, -1)))[1]
        future = encoder(to_input(torch.from_numpy(FRAMES[2])[None], SIZE))[1]
        expected = model.decoder.cross_attention(current, future)[0, :, 2 * W + 1]
    np.testing.assert_allclose(maps[1, 2][:, 2 * W + 1], expected, atol=1e-6)


def test_a_crop_s_rows_are_indexed_by_row_then_column(model: TCoRe) -> None:
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    looked = attention.cross_attention(model, FRAMES[:3], mask)
    assert looked.crops.shape == (3, 320, 320, 3)  # 64 pixels, shown at five times the size
    assert looked.of(1, 2)["future"].shape == (4, 4, 4)
    np.testing.assert_array_equal(looked.of(1, 2)["past"], looked.maps["past"][:, 1, 2])
    np.testing.assert_allclose(looked.maps["future"].sum((-2, -1)), 1, atol=1e-5)


def test_statistics_by_hand() -> None:
    """One hidden patch, row 0, column 1 of 3 x 4; it gives 3/4 to row 2, column 1 and 1/4 to row 0, column 0."""
    maps = np.zeros((1, 3, 4, 3, 4), np.float32)
    maps[0, 0, 1, 2, 1], maps[0, 0, 1, 0, 0] = 0.75, 0.25
    mask = np.zeros((3, 4), bool)
    mask[0, 1] = True
    looked = CrossAttention(np.zeros((3, 48, 64, 3), np.uint8), mask, {"past": maps, "future": maps})
    found = attention.statistics([looked])
    assert found["sharpness"] == pytest.approx(0.75)
    assert found["reach"] == pytest.approx(2.0)  # from row 0 to row 2
    assert found["entropy"] == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    assert attention.sharpest(looked, 5) == [(0, 1)]
    # two patches side by side: half the weight each, ln 2, and a best patch at distance 0 or 1
    assert attention.uniform_statistics((1, 2)) == pytest.approx({"sharpness": 0.5, "entropy": np.log(2), "reach": 0.5})


def profile(root: str, **attention_section: int) -> params.Params:
    sections = RUN.model_dump(mode="json")
    sections["davis"] |= {"root": root, "input_size": [96, 160]}
    for other in ("jhmdb", "vip"):
        sections[other] |= {"enabled": False}
    sections["attention"] |= {"clip_frames": 3} | attention_section
    return params.parse(sections, "test")


def test_the_first_benchmark_clip_gets_features_attention_and_labels(tmp_path: Path, model: TCoRe) -> None:
    run = profile(str(write_small_davis(tmp_path)))
    shown = correspondences.scene(run)
    assert len(shown.frames) == len(shown.names) == 3
    assert shown.clip is not None
    encoder = random_encoder(RUN.pretrain.encoder, 64, 0)
    widget = correspondences.explore(shown, {"random": encoder}, model)
    assert widget.encoders == ["random"]
    assert widget.pick == {"frame": 0, "row": 1, "column": 1}  # object 1 covers pixels 16 to 48
    assert widget._meta["grid"] == [6, 10]  # 96 x 160 pixels in patches of 16
    first = clips.read_ids(shown.clip.annotations[0])
    assert widget._meta["labels"]["names"] == ["background", *(f"object {i}" for i in np.unique(first) if i)]
    height, width = shown.frames[0].shape[:2]
    short = 4  # the trained crop has 64 / 16 patches
    assert min(widget._meta["attention"]["grid"]) == short
    assert max(widget._meta["attention"]["grid"]) == round(short * max(height, width) / min(height, width))
    assert [1, 2] in widget._meta["attention"]["pairs"]


def test_a_scene_has_the_annotated_objects_or_a_disc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = profile(str(write_small_davis(tmp_path)))
    shown = correspondences.scene(run)
    annotation = clips.read_ids(shown.clip.annotations[0])  # type: ignore[union-attr, arg-type]
    np.testing.assert_array_equal(shown.mask, annotation)
    index = tmp_path / "index"
    index.touch()
    monkeypatch.setattr(correspondences.videos, "index_path", lambda _: index)
    monkeypatch.setattr(correspondences.videos.FrameIndex, "load", lambda _: Pictures())
    monkeypatch.setattr(Pictures, "path", lambda *_: tmp_path, raising=False)
    video = correspondences.scene(profile(str(tmp_path / "nowhere")))
    assert (video.clip, video.mask.shape) == (None, (48, 64))
    assert (video.mask[24, 32], video.mask[0].max()) == (1, 0)  # the middle


def test_only_a_profile_with_weights_has_a_decoder(tmp_path: Path) -> None:
    sections = RUN.model_dump(mode="json")
    sections["pretrain"]["enabled"] = False  # as for published encoders
    assert profiles.decoders(params.parse(sections, "test")) == {}
    with pytest.raises(InputError, match="holds no checkpoint"):
        profiles.decoders(profile(str(tmp_path)))
    with pytest.raises(InputError, match="not on this machine"):
        correspondences.scene(profile(str(tmp_path / "nowhere")))
