"""The losses against their definitions, and against figures a reader can check by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tcore_lib.training import losses

S, V, R, WIDTH, K = 2, 2, 7, 5, 11
TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.05}


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


def definition(p: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(S,) losses and the teacher's mean entropy on materialised logits."""
    targets = losses.sharpen(p["teacher"] @ p["teacher_prototypes"].T, p["centre"], 0.05)  # (V, R, K)
    logits = p["student"] @ p["prototypes"].T  # (S, R, K)
    rows = losses.cross_entropy(targets[None], logits[:, None], 0.1)  # (S, V, R)
    return (rows * p["weights"]).sum((1, 2)), torch.special.entr(targets).sum(-1).mean()


@pytest.mark.parametrize("rows_at_a_time", [1, 3, R])
@pytest.mark.parametrize("columns_at_a_time", [1, 4, K, "whole rows, as code is generated for"])
def test_values_and_gradients_are_those_of_the_definition(
    rows_at_a_time: int, columns_at_a_time: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses.SLICE, "cpu", rows_at_a_time * K * S)
    monkeypatch.setattr(losses, "PIECE", columns_at_a_time)
    monkeypatch.setattr(losses, "compiled", lambda function: function)
    p, coefficients = problem(), (0.7, 1.9)
    total, values, entropy = losses.prototype_cross_entropy(
        **p,
        coefficients=coefficients,
        scale=0.5,
        with_entropy=True,
        fused=isinstance(columns_at_a_time, str),
        **TEMPERATURES,
    )
    (3 * total).backward()
    ours = [p["student"].grad.clone(), p["prototypes"].grad.clone()]
    p["student"].grad = p["prototypes"].grad = None
    expected, expected_entropy = definition(p)
    expected = 0.5 * expected
    (3 * (expected[0] * 0.7 + expected[1] * 1.9)).backward()
    torch.testing.assert_close(values, expected.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-13, atol=0)
    torch.testing.assert_close(total.item(), 0.7 * values[0].item() + 1.9 * values[1].item(), rtol=1e-13, atol=0)
    for mine, name in zip(ours, ("student", "prototypes"), strict=True):
        torch.testing.assert_close(mine, p[name].grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("pieces", [4, K])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_half_precision_is_close(
    dtype: torch.dtype, tolerance: float, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients too: fp16 would lose values of 1e-8 if they were not kept apart."""
    monkeypatch.setattr(losses, "PIECE", pieces)
    monkeypatch.setitem(losses.SLICE, "cpu", 3 * K * S)
    p = problem(torch.float32)
    exact = 1e-6 * definition(p)[0]
    exact.sum().backward()
    gradients = {name: p[name].grad.clone() for name in ("student", "prototypes")}
    p["student"].grad = p["prototypes"].grad = None
    with torch.autocast("cpu", dtype=dtype):
        total, values, _ = losses.prototype_cross_entropy(**p, coefficients=(1.0, 1.0), scale=1e-6, **TEMPERATURES)
    total.backward()
    torch.testing.assert_close(values, exact.detach(), rtol=tolerance, atol=0)
    for name, gradient in gradients.items():
        assert (p[name].grad - gradient).norm() < tolerance * gradient.norm()
        assert p[name].grad.dtype == torch.float32


def test_logits_far_apart_neither_overflow_nor_vanish(monkeypatch: pytest.MonkeyPatch) -> None:
    """One piece of columns may hold nothing but probabilities of 0; its shares of the softmax are 0, not nan."""
    monkeypatch.setattr(losses, "PIECE", 4)
    p = problem(torch.float32)
    p["prototypes"] = torch.cat([p["prototypes"].detach()[:4], 40 * p["prototypes"].detach()[4:]]).requires_grad_()
    p["teacher_prototypes"][4:] *= 40
    total, values, entropy = losses.prototype_cross_entropy(
        **p, coefficients=(1.0, 1.0), with_entropy=True, **TEMPERATURES
    )
    total.backward()
    gradients = {name: p[name].grad.clone() for name in ("prototypes", "student")}
    p["prototypes"].grad = p["student"].grad = None
    expected, expected_entropy = definition(p)
    expected.sum().backward()
    torch.testing.assert_close(values, expected.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, p[name].grad, rtol=1e-4, atol=2e-3 if name == "student" else 1e-4)


def test_by_hand() -> None:
    """Equal logits on both sides are uniform distributions: H = log K = log 4 = 1.386..., whatever the temperature."""
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    prototypes = torch.full((4, 1), 0.3, dtype=torch.float64)
    _, values, entropy = losses.prototype_cross_entropy(
        one, prototypes, one, prototypes, torch.zeros(4), torch.tensor([2.0]), coefficients=(1.0,), with_entropy=True,
        **TEMPERATURES,
    )  # fmt: skip
    assert values.item() == pytest.approx(2 * math.log(4))
    assert entropy.item() == pytest.approx(math.log(4))
    # teacher logits (ln 3, 0) at temperature 1 -> (3/4, 1/4); student logits (0.1 ln 2, 0) at 0.1 -> (2/3, 1/3)
    t = losses.sharpen(torch.tensor([math.log(3), 0.0]), torch.zeros(2), 1.0)
    assert t.tolist() == pytest.approx([0.75, 0.25])
    h = losses.cross_entropy(t, torch.tensor([0.1 * math.log(2), 0.0]), 0.1)
    assert h.item() == pytest.approx(0.75 * math.log(3 / 2) + 0.25 * math.log(3))


def test_a_centre_equal_to_the_logits_makes_the_teacher_uniform() -> None:
    logits = torch.tensor([0.4, -1.0, 2.0])
    assert losses.sharpen(logits, logits, 0.04).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("patches", [1, 3, 40])  # fewer and more than the bottleneck has features
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
    # by hand: difference (1, 0), prototypes (2, 5) and (3, 7) -> 2^2 + 3^2
    hand = torch.tensor([[2.0, 5.0], [3.0, 7.0]])
    assert losses.agreement(torch.tensor([[1.5, 1.0]]), torch.tensor([[0.5, 1.0]]), hand).item() == pytest.approx(13)


def test_koleo_by_hand() -> None:
    """On the unit circle at 0, 90 and 180 degrees every nearest neighbour is sqrt(2) away: 3 x -log sqrt(2)."""
    points = torch.tensor([[5.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    assert losses.koleo(points).item() == pytest.approx(-3 * math.log(math.sqrt(2)), abs=1e-6)
    # two equal points: their difference is 1e-8 in each of the two coordinates
    same = losses.koleo(torch.ones(2, 2, dtype=torch.float64)).item()
    assert same == pytest.approx(-2 * math.log(math.sqrt(2) * 1e-8 + 1e-8))


def test_koleo_pushes_neighbours_apart() -> None:
    points = torch.tensor([[1.0, 0.0], [1.0, 0.2], [-1.0, 0.5]], requires_grad=True)
    losses.koleo(points).backward()
    assert points.grad[0, 1] > 0  # the descent direction of the first point is down,
    assert points.grad[1, 1] < 0  # of the second one up
