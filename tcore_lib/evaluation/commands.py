"""`doctor`, `evaluate` and `score` from the command line: what notebooks 03 to 05 do, for people who work without notebooks.

A function is its command: arguments and help are its signature and docstring. Relative paths are relative to the working
folder.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import pandas as pd
import yaml

from tcore_lib import params, runs
from tcore_lib.data.checks import doctor_frames
from tcore_lib.errors import InputError
from tcore_lib.evaluation import doctor, variants as conventions
from tcore_lib.evaluation.benchmarks import BENCHMARKS, load_clips, name_of
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.evaluate import Record, evaluate_clips, fingerprint, folder_name, plain, score_predictions
from tcore_lib.evaluation.scores import summarise
from tcore_lib.evaluation.video import write_overlay
from tcore_lib.files import write_json, write_text
from tcore_lib.machine import choose_device
from tcore_lib.model.encoders import FeatureEncoder, load_encoder, random_encoder
from tcore_lib.params import Benchmark, Params

Name = Literal["davis", "jhmdb", "vip"]
Changes = Annotated[tuple[str, ...], cyclopts.Parameter(name="--set")]


def doctor_command(kind: Literal["davis", "jhmdb", "vip", "frames"], *, root: Path) -> int:
    """Check data before anything is computed.

    Args:
        kind: a benchmark, or prepared frames.
        root: its folder, in its own layout.

    Returns:
        1 where something has to be put right.
    """
    report = doctor_frames(root) if kind == "frames" else doctor.examine(benchmark_settings(kind, root)[1], root)
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
    given = {"clips": clips.split(",") if clips else None, "split": split, "precision": precision, **_changes(changes)}
    settings, section = benchmark_settings(benchmark, root, device, **given)
    where = str(choose_device(settings.run.device))
    networks = {source: encoder_of(source, where, which) for source in dict.fromkeys(encoder)}
    report = doctor.examine(section, root)
    print(report, flush=True)
    report.require()
    found = load_clips(section, root)
    if variants:
        return _compare_variants(networks, found, section, output, where)
    records = evaluate_clips(networks, found, section, output=output, device=where)
    table = rows_of(records)
    weights = {name: fingerprint(network) for name, network in networks.items()}
    write_tables(output, table, records, section, weights, settings, started)
    for name in networks if overlays else ():
        for clip in found:
            target = output / "overlays" / folder_name(name) / f"{clip.name}.mp4"
            write_overlay(clip, section, output / "predictions" / folder_name(name), target)
    print("\n".join([as_text(table, benchmark), doctor.without_score(section, found)]).rstrip(), flush=True)
    print(f"written to {output}: summary.json, {BENCHMARKS[benchmark].TABLE}.csv, clips.csv, predictions/", flush=True)
    return exit_code(table, benchmark, found)


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
    _, section = benchmark_settings(benchmark, root, clips=clips.split(",") if clips else None)
    if not predictions.is_dir():
        raise InputError(f"{predictions} is not a folder; give the one that holds <clip>/<frame>.png.")
    report = doctor.examine(section, root)
    print(report, flush=True)
    report.require()
    found = load_clips(section, root)
    table = score_predictions(found, section, predictions)
    rows = [plain(row) for row in table.to_dict("records")]
    scored = summary_record(table, benchmark, section)
    write_json(output, {"benchmark": benchmark, "predictions": str(predictions), **scored, "rows": rows})
    print("\n".join([as_text(table, benchmark), doctor.without_score(section, found)]).rstrip(), flush=True)
    return exit_code(table, benchmark, found)


# ---------------------------------------------------------------------------------------------- arguments


def benchmark_settings(name: str, root: str | Path, device: str = "cpu", **changes: Any) -> tuple[Params, Benchmark]:
    """Parameters with this benchmark's section on real data, and the section.

    Args:
        name: davis, jhmdb or vip.
        root: folder in the benchmark's own layout.
        device: as `run.device`.
        changes: further settings of the section; None = the default.

    Raises:
        InputError: unknown benchmark, unknown or impossible setting.
    """
    if name not in BENCHMARKS:
        raise InputError(f"There is no benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}.")
    section = {"root": str(root), **{key: value for key, value in changes.items() if value is not None}}
    settings = params.parse({name: section, "run": {"device": device}}, "the command line")
    return settings, getattr(settings, name)


def encoder_of(source: str, device: str, which: str = "teacher") -> FeatureEncoder:
    """`load_encoder`, or `random`: the initialisation of a ViT-S/16 with seed 0."""
    if source == "random":
        return random_encoder(params.Encoder(), 224, seed=0).to(device)
    return load_encoder(source, device=device, which=which)


def _changes(changes: Sequence[str]) -> dict[str, Any]:
    """`top_k=5` -> {"top_k": 5}."""
    pairs = [change.partition("=") for change in changes]
    bad = next((change for change, (_, equals, _) in zip(changes, pairs, strict=True) if not equals), None)
    if bad is not None:
        raise InputError(f"{bad!r} is no setting; write it as top_k=5.")
    return {name: yaml.safe_load(value) for name, _, value in pairs}


# ---------------------------------------------------------------------------------------------- results


def rows_of(records: Mapping[tuple[str, str], Record]) -> pd.DataFrame:
    """The table of `evaluate` from the records of `evaluate_clips`."""
    return pd.DataFrame([{"encoder": name, **row} for (name, _), record in records.items() for row in record["rows"]])


def write_tables(
    output: Path,
    table: pd.DataFrame,
    records: Mapping[tuple[str, str], Record],
    section: Benchmark,
    weights: Mapping[str, str],
    settings: Params,
    started: float,
) -> None:
    """summary.json (scores, settings, weights, provenance), the table of rows, and clips.csv with each clip's digests."""
    name = name_of(section)
    headline = BENCHMARKS[name].HEADLINE
    clips = []
    for (encoder, clip), record in records.items():
        score = summarise(pd.DataFrame(record["rows"]), name).set_index("score")["value"][headline]
        features = " ".join(str(value) for frame in record["features"] for value in frame)
        digests = {"data": record["data"], "features": features, "labels": record["labels"]}
        facts = {"encoder": encoder, "clip": clip, "frames": record["frames"], "seconds": record["seconds"]}
        clips.append({**facts, headline: score, **digests})
    write_table(output / f"{BENCHMARKS[name].TABLE}.csv", table)
    write_table(output / "clips.csv", pd.DataFrame(clips))
    record = {
        "benchmark": name,
        "encoders": list(weights),
        "weights": dict(weights),
        "clips": list(dict.fromkeys(clip for _, clip in records)),
        "frames": int(pd.DataFrame(clips).drop_duplicates("clip")["frames"].sum()),
        **summary_record(table, name, section),
        "provenance": runs.provenance(settings, started),
    }
    write_json(output / "summary.json", record)


