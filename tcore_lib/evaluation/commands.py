"""`evaluate` and `score` from the command line: what notebooks 03 to 05 do, for people who work without notebooks."""

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tcore_lib import runs
from tcore_lib.errors import InputError
from tcore_lib.evaluation import doctor
from tcore_lib.evaluation.clips import load_clips
from tcore_lib.evaluation.evaluate import evaluate
from tcore_lib.evaluation.finished import folder_name
from tcore_lib.evaluation.scores import summarise
from tcore_lib.evaluation.scoring import score_predictions
from tcore_lib.evaluation.video import write_overlay
from tcore_lib.files import write_json, write_text
from tcore_lib.machine.distributed import choose_device, place_of
from tcore_lib.model.encoders import load_encoder
from tcore_lib.params import Benchmark, Params, parse

TABLES = {"davis": "objects.csv", "jhmdb": "joints.csv", "vip": "parts.csv"}


def benchmark_settings(kind: str, root: str | Path, device: str = "cpu", **changes: Any) -> tuple[Params, Benchmark]:
    """Parameters with this benchmark's section on real data, and the section.

    Args:
        kind: davis, jhmdb or vip.
        root: folder in the benchmark's own layout.
        device: as `run.device`.
        changes: further settings of the section; None = the default.

    Raises:
        InputError: unknown benchmark, unknown or impossible setting.
    """
    if kind not in TABLES:
        raise InputError(f"There is no benchmark {kind!r}; choose davis, jhmdb or vip.")
    section = {"root": str(root), **{key: value for key, value in changes.items() if value is not None}}
    params = parse({kind: section, "run": {"device": device}}, "the command line")
    return params, getattr(params, kind)


def evaluate_command(
    kind: str,
    root: str | Path,
    encoders: Sequence[str],
    output: str | Path,
    *,
    clips: Sequence[str] | None = None,
    device: str = "cpu",
    which: str = "teacher",
    precision: str | None = None,
    overlays: bool = False,
    settings: dict[str, Any] | None = None,
) -> int:
    """Examine the data, evaluate encoders, write `summary.json`, a CSV, predictions and, if wanted, overlay videos.

    Args:
        kind: davis, jhmdb or vip.
        root: folder in the benchmark's own layout.
        encoders: sources as `load_encoder` takes them: a file or folder, `timm:NAME`, `pixels`, ...; also the names.
        output: folder. A command that was killed continues where it stopped.
        clips: names; None = the whole split.
        device: `cpu`, `cuda` (under torchrun the rank's own), `cuda:1`, or `auto`.
        which: weights of a checkpoint, `teacher` or `student`.
        precision: fp32, bf16 or fp16; None = the setting's default.
        overlays: write `overlays/<encoder>/<clip>.mp4`.
        settings: further settings of the benchmark's section, by name.

    Returns:
        The exit code.

    Raises:
        InputError: bad data, encoder or setting; before anything is computed.
    """
    started, output = time.time(), Path(output)
    changes = {"clips": list(clips) if clips else None, "precision": precision, **(settings or {})}
    params, section = benchmark_settings(kind, root, device, **changes)
    device = str(choose_device(params.run.device, place_of(os.environ)))
    first_rank = int(os.environ.get("RANK", "0")) == 0
    report = doctor.examine(section, root, decode=first_rank, progress=first_rank)
    if first_rank:
        print(report, flush=True)
    report.require()
    found = load_clips(section, root)
    networks = {source: load_encoder(source, device=device, which=which) for source in dict.fromkeys(encoders)}
    table = evaluate(networks, found, section, output=output, progress=first_rank, device=device)
    if not first_rank:
        return 0
    write_table(output / TABLES[kind], table)
    record = {
        "benchmark": kind,
        "encoders": list(networks),
        "clips": [clip.name for clip in found],
        "frames": sum(map(len, found)),
        **summary_record(table, kind, section),
        "provenance": runs.provenance(params, started),
    }
    write_json(output / "summary.json", record)
    if overlays:
        for name in networks:
            for clip in found:
                folder = output / "predictions" / folder_name(name)
                write_overlay(clip, folder, output / "overlays" / folder_name(name) / f"{clip.name}.mp4")
    print(as_text(table, kind), flush=True)
    print(f"{output / 'summary.json'}, {TABLES[kind]}, predictions/", flush=True)
    return 0


def score_command(
    kind: str, root: str | Path, predictions: str | Path, output: str | Path, *, clips: Sequence[str] | None = None
) -> int:
    """Score label PNGs that somebody else made; writes scores and rows as JSON.

    Args:
        kind: davis or vip.
        root: folder in the benchmark's own layout.
        predictions: folder with `<clip>/<frame>.png`, see `score_predictions`.
        output: the JSON file.
        clips: names; None = the whole split.

    Returns:
        The exit code.

    Raises:
        InputError: bad data, or a prediction that is missing or does not fit.
    """
    if kind not in ("davis", "vip"):
        raise InputError(f"Predictions of {kind!r} cannot be scored from PNGs; choose davis or vip.")
    _, section = benchmark_settings(kind, root, clips=list(clips) if clips else None)
    if not Path(predictions).is_dir():
        raise InputError(f"{predictions} is not a folder; give the one that holds <clip>/<frame>.png.")
    report = doctor.examine(section, root)
    print(report, flush=True)
    report.require()
    table = score_predictions(load_clips(section, root), predictions)
    rows = [{key: _plain(value) for key, value in row.items()} for row in table.to_dict("records")]
    scored = summary_record(table, kind, section)
    write_json(output, {"benchmark": kind, "predictions": str(predictions), **scored, "rows": rows})
    print(as_text(table, kind), flush=True)
    return 0


def summary_record(table: pd.DataFrame, kind: str, section: Benchmark) -> dict[str, Any]:
    """Settings and scores as JSON: encoder -> score -> value, low, high (percent; null where not known) and clips."""
    scores: dict[str, dict[str, Any]] = {}
    for row in summarise(table, kind).to_dict("records"):
        numbers = {key: _plain(row[key]) for key in ("value", "low", "high", "clips")}
        scores.setdefault(row["encoder"] or "predictions", {})[row["score"]] = numbers
    unit = "percent; low and high: 95 % bootstrap interval over clips"
    return {"settings": section.model_dump(mode="json"), "unit": unit, "scores": scores}


def write_table(target: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, atomically; what is not known stays empty."""
    write_text(target, table.to_csv(index=False, float_format="%.6f"))


def as_text(table: pd.DataFrame, kind: str) -> str:
    """Scores for a terminal, in percent, with the interval where there is one; in words where no frame or joint counts."""
    lines = []
    summary = summarise(table, kind)
    width = max([22, *map(len, summary["encoder"])]) + 2
    for row in summary.itertuples():
        interval = "" if math.isnan(row.low) else f"  [{row.low:.1f}, {row.high:.1f}]"
        value = "nothing to score" if math.isnan(row.value) else f"{row.value:6.2f}"
        lines.append(f"{row.encoder:<{width}}{row.score:<10}{value}{interval}")
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """NaN -> None, NumPy numbers -> Python's."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value
