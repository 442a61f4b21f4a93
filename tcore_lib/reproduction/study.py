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
from dataclasses import dataclass
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
STAGES = "00,01,03,04,05"
LEVEL = 0.95
ENOUGH = 3  # seeds; two differences that happen to be equal would make an interval of no width
TASKS = ["variant", "seed", "params", "minutes", "machine", "commit", "finished"]
SCORES = ["variant", "seed", "step", "benchmark", "metric", "value", "low", "high", "clips", "real"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,31}$")]


class Variant(Section):
    """What one variant changes in the base profile."""

    title: str = Field(description="one line for tables and figures")
    pretrain: dict[str, Any] = Field({}, description="changes of the section `pretrain`, nested like it")
    encoder: str = Field(
        "run", description="run = it is trained; random, pixels, a file or a name = it is only evaluated"
    )


class Comparison(Section):
    """A claim: one variant scores higher than another."""

    claim: str
    better: Name
    worse: Name


class Study(Section):
    """A file in `params/studies/`."""

    base: str = Field(description="the profile that is varied: a file in params/, or a path")
    seeds: list[Annotated[Int, Field(ge=0)]] = Field([0, 1, 2], min_length=1)
    points: Positive = Field(
        2, description="equally spaced points of the training that are scored, the last one included"
    )
    variants: dict[Name, Variant] = Field(min_length=1)
    baseline: Name = Field("random", description="the variant figures compare all others with")
    comparisons: list[Comparison] = Field([])
    real: dict[Literal["davis", "jhmdb", "vip"], str] = Field({}, description="benchmark -> folder of real clips")
    real_points: Literal["last", "all"] = Field(
        "last", description="when real clips are scored: after training, or at every point"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must differ from one another")
        named = {"baseline": [self.baseline]} | {
            "comparisons": [n for c in self.comparisons for n in (c.better, c.worse)]
        }
        for key, names in named.items():
            for name in names:
                if name not in self.variants:
                    raise ValueError(f"{key} names {name!r}, which variants does not")
        return self


@dataclass(frozen=True)
class Task:
    """One variant with one seed."""

    variant: str
    seed: int

    @property
    def name(self) -> str:
        """`full-seed0`: the run's name and its folder."""
        return f"{self.variant}-seed{self.seed}"


@dataclass(frozen=True)
class LoadedStudy:
    """A checked study and where it belongs."""

    name: str
    path: Path
    settings: Study
    sections: dict[str, Any]  # of the base profile

    @property
    def base(self) -> Params:
        """The base profile."""
        return parameters.parse(self.sections, self.settings.base)

    @property
    def folder(self) -> Path:
        """`results/studies/<study>`."""
        return parameters.resolve(self.base.run.results) / FOLDER / self.name

    @property
    def tasks(self) -> list[Task]:
        """Seed by seed, so that a study that is stopped early has whole seeds."""
        return [Task(variant, seed) for seed, variant in product(self.settings.seeds, self.settings.variants)]

    @property
    def real_clips(self) -> dict[str, str]:
        """Folders of real clips that are on this machine."""
        folders = {name: parameters.resolve(path) for name, path in self.settings.real.items()}
        return {name: str(path) for name, path in folders.items() if path.is_dir()}

    def sections_of(self, task: Task) -> dict[str, Any]:
        """The base profile as a task changes it. All tasks share the base's data, whatever their seed."""
        base = self.base
        own = {
            "run": {"name": task.name, "seed": task.seed, "results": str(self.folder / "runs")},
            "data": {"root": str(parameters.resolve(base.data.root)), "synthetic": {"seed": base.run.seed}},
            "pretrain": self.settings.variants[task.variant].pretrain,
        }
        return parameters.merged(self.sections, own)

    def points(self, task: Task) -> dict[int, str]:
        """Step -> the encoder that is scored there, as `checkpoint.encoders` names it; step 0 is an untrained one."""
        source = self.settings.variants[task.variant].encoder
        if source != "run":
            return {0: source}
        steps = Schedules(self.checked(task, self.sections_of(task)).pretrain).steps
        if steps % self.settings.points:
            raise InputError(
                f"{self.path}: points = {self.settings.points} does not divide {steps} steps of {task.variant}."
            )
        every = steps // self.settings.points
        return {step: f"run@{step}" for step in range(every, steps + 1, every)}

    def rendered(self, task: Task) -> dict[str, Any]:
        """The sections of a task's training, and of its evaluation on the base profile's clips."""
        points = self.points(task)
        trained = {"enabled": True, "loop": {"milestone_every": min(points)}} if min(points) else {"enabled": False}
        changes = {"pretrain": trained, "checkpoint": {"encoders": _encoders(points)}}
        return parameters.merged(self.sections_of(task), changes)

    def on_real_clips(self, task: Task) -> dict[str, Any]:
        """The sections of a task's evaluation on real clips: the same encoders, from the checkpoints of its training."""
        points = self.points(task)
        scored = points if self.settings.real_points == "all" else {max(points): points[max(points)]}
        trained = self.folder / "runs" / task.name / "checkpoints"
        encoders = {step: str(trained / f"step-{step:08d}.pt") if step else source for step, source in scored.items()}
        # The protocol is the benchmark's own, not that of the base profile's small rendered clips.
        benchmarks = {
            name: {"root": self.real_clips[name]} if name in self.real_clips else {"enabled": False}
            for name in table.BENCHMARKS
        }
        other = {"run": {"name": f"{task.name}-real"}, "pretrain": {"enabled": False}}
        return (
            parameters.merged(self.sections_of(task), other)
            | benchmarks
            | {"checkpoint": {"encoders": _encoders(encoders)}}
        )

    def key(self, task: Task) -> str:
        """What a task's scores depend on besides the code: its parameters, and the real clips that are scored."""
        content = self.checked(task, parameters.merged(self.rendered(task), {"data": {"root": "data"}}))
        digest = content.digest("data", "pretrain", "checkpoint", *table.BENCHMARKS)
        return " ".join([digest[:16], self.settings.real_points, *sorted(self.real_clips)])

    def checked(self, task: Task, sections: dict[str, Any]) -> Params:
        """Sections as parameters; what is wrong names the study and the variant."""
        return parameters.parse(sections, f"{self.path}, variant {task.variant}")


def _encoders(points: dict[int, str]) -> dict[str, str]:
    return {f"step {step}": source for step, source in points.items()}


def load_study(study: str | Path) -> LoadedStudy:
    """Read and check a study, its base profile and every variant.

    Args:
        study: a path, or the name of a file in `params/studies/`.

    Raises:
        InputError: the study, the base or a variant is not possible; the sentence names the file and the key.
    """
    path = Path(study).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        path = parameters.project_root() / "params" / FOLDER / f"{study}.yaml"
    settings = parameters.checked(Study, parameters.read_yaml(path), str(path))
    loaded = LoadedStudy(path.stem, path, settings, parameters.read_profile(settings.base)[0])
    for task in loaded.tasks:
        loaded.key(task)
    return loaded


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
    loaded = load_study(study)
    chosen = only.split(",") if only else list(loaded.settings.variants)
    for name in chosen:
        if name not in loaded.settings.variants:
            raise InputError(f"{loaded.path} has no variant {name!r}; it has {', '.join(loaded.settings.variants)}.")
    for name in sorted(set(loaded.settings.real) - set(loaded.real_clips)):
        print(f"{loaded.settings.real[name]} is not here: real {name} clips are not run.")
    tasks, failed = [task for task in loaded.tasks if task.variant in chosen and not tables], []
    for number, task in enumerate(tasks, 1):
        print(f"task {number} of {len(tasks)}: {task.name}", flush=True)
        try:
            if not is_finished(loaded, task) and run_task(loaded, task) != 0:
                failed.append(task.name)
        except Busy:
            print("another process works on it", flush=True)
    for path in write(loaded):
        print(path)
    if failed:
        print(f"failed: {', '.join(failed)}; the same command tries again.", file=sys.stderr)
    return 1 if failed else 0


def run_task(loaded: LoadedStudy, task: Task) -> int:
    """Train and score one task, on rendered clips and on the real ones that are here; returns the exit code.

    Raises:
        Busy: another process works on it.
    """
    trained = loaded.folder / "runs" / task.name / "01_pretraining.json"
    before = trained.stat().st_mtime_ns if trained.exists() else 0
    code = run_stages(loaded.checked(task, loaded.rendered(task)), only=STAGES)
    if code == 0 and loaded.real_clips:
        anew = trained.exists() and trained.stat().st_mtime_ns != before  # the same file names, other weights
        code = run_stages(loaded.checked(task, loaded.on_real_clips(task)), only="03,04,05", force=anew)
    if code == 0:
        keep(loaded, task)
    return code


# --- what is kept -----------------------------------------------------------------------------------------------------


def read(loaded: LoadedStudy, name: str, columns: list[str]) -> pd.DataFrame:
    """`tasks.csv` or `scores.csv` of a study; without rows where nothing is finished."""
    path = loaded.folder / f"{name}.csv"
    return pd.read_csv(path).reindex(columns=columns) if path.is_file() else pd.DataFrame(columns=columns)


def is_finished(loaded: LoadedStudy, task: Task) -> bool:
    """Whether the task's scores are there and belong to what the study says now."""
    tasks = read(loaded, "tasks", TASKS)
    return (
        (tasks["variant"] == task.variant) & (tasks["seed"] == task.seed) & (tasks["params"] == loaded.key(task))
    ).any()


def keep(loaded: LoadedStudy, task: Task) -> None:
    """Put what a task's runs measured into `scores.csv` and `tasks.csv`, in place of what was there of it."""
    folders = [loaded.folder / "runs" / name for name in (task.name, f"{task.name}-real")]
    found = table.of_runs(folder for folder in folders if folder.is_dir())
    found = found.assign(variant=task.variant, seed=task.seed, step=found["encoder"].str.split().str[1].astype(int))
    records = [record["provenance"] for folder in folders for record in runs.read_results(folder).values()]
    last = max(records, key=lambda origin: str(origin["finished"]))
    row = {"params": loaded.key(task), "minutes": sum(origin["seconds"] for origin in records) / 60}
    row |= {"machine": runs.machine(last), "commit": runs.commit(last, "+"), "finished": last["finished"]}
    with FileLock(loaded.folder / "runs" / ".lock"):  # another terminal may do the same
        for name, columns, rows in (("scores", SCORES, found), ("tasks", TASKS, pd.DataFrame([vars(task) | row]))):
            old = read(loaded, name, columns)
            others = old[(old["variant"] != task.variant) | (old["seed"] != task.seed)]
            write_csv(loaded.folder / f"{name}.csv", pd.concat([part for part in (others, rows[columns]) if len(part)]))


def write_csv(path: Path, content: pd.DataFrame) -> Path:
    """Write a table atomically, floats with four decimals."""
    with atomic_path(path) as temporary:
        content.to_csv(temporary, index=False, float_format="%.4f", lineterminator="\n")
    return path


# --- verdicts and the page --------------------------------------------------------------------------------------------


def labelled(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores with `benchmark` as a category in the order of the page: `rendered DAVIS, J&F_m`, ..., `real DAVIS, J&F_m`, ..."""
    headings = {name: heading.replace(" ", ", ") for name, (_, heading) in table.BENCHMARKS.items()}
    names = scores["real"].map({True: "real ", False: "rendered "}).astype(str) + scores["benchmark"].map(
        headings
    ).astype(str)
    order = [f"{kind} {heading}" for kind in ("rendered", "real") for heading in headings.values()]
    return scores.assign(benchmark=pd.Categorical(names, [name for name in order if name in set(names)], ordered=True))


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
    if not differences:
        return table.NOT_RUN, float("nan"), float("nan")
    if len(differences) == 1:
        return "cannot tell at this scale", float("nan"), float("nan")
    low = high = differences[0]
    if len(set(differences)) > 1:
        low, high = stats.ttest_1samp(differences, 0).confidence_interval(LEVEL)
    if len(differences) < ENOUGH or low <= 0 <= high:
        return "cannot tell at this scale", low, high
    return ("holds here" if low > 0 else "does not hold here"), low, high


def comparisons(loaded: LoadedStudy, scores: pd.DataFrame) -> pd.DataFrame:
    """Every claim on every benchmark, seed by seed: claim, benchmark, difference (mean), low, high (points), seeds, verdict."""
    wide = final(scores).pivot(index=["benchmark", "seed"], columns="variant", values="value")
    rows = []
    for claim, benchmark in product(loaded.settings.comparisons, scores["benchmark"].cat.categories):
        pairs = wide.loc[benchmark].reindex(columns=[claim.better, claim.worse]).dropna()
        paired = pairs[claim.better] - pairs[claim.worse]
        word, low, high = verdict(paired.tolist())
        measured = {"difference": paired.mean(), "low": low, "high": high, "seeds": len(paired), "verdict": word}
        rows.append({"claim": claim.claim, "benchmark": benchmark, **measured})
    return pd.DataFrame(rows, columns=["claim", "benchmark", "difference", "low", "high", "seeds", "verdict"])


def write(loaded: LoadedStudy) -> list[Path]:
    """Write a study's page, its figures and `comparisons.csv` from `scores.csv` and `tasks.csv`; returns the files."""
    folder, scores = loaded.folder, labelled(read(loaded, "scores", SCORES))
    written = []
    if len(scores):
        titles = {name: variant.title for name, variant in loaded.settings.variants.items()}
        panels = {name: name for name in scores["benchmark"].cat.categories}
        drawn = {
            "curves": figures.study_curves(scores, titles, panels),
            "seeds": figures.study_seeds(final(scores), titles, panels, loaded.settings.baseline),
        }
        for name, figure in drawn.items():
            with atomic_path(folder / f"{name}.png") as temporary:
                figure.savefig(temporary, format="png", dpi=110)
            written.append(folder / f"{name}.png")
        written.append(write_csv(folder / "comparisons.csv", comparisons(loaded, scores)))
    write_text(folder / "README.md", page(loaded, scores))
    return [*written, folder / "README.md"]


def page(loaded: LoadedStudy, scores: pd.DataFrame) -> str:
    """The study as markdown: what was trained, the scores along it, the verdicts where the study makes claims."""
    base, tasks = loaded.base, read(loaded, "tasks", TASKS)
    width, depth, _ = base.pretrain.encoder.shape
    minutes = f", {statistics.median(tasks['minutes']):.0f} minutes each (median)" if len(tasks) else ""
    machines = f" on {' and '.join(sorted(set(tasks['machine'])))}" if len(tasks) else ""
    parts = [
        f"# Study `{loaded.name}`",
        f"Written by `tcore study {loaded.name}`; {len(tasks)} of {len(loaded.tasks)} tasks are finished{minutes}{machines}. A "
        f"trained task is a ViT of width {width} and depth {depth} after {Schedules(base.pretrain).steps} steps of "
        f"{base.pretrain.loop.batch_size} samples (`params/{parameters.find_profile(loaded.settings.base).name}`); variants differ "
        "only in what their title says, in brackets T-CoRe's own setting. Scores are percent, mean ± standard deviation over "
        "seeds. They are not comparable with the paper's: other data, a smaller encoder, a small part of its training.",
        score_lines(loaded, final(scores)),
    ]
    if len(scores):
        parts += ["![Scores of every seed after training](seeds.png)", "## Along the training", curve_lines(scores)]
        parts += ["![Scores along the training](curves.png)"]
    if len(scores) and loaded.settings.comparisons:
        rule = (
            "Difference in points, 95 % t-interval of the paired differences over seeds, verdict. *holds here*: the whole "
            "interval lies above 0; *does not hold here*: below; *cannot tell* at this scale otherwise, and always with fewer than "
            "3 seeds. All in `comparisons.csv`."
        )
        parts += ["## Verdicts", rule, verdict_lines(comparisons(loaded, scores))]
    return "\n\n".join(parts) + "\n"


def score_lines(loaded: LoadedStudy, scores: pd.DataFrame) -> str:
    """Markdown: one row per variant, mean ± standard deviation over seeds, "not run" for what is missing."""
    rows = []
    for name, variant in loaded.settings.variants.items():
        own = scores[scores["variant"] == name]
        cells = {
            panel: f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if len(values) > 1 else "")
            if len(values)
            else table.NOT_RUN
            for panel in scores["benchmark"].cat.categories
            for values in [own[own["benchmark"] == panel]["value"]]
        }
        rows.append({"variant": variant.title, **cells, "seeds": own["seed"].nunique() or table.NOT_RUN})
    return table.markdown(pd.DataFrame(rows))


def curve_lines(scores: pd.DataFrame) -> str:
    """Markdown: one row per variant and scored step, mean over seeds."""
    wide = scores.pivot_table(index=["variant", "step"], columns="benchmark", values="value", sort=False, observed=True)
    wide = wide.reindex(columns=scores["benchmark"].cat.categories)
    return table.markdown(wide.map(table.text).reset_index().astype(str))


def verdict_lines(found: pd.DataFrame) -> str:
    """Markdown: one row per claim, one column per benchmark."""
    cells = [
        table.text(row.difference, row.low, row.high, sign=True) + f": {row.verdict.removesuffix(' at this scale')}"
        if row.seeds
        else table.NOT_RUN
        for row in found.itertuples()
    ]
    wide = found.assign(cell=cells).pivot(index="claim", columns="benchmark", values="cell")
    return table.markdown(wide.loc[found["claim"].unique(), found["benchmark"].unique()].reset_index())
