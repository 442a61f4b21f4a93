"""The losses against their definitions, and against figures a reader can check by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tcore_lib.training import losses
from tcore_lib.training.losses import prototype_cross_entropy

S, V, R, WIDTH, K = 2, 2, 7, 5, 11
STUDENT, TEACHER = BOTH = (0.1, 0.05)  # temperatures


def problem(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Random sets; one row has weight 0."""
    torch.manual_seed(0)
    weights = torch.rand(R, dtype=dtype)
    weights[3] = 0
    return {
        "student": F.normalize(torch.randn(S, R, WIDTH, dtype=dtype), dim=-1).requires_grad_(),
        "prototypes": torch.randn(K, WIDTH, dtype=dtype).requires_grad_(),
        "teacher": F.normalize(torch.randn(V, R, WIDTH, dtype=dtype), dim=-1),
        "teacher_prototypes": torch.randn(K, WIDTH, dtype=dtype),
        "centre": torch.randn(K, dtype=dtype),
        "weights": weights,
    }


def definition(p: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """On all logits: losses (S,), sum of the teacher's distributions (K,), sum of their entropies."""
    targets = ((p["teacher"] @ p["teacher_prototypes"].T - p["centre"]) / TEACHER).softmax(-1)  # (V, R, K)
    logits = p["student"] @ p["prototypes"].T / STUDENT  # (S, R, K)
    rows = -(targets[None] * logits[:, None].log_softmax(-1)).sum(-1)  # (S, V, R)
    return (rows * p["weights"]).sum((1, 2)), targets.sum((0, 1)), torch.special.entr(targets).sum()


def gradients(p: dict[str, Tensor], loss: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss @ loss.new_tensor([0.7, 1.9]), (p["student"], p["prototypes"]))


@pytest.mark.parametrize(("rows_at_a_time", "fused"), [(1, False), (3, True), (R, False)])
def test_values_and_gradients_are_those_of_the_definition(
    rows_at_a_time: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses.SLICE, "cpu", rows_at_a_time * K * S)
    monkeypatch.setattr(losses, "compiled", lambda function: function)
    p = problem()
    ours, expected = prototype_cross_entropy(**p, temperatures=BOTH, fused=fused), definition(p)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=0)
    for mine, theirs in zip(gradients(p, ours[0]), gradients(p, expected[0]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


def test_all_logits_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of a quarter of the logits: none is larger, and between the slices nothing of their size stays."""
    rows, prototypes = 64, 512
    made: list[int] = []
    kept: list[int] = []
    real = losses._logits

    def counted(x: Tensor, w: Tensor) -> Tensor:
        made.append(len(w) * x[..., 0].numel())
        return real(x, w)

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    sets = (torch.randn(2, rows, 2).requires_grad_(), torch.randn(prototypes, 2).requires_grad_())
    sets += (torch.randn(1, rows, 2), torch.randn(prototypes, 2), torch.zeros(prototypes), torch.ones(rows))
    monkeypatch.setattr(losses, "_logits", counted)
    monkeypatch.setitem(losses.SLICE, "cpu", 2 * rows * prototypes // 4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _, _ = prototype_cross_entropy(*sets, BOTH)
    assert max(made) <= losses.SLICE["cpu"]
    assert len(made) == 2 * 4  # for the teacher and for the student
    assert max(kept) <= 2 * prototypes
    assert loss.isfinite().all()


def test_half_precision_is_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(losses.SLICE, "cpu", 3 * K * S)
    p = problem(torch.float32)
    exact = definition(p)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = prototype_cross_entropy(**p, temperatures=BOTH)[0]
    torch.testing.assert_close(values, exact, rtol=3e-2, atol=0)
    for mine, theirs in zip(gradients(p, values), gradients(p, exact), strict=True):
        assert (mine - theirs).norm() < 3e-2 * theirs.norm()
        assert mine.dtype == torch.float32


def test_by_hand() -> None:
    """Both temperatures 1, features 1: teacher logits (ln 3, 0) are (3/4, 1/4), student logits (ln 2, 0) are (2/3, 1/3)."""
    one, theirs, own = torch.ones(1, 1, 1), torch.tensor([[math.log(3)], [0.0]]), torch.tensor([[math.log(2)], [0.0]])
    inputs = (one, own, one, theirs, torch.zeros(2), torch.tensor([2.0]), (1.0, 1.0))
    loss, targets, entropy = prototype_cross_entropy(*inputs)
    assert loss.item() == pytest.approx(2 * (0.75 * math.log(3 / 2) + 0.25 * math.log(3)))  # the row's weight is 2
    assert targets.tolist() == pytest.approx([0.75, 0.25])
    assert entropy.item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))


@pytest.mark.parametrize("patches", [1, 40])  # fewer and more than the bottleneck has features
def test_agreement_is_the_squared_distance_of_the_logits(patches: int) -> None:
    torch.manual_seed(1)
    past, future = (torch.randn(patches, WIDTH, dtype=torch.float64).requires_grad_() for _ in range(2))
    prototypes = torch.randn(K, WIDTH, dtype=torch.float64).requires_grad_()
    inputs = (past, future, prototypes)
    value = losses.agreement(*inputs)
    expected = (past @ prototypes.T - future @ prototypes.T).square().sum()
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    for mine, theirs in zip(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_koleo_by_hand() -> None:
    """On the unit circle at 0, 90 and 180 degrees every nearest neighbour is sqrt(2) away: 3 x -log sqrt(2)."""
    points = torch.tensor([[5.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    assert losses.koleo(points).item() == pytest.approx(-3 * math.log(math.sqrt(2)), abs=1e-6)
    # two equal points: their difference is 1e-8 in each of the two coordinates
    same = losses.koleo(torch.ones(2, 2, dtype=torch.float64)).item()
    assert same == pytest.approx(-2 * math.log(math.sqrt(2) * 1e-8 + 1e-8))
    points = torch.tensor([[1.0, 0.0], [1.0, 0.2], [-1.0, 0.5]], requires_grad=True)
    losses.koleo(points).backward()  # neighbours are pushed apart:
    assert points.grad[0, 1] > 0 > points.grad[1, 1]  # the descent direction of the first is down, of the second up
