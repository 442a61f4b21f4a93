"""Linear layers by oneDNN: the same numbers, the network as it was afterwards, and only where it applies."""

import pytest
import torch
from timm.layers import Mlp
from torch import Tensor, nn

from tcore_lib import params
from tcore_lib.network import packed
from tcore_lib.network.encoder import random_encoder
from tcore_lib.network.packed import packed_linears


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The activation of every product that was made for oneDNN."""
    made: list[str] = []
    product = packed._product

    def counting(layer: nn.Linear, activation: str) -> object:
        made.append(activation)
        return product(layer, activation)

    monkeypatch.setattr(packed, "_product", counting)
    return made


needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@needs_onednn
def test_an_encoder_gives_the_same_features_and_is_itself_again(counted: list[str]) -> None:
    encoder = random_encoder(params.Encoder(arch="custom", width=32, depth=2, heads=2), 64, seed=0).eval()
    images = torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = encoder(images)
        with packed_linears(encoder):
            quick = encoder(images)
        after = encoder(images)
    torch.testing.assert_close(quick, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(after, plain)
    assert sorted(counted) == ["gelu"] * 2 + ["none"] * 6  # of each block: qkv, proj, fc1 with the GELU, fc2
    assert not any("forward" in vars(module) for module in encoder.modules())


@needs_onednn
def test_one_encoder_under_two_names_and_another_precision(counted: list[str]) -> None:
    encoder = random_encoder(params.Encoder(arch="custom", width=32, depth=1, heads=2), 64, seed=0).eval()
    with packed_linears(encoder, encoder):
        assert len(counted) == 4
    assert not any("forward" in vars(module) for module in encoder.modules())
    with packed_linears(encoder, precision="bf16"):  # autocast chooses its own products
        assert len(counted) == 4


@needs_onednn
@pytest.mark.parametrize("activation", [nn.GELU(approximate="tanh"), nn.SiLU()])
def test_another_activation_stays_where_it_is(activation: nn.Module, counted: list[str]) -> None:
    mlp = Mlp(8, 16, act_layer=lambda: activation).eval()
    x = torch.linspace(-3, 3, 24).view(3, 8)
    with torch.no_grad():
        plain = mlp(x)
        with packed_linears(mlp):
            torch.testing.assert_close(mlp(x), plain, rtol=1e-5, atol=1e-6)
    assert counted == ["none", "none"]


@needs_onednn
def test_a_layer_without_bias_and_one_in_double(counted: list[str]) -> None:
    layers = nn.ModuleList([nn.Linear(4, 5, bias=False), nn.Linear(4, 5).double()])
    x = torch.arange(8.0).view(2, 4)
    with torch.no_grad(), packed_linears(layers):
        torch.testing.assert_close(layers[0](x), x @ layers[0].weight.T)
        assert layers[1](x.double()).dtype == torch.float64
    assert counted == ["none"]


def test_layers_are_restored_after_an_error() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="stop"), packed_linears(layer):
        raise RuntimeError("stop")
    assert "forward" not in vars(layer)


def test_without_onednn_nothing_changes(monkeypatch: pytest.MonkeyPatch, counted: list[str]) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    layer = nn.Linear(2, 2)
    with packed_linears(layer):
        x: Tensor = layer(torch.ones(1, 2))
    assert x.shape == (1, 2)
    assert counted == []
