"""A study: one profile, named variants of it, several seeds, scored along the training. Who beats whom, measured.

    tcore study small_scale                         all tasks that are not finished, then the page
    tcore study small_scale --only full,random      the same, for two of its variants

A task is one variant with one seed: `reproduce` with changes, for the stages that prepare, train and evaluate, and once more on
real clips where these are at hand. In `results/studies/<study>/`:

    scores.csv   the scores of finished tasks, with what they belong to and what they cost (`COLUMNS`)
    README.md    the page, with `curves.png` and `seeds.png`: computed from that table
    runs/        the runs themselves; not kept in git
"""

import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from filelock import FileLock
from pydantic import Field
from scipy import stats

from tcore_lib import figures, params as parameters, runs
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, write_text
from tcore_lib.params import Count, Params, Positive, Section, setting
from tcore_lib.reproduction import table
from tcore_lib.reproduction.reproduce import Busy, run_stages
from tcore_lib.training.schedules import Schedules

FOLDER = "studies"  # below params/ and below results/
ENOUGH = 3  # seeds; two differences that happen to be equal would make an interval of no width
# One row per score: `params` is a digest of what it depends on besides the code, `minutes` are the whole task's.
COLUMNS = ["variant", "seed", "step", "benchmark", "metric", "value", "low", "high", "clips", "real",
           "params", "minutes", "machine", "commit"]  # fmt: skip
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,31}$")]


# --- the file in params/studies/ --------------------------------------------------------------------------------------


class Variant(Section):
    """What one variant changes in the base profile."""

    title: str  # one line for tables and figures
    pretrain: dict[str, Any] = setting({}, "changes of the section `pretrain`, nested like it")
    encoder: str = setting("run", "run = it is trained; random, pixels, a file or a name = only evaluated")


class Comparison(Section):
    """A claim: one variant scores higher than another."""

    claim: str
    better: Name
    worse: Name


class Settings(Section):
    """A whole file."""

    base: str  # the profile that is varied: a file in params/, or a path
    seeds: list[Count] = Field([0, 1, 2], min_length=1)
    points: Positive = setting(2, "equally spaced points of the training that are scored, with the last one")
    variants: dict[Name, Variant] = Field(min_length=1)
    baseline: Name = setting("random", "the variant figures compare all others with")
    comparisons: tuple[Comparison, ...] = ()
    real: dict[Literal["davis", "jhmdb", "vip"], str] = setting({}, "benchmark -> folder of real clips")

    def rules(self) -> Iterator[tuple[bool, str]]:  # noqa: D102
        yield len(set(self.seeds)) == len(self.seeds), "seeds must differ from one another"
        yield self.baseline in self.variants, f"baseline names {self.baseline!r}, which variants does not"
        for name in (name for claim in self.comparisons for name in (claim.better, claim.worse)):
            yield name in self.variants, f"comparisons names {name!r}, which variants does not"


class Study:
    """A study that has been read and checked: a path, or the name of a file in `params/studies/`.

    Attributes:
        settings: what the file says.
        base: the base profile.
        folder: `results/studies/<study>`.
        real: folders of the real clips that are on this machine, by benchmark.
        tasks: (variant, seed) -> the parameters of its runs: the training, scored on the base profile's clips; and where there
            are real clips, the evaluation on these. Seed by seed, so that a study that is stopped early has whole seeds.
    """

    def __init__(self, study: str | Path) -> None:
        self.path = Path(study).expanduser()
        if self.path.suffix not in (".yaml", ".yml"):
            self.path = parameters.project_root() / "params" / FOLDER / f"{study}.yaml"
        self.settings = parameters.checked(Settings, parameters.read_yaml(self.path), str(self.path))
        base = self.settings.base
        sections, origin = parameters.read_profile(self.path.parent / base if base.endswith(".yaml") else base)
        self.base = parameters.parse(sections, origin)
        self.folder = parameters.resolve(self.base.run.results) / FOLDER / self.path.stem
        here = self.path.parent
        roots = {str(name): parameters.placed(root, here, f"{name}.root") for name, root in self.settings.real.items()}
        self.real = {name: root for name, root in roots.items() if parameters.resolve(root).is_dir()}
        grid = product(self.settings.seeds, self.settings.variants)
        self.tasks = {(variant, seed): self._runs(sections, variant, seed) for seed, variant in grid}

    def _runs(self, sections: dict[str, Any], variant: str, seed: int) -> list[Params]:
        """All tasks share the base's data, whatever their seed. On real clips the protocol is the benchmark's own."""
        origin, settings = f"{self.path}, variant {variant}", self.settings.variants[variant]
        name, folder, trained = f"{variant}-seed{seed}", self.folder / "runs", settings.encoder == "run"
        run = {"name": name, "seed": seed, "results": str(folder)}
        data = {"synthetic": {"seed": self.base.run.seed}}
        own = parameters.merged(sections, {"run": run, "data": data, "pretrain": settings.pretrain})
        own = parameters.merged(own, {"pretrain": {"enabled": trained}})
        encoders = files = {"step 0": parameters.placed(settings.encoder, self.path.parent, "checkpoint.encoders.it")}
        if trained:
            steps = Schedules(parameters.parse(own, origin).pretrain).steps
            every = steps // self.settings.points
            if every * self.settings.points != steps:
                points = f"points = {self.settings.points}"
                raise InputError(f"{self.path}: {points} does not divide {steps} steps of {variant}.")
            own = parameters.merged(own, {"pretrain": {"loop": {"milestone_every": every}}})
            scored = range(every, steps + 1, every)
            encoders = {f"step {step}": f"run@{step}" for step in scored}
            files = {f"step {step}": f"{folder}/{name}/checkpoints/step-{step:08d}.pt" for step in scored}
        training = parameters.parse({**own, "checkpoint": {"encoders": encoders}}, origin)
        if not self.real:
            return [training]
        # The title belongs to what makes a stage: other weights under the same names are scored anew.
        run |= {"name": f"{name}-real", "title": training.digest("data", "pretrain")}
        on_real = parameters.merged(own, {"run": run, "pretrain": {"enabled": False}})
        on_real["checkpoint"] = {"encoders": files}
        for benchmark in table.BENCHMARKS:
            root = self.real.get(benchmark)
            on_real[benchmark] = {"enabled": True, "root": root} if root else {"enabled": False}
        return [training, parameters.parse(on_real, origin)]

    def key(self, variant: str, seed: int) -> str:
        """What a task's scores depend on besides the code: its parameters, and the real clips that are scored."""
        digest = self.tasks[variant, seed][0].digest("data", "pretrain", "checkpoint", *table.BENCHMARKS)
        return " ".join([digest[:16], *sorted(self.real)])

    def scores(self) -> pd.DataFrame:
        """`scores.csv`; without rows where nothing is finished."""
        path = self.folder / "scores.csv"
        return pd.read_csv(path)[COLUMNS] if path.is_file() else pd.DataFrame(columns=COLUMNS)

    def is_finished(self, variant: str, seed: int) -> bool:
        """Whether the task's scores are there and belong to what the study says now."""
        scores = self.scores()
        return bool((_of(scores, variant, seed) & (scores["params"] == self.key(variant, seed))).any())


