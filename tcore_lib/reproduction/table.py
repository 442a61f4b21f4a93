"""One long table of scores. README, notebook 07, the command line and studies show filters and pivots of it.

Every row is one score of one encoder on one benchmark (`COLUMNS`):

    run         the run that measured it; "paper" for the authors' figures
    encoder     what the run's parameter file calls it; the paper's rows: the architecture
    training    what it was trained on
    benchmark   davis, vip or jhmdb
    metric      J&F_m, mIoU or PCK@0.1
    value       percent; NaN where it could not be measured
    low, high   ends of the 95 % bootstrap interval over clips; NaN where unknown
    clips       how many clips
    real        True = real clips, False = rendered ones
    released    the published checkpoint whose row this is, or which it reproduces; else ""
    protocol    "protocol", or the settings that differ from it
    data        what it was measured on, in words
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tcore_lib import runs
from tcore_lib.errors import InputError
from tcore_lib.params import Davis, Jhmdb, Params, Vip, project_root

# Benchmark -> (stage that measures it, heading of its column), in the paper's order.
BENCHMARKS = {
    "davis": ("03_davis_evaluation", "DAVIS J&F_m"),
    "vip": ("05_vip_evaluation", "VIP mIoU"),
    "jhmdb": ("04_jhmdb_evaluation", "JHMDB PCK@0.1"),
}
METRICS = {name: heading.split()[1] for name, (_, heading) in BENCHMARKS.items()}
HEADINGS = [heading for _, heading in BENCHMARKS.values()]
ROWS = {"davis": "objects", "vip": "parts", "jhmdb": "joints"}  # the table of a stage that its scores are means of
COLUMNS = ["run", "encoder", "training", "benchmark", "metric", "value", "low", "high", "clips", "real", "released",
           "protocol", "data"]  # fmt: skip
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
    """The authors' figures as rows (`COLUMNS`), run "paper".

    Args:
        path: CSV with columns data, encoder, epochs, davis, vip, jhmdb, released_file; None = the checkout's
            `results/paper.csv`.

    Raises:
        InputError: the file is missing or lacks a column.
    """
    path = path or project_root() / "results" / "paper.csv"
    try:
        rows = [
            {"run": "paper", "encoder": row["encoder"], "training": f"{row['data']}, {row['epochs']} epochs",
             "benchmark": name, "metric": METRICS[name], "value": float(row[name]), "real": True,
             "released": row["released_file"], "protocol": "protocol", "data": "the full benchmark"}
            for row in pd.read_csv(path).to_dict("records")
            for name in BENCHMARKS
        ]  # fmt: skip
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} cannot be read as the published table ({error}); restore it from git.") from error
    return pd.DataFrame(rows, columns=COLUMNS)


def of_runs(folders: Iterable[str | Path]) -> pd.DataFrame:
    """What runs measured, as rows (`COLUMNS`); none for what was not run.

    Args:
        folders: run folders, `results/<run>` or `results/published/<run>`.

    Raises:
        InputError: a result file is damaged.
    """
    rows = [row for folder in folders for name in BENCHMARKS for row in _of_stage(Path(folder), name)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({"value": float, "low": float, "high": float, "real": bool})


def _of_stage(folder: Path, name: str) -> list[dict[str, Any]]:
    """One row per encoder of one evaluation."""
    record = runs.read_result(folder, BENCHMARKS[name][0])
    if record is None:
        return []
    training = runs.read_result(folder, "01_pretraining")
    trained = {"run": training["result"]["description"] if training else "", "random": "none", "pixels": "none"}
    section, checkpoint = record["settings"][name], record["settings"]["checkpoint"]
    real = section["root"] != "synthetic"
    shared = {"run": folder.name, "benchmark": name, "metric": METRICS[name], "real": real}
    shared |= {"protocol": _protocol(name, section), "data": record["result"]["data"]}
    rows = []
    for encoder, score in record["result"]["scores"].items():
        source = checkpoint["encoders"][encoder]
        row = {"encoder": encoder, "training": trained.get(source, source)}
        row["released"] = checkpoint["paper_rows"].get(encoder, "") if real else ""  # rendered clips are another test
        rows.append(shared | row | {key: score.get(key) for key in ("value", "low", "high", "clips")})
    return rows


def _protocol(name: str, section: Mapping[str, Any]) -> str:
    """What a benchmark was run with: "protocol", or the settings that differ from the protocol's."""
    expected = {"davis": Davis, "vip": Vip, "jhmdb": Jhmdb}[name]().model_dump(mode="json")
    other = [f"{key} {section[key]}" for key in expected
             if key in section and key not in NO_PROTOCOL and section[key] != expected[key]]  # fmt: skip
    return ", ".join(other) or "protocol"


