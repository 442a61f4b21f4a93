"""A study's finished tasks -> tables, verdicts, a page. Reads `results/<study>/tasks/`, and nothing else.

A verdict compares two variants seed by seed: the 95 % t-interval of the paired differences. It speaks about chance in
training (initialisation, order, augmentation); the clips are the same for all, so it says nothing about other clips.
"""

import math
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from tcore_lib import figures, markdown
from tcore_lib.files import atomic_path, read_json, write_json, write_text
from tcore_lib.params import find_profile
from tcore_lib.reproduction.study import Comparison, LoadedStudy
from tcore_lib.training.schedules import Schedules

BENCHMARKS = {
    "davis": "rendered DAVIS, J&F_m",
    "vip": "rendered VIP, mIoU",
    "jhmdb": "rendered JHMDB, PCK@0.1",
    "real_davis": "real DAVIS, J&F_m",
    "real_vip": "real VIP, mIoU",
    "real_jhmdb": "real JHMDB, PCK@0.1",
}
LEVEL = 0.95
ENOUGH = 3  # seeds; two differences that happen to be equal would make an interval of no width
NOT_RUN = "not run"
COMPARED = ["claim", "benchmark", "difference", "low", "high", "seeds", "verdict"]


def scores(study: LoadedStudy) -> pd.DataFrame:
    """Every score of every finished task: variant, seed, benchmark, step, value (percent), clips."""
    rows: list[dict[str, Any]] = []
    for task in study.tasks:
        if study.is_finished(task):
            for score in read_json(study.score_file(task))["scores"]:
                rows.append({"variant": task.variant, "seed": task.seed, **score})
    return pd.DataFrame(rows, columns=["variant", "seed", "benchmark", "step", "value", "clips"])


