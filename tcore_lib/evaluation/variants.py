"""The same encoder, another number: conventions of other code bases beside the protocol, and where two evaluations part.

The conventions (variants.yaml) explain a difference of one to three points (docs/protocol.md). `tcore evaluate` leaves
summary.json, a table of rows and clips.csv with the digests of each clip; results/reference/ holds these of encoders measured
here, and `compare_runs` finds the first clip and the first stage that differ.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from tcore_lib.errors import InputError
from tcore_lib.evaluation import scores
from tcore_lib.evaluation.benchmarks import BENCHMARKS, benchmark_of, name_of
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.evaluate import NOT_A_RESULT, evaluate
from tcore_lib.files import read_json, reading
from tcore_lib.model.encoders import FeatureEncoder
from tcore_lib.params import Benchmark

FEATURE = 2e-3  # of normalised features; another machine's float32 differs by 1e-5, bf16 by 1e-2
SCORE = 5e-4  # of the scores of a clip's objects, joints or classes
SAME = "-"

# ---------------------------------------------------------------------------------------------- conventions


def table(settings: Benchmark) -> pd.DataFrame:
    """The variants that a benchmark has: variant, what, expected, settings, reports; see variants.yaml."""
    rows = []
    for variant in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")):
        own = {name: value for name, value in variant["settings"].items() if name in type(settings).model_fields}
        if own or not variant["settings"]:
            rows.append({**variant, "settings": own})
    return pd.DataFrame(rows)


def compare(
    encoder: FeatureEncoder,
    clips: Sequence[Clip],
    settings: Benchmark,
    *,
    without: Sequence[str] = (),
    output: Path | None = None,
    **how: Any,
) -> pd.DataFrame:
    """`table`, and what the variants score (but for those in `without`) with one encoder; the rest as in `evaluate`.

    The headline score in percent, difference to the protocol in points, its paired 95 % interval low and high over clips. One
    or two clips show the size of an effect, the whole split its direction.
    """
    name, headline = name_of(settings), benchmark_of(settings).headline
    described = table(settings)
    described = described[~described["variant"].isin(without)]
    measured: dict[str, pd.DataFrame] = {}  # settings -> rows: some variants are the same
    rows = []
    for variant, changes in zip(described["variant"], described["settings"], strict=True):
        changed = type(settings).model_validate({**settings.model_dump(), **changes})
        key, place = changed.model_dump_json(), None if output is None else output / variant
        if key not in measured:
            measured[key] = evaluate({encoder.name: encoder}, clips, changed, output=place, **how)
        found, protocol = measured[key], next(iter(measured.values()))
        score = scores.summarise(found, name).set_index("score").loc[headline, "value"]
        paired = scores.paired_difference(found, protocol, name).set_index("score").loc[headline]
        rows.append({"variant": variant, headline: score, **paired[["difference", "low", "high"]]})
    return pd.DataFrame(rows).merge(described[["variant", "expected", "settings", "reports", "what"]], on="variant")


# ---------------------------------------------------------------------------------------------- two evaluations


def compare_command(run: Path, reference: Path) -> int:
    """Compare an evaluation with a reference, and say for each clip where the first difference is.

    Args:
        run: output folder of `evaluate`.
        reference: another one, such as results/reference/jhmdb.
    """
    notes, table = compare_runs(run, reference)
    print("\n".join([*notes, table.to_string(index=False)]))
    return int(bool(notes) or not table["differs"].eq(SAME).all())


def compare_runs(run: Path, reference: Path) -> tuple[list[str], pd.DataFrame]:
    """Sentences about settings and weights that differ, and clip by clip where the first difference is.

    A table: encoder, clip, differs (`data`, `features`, `labels`, `score` or `-`), what. Encoders of the same weights are
    compared, else of the same name.
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
        if weights not in by_weights and encoder in other["weights"]:
            notes.append(f"{encoder}: other weights than the reference's")
        for clip in mine["clips"]:
            here, there = (encoder, clip), (by_weights.get(weights, encoder), clip)
            if there in known_clips.index:
                tables = (clips.loc[here], known_clips.loc[there], rows.loc[[here]], known_rows.loc[[there]])
                differs, what = _first_difference(*tables)
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
    if (worst := np.abs(features - theirs).max()) > FEATURE:
        return "features", f"normalised features differ by up to {worst:.4f}: weights, interpolation or precision"
    text, item = "", known_rows.columns[0]  # object, joint or part
    for name, b in known_rows.select_dtypes("number").items():
        a = rows[name]
        off = ~np.isclose(a, b, rtol=0, atol=SCORE, equal_nan=True)
        if off.any() and not text:
            where = f"{name} of {item} {known_rows[item][off].iloc[0]}"
            text = f"{where}: {a[off].iloc[0]:.4f} here, {b[off].iloc[0]:.4f} in the reference"
    if record["labels"] != known["labels"]:
        return "labels", text or "the scores are the same: a few pixels, from rounding"
    return ("score", text) if text else (SAME, "")
