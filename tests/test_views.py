"""Views against torch and torchvision: same resize, colours and distributions; nothing of a neighbour leaks in."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch._subclasses import FakeTensorMode

import tcore_lib.data.crops
import tcore_lib.data.views
from tcore_lib.data.crops import JITTER, resize_batch, resize_one
from tcore_lib.data.views import LARGE, ViewParams, crop_names, describe, draw_views, make_views
from tcore_lib.params import Views

LEVEL = 1 / 255
SETTINGS = Views()
SMALL = Views(global_size=64, local_size=32)  # the same pipeline on fewer pixels
PLAIN = Views(
    global_size=16, local_size=16, jitter=0.0, grayscale=0.0, blur_global_2=0.0, blur_local=0.0, solarize_global_2=0.0
)
SLOTS = {name: i for i, name in enumerate(crop_names(8))}


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 (3, H, W): smooth colours, hard edges and noise, from black to white."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 20
    waves = np.stack([np.sin(x + a) + np.sin(y * b + x / 3) for a, b in rng.random((3, 2)) * 4])
    edges = 2 * ((x + y)[None] % 3 > 1.5) * rng.random((3, 1, 1))
    mixed = 128 + 55 * (waves + edges - 1) + rng.normal(0, 8, (3, height, width))
    return torch.from_numpy(mixed.clip(0, 255).astype(np.uint8))


def sandwich(batch: int, height: int, width: int) -> Tensor:
    """uint8 (B, 3, 3, H, W) of different pictures."""
    return torch.stack([picture(height, width, seed) for seed in range(3 * batch)]).unflatten(0, (batch, 3))


# ---------------------------------------------------------------------------------------------------- crop and resize


@pytest.mark.parametrize("size", [224, 96, 37])
def test_resize_is_torchs_antialiased_bicubic(size: int) -> None:
    """Batched: torch's float resize to 0.01 grey levels; one by one: torch's 8-bit resize exactly."""
    image = picture(256, 340)
    boxes = np.array([[0, 0, 256, 340], [13, 40, 200, 150], [100, 7, 31, 290], [250, 330, 6, 10], [9, 9, 1, 1]])
    flips = np.array([False, True, False, True, False])
    batched = resize_batch(image.expand(5, -1, -1, -1), boxes, flips, size)
    half = resize_batch(image.expand(5, -1, -1, -1), boxes, flips, size, torch.float16)  # as on a GPU
    assert ((half - batched) * 255).abs().max() < 0.4
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        crop = image[None, :, top : top + height, left : left + width]
        exact = F.interpolate(crop.float(), (size, size), mode="bicubic", antialias=True).clamp(0, 255)
        rounded = F.interpolate(crop, (size, size), mode="bicubic", antialias=True).float()
        if flips[i]:
            exact, rounded = exact.flip(-1), rounded.flip(-1)
        assert (batched[i] * 255 - exact[0]).abs().max() < 0.01
        assert (resize_one(image, boxes[i], bool(flips[i]), size) * 255 - rounded).abs().max() < 0.01


# --------------------------------------------------------------------------------------------------------- photometry


def test_fused_colours_are_the_same(compile_with: Callable[..., None]) -> None:
    """A graph break would raise."""
    compile_with(backend="eager", fullgraph=True)
    frames, views = sandwich(3, 60, 80), draw_views(2, range(3), [(60, 80)] * 3, SMALL)
    plain = make_views(frames, views, SMALL, batched=True)
    for name, crops in make_views(frames, views, SMALL, batched=True, fused=True).items():
        torch.testing.assert_close(crops, plain[name], rtol=0, atol=1e-5, msg=name)


def reference_resize(frame: Tensor, views: ViewParams, b: int, crop: int) -> Tensor:
    """torchvision's resized crop of a float or uint8 frame (3, H, W), in its type."""
    x = TF.resized_crop(frame, *views.boxes[b, crop].tolist(), [64, 64], TF.InterpolationMode.BICUBIC, antialias=True)
    x = x if x.dtype == torch.uint8 else x.clamp(0, 1)
    return TF.horizontal_flip(x) if views.flips[b, crop] else x


