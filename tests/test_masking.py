"""Block masks: counts, strata, shapes; the vectorised generator against a plain loop."""

import math

import numpy as np
import pytest

from tcore_lib.data.masking import block_masks, fill_with_blocks

GRID = (14, 14)
P = 196


def plain_mask(count: int, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """One mask, block after block and try after try, as docs/method.md section 3 words it."""
    mask = np.zeros(grid, dtype=bool)
    while (left := count - int(mask.sum())) > 0:
        for _ in range(10):
            area = rng.uniform(min(4, left), max(4, left))
            aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= grid[0] or width >= grid[1]:
                continue
            top, side = rng.integers(grid[0] - height, endpoint=True), rng.integers(grid[1] - width, endpoint=True)
            block = mask[top : top + height, side : side + width]
            if 0 < block.size - block.sum() <= left:
                block[:] = True
                break
        else:
            break
    return mask


def test_half_of_the_crops_are_masked_in_strata() -> None:
    masks = block_masks(0, 3, 512, GRID, 0.5, (0.1, 0.5))
    assert (masks.shape, masks.dtype) == ((512, P), bool)
    counts = np.sort(masks.sum(1)[masks.any(1)])
    assert len(counts) == 256  # int(512 * 0.5)
    edges = np.linspace(0.1, 0.5, 257)
    assert (counts <= np.floor(P * edges[1:])).all()  # one crop per stratum, never above its count
    short = np.floor(P * edges[:-1]) - counts
    assert (short <= 0).mean() > 0.9  # rarely below: no block fitted any more
    assert short.max() <= 8


@pytest.mark.parametrize(
    ("num_crops", "share", "masked"), [(10, 0.5, 5), (6, 0.9, 5), (8, 0.0, 0), (8, 1.0, 8), (0, 0.5, 0)]
)
def test_share_of_masked_crops(num_crops: int, share: float, masked: int) -> None:
    assert block_masks(0, 0, num_crops, GRID, share, (0.1, 0.5)).any(1).sum() == masked


@pytest.mark.parametrize("count", [3, 98])
def test_statistics_are_those_of_the_plain_loop(count: int) -> None:
    n = 1000
    ours = fill_with_blocks(np.full(n, count), GRID, np.random.default_rng(1))
    rng = np.random.default_rng(2)
    plain = np.stack([plain_mask(count, GRID, rng) for _ in range(n)])
    for statistic in (
        lambda m: m.sum((1, 2)).astype(float),  # masked patches
        lambda m: (m[:, 1:] != m[:, :-1]).sum((1, 2)).astype(float),  # horizontal edges: how compact and how tall
        lambda m: (m[:, :, 1:] != m[:, :, :-1]).sum((1, 2)).astype(float),
        lambda m: m[:, 5:9, 5:9].sum((1, 2)).astype(float),  # centre
    ):
        a, b = statistic(ours), statistic(plain)
        error = math.sqrt((a.var() + b.var()) / n)
        assert abs(a.mean() - b.mean()) < 4 * error + 1e-9


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (6, 20)])
def test_any_grid_ends(grid: tuple[int, int]) -> None:
    masks = block_masks(0, 0, 20, grid, 1.0, (0.1, 1.0))
    assert masks.shape == (20, grid[0] * grid[1])
