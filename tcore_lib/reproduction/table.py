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
    released    the published checkpoint whose row this is, or which it reproduces: on real clips, by the protocol; else ""
    paper       the authors' figure of that checkpoint; NaN where it reproduces none
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from tcore_lib import runs
from tcore_lib.errors import InputError
from tcore_lib.evaluation import scores as summary
from tcore_lib.evaluation.benchmarks import BENCHMARKS
from tcore_lib.files import reading
from tcore_lib.params import Params, project_root

# Benchmark -> heading of its column, in the paper's order.
HEADINGS = {"davis": "DAVIS J&F_m", "vip": "VIP mIoU", "jhmdb": "JHMDB PCK@0.1"}
METRICS = {name: heading.split()[1] for name, heading in HEADINGS.items()}
STAGE_OF = {stage.section: name for name, stage in runs.STAGES.items()}
COLUMNS = ["run", "encoder", "source", "training", "benchmark", "metric", "value", "low", "high", "clips", "real",
           "released", "paper"]  # fmt: skip
NOT_RUN = "not run"
# Settings of a benchmark that say where and how it is computed, not what is measured.
NO_PROTOCOL = {"enabled", "root", "precision", "save_predictions"}

# A published row counts as reproduced from the released weights when the difference is at most this many points. The
# evaluation has no randomness: 0.05 is the rounding of the published figure, the rest leaves room for ties in the top-k and
# for other kernels. VIP's is wider because the released scorer takes whatever prediction files exist, and which did is not known.
ACCEPTED = {"davis": 0.1, "vip": 0.3, "jhmdb": 0.1}
# ... and this many when the encoder was trained anew: another seed, other hardware, and data of which videos have vanished. No
# spread over seeds is published; one point is an assumption, from how far the paper's own rows lie apart.
ACCEPTED_RETRAINED = 1.0


# --- where rows come from ---------------------------------------------------------------------------------------------


def paper() -> pd.DataFrame:
    """The authors' figures, `results/paper.csv`, as rows."""
    path = project_root() / "results" / "paper.csv"
    with reading(path, "restore it from git"):
        figures = pd.read_csv(path)
        training = figures["data"] + ", " + figures["epochs"].astype(str) + " epochs"
        known = figures.assign(run="paper", training=training, released=figures["released_file"])
        rows = known.melt(["run", "encoder", "training", "released"], [*HEADINGS], var_name="benchmark")
        metric, value = rows["benchmark"].map(METRICS), rows["value"].astype(float)
    return rows.assign(metric=metric, value=value, real=True).reindex(columns=COLUMNS)


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
        for name in HEADINGS:
            if STAGE_OF[name] not in records:
                continue
            settings = records[STAGE_OF[name]]["settings"]
            section, checkpoint = settings[name], settings["checkpoint"]
            real = section["root"] != "synthetic"
            expected = getattr(Params(), name).model_dump(mode="json", exclude=NO_PROTOCOL)
            same = real and all(section.get(key, value) == value for key, value in expected.items())
            scores = runs.read_table(folder, STAGE_OF[name], "scores")
            for score in scores[scores["score"] == METRICS[name]].to_dict("records"):
                source = checkpoint["encoders"][score["encoder"]]
                released = checkpoint["paper_rows"].get(score["encoder"], "") if same else ""  # others are another test
                rows.append(score | {
                    "run": folder.name, "source": source, "benchmark": name, "metric": METRICS[name], "real": real,
                    "training": own if source == "run" else "none" if is_floor(source) else source,
                    "released": released, "paper": published.get((released, name)),
                })  # fmt: skip
    found = pd.DataFrame(rows, columns=COLUMNS)
    return found.astype({"value": float, "low": float, "high": float, "paper": float, "real": bool})


def differences(folder: str | Path) -> pd.DataFrame:
    """How far each encoder of a run is ahead of what it has to beat: the random initialisation, and raw pixels.

    Returns:
        Columns run, benchmark, better, worse, difference (points), low and high (95 % bootstrap interval over clips, the same
        clips for both encoders), clips. No row where a run has nothing to compare.
    """
    rows = []
    for name, scores in of_runs([folder]).groupby("benchmark", sort=False):
        floor = scores["source"].map(is_floor)
        items = dict(list(runs.read_table(folder, STAGE_OF[name], BENCHMARKS[name].table).groupby("encoder")))
        seed = runs.read_results(folder)[STAGE_OF[name]]["settings"]["run"]["seed"]
        for worse in scores[floor]["encoder"]:
            for better in scores[~floor]["encoder"]:
                paired = summary.paired_difference(items[better], items[worse], name, seed=seed)
                measured = paired.set_index("score").loc[METRICS[name]].to_dict()
                rows.append({"run": Path(folder).name, "benchmark": name, "better": better, "worse": worse, **measured})
    return pd.DataFrame(rows, columns=["run", "benchmark", "better", "worse", "difference", "low", "high", "clips"])


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


def verdict(low: float, high: float) -> str:
    """What the interval of a difference says: `yes` where it lies above 0, `no` below; NaN = unknown."""
    return "yes" if low > 0 else "no" if high < 0 else "cannot tell"


