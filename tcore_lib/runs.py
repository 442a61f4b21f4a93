"""Run folders: what a notebook leaves behind, with its provenance, and how to tell that it is finished.

    results/<run>/
      <stage>.json          result and provenance of one notebook: small text, kept in git
      <stage>.<table>.csv   its tables
      .finished/<stage>     marker, written last and atomically; not kept in git
      notebooks/  checkpoints/  predictions/  figures/      large or executed things; not kept in git

A stage is finished when its marker carries the key the stage would have now: the notebook's code, the library's code, the
parameters it reads, and the markers of the stages it builds on. Nothing else is trusted: papermill's own metadata says
"completed" after a killed kernel, and a text result may come from another machine.
"""

import hashlib
import json
import operator
import os
import platform
import resource
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, read_json, write_json, write_text
from tcore_lib.params import Params, project_root, resolve


@dataclass(frozen=True)
class Stage:
    """One notebook of the line: the parameter sections it reads and the stages it builds on."""

    name: str
    sections: tuple[str, ...]
    needs: tuple[str, ...] = ()
    section: str = ""  # its own section; a stage whose section says `enabled: false` is not run
    keys: tuple[str, ...] = ()  # single keys of other sections, as `section.key`


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "00_data_prep",
            ("data",),
            keys=tuple(f"{b}.{k}" for b in ("davis", "jhmdb", "vip") for k in ("root", "enabled")),
        ),
        Stage("01_pretraining", ("data", "pretrain"), ("00_data_prep",), "pretrain"),
        Stage("02_checkpoint_inspection", ("data", "checkpoint"), ("00_data_prep", "01_pretraining")),
        Stage("03_davis_evaluation", ("checkpoint", "davis"), ("00_data_prep", "01_pretraining"), "davis"),
        Stage("04_jhmdb_evaluation", ("checkpoint", "jhmdb"), ("00_data_prep", "01_pretraining"), "jhmdb"),
        Stage("05_vip_evaluation", ("checkpoint", "vip"), ("00_data_prep", "01_pretraining"), "vip"),
        Stage(
            "06_attention_visualization",
            ("data", "pretrain", "checkpoint", "davis", "jhmdb", "vip", "attention"),  # a benchmark's clip is looked at
            ("00_data_prep", "01_pretraining"),
        ),
        Stage(
            "07_paper_table",
            ("checkpoint", "davis", "jhmdb", "vip"),
            ("01_pretraining", "03_davis_evaluation", "04_jhmdb_evaluation", "05_vip_evaluation"),
        ),
    )
}


def is_enabled(stage: str, params: Params) -> bool:
    """Whether the profile wants this stage at all."""
    section = STAGES[stage].section
    return not section or getattr(params, section).enabled


def run_folder(params: Params) -> Path:
    """`<results>/<run name>`, absolute. Not created."""
    return resolve(params.run.results) / params.run.name


