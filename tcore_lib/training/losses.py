"""The losses of docs/method.md section 6, from features instead of logits.

With K = 65,536 prototypes the logits of a batch of 256 fill 8 GB and their gradient as much again. So the logits are made of
a slice of rows at a time, and once more in the backward pass; `agreement` and the centres need none.

Letters: S student sets and V teacher sets of R rows each, d bottleneck width, K prototypes, M masked patches, B samples.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from tcore_lib.machine import compiled

# Logits of one slice: 64 MB on a CPU; on a GPU 512 MB, rows enough to keep its matrix products at their full rate.
SLICE = {"cpu": 2**24, "cuda": 2**27}


# What is done to a slice of logits; a GPU runs it as generated code, which takes a number for a constant: so the logits come in
# divided by the temperature.
def _targets(logits: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """(V, r, K) -> the teacher's distributions summed over V (r, K), and the sum of all their entropies ()."""
    log_targets = F.log_softmax(logits - shift, dim=-1)
    targets = log_targets.exp()
    return targets.sum(0), -(targets * log_targets).sum(-1).sum()


def _against(logits: Tensor, targets: Tensor, teachers: int) -> Tensor:
    """(S, r, K) against the sum (r, K) of so many distributions: sum_v H(t_v, s), (S, r)."""
    return teachers * logits.logsumexp(-1) - (targets * logits).sum(-1)


def _half_product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T` of matrices in half precision, in float32, which is what a GPU sums the products in."""
    return torch.mm(a, b.T, out_dtype=torch.float32) if a.is_cuda else (a @ b.T).float()


class _Product(torch.autograd.Function):
    """`x @ w.T`, (n, d) and (K, d), multiplied in half precision but not rounded to it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, half: torch.dtype) -> Tensor:
        x, w = x.to(half), w.to(half)  # here: autograd would round the gradients as it has rounded these
        ctx.save_for_backward(x, w)
        return _half_product(x, w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, w = ctx.saved_tensors
        grad = grad.to(x.dtype)
        return _half_product(grad, w.T), _half_product(grad.T, x.T), None


def _logits(x: Tensor, prototypes: Tensor) -> Tensor:
    """`x @ prototypes.T`, (..., d) and (K, d) -> (..., K); inside autocast half numbers are multiplied."""
    kind = x.device.type
    in_half = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    with torch.autocast(kind, enabled=False):
        if not in_half:
            return x @ prototypes.T
        half = torch.get_autocast_dtype(kind)
        return _Product.apply(x.flatten(0, -2), prototypes, half).unflatten(0, x.shape[:-1])


def _rows(
    student: Tensor, prototypes: Tensor, teacher: Tensor, teacher_prototypes: Tensor, shift: Tensor, fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """A slice of r rows: cross-entropies (S, r), the sum (K,) of the teacher's distributions and of their entropies ()."""
    make_targets, compare = (compiled(_targets), compiled(_against)) if fused else (_targets, _against)
    with torch.no_grad():
        targets, entropy = make_targets(_logits(teacher, teacher_prototypes), shift)  # (r, K), ()
    return compare(_logits(student, prototypes), targets, len(teacher)), targets.sum(0), entropy


def prototype_cross_entropy(
    student: Tensor, prototypes: Tensor, teacher: Tensor, teacher_prototypes: Tensor, centre: Tensor, weights: Tensor,
    temperatures: tuple[float, float], *, fused: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Weighted sum over rows of the cross-entropy of each student set against every teacher set.

    loss_s = sum_r weights_r sum_v H(t_vr, p_sr) with H(t, p) = -sum_k t log p, p = softmax(student logits / temperature) and
    t = softmax((teacher logits - centre) / temperature), `temperatures` in this order. DINO and the patch terms are this.

    Features are L2-normalised: `student` (S, R, d), `teacher` (V, R, d) without gradient; prototypes (K, d); `centre` (K,);
    `weights` (R,). `fused`: what is done to the logits runs as generated code. Returns losses (S,); and without gradient, of the
    teacher's V R distributions, their sum (K,) and the sum of their entropies () in nats.
    """
    student, teacher, shift = student / temperatures[0], teacher / temperatures[1], centre / temperatures[1]
    rows_at_a_time = max(1, SLICE[student.device.type] // (len(prototypes) * max(len(student), len(teacher))))
    losses = student.new_zeros(len(student))
    total_target, entropy = torch.zeros_like(shift), shift.new_zeros(())
    for start in range(0, len(weights), rows_at_a_time):
        part = slice(start, start + rows_at_a_time)
        inputs = (student[:, part], prototypes, teacher[:, part], teacher_prototypes, shift, fused)
        values, targets, spread = checkpoint(_rows, *inputs, use_reentrant=False)
        losses = losses + (values * weights[part]).sum(-1)  # a product would be one of half precision
        total_target, entropy = total_target + targets, entropy + spread
    return losses, total_target, entropy


def agreement(past: Tensor, future: Tensor, prototypes: Tensor) -> Tensor:
    """Sum over all M x K entries of (past logit - future logit)^2; docs/method.md section 6 divides by M K.

    |D W^T|^2 = <D^T D, W^T W>: products of M d^2 and K d^2, and nothing of size M K. `past` and `future` are (M, d)
    bottleneck features restored from these frames, `prototypes` (K, d), all float32 at least.
    """
    with torch.autocast(past.device.type, enabled=False):
        difference = past - future
        return ((difference.T @ difference) * (prototypes.T @ prototypes)).sum()  # (d, d) both


def koleo(features: Tensor) -> Tensor:
    """Sum over the B >= 2 samples of -log(distance to the nearest other sample + 1e-8), on L2-normalised features (B, D)."""
    assert len(features) > 1, (
        "a micro-batch of one sample has no neighbours: lower loop.accumulate or the number of ranks"
    )
    with torch.autocast(features.device.type, enabled=False):
        features = features if features.dtype == torch.float64 else features.float()
        features = F.normalize(features, dim=-1, eps=1e-8)
        with torch.no_grad():
            nearest = (features @ features.T).fill_diagonal_(-1.0).argmax(dim=1)
        distance = F.pairwise_distance(features, features[nearest], eps=1e-8)  # 1e-8 on every coordinate's difference
        return -(distance + 1e-8).log().sum()
