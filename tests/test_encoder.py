"""The network against an independent transcription, and everything training relies on."""

import pytest
import torch
from reference_vit import reference_tokens
from torch import Tensor

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.model.encoders import (
    FeatureEncoder,
    Pixels,
    attention_maps,
    layer_tokens,
    load_encoder,
    random_encoder,
)
from tcore_lib.model.vit import ViT, initial_vit

SMALL = params.Encoder(arch="custom", width=64, depth=2, heads=4)


def drawn_vit(settings: params.Encoder = SMALL, img_size: int = 64, seed: int = 0) -> ViT:
    """A ViT in which every tensor matters: at the official start LayerScale hides the blocks, CLS and mask are 0."""
    vit = initial_vit(settings, img_size, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            spread = 1.0 if "gamma" in name or "norm" in name else 0.3 if parameter.ndim > 2 else 0.1
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return vit


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(224, 224), (96, 96), (480, 880), (320, 176)], ids=str)
def test_tokens_equal_the_transcription(size: tuple[int, int]) -> None:
    """float32, at the sizes of training and evaluation and one portrait; 1e-5 is a fraction of the values' size, 1."""
    vit = drawn_vit(img_size=224)
    batch = images(1, 3, *size)
    expected = reference_tokens(vit.state_dict(), 4, batch)
    with torch.no_grad():
        cls, patches = vit(batch)
    assert 0.3 < expected.std() < 3
    assert (torch.cat([cls[:, None], patches], 1) - expected[:, [0, *range(5, expected.shape[1])]]).abs().max() < 1e-5
    encoder = FeatureEncoder(vit, "test")
    grid = (size[0] // 16, size[1] // 16)
    assert encoder(batch).shape == (1, *grid, 64)
    assert torch.equal(encoder(batch).flatten(1, 2), patches)


@pytest.mark.parametrize("registers", [0, 4])
def test_masks_registers_and_stochastic_depth(registers: int) -> None:
    """Masked patches; dropped branches vanish for their sample alone, kept ones are scaled by 1 / (1 - 0.1)."""
    vit = drawn_vit(SMALL.model_copy(update={"registers": registers})).double()
    batch, masks = images(3, 3, 32, 64).double(), torch.arange(24).reshape(3, 8) % 3 == 0
    state = {"register_tokens": torch.zeros(1, 0, 64, dtype=torch.float64), **vit.state_dict()}
    expected = reference_tokens(state, 4, batch, masks)
    cls, patches = vit(batch, masks)
    assert (cls - expected[:, 0]).abs().max() < 1e-12
    assert (patches - expected[:, 1 + registers :]).abs().max() < 1e-12
    assert (vit(batch)[1] - patches).abs().max() > 0.01
    keep = torch.tensor([[[1, 0, 1], [1, 1, 0]], [[0, 1, 1], [0, 1, 1]]]).bool()
    expected = reference_tokens(state, 4, batch, scale=keep / 0.9)
    assert (vit(batch, keep=keep)[1] - expected[:, 1 + registers :]).abs().max() < 1e-6  # the scale 1 / 0.9 is float32


def test_groups_of_blocks_compute_what_single_blocks_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients of the form that a GPU compiles, a last group that is smaller among them."""
    vit = drawn_vit(SMALL.model_copy(update={"depth": 4})).double()
    monkeypatch.setattr("tcore_lib.model.vit.compiled", lambda function, **_: function)
    batch, masks = images(3, 3, 32, 32).double(), torch.arange(12).reshape(3, 4) % 2 == 0
    keep = torch.arange(24).reshape(4, 2, 3) % 5 > 0
    results = []
    for vit.compile_blocks in (False, True):
        cls, patches = vit(batch, masks, keep)
        loss = (cls**3).sum() + (patches**3).sum()
        results.append((cls, patches, *torch.autograd.grad(loss, list(vit.parameters()))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_patches_are_embedded_by_one_product_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution's numbers, for frames that are not square and a grid that is not the trained one."""
    vit, batch = drawn_vit().double(), images(2, 3, 48, 80).double()
    expected = vit.embed(batch)
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda _: True))
    torch.testing.assert_close(vit.embed(batch), expected, rtol=1e-12, atol=1e-12)


