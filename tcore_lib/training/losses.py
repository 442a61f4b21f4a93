"""The losses of METHOD section 6.

With K = 65,536 prototypes the logits of a batch of 256 fill 8 GB and their gradient as much again. So the losses take
features, not logits: `prototype_cross_entropy` makes the logits of a slice of rows at a time and makes them once more in
the backward pass; `agreement` and the centres need no logits at all.

Letters: S student sets and V teacher sets of R rows each, d bottleneck width, K prototypes, M masked patches, B samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from tcore_lib.machine import compiled

# Logits of one slice: 64 MB on a CPU; on a GPU 512 MB, rows enough to keep its matrix products at their full rate.
SLICE = {"cpu": 2**24, "cuda": 2**27}


# ---- the definitions: one line each, what everything below has to equal -----------------------------------------------


def cross_entropy(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """H(t, s) = -sum t log softmax(s / temperature), row by row. (..., K), (..., K) -> (...)."""
    return -(targets * F.log_softmax(logits / temperature, dim=-1)).sum(-1)


def sharpen(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's distribution, softmax((z - centre) / temperature). (..., K), (K,) -> (..., K)."""
    return F.softmax((logits - centre) / temperature, dim=-1)


# ---- the same without holding all logits ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Temperatures:
    """Of the student's and the teacher's softmax."""

    student: float
    teacher: float


class _Product(torch.autograd.Function):
    """`x @ w.T`, (n, d) and (K, d), multiplied in half precision but not rounded to it.

    A GPU accumulates half products straight into float32. In the backward pass fp16 would lose what is as small as a
    softmax over K: what comes in is scaled so that its largest value is 64.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, half: torch.dtype) -> Tensor:
        x, w = x.to(half), w.to(half)  # here: autograd would round the gradients as it has rounded these
        ctx.save_for_backward(x, w)
        return _half_product(x, w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, w = ctx.saved_tensors
        scale = grad.abs().amax().clamp_min(1e-30) / 64
        half = (grad / scale).to(x.dtype)
        return _half_product(half, w.T) * scale, _half_product(half.T, x.T) * scale, None


def _half_product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T` of matrices in half precision, in float32."""
    return torch.mm(a, b.T, out_dtype=torch.float32) if a.is_cuda else (a @ b.T).float()


def _logits(x: Tensor, prototypes: Tensor) -> Tensor:
    """`x @ prototypes.T`, (..., d) and (K, d) -> (..., K): half numbers are multiplied inside autocast, the rest is wide."""
    kind = x.device.type
    with_half = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    half = torch.get_autocast_dtype(kind)
    with torch.autocast(kind, enabled=False):
        if not with_half:
            return x @ prototypes.T
        return _Product.apply(x.flatten(0, -2), prototypes, half).unflatten(0, x.shape[:-1])


# What is done to a slice of logits: plain formulas, which a GPU runs as generated code. The logits come in divided by the
# temperature, because generated code takes a number for a constant.