def code_digest() -> str:
    """Hex SHA-256 over the library's source files."""
    digest = hashlib.sha256()
    library = Path(__file__).parent
    for path in sorted(library.rglob("*.py")):
        digest.update(path.relative_to(library).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def stage_key(stage: str, params: Params) -> str:
    """What the result of a stage depends on, as a hex SHA-256.

    The notebook counts by the source of its cells, so opening, running or stripping it changes nothing.
    """
    notebook = read_json(project_root() / "notebooks" / f"{stage}.ipynb")
    parts = {
        "cells": ["".join(cell["source"]) for cell in notebook["cells"]],
        "library": code_digest(),
        "params": params.digest("run", *STAGES[stage].sections),
        "keys": {key: operator.attrgetter(key)(params) for key in STAGES[stage].keys},
        "needs": {need: _marker(need, params).get("id") for need in STAGES[stage].needs},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def is_finished(stage: str, params: Params) -> bool:
    """Whether the stage's marker is there, fits what the stage would do now, and its outputs still exist."""
    marker = _marker(stage, params)
    outputs = marker.get("outputs", [])
    return marker.get("key") == stage_key(stage, params) and all(Path(path).exists() for path in outputs)


def has_marker(stage: str, params: Params) -> bool:
    """Whether the stage's last cell has run since the stage was begun, whatever has changed meanwhile."""
    return bool(_marker(stage, params))


def forget(stage: str, params: Params) -> None:
    """Remove a stage's marker: from now on it counts as not finished."""
    _marker_path(stage, params).unlink(missing_ok=True)


def _marker_path(stage: str, params: Params) -> Path:
    return run_folder(params) / ".finished" / stage


def _marker(stage: str, params: Params) -> dict[str, Any]:
    path = _marker_path(stage, params)
    if not path.is_file():
        return {}
    try:
        marker = read_json(path)
    except InputError:  # damaged on disk: the stage is simply not finished
        return {}
    return marker if isinstance(marker, dict) else {}


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
        tables: Mapping[str, pd.DataFrame] | None = None,
        outputs: Iterable[Path] = (),
        data: Mapping[str, str] | None = None,
    ) -> Path:
        """Write the stage's result and tables with provenance, then its marker. The last cell of a notebook calls this.

        Args:
            result: plain values; a missing measurement is `None`, never NaN.
            tables: written as `<stage>.<name>.csv`.
            outputs: large files or folders the following stages read; when one disappears the stage is not finished.
            data: what was read or made -> its SHA-256, for the provenance.

        Returns:
            The result file.
        """
        for name, table in (tables or {}).items():
            with atomic_path(self.folder / f"{self.stage}.{name}.csv") as temporary:
                table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
        path = self.folder / f"{self.stage}.json"
        settings = self.params.model_dump(mode="json", include={"run", *STAGES[self.stage].sections})
        record = {"stage": self.stage, "result": dict(result), "settings": settings}
        origin = provenance(self.params, self.started) | {"data_sha256": dict(data or {})}
        write_json(path, record | {"provenance": origin})
        marker = {"key": self.key, "id": uuid.uuid4().hex, "outputs": [str(Path(file).absolute()) for file in outputs]}
        write_text(_marker_path(self.stage, self.params), json.dumps(marker))
        return path


def open_stage(stage: str, params: Params) -> StageRun:
    """Begin a notebook: makes the run folder and forgets an earlier marker.

    Raises:
        InputError: a stage this one builds on is not finished; the sentence says how to run it.
    """
    for need in STAGES[stage].needs:
        if is_enabled(need, params) and not _marker(need, params):
            raise InputError(
                f"{stage} builds on {need}, which has not finished for the run {params.run.name!r} in "
                f"{run_folder(params)}; run notebooks/{need}.ipynb with the same parameters first."
            )
    folder = run_folder(params)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        forget(stage, params)
    except OSError as error:
        raise InputError(f"The run folder {folder} cannot be written ({error.strerror}); set run.results.") from error
    return StageRun(stage, params, folder, stage_key(stage, params))


def read_result(folder: str | Path, stage: str) -> dict[str, Any] | None:
    """The record a stage wrote (`result`, `settings`, `provenance`), or None where it was not run.

    Raises:
        InputError: the file is damaged.
    """
    path = Path(folder) / f"{stage}.json"
    if not path.is_file():
        return None
    record = read_json(path)
    parts = ("result", "settings", "provenance")
    if not isinstance(record, dict) or not all(isinstance(record.get(part), dict) for part in parts):
        raise InputError(f"{path} is no result of a stage; rerun notebooks/{stage}.ipynb, which writes it.")
    return record


def read_results(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Stage -> its record (`read_result`), of the stages that were run.

    Raises:
        InputError: a file is damaged.
    """
    found = {stage: read_result(folder, stage) for stage in STAGES}
    return {stage: record for stage, record in found.items() if record is not None}


def latest(records: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The provenance of the record that was finished last; at least one is needed."""
    return max((record["provenance"] for record in records.values()), key=lambda origin: str(origin["finished"]))


def machine(origin: Mapping[str, Any]) -> str:
    """What a provenance says of the machine: its GPU, or its processor and the number of cores."""
    return origin["device"] if origin["device"] != "cpu" else f"{origin['processor']}, {origin['cores']} cores"


def commit(origin: Mapping[str, Any], changed: str = " + changes") -> str:
    """What a provenance says of the code: ten digits of the commit, and `changed` where anything differed from it."""
    return (origin["commit"] or "no git")[:10] + (changed if origin["uncommitted_changes"] else "")


def read_table(folder: str | Path, stage: str, table: str) -> pd.DataFrame:
    """A table a stage wrote.

    Raises:
        InputError: it is missing or no CSV.
    """
    path = Path(folder) / f"{stage}.{table}.csv"
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read ({reason}); rerun notebooks/{stage}.ipynb.") from error


def list_runs(results: str | Path) -> list[Path]:
    """Every run folder below `results`, by name: a folder with at least one stage's result."""
    root = Path(results)
    return sorted(folder for folder in root.glob("*/") if any((folder / f"{stage}.json").is_file() for stage in STAGES))


PACKAGES = ("torch", "torchvision", "timm", "numpy", "pandas", "pillow", "scipy", "av", "papermill")


def provenance(params: Params, started: float) -> dict[str, Any]:
    """What a figure needs to be believed: code, parameters, versions, machine, time and memory.

    Args:
        params: the run's parameters.
        started: Unix time in seconds when the work began.
    """
    import torch  # late: the driver lists and checks runs without paying for torch

    commit, dirty = _git()
    has_gpu = torch.cuda.is_available() and params.run.device != "cpu"
    return {
        "commit": commit,
        "uncommitted_changes": dirty,
        "params_sha256": params.digest(),
        "library_sha256": code_digest(),
        "command": " ".join(sys.argv) if "ipykernel" not in sys.argv[0] else "notebook",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "peak_memory_gb": round(_peak_bytes() / 1e9, 2),
        "device": torch.cuda.get_device_name() if has_gpu else "cpu",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in kilobytes but on macOS
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return unit * max(resource.getrusage(scope).ru_maxrss for scope in who)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git() -> tuple[str | None, bool | None]:
    """Commit, and whether anything but `results/` differs from it; (None, None) outside a git checkout."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(project_root()), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()  # noqa: S603 (git)

    try:
        return ask("rev-parse", "HEAD"), bool(ask("status", "--porcelain", "--", ".", ":(exclude)results"))
    except (OSError, subprocess.SubprocessError):
        return None, None
