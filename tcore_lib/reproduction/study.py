"""A study: one profile, named variants of it, several seeds, scored along the training. Who beats whom, measured.

    tcore study small_scale                         all tasks that are not finished, then the page
    tcore study small_scale --only full,random      the same, for two of its variants

A task is one variant with one seed: `reproduce` with changes, for the stages that prepare, train and evaluate, and once more on
real clips where these are at hand. What a task measured is kept in `results/studies/<study>/`:

    tasks.csv    one row per finished task: variant, seed, SHA-256 of its parameters, minutes, machine, commit, when
    scores.csv   its scores: variant, seed, step, benchmark, metric, value, low, high (percent), clips, real
    README.md    the page, `curves.png`, `seeds.png`, `comparisons.csv`: computed from these two
    runs/        the runs themselves; not kept in git
"""

import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pandas as pd
from filelock import FileLock
from pydantic import Field, model_validator
from scipy import stats

from tcore_lib import figures, params as parameters, runs
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, write_text
from tcore_lib.params import Int, Params, Positive, Section
from tcore_lib.reproduction import table
from tcore_lib.reproduction.reproduce import Busy, run_stages
from tcore_lib.training.schedules import Schedules

FOLDER = "studies"  # below params/ and below results/
ENOUGH = 3  # seeds; two differences that happen to be equal would make an interval of no width
TASKS = ["variant", "seed", "params", "minutes", "machine", "commit", "finished"]
SCORES = ["variant", "seed", "step", "benchmark", "metric", "value", "low", "high", "clips", "real"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,31}$")]


# --- the file in params/studies/ --------------------------------------------------------------------------------------


class Variant(Section):
    """What one variant changes in the base profile."""

    title: str = Field(description="one line for tables and figures")
    pretrain: dict[str, Any] = Field({}, description="changes of the section `pretrain`, nested like it")
    encoder: str = Field("run", description="run = it is trained; random, pixels, a file or a name = only evaluated")


class Comparison(Section):
    """A claim: one variant scores higher than another."""

    claim: str
    better: Name
    worse: Name


class Settings(Section):
    """A whole file."""

    base: str = Field(description="the profile that is varied: a file in params/, or a path")
    seeds: list[Annotated[Int, Field(ge=0)]] = Field([0, 1, 2], min_length=1)
    points: Positive = Field(2, description="equally spaced points of the training that are scored, with the last one")
    variants: dict[Name, Variant] = Field(min_length=1)
    baseline: Name = Field("random", description="the variant figures compare all others with")
    comparisons: list[Comparison] = Field([])
    real: dict[Literal["davis", "jhmdb", "vip"], str] = Field({}, description="benchmark -> folder of real clips")
    real_points: Literal["last", "all"] = Field("last", description="when real clips are scored")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must differ from one another")
        compared = [("comparisons", name) for claim in self.comparisons for name in (claim.better, claim.worse)]
        for key, name in [("baseline", self.baseline), *compared]:
            if name not in self.variants:
                raise ValueError(f"{key} names {name!r}, which variants does not")
        return self