def reference_photometry(x: Tensor, draws: np.record) -> Tensor:
    """torchvision's functions on a float crop (3, S, S)."""
    for op in draws.order if draws.jitter else ():
        x = getattr(TF, f"adjust_{list(JITTER)[op]}")(x, float(draws.factors[op]))
    x = TF.rgb_to_grayscale(x, 3) if draws.grayscale else x
    x = TF.gaussian_blur(x, [9, 9], [float(draws.sigma)] * 2) if draws.sigma > 0 else x
    return TF.solarize(x, 128 / 255) if draws.solarize else x


def unnormalised(out: dict[str, Tensor], batch: int) -> Tensor:
    """All large crops as (B, 6, 3, S, S) in 0..1, in the order of `crop_names`."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    stacked = torch.cat([out["current"], out["past"], out["future"]]).unflatten(0, (len(LARGE), batch))
    return (stacked.float() * std + mean).transpose(0, 1)


@pytest.mark.parametrize("pipeline", ["float", "8-bit resize"])
def test_the_whole_pipeline_is_torchvisions(pipeline: str) -> None:
    """Within one grey level of the float pipeline, everywhere; on a CPU, of its photometry after an 8-bit resize."""
    frames = sandwich(12, 100, 130)
    views = draw_views(5, range(12), [(100, 130)] * 12, SMALL)
    ours = 255 * unnormalised(make_views(frames, views, SMALL, batched=pipeline == "float"), 12)
    differences = []
    for b, (crop, role) in itertools.product(range(12), enumerate((1, 1, 0, 0, 2, 2))):
        resized = reference_resize(frames[b, role] / 255 if pipeline == "float" else frames[b, role], views, b, crop)
        if pipeline == "8-bit resize":
            resized = resized / 255
        expected = reference_photometry(resized, views[b, crop])
        differences.append((ours[b, crop] - expected * 255).flatten())
    difference = torch.cat(differences)
    assert difference.abs().max() <= 1.0
    assert difference.abs().mean() < 0.01


# -------------------------------------------------------------------------------------------------------------- draws


def test_auxiliary_crops_share_the_largest_centred_box() -> None:
    views = draw_views(0, range(4), [(256, 340), (240, 426), (400, 200), (90, 120)], SETTINGS)
    expected = [[0, 0, 256, 340], [0, 53, 240, 320], [66, 0, 267, 200], [0, 0, 90, 120]]  # 240 * 4/3, 200 / (3/4)
    for name in ("past_1", "past_2", "future_1", "future_2"):
        assert views.boxes[:, SLOTS[name]].tolist() == expected


def test_a_sample_depends_on_its_counter_alone() -> None:
    sizes = np.array([[100, 130]] * 5)
    batch = draw_views(3, [9, 4, 7, 0, 2], sizes, SMALL)
    alone = draw_views(3, [7], sizes[:1], SMALL)
    assert describe(batch, 2) == describe(alone, 0)
    assert list(describe(alone, 0)) == crop_names(8)
    assert describe(batch, 1) != describe(batch, 2)
    assert describe(draw_views(4, [7], sizes[:1], SMALL), 0) != describe(alone, 0)
    fewer = draw_views(3, [7], sizes[:1], Views(global_size=64, local_size=32, num_local=2))
    assert np.array_equal(fewer.boxes, alone.boxes[:, :8])  # local crops come last


# ----------------------------------------------------------------------------------------------------------- assembly


@pytest.mark.parametrize("batched", [False, True])
def test_padding_never_leaks_in(batched: bool) -> None:
    sizes = [(60, 80), (41, 100), (90, 33)]
    views = draw_views(3, range(3), sizes, SMALL)
    zeros, noise = torch.zeros(3, 3, 3, 90, 100, dtype=torch.uint8), torch.randint(0, 256, (3, 3, 3, 90, 100)).byte()
    frames = [sandwich(1, *size) for size in sizes]
    for padded, b in itertools.product((zeros, noise), range(3)):
        padded[b, :, :, : sizes[b][0], : sizes[b][1]] = frames[b][0]
    with_zeros, with_noise = (make_views(padded, views, SMALL, batched=batched) for padded in (zeros, noise))
    for b in range(3):
        exact = make_views(frames[b], draw_views(3, [b], [sizes[b]], SMALL), SMALL, batched=batched)
        for name in exact:
            assert torch.equal(with_zeros[name], with_noise[name])
            assert torch.allclose(exact[name], with_zeros[name][b::3], atol=1e-4)


@pytest.mark.parametrize("batched", [False, True])
def test_crops_are_crop_major_and_from_the_right_frame(batched: bool) -> None:
    """Each frame is one gray value: 10 * sample + role."""
    grays = 10 * torch.arange(3)[:, None] + torch.arange(3)
    frames = grays.to(torch.uint8)[:, :, None, None, None].expand(3, 3, 3, 20, 30)
    out = make_views(frames, draw_views(0, range(3), [(20, 30)] * 3, PLAIN), PLAIN, batched=batched)
    mean, std = (torch.tensor(v) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    for name, role, crops in (("past", 0, 2), ("current", 1, 2), ("future", 2, 2), ("local", 1, 8)):
        assert out[name].shape == (3 * crops, 3, 16, 16)
        gray = (out[name].permute(0, 2, 3, 1) * std + mean) / LEVEL
        expected = (10 * torch.arange(3) + role).repeat(crops).float()
        assert torch.allclose(gray, expected.view(-1, 1, 1, 1).expand_as(gray), atol=1e-3)


@pytest.mark.parametrize("batched", [False, True])
def test_result_type_memory_order_and_autocast_change_nothing_but_rounding(batched: bool) -> None:
    frames = sandwich(2, 60, 80)
    views = draw_views(1, range(2), [(60, 80)] * 2, SMALL)
    plain = make_views(frames, views, SMALL, batched=batched)
    channels_last = frames.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        other = make_views(channels_last, views, SMALL, batched=batched, dtype=torch.bfloat16)
    for name, crops in plain.items():
        assert torch.equal(other[name], crops.to(torch.bfloat16))
        assert other[name].is_contiguous()


def test_on_a_gpu_everything_stays_there_and_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, by shapes alone: reading a value back, a boolean mask or a forgotten host tensor would raise."""
    for module in (tcore_lib.data.views, tcore_lib.data.crops):
        monkeypatch.setattr(module, "to_device", lambda array, device: torch.from_numpy(array.copy()).to(device))
    views = draw_views(0, range(40), [(256, 340)] * 40, SETTINGS)
    with FakeTensorMode():
        frames = torch.empty(40, 3, 3, 256, 340, dtype=torch.uint8, device="cuda")
        out = make_views(frames, views, SETTINGS, dtype=torch.bfloat16)
        assert out["future"].shape == (80, 3, 224, 224)
        assert out["local"].shape == (320, 3, 96, 96)
        assert {(crops.device.type, crops.dtype) for crops in out.values()} == {("cuda", torch.bfloat16)}


@pytest.mark.parametrize("batched", [False, True])
def test_only_wanted_auxiliary_crops(batched: bool) -> None:
    """Some crops of the past and none of the future: those are the same as among all, the rest is as ever."""
    frames, views = sandwich(3, 60, 80), draw_views(2, range(3), [(60, 80)] * 3, SMALL)
    wanted = np.array([True, False, True, False, False, True])  # first crops of samples 0 and 2, second one of sample 2
    everything = make_views(frames, views, SMALL, batched=batched)
    auxiliary = {"past": wanted, "future": np.zeros(6, dtype=bool)}
    some = make_views(frames, views, SMALL, batched=batched, auxiliary=auxiliary)
    assert torch.equal(some["past"], everything["past"][torch.from_numpy(wanted)])
    assert len(some["future"]) == 0
    for name in ("current", "local"):
        assert torch.equal(some[name], everything[name])