def test_official_start() -> None:
    """Spreads of docs/method.md's initialisation; the same seed gives the same weights; torch's own generator is untouched."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    vit = initial_vit(params.Encoder(), 224, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    state = vit.state_dict()
    block = 4 * 384 + 2 * 384 + (384 + 1) * 1152 + (384 + 1) * 384 + (384 + 1) * 1536 + (1536 + 1) * 384
    tokens = (1 + 197 + 4 + 1) * 384  # CLS, positions, registers, mask
    assert sum(value.numel() for value in state.values()) == 12 * block + tokens + (768 + 1) * 384 + 2 * 384
    for name, spread in (("pos_embed", 0.02), ("blocks.5.mlp.fc1.weight", 0.02), ("cls_token", 1e-6)):
        assert state[name].std().item() == pytest.approx(spread, rel=0.1), name
    assert state["register_tokens"].std().item() == pytest.approx(1e-6, rel=0.1)
    assert state["mask_token"].abs().max() == 0
    again, other = (initial_vit(params.Encoder(), 224, seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert not torch.equal(state["pos_embed"], other["pos_embed"])
    assert random_encoder(SMALL, 64, seed=3)(images(1, 3, 32, 48)).shape == (1, 2, 3, 64)


def test_attention_and_layers() -> None:
    vit = drawn_vit().double()
    batch = images(2, 3, 32, 64).double()
    encoder = FeatureEncoder(vit, "test")
    for layer in (0, -1):
        maps = attention_maps(encoder, batch, layer)
        assert maps.shape == (2, 4, 13, 13)
        assert (maps - reference_tokens(vit.state_dict(), 4, batch, attention_of=layer % 2)).abs().max() < 1e-12
    assert all(block.attn.fused_attn for block in vit.blocks)
    layers = layer_tokens(encoder, batch)
    assert layers.shape == (2, 2, 13, 64)
    assert torch.equal(vit.norm(layers[-1]), vit.tokens(batch))


def test_pixels() -> None:
    """Channel, row, column: pixel (channel 2, row 5, column 7) of a patch is its feature 2 * 256 + 5 * 16 + 7."""
    encoder = load_encoder("pixels")
    batch = images(2, 3, 32, 48)
    features = encoder(batch)
    assert (features.shape, encoder.width, encoder.patch_size) == ((2, 2, 3, 768), 768, 16)
    assert features[1, 1, 2, 2 * 256 + 5 * 16 + 7] == batch[1, 2, 16 + 5, 32 + 7]
    with pytest.raises(InputError, match="50x48 pixels"):
        encoder(images(1, 3, 50, 48))
    assert isinstance(encoder.network, Pixels)
    assert load_encoder("pixels:8")(batch).shape == (2, 4, 6, 192)
    with pytest.raises(InputError, match="write pixels:8"):
        load_encoder("pixels:x")


@pytest.mark.parametrize(("name", "prefix"), [("vit_small_patch16_dinov3", 5), ("vit_tiny_patch16_224", 1)])
def test_any_transformer_of_timm(name: str, prefix: int) -> None:
    """Registers, rotary positions: the patch tokens are those timm's own model gives after the prefix."""
    encoder = load_encoder(f"timm:{name}:random")
    batch = images(1, 3, 32, 48)
    features = encoder(batch)
    assert features.shape == (1, 2, 3, encoder.width)
    model = encoder.network
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    own_mean, own_std = torch.tensor(model.pretrained_cfg["mean"]), torch.tensor(model.pretrained_cfg["std"])
    pixels = batch * std[:, None, None] + mean[:, None, None]
    theirs = model.forward_features((pixels - own_mean[:, None, None]) / own_std[:, None, None])[:, prefix:]
    assert (features.flatten(1, 2) - theirs).abs().max() < 1e-4
    maps = attention_maps(encoder, batch, 0)
    assert (maps.sum(-1) - 1).abs().max() < 1e-5
    assert layer_tokens(encoder, batch).shape == (12, 1, prefix + 6, encoder.width)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("timm:vit_smal_patch16_224:random", "cannot be had"),
        ("timm:resnet18:random", "choose a vit"),
        ("vits16_k440", "neither a file, a folder nor a known encoder"),
    ],
)
def test_unknown_sources(source: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_encoder(source)
