"""The losses of METHOD section 6, without holding what a reader of the formula would hold.

With K = 65,536 prototypes the logits of a batch of 256 fill 8 GB and their gradient as much again. Here every
cross-entropy is one function over L2-normalised bottleneck features: it makes logits, targets and the gradient for a
slice of rows at a time. The mean logit and the agreement of two sets of logits need no logits at all.

Letters: S student sets and V teacher sets that share R rows, d bottleneck width, K prototypes, M masked patches, B
samples.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tcore_lib.machine.compiled import compiled

# Values of one slice of logits. On a GPU large enough to fill it; on a CPU small enough not to thrash memory.
SLICE = {"cpu": 2**23, "cuda": 2**27}
# Softmax values near 1 / K are below fp16's normal range; a power of two lifts them and changes no digit elsewhere.
LIFT = 64.0


def cross_entropy(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """H(t, s) = -sum t log softmax(s / temperature), row by row: the definition. (..., K), (..., K) -> (...)."""
    return -(targets * F.log_softmax(logits / temperature, dim=-1)).sum(-1)


def sharpen(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's distribution, softmax((z - centre) / temperature). (..., K), (K,) -> (..., K)."""
    return F.softmax((logits - centre) / temperature, dim=-1)


def _product(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """`x @ weight.T` in float32 at least; half-precision products on a GPU accumulate straight into it.

    Args:
        x: (R, d).
        weight: (K, d).
        out: (R, K) to write into, where nothing has to be converted. On a CPU new memory of this size is slower than
            the product's own pass over it.
    """
    if x.dtype in (torch.float32, torch.float64):
        return torch.mm(x, weight.T, out=out) if out is not None else x @ weight.T
    if x.is_cuda:
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    return (x @ weight.T).float()


def _compute_dtype(x: Tensor) -> torch.dtype:
    """What autocast would multiply in; the tensor's own dtype outside of it and in float64."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype


def _soft_targets(logits: Tensor, shift: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor]:
    """The teacher's distributions (r, K), and the sum of their entropies in nats where it is asked for, else 0.

    Logits are divided by the temperature already, as is the centre that makes the shift.
    """
    if not with_entropy:
        return torch.softmax(logits - shift, dim=-1), logits.new_zeros(())
    log_targets = F.log_softmax(logits - shift, dim=-1)
    targets = log_targets.exp()
    return targets, -(targets * log_targets).sum()


def _soft_targets_in_place(logits: Tensor, shift: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor]:
    """`_soft_targets`, operation by operation in the memory of the logits."""
    logits.sub_(shift)
    if not with_entropy:
        return torch.softmax(logits, dim=-1, out=logits), logits.new_zeros(())
    log_targets = F.log_softmax(logits, dim=-1)
    targets = torch.exp(log_targets, out=logits)
    return targets, -torch.linalg.vecdot(targets, log_targets).sum()


def _losses_and_slopes_in_place(
    logits: Tensor, targets: Tensor, teachers: int, lift: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`_losses_and_slopes`, operation by operation in the memory of the logits."""
    # sum t log softmax(z) = t . z - V lse, and the largest p = exp(z - lse) is far from 0 and tells lse
    agreed = torch.einsum("rk,srk->sr", targets, logits)  # unlike vecdot it makes no product to sum up
    largest = logits.amax(-1)  # (S, r)
    p = torch.softmax(logits, dim=-1, out=logits)
    losses = teachers * (largest - p.amax(-1).log()) - agreed
    slope = p.sub_(targets, alpha=1 / teachers).flatten(0, 1)
    return losses, slope if dtype == p.dtype else slope.mul_(lift).to(dtype)


def _losses_and_slopes(
    logits: Tensor, targets: Tensor, teachers: int, lift: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cross-entropies (S, r) of logits (S, r, K) against the sum (r, K) of so many distributions, and their slopes.

    The slopes (S * r, K), in `dtype`, are the derivative by the logits, divided by `teachers` and lifted.
    """
    norm = torch.logsumexp(logits, dim=-1, keepdim=True)
    losses = teachers * norm[..., 0] - (targets * logits).sum(-1)
    return losses, ((torch.exp(logits - norm) - targets / teachers) * lift).to(dtype).flatten(0, 1)


class _Room:
    """Memory for a slice of logits by name, used again for the next slice. A GPU's allocator does that by itself."""

    def __init__(self, like: Tensor, columns: int, used: bool) -> None:
        self._like, self._columns, self._used = like, columns, used
        self._held: dict[str, Tensor] = {}

    def __call__(self, name: str, rows: int) -> Tensor | None:
        """(rows, columns) of any content, or None where new memory is as good."""
        if not self._used:
            return None
        if name not in self._held:  # the first slice is the largest
            self._held[name] = self._like.new_empty(rows, self._columns)
        return self._held[name][:rows]


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
        of_teacher, of_student = _soft_targets_in_place, _losses_and_slopes_in_place
        if fused:
            of_teacher, of_student = compiled(_soft_targets), compiled(_losses_and_slopes)
        with torch.autocast(student.device.type, enabled=False):
            weights = weights.to(wide)
            own, others = prototypes.to(dtype), teacher_prototypes.to(dtype)
            shift = centre.to(wide) / sharp
            losses = torch.zeros(sets, dtype=wide, device=student.device)
            entropy = torch.zeros((), dtype=wide, device=student.device)
            grad_student = torch.empty_like(student, dtype=wide) if wants else student.new_empty(0)
            grad_prototypes = torch.empty_like(prototypes, dtype=wide) if wants else student.new_empty(0)
            step = max(1, SLICE["cpu" if on_cpu else "cuda"] // (len(prototypes) * sets))
            room = _Room(student, len(prototypes), on_cpu and dtype == wide)
            for start in range(0, rows, step):
                part = slice(start, start + step)
                x, weight = student[:, part], weights[part]  # (S, r, d), (r,)
                targets = torch.empty(0)
                for v, view in enumerate(teacher):
                    space = room("first" if v == 0 else "next", len(weight))
                    target = _product((view[part] / sharp).to(dtype), others, space)
                    target, spread = of_teacher(target, shift, with_entropy)
                    entropy += spread / (rows * num_teachers)
                    targets = target if v == 0 else targets.add_(target)  # (r, K)
                space = room("student", sets * len(weight))
                logits = _product((x / cool).to(dtype).flatten(0, 1), own, space).unflatten(0, (sets, len(weight)))
                values, slope = of_student(logits, targets, num_teachers, lift, dtype)
                losses += scale * (values @ weight)
                if not wants:
                    continue
                counts = torch.stack([weight * (c * factor) for c in coefficients])[..., None]  # (S, r, 1)
                grad_student[:, part] = (slope @ own).to(wide).view_as(x) * counts
                # counted without the small factor, which half precision would lose
                shares = torch.stack([weight * c for c in coefficients])[..., None] * x.to(wide)
                shares = shares.flatten(0, 1).to(dtype)
                kept = 0.0 if start == 0 else 1.0
                if dtype == wide:
                    torch.addmm(grad_prototypes, slope.T, shares, beta=kept, alpha=factor, out=grad_prototypes)
                else:
                    product = _product(slope.T, shares.T)
                    grad_prototypes = product if start == 0 else grad_prototypes.add_(product)
        if wants and dtype != wide:
            grad_prototypes.mul_(factor)
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
        fused: generate code (torch.compile) that runs over a slice of logits once or twice instead of a dozen times.

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
