"""Block masks on the global crops of the current frame (docs/method.md section 3, as in BEiT and iBOT)."""

import numpy as np

from tcore_lib.randomness import generator

MIN_AREA = 4  # patches
ASPECT = (0.3, 1 / 0.3)  # height / width of a block, log-uniform
TRIES = 10  # per block


def fill_with_blocks(counts: np.ndarray, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Mask `counts[i]` patches of crop i by rectangles: counts (n,) int, grid (h, w) patches -> bool (n, h, w).

    All crops advance together, a try at a time: a block's area, uniform between 4 and what is left to mask, its aspect, its
    place. It is taken if it is smaller than the grid and masks at least one and at most that many new patches. A crop ends
    at its count, or after ten failures in a row a little below it, as in BEiT.
    """
    height, width = grid
    masks = np.zeros((len(counts), height, width), dtype=bool)
    left_over = counts.astype(np.int64)
    failures = np.zeros(len(counts), dtype=np.int64)
    rows, columns = np.arange(height), np.arange(width)
    low, high = np.log(ASPECT)
    while (active := np.flatnonzero((left_over > 0) & (failures < TRIES))).size:
        u = rng.random((4, active.size))
        limit = left_over[active]
        area = MIN_AREA + (limit - MIN_AREA) * u[0]
        aspect = np.exp(low + (high - low) * u[1])
        tall = np.rint(np.sqrt(area * aspect)).astype(np.int64)
        wide = np.rint(np.sqrt(area / aspect)).astype(np.int64)
        top = np.floor(u[2] * (height - tall + 1))[:, None]
        left = np.floor(u[3] * (width - wide + 1))[:, None]
        in_rows = (rows >= top) & (rows < top + tall[:, None])
        in_columns = (columns >= left) & (columns < left + wide[:, None])
        fresh = in_rows[:, :, None] & in_columns[:, None, :] & ~masks[active]
        gain = fresh.sum((1, 2))
        taken = (tall < height) & (wide < width) & (gain > 0) & (gain <= limit)
        masks[active[taken]] |= fresh[taken]
        left_over[active[taken]] -= gain[taken]
        failures[active] = np.where(taken, 0, failures[active] + 1)
    return masks


def block_masks(
    seed: int, step: int, num_crops: int, grid: tuple[int, int], share: float, ratio: tuple[float, float]
) -> np.ndarray:
    """Masks bool (num_crops, P) of one step over the whole global batch, crop-major, a function of (seed, step) alone.

    `int(num_crops * share)` of the crops are masked, by shares of their P = h * w patches that are stratified over `ratio`.
    """
    rng = generator(seed, "masks", step)
    masked = int(num_crops * share)
    edges = np.linspace(*ratio, masked + 1)
    target = edges[:-1] + (edges[1:] - edges[:-1]) * rng.random(masked)
    counts = np.zeros(num_crops, dtype=np.int64)
    counts[:masked] = (grid[0] * grid[1] * target).astype(np.int64)
    masks = fill_with_blocks(counts, grid, rng)
    return masks[rng.permutation(num_crops)].reshape(num_crops, grid[0] * grid[1])