def markdown(shown: pd.DataFrame, form: str = "pipe") -> str:
    """A table of text for README and other pages; `form="simple"` for a terminal."""
    return shown.to_markdown(index=False, tablefmt=form, disable_numparse=True)


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
        line = {"who": who, **named.iloc[0][["encoder", "training"]], **dict.fromkeys(HEADINGS.values(), NOT_RUN)}
        for row in found.to_dict("records"):
            interval = (row["low"], row["high"]) if intervals else ()
            line[HEADINGS[row["benchmark"]]] = text(row["value"], *interval, expected=row["paper"])
        lines.append(line | {"run": "" if who == "paper" else ", ".join(found["run"].unique())})
    return pd.DataFrame(lines)


def show_differences(found: pd.DataFrame) -> pd.DataFrame:
    """`differences` as text: a line per pair of encoders (and run, where there are several), a column per benchmark."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in found.itertuples():
        pair = f"{row.better} - {row.worse}"
        start = {"run": row.run, "difference, points": pair, **dict.fromkeys(HEADINGS.values(), NOT_RUN)}
        line = lines.setdefault((row.run, pair), start)
        line[HEADINGS[row.benchmark]] = text(row.difference, row.low, row.high, sign=True)
    shown = pd.DataFrame(lines.values(), columns=["run", "difference, points", *HEADINGS.values()])
    return shown if found["run"].nunique() > 1 else shown.drop(columns="run")


def summary_of(folder: str | Path) -> str:
    """A run's scores and differences for a terminal of 100 columns."""
    shown = markdown(show(of_runs([folder]), intervals=False).drop(columns="run"), "simple")
    ahead = differences(folder)
    if not len(ahead):
        return shown
    said = "Scores in percent; in brackets 95 % intervals over clips."
    return f"{shown}\n\n{markdown(show_differences(ahead), 'simple')}\n\n{said}"


# --- commands ---------------------------------------------------------------------------------------------------------


def published(name: str = "") -> Path:
    """`results/published`, which git keeps, or one run in it."""
    return project_root() / "results" / "published" / name


def publish(run: str | Path) -> int:
    """Copy a run's results and tables (text only) to results/published/RUN, for git.

    Args:
        run: a run's folder, such as results/quick.
    """
    folder = Path(run).absolute()
    if folder not in runs.list_runs(folder.parent):
        raise InputError(f"{folder} holds no result of a run; reproduce it first, or give another folder.")
    target = published(folder.name)
    shutil.rmtree(target, ignore_errors=True)  # stages that are no longer run go
    target.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        if path.name.split(".")[0] in runs.STAGES and path.suffix in (".json", ".csv"):
            shutil.copyfile(path, target / path.name)
    print(f"{len(list(target.iterdir()))} files in {target}; python docs/write_pages.py renews README's tables.")
    return 0


def table_of(*names: str) -> int:
    """Print the paper's table beside what runs measured.

    Args:
        names: runs, by name or folder; all below results/ and results/published/ by default.
    """
    known = {folder.name: folder for place in (published(), published().parent) for folder in runs.list_runs(place)}
    chosen = [known.get(name, Path(name)) for name in names] or list(known.values())
    for folder in chosen:
        if folder not in runs.list_runs(folder.parent):
            raise InputError(f"There is no run {folder}; the runs are {', '.join(known)}.")
    print(markdown(show(of_runs(chosen)), "simple"))
    return 0


# --- one benchmark, for notebooks 03 to 05 ----------------------------------------------------------------------------


def per_clip(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The benchmark's score of each clip alone, in percent: one row per clip, one column per encoder.

    `rows` are those of `evaluation.evaluate.evaluate` on the benchmark `name`.
    """
    alone = {clip: summary.summarise(own, name) for clip, own in rows.groupby("clip", sort=False)}
    scores = pd.concat(alone, names=["clip"]).query("score == @METRICS[@name]").droplevel(1)
    return scores.pivot(columns="encoder", values="value").reindex(index=list(alone), columns=rows["encoder"].unique())


def answer(folder: str | Path, name: str) -> pd.DataFrame:
    """A run's scores on one benchmark, as text: a row per encoder, and what it is to be compared with.

    Columns: `measured, %`, `clips`; `ahead of random` and `ahead of pixels`, points and `verdict`; where an encoder is linked to
    a published row, on real clips, `expected`, `difference`, `accepted` (see `ACCEPTED`) and `reproduced`.
    """
    rows = {}
    for score in of_runs([folder]).query("benchmark == @name").itertuples():
        rows[score.encoder] = {"measured, %": text(score.value, score.low, score.high), "clips": str(score.clips)}
        difference = score.value - score.paper
        if not pd.isna(difference):
            band = ACCEPTED_RETRAINED if score.source == "run" else ACCEPTED[name]
            row = {"expected": text(score.paper), "difference": text(difference, sign=True), "accepted": f"± {band}"}
            rows[score.encoder] |= row | {"reproduced": "yes" if abs(difference) <= band + 1e-9 else "no"}
    for pair in differences(folder).query("benchmark == @name").itertuples():
        points = text(pair.difference, pair.low, pair.high, sign=True)
        rows[pair.better][f"ahead of {pair.worse}"] = f"{points}: {verdict(pair.low, pair.high)}"
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("encoder")
