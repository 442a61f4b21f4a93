"""A study: one base profile, named variants of it, several seeds, scored along the training. Who beats whom, measured.

python -m tcore_lib study small_scale            all tasks that are not finished, then the tables
python -m tcore_lib study small_scale --workers 2 --only full,random

A task is one variant with one seed: its training (resumable, METHOD) and its evaluations (resumable, EVALUATION), in a
process of its own. All tasks share the prepared data. A task's score file is written last and atomically; only that counts
as finished.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pandas as pd
import torch
from pydantic import Field, model_validator
from tqdm import tqdm

from tcore_lib import params as parameters, runs
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.videos import index_path, prepare
from tcore_lib.errors import InputError
from tcore_lib.evaluation.benchmarks import load_clips
from tcore_lib.evaluation.evaluate import evaluate
from tcore_lib.evaluation.scores import HEADLINE, summarise
from tcore_lib.files import read_json, write_json
from tcore_lib.machine.orphans import asked, follow_parent
from tcore_lib.model.encoders import FeatureEncoder, load_encoder
from tcore_lib.params import Benchmark, Int, Params, Positive, Section
from tcore_lib.reproduction import profile as profiles
from tcore_lib.training import checkpoints
from tcore_lib.training.loop import pretrain
from tcore_lib.training.schedules import Schedules

FOLDER = "studies"  # below params/
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,31}$")]


class Variant(Section):
    """What one variant changes in the base profile."""

    title: str = Field(description="one line for tables and figures")
    pretrain: dict[str, Any] = Field({}, description="changes of the section `pretrain`, nested like it")
    trained: bool = Field(True, description="false = the encoder as initialised")


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
    real: dict[str, str] = Field({}, description="davis, jhmdb or vip -> folder of real clips")
    real_points: Literal["last", "all"] = Field(
        "last", description="when real clips are scored: after training, or at every point"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must differ from one another")
        if self.baseline not in self.variants:
            raise ValueError(f"baseline is {self.baseline!r}, which variants does not have")
        for comparison in self.comparisons:
            for name in (comparison.better, comparison.worse):
                if name not in self.variants:
                    raise ValueError(f"comparisons name {name!r}, which variants does not")
        unknown = sorted(set(self.real) - set(profiles.BENCHMARKS))
        if unknown:
            raise ValueError(f"real names {unknown}; it knows davis, jhmdb and vip")
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
        """`results/studies/<study>`: tables; `runs/` below it holds the tasks."""
        return parameters.resolve(self.base.run.results) / "studies" / self.name

    @property
    def tasks(self) -> list[Task]:
        """Seed by seed, so that a study that is stopped early has whole seeds."""
        return [Task(variant, seed) for seed in self.settings.seeds for variant in self.settings.variants]

    def params(self, task: Task) -> Params:
        """The parameters of one task."""
        run = {
            **self.sections.get("run", {}),
            "name": task.name,
            "seed": task.seed,
            "results": str(self.folder / "runs"),
        }
        sections = _merged(self.sections, {"pretrain": self.settings.variants[task.variant].pretrain, "run": run})
        base = self.base.data
        sections["data"] = _merged(sections.get("data", {}), {"root": str(parameters.resolve(base.root))})
        return parameters.parse(sections, f"{self.path}, variant {task.variant}")

    def score_file(self, task: Task) -> Path:
        """What a finished task leaves."""
        return self.folder / "tasks" / f"{task.name}.json"

    def key(self, task: Task) -> str:
        """What a task's scores depend on, besides the library's code and the real clips: parameters and points."""
        content = self.params(task).model_dump(mode="json", include={"data", "pretrain", *profiles.BENCHMARKS})
        del content["data"]["root"]
        variant = self.settings.variants[task.variant]
        content |= {"seed": task.seed, "points": self.settings.points, "trained": variant.trained}
        if self.settings.real_points == "all":
            content["real_points"] = "all"
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def is_finished(self, task: Task) -> bool:
        """Whether the task's score file is there, belongs to what the study says now, and has all real clips that are here."""
        path = self.score_file(task)
        record = read_json(path) if path.is_file() else {}
        return record.get("key") == self.key(task) and set(self.real_clips()) <= set(record.get("real", []))

    def real_clips(self) -> dict[str, Path]:
        """Folders of real clips that are on this machine."""
        folders = {name: parameters.resolve(path) for name, path in self.settings.real.items()}
        return {name: path for name, path in folders.items() if path.is_dir()}


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, mapping by mapping."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


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
    steps = Schedules(loaded.base.pretrain).steps
    if steps % settings.points:
        raise InputError(f"{path}: points = {settings.points} does not divide the {steps} steps of {settings.base}.")
    for task in loaded.tasks:
        loaded.params(task)
    return loaded


