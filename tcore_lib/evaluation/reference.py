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
        reference: another one, such as results/reference/davis.

    Returns:
        0 where everything is the same, 1 where something differs.
    """
    notes, table = compare(run, reference)
    print("\n".join([*notes, table.to_string(index=False)]))
    return int(bool(notes) or bool((table["differs"] != SAME).any()))


def compare(run: Path, reference: Path) -> tuple[list[str], pd.DataFrame]:
    """Clip by clip, where the first difference is.

    An encoder of the run is compared with the one of the same weights, else of the same name; a single one with a single one.

    Returns:
        Sentences about settings and weights that differ, and a table: encoder, clip, differs (`data`, `features`, `labels`,
        `score`, or `-`), what, and the clip's headline score in both.

    Raises:
        InputError: a folder holds no evaluation, or they have no benchmark, encoder or clip in common.
    """
    mine, other = (
        read_json(folder / "summary.json", "give an output folder of evaluate") for folder in (run, reference)
    )
    name = other["benchmark"]
    if mine["benchmark"] != name:
        raise InputError(
            f"{run} is an evaluation on {mine['benchmark']}, {reference} on {name}; compare one benchmark."
        )
    notes = [
        f"setting {key}: {mine['settings'].get(key)} here, {value} in the reference"
        for key, value in other["settings"].items()
        if key not in NOT_A_RESULT and mine["settings"].get(key) != value
    ]
    by_weights = {weights: name for name, weights in other["weights"].items()}
    pairs = {name: by_weights.get(weights, name) for name, weights in mine["weights"].items()}
    if len(pairs) == len(other["weights"]) == 1:
        pairs = dict(zip(pairs, other["weights"], strict=True))
    pairs = {name: partner for name, partner in pairs.items() if partner in other["weights"]}
    if not pairs:
        known = ", ".join(other["weights"])
        raise InputError(f"{run} and {reference} have no encoder in common; the reference has {known}.")
    for encoder, partner in pairs.items():
        if mine["weights"][encoder] != other["weights"][partner]:
            notes.append(f"{encoder}: other weights than the reference's {partner}")
    (clips, rows), (known_clips, known_rows) = (_tables(folder, name) for folder in (run, reference))
    headline = BENCHMARKS[name].HEADLINE
    found = []
    for encoder, partner in pairs.items():
        theirs = known_clips.loc[partner]
        for clip, record in clips.loc[encoder].iterrows():
            if clip not in theirs.index:
                continue
            one, two = (table.loc[[(key, clip)]] for table, key in ((rows, encoder), (known_rows, partner)))
            differs, what = _first_difference(record, theirs.loc[clip], one, two)
            values = {headline: record[headline], "reference": theirs.loc[clip][headline]}
            found.append({"encoder": encoder, "clip": clip, "differs": differs, "what": what, **values})
    if not found:
        raise InputError(f"{run} and {reference} have no clip in common; the reference has {', '.join(theirs.index)}.")
    return notes, pd.DataFrame(found)


def _tables(folder: Path, benchmark: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """clips.csv and the table of rows, both by encoder and clip."""
    read = []
    for name in ("clips", BENCHMARKS[benchmark].TABLE):
        path = folder / f"{name}.csv"
        with reading(path, "give an output folder of evaluate"):
            read.append(pd.read_csv(path, dtype={"clip": str}).set_index(["encoder", "clip"]).sort_index())
    return read[0], read[1]


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
    numbers = known_rows.select_dtypes("number").columns
    if len(rows) != len(known_rows):
        return "score", f"{len(rows)} rows here, {len(known_rows)} in the reference"
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
