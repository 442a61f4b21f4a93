"""Linear layers on a CPU in float32 by oneDNN, an eighth faster than torch's own products (MKL) there.

For a network that is frozen, weights are packed once, and the GELU is part of the product's last pass: what torch.compile
makes of it, with a C++ compiler and after waiting. Results differ by rounding (5e-7).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """`x @ weight.T + bias` of a packed weight, then the exact GELU if the activation says `gelu`."""
    algorithm = "none" if activation == "gelu" else ""  # the other GELU is called tanh
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)


def _has_onednn() -> bool:
    operations = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in operations)


class _Layer:
    """The `forward` of a linear layer.

    Args:
        layer: whose place it takes.
        frozen: pack the weight now; else it is read as it is at every call.
    """

    def __init__(self, layer: nn.Linear, frozen: bool) -> None:
        self.layer = layer
        weight = layer.weight.detach()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if frozen else weight
        self._bias = None if layer.bias is None else layer.bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return F.linear(x, self.layer.weight, self.layer.bias)
        if torch.is_grad_enabled() and (x.requires_grad or self.layer.weight.requires_grad):
            return _Linear.apply(x, self.layer.weight, self.layer.bias)
        return _product(x, self._weight, self._bias)

    def then_gelu(self, x: Tensor) -> Tensor:
        """The layer and a GELU, without gradients."""
        return _product(x, self._weight, self._bias, "gelu")


class _Linear(torch.autograd.Function):
    """The layer where gradients are wanted; that of the weight stays with torch, which is as fast there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _product(grad, weight.T, None) if of_x else None,
            rows.T @ x.flatten(0, -2) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _mlp(mlp: Mlp, fc1: _Layer, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def without_gradients(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.numel() == 0:
            return forward(x)
        return mlp.fc2(fc1.then_gelu(x))

    return without_gradients


@contextmanager
def onednn_linears(*networks: nn.Module, precision: str = "fp32", frozen: bool) -> Iterator[None]:
    """Inside, the linear layers of these networks run on oneDNN.

    Nothing changes for a network that is not on a CPU in float32, for another precision of the computation, nor where
    torch was built without oneDNN.

    Args:
        networks: their layers get another `forward` and have their own again afterwards.
        precision: what the networks are run in.
        frozen: their weights do not change inside, and many passes are made.
    """
    forwards: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
    modules = dict.fromkeys(module for network in networks for module in network.modules())  # networks may share some
    for module in modules if precision == "fp32" and _has_onednn() else []:
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
            forwards[module] = _Layer(module, frozen)
    for module in [module for module in modules if type(module) is Mlp and _is_plain(module)]:
        fc1 = forwards.get(module.fc1)
        if isinstance(fc1, _Layer):
            forwards[module] = _mlp(module, fc1, module.forward)
    before = {module: vars(module).get("forward") for module in forwards}  # None: that of its class
    try:
        for module, forward in forwards.items():
            module.forward = forward  # type: ignore[method-assign]
        yield
    finally:
        for module, own in before.items():
            del module.forward
            if own is not None:
                module.forward = own  # type: ignore[method-assign]


def _is_plain(mlp: Mlp) -> bool:
    """Whether it is linear, exact GELU, linear and nothing else: no norm between, no dropout."""
    gelu = type(mlp.act) is nn.GELU and mlp.act.approximate == "none"
    return gelu and type(mlp.norm) is nn.Identity and not (mlp.training and mlp.drop1.p + mlp.drop2.p > 0)
