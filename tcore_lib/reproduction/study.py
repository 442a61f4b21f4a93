"""A study: one profile, named variants of it, several seeds, scored along the training. Who beats whom, measured.

A task is one variant with one seed: `reproduce` with changes, for the stages that prepare, train and evaluate, and once more
on real clips where these are at hand. `results/studies/<study>/` holds `scores.csv` (one row per score, `COLUMNS`), the page
`README.md` with `curves.png`, computed from that table alone, and `runs/`, which git does not keep.
"""

import math
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
# `params` is a digest of what a score depends on besides the code, `minutes` are the whole task's.
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
    comparisons: tuple[Comparison, ...] = ()
    real: dict[Literal["davis", "jhmdb", "vip"], str] = setting({}, "benchmark -> folder of real clips")

    def rules(self) -> Iterator[tuple[bool, str]]:  # noqa: D102
        yield len(set(self.seeds)) == len(self.seeds), "seeds must differ from one another"
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
        base, here = self.settings.base, self.path.parent
        sections, origin = parameters.read_profile(here / base if base.endswith(".yaml") else base)
        self.base = parameters.parse(sections, origin)
        self.folder = parameters.resolve(self.base.run.results) / FOLDER / self.path.stem
        roots = {str(name): parameters.placed(root, here, f"{name}.root") for name, root in self.settings.real.items()}
        self.real = {name: root for name, root in roots.items() if parameters.resolve(root).is_dir()}
        grid = product(self.settings.seeds, self.settings.variants)
        self.tasks = {(variant, seed): self._runs(sections, variant, seed) for seed, variant in grid}

    def _runs(self, sections: dict[str, Any], variant: str, seed: int) -> list[Params]:
        """All tasks share the base's data, whatever their seed. On real clips the protocol is the benchmark's own."""
        origin, settings = f"{self.path}, variant {variant}", self.settings.variants[variant]
        name, folder, trained = f"{variant}-seed{seed}", self.folder / "runs", settings.encoder == "run"
        own = parameters.merged(sections, {
            "run": {"name": name, "seed": seed, "results": str(folder)},
            "data": {"synthetic": {"seed": self.base.run.seed}},
            "pretrain": parameters.merged(settings.pretrain, {"enabled": trained}),
        })  # fmt: skip
        encoders = files = {"step 0": parameters.placed(settings.encoder, self.path.parent, "checkpoint.encoders.it")}
        if trained:
            steps = Schedules(parameters.parse(own, origin).pretrain).steps
            every, rest = divmod(steps, self.settings.points)
            if rest:
                raise InputError(f"{origin}: points = {self.settings.points} does not divide {steps} steps.")
            own = parameters.merged(own, {"pretrain": {"loop": {"milestone_every": every}}})
            scored = range(every, steps + 1, every)
            encoders = {f"step {step}": f"run@{step}" for step in scored}
            files = {f"step {step}": f"{folder}/{name}/checkpoints/step-{step:08d}.pt" for step in scored}
        training = parameters.parse({**own, "checkpoint": {"encoders": encoders}}, origin)
        if not self.real:
            return [training]
        on_real: dict[str, Any] = {benchmark: {"enabled": False} for benchmark in table.BENCHMARKS}
        on_real |= {benchmark: {"root": root} for benchmark, root in self.real.items()}
        # The title belongs to what makes a stage: other weights under the same names are scored anew.
        run = {**own["run"], "name": f"{name}-real", "title": training.digest("data", "pretrain")}
        pretrain = {**own["pretrain"], "enabled": False}
        changes = {"run": run, "pretrain": pretrain, "checkpoint": {"encoders": files}, **on_real}
        return [training, parameters.parse({**own, **changes}, origin)]

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


VERDICTS = (
    "Difference in points, 95 % t-interval of the paired differences over seeds, verdict. *holds here*: the whole interval "
    "lies above 0; *does not hold here*: below; *cannot tell* at this scale otherwise, and always with fewer than 3 seeds. *one "
    "point*: how many seeds would make the interval at most one point to either side."
)