def run_study(study: str | Path, *, workers: int = 1, only: Sequence[str] | None = None) -> int:
    """Prepare the data once, then run every unfinished task, `workers` at a time, each with its share of the cores.

    Returns:
        The exit code: 0, or 1 where a task failed; the others are finished nevertheless.

    Raises:
        InputError: the study is not possible, or `only` names an unknown variant.
    """
    loaded = load_study(study)
    unknown = sorted(set(only or ()) - set(loaded.settings.variants))
    if unknown:
        raise InputError(f"{loaded.path} has no variant {unknown[0]!r}; it has {', '.join(loaded.settings.variants)}.")
    base = loaded.base
    profiles.render(base)
    prepare(base.data, source=profiles.source(base))
    for name, folder in loaded.settings.real.items():
        if name not in loaded.real_clips():
            print(f"{folder} is not here: real {name} clips are not run.", flush=True)
    tasks = [task for task in loaded.tasks if not only or task.variant in only]
    todo = [task for task in tasks if not loaded.is_finished(task)]
    print(
        f"{loaded.name}: {len(tasks)} tasks, {len(tasks) - len(todo)} finished earlier, {workers} at a time", flush=True
    )
    failures: dict[str, str] = {}
    processes = _Processes()
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(todo), unit="task", file=sys.stdout) as bar:
        waiting: dict[Future[str], Task] = {
            pool.submit(_in_own_process, loaded, task, workers, processes): task for task in todo
        }
        try:
            for future in as_completed(waiting):
                task, failure = waiting[future], future.result()
                if failure:
                    failures[task.name] = failure
                bar.write(f"{task.name}: {failure or 'finished'}", file=sys.stdout)
                bar.update()
        except KeyboardInterrupt:  # without this the pool would begin all tasks that wait
            pool.shutdown(wait=False, cancel_futures=True)
            processes.end()
            raise
    for name, failure in failures.items():
        print(f"{name} failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


class _Processes:
    """The processes of running tasks, which end with the study."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False
        self._lock = threading.Lock()

    def run(self, command: list[str], log: Path, environment: dict[str, str]) -> int:
        """Run a command to its end, its output in a file. Gives its exit code, or SIGTERM's when the study has ended."""
        with open(log, "w", encoding="utf-8") as stream:
            with self._lock:
                if self._ended:
                    return -signal.SIGTERM
                process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)  # noqa: S603
                self._running.add(process)
            code = process.wait()
        with self._lock:
            self._running.discard(process)
        return code

    def end(self) -> None:
        """Ask all of them to end, as Ctrl-C would: each writes its checkpoint first. None starts afterwards."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()


def _in_own_process(loaded: LoadedStudy, task: Task, workers: int, processes: _Processes) -> str:
    """Run one task as `study FILE --task NAME`; its log lies beside its run. Returns '' or the last line of the log."""
    folder = loaded.folder / "runs" / task.name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tcore_lib", "study", str(loaded.path), "--task", f"{task.variant}/{task.seed}"]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
    code = processes.run(command, folder / "task.log", asked(os.environ) | threads)
    if code == 0:
        return ""
    lines = (folder / "task.log").read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line for line in reversed(lines) if line.strip()), f"exit code {code}").strip()


def run_task(study: str | Path, text: str) -> int:
    """Train and score one task in this process.

    Args:
        study: as for `run_study`; its data must have been prepared.
        text: `variant/seed`.

    Returns:
        The exit code.

    Raises:
        InputError: there is no such task, or the training went wrong.
    """
    loaded = load_study(study)
    variant, _, seed = text.partition("/")
    if not seed.isdigit() or Task(variant, int(seed)) not in loaded.tasks:
        raise InputError(f"{loaded.path} has no task {text!r}; write VARIANT/SEED, such as {_example(loaded)}.")
    follow_parent()
    task, started = Task(variant, int(seed)), time.time()
    params = loaded.params(task)
    device = profiles.device(params)
    encoders: dict[int, FeatureEncoder] = {}  # step -> encoder
    log = pd.DataFrame()
    if loaded.settings.variants[variant].trained:
        steps = Schedules(params.pretrain).steps
        every = steps // loaded.settings.points
        loop = params.pretrain.loop.model_copy(update={"milestone_every": every})
        training = params.model_copy(update={"pretrain": params.pretrain.model_copy(update={"loop": loop})})
        output = runs.run_folder(params)
        log = pretrain(training, FrameIndex.load(index_path(params.data)), output)
        for step in range(every, steps + 1, every):
            encoders[step] = load_encoder(checkpoints.path_of(output / "checkpoints", step), device=str(device))
    else:
        encoders[0] = profiles.encoder(params, "random")
    rows = _score(loaded, params, encoders, device)
    last = {} if log.empty else {key: float(value) for key, value in log.iloc[-1].items()}
    record = {"variant": variant, "seed": task.seed, "key": loaded.key(task), "real": sorted(loaded.real_clips())}
    record |= {"scores": rows, "last_log_row": last}
    write_json(loaded.score_file(task), record | {"provenance": runs.provenance(params, started)})
    return 0


def _example(loaded: LoadedStudy) -> str:
    return f"{loaded.tasks[0].variant}/{loaded.tasks[0].seed}"


def _score(
    loaded: LoadedStudy, params: Params, encoders: dict[int, FeatureEncoder], device: torch.device
) -> list[dict[str, Any]]:
    """Headline scores: every encoder on the rendered clips, the last one (or every one) on the real ones too."""
    output = runs.run_folder(params)
    rows = []
    for name in profiles.BENCHMARKS:
        section = getattr(params, name)
        if section.enabled:
            root = profiles.benchmark_root(params, name)
            rows += _headline(section, name, name, root, encoders, output, device)
    final = {max(encoders): encoders[max(encoders)]}
    on_real = encoders if loaded.settings.real_points == "all" else final
    for name, root in loaded.real_clips().items():
        # VIP and DAVIS samples may be a part of the split; the doctor of notebook 03 is the place that complains.
        section = type(getattr(params, name))(precision=getattr(params, name).precision)
        rows += _headline(section, name, f"real_{name}", root, on_real, output, device)
    return rows


def _headline(
    section: Benchmark, kind: str, label: str, root: Path, encoders: dict[int, FeatureEncoder], output: Path, device: torch.device
) -> list[dict[str, Any]]:  # fmt: skip
    quiet = section.model_copy(update={"root": str(root), "save_predictions": False})
    named = {str(step): encoder for step, encoder in encoders.items()}
    clips = load_clips(quiet, root)
    table = evaluate(named, clips, quiet, output=output / label, device=str(device), workers=1)
    scores = summarise(table, kind)
    rows = scores[scores["score"] == HEADLINE[kind]].to_dict("records")
    return [
        {
            "benchmark": label,
            "step": int(row["encoder"]),
            "score": row["score"],
            "value": float(row["value"]),
            "clips": len(clips),
        }
        for row in rows
    ]