def summary_record(table: pd.DataFrame, benchmark: str, section: Benchmark) -> dict[str, Any]:
    """Settings and scores as JSON: encoder -> score -> value, low, high (percent; null where not known) and clips."""
    scores: dict[str, dict[str, Any]] = {}
    for row in summarise(table, benchmark).to_dict("records"):
        numbers = plain({key: row[key] for key in ("value", "low", "high", "clips")})
        scores.setdefault(row["encoder"] or "predictions", {})[row["score"]] = numbers
    unit = "percent; low and high: 95 % bootstrap interval over clips"
    return {"settings": section.model_dump(mode="json"), "unit": unit, "scores": scores}


def write_table(target: Path, table: pd.DataFrame) -> None:
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


def exit_code(table: pd.DataFrame, benchmark: str, clips: list[Clip]) -> int:
    """1 where there is no score at all, unless nothing can be scored here."""
    nothing = bool(summarise(table, benchmark)["value"].isna().all())
    return int(nothing and not doctor.for_a_server(clips))


def _compare_variants(
    networks: Mapping[str, FeatureEncoder], clips: Sequence[Clip], section: Benchmark, output: Path, device: str
) -> int:
    """`--variants`: one table for all encoders."""
    tables = []
    for name, network in networks.items():
        place = output / "variants" / folder_name(name)
        found = conventions.compare(network, clips, section, output=place, device=device)
        tables.append(found.assign(encoder=name))
    table = pd.concat(tables, ignore_index=True)
    write_table(output / "variants.csv", table)
    print(table.drop(columns=["what", "reports"]).round(2).to_string(index=False))
    print(f"written to {output / 'variants.csv'}", flush=True)
    return 0
