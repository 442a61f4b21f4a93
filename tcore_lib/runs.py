"""Run folders: what a notebook leaves behind, with its provenance, and how to tell that it is finished.

    results/<run>/
      <stage>.json          result and provenance of one notebook: small text
      <stage>.<table>.csv   its tables
      .finished/<stage>     marker, written last and atomically
      notebooks/  checkpoints/  predictions/  figures/      large or executed things

A stage is finished when its marker carries the key the stage would have now: the notebook's code, the library's code, the
parameters it reads, and the markers of the stages it builds on. Nothing else is trusted: papermill's own metadata says
"completed" after a killed kernel, and a text result may come from another machine.
"""

import hashlib
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tcore_lib import fetch
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, read_json, reading, writable, write_json, write_text
from tcore_lib.machine import peak_resident
from tcore_lib.params import Params, checked, project_root, read_profile, resolve

if TYPE_CHECKING:
    import pandas as pd

# --- the eight notebooks ----------------------------------------------------------------------------------------------


class Stage(NamedTuple):
    """One notebook of the line."""

    reads: tuple[str, ...]  # the sections that its result depends on, besides `run`
    needs: tuple[str, ...] = ()  # the stages it builds on; `needs` leaves out those that a profile makes unnecessary
    section: str = ""  # its own section: where that says `enabled: false`, it is not run


BENCHMARKS = ("davis", "jhmdb", "vip")
_PREP, _TRAIN = "00_data_prep", "01_pretraining"
_EVALUATIONS = {  # stage -> its section, a file that must lie in the benchmark's folder, and what `tcore fetch` calls it
    "03_davis_evaluation": ("davis", "ImageSets/2017/{split}.txt", "davis2017"),
    "04_jhmdb_evaluation": ("jhmdb", "splits", "jhmdb"),
    "05_vip_evaluation": ("vip", "lists/{split}_videos.txt", "vip"),
}
STAGES = {
    _PREP: Stage(("data",)),  # and, of the benchmarks, which ones it draws
    _TRAIN: Stage(("data", "pretrain"), (_PREP,), "pretrain"),
    "02_checkpoint_inspection": Stage(("data", "checkpoint"), (_PREP, _TRAIN)),
    **{stage: Stage(("checkpoint", name), (_PREP, _TRAIN), name) for stage, (name, *_) in _EVALUATIONS.items()},
    "06_attention_visualization": Stage(  # a clip of a benchmark is looked at, too
        ("data", "pretrain", "checkpoint", *BENCHMARKS, "attention"), (_PREP, _TRAIN)
    ),
    "07_paper_table": Stage(("checkpoint", *BENCHMARKS), (_TRAIN, *_EVALUATIONS)),
}


def is_enabled(stage: str, params: Params) -> bool:
    """Whether the profile wants this stage at all."""
    section = STAGES[stage].section
    return not section or getattr(params, section).enabled


def needs(stage: str, params: Params) -> list[str]:
    """The stages that must be finished before this one, in this profile.

    Scoring on a benchmark's own files needs no prepared videos, and no training where no encoder is this run's.
    """
    needed = {need for need in STAGES[stage].needs if is_enabled(need, params)}
    if stage in _EVALUATIONS:
        if getattr(params, _EVALUATIONS[stage][0]).root != "synthetic":
            needed.discard(_PREP)
        if not any(source.partition("@")[0] == "run" for source in params.checkpoint.encoders.values()):
            needed.discard(_TRAIN)
    return sorted(needed)


def run_folder(params: Params) -> Path:
    """`<results>/<run name>`, absolute. Not created."""
    return resolve(params.run.results) / params.run.name


