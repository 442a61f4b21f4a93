"""Where two evaluations of the same encoder part: data, features, labels or score, clip by clip.

`tcore evaluate` leaves summary.json, a table of rows and clips.csv with the digests of each clip. results/reference/ holds
these files for encoders that were measured here: who gets another number finds the first clip and the first stage that differ.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tcore_lib.errors import InputError
from tcore_lib.evaluation.benchmarks import BENCHMARKS
from tcore_lib.evaluation.evaluate import NOT_A_RESULT
from tcore_lib.files import read_json, reading

FEATURE = 2e-3  # of normalised features; another machine's float32 differs by 1e-5, bf16 by 1e-2
SCORE = 5e-4  # of the scores of a clip's objects, joints or classes
SAME = "-"


def compare_command(run: Path, reference: Path) -> int:
    """Compare an evaluation with a reference, and say for each clip where the first difference is.

    Args:
        run: output folder of `evaluate`.
        reference: another one, such as results/reference/jhmdb.
    """
    notes, table = compare(run, reference)
    print("\n".join([*notes, table.to_string(index=False)]))
    return int(bool(notes) or not table["differs"].eq(SAME).all())


def compare(run: Path, reference: Path) -> tuple[list[str], pd.DataFrame]:
    """Clip by clip, where the first difference is.

    An encoder of the run is compared with the one of the same weights, else of the same name, else with the only one.

    Returns:
        Sentences about settings and weights that differ, and a table: encoder, clip, differs (`data`, `features`, `labels`,
        `score`, or `-`), what.
    """
    (mine, clips, rows), (other, known_clips, known_rows) = _read(run), _read(reference)
    if mine["benchmark"] != other["benchmark"]:
        raise InputError(f"{run} is about {mine['benchmark']}, {reference} about {other['benchmark']}.")
    notes = [
        f"setting {key}: {mine['settings'].get(key)} here, {value} in the reference"
        for key, value in other["settings"].items()
        if key not in NOT_A_RESULT and mine["settings"].get(key) != value
    ]
    by_weights = {weights: name for name, weights in other["weights"].items()}
    found = []
    for encoder, weights in mine["weights"].items():
        partner = by_weights.get(weights, encoder if len(other["weights"]) > 1 else next(iter(other["weights"])))
        if partner not in other["weights"]:
            continue
        if weights != other["weights"][partner]:
            notes.append(f"{encoder}: other weights than the reference's {partner}")
        for clip in mine["clips"]:
            if clip in other["clips"]:
                one, two = (table.loc[[(encoder, clip)]] for table in (clips, rows))
                known, known_two = (table.loc[[(partner, clip)]] for table in (known_clips, known_rows))
                differs, what = _first_difference(one.iloc[0], known.iloc[0], two, known_two)
                found.append({"encoder": encoder, "clip": clip, "differs": differs, "what": what})
    if not found:
        has = f"{', '.join(other['weights'])} on {', '.join(other['clips'])}"
        raise InputError(f"{run} and {reference} have no encoder and clip in common; the reference has {has}.")
    return notes, pd.DataFrame(found)


def _read(folder: Path) -> tuple[Any, pd.DataFrame, pd.DataFrame]:
    """summary.json, and clips.csv and the table of rows by encoder and clip."""
    remedy = "give an output folder of evaluate"
    summary = read_json(folder / "summary.json", remedy)
    with reading(folder, remedy):
        clips, rows = (
            pd.read_csv(folder / f"{name}.csv", dtype={"clip": str}).set_index(["encoder", "clip"]).sort_index()
            for name in ("clips", BENCHMARKS[summary["benchmark"]].table)
        )
    return summary, clips, rows


def _first_difference(record: Any, known: Any, rows: pd.DataFrame, known_rows: pd.DataFrame) -> tuple[str, str]:
    """The first of data, features, labels, score that differs, and what of it."""
    if record["data"] != known["data"]:
        return "data", "frames or labels on disk are others (names or contents)"
    features, theirs = (np.array(str(one["features"]).split(), float) for one in (record, known))
    if features.shape != theirs.shape:
        return "features", "another number of values: another width or grid"
    worst = float(np.abs(features - theirs).max(initial=0))
    if worst > FEATURE:
        return "features", f"normalised features differ by up to {worst:.4f}: weights, interpolation or precision"
    if len(rows) != len(known_rows):
        return "score", f"{len(rows)} rows here, {len(known_rows)} in the reference"
    numbers = known_rows.select_dtypes("number").columns
    a, b = rows[numbers].to_numpy(float), known_rows[numbers].to_numpy(float)
    off = np.argwhere(~np.isclose(a, b, rtol=0, atol=SCORE, equal_nan=True))
    text = "the scores are the same: a few pixels, from rounding"
    if len(off):
        row, column = off[0]
        item = f"{known_rows.columns[0]} {known_rows.iloc[row, 0]}"
        text = f"{numbers[column]} of {item}: {a[row, column]:.4f} here, {b[row, column]:.4f} in the reference"
    if record["labels"] != known["labels"]:
        return "labels", text
    return ("score", text) if len(off) else (SAME, "")