def _of(scores: pd.DataFrame, variant: str, seed: int) -> pd.Series:
    return (scores["variant"] == variant) & (scores["seed"] == seed)


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
    """Train and score one task; returns the exit code."""
    for params, only in zip(study.tasks[variant, seed], ("00,01,03,04,05", "03,04,05"), strict=False):
        if code := run_stages(params, only=only):
            return code
    keep(study, variant, seed)
    return 0


def keep(study: Study, variant: str, seed: int) -> None:
    """Put what a task's runs measured into `scores.csv`, in place of what was there of it."""
    folders = [runs.run_folder(params) for params in study.tasks[variant, seed]]
    origins = [record["provenance"] for folder in folders for record in runs.read_results(folder).values()]
    found = table.of_runs(folders).assign(
        variant=variant, seed=seed, params=study.key(variant, seed),
        minutes=sum(origin["seconds"] for origin in origins) / 60,
        machine=runs.machine(origins[-1]), commit=runs.commit(origins[-1], "+"),
    )  # fmt: skip
    found["step"] = found["encoder"].str.split().str[1].astype(int)
    with FileLock(study.folder / "runs" / ".lock"):  # another terminal may do the same
        others = study.scores()[lambda scores: ~_of(scores, variant, seed)]
        scores = pd.concat([others, found[COLUMNS]]) if len(others) else found[COLUMNS]
        with atomic_path(study.folder / "scores.csv") as temporary:
            scores.to_csv(temporary, index=False, float_format="%.4f", lineterminator="\n")


# --- verdicts and the page --------------------------------------------------------------------------------------------


