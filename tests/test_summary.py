"""The benchmark's scores from the table, by hand, and their bootstrap intervals."""

import math

import numpy as np
import pandas as pd
import pytest

from tcore_lib.bodies import JOINTS
from tcore_lib.evaluation.scores import summarise


def davis_table(clips: dict[str, list[float]], encoder: str = "a") -> pd.DataFrame:
    """One row per object, J and F and the rest all equal to one value."""
    names = ("J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay", "JF_mean")
    rows = [
        {"encoder": encoder, "clip": clip, "object": index + 1, **dict.fromkeys(names, value)}
        for clip, values in clips.items()
        for index, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def score(summary: pd.DataFrame, name: str) -> pd.Series:
    return summary.set_index("score").loc[name]


def test_davis_is_the_mean_over_objects_not_over_clips() -> None:
    summary = summarise(davis_table({"x": [0.9], "y": [0.1, 0.2]}), "davis")
    assert score(summary, "J&F_m")["value"] == pytest.approx(100 * (0.9 + 0.1 + 0.2) / 3)
    assert score(summary, "J&F_m")["clips"] == 2


def test_davis_leaves_an_object_without_frames_out() -> None:
    summary = summarise(davis_table({"x": [0.9], "y": [math.nan]}), "davis")
    assert score(summary, "J_m")["value"] == pytest.approx(90)


def joint_rows(clip: str, found: int, correct: int, joints: tuple[str, ...] = JOINTS) -> list[dict[str, object]]:
    counts = {f"correct@{threshold}": correct for threshold in (0.1, 0.2, 0.3, 0.4, 0.5)}
    return [{"encoder": "a", "clip": clip, "joint": joint, "found": found, **counts} for joint in joints]


def test_pck_counts_over_clips_then_means_over_joints() -> None:
    table = pd.DataFrame(joint_rows("x", 10, 5) + joint_rows("y", 30, 3))
    table.loc[table["joint"] == "neck", ["found", *(f"correct@{t}" for t in (0.1, 0.2, 0.3, 0.4, 0.5))]] = 0
    # Every joint: (5 + 3) / (10 + 30) = 20 %; the neck was never found and is left out of the mean.
    assert score(summarise(table, "jhmdb"), "PCK@0.1")["value"] == pytest.approx(20)


def test_miou_is_one_matrix_over_all_clips() -> None:
    def row(clip: str, part: str, hit: int, true: int, predicted: int) -> dict[str, object]:
        return {"encoder": "a", "clip": clip, "part": part, "hit": hit, "true": true, "predicted": predicted}

    table = pd.DataFrame(
        [
            *(row("x", "face", 50, 100, 50), row("x", "hat", 0, 0, 0), row("x", "coat", 10, 10, 10)),
            *(row("y", "face", 0, 100, 100), row("y", "hat", 0, 0, 0), row("y", "coat", 0, 0, 30)),
        ]
    )
    # face: 50 / (200 + 150 - 50); coat: 10 / (10 + 40 - 10); the hat never occurs.
    assert score(summarise(table, "vip"), "mIoU")["value"] == pytest.approx(100 * (50 / 300 + 10 / 40) / 2)


def test_interval_is_that_of_resampled_clips() -> None:
    values = np.linspace(0.2, 0.8, 30)
    table = davis_table({f"clip{i}": [value] for i, value in enumerate(values)})
    row = score(summarise(table, "davis"), "J&F_m")
    error = 100 * values.std() / math.sqrt(30)  # the bootstrap's standard error of a mean
    assert row["value"] == pytest.approx(50)
    assert row["low"] == pytest.approx(50 - 1.96 * error, abs=0.3)
    assert row["high"] == pytest.approx(50 + 1.96 * error, abs=0.3)
    assert summarise(table, "davis").equals(summarise(table, "davis"))  # the seed decides
    assert score(summarise(table, "davis", seed=1), "J&F_m")["low"] != row["low"]


def test_encoders_are_resampled_alike() -> None:
    table = pd.concat([davis_table({"x": [0.5], "y": [0.7]}, name) for name in ("a", "b")])
    one, other = (
        part.drop(columns="encoder").reset_index(drop=True) for _, part in summarise(table, "davis").groupby("encoder")
    )
    pd.testing.assert_frame_equal(one, other)


def test_one_clip_has_no_interval() -> None:
    row = score(summarise(davis_table({"x": [0.5]}), "davis"), "J&F_m")
    assert row["value"] == 50
    assert math.isnan(row["low"])


def test_a_score_without_any_value_is_nan() -> None:
    table = pd.DataFrame(joint_rows("x", 0, 0) + joint_rows("y", 0, 0))
    row = score(summarise(table, "jhmdb"), "PCK@0.1")
    assert math.isnan(row["value"])
    assert math.isnan(row["low"])