def final(table: pd.DataFrame) -> pd.DataFrame:
    """Of `scores`, the rows after each task's last step."""
    last = table.groupby(["variant", "seed", "benchmark"])["step"].transform("max")
    return table[table["step"] == last]


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds after training: variant, benchmark, mean, std (NaN for one seed), seeds."""
    grouped = final(table).groupby(["variant", "benchmark"], sort=False)["value"]
    return grouped.agg(mean="mean", std="std", seeds="count").reset_index()


def verdict(differences: list[float]) -> tuple[str, float, float]:
    """(verdict, low, high): what paired differences (better minus worse, points) say about "better scores higher".

    "holds here" where the whole 95 % t-interval lies above 0, "does not hold here" where it lies below, else "cannot tell at this
    scale"; fewer than three pairs cannot tell either, one has no interval (NaN).
    """
    count = len(differences)
    if count == 0:
        return NOT_RUN, math.nan, math.nan
    if count == 1:
        return "cannot tell at this scale", math.nan, math.nan
    series = pd.Series(differences)
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * float(series.std()) / math.sqrt(count)
    low, high = float(series.mean()) - half, float(series.mean()) + half
    if low > 0 and count >= ENOUGH:
        return "holds here", low, high
    return ("does not hold here" if high < 0 and count >= ENOUGH else "cannot tell at this scale"), low, high


def compare(table: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """One claim on every benchmark: the columns `COMPARED`; difference (mean), low and high in points."""
    wide = final(table).pivot(index=["benchmark", "seed"], columns="variant", values="value")
    rows = []
    for benchmark in [name for name in BENCHMARKS if name in set(table["benchmark"])]:
        part = wide.loc[benchmark].reindex(columns=[comparison.better, comparison.worse]).dropna()
        paired = (part[comparison.better] - part[comparison.worse]).tolist()
        word, low, high = verdict(paired)
        mean = sum(paired) / len(paired) if paired else math.nan
        rows.append(
            {"claim": comparison.claim, "benchmark": benchmark, "difference": mean, "low": low, "high": high,
             "seeds": len(paired), "verdict": word}
        )  # fmt: skip
    return pd.DataFrame(rows, columns=COMPARED)


def write(study: LoadedStudy) -> list[Path]:
    """Write `scores.csv`, `summary.csv`, `comparisons.csv`, `curves.png`, `seeds.png` and `README.md` into the study's folder.

    Returns:
        The files; only the page where no task has finished.
    """
    table, folder = scores(study), study.folder
    written = []
    if len(table):
        tables = {"scores": table, "summary": means(table), "comparisons": comparisons(study, table)}
        for name, content in tables.items():
            with atomic_path(folder / f"{name}.csv") as temporary:
                content.to_csv(temporary, index=False, float_format="%.4f", lineterminator="\n")
            written.append(folder / f"{name}.csv")
        titles = {name: variant.title for name, variant in study.settings.variants.items()}
        pictures = {
            "curves": figures.study_curves(table, titles, BENCHMARKS),
            "seeds": figures.study_seeds(final(table), titles, BENCHMARKS, study.settings.baseline),
        }
        for name, figure in pictures.items():
            with atomic_path(folder / f"{name}.png") as temporary:
                figure.savefig(temporary, format="png", dpi=110)
            written.append(folder / f"{name}.png")
        write_json(folder / "study.json", {"variants": titles, "settings": study.settings.model_dump(mode="json")})
    write_text(folder / "README.md", page(study, table))
    return [*written, folder / "README.md"]


def comparisons(study: LoadedStudy, table: pd.DataFrame) -> pd.DataFrame:
    """All claims on all benchmarks, see `compare`; no row for a study without claims."""
    parts = [compare(table, comparison) for comparison in study.settings.comparisons]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COMPARED)


def page(study: LoadedStudy, table: pd.DataFrame) -> str:
    """The study as markdown: what was trained, the scores, the verdicts where the study makes claims."""
    done = sum(study.is_finished(task) for task in study.tasks)
    base = study.base
    steps = Schedules(base.pretrain).steps
    width, depth, _ = base.pretrain.encoder.shape
    parts = [
        f"# Study `{study.name}`",
        f"Written by `python -m tcore_lib study {study.name} --workers 2`; {done} of {len(study.tasks)} tasks finished. Every "
        f"task trains a ViT of width {width} and depth {depth} for {steps} steps of {base.pretrain.loop.batch_size} samples on "
        f"{base.data.synthetic.videos} rendered videos (`{find_profile(study.settings.base).name}`); variants differ only in what "
        "their title says (in brackets: T-CoRe's own setting). Scores are percent, mean ± standard deviation over seeds. They "
        f"are not comparable with the paper's: other data, a much smaller encoder, a minute fraction of its training.{cost(study)}",
        score_lines(study, table),
    ]
    if len(table):
        parts += ["![Scores of every seed after training](seeds.png)", "![Scores along the training](curves.png)"]
    if len(table) and study.settings.comparisons:
        rule = (
            "Difference in points, 95 % t-interval of the paired differences over seeds, verdict. *holds here*: the whole "
            "interval lies above 0; *does not hold here*: below; *cannot tell* at this scale otherwise, and always with fewer than "
            "3 seeds. All in `comparisons.csv`."
        )
        parts += ["## Verdicts", rule, verdict_lines(study, table)]
    return "\n\n".join(parts) + "\n"


def cost(study: LoadedStudy) -> str:
    """How long the finished tasks took, as a sentence; empty where none is finished."""
    records = [read_json(study.score_file(task))["provenance"] for task in study.tasks if study.is_finished(task)]
    if not records:
        return ""
    minutes = sorted(record["seconds"] / 60 for record in records)
    machines = sorted({f"{record['processor']}, {record['cores']} cores" for record in records})
    return (
        f" A task took {statistics.median(minutes):.0f} minutes (median; {minutes[0]:.0f} to {minutes[-1]:.0f}, "
        f"beside whatever else ran) on {' and '.join(machines)}."
    )


def score_lines(study: LoadedStudy, table: pd.DataFrame) -> str:
    """Markdown: one row per variant, mean ± standard deviation over seeds, "not run" for what is missing."""
    summary = means(table).set_index(["variant", "benchmark"]) if len(table) else None
    drawn = [name for name in ("davis", "vip", "jhmdb") if getattr(study.base, name).enabled]
    shown = [name for name in BENCHMARKS if name in drawn or (name[:5] == "real_" and name[5:] in study.settings.real)]
    rows = []
    for name, variant in study.settings.variants.items():
        cells, seeds = [], 0
        for benchmark in shown:
            if summary is None or (name, benchmark) not in summary.index:
                cells.append(NOT_RUN)
                continue
            row = summary.loc[(name, benchmark)]
            seeds = max(seeds, int(row["seeds"]))
            cells.append(f"{row['mean']:.1f}" + ("" if math.isnan(row["std"]) else f" ± {row['std']:.1f}"))
        rows.append([variant.title, *cells, seeds])
    head = ["variant", *(BENCHMARKS[name] for name in shown), "seeds"]
    return markdown.table(head, rows, right=range(1, len(head)))


def curve_lines(study: LoadedStudy, table: pd.DataFrame, variant: str) -> str:
    """Markdown: one row per scored point of a variant's training, mean over seeds; step 0 is the study's baseline."""
    along = table[table["variant"].isin([variant, study.settings.baseline])]
    shown = [name for name in BENCHMARKS if name in set(along["benchmark"])]
    wide = along.pivot_table(index="step", columns="benchmark", values="value", aggfunc="mean")
    rows = [
        [f"{step:,}", *("" if math.isnan(row[name]) else f"{row[name]:.1f}" for name in shown)]
        for step, row in wide.iterrows()
    ]
    head = ["steps", *(BENCHMARKS[name] for name in shown)]
    return markdown.table(head, rows, right=range(len(head)))


def verdict_lines(study: LoadedStudy, table: pd.DataFrame) -> str:
    """Markdown: one row per claim, one column per benchmark; difference in points, its interval and the verdict."""
    found = comparisons(study, table)
    shown = [name for name in BENCHMARKS if name in set(found["benchmark"])]
    rows = []
    for claim, part in found.groupby("claim", sort=False):
        by_name = part.set_index("benchmark")
        rows.append([claim, *(_verdict_cell(by_name.loc[name]) for name in shown), int(part["seeds"].max())])
    head = ["claim", *(BENCHMARKS[name] for name in shown), "seeds"]
    return markdown.table(head, rows, right=[len(head) - 1])


def _verdict_cell(row: pd.Series) -> str:
    if row["seeds"] == 0:
        return NOT_RUN
    interval = "one seed" if math.isnan(row["low"]) else f"{row['low']:+.1f} to {row['high']:+.1f}"
    return f"{row['difference']:+.1f} ({interval}): {row['verdict'].removesuffix(' at this scale')}"