def titled(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores with `benchmark` as a category in the page's order: `rendered DAVIS, J&F_m`, ..., `real DAVIS, J&F_m`, ..."""
    titles = {
        (real, name): f"{'real' if real else 'rendered'} {heading.replace(' ', ', ')}"
        for real in (False, True)
        for name, (_, heading) in table.BENCHMARKS.items()
    }
    named = [titles[key] for key in zip(scores["real"], scores["benchmark"], strict=True)]
    shown = [title for title in titles.values() if title in named]
    return scores.assign(benchmark=pd.Categorical(named, shown, ordered=True))


def final(scores: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Scores after a task's last step: one row per benchmark and seed, a column per variant."""
    last = scores.groupby(["variant", "seed", "benchmark"], observed=True)["step"].transform("max")
    wide = scores[scores["step"] == last].pivot(index=["benchmark", "seed"], columns="variant", values="value")
    return wide.reindex(columns=list(study.settings.variants))


def verdict(differences: list[float]) -> tuple[str, float, float]:
    """(verdict, low, high): what paired differences (better minus worse, points) say, by their 95 % t-interval.

    It speaks about chance in training: the clips are the same for all seeds, so it says nothing about other clips.
    """
    low = high = differences[0] if len(differences) > 1 else float("nan")
    if len(set(differences)) > 1:
        low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    if not differences:
        word = table.NOT_RUN
    elif len(differences) < ENOUGH or low <= 0 <= high:
        word = "cannot tell"
    else:
        word = "holds here" if low > 0 else "does not hold here"
    return word, low, high


def comparisons(study: Study, last: pd.DataFrame) -> pd.DataFrame:
    """Every claim on every benchmark: claim, benchmark, seeds, and as text the mean difference, its interval and the verdict."""
    rows = []
    for claim, (benchmark, wide) in product(study.settings.comparisons, last.groupby("benchmark", observed=True)):
        paired = (wide[claim.better] - wide[claim.worse]).dropna()  # seed by seed
        word, low, high = verdict(paired.tolist())
        measured = f"{table.text(paired.mean(), low, high, sign=True)}: {word}" if len(paired) else word
        rows.append({"claim": claim.claim, "benchmark": benchmark, "seeds": len(paired), "verdict": measured})
    return pd.DataFrame(rows, columns=["claim", "benchmark", "seeds", "verdict"])


def _mean_and_std(values: pd.Series) -> str:
    return table.text(values.mean()) + (f" ± {values.std():.1f}" if values.count() > 1 else "")


def write_page(study: Study) -> None:
    """Write a study's page, and its figures, from `scores.csv`."""
    scores = titled(study.scores())
    if len(scores):
        titles = {name: variant.title for name, variant in study.settings.variants.items()}
        baseline = study.settings.baseline
        last = final(scores, study)
        gained = last.sub(last[baseline], axis=0).rename(columns=titles).melt(ignore_index=False, var_name="encoder")
        gained = gained.groupby(["encoder", "benchmark"], sort=False, observed=True)["value"]
        gained = gained.agg(difference="mean", low="min", high="max").reset_index()
        along = scores.pivot_table("value", "step", ["variant", "benchmark"], sort=False, observed=True)
        along = {titles[name]: along[name].dropna(how="all") for name in titles if name in along}
        benchmarks = list(scores["benchmark"].cat.categories)
        curves = figures.curves(along, benchmarks, title="scores along the training, %, mean over seeds")
        seeds = figures.score_table(gained, against=titles[baseline], interval="from seed to seed")
        for name, figure in (("curves", curves), ("seeds", seeds)):
            with atomic_path(study.folder / f"{name}.png") as temporary:
                figure.savefig(temporary, format="png", dpi=110)
    write_text(study.folder / "README.md", page(study, scores))
    print(study.folder / "README.md")


def page(study: Study, scores: pd.DataFrame) -> str:
    """The study as markdown: what was trained, the scores along it, the verdicts where the study makes claims."""
    base, name = study.base, study.path.stem
    width, depth, _ = base.pretrain.encoder.shape
    tasks = scores.drop_duplicates(["variant", "seed"])
    machines, minutes = " and ".join(sorted(set(tasks["machine"]))), tasks["minutes"].median()
    cost = f", {minutes:.0f} minutes each (median) on {machines}" if len(tasks) else ""
    parts = [
        f"# Study `{name}`",
        f"Written by `tcore study {name}`; {len(tasks)} of {len(study.tasks)} tasks are finished{cost}. A "
        f"trained task is a ViT of width {width} and depth {depth} after {Schedules(base.pretrain).steps} steps of "
        f"{base.pretrain.loop.batch_size} samples (`params/{Path(study.settings.base).stem}.yaml`); variants differ "
        "only in what their title says, in brackets T-CoRe's own setting. Scores are percent, mean ± standard deviation over "
        "seeds. They are not comparable with the paper's: other data, a smaller encoder, a small part of its training.",
    ]
    if len(scores):
        titles = {name: variant.title for name, variant in study.settings.variants.items()}
        last = final(scores, study)
        by_benchmark = last.groupby("benchmark", observed=True)
        means = by_benchmark.agg(_mean_and_std).T.rename_axis("variant")
        means["seeds"] = by_benchmark.count().max().replace(0, table.NOT_RUN)
        curves = scores.pivot_table("value", ["variant", "step"], "benchmark", sort=False, observed=True)
        curves = curves[scores["benchmark"].cat.categories].map(table.text).reset_index().astype(str)
        parts += [
            table.markdown(means.rename(index=titles).reset_index()),
            f"![Scores after training, minus those of {titles[study.settings.baseline]}](seeds.png)",
            "## Along the training",
            table.markdown(curves),
            "![Scores along the training](curves.png)",
        ]
    if len(scores) and study.settings.comparisons:
        found = comparisons(study, last)
        wide = found.pivot(index="claim", columns="benchmark", values="verdict")
        parts += [
            "## Verdicts",
            "Difference in points, 95 % t-interval of the paired differences over seeds, verdict. *holds here*: the whole "
            "interval lies above 0; *does not hold here*: below; *cannot tell* at this scale otherwise, and always with fewer than "
            "3 seeds.",
            table.markdown(wide.loc[found["claim"].unique(), found["benchmark"].unique()].reset_index()),
        ]
    return "\n\n".join(parts) + "\n"