class Study:
    """A study that has been read and checked.

    Args:
        study: a path, or the name of a file in `params/studies/`.

    Attributes:
        settings: what the file says.
        base: the base profile.
        folder: `results/studies/<study>`.
        tasks: (variant, seed); seed by seed, so that a study that is stopped early has whole seeds.
        real: folders of the real clips that are on this machine, by benchmark.

    Raises:
        InputError: the study, the base or a variant is not possible; the sentence names the file and the key.
    """

    def __init__(self, study: str | Path) -> None:
        self.path = Path(study).expanduser()
        if self.path.suffix not in (".yaml", ".yml"):
            self.path = parameters.project_root() / "params" / FOLDER / f"{study}.yaml"
        self.settings = parameters.checked(Settings, parameters.read_yaml(self.path), str(self.path))
        self.sections, origin = parameters.read_profile(self.settings.base)
        self.base = parameters.parse(self.sections, origin)
        self.folder = parameters.resolve(self.base.run.results) / FOLDER / self.path.stem
        self.tasks = [(variant, seed) for seed, variant in product(self.settings.seeds, self.settings.variants)]
        folders = {str(name): parameters.resolve(path) for name, path in self.settings.real.items()}
        self.real = {name: folder for name, folder in folders.items() if folder.is_dir()}
        for task in self.tasks:
            self.key(*task)

    def params(self, variant: str, seed: int) -> tuple[Params, Params]:
        """A task's parameters: for its training and the base profile's clips, and for the real clips.

        All tasks share the base's data, whatever their seed. On real clips the encoders are the checkpoints of the training, and
        the protocol is the benchmark's own, not that of the base profile's small rendered clips.
        """
        name, source = f"{variant}-seed{seed}", self.settings.variants[variant].encoder
        run = {"name": name, "seed": seed, "results": str(self.folder / "runs")}
        data = {"root": str(parameters.resolve(self.base.data.root)), "synthetic": {"seed": self.base.run.seed}}
        changes = self.settings.variants[variant].pretrain
        own = parameters.merged(self.sections, {"run": run, "data": data, "pretrain": changes})
        points = {0: source}  # step -> the encoder that is scored there
        rendered = files = points
        trained: dict[str, Any] = {"enabled": False}
        if source == "run":
            steps = Schedules(self._checked(own, variant).pretrain).steps
            if steps % self.settings.points:
                raise InputError(
                    f"{self.path}: points = {self.settings.points} does not divide {steps} steps of {variant}."
                )
            every = steps // self.settings.points
            rendered = {step: f"run@{step}" for step in range(every, steps + 1, every)}
            scored = rendered if self.settings.real_points == "all" else [steps]
            files = {step: str(self.folder / "runs" / name / "checkpoints" / f"step-{step:08d}.pt") for step in scored}
            trained = {"enabled": True, "loop": {"milestone_every": every}}
        on_rendered = parameters.merged(own, {"pretrain": trained, "checkpoint": _encoders(rendered)})
        on_real = parameters.merged(own, {"run": {"name": f"{name}-real"}, "pretrain": {"enabled": False}})
        on_real["checkpoint"] = _encoders(files)
        for benchmark in table.BENCHMARKS:
            folder = self.real.get(benchmark)
            on_real[benchmark] = {"root": str(folder)} if folder else {"enabled": False}
        return self._checked(on_rendered, variant), self._checked(on_real, variant)

    def key(self, variant: str, seed: int) -> str:
        """What a task's scores depend on besides the code: its parameters, and the real clips that are scored."""
        rendered = self.params(variant, seed)[0]
        anywhere = rendered.model_copy(update={"data": rendered.data.model_copy(update={"root": "data"})})
        digest = anywhere.digest("data", "pretrain", "checkpoint", *table.BENCHMARKS)
        return " ".join([digest[:16], self.settings.real_points, *sorted(self.real)])

    def _checked(self, sections: dict[str, Any], variant: str) -> Params:
        return parameters.parse(sections, f"{self.path}, variant {variant}")

    def read(self, name: str, columns: list[str]) -> pd.DataFrame:
        """`tasks.csv` or `scores.csv`; without rows where nothing is finished."""
        path = self.folder / f"{name}.csv"
        return pd.read_csv(path).reindex(columns=columns) if path.is_file() else pd.DataFrame(columns=columns)

    def is_finished(self, variant: str, seed: int) -> bool:
        """Whether the task's scores are there and belong to what the study says now."""
        tasks = self.read("tasks", TASKS)
        same = (tasks["variant"] == variant) & (tasks["seed"] == seed) & (tasks["params"] == self.key(variant, seed))
        return bool(same.any())


def _encoders(points: dict[int, str]) -> dict[str, dict[str, str]]:
    return {"encoders": {f"step {step}": source for step, source in points.items()}}


# --- running ----------------------------------------------------------------------------------------------------------


def run_study(study: str | Path, *, only: str | None = None, tables: bool = False) -> int:
    """Train and score variants of a profile over several seeds, and compare them.

    Finished tasks are kept, stopped ones continue. The same command in a second terminal takes the next free task.

    Args:
        study: a file, or the name of one in params/studies/.
        only: some variants, such as full,random.
        tables: only write the page of what is finished.

    Returns:
        The exit code: 0, or 1 where a task failed; the others are finished nevertheless.

    Raises:
        InputError: the study is not possible, or there is no such variant.
    """
    loaded = Study(study)
    chosen = only.split(",") if only else list(loaded.settings.variants)
    for name in chosen:
        if name not in loaded.settings.variants:
            raise InputError(f"{loaded.path} has no variant {name!r}; it has {', '.join(loaded.settings.variants)}.")
    for name in sorted(set(loaded.settings.real) - set(loaded.real)):
        print(f"{loaded.settings.real[name]} is not here: real {name} clips are not run.")
    tasks, failed = [task for task in loaded.tasks if task[0] in chosen and not tables], []
    for number, task in enumerate(tasks, 1):
        print(f"task {number} of {len(tasks)}: {task[0]}, seed {task[1]}", flush=True)
        try:
            if not loaded.is_finished(*task) and run_task(loaded, *task) != 0:
                failed.append(f"{task[0]}, seed {task[1]}")
        except Busy:
            print("another process works on it", flush=True)
    write_page(loaded)
    if failed:
        print(f"failed: {'; '.join(failed)}; the same command tries again.", file=sys.stderr)
    return 1 if failed else 0