def differences(folder: str | Path) -> pd.DataFrame:
    """How far each encoder of a run is ahead of what it has to beat: the random initialisation, and raw pixels.

    Args:
        folder: a run folder.

    Returns:
        Columns run, benchmark, better, worse, difference (points), low and high (95 % bootstrap interval over clips, the same
        clips for both encoders), clips, real. No row where a run has nothing to compare.
    """
    from tcore_lib.evaluation import scores as summary  # late: listing runs needs no evaluation

    folder, rows = Path(folder), []
    for name, (stage, _) in BENCHMARKS.items():
        record = runs.read_result(folder, stage)
        sources = record["settings"]["checkpoint"]["encoders"] if record else {}
        baselines = [encoder for encoder, source in sources.items() if source in ("random", "pixels")]
        pairs = [(encoder, base) for base in baselines for encoder in sources if encoder not in baselines]
        if record is None or not pairs:
            continue
        found = runs.read_table(folder, stage, ROWS[name])
        seed, real = record["settings"]["run"]["seed"], record["settings"][name]["root"] != "synthetic"
        for better, worse in pairs:
            of_one, of_other = (found[found["encoder"] == encoder] for encoder in (better, worse))
            paired = summary.paired_difference(of_one, of_other, name, seed=seed).set_index("score").loc[METRICS[name]]
            rows.append(
                {"run": folder.name, "benchmark": name, "better": better, "worse": worse, **paired, "real": real}
            )
    return pd.DataFrame(
        rows, columns=["run", "benchmark", "better", "worse", "difference", "low", "high", "clips", "real"]
    )


# --- how scores are shown ---------------------------------------------------------------------------------------------


def text(value: Any, low: Any = None, high: Any = None, *, expected: Any = None, sign: bool = False) -> str:
    """`33.2`, `33.2 [21.5, 47.0]`, `64.9 (+0.2)` (beside an `expected` one), `+0.4 [-1.0, +1.8]` (`sign`), or `not run`."""
    if pd.isna(value):
        return NOT_RUN
    form = "+.1f" if sign else ".1f"
    parts = [f"{value:{form}}"]
    if not pd.isna(expected):
        parts.append(f"({value - expected:+.1f})")
    if not (pd.isna(low) or pd.isna(high)):
        parts.append(f"[{low:{form}}, {high:{form}}]")
    return " ".join(parts)


def show(scores: pd.DataFrame, *, intervals: bool = True) -> pd.DataFrame:
    """The paper's table, and below it what runs measured.

    Args:
        scores: rows of `of_runs`.
        intervals: also write the 95 % intervals.

    Returns:
        Text. Columns who, encoder, training, one per benchmark, run. `paper`: the authors' figures; `reproduced`: the same rows
        as measured on real clips, in round brackets the difference to the paper, "not run" where there is none; `ours`: every
        other encoder, not comparable with the paper where clips are rendered or only a part of the benchmark.
    """
    published, rows = paper().groupby("released", sort=False), []
    for _, figures in published:
        rows.append(_line("paper", figures, intervals=False))
    for released, figures in published:
        figure_of = figures.set_index("benchmark")["value"]
        found = scores[scores["released"] == released]
        found = found.assign(expected=found["benchmark"].map(figure_of))
        rows.append(_line("reproduced", found, intervals) | dict(figures.iloc[0][["encoder", "training"]]))
    for _, found in scores[scores["released"] == ""].groupby(["run", "encoder"], sort=False):
        rows.append(_line("ours", found, intervals))
    shown = pd.DataFrame(rows, columns=["who", "encoder", "training", *HEADINGS, "run"])
    return shown.assign(run=shown["run"].fillna("").replace("paper", ""))