def code_digest() -> str:
    """Hex SHA-256 over the library's source files, and the tables (YAML) that belong to them."""
    digest = hashlib.sha256()
    library = Path(__file__).parent
    for path in sorted((*library.rglob("*.py"), *library.rglob("*.yaml"))):
        digest.update(path.relative_to(library).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _marker_path(stage: str, params: Params) -> Path:
    return run_folder(params) / ".finished" / stage


def _marker(stage: str, params: Params) -> dict[str, Any]:
    """What the stage's marker says; empty where there is none, or a damaged one: the stage is not finished."""
    with suppress(OSError, ValueError):
        return dict(json.loads(_marker_path(stage, params).read_bytes()))
    return {}


def _settings(stage: str, params: Params) -> dict[str, Any]:
    """The sections that a stage's result depends on."""
    return params.model_dump(mode="json", include={"run", *STAGES[stage].reads})


def stage_key(stage: str, params: Params) -> str:
    """What the result of a stage depends on, as a hex SHA-256; of the notebook the source of its cells, not the outputs."""
    notebook = read_json(project_root() / "notebooks" / f"{stage}.ipynb")
    sections = [getattr(params, name) for name in BENCHMARKS]
    parts = {
        "cells": ["".join(cell["source"]) for cell in notebook["cells"]],
        "library": code_digest(),
        "params": _settings(stage, params),
        "drawn": [(cfg.root, cfg.enabled) for cfg in sections] if stage == _PREP else None,
        "needs": {need: _marker(need, params).get("id") for need in needs(stage, params)},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def is_finished(stage: str, params: Params) -> bool:
    """Whether the stage's marker is there, fits what the stage would do now, and its outputs still exist."""
    marker = _marker(stage, params)
    outputs = marker.get("outputs", [])
    return marker.get("key") == stage_key(stage, params) and all(Path(path).exists() for path in outputs)


def forget(stage: str, params: Params) -> None:
    """Remove a stage's marker: from now on it counts as not finished."""
    _marker_path(stage, params).unlink(missing_ok=True)


@dataclass
class StageRun:
    """One execution of one notebook: opened by its first cell, closed by its last."""

    stage: str
    params: Params
    folder: Path
    key: str
    started: float = field(default_factory=time.time)

    def subfolder(self, name: str) -> Path:
        """`results/<run>/<name>`, created."""
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def finish(
        self,
        result: Mapping[str, Any],
        tables: "Mapping[str, pd.DataFrame] | None" = None,
        outputs: Iterable[Path] = (),
        data: Mapping[str, str] | None = None,
    ) -> Path:
        """Write the stage's result (its path is returned) and tables with provenance, then its marker.

        Args:
            result: plain values; a missing measurement is `None`, never NaN.
            tables: written as `<stage>.<name>.csv`.
            outputs: large files or folders the following stages read; when one disappears the stage is not finished.
            data: what was read or made -> its SHA-256, for the provenance.
        """
        for name, table in (tables or {}).items():
            with atomic_path(self.folder / f"{self.stage}.{name}.csv") as temporary:
                table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
        path, settings = self.folder / f"{self.stage}.json", _settings(self.stage, self.params)
        origin = provenance(self.params, self.started) | {"data_sha256": dict(data or {})}
        # A second run finds training and predictions done and would record seconds for hours: the larger cost counts.
        with suppress(InputError, KeyError, TypeError):  # nothing there, or not ours
            before = read_json(path)
            same = ("library_sha256", "device", "processor")
            if before["settings"] == settings and all(before["provenance"][name] == origin[name] for name in same):
                costs = ("seconds", "peak_memory_gb")
                origin |= {name: max(before["provenance"][name], origin[name]) for name in costs}
        write_json(path, {"stage": self.stage, "result": dict(result), "settings": settings, "provenance": origin})
        marker = {"key": self.key, "id": uuid.uuid4().hex, "outputs": [str(Path(file).absolute()) for file in outputs]}
        write_text(_marker_path(self.stage, self.params), json.dumps(marker))
        return path


def open_stage(stage: str, params: Params) -> StageRun:
    """Begin a notebook: makes the run folder and forgets an earlier marker. InputError: a stage it needs is not finished."""
    folder = run_folder(params)
    for need in needs(stage, params):
        if not _marker(need, params):
            raise InputError(
                f"{stage} builds on {need}, which has not finished for the run {params.run.name!r} in "
                f"{folder}; run notebooks/{need}.ipynb with the same parameters first."
            )
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        forget(stage, params)
    return StageRun(stage, params, folder, stage_key(stage, params))


# --- before anything starts -------------------------------------------------------------------------------------------


def checked_profile(profile: str | Path, changes: Sequence[str], plan: Callable[[Params], Sequence[str]]) -> Params:
    """A profile for a run of the stages `plan` names: everything wrong with it, or missing for it, is one `InputError`."""

    def missing(params: Params) -> list[str]:
        return _missing(params, [stage for stage in plan(params) if not is_finished(stage, params)])

    return checked(Params, *read_profile(profile, changes), missing)


def _missing(params: Params, stages: Sequence[str]) -> list[str]:
    """What the profile names for these stages that is not there: one sentence each, with the remedy."""
    wanted: list[tuple[str, Path, str]] = []  # setting, path, remedy
    untrained = []
    if _PREP in stages and params.data.source != "synthetic":
        remedy = "put the videos there or name their folder (Kinetics-400: tcore fetch kinetics400 says how)"
        wanted.append(("data.source", resolve(params.data.source), remedy))
    for stage, (name, file, dataset) in _EVALUATIONS.items():
        section = getattr(params, name)
        if stage in stages and section.root != "synthetic":
            root = resolve(section.root)
            remedy = f"run tcore fetch {dataset} --root {shlex.quote(str(root))}, or set {name}.root, or {name}.enabled: false"
            wanted.append((f"{name}.root", root / file.format(split=section.split), remedy))
    if any(stage in stages for stage in ("02_checkpoint_inspection", *_EVALUATIONS)):
        trained = _TRAIN in stages or any((run_folder(params) / "checkpoints").glob("step-*.pt"))
        known = ("run", "random", "pixels", *fetch.CHECKPOINTS, "timm:NAME")
        for name, value in params.checkpoint.encoders.items():
            kind, key = value.partition("@")[0], f"checkpoint.encoders.{name}"
            if kind == "run" and not trained:
                untrained.append(
                    f"{key} = {value} is this run's training, which has not been done; run notebook 01 too."
                )
            elif kind not in known and not value.startswith(("timm:", "pixels:")):
                wanted.append((key, resolve(value), f"correct the path, or take one of {', '.join(known)}"))
    if params.checkpoint.model is not None:
        wanted.append(("checkpoint.model", resolve(params.checkpoint.model), "correct the path"))
    missing = [f"{key} = {path} is not there; {remedy}." for key, path, remedy in wanted if not path.exists()]
    return missing + untrained


# --- what is there ----------------------------------------------------------------------------------------------------


def read_results(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Stage -> the record it wrote (`result`, `settings`, `provenance`), of the stages that were run."""
    found = {}
    for stage in STAGES:
        path = Path(folder) / f"{stage}.json"
        if path.is_file():
            found[stage] = read_json(path)
            if not isinstance(found[stage], dict) or not {"result", "settings", "provenance"} <= found[stage].keys():
                raise InputError(f"{path} is no result of a stage; rerun notebooks/{stage}.ipynb, which writes it.")
    return found


def read_table(folder: str | Path, stage: str, table: str) -> "pd.DataFrame":
    """A table a stage wrote."""
    import pandas as pd

    path = Path(folder) / f"{stage}.{table}.csv"
    with reading(path, f"rerun notebooks/{stage}.ipynb"):
        return pd.read_csv(path)


def list_runs(results: str | Path) -> list[Path]:
    """Every run folder below `results`, by name: a folder with at least one stage's result."""
    root = Path(results)
    return sorted(folder for folder in root.glob("*/") if any((folder / f"{stage}.json").is_file() for stage in STAGES))


# --- provenance -------------------------------------------------------------------------------------------------------

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pandas", "pillow", "scipy", "av")


def provenance(params: Params, started: float) -> dict[str, Any]:
    """What a figure needs to be believed: code, parameters, versions, machine, time (since Unix time `started`) and memory."""
    import torch  # late: the driver lists and checks runs without paying for torch

    has_gpu = torch.cuda.is_available() and params.run.device != "cpu"
    changes = _git("status", "--porcelain", "--", ".", ":(exclude)results")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changes is None else bool(changes),
        "params_sha256": params.digest(),
        "library_sha256": code_digest(),
        "command": " ".join(sys.argv) if "ipykernel" not in sys.argv[0] else "notebook",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "peak_memory_gb": round(max(peak_resident(), peak_resident(resource.RUSAGE_CHILDREN)) / 1e9, 2),
        "device": torch.cuda.get_device_name() if has_gpu else "cpu",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def _git(*words: str) -> str | None:
    """What git answers about the project; None outside a git checkout."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(project_root()), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()  # noqa: S603 (git)
    return None


def machine(origin: Mapping[str, Any]) -> str:
    """What a provenance says of the machine: its GPU, or its processor and the number of cores."""
    return origin["device"] if origin["device"] != "cpu" else f"{origin['processor']}, {origin['cores']} cores"


def commit(origin: Mapping[str, Any], changed: str = " + changes") -> str:
    """What a provenance says of the code: ten digits of the commit, and `changed` where anything differed from it."""
    return (origin["commit"] or "no git")[:10] + (changed if origin["uncommitted_changes"] else "")