def run_task(study: Study, variant: str, seed: int) -> int:
    """Train and score one task, on rendered clips and on the real ones that are here; returns the exit code.

    Raises:
        Busy: another process works on it.
    """
    rendered, real = study.params(variant, seed)
    trained = runs.run_folder(rendered) / "01_pretraining.json"
    before = trained.stat().st_mtime_ns if trained.exists() else 0
    code = run_stages(rendered, only="00,01,03,04,05")
    if code == 0 and study.real:
        anew = trained.exists() and trained.stat().st_mtime_ns != before  # the same file names, other weights
        code = run_stages(real, only="03,04,05", force=anew)
    if code == 0:
        keep(study, variant, seed)
    return code


def keep(study: Study, variant: str, seed: int) -> None:
    """Put what a task's runs measured into `scores.csv` and `tasks.csv`, in place of what was there of it."""
    folders = [runs.run_folder(params) for params in study.params(variant, seed)]
    found = table.of_runs(folders)
    found = found.assign(variant=variant, seed=seed, step=found["encoder"].str.split().str[1].astype(int))
    records = [record["provenance"] for folder in folders for record in runs.read_results(folder).values()]
    last = max(records, key=lambda origin: str(origin["finished"]))
    row = {"variant": variant, "seed": seed, "params": study.key(variant, seed), "finished": last["finished"]}
    row |= {"minutes": sum(origin["seconds"] for origin in records) / 60}
    row |= {"machine": runs.machine(last), "commit": runs.commit(last, "+")}
    with FileLock(study.folder / "runs" / ".lock"):  # another terminal may do the same
        for name, columns, rows in (("scores", SCORES, found), ("tasks", TASKS, pd.DataFrame([row]))):
            old = study.read(name, columns)
            others = old[(old["variant"] != variant) | (old["seed"] != seed)]
            write_csv(
                study.folder / f"{name}.csv", pd.concat([others, rows[columns]]) if len(others) else rows[columns]
            )


def write_csv(path: Path, content: pd.DataFrame) -> None:
    """Write a table atomically, floats with four decimals."""
    with atomic_path(path) as temporary:
        content.to_csv(temporary, index=False, float_format="%.4f", lineterminator="\n")


# --- verdicts and the page --------------------------------------------------------------------------------------------


def scores_of(study: Study) -> pd.DataFrame:
    """`scores.csv` with `benchmark` as a category in the page's order: `rendered DAVIS, J&F_m`, ..., `real DAVIS, J&F_m`, ..."""
    scores = study.read("scores", SCORES)
    order = [
        (real, name, f"{'real' if real else 'rendered'} {heading.replace(' ', ', ')}")
        for real in (False, True)
        for name, (_, heading) in table.BENCHMARKS.items()
    ]
    titles = {(real, name): title for real, name, title in order}
    named = [titles[key] for key in zip(scores["real"], scores["benchmark"], strict=True)]
    shown = [title for title in titles.values() if title in named]
    return scores.assign(benchmark=pd.Categorical(named, shown, ordered=True))