def beside_paper(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores as the figure of notebook 07 takes them, and the published figure beside those that reproduce one.

    Args:
        scores: rows of `of_runs`.

    Returns:
        Columns encoder, benchmark (heading), measured, low, high, clips, paper, difference; percent and points.
    """
    known = paper().set_index(["released", "benchmark"])["value"]
    figures = [known.get(key, float("nan")) for key in zip(scores["released"], scores["benchmark"], strict=True)]
    shown = scores.rename(columns={"value": "measured"}).assign(paper=figures)
    shown["difference"] = shown["measured"] - shown["paper"]
    shown["benchmark"] = [BENCHMARKS[name][1] for name in shown["benchmark"]]
    return shown[["encoder", "benchmark", "measured", "low", "high", "clips", "paper", "difference"]]


def plain(shown: pd.DataFrame) -> str:
    """A table of text for a terminal."""
    return shown.to_markdown(index=False, tablefmt="simple", disable_numparse=True)


def markdown(shown: pd.DataFrame) -> str:
    """A table of text for README and other pages."""
    return shown.to_markdown(index=False, disable_numparse=True)


def _line(who: str, scores: pd.DataFrame, intervals: bool) -> dict[str, str]:
    """One line of `show`: the scores of one encoder of one run."""
    line = {"who": who, **dict.fromkeys(HEADINGS, NOT_RUN)}
    for score in scores.to_dict("records"):
        line |= {key: score[key] for key in ("encoder", "training", "run")}
        interval = (score["low"], score["high"]) if intervals else ()
        line[BENCHMARKS[score["benchmark"]][1]] = text(score["value"], *interval, expected=score.get("expected"))
    return line


def show_differences(found: pd.DataFrame) -> pd.DataFrame:
    """`differences` as text: one line per pair of encoders, one column per benchmark, intervals in square brackets."""
    cells = {
        (f"{row['better']} - {row['worse']}", BENCHMARKS[row["benchmark"]][1]): text(
            row["difference"], row["low"], row["high"], sign=True
        )
        for row in found.to_dict("records")
    }
    lines = dict.fromkeys(pair for pair, _ in cells)
    rows = [
        {"difference, points": pair} | {name: cells.get((pair, name), NOT_RUN) for name in HEADINGS} for pair in lines
    ]
    return pd.DataFrame(rows, columns=["difference, points", *HEADINGS])


def summary_of(folder: str | Path) -> str:
    """A run's scores and differences for a terminal of 100 columns."""
    parts = [plain(show(of_runs([folder]), intervals=False).drop(columns="run"))]
    found = differences(folder)
    if len(found):
        parts.append(plain(show_differences(found)))
        parts.append("Scores in percent; in brackets 95 % intervals over clips.")
    return "\n\n".join(parts)


def provenance(folder: str | Path) -> pd.DataFrame:
    """Where a run's figures come from: one row per finished stage, with minutes and peak memory in GB."""
    rows = []
    for stage, record in runs.read_results(folder).items():
        origin = record["provenance"]
        where = {"stage": stage, "commit": runs.commit(origin), "machine": runs.machine(origin)}
        facts = {"minutes": origin["seconds"] / 60, "peak memory, GB": origin["peak_memory_gb"]}
        rows.append(where | facts | {"finished": origin["finished"]})
    return pd.DataFrame(rows, columns=["stage", "commit", "machine", "minutes", "peak memory, GB", "finished"])


# --- one benchmark, for notebooks 03 to 05 ----------------------------------------------------------------------------


def headline(scores: pd.DataFrame, name: str) -> dict[str, dict[str, Any]]:
    """A benchmark's one score per encoder, as its stage writes it into its result.

    Args:
        scores: of `evaluation.scores.summarise`.
        name: davis, jhmdb or vip.

    Returns:
        encoder -> `value`, `low`, `high` (percent, None where unknown) and `clips`.
    """
    chosen = scores[scores["score"] == METRICS[name]].set_index("encoder")
    return {
        str(encoder): {key: None if pd.isna(row[key]) else float(row[key]) for key in ("value", "low", "high")}
        | {"clips": int(row["clips"])}
        for encoder, row in chosen.iterrows()
    }


def per_clip(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The benchmark's score of each clip alone, in percent: one row per clip, one column per encoder.

    Args:
        rows: of `evaluation.evaluate.evaluate`.
        name: davis, jhmdb or vip.
    """
    from tcore_lib.evaluation import scores as summary

    columns = {
        clip: {encoder: score["value"] for encoder, score in headline(summary.summarise(own, name), name).items()}
        for clip, own in rows.groupby("clip", sort=False)
    }
    return pd.DataFrame(columns).T.astype(float).rename_axis("clip")


def compared(params: Params, name: str, scores: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Measured beside expected for one benchmark, as text.

    Something is expected only of encoders with a published row, and only on real clips: where none has one, the columns
    about it are left out. Accepted differences: see `ACCEPTED`.

    Args:
        params: the run's.
        name: davis, jhmdb or vip.
        scores: of `headline`.
    """
    published = paper()
    expected = published[published["benchmark"] == name].set_index("released")["value"]
    real = getattr(params, name).root != "synthetic"
    rows = {}
    for encoder, score in scores.items():
        row = {"measured, %": text(score["value"], score["low"], score["high"]), "clips": str(score["clips"])}
        released = params.checkpoint.paper_rows.get(encoder)
        if real and released in expected.index and score["value"] is not None:
            difference = score["value"] - expected[released]
            retrained = params.checkpoint.encoders[encoder] == "run"
            band = ACCEPTED_RETRAINED if retrained else ACCEPTED[name]
            row |= {"expected": text(expected[released]), "difference": text(difference, sign=True)}
            row |= {"accepted": f"± {band}", "reproduced": "yes" if abs(difference) <= band + 1e-9 else "no"}
        rows[encoder] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("encoder")


def in_words(name: str, scores: Mapping[str, Mapping[str, Any]], paired: pd.DataFrame | None = None) -> str:
    """The scores of a benchmark as sentences: every encoder's, and who is ahead of whom.

    Args:
        name: davis, jhmdb or vip.
        scores: of `headline`.
        paired: rows of `differences`; None = only the scores are said.
    """
    known = {encoder: score for encoder, score in scores.items() if score["value"] is not None}
    if not known:
        return "No encoder has a score here."
    clips = max(score["clips"] for score in known.values())
    listed = ", ".join(f"{encoder} {text(score['value'])}" for encoder, score in known.items())
    lines = [f"{BENCHMARKS[name][1]} in percent over {clips} clip{'' if clips == 1 else 's'}: {listed}."]
    for row in [] if paired is None else paired[paired["benchmark"] == name].to_dict("records"):
        lines.append(f"{row['better']} - {row['worse']}: {verdict(row['difference'], row['low'], row['high'])}.")
    return "\n".join(lines)


def verdict(difference: float, low: float, high: float) -> str:
    """What a difference in points and its 95 % interval say."""
    measured = f"{text(difference, low, high, sign=True)} points"
    if pd.isna(low) or pd.isna(high):
        return f"{measured}; too few clips for an interval"
    if low > 0:
        return f"{measured}: ahead"
    return f"{measured}: " + ("behind" if high < 0 else "the interval holds 0, so these clips cannot tell")
