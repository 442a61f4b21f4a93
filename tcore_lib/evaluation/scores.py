"""From the table of all objects, joints or classes to the benchmark's scores in percent, each with a bootstrap interval.

Clips are the unit of the bootstrap: frames and objects of a clip are not independent. A score is the mean over its items of
part / whole (`sums`). Letters: S resamples, c clips, K items (joints, classes; one for DAVIS: its mean is over all objects).
"""

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tcore_lib.errors import InputError
from tcore_lib.evaluation.benchmarks import BENCHMARKS
from tcore_lib.randomness import generator

Array = NDArray[np.float64]
SAMPLES = 2000
ENDS = [0.025, 0.975]  # quantiles: of a 95 % interval


def summarise(table: pd.DataFrame, benchmark: str, *, seed: int = 0) -> pd.DataFrame:
    """A benchmark's scores per encoder, from a table of `evaluate`: encoder, score, value, low, high (percent), clips.

    DAVIS: means over all objects of all clips. JHMDB: PCK per joint over all clips, then the mean of the joints that were
    found. VIP: one confusion matrix over all clips, then the mean over the classes that occur. `low` and `high` bound the
    central 95 % of 2,000 resamples of the clips, the same resamples for every encoder; NaN with a single clip.
    """
    parts = []
    for encoder, rows in table.groupby("encoder", sort=False) if "encoder" in table else [("", table)]:
        sums, clips = BENCHMARKS[benchmark].sums(rows), rows["clip"].nunique()
        value = _scores(sums, np.ones((1, clips)))[0]
        low, high = pd.DataFrame(_scores(sums, _resamples(clips, seed))).quantile(ENDS).to_numpy()
        columns = {"encoder": encoder, "score": list(sums), "value": value, "low": low, "high": high, "clips": clips}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def paired_difference(a: pd.DataFrame, b: pd.DataFrame, benchmark: str, *, seed: int = 0) -> pd.DataFrame:
    """How much better is encoder `a` than `b`, rows of `evaluate` on the same clips: score, difference, low, high, clips.

    In points, with a 95 % interval (NaN with a single clip). Much of a score's interval is what clips have in common, easy
    or hard for every encoder. With the same resamples for both it cancels: two whose intervals overlap may differ for certain.
    """
    clips = len(a["clip"].unique())
    if list(a["clip"].unique()) != list(b["clip"].unique()):
        raise InputError("The two encoders were not evaluated on the same clips; evaluate both on all of them.")
    one, other = (BENCHMARKS[benchmark].sums(rows) for rows in (a, b))
    whole, times = np.ones((1, clips)), _resamples(clips, seed)
    low, high = pd.DataFrame(_scores(one, times) - _scores(other, times)).quantile(ENDS).to_numpy()
    difference = (_scores(one, whole) - _scores(other, whole))[0]
    return pd.DataFrame({"score": list(one), "difference": difference, "low": low, "high": high, "clips": clips})


def _scores(sums: dict[str, tuple[Array, Array]], times: Array) -> Array:
    """Scores in percent if each clip counted so many times: (S, c) -> (S, scores)."""
    columns = []
    for part, whole in sums.values():  # each (c, K)
        item = _ratio(times @ np.nan_to_num(part), times @ whole)  # (S, K)
        known = ~np.isnan(item)
        columns.append(100 * _ratio(np.where(known, item, 0).sum(-1), known.sum(-1)))
    return np.stack(columns, axis=1)


def _resamples(clips: int, seed: int) -> Array:
    """How often each clip is drawn, (S, c); none with a single clip, which says nothing about others."""
    if clips == 1:
        return np.empty((0, 1))
    draws = generator(seed, "bootstrap").integers(clips, size=(SAMPLES, clips))
    return np.apply_along_axis(np.bincount, 1, draws, minlength=clips).astype(np.float64)


def _ratio(part: Array, whole: Array) -> Array:
    """The quotient, NaN where there is nothing."""
    return np.divide(part, whole, out=np.full(np.shape(part), math.nan), where=whole > 0)