def final(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows after each task's last step."""
    last = scores.groupby(["variant", "seed", "benchmark"], observed=True)["step"].transform("max")
    return scores[scores["step"] == last]


def verdict(differences: list[float]) -> tuple[str, float, float]:
    """(verdict, low, high): what paired differences (better minus worse, points) say about "better scores higher".

    "holds here" where the whole 95 % t-interval lies above 0, "does not hold here" where it lies below, else "cannot tell at this
    scale"; fewer than three pairs cannot tell either, one has no interval (NaN). It speaks about chance in training: the clips are
    the same for all seeds, so it says nothing about other clips.
    """
    low = high = differences[0] if len(differences) > 1 else float("nan")
    if len(set(differences)) > 1:
        low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    if not differences:
        word = table.NOT_RUN
    elif len(differences) < ENOUGH or low <= 0 <= high:
        word = "cannot tell at this scale"
    else:
        word = "holds here" if low > 0 else "does not hold here"
    return word, low, high


def comparisons(study: Study, scores: pd.DataFrame) -> pd.DataFrame:
    """Every claim on every benchmark, seed by seed: claim, benchmark, difference (mean), low, high (points), seeds, verdict."""
    wide = final(scores).pivot(index=["benchmark", "seed"], columns="variant", values="value")
    rows = []
    for claim, benchmark in product(study.settings.comparisons, scores["benchmark"].cat.categories):
        pairs = wide.loc[benchmark].reindex(columns=[claim.better, claim.worse]).dropna()
        paired = pairs[claim.better] - pairs[claim.worse]
        word, low, high = verdict(paired.tolist())
        measured = {"difference": paired.mean(), "low": low, "high": high, "seeds": len(paired), "verdict": word}
        rows.append({"claim": claim.claim, "benchmark": benchmark, **measured})
    return pd.DataFrame(rows, columns=["claim", "benchmark", "difference", "low", "high", "seeds", "verdict"])


def gains(scores: pd.DataFrame, titles: dict[str, str], baseline: str) -> pd.DataFrame:
    """Every variant minus the baseline, seed by seed: encoder, benchmark, difference (mean), low and high over seeds (points)."""
    wide = (
        final(scores)
        .pivot(index=["benchmark", "seed"], columns="variant", values="value")
        .reindex(columns=list(titles))
    )
    paired = wide.sub(wide[baseline], axis=0).rename(columns=titles).melt(ignore_index=False, var_name="encoder")
    ends = paired.groupby(["encoder", "benchmark"], sort=False, observed=True)["value"]
    return ends.agg(difference="mean", low="min", high="max").reset_index()


def write_page(study: Study) -> None:
    """Write a study's page, its figures and `comparisons.csv` from `scores.csv` and `tasks.csv`."""
    scores = scores_of(study)
    if len(scores):
        titles = {name: variant.title for name, variant in study.settings.variants.items()}
        baseline = study.settings.baseline
        gained = gains(scores, titles, baseline)
        curves = figures.study_curves(scores, titles)
        seeds = figures.score_table(gained, against=titles[baseline], interval="from seed to seed")
        for name, figure in (("curves", curves), ("seeds", seeds)):
            with atomic_path(study.folder / f"{name}.png") as temporary:
                figure.savefig(temporary, format="png", dpi=110)
        write_csv(study.folder / "comparisons.csv", comparisons(study, scores))
    write_text(study.folder / "README.md", page(study, scores))
    print(study.folder / "README.md")


def page(study: Study, scores: pd.DataFrame) -> str:
    """The study as markdown: what was trained, the scores along it, the verdicts where the study makes claims."""
    base, tasks, name = study.base, study.read("tasks", TASKS), study.path.stem
    width, depth, _ = base.pretrain.encoder.shape
    cost = ""
    if len(tasks):
        machines = " and ".join(sorted(set(tasks["machine"])))
        cost = f", {statistics.median(tasks['minutes']):.0f} minutes each (median) on {machines}"
    parts = [
        f"# Study `{name}`",
        f"Written by `tcore study {name}`; {len(tasks)} of {len(study.tasks)} tasks are finished{cost}. A "
        f"trained task is a ViT of width {width} and depth {depth} after {Schedules(base.pretrain).steps} steps of "
        f"{base.pretrain.loop.batch_size} samples (`params/{parameters.find_profile(study.settings.base).name}`); variants differ "
        "only in what their title says, in brackets T-CoRe's own setting. Scores are percent, mean ± standard deviation over "
        "seeds. They are not comparable with the paper's: other data, a smaller encoder, a small part of its training.",
        _score_lines(study, final(scores)),
    ]
    if len(scores):
        curves = scores.pivot_table("value", ["variant", "step"], "benchmark", sort=False, observed=True)
        curves = curves[scores["benchmark"].cat.categories].map(table.text).reset_index().astype(str)
        parts += ["![Scores of every seed after training](seeds.png)", "## Along the training", table.markdown(curves)]
        parts += ["![Scores along the training](curves.png)"]
    if len(scores) and study.settings.comparisons:
        found = comparisons(study, scores)
        cells = [
            f"{table.text(row.difference, row.low, row.high, sign=True)}: {row.verdict.removesuffix(' at this scale')}"
            if row.seeds
            else table.NOT_RUN
            for row in found.itertuples()
        ]
        wide = found.assign(cell=cells).pivot(index="claim", columns="benchmark", values="cell")
        parts += [
            "## Verdicts",
            "Difference in points, 95 % t-interval of the paired differences over seeds, verdict. *holds here*: the whole "
            "interval lies above 0; *does not hold here*: below; *cannot tell* at this scale otherwise, and always with fewer than "
            "3 seeds. All in `comparisons.csv`.",
            table.markdown(wide.loc[found["claim"].unique(), found["benchmark"].unique()].reset_index()),
        ]
    return "\n\n".join(parts) + "\n"


def _score_lines(study: Study, scores: pd.DataFrame) -> str:
    """Markdown: one row per variant, mean ± standard deviation over seeds, "not run" for what is missing."""
    rows = []
    for name, variant in study.settings.variants.items():
        own = scores[scores["variant"] == name]
        row = {"variant": variant.title}
        for benchmark in scores["benchmark"].cat.categories:
            values = own[own["benchmark"] == benchmark]["value"]
            row[benchmark] = table.text(values.mean()) + (f" ± {values.std():.1f}" if len(values) > 1 else "")
        rows.append(row | {"seeds": own["seed"].nunique() or table.NOT_RUN})
    return table.markdown(pd.DataFrame(rows))
