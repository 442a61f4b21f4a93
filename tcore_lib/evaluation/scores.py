"""From the table of all objects, joints or classes to the benchmark's scores, each with a bootstrap interval.

Everything here is in percent. Clips are the unit of the bootstrap: frames and objects of a clip are not independent.
Letters: S bootstrap samples, c clips, K joints or classes.
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tcore_lib.evaluation import metrics
from tcore_lib.randomness import generator

Array = NDArray[np.float64]
SAMPLES = 2000
LEVEL = 0.95
HEADLINE = {"davis": "J&F_m", "jhmdb": "PCK@0.1", "vip": "mIoU"}
DAVIS_SCORES = {
    "J&F_m": "JF_mean", "J_m": "J_mean", "J_r": "J_recall", "J_d": "J_decay",
    "F_m": "F_mean", "F_r": "F_recall", "F_d": "F_decay",
}  # fmt: skip


def summarise(table: pd.DataFrame, kind: str, *, seed: int = 0) -> pd.DataFrame:
    """The benchmark's scores per encoder.

    Args:
        table: of `evaluate` or `score_predictions`; without a column `encoder` there is one row per score.
        kind: davis, jhmdb or vip.
        seed: of the bootstrap.

    Returns:
        Columns encoder, score, value, low, high (percent) and clips. DAVIS: means over all objects of all clips.
        JHMDB: PCK per joint over all clips, then the mean of the joints that were found. VIP: one confusion matrix over
        all clips, then the mean over the classes that occur. `low` and `high` bound the central 95 % of 2,000 resamples
        of the clips, the same resamples for every encoder; NaN with a single clip.
    """
    parts = []
    for encoder, rows in table.groupby("encoder", sort=False) if "encoder" in table else [("", table)]:
        names, score = _scorer(rows, kind)
        clips = rows["clip"].nunique()
        value = score(np.ones((1, clips)))[0]
        low, high = _interval(score, clips, seed)
        parts.append(
            pd.DataFrame({"encoder": encoder, "score": names, "value": value, "low": low, "high": high, "clips": clips})
        )
    return pd.concat(parts, ignore_index=True)


def _interval(score: Callable[[Array], Array], clips: int, seed: int) -> Array:
    """Ends of the bootstrap interval of every score, (2, scores); NaN with one clip or a score that is never known."""
    if clips == 1:
        return np.full((2, score(np.ones((1, 1))).shape[1]), math.nan)
    draws = generator(seed, "bootstrap").integers(clips, size=(SAMPLES, clips))
    times = np.apply_along_axis(np.bincount, 1, draws, minlength=clips).astype(np.float64)  # (S, c)
    columns = [column[~np.isnan(column)] for column in score(times).T]
    ends = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
    return np.array([np.percentile(column, ends) if len(column) else [math.nan] * 2 for column in columns]).T


def _scorer(rows: pd.DataFrame, kind: str) -> tuple[list[str], Callable[[Array], Array]]:
    """Names of the scores, and the function from how often each clip counts, (S, c), to scores in percent."""
    if kind == "davis":
        values = [
            _per_clip(rows.assign(known=rows[column].notna()), [column, "known"]) for column in DAVIS_SCORES.values()
        ]

        def davis(times: Array) -> Array:
            return 100 * np.stack([_ratio(times @ part[:, 0], times @ part[:, 1]) for part in values], axis=1)

        return list(DAVIS_SCORES), davis
    if kind == "jhmdb":
        found = _wide(rows, "joint", "found")
        correct = [_wide(rows, "joint", f"correct@{threshold}") for threshold in metrics.PCK_THRESHOLDS]

        def jhmdb(times: Array) -> Array:
            return 100 * np.stack([_nanmean(_ratio(times @ part, times @ found)) for part in correct], axis=1)

        return [f"PCK@{threshold}" for threshold in metrics.PCK_THRESHOLDS], jhmdb
    hit, true, predicted = (_wide(rows, "part", column) for column in ("hit", "true", "predicted"))

    def vip(times: Array) -> Array:
        overlap = times @ hit
        return 100 * _nanmean(_ratio(overlap, times @ true + times @ predicted - overlap))[:, None]

    return ["mIoU"], vip


def _per_clip(rows: pd.DataFrame, columns: list[str]) -> Array:
    """Sums of columns over each clip's rows, (c, columns)."""
    return rows.groupby("clip", sort=False)[columns].sum().to_numpy(np.float64)


def _wide(rows: pd.DataFrame, item: str, column: str) -> Array:
    """A column as (c, K), one row per clip."""
    order = rows["clip"].unique()
    return rows.pivot(index="clip", columns=item, values=column).loc[order].to_numpy(np.float64)


def _ratio(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.full(np.shape(part), math.nan), where=whole > 0)


def _nanmean(values: Array) -> Array:
    """Mean over the last axis of what is not NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1))