def _targets(logits: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """(V, r, K) -> the teacher's distributions summed over V (r, K), and the sum of all their entropies ()."""
    log_targets = F.log_softmax(logits - shift, dim=-1)
    targets = log_targets.exp()
    return targets.sum(0), -(targets * log_targets).sum(-1).sum()


def _against(logits: Tensor, targets: Tensor, teachers: int) -> Tensor:
    """(S, r, K) against the sum (r, K) of so many distributions: sum_v H(t_v, s), (S, r)."""
    return teachers * logits.logsumexp(-1) - (targets * logits).sum(-1)


def _rows(
    student: Tensor, prototypes: Tensor, teacher: Tensor, teacher_prototypes: Tensor, shift: Tensor, fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """A slice of r rows: cross-entropies (S, r), the sum (K,) of the teacher's distributions and of their entropies ()."""
    make: Callable[..., Any] = compiled if fused else lambda function: function
    with torch.no_grad():
        targets, entropy = make(_targets)(_logits(teacher, teacher_prototypes), shift)  # (r, K), ()
    losses = make(_against)(_logits(student, prototypes), targets, len(teacher))  # (S, r)
    return losses, targets.sum(0), entropy


def prototype_cross_entropy(
    student: Tensor,
    prototypes: Tensor,
    teacher: Tensor,
    teacher_prototypes: Tensor,
    centre: Tensor,
    weights: Tensor,
    temperatures: Temperatures,
    *,
    fused: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum over rows of the cross-entropy of each student set against every teacher set.

    loss_s = sum_r weights_r sum_v H(sharpen(teacher_vr), student_sr). DINO and the patch terms are this with different
    sets. Equals `cross_entropy` and `sharpen` on materialised logits to rounding.

    Args:
        student: (S, R, d), L2-normalised bottleneck features.
        prototypes: (K, d), the student head's.
        teacher: (V, R, d), without gradient.
        teacher_prototypes: (K, d).
        centre: (K,), taken from the teacher's logits.
        weights: (R,), of each row.
        temperatures: of both softmaxes.
        fused: generate code (torch.compile) for what is done to the logits, on a GPU.

    Returns:
        Losses (S,); and without gradient, of the teacher's V R distributions, their sum (K,) and the sum of their
        entropies () in nats.
    """
    student, teacher = student / temperatures.student, teacher / temperatures.teacher
    shift = centre / temperatures.teacher
    rows_at_a_time = max(1, SLICE[student.device.type] // (len(prototypes) * max(len(student), len(teacher))))
    losses = student.new_zeros(len(student))
    total_target, entropy = torch.zeros_like(shift), shift.new_zeros(())
    for start in range(0, len(weights), rows_at_a_time):
        part = slice(start, start + rows_at_a_time)
        inputs = (student[:, part], prototypes, teacher[:, part], teacher_prototypes, shift, fused)
        if len(weights) <= rows_at_a_time:  # the only slice: its logits may stay until the backward pass
            values, targets, spread = _rows(*inputs)
        else:
            values, targets, spread = checkpoint(_rows, *inputs, use_reentrant=False)
        losses = losses + (values * weights[part]).sum(-1)  # a product would be one of half precision
        total_target, entropy = total_target + targets, entropy + spread
    return losses, total_target, entropy


# ---- other ways to a centre -------------------------------------------------------------------------------------------


@torch.no_grad()
def sinkhorn_centre(features: Tensor, prototypes: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """The centre with which the teacher uses every prototype equally often on this batch (DINOv2's Sinkhorn-Knopp).

    Sinkhorn-Knopp scales the rows and columns of exp(z / temperature) in turn until every prototype has the same share of
    the N rows of all ranks and every row sums to 1. What it does to the prototypes is one factor each, and a factor of
    softmax's exponentials is a centre: the result is `sharpen(z, this centre, temperature)`. So no matrix of N x K is kept,
    and the loss is the same function for both ways of centring.

    Args:
        features: (N, d), this rank's rows of the teacher's bottleneck features; there may be none.
        prototypes: (K, d).
        temperature: of the teacher.
        iterations: DINOv2's three.

    Returns:
        (K,).
    """
    rows_at_a_time = max(1, SLICE[features.device.type] // len(prototypes))
    centre = torch.zeros(len(prototypes), dtype=features.dtype, device=features.device)
    for i in range(iterations):
        mass = torch.full_like(centre, -torch.inf)  # log of each prototype's share, up to a constant
        for rows in features.split(rows_at_a_time):
            logits = _logits(rows, prototypes) / temperature  # (r, K)
            if i > 0:  # rows sum to 1 with the factors so far; before the first round they are as they come
                logits = logits - (logits - centre / temperature).logsumexp(-1, keepdim=True)
            mass = torch.logaddexp(mass, logits.logsumexp(0))
        centre = temperature * _log_sum_over_ranks(mass)
    return torch.where(centre.isfinite(), centre, 0.0)  # no rank has any rows


def _log_sum_over_ranks(logs: Tensor) -> Tensor:
    """log(sum over ranks of exp(logs)), on every rank."""
    if not dist.is_initialized():
        return logs
    largest = logs.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    total = (logs - largest).exp()
    dist.all_reduce(total)
    return total.log() + largest


# ---- the other terms --------------------------------------------------------------------------------------------------


class _SquaredLogits(torch.autograd.Function):
    """|D W^T|^2 = <D^T D, W^T W> and its gradients, with products of M d^2 and K d^2 and nothing of size M K."""

    @staticmethod
    def forward(ctx: Any, difference: Tensor, prototypes: Tensor) -> Tensor:
        spread, gram = difference.T @ difference, prototypes.T @ prototypes  # (d, d) both
        ctx.save_for_backward(difference, prototypes, spread, gram)
        return (spread * gram).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        difference, prototypes, spread, gram = ctx.saved_tensors
        return difference @ (gram * (2 * grad)), prototypes @ (spread * (2 * grad))


def agreement(past: Tensor, future: Tensor, prototypes: Tensor) -> Tensor:
    """Sum over all M x K entries of (past logit - future logit)^2; METHOD section 6 divides by M K.

    Args:
        past: (M, d) bottleneck features restored from the past.
        future: (M, d), from the future.
        prototypes: (K, d).
    """
    with torch.autocast(past.device.type, enabled=False):
        past, future, prototypes = (x if x.dtype == torch.float64 else x.float() for x in (past, future, prototypes))
        return _SquaredLogits.apply(past - future, prototypes)


def koleo(features: Tensor) -> Tensor:
    """Sum over the B samples of -log(distance to the nearest other sample + 1e-8), on L2-normalised features.

    In float32 whatever comes in (float64 stays). The distance adds 1e-8 to every coordinate's difference, as torch's
    pairwise distance does.

    Args:
        features: (B, D), B >= 2.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features if features.dtype == torch.float64 else features.float()
        features = F.normalize(features, dim=-1, eps=1e-8)
        with torch.no_grad():
            similarity = features @ features.T
            nearest = similarity.fill_diagonal_(-1.0).argmax(dim=1)
        distance = F.pairwise_distance(features, features[nearest], eps=1e-8)
        return -(distance + 1e-8).log().sum()
