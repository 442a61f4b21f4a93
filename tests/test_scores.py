"""The benchmark's scores from the table, by hand, their bootstrap intervals, and differences of two encoders."""

import math

import numpy as np
import pandas as pd
import pytest

from tcore_lib.bodies import JOINTS
from tcore_lib.errors import InputError
from tcore_lib.evaluation.davis import SCORES
from tcore_lib.evaluation.scores import paired_difference, summarise

THRESHOLDS = [f"correct@{threshold}" for threshold in (0.1, 0.2, 0.3, 0.4, 0.5)]


def davis_table(clips: dict[str, list[float]], encoder: str = "a") -> pd.DataFrame:
    """One row per object, J and F and the rest all equal to one value."""
    rows = [
        {"encoder": encoder, "clip": clip, "object": index + 1, **dict.fromkeys(SCORES.values(), value)}
        for clip, values in clips.items()
        for index, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def score(table: pd.DataFrame, benchmark: str, name: str, **how: int) -> pd.Series:
    return summarise(table, benchmark, **how).set_index("score").loc[name]


def test_davis_is_the_mean_over_objects_not_over_clips() -> None:
    found = score(davis_table({"x": [0.9], "y": [0.1, 0.2]}), "davis", "J&F_m")
    assert found["value"] == pytest.approx(100 * (0.9 + 0.1 + 0.2) / 3)
    assert found["clips"] == 2
    # an object of which no frame is scored is left out
    assert score(davis_table({"x": [0.9], "y": [math.nan]}), "davis", "J_m")["value"] == pytest.approx(90)


def joint_rows(clip: str, found: int, correct: int) -> list[dict[str, object]]:
    counts = dict.fromkeys(THRESHOLDS, correct)
    return [{"encoder": "a", "clip": clip, "joint": joint, "found": found, **counts} for joint in JOINTS]


def test_pck_counts_over_clips_then_means_over_joints() -> None:
    table = pd.DataFrame(joint_rows("x", 10, 5) + joint_rows("y", 30, 3))
    table.loc[table["joint"] == "neck", ["found", *THRESHOLDS]] = 0
    # Every joint: (5 + 3) / (10 + 30) = 20 %; the neck was never found and is left out of the mean.
    assert score(table, "jhmdb", "PCK@0.1")["value"] == pytest.approx(20)
    row = score(pd.DataFrame(joint_rows("x", 0, 0) + joint_rows("y", 0, 0)), "jhmdb", "PCK@0.1")
    assert math.isnan(row["value"])
    assert math.isnan(row["low"])


def test_miou_is_one_matrix_over_all_clips() -> None:
    columns = ["clip", "part", "hit", "true", "predicted"]
    rows = [["x", "face", 50, 100, 50], ["x", "hat", 0, 0, 0], ["x", "coat", 10, 10, 10],
            ["y", "face", 0, 100, 100], ["y", "hat", 0, 0, 0], ["y", "coat", 0, 0, 30]]  # fmt: skip
    # face: 50 / (200 + 150 - 50); coat: 10 / (10 + 40 - 10); the hat never occurs.
    table = pd.DataFrame(rows, columns=columns)
    assert score(table, "vip", "mIoU")["value"] == pytest.approx(100 * (50 / 300 + 10 / 40) / 2)


def test_interval_is_that_of_resampled_clips() -> None:
    values = np.linspace(0.2, 0.8, 30)
    table = davis_table({f"clip{i}": [value] for i, value in enumerate(values)})
    row = score(table, "davis", "J&F_m")
    error = 100 * values.std() / math.sqrt(30)  # the bootstrap's standard error of a mean
    expected = [50, pytest.approx(50 - 1.96 * error, abs=0.3), pytest.approx(50 + 1.96 * error, abs=0.3)]
    assert row[["value", "low", "high"]].tolist() == expected
    assert summarise(table, "davis").equals(summarise(table, "davis"))  # the seed decides
    assert score(table, "davis", "J&F_m", seed=1)["low"] != row["low"]
    assert math.isnan(score(davis_table({"x": [0.5]}), "davis", "J&F_m")["low"])  # one clip has no interval


def test_what_clips_have_in_common_cancels_in_a_paired_difference() -> None:
    values = np.linspace(0.2, 0.8, 30)
    worse = davis_table({f"clip{i}": [value] for i, value in enumerate(values)})
    better = davis_table({f"clip{i}": [value + 0.05 + 0.01 * (i % 3)] for i, value in enumerate(values)})
    row = paired_difference(better, worse, "davis").set_index("score").loc["J&F_m"]
    assert row["difference"] == pytest.approx(6.0)  # the mean of 5, 6 and 7 points
    error = 100 * np.array([0.05, 0.06, 0.07]).std() / math.sqrt(30)
    assert row["low"] == pytest.approx(6 - 1.96 * error, abs=0.05)
    assert row["high"] == pytest.approx(6 + 1.96 * error, abs=0.05)
    with pytest.raises(InputError, match="not evaluated on the same clips"):
        paired_difference(better, worse[worse["clip"] != "clip0"], "davis")