def verdict(differences: pd.Series) -> str:
    """What paired differences (better minus worse, points, a row per seed) say: mean, 95 % t-interval, verdict, seeds needed.

    It speaks about chance in training: the clips are the same for all seeds, so it says nothing about other clips.
    """
    if not len(differences):
        return table.NOT_RUN
    low = high = differences.iloc[0] if len(differences) > 1 else math.nan
    if differences.nunique() > 1:
        low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    if len(differences) < ENOUGH or low <= 0 <= high:
        word = "cannot tell"
    else:
        word = "holds here" if low > 0 else "does not hold here"
    more = f" (one point: {seeds_for_one_point(differences)} seeds)" if len(differences) >= ENOUGH else ""
    return f"{table.text(differences.mean(), low, high, sign=True)}: {word}{more}"


def seeds_for_one_point(differences: pd.Series) -> int:
    """The fewest seeds whose 95 % t-interval is at most one point to either side, were they to vary as these do."""
    half = (stats.t.ppf(0.975, n - 1) * differences.std() / math.sqrt(n) for n in range(ENOUGH, 10_000))
    return ENOUGH + next(extra for extra, width in enumerate(half) if width <= 1)


def write_page(study: Study) -> None:
    """Write a study's page, and its figure, from `scores.csv`."""
    scores = titled(study.scores())
    if len(scores):
        along = scores.pivot_table("value", "step", ["variant", "benchmark"], sort=False)
        along = {
            settings.title: along[name].dropna(how="all")
            for name, settings in study.settings.variants.items()
            if name in along
        }
        names = list(scores["benchmark"].unique())
        drawn = figures.curves(along, names, title="scores along the training, %, mean over seeds")
        with atomic_path(study.folder / "curves.png") as temporary:
            drawn.savefig(temporary, format="png", dpi=110)
    write_text(study.folder / "README.md", page(study, scores))
    print(study.folder / "README.md")


def titled(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores with benchmarks as a page calls them, `rendered DAVIS, J&F_m`, rendered ones first, in the paper's order."""
    order = {name: place for place, name in enumerate(table.BENCHMARKS)}
    scores = scores.sort_values(["real", "benchmark"], key=lambda column: column.replace(order), kind="stable")
    heading = scores["benchmark"].map(
        {name: heading.replace(" ", ", ") for name, (_, heading) in table.BENCHMARKS.items()}
    )
    return scores.assign(benchmark=scores["real"].map({True: "real ", False: "rendered "}) + heading)


def page(study: Study, scores: pd.DataFrame) -> str:
    """The study as markdown: what was trained, the scores along it (as `titled` gives them), the verdicts on its claims."""
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
        last = scores[scores["step"] == scores.groupby(["variant", "seed"])["step"].transform("max")]
        wide = last.pivot(index=["benchmark", "seed"], columns="variant", values="value")
        wide = wide.reindex(columns=list(study.settings.variants))
        names = scores["benchmark"].unique()
        means = wide.groupby("benchmark").agg(_mean_and_std).T[names].rename_axis("variant")
        means["seeds"] = wide.groupby("benchmark").count().max().replace(0, table.NOT_RUN)
        means.index = [study.settings.variants[variant].title for variant in means.index]
        curves = scores.pivot_table("value", ["variant", "step"], "benchmark", sort=False)[names].map(table.text)
        parts += [
            table.markdown(means.rename_axis("variant").reset_index()),
            "## Along the training",
            table.markdown(curves.reset_index().astype(str)),
            "![Scores along the training](curves.png)",
        ]
        claims = []
        for claim in study.settings.comparisons:
            paired = wide[claim.better] - wide[claim.worse]  # seed by seed
            claims.append({"claim": claim.claim, **{name: verdict(paired[name].dropna()) for name in names}})
        if claims:
            parts += ["## Verdicts", VERDICTS, table.markdown(pd.DataFrame(claims))]
    return "\n\n".join(parts) + "\n"


def _mean_and_std(values: pd.Series) -> str:
    return table.text(values.mean()) + (f" ± {values.std():.1f}" if values.count() > 1 else "")
