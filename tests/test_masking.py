"""Block masks: counts, strata, shapes. Notebook 01 holds the generator against a plain loop, test_golden_data its draws."""

import numpy as np
import pytest

from tcore_lib.data.masking import block_masks

GRID = (14, 14)
P = 196


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


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (6, 20)])
def test_any_grid_ends(grid: tuple[int, int]) -> None:
    masks = block_masks(0, 0, 20, grid, 1.0, (0.1, 1.0))
    assert masks.shape == (20, grid[0] * grid[1])
