"""`doctor`, `evaluate` and `score` from the command line: what notebooks 03 to 05 do, for people who work without notebooks.

A function is its command: arguments and help are its signature and docstring. Relative paths are relative to the working
folder.
"""

import math
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
from tcore_lib.evaluation.benchmarks import BENCHMARKS, load_clips, name_of
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.evaluate import evaluate_clips, fingerprint, folder_name, plain, score_predictions, table_of
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

    Returns:
        1 where something has to be put right.
    """
    report = doctor.examine(getattr(_settings(kind, root), kind), root)
    print(report)
    return 0 if report.ok else 1


def evaluate_command(
    benchmark: Name,
    *,
    root: Path,
    encoder: list[str],
    output: Path,
    clips: str | None = None,
    split: str | None = None,
    device: str = "cpu",
    which: Literal["teacher", "student"] = "teacher",
    precision: Literal["fp32", "bf16", "fp16"] | None = None,
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
        which: weights of a checkpoint.
        precision: of the encoder; fp32 by default.
        changes: another setting of the benchmark, such as top_k=5; may be repeated.
        overlays: also write a video per clip.
        variants: instead, measure the conventions of other code bases beside the protocol: variants.csv.

    Returns:
        0, or 1 where no score could be computed from the annotations that are there.

    Raises:
        InputError: bad encoder, data or setting; before anything is computed.
    """
    started = time.time()
    changed = {"clips": clips.split(",") if clips else None, "split": split, "precision": precision}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise InputError(f"{change!r} is no setting; write it as top_k=5.")
        changed[name] = yaml.safe_load(value)
    settings = _settings(benchmark, root, device, **changed)
    section = getattr(settings, benchmark)
    where = str(choose_device(settings.run.device))
    networks = {}
    for source in encoder:
        random = source == "random"  # the initialisation of a ViT-S/16
        networks[source] = (
            random_encoder(params.Encoder(), 224, seed=0) if random else load_encoder(source, device=where, which=which)
        )
    found = _examined(section, root)
    if variants:
        places = {name: output / "variants" / folder_name(name) for name in networks}
        compared = [
            conventions.compare(network, found, section, output=places[name], device=where).assign(encoder=name)
            for name, network in networks.items()
        ]
        table = pd.concat(compared, ignore_index=True)
        _write_table(output / "variants.csv", table)
        print(table.drop(columns=["what", "reports"]).round(2).to_string(index=False))
        print(f"written to {output / 'variants.csv'}", flush=True)
        return 0
    records = evaluate_clips(networks, found, section, output, device=where)
    table = table_of(records)
    headline, per_clip = BENCHMARKS[benchmark].HEADLINE, []
    for (name, clip_name), record in records.items():
        score = summarise(pd.DataFrame(record["rows"]), benchmark).set_index("score")["value"][headline]
        features = " ".join(str(value) for frame in record["features"] for value in frame)
        facts = {"encoder": name, "clip": clip_name, "frames": record["frames"], "seconds": record["seconds"]}
        per_clip.append(
            facts | {headline: score, "data": record["data"], "features": features, "labels": record["labels"]}
        )
    _write_table(output / f"{BENCHMARKS[benchmark].TABLE}.csv", table)
    _write_table(output / "clips.csv", pd.DataFrame(per_clip))
    summary = {
        "benchmark": benchmark,
        "encoders": list(networks),
        "weights": {name: fingerprint(network) for name, network in networks.items()},
        "clips": [clip.name for clip in found],
        "frames": sum(map(len, found)),
        **summary_record(table, section),
        "provenance": runs.provenance(settings, started),
    }
    write_json(output / "summary.json", summary)
    for name in networks if overlays else ():
        for clip in found:
            target = output / "overlays" / folder_name(name) / f"{clip.name}.mp4"
            write_overlay(clip, section, output / "predictions" / folder_name(name), target)
    return _finish(table, section, found, output)


def score_command(benchmark: Name, *, root: Path, predictions: Path, output: Path, clips: str | None = None) -> int:
    """Score predictions that somebody else made; writes scores and rows as JSON.

    Args:
        benchmark: the benchmark.
        root: its folder, in its own layout.
        predictions: folder with CLIP/FRAME.png, one id per pixel (JHMDB: CLIP.json).
        output: file for the scores.
        clips: some clips only: a,b.

    Returns:
        0, or 1 where nothing could be scored.

    Raises:
        InputError: bad data, or a prediction that is missing or does not fit.
    """
    section = getattr(_settings(benchmark, root, clips=clips.split(",") if clips else None), benchmark)
    if not predictions.is_dir():
        raise InputError(f"{predictions} is not a folder; give the one that holds <clip>/<frame>.png.")
    found = _examined(section, root)
    table = score_predictions(found, section, predictions)
    rows = [plain(row) for row in table.to_dict("records")]
    scored = summary_record(table, section)
    write_json(output, {"benchmark": benchmark, "predictions": str(predictions), **scored, "rows": rows})
    return _finish(table, section, found, output)


def _settings(name: str, root: Path, device: str = "cpu", **changes: Any) -> Params:
    """Parameters with this benchmark's section changed; None = the default."""
    section = {"root": str(root), **{key: value for key, value in changes.items() if value is not None}}
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


def as_text(table: pd.DataFrame, benchmark: str) -> str:
    """Scores for a terminal, in percent, with the interval where there is one; in words where no frame or joint counts."""
    lines = []
    summary = summarise(table, benchmark)
    width = max([22, *map(len, summary["encoder"])]) + 2
    for row in summary.itertuples():
        interval = "" if math.isnan(row.low) else f"  [{row.low:.1f}, {row.high:.1f}]"
        value = "nothing to score" if math.isnan(row.value) else f"{row.value:6.2f}"
        lines.append(f"{row.encoder:<{width}}{row.score:<10}{value}{interval}")
    return "\n".join(lines)


def _finish(table: pd.DataFrame, section: Benchmark, clips: Sequence[Clip], output: Path) -> int:
    """Print the scores. 1 where there is none at all, unless nothing can be scored here."""
    print("\n".join([as_text(table, name_of(section)), doctor.without_score(section, clips)]).rstrip())
    print(f"written to {output}", flush=True)
    nothing = bool(summarise(table, name_of(section))["value"].isna().all())
    return int(nothing and not doctor.for_a_server(clips))
