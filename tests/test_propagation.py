"""Propagation equals the protocol done by brute force, and a case small enough for a reader's head."""

import math
from typing import Any

import pytest
import torch
from oracle import brute_force

from tcore_lib.evaluation.propagation import pack, propagate, unpack


def random_clip(seed: int, frames: int, h: int, w: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that resemble a video (frames are alike, patches differ) and labels that are soft."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randn(1, h, w, 16, generator=generator)
    features = scene + 0.7 * torch.randn(frames, h, w, 16, generator=generator)
    return features, torch.rand(3, h, w, generator=generator)


CASES: dict[str, tuple[tuple[int, int], int, dict[str, Any]]] = {  # grid, frames, settings
    "tall": ((9, 5), 12, {"radius": 3.0, "context": 4}),
    "wide": ((5, 9), 12, {"radius": 3.0, "context": 4}),
    "one row": ((1, 7), 6, {"radius": 2.0, "context": 3}),
    "radius beyond the grid, not an integer": ((4, 6), 8, {"radius": 50.5, "context": 5}),
    "more than one strip": ((20, 33), 4, {"radius": 7.0, "context": 2}),
    "k above all patches there are": ((2, 3), 5, {"radius": 2.0, "context": 2, "top_k": 100}),
    "k = 1, context of one frame": ((5, 4), 8, {"radius": 3.0, "context": 1, "top_k": 1}),
    "one frame": ((6, 5), 1, {}),
    "variant: inclusive radius": ((6, 9), 8, {"radius": 2.0, "context": 3, "radius_inclusive": True}),
    "variant: first frame restricted": ((6, 9), 8, {"radius": 2.0, "context": 3, "restrict_first": True}),
    "variant: first frame not repeated": ((6, 9), 8, {"radius": 2.0, "context": 5, "repeat_first": False}),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_brute_force(name: str) -> None:
    (h, w), frames, settings = CASES[name]
    for seed in range(1 if h * w > 100 else 3):
        features, labels = random_clip(seed, frames, h, w)
        measured = propagate(features, labels, **settings)
        assert measured.shape == (frames, 3, h, w)
        expected = brute_force(features.double(), labels, **settings)
        torch.testing.assert_close(measured.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("grid", [(9, 14), (14, 9), (1, 12)])
@pytest.mark.parametrize("settings", [{"radius": 4.0, "context": 3}, {"radius": 2.5, "context": 12}])
def test_many_equal_similarities_equal_brute_force(grid: tuple[int, int], settings: dict[str, Any]) -> None:
    # Features of a few values only: ties between positions, frames and with frame 0, at every rank.
    generator = torch.Generator().manual_seed(5)
    features = torch.nn.functional.one_hot(torch.randint(0, 3, (9, *grid), generator=generator), 3).float()
    labels = torch.rand(3, *grid, generator=generator)
    measured = propagate(features, labels, **settings)
    torch.testing.assert_close(measured, brute_force(features, labels, **settings), rtol=0, atol=2e-6)


def test_two_patches_by_hand() -> None:
    # Grid 1 x 2, two frames, temperature 1. Features of length 1: frame 0 has (1, 0) and (0, 1).
    features = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]], [[[1.0, 0.0], [0.6, 0.8]]]])
    labels = torch.tensor([[[1.0, 0.0]]])
    # Context of frame 1, one preceding frame: frame 0 as long memory and frame 0 again as its predecessor. k = 3:
    # Left patch: similarities 1, 1 (left, twice, label 1), 0 (right, label 0): 2 e / (2 e + 1).
    # Right patch: 0.8, 0.8 (right, twice, label 0), 0.6 (left, label 1): e^0.6 / (2 e^0.8 + e^0.6).
    measured = propagate(features, labels, top_k=3, temperature=1.0, radius=5.0, context=1)
    left = 2 * math.e / (2 * math.e + 1)
    right = math.exp(0.6) / (2 * math.exp(0.8) + math.exp(0.6))
    torch.testing.assert_close(measured[1], torch.tensor([[[left, right]]]))


def test_packed_entries_sort_by_value_then_lowest_index() -> None:
    value = torch.tensor([0.5, -0.25, 0.5, -math.inf, 0.0, -0.0, 1e-30])
    packed = pack(value, torch.arange(7))
    assert packed.argsort(descending=True).tolist() == [0, 2, 6, 4, 5, 1, 3]
    back, index = unpack(packed)
    assert back.equal(value)
    assert index.tolist() == list(range(7))
