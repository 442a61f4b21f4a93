"""Linear layers on a CPU in float32 by oneDNN, an eighth faster than torch's own products on the machines measured.

Where no gradients are wanted the GELU of an MLP is part of the product's last pass. For a network that is frozen, weights are
packed once besides: what torch.compile makes of it, with a C++ compiler and after waiting. Results differ by rounding (5e-7).
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
    """`x @ weight.T + bias`, packed or not, then the exact GELU if the activation says `gelu`."""
    algorithm = "none" if activation == "gelu" else ""  # the other GELU is called tanh
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)


def _has_onednn() -> bool:
    operations = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in operations)


def _fits(x: Tensor) -> bool:
    """Whether it is an input for oneDNN; torch handles, or refuses, every other one."""
    return x.dtype == torch.float32 and x.dim() > 1 and x.numel() > 0 and not torch.is_autocast_enabled("cpu")


class _Layer:
    """The `forward` of a linear layer.

    Args:
        layer: whose place it takes.
        frozen: pack the weight now; else it is read as it is at every call.
    """

    def __init__(self, layer: nn.Linear, frozen: bool) -> None:
        self._layer = layer
        self._packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach()) if frozen else None

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        """The layer, and the exact GELU where the activation says `gelu` and no gradients are wanted."""
        weight, bias = self._layer.weight, self._layer.bias
        if not _fits(x):
            return F.linear(x, weight, bias)
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *self._layer.parameters())):
            return _Linear.apply(x, weight, bias)
        return _product(x, weight if self._packed is None else self._packed, bias, activation)


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
    def fused(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not _fits(x):
            return forward(x)
        return mlp.fc2(fc1(x, "gelu"))

    return fused


@contextmanager
def onednn_linears(*networks: nn.Module, precision: str = "fp32", frozen: bool) -> Iterator[None]:
    """Inside, the linear layers of these networks run on oneDNN. Such blocks may be nested, but not overlap in two threads.

    Nothing changes for a network that is not on a CPU in float32, for another precision of the computation, nor where
    torch was built without oneDNN.

    Args:
        networks: their layers get another `forward` and have their own again afterwards.
        precision: what the networks are run in.
        frozen: their weights do not change inside, and many passes are made.
    """
    if precision != "fp32" or not _has_onednn():
        yield
        return
    forwards: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
    modules = dict.fromkeys(module for network in networks for module in network.modules())  # networks may share some
    for module in modules:
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
            vars(module).pop("forward", None)
            if own is not None:
                module.forward = own  # type: ignore[method-assign]


def _is_plain(mlp: Mlp) -> bool:
    """Whether it is linear, exact GELU, linear and nothing else: no norm between, no dropout."""
    gelu = type(mlp.act) is nn.GELU and mlp.act.approximate == "none"
    return gelu and type(mlp.norm) is nn.Identity and not (mlp.training and mlp.drop1.p + mlp.drop2.p > 0)
