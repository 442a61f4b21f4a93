"""Linear layers by oneDNN: the same numbers, the network as it was afterwards, and only where it applies."""

import pytest
import torch
from timm.layers import Mlp
from torch import Tensor, nn

from tcore_lib import params
from tcore_lib.model import onednn
from tcore_lib.model.encoders import random_encoder
from tcore_lib.model.onednn import onednn_linears


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The activation of every product that oneDNN made."""
    made: list[str] = []
    product = onednn._product

    def counting(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
        made.append(activation)
        return product(x, weight, bias, activation)

    monkeypatch.setattr(onednn, "_product", counting)
    return made


needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@needs_onednn
def test_an_encoder_gives_the_same_features_and_is_itself_again(counted: list[str]) -> None:
    encoder = random_encoder(params.Encoder(arch="custom", width=32, depth=2, heads=2), 64, seed=0).eval()
    images = torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = encoder(images)
        with onednn_linears(encoder, frozen=True):
            quick = encoder(images)
        after = encoder(images)
    torch.testing.assert_close(quick, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(after, plain)
    assert sorted(counted) == ["gelu"] * 2 + ["none"] * 6  # of each block: qkv, proj, fc1 with the GELU, fc2
    assert not any("forward" in vars(module) for module in encoder.modules())


@needs_onednn
def test_one_encoder_under_two_names_and_another_precision(counted: list[str]) -> None:
    encoder = random_encoder(params.Encoder(arch="custom", width=32, depth=1, heads=2), 64, seed=0).eval()
    images = torch.zeros(1, 3, 32, 32)
    with torch.no_grad(), onednn_linears(encoder, encoder, frozen=True):
        encoder(images)
        assert len(counted) == 4
    assert not any("forward" in vars(module) for module in encoder.modules())
    with torch.no_grad(), onednn_linears(encoder, precision="bf16", frozen=True):  # autocast chooses its own products
        encoder(images)
        assert len(counted) == 4


@needs_onednn
@pytest.mark.parametrize("constant", [(), ("fc1",), ("fc1", "fc2")])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_those_of_the_plain_layers(frozen: bool, constant: tuple[str, ...], counted: list[str]) -> None:
    torch.manual_seed(0)
    mlp = Mlp(6, 10, 7)
    for name in constant:
        getattr(mlp, name).requires_grad_(False)
    x = torch.randn(2, 3, 6, requires_grad=True)
    wanted = [x, *(p for p in mlp.parameters() if p.requires_grad)]
    weights = torch.randn(2, 3, 7)
    plain = torch.autograd.grad((mlp(x) * weights).sum(), wanted)
    with onednn_linears(mlp, frozen=frozen):
        quick = torch.autograd.grad((mlp(x) * weights).sum(), wanted)
    assert counted == ["none"] * 4  # both layers, forward and towards their inputs
    for ours, theirs in zip(quick, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@needs_onednn
def test_a_bias_alone_has_its_gradient() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    with onednn_linears(layer, frozen=False):
        layer(torch.ones(4, 3)).sum().backward()
    assert layer.bias.grad.tolist() == [4.0, 4.0]


@needs_onednn
def test_inputs_that_are_torchs_own_matter(counted: list[str]) -> None:
    """One dimension, autocast and another dtype: as without oneDNN."""
    layer, x = nn.Linear(3, 2), torch.ones(3)
    plain = layer(x)
    with onednn_linears(layer, frozen=False):
        assert torch.equal(layer(x), plain)
        layer(x).sum().backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x[None]).dtype == torch.bfloat16
        with pytest.raises(RuntimeError, match="dtype"):
            layer(x[None].double())
    assert counted == []


@needs_onednn
def test_no_rows_and_dropout(counted: list[str]) -> None:
    """A layer of no rows has gradients of zero; an MLP with dropout keeps it."""
    layer, mlp = nn.Linear(4, 5), Mlp(4, 8, drop=0.5)
    with onednn_linears(layer, mlp, frozen=False):
        layer(torch.empty(0, 4)).sum().backward()
        with torch.no_grad():
            dropped = mlp(torch.ones(64, 4))
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()
    assert (dropped == 0).float().mean() == pytest.approx(0.5, abs=0.15)
    assert counted == ["none"] * 2


@needs_onednn
def test_a_weight_that_is_not_frozen_is_read_at_every_call() -> None:
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    with torch.no_grad(), onednn_linears(layer, frozen=False):
        layer(x)
        layer.weight.fill_(2.0)
        layer.bias.fill_(1.0)
        assert layer(x).tolist() == [[7.0, 7.0]]


@needs_onednn
def test_a_layer_that_had_a_forward_of_its_own_has_it_again() -> None:
    layer = nn.Linear(2, 2)
    with onednn_linears(layer, frozen=True):
        outer = layer.forward
        with onednn_linears(layer, frozen=True):
            assert layer.forward is not outer
        assert layer.forward is outer
    assert "forward" not in vars(layer)


@needs_onednn
@pytest.mark.parametrize("activation", [nn.GELU(approximate="tanh"), nn.SiLU()])
def test_another_activation_stays_where_it_is(activation: nn.Module, counted: list[str]) -> None:
    mlp = Mlp(8, 16, act_layer=lambda: activation).eval()
    x = torch.linspace(-3, 3, 24).view(3, 8)
    with torch.no_grad():
        plain = mlp(x)
        with onednn_linears(mlp, frozen=True):
            torch.testing.assert_close(mlp(x), plain, rtol=1e-5, atol=1e-6)
    assert counted == ["none", "none"]


@needs_onednn
def test_a_layer_without_bias_and_one_in_double(counted: list[str]) -> None:
    layers = nn.ModuleList([nn.Linear(4, 5, bias=False), nn.Linear(4, 5).double()])
    x = torch.arange(8.0).view(2, 4)
    with torch.no_grad(), onednn_linears(layers, frozen=True):
        torch.testing.assert_close(layers[0](x), x @ layers[0].weight.T)
        assert layers[1](x.double()).dtype == torch.float64
    assert counted == ["none"]


def test_layers_are_restored_after_an_error() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="stop"), onednn_linears(layer, frozen=True):
        raise RuntimeError("stop")
    assert "forward" not in vars(layer)


def test_without_onednn_nothing_changes(monkeypatch: pytest.MonkeyPatch, counted: list[str]) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    layer = nn.Linear(2, 2)
    with onednn_linears(layer, frozen=True):
        x: Tensor = layer(torch.ones(1, 2))
    assert x.shape == (1, 2)
    assert counted == []
