"""One long table of scores. README, notebook 07, the command line and studies show filters and pivots of it.

Every row is one score of one encoder on one benchmark (`COLUMNS`):

    run         the run that measured it; "paper" for the authors' figures
    encoder     what the run's parameter file calls it; the paper's rows: the architecture
    source      what the encoder is: run, random, pixels, a file or a name
    training    what it was trained on
    benchmark   davis, vip or jhmdb
    metric      J&F_m, mIoU or PCK@0.1
    value       percent; NaN where it could not be measured
    low, high   ends of the 95 % bootstrap interval over clips; NaN where unknown
    clips       how many clips
    real        True = real clips, False = rendered ones
    released    the published checkpoint whose row this is, or which it reproduces; else ""
    paper       the authors' figure of that checkpoint; NaN where it reproduces none
    protocol    "protocol", or the settings that differ from it
    data        what it was measured on, in words
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from tcore_lib import runs
from tcore_lib.files import reading
from tcore_lib.params import Params, project_root

# Benchmark -> (stage that measures it, heading of its column), in the paper's order.
BENCHMARKS = {
    "davis": ("03_davis_evaluation", "DAVIS J&F_m"),
    "vip": ("05_vip_evaluation", "VIP mIoU"),
    "jhmdb": ("04_jhmdb_evaluation", "JHMDB PCK@0.1"),
}
METRICS = {name: heading.split()[1] for name, (_, heading) in BENCHMARKS.items()}
HEADINGS = [heading for _, heading in BENCHMARKS.values()]
COLUMNS = ["run", "encoder", "source", "training", "benchmark", "metric", "value", "low", "high", "clips", "real",
           "released", "paper", "protocol", "data"]  # fmt: skip
NOT_RUN = "not run"
# Settings of a benchmark that say where and how it is computed, not what is measured.
NO_PROTOCOL = {"enabled", "root", "clips", "precision", "save_predictions"}

# A published row counts as reproduced from the released weights when the difference is at most this many points. The
# evaluation has no randomness: 0.05 is the rounding of the published figure, the rest leaves room for ties in the top-k and
# for other kernels. VIP's is wider because the released scorer takes whatever prediction files exist, and which did is not known.
ACCEPTED = {"davis": 0.1, "vip": 0.3, "jhmdb": 0.1}
# ... and this many when the encoder was trained anew: another seed, other hardware, and data of which videos have vanished. No
# spread over seeds is published; one point is an assumption, from how far the paper's own rows lie apart.
ACCEPTED_RETRAINED = 1.0


# --- where rows come from ---------------------------------------------------------------------------------------------


def paper(path: Path | None = None) -> pd.DataFrame:
    """The authors' figures as rows, from a CSV like `results/paper.csv`, which is the default."""
    path = path or project_root() / "results" / "paper.csv"
    with reading(path, "restore it from git"):
        rows = [
            {"run": "paper", "encoder": row["encoder"], "training": f"{row['data']}, {row['epochs']} epochs",
             "benchmark": name, "metric": METRICS[name], "value": float(row[name]), "real": True,
             "released": row["released_file"], "protocol": "protocol", "data": "the full benchmark"}
            for row in pd.read_csv(path).to_dict("records")
            for name in BENCHMARKS
        ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def is_floor(source: str) -> bool:
    """Whether an encoder has learnt nothing: a random initialisation, or raw pixels."""
    return source.partition(":")[0] in ("random", "pixels")


def of_runs(folders: Iterable[str | Path]) -> pd.DataFrame:
    """What runs measured, as rows; none for what was not run. Folders: `results/<run>` or `results/published/<run>`."""
    published = paper().set_index(["released", "benchmark"])["value"].to_dict()
    rows = []
    for folder in map(Path, folders):
        records = runs.read_results(folder)
        own = records.get("01_pretraining", {}).get("result", {}).get("description", "")
        for name, (stage, _) in BENCHMARKS.items():
            if stage not in records:
                continue
            result, settings = records[stage]["result"], records[stage]["settings"]
            section, checkpoint = settings[name], settings["checkpoint"]
            real = section["root"] != "synthetic"
            expected = getattr(Params(), name).model_dump(mode="json", exclude=NO_PROTOCOL)
            other = [f"{key} {section[key]}" for key in expected if section.get(key, expected[key]) != expected[key]]
            for encoder, score in result["scores"].items():
                source = checkpoint["encoders"][encoder]
                released = checkpoint["paper_rows"].get(encoder, "") if real else ""  # rendered clips are another test
                rows.append({
                    "run": folder.name, "encoder": encoder, "source": source,
                    "training": own if source == "run" else "none" if is_floor(source) else source,
                    "benchmark": name, "metric": METRICS[name], **score, "real": real, "released": released,
                    "paper": published.get((released, name)), "protocol": ", ".join(other) or "protocol",
                    "data": result["data"],
                })  # fmt: skip
    found = pd.DataFrame(rows, columns=COLUMNS)
    return found.astype({"value": float, "low": float, "high": float, "paper": float, "real": bool})


def differences(folder: str | Path) -> pd.DataFrame:
    """How far each encoder of a run is ahead of what it has to beat: the random initialisation, and raw pixels.

    Returns:
        Columns run, benchmark, better, worse, difference (points), low and high (95 % bootstrap interval over clips, the same
        clips for both encoders), clips, real. No row where a run has nothing to compare.
    """
    from tcore_lib.evaluation import benchmarks, scores as summary  # late: listing runs needs no evaluation

    rows = []
    for name, scores in of_runs([folder]).groupby("benchmark", sort=False):
        stage, table = BENCHMARKS[name][0], benchmarks.BENCHMARKS[name].table
        floor = scores["source"].map(is_floor)
        items = {encoder: own for encoder, own in runs.read_table(folder, stage, table).groupby("encoder")}
        seed = runs.read_results(folder)[stage]["settings"]["run"]["seed"]
        for worse in scores[floor]["encoder"]:
            for better in scores[~floor]["encoder"]:
                paired = summary.paired_difference(items[better], items[worse], name, seed=seed)
                measured = paired.set_index("score").loc[METRICS[name]].to_dict()
                row = {"run": Path(folder).name, "benchmark": name, "better": better, "worse": worse, **measured}
                rows.append(row | {"real": scores["real"].iloc[0]})
    columns = ["run", "benchmark", "better", "worse", "difference", "low", "high", "clips", "real"]
    return pd.DataFrame(rows, columns=columns)


def provenance(folder: str | Path) -> pd.DataFrame:
    """Where a run's figures come from: one row per finished stage, with minutes and peak memory in GB."""
    rows = []
    for stage, record in runs.read_results(folder).items():
        origin = record["provenance"]
        facts = {"minutes": origin["seconds"] / 60, "peak memory, GB": origin["peak_memory_gb"]}
        where = {"stage": stage, "commit": runs.commit(origin), "machine": runs.machine(origin)}
        rows.append(where | facts | {"finished": origin["finished"]})
    return pd.DataFrame(rows, columns=["stage", "commit", "machine", "minutes", "peak memory, GB", "finished"])


# --- how scores are shown ---------------------------------------------------------------------------------------------


def text(value: Any, low: Any = None, high: Any = None, *, expected: Any = None, sign: bool = False) -> str:
    """`33.2`, `33.2 [21.5, 47.0]`, `64.9 (+0.2)` (beside an `expected` one), `+0.4 [-1.0, +1.8]` (`sign`), or `not run`."""
    if pd.isna(value):
        return NOT_RUN
    form = "+.1f" if sign else ".1f"
    shown = f"{value:{form}}"
    if not pd.isna(expected):
        shown += f" ({value - expected:+.1f})"
    if not (pd.isna(low) or pd.isna(high)):
        shown += f" [{low:{form}}, {high:{form}}]"
    return shown


def markdown(shown: pd.DataFrame, form: str = "pipe") -> str:
    """A table of text for README and other pages; `form="simple"` for a terminal."""
    return shown.to_markdown(index=False, tablefmt=form, disable_numparse=True)


def beside_paper(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of `of_runs` as `figures.score_table` takes them: benchmark as a heading, measured, paper, difference in points."""
    shown = scores.rename(columns={"value": "measured"}).assign(difference=scores["value"] - scores["paper"])
    shown["benchmark"] = shown["benchmark"].map({name: heading for name, (_, heading) in BENCHMARKS.items()})
    return shown[["encoder", "benchmark", "measured", "low", "high", "clips", "paper", "difference"]]


def show(scores: pd.DataFrame, *, intervals: bool = True) -> pd.DataFrame:
    """The paper's table, and below it what runs measured (rows of `of_runs`), as text.

    Returns:
        Columns who, encoder, training, one per benchmark, run. `paper`: the authors' figures; `reproduced`: the same rows as
        measured on real clips, in round brackets the difference to the paper, "not run" where there is none; `ours`: every
        other encoder, not comparable with the paper where clips are rendered or only a part of the benchmark.
    """
    published = dict(list(paper().groupby("released", sort=False)))
    own = scores[scores["released"] == ""].groupby(["run", "encoder"], sort=False)
    groups = [("paper", rows, rows) for rows in published.values()]
    groups += [("reproduced", rows, scores[scores["released"] == name]) for name, rows in published.items()]
    groups += [("ours", rows, rows) for _, rows in own]
    lines = []
    for who, named, found in groups:
        line = {"who": who, **named.iloc[0][["encoder", "training"]], **dict.fromkeys(HEADINGS, NOT_RUN), "run": ""}
        for row in found.to_dict("records"):
            interval = (row["low"], row["high"]) if intervals else ()
            line[BENCHMARKS[row["benchmark"]][1]] = text(row["value"], *interval, expected=row["paper"])
            line["run"] = "" if who == "paper" else row["run"]
        lines.append(line)
    return pd.DataFrame(lines)


def show_differences(found: pd.DataFrame) -> pd.DataFrame:
    """`differences` as text: a line per pair of encoders (and run, where there are several), a column per benchmark."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in found.to_dict("records"):
        pair = f"{row['better']} - {row['worse']}"
        start = {"run": row["run"], "difference, points": pair, **dict.fromkeys(HEADINGS, NOT_RUN)}
        line = lines.setdefault((row["run"], pair), start)
        line[BENCHMARKS[row["benchmark"]][1]] = text(row["difference"], row["low"], row["high"], sign=True)
    shown = pd.DataFrame(lines.values(), columns=["run", "difference, points", *HEADINGS])
    return shown if found["run"].nunique() > 1 else shown.drop(columns="run")


def summary_of(folder: str | Path) -> str:
    """A run's scores and differences for a terminal of 100 columns."""
    shown = markdown(show(of_runs([folder]), intervals=False).drop(columns="run"), "simple")
    ahead = differences(folder)
    if not len(ahead):
        return shown
    said = "Scores in percent; in brackets 95 % intervals over clips."
    return f"{shown}\n\n{markdown(show_differences(ahead), 'simple')}\n\n{said}"


# --- one benchmark, for notebooks 03 to 05 ----------------------------------------------------------------------------


def headline(scores: pd.DataFrame, name: str) -> dict[str, dict[str, Any]]:
    """A benchmark's one score per encoder, as its stage writes it into its result, from `evaluation.scores.summarise`.

    Returns:
        encoder -> `value`, `low`, `high` (percent, None where unknown) and `clips`.
    """
    chosen = scores[scores["score"] == METRICS[name]].set_index("encoder")[["value", "low", "high", "clips"]]
    return chosen.astype(object).where(chosen.notna(), None).to_dict("index")


def per_clip(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The benchmark's score of each clip alone, in percent: one row per clip, one column per encoder.

    Args:
        rows: of `evaluation.evaluate.evaluate`.
        name: davis, jhmdb or vip.
    """
    from tcore_lib.evaluation import scores as summary

    columns = {}
    for clip, own in rows.groupby("clip", sort=False):
        scores = summary.summarise(own, name)
        columns[clip] = scores[scores["score"] == METRICS[name]].set_index("encoder")["value"]
    return pd.DataFrame(columns).T.rename_axis("clip").rename_axis(None, axis="columns")


def compared(folder: str | Path, name: str) -> pd.DataFrame:
    """A run's scores on one benchmark beside what is expected, as text; accepted differences: see `ACCEPTED`.

    Something is expected only of encoders with a published row, on real clips: where none has one, the columns are left out.
    """
    rows = {}
    scores = of_runs([folder]).query("benchmark == @name")
    for score in scores.itertuples():
        row = {"measured, %": text(score.value, score.low, score.high), "clips": str(score.clips)}
        difference = score.value - score.paper
        if not pd.isna(difference):
            band = ACCEPTED_RETRAINED if score.source == "run" else ACCEPTED[name]
            row |= {"expected": text(score.paper), "difference": text(difference, sign=True)}
            row |= {"accepted": f"± {band}", "reproduced": "yes" if abs(difference) <= band + 1e-9 else "no"}
        rows[score.encoder] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("encoder")


def in_words(folder: str | Path, name: str) -> str:
    """A run's scores on one benchmark as sentences: every encoder's, and who is ahead of whom."""
    known = of_runs([folder]).query("benchmark == @name").dropna(subset="value")
    if not len(known):
        return "No encoder has a score here."
    clips = known["clips"].max()
    listed = ", ".join(f"{score.encoder} {text(score.value)}" for score in known.itertuples())
    lines = [f"{BENCHMARKS[name][1]} in percent over {clips} clip{'' if clips == 1 else 's'}: {listed}."]
    for row in differences(folder).query("benchmark == @name").itertuples():
        if pd.isna(row.low):
            verdict = "; too few clips for an interval"
        elif row.low > 0:
            verdict = ": ahead"
        else:
            verdict = ": behind" if row.high < 0 else ": the interval holds 0, so these clips cannot tell"
        measured = text(row.difference, row.low, row.high, sign=True)
        lines.append(f"{row.better} - {row.worse}: {measured} points{verdict}.")
    return "\n".join(lines)
