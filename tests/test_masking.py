"""Block masks: counts, strata, shapes; the vectorised generator against a plain loop."""

import math

import numpy as np
import pytest

from tcore_lib.data.masking import block_masks, fill_with_blocks

GRID = (14, 14)
P = 196


def plain_mask(count: int, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """One mask, block after block and try after try, as METHOD section 3 words it."""
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
    assert masks.shape == (512, P)
    assert masks.dtype == bool
    counts = np.sort(masks.sum(1)[masks.any(1)])
    assert len(counts) == 256  # int(512 * 0.5)
    edges = np.linspace(0.1, 0.5, 257)
    assert (counts <= np.floor(P * edges[1:])).all()  # one crop per stratum, never above its count
    short = np.floor(P * edges[:-1]) - counts
    assert (short <= 0).mean() > 0.9  # rarely below: no block fitted any more
    assert short.max() <= 8


def test_crops_draw_their_counts_independently_inside_their_strata() -> None:
    """Two strata over 300 steps: 0.1..0.3 and 0.3..0.5 of 196, each filled evenly, not in step with each other."""
    counts = np.sort([block_masks(0, step, 4, GRID, 0.5, (0.1, 0.5)).sum(1) for step in range(300)])[:, 2:]
    assert abs(np.corrcoef(counts.T)[0, 1]) < 0.2  # 3.5 / sqrt(300)
    middle = counts.mean(0)
    assert np.abs(middle - [39.2, 78.4]).max() < 3  # 0.2 and 0.4 of 196; a uniform draw's error is 0.65


@pytest.mark.parametrize(
    ("num_crops", "share", "masked"), [(10, 0.5, 5), (6, 0.9, 5), (8, 0.0, 0), (8, 1.0, 8), (0, 0.5, 0)]
)
def test_share_of_masked_crops(num_crops: int, share: float, masked: int) -> None:
    masks = block_masks(0, 0, num_crops, GRID, share, (0.1, 0.5))
    assert masks.shape == (num_crops, P)
    assert masks.any(1).sum() == masked


def test_masked_and_unmasked_crops_are_shuffled_over_the_batch() -> None:
    """Where the masked crops stand, and where the heavily masked ones do, is uniform over steps."""
    masks = np.stack([block_masks(0, step, 16, GRID, 0.5, (0.1, 0.5)) for step in range(400)])
    masked = masks.any(-1).mean(0)
    assert np.abs(masked - 0.5).max() < 0.11  # 4.4 standard deviations of 400 draws
    assert np.abs(masks.mean((0, 2)) - 0.15).max() < 0.05  # half of the crops, 0.3 of the patches


def test_a_function_of_seed_and_step() -> None:
    first = block_masks(7, 11, 64, GRID, 0.5, (0.1, 0.5))
    assert np.array_equal(first, block_masks(7, 11, 64, GRID, 0.5, (0.1, 0.5)))
    assert not np.array_equal(first, block_masks(7, 12, 64, GRID, 0.5, (0.1, 0.5)))
    assert not np.array_equal(first, block_masks(8, 11, 64, GRID, 0.5, (0.1, 0.5)))


def test_a_single_block_has_area_and_aspect_in_range() -> None:
    """Masks of 60 patches that happen to be one rectangle."""
    masks = fill_with_blocks(np.full(4000, 60), GRID, np.random.default_rng(0))
    shapes = []
    for mask in masks:
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        if mask.sum() == rows * columns:
            shapes.append((rows, columns))
    heights, widths = np.array(shapes).T
    assert len(shapes) > 50
    assert max(heights.max(), widths.max()) <= 13  # smaller than the grid
    assert (heights < widths).any()
    assert (heights > widths).any()
    # sides are rounded: the aspect of (h +- 0.5, w -+ 0.5) must be possible
    assert ((heights - 0.5) / (widths + 0.5) < 1 / 0.3).all()
    assert ((heights + 0.5) / (widths - 0.5) > 0.3).all()


@pytest.mark.parametrize("count", [3, 20, 60, 98])
def test_statistics_are_those_of_the_plain_loop(count: int) -> None:
    n = 1500
    ours = fill_with_blocks(np.full(n, count), GRID, np.random.default_rng(1))
    rng = np.random.default_rng(2)
    plain = np.stack([plain_mask(count, GRID, rng) for _ in range(n)])
    for statistic in (
        lambda m: m.sum((1, 2)).astype(float),  # masked patches
        lambda m: (m[:, 1:] != m[:, :-1]).sum((1, 2)).astype(float),  # horizontal edges: how compact and how tall
        lambda m: (m[:, :, 1:] != m[:, :, :-1]).sum((1, 2)).astype(float),
        lambda m: m[:, 5:9, 5:9].sum((1, 2)).astype(float),  # centre
        lambda m: m[:, 0].sum(1).astype(float),  # border
    ):
        a, b = statistic(ours), statistic(plain)
        error = math.sqrt((a.var() + b.var()) / n)
        assert abs(a.mean() - b.mean()) < 4 * error + 1e-9


def test_counts_are_reached_but_never_exceeded() -> None:
    counts = np.arange(0, 99)
    masks = fill_with_blocks(counts.repeat(10), GRID, np.random.default_rng(0))
    reached = masks.sum((1, 2)).reshape(99, 10)
    assert (reached <= counts[:, None]).all()
    assert (counts[:, None] - reached).mean() < 1.0
    assert (reached == counts[:, None]).mean() > 0.6


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (4, 4), (6, 20)])
def test_any_grid_ends(grid: tuple[int, int]) -> None:
    masks = block_masks(0, 0, 20, grid, 1.0, (0.1, 1.0))
    assert masks.shape == (20, grid[0] * grid[1])
