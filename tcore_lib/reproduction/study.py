"""A study: one profile, named variants of it, several seeds. Who beats whom, measured.

A task is one variant with one seed: `reproduce` with changes, for the stages that prepare, train and evaluate, and once more on
the clips of another profile where the study names one. `results/studies/<study>/` holds the page `README.md`, the scores behind
it (`scores.csv`, rows of `table.of_runs` with their variant and seed) and `runs/`, which git does not keep.
"""

import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field
from scipy import stats

from tcore_lib import params as parameters, runs
from tcore_lib.files import write_text
from tcore_lib.params import Count, Params, Section, setting
from tcore_lib.reproduction import table
from tcore_lib.reproduction.reproduce import Busy, run_stages
from tcore_lib.training.schedules import Schedules

FOLDER = "studies"  # below params/ and below results/
STAGES = ("00,01,03,04,05", "03,04,05")  # notebooks of a task's first and second run
ENOUGH = 3  # seeds; two differences that happen to be equal would make an interval of no width
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
    """A whole file. Profiles are files in `params/`, or paths relative to the study's file."""

    base: str  # the profile that is varied
    also: str | None = setting(None, "a profile on whose clips the same encoders are scored, where they are at hand")
    seeds: list[Count] = Field([0, 1, 2], min_length=1)
    variants: dict[Name, Variant] = Field(min_length=1)
    comparisons: tuple[Comparison, ...] = ()

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
        tasks: (variant, seed) -> the parameters of its runs, one or two. Seed by seed, so that a study that is stopped early
            has whole seeds. All have the base's videos and clips, whatever their seed.
    """

    def __init__(self, study: str | Path) -> None:
        self.path = Path(study).expanduser()
        if self.path.suffix not in (".yaml", ".yml"):
            self.path = parameters.project_root() / "params" / FOLDER / f"{study}.yaml"
        self.settings = parameters.checked(Settings, parameters.read_yaml(self.path), str(self.path))
        self.sections, self.base = self._profile(self.settings.base)
        self.folder = parameters.resolve(self.base.run.results) / FOLDER / self.path.stem
        grid = itertools.product(self.settings.seeds, self.settings.variants)
        self.tasks = {(variant, seed): self._runs(variant, seed) for seed, variant in grid}

    def _profile(self, name: str) -> tuple[dict[str, Any], Params]:
        sections, origin = parameters.read_profile(self.path.parent / name if name.endswith(".yaml") else name)
        return sections, parameters.parse(sections, origin)

    def _runs(self, variant: str, seed: int) -> list[Params]:
        origin, settings = f"{self.path}, variant {variant}", self.settings.variants[variant]
        name, trained = f"{variant}-seed{seed}", settings.encoder == "run"
        encoder = parameters.placed(settings.encoder, self.path.parent, "checkpoint.encoders.it")
        changes = {
            "run": {"name": name, "seed": seed, "results": f"{self.folder}/runs"},
            "data": {"synthetic": {"seed": self.base.run.seed}},
            "pretrain": parameters.merged(settings.pretrain, {"enabled": trained}),
            "checkpoint": {"encoders": {"it": encoder}},
        }
        own = parameters.merged(self.sections, changes)
        first = parameters.parse(own, origin)
        if self.settings.also is None:
            return [first]
        other, clips = self._profile(self.settings.also)
        roots = [getattr(clips, name).root for name in runs.BENCHMARKS if getattr(clips, name).enabled]
        if not all(parameters.resolve(root).is_dir() for root in roots):
            return [first]
        if trained:
            encoder = f"{runs.run_folder(first)}/checkpoints/step-{Schedules(first.pretrain).steps:08d}.pt"
        # The title belongs to what makes a stage: other weights in a file of the same name are scored anew.
        run = {**own["run"], "name": f"{name}-also", "title": first.digest("data", "pretrain")}
        changes = {
            "run": run,
            "pretrain": {**own["pretrain"], "enabled": False},
            "checkpoint": {"encoders": {"it": encoder}},
        }
        return [first, parameters.parse({**other, **changes}, origin)]

    def scores(self) -> pd.DataFrame:
        """Rows of `table.of_runs`, with `variant` and `seed`, of the runs whose results belong to what the study says now."""
        found = [table.of_runs([]).assign(variant="", seed=0)]
        for (variant, seed), several in self.tasks.items():
            for params in several:
                folder = runs.run_folder(params)
                made_with = {record["provenance"]["params_sha256"] for record in runs.read_results(folder).values()}
                if made_with == {params.digest()}:
                    found.append(table.of_runs([folder]).assign(variant=variant, seed=seed))
        return pd.concat(found[1:] or found)


# --- running ----------------------------------------------------------------------------------------------------------


def run_study(study: str | Path) -> int:
    """Train and score variants of a profile over several seeds, and compare them.

    Finished tasks are kept, stopped ones continue. The same command in a second terminal takes the next free task.

    Args:
        study: a file, or the name of one in params/studies/.

    Returns:
        The exit code: 0, or 1 where a task failed; the others are finished nevertheless.
    """
    loaded = Study(study)
    failed = []
    for number, ((variant, seed), several) in enumerate(loaded.tasks.items(), 1):
        print(f"task {number} of {len(loaded.tasks)}: {variant}, seed {seed}", flush=True)
        try:
            if any(run_stages(params, only=only) for params, only in zip(several, STAGES, strict=False)):
                failed.append(f"{variant}, seed {seed}")
        except Busy:
            print("another process works on it", flush=True)
    write_page(loaded)
    if failed:
        print(f"failed: {'; '.join(failed)}; the same command tries again.", file=sys.stderr)
    return 1 if failed else 0


# --- verdicts and the page --------------------------------------------------------------------------------------------


VERDICTS = (
    "Difference in points, 95 % t-interval of the paired differences over seeds, verdict. *yes*: the whole interval lies above 0; "
    "*no*: below; *cannot tell* at this scale otherwise, and always with fewer than 3 seeds. *one point*: how many seeds would "
    "make the interval at most one point to either side."
)


def verdict(differences: pd.Series) -> str:
    """What paired differences (better minus worse, points, a row per seed) say: mean, 95 % t-interval, verdict, seeds needed.

    It speaks about chance in training: the clips are the same for all seeds, so it says nothing about other clips.
    """

    def half_width(seeds: int) -> float:
        return float(stats.t.ppf(0.975, seeds - 1) * differences.std() / math.sqrt(seeds))

    mean, seeds = differences.mean(), len(differences)
    if seeds < ENOUGH:
        return f"{table.text(mean, sign=True)}: cannot tell" if seeds else table.NOT_RUN
    low, high = mean - half_width(seeds), mean + half_width(seeds)
    needed = next(number for number in itertools.count(ENOUGH) if half_width(number) <= 1)
    return f"{table.text(mean, low, high, sign=True)}: {table.verdict(low, high)} (one point: {needed} seeds)"


def write_page(study: Study) -> None:
    """Write a study's page: what was trained, its scores, and the verdicts on its claims; and the scores behind it."""
    base, name, variants, scores = study.base, study.path.stem, study.settings.variants, study.scores()
    write_text(study.folder / "scores.csv", scores.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
    kinds = scores["real"].map({True: "real ", False: "rendered "}) + scores["benchmark"].map(table.HEADINGS)
    wide = scores.assign(benchmark=kinds).pivot(index=["benchmark", "seed"], columns="variant", values="value")
    wide = wide.reindex(columns=list(variants))
    rows: list[dict[str, str]] = []
    for variant, settings in variants.items():
        values = {heading: wide[variant][heading].dropna() for heading in kinds.unique()}
        spread = [table.text(of.mean()) + (f" ± {of.std():.1f}" if len(of) > 1 else "") for of in values.values()]
        seeds = scores.loc[scores["variant"] == variant, "seed"].nunique()
        rows.append({"variant": settings.title, **dict(zip(values, spread, strict=True)), "seeds": str(seeds)})
    claims: list[dict[str, str]] = []
    for claim in study.settings.comparisons:
        paired = wide[claim.better] - wide[claim.worse]  # seed by seed
        claims.append(
            {"claim": claim.claim, **{heading: verdict(paired[heading].dropna()) for heading in kinds.unique()}}
        )
    width, depth, _ = base.pretrain.encoder.shape
    parts = [
        f"# Study `{name}`",
        f"Written by `tcore study {name}`. A trained variant is a ViT of width {width} and depth {depth} after "
        f"{Schedules(base.pretrain).steps} steps of {base.pretrain.loop.batch_size} samples (`{study.settings.base}`); variants "
        "differ only in what their title says, in brackets T-CoRe's own setting. Scores are percent, mean ± standard deviation "
        "over seeds. They are not comparable with the paper's: other data, a smaller encoder, a small part of its training.",
        table.markdown(pd.DataFrame(rows)),
        *(["## Verdicts", VERDICTS, table.markdown(pd.DataFrame(claims))] if claims else []),
    ]
    write_text(study.folder / "README.md", "\n\n".join(parts) + "\n")
    print(study.folder / "README.md")
