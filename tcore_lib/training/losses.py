"""The losses of METHOD section 6, without holding what a reader of the formula would hold.

With K = 65,536 prototypes the logits of a batch of 256 fill 8 GB and their gradient as much again. Here every
cross-entropy is one function over L2-normalised bottleneck features: it makes logits, targets and the gradient for a
slice of rows at a time. The mean logit and the agreement of two sets of logits need no logits at all.

Letters: S student sets and V teacher sets that share R rows, d bottleneck width, K prototypes, M masked patches, B
samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tcore_lib.machine import compiled

# Values of one slice of logits: rows enough to keep the products of weights and gradients at their full rate.
SLICE = {"cpu": 2**24, "cuda": 2**27}
PIECE = 4096  # columns of a slice that a CPU handles at a time; with K = 65,536 its cache holds them
# Softmax values near 1 / K are below fp16's normal range; a power of two lifts them and changes no digit elsewhere.
LIFT = 64.0


def cross_entropy(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """H(t, s) = -sum t log softmax(s / temperature), row by row: the definition. (..., K), (..., K) -> (...)."""
    return -(targets * F.log_softmax(logits / temperature, dim=-1)).sum(-1)


def sharpen(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's distribution, softmax((z - centre) / temperature). (..., K), (K,) -> (..., K)."""
    return F.softmax((logits - centre) / temperature, dim=-1)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T`, (R, d) and (K, d), in float32 at least; half products on a GPU accumulate straight into it."""
    if x.dtype in (torch.float32, torch.float64):
        return x @ weight.T
    if x.is_cuda:
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    return (x @ weight.T).float()


def _compute_dtype(x: Tensor) -> torch.dtype:
    """What autocast would multiply in; the tensor's own dtype outside of it and in float64."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype


@dataclass(frozen=True)
class _Problem:
    """What a slice of rows needs to know, beside its features.

    Attributes:
        own: (K, d), the student's prototypes.
        others: (K, d), the teacher's.
        shift: (K,), the centre divided by the teacher's temperature.
        dtype: of the products.
        lift: what slopes are multiplied by.
        with_entropy: whether the teacher's entropy is asked for.
    """

    own: Tensor
    others: Tensor
    shift: Tensor
    dtype: torch.dtype
    lift: float
    with_entropy: bool


# What comes of a slice of r rows: cross-entropies (S, r); the summed entropy of the teacher's distributions in nats; pairs of
# columns and slopes (S * r, columns), which are the derivative by the student's logits, divided by V and lifted, and are made
# when they are asked for, out of the logits that live as long as this does.
_Handled = tuple[Tensor, Tensor, Iterator[tuple[slice, Tensor]]]


def _piece_of_softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the last dimension in the memory of the logits, and their logsumexp."""
    largest = logits.amax(-1)
    p = torch.softmax(logits, dim=-1, out=logits)
    return p, largest - p.amax(-1).log()  # the largest p = exp(z - lse) is far from 0


def _in_pieces(x: Tensor, teachers: Tensor, problem: _Problem, width: int) -> _Handled:
    """A slice of rows by pieces of `width` columns, each handled while it is in the cache.

    A piece's softmax is over the piece alone: the whole one is that times exp(lse of the piece - lse of all), and every
    sum over the columns is the sum of the pieces' own with these factors. The entropy is that of the pieces, and the one
    of falling into them.

    Args:
        x: (S, r, d), divided by the student's temperature.
        teachers: (V, r, d), divided by theirs.
        problem: what does not change from slice to slice.
        width: columns of a piece.
    """
    (sets, rows, _), num_teachers = x.shape, len(teachers)
    columns = [slice(start, start + width) for start in range(0, len(problem.own), width)]
    x, teachers = x.flatten(0, 1).to(problem.dtype), teachers.flatten(0, 1).to(problem.dtype)
    students, targets, lse, lse_targets, products, entropies = [], [], [], [], [], []
    for part in columns:
        target, norm = _piece_of_softmax(_product(teachers, problem.others[part]).sub_(problem.shift[part]))
        if problem.with_entropy:
            entropies.append(torch.special.entr(target).sum(-1))
        targets.append(target.unflatten(0, (num_teachers, rows)))
        lse_targets.append(norm)
        student = _product(x, problem.own[part])
        # unlike vecdot, einsum makes no product to sum up
        products.append(torch.einsum("vrk,srk->vsr", targets[-1], student.unflatten(0, (sets, rows))))
        student, norm = _piece_of_softmax(student)
        students.append(student)
        lse.append(norm)
    norms, shares_of_targets = torch.stack(lse), torch.stack(lse_targets).softmax(0)  # (pieces, S * r), (pieces, V * r)
    shares = norms.softmax(0)
    parts = shares_of_targets.unflatten(1, (num_teachers, rows))  # (pieces, V, r)
    # sum t log softmax(z) = t . z - lse for each teacher set
    whole = norms.logsumexp(0).view(sets, rows)
    losses = num_teachers * whole - torch.einsum("pvsr,pvr->sr", torch.stack(products), parts)
    entropy = losses.new_zeros(())
    if problem.with_entropy:
        entropy = (shares_of_targets * torch.stack(entropies) + torch.special.entr(shares_of_targets)).sum()

    def slopes() -> Iterator[tuple[slice, Tensor]]:
        for part, student, target, share, weights in zip(columns, students, targets, shares, parts, strict=True):
            slope = student.mul_(share[:, None]).unflatten(0, (sets, rows))
            for teacher, weight in zip(target, weights, strict=True):
                slope.addcmul_(teacher, weight[:, None], value=-1 / num_teachers)
            slope = slope.flatten(0, 1)
            yield part, slope if problem.dtype == slope.dtype else slope.mul_(problem.lift).to(problem.dtype)

    return losses, entropy, slopes()


def _soft_targets(logits: Tensor, shift: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor]:
    """The teacher's distributions (r, K), and the sum of their entropies in nats where it is asked for, else 0.

    Logits are divided by the temperature already, as is the centre that makes the shift.
    """
    if not with_entropy:
        return torch.softmax(logits - shift, dim=-1), logits.new_zeros(())
    log_targets = F.log_softmax(logits - shift, dim=-1)
    targets = log_targets.exp()
    return targets, -(targets * log_targets).sum()


def _losses_and_slopes(
    logits: Tensor, targets: Tensor, teachers: int, lift: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cross-entropies (S, r) of logits (S, r, K) against the sum (r, K) of so many distributions, and their slopes.

    The slopes (S * r, K), in `dtype`, are the derivative by the logits, divided by `teachers` and lifted.
    """
    norm = torch.logsumexp(logits, dim=-1, keepdim=True)
    losses = teachers * norm[..., 0] - (targets * logits).sum(-1)
    return losses, ((torch.exp(logits - norm) - targets / teachers) * lift).to(dtype).flatten(0, 1)


def _fused(x: Tensor, teachers: Tensor, problem: _Problem) -> _Handled:
    """The same over all columns at once, by generated code, which reads the logits once or twice."""
    targets, entropy = torch.empty(0), x.new_zeros(())
    for v, teacher in enumerate(teachers.to(problem.dtype)):
        target, spread = compiled(_soft_targets)(_product(teacher, problem.others), problem.shift, problem.with_entropy)
        entropy = entropy + spread
        targets = target if v == 0 else targets.add_(target)  # (r, K)
    logits = _product(x.to(problem.dtype).flatten(0, 1), problem.own).unflatten(0, x.shape[:2])
    losses, slope = compiled(_losses_and_slopes)(logits, targets, len(teachers), problem.lift, problem.dtype)
    return losses, entropy, iter([(slice(None), slope)])


class _PrototypeCrossEntropy(torch.autograd.Function):
    """Computes the gradient together with the value, slice by slice, so that no logits outlive their slice."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        prototypes: Tensor,
        teacher: Tensor,
        teacher_prototypes: Tensor,
        centre: Tensor,
        weights: Tensor,
        coefficients: tuple[float, ...],
        scale: float,
        temperatures: tuple[float, float],
        with_entropy: bool,
        fused: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        cool, sharp = temperatures
        dtype = _compute_dtype(student)
        wide = torch.float64 if student.dtype == torch.float64 else torch.float32
        lift = 1.0 if dtype == wide else LIFT
        wants = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        (sets, rows, _), num_teachers, on_cpu = student.shape, len(teacher), student.device.type == "cpu"
        # d H / d logits = (V softmax - targets) / temperature; the slopes lack V / temperature
        factor = scale * num_teachers / cool / lift
        with torch.autocast(student.device.type, enabled=False):
            weights = weights.to(wide)
            shift = centre.to(wide) / sharp
            problem = _Problem(prototypes.to(dtype), teacher_prototypes.to(dtype), shift, dtype, lift, with_entropy)
            losses = torch.zeros(sets, dtype=wide, device=student.device)
            entropy = torch.zeros((), dtype=wide, device=student.device)
            grad_student = torch.zeros_like(student, dtype=wide) if wants else student.new_empty(0)
            grad_prototypes = torch.zeros_like(prototypes, dtype=wide) if wants else student.new_empty(0)
            step = max(1, SLICE["cpu" if on_cpu else "cuda"] // (len(prototypes) * sets))
            for start in range(0, rows, step):
                part = slice(start, start + step)
                x, weight = student[:, part], weights[part]  # (S, r, d), (r,)
                if fused:
                    values, spread, slopes = _fused(x / cool, teacher[:, part] / sharp, problem)
                else:
                    width = PIECE if on_cpu else len(prototypes)
                    values, spread, slopes = _in_pieces(x / cool, teacher[:, part] / sharp, problem, width)
                entropy += spread / (rows * num_teachers)
                losses += scale * (values @ weight)
                if wants:
                    # counted without the small factor, which half precision would lose
                    counts = torch.stack([weight * c for c in coefficients])[..., None]  # (S, r, 1)
                    counted = (counts * x.to(wide)).flatten(0, 1).to(dtype)
                    for columns, slope in slopes:
                        grad_student[:, part] += (slope @ problem.own[columns]).view_as(x)
                        target = grad_prototypes[columns]
                        if dtype == wide:
                            target.addmm_(slope.T, counted, alpha=factor)
                        else:
                            target.add_(_product(slope.T, counted.T), alpha=factor)
                    grad_student[:, part] *= counts * factor
                    del slope
                del slopes  # and with it the logits, whose memory the next slice takes
        if wants:
            ctx.save_for_backward(grad_student.to(student.dtype), grad_prototypes.to(prototypes.dtype))
        # term by term: a tensor of coefficients would be copied to the device, and the host would wait for it
        total = sum(
            (c * loss for c, loss in zip(coefficients, losses.unbind(), strict=True)), start=losses.new_zeros(())
        )
        ctx.mark_non_differentiable(losses, entropy)
        return total, losses, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grad_student, grad_prototypes = ctx.saved_tensors
        return grad_student.mul_(grad_total), grad_prototypes.mul_(grad_total), *(None,) * 9


def prototype_cross_entropy(
    student: Tensor,
    prototypes: Tensor,
    teacher: Tensor,
    teacher_prototypes: Tensor,
    centre: Tensor,
    weights: Tensor,
    *,
    coefficients: tuple[float, ...],
    student_temperature: float,
    teacher_temperature: float,
    scale: float = 1.0,
    with_entropy: bool = False,
    fused: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of student sets against the sum of the teacher sets' distributions, all over the same prototypes.

    loss_s = scale sum_r weights_r sum_v H(sharpen(teacher_vr), student_sr). DINO and the patch terms are this with
    different sets (METHOD section 6). Equals `cross_entropy` and `sharpen` on materialised logits to rounding; in a
    half-precision autocast the products are taken in that precision and everything else in float32.

    Args:
        student: (S, R, d), L2-normalised bottleneck features.
        prototypes: (K, d), the student head's.
        teacher: (V, R, d), without gradient.
        teacher_prototypes: (K, d).
        centre: (K,), the teacher's centre.
        weights: (R,), of each row, 0..1.
        coefficients: S numbers, the weight of each student set in the total.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's.
        scale: of all losses. Small factors belong here, not into `weights`: half precision would lose them.
        with_entropy: also compute the third result.
        fused: generate code (torch.compile) for whole rows of logits; else a CPU goes by pieces of columns.

    Returns:
        total = sum_s coefficients_s loss_s, the only differentiable one; losses (S,); the mean entropy of the teacher's
        distributions in nats, or 0.
    """
    temperatures = (student_temperature, teacher_temperature)
    return _PrototypeCrossEntropy.apply(
        student,
        prototypes,
        teacher,
        teacher_prototypes,
        centre,
        weights,
        coefficients,
        scale,
        temperatures,
        with_entropy,
        fused,
    )


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
