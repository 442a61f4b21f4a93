"""`doctor`, `evaluate` and `score`: what notebooks 03 to 05 do, for people who work without notebooks.

A function is its command: arguments and help are its signature and docstring.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import pandas as pd
import yaml

from tcore_lib import params, runs
from tcore_lib.errors import InputError
from tcore_lib.evaluation import doctor, variants as conventions
from tcore_lib.evaluation.benchmarks import benchmark_of, load_clips, name_of
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.evaluate import evaluate_clips, folder_name, plain, score_predictions, table_of
from tcore_lib.evaluation.scores import summarise
from tcore_lib.evaluation.video import write_overlay
from tcore_lib.files import write_json, write_text
from tcore_lib.machine import choose_device
from tcore_lib.model.encoders import load_encoder, random_encoder
from tcore_lib.params import Benchmark, Params

Name = Literal["davis", "jhmdb", "vip"]
Changes = Annotated[tuple[str, ...], cyclopts.Parameter(name="--set")]


def doctor_command(kind: Literal["davis", "jhmdb", "vip"], *, root: Path) -> int:
    """Check data before anything is computed.

    Args:
        kind: a benchmark.
        root: its folder, in its own layout.
    """
    report = doctor.examine(getattr(_settings(kind, root), kind), root)
    print(report)
    return int(bool(report.problems))


def evaluate_command(
    benchmark: Name,
    *,
    root: Path,
    encoder: list[str],
    output: Path,
    clips: str | None = None,
    split: str | None = None,
    device: str = "cpu",
    changes: Changes = (),
    overlays: bool = False,
    variants: bool = False,
) -> int:
    """Score frozen encoders on a benchmark: summary.json, tables, predictions.

    A command that was killed continues where it stopped. Several processes, also on several machines with a common folder,
    may run the same command: they share the clips.

    Args:
        benchmark: the benchmark.
        root: its folder, in its own layout.
        encoder: may be repeated: pixels, random, a file or folder, a published name, or timm:NAME; also its name in tables.
        output: folder for summary.json, tables and predictions.
        clips: some clips only: a,b.
        split: another split; test-dev of DAVIS writes predictions for its server, which has the annotations.
        device: cpu, cuda, cuda:1, or auto.
        changes: another setting of the benchmark, such as top_k=5 or precision=bf16; may be repeated.
        overlays: also write a video per clip.
        variants: instead, measure the conventions of other code bases beside the protocol: variants.csv.
    """
    started = time.time()
    changed = {"split": split} if split else {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise InputError(f"{change!r} is no setting; write it as top_k=5.")
        changed[name] = yaml.safe_load(value)
    settings = _settings(benchmark, root, clips, device, **changed)
    section, where = getattr(settings, benchmark), str(choose_device(settings.run.device))
    networks = {source: load_encoder(source, device=where) for source in encoder if source != "random"}
    if "random" in encoder:  # the initialisation of a ViT-S/16
        networks["random"] = random_encoder(params.Encoder(), 224, seed=0)
    found = _examined(section, root)
    if variants:
        compared = {}
        for name, network in networks.items():
            place = output / "variants" / folder_name(name)
            compared[name] = conventions.compare(network, found, section, output=place, device=where)
        table = pd.concat(compared, names=["encoder", None]).reset_index("encoder")
        _write_table(output / "variants.csv", table)
        print(table.drop(columns=["what", "reports"]).round(2).to_string(index=False))
        return 0
    records = evaluate_clips(networks, found, section, output, progress=True, device=where)
    table = table_of(records)
    _write_table(output / f"{benchmark_of(section).table}.csv", table)
    _write_table(output / "clips.csv", pd.DataFrame(records).drop(columns=["weights", "rows"]))
    summary = {
        "benchmark": benchmark,
        "weights": {record["encoder"]: record["weights"] for record in records},
        "clips": [clip.name for clip in found],
        **summary_record(table, section),
        "provenance": runs.provenance(settings, started),
    }
    write_json(output / "summary.json", summary)
    for name in networks if overlays else ():
        for clip in found:
            target = output / "overlays" / folder_name(name) / f"{clip.name}.mp4"
            write_overlay(clip, section, output / "predictions" / folder_name(name), target)
    return _finish(table, section, found)


def score_command(benchmark: Name, *, root: Path, predictions: Path, output: Path, clips: str | None = None) -> int:
    """Score predictions that somebody else made; writes scores and rows as JSON.

    Args:
        benchmark: the benchmark.
        root: its folder, in its own layout.
        predictions: folder with CLIP/FRAME.png, one id per pixel (JHMDB: CLIP.npy, frames x 15 joints x 2).
        output: file for the scores.
        clips: some clips only: a,b.
    """
    section = getattr(_settings(benchmark, root, clips), benchmark)
    if not predictions.is_dir():
        raise InputError(f"{predictions} is not a folder; give the one that holds <clip>/<frame>.png.")
    found = _examined(section, root)
    table = score_predictions(found, section, predictions)
    rows = [plain(row) for row in table.to_dict("records")]
    scored = summary_record(table, section)
    write_json(output, {"benchmark": benchmark, "predictions": str(predictions), **scored, "rows": rows})
    return _finish(table, section, found)


def _settings(name: str, root: Path, clips: str | None = None, device: str = "cpu", **changes: Any) -> Params:
    """Parameters with this benchmark's section changed."""
    section = {"root": str(root), "clips": clips.split(",") if clips else None, **changes}
    return params.parse({name: section, "run": {"device": device}}, "the command line")


def _examined(section: Benchmark, root: Path) -> list[Clip]:
    """The clips, when the doctor has found nothing wrong with them."""
    report = doctor.examine(section, root)
    print(report, flush=True)
    report.require()
    return load_clips(section, root)


def summary_record(table: pd.DataFrame, section: Benchmark) -> dict[str, Any]:
    """Settings and scores as JSON: encoder -> score -> value, low, high (percent; null where not known) and clips."""
    scores: dict[str, dict[str, Any]] = {}
    for row in summarise(table, name_of(section)).to_dict("records"):
        numbers = plain({key: row[key] for key in ("value", "low", "high", "clips")})
        scores.setdefault(row["encoder"] or "predictions", {})[row["score"]] = numbers
    unit = "percent; low and high: 95 % bootstrap interval over clips"
    return {"settings": section.model_dump(mode="json"), "unit": unit, "scores": scores}


def _write_table(target: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, atomically; what is not known stays empty."""
    write_text(target, table.to_csv(index=False, float_format="%.6f"))


def _finish(table: pd.DataFrame, section: Benchmark, clips: Sequence[Clip]) -> int:
    """Print the scores. 1 where there is none at all, unless nothing can be scored here."""
    scores = summarise(table, name_of(section))
    print(scores.round(2).to_string(index=False, na_rep="-"))
    print(doctor.without_score(section, clips), flush=True)
    return int(scores["value"].isna().all() and not doctor.for_a_server(clips))
