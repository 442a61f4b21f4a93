"""`doctor`, `evaluate` and `score`: what notebooks 03 to 05 do, for people who work without notebooks.

A function is its command: arguments and help are its signature and docstring.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import pandas as pd
import yaml

from tcore_lib import params, runs
from tcore_lib.errors import InputError
from tcore_lib.evaluation import benchmarks, variants as conventions
from tcore_lib.evaluation.benchmarks import benchmark_of, name_of
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.evaluate import evaluate, plain
from tcore_lib.evaluation.scores import summarise
from tcore_lib.files import write_json, write_text
from tcore_lib.machine import choose_device
from tcore_lib.model.encoders import load_encoder, random_encoder
from tcore_lib.params import Benchmark, Params

Name = Literal["davis", "jhmdb", "vip"]
Changes = Annotated[tuple[str, ...], cyclopts.Parameter(name="--set")]


def doctor_command(kind: Name, *, root: Path) -> int:
    """Check data before anything is computed.

    Args:
        kind: a benchmark.
        root: its folder, in its own layout.
    """
    benchmarks.examine(getattr(_settings(kind, root), kind), root)
    return 0


def evaluate_command(
    benchmark: Name,
    *,
    root: Path,
    encoder: list[str],
    output: Path,
    split: str | None = None,
    device: str = "cpu",
    changes: Changes = (),
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
        split: another split; test-dev of DAVIS writes predictions for its server, which has the annotations.
        device: cpu, cuda, cuda:1, or auto.
        changes: another setting of the benchmark, such as top_k=5, precision=bf16 or clips=[a,b]; may be repeated.
        variants: instead, measure the conventions of other code bases beside the protocol: variants.csv.
    """
    started = time.time()
    if split:
        changes += (f"split={split}",)
    settings = _settings(benchmark, root, changes, device)
    section, where = getattr(settings, benchmark), str(choose_device(settings.run.device))
    networks = {source: load_encoder(source, device=where) for source in encoder if source != "random"}
    if "random" in encoder:  # the initialisation of a ViT-S/16
        networks["random"] = random_encoder(params.Encoder(), 224, seed=0)
    found = benchmarks.examine(section, root)
    if variants:
        how: dict[str, Any] = {"output": output / "variants", "device": where}
        compared = {name: conventions.compare(network, found, section, **how) for name, network in networks.items()}
        table = pd.concat(compared, names=["encoder", None]).reset_index("encoder")
        _write_table(output / "variants.csv", table)
        print(table.drop(columns=["what", "reports"]).round(2).to_string(index=False))
        return 0
    table = evaluate(networks, found, section, output=output, device=where)
    records = table.attrs["clips"]
    _write_table(output / f"{benchmark_of(section).table}.csv", table)
    _write_table(output / "clips.csv", pd.DataFrame(records).drop(columns="weights"))
    summary = {
        "benchmark": benchmark,
        "weights": {record["encoder"]: record["weights"] for record in records},
        "clips": [clip.name for clip in found],
        "provenance": runs.provenance(settings, started),
    }
    return finish(output / "summary.json", summary, table, section, found)


def score_command(benchmark: Name, *, root: Path, predictions: Path, output: Path, changes: Changes = ()) -> int:
    """Score predictions that somebody else made; writes scores and rows as JSON.

    Args:
        benchmark: the benchmark.
        root: its folder, in its own layout.
        predictions: folder with CLIP/FRAME.png, one id per pixel (JHMDB: CLIP.npy, frames x 15 joints x 2).
        output: file for the scores.
        changes: another setting of the benchmark, such as clips=[a,b]; may be repeated.
    """
    section = getattr(_settings(benchmark, root, changes), benchmark)
    if not predictions.is_dir():
        raise InputError(f"{predictions} is not a folder; give the one that holds <clip>/<frame>.png.")
    found, scored = benchmarks.examine(section, root), benchmark_of(section)
    with ThreadPoolExecutor() as pool:
        rows = pd.concat(pool.map(lambda clip: scored.score(clip, scored.predictions(predictions, clip)), found))
    record = {"benchmark": benchmark, "predictions": str(predictions), "rows": plain(rows)}
    return finish(output, record, rows, section, found)


def _settings(name: str, root: Path, changes: Sequence[str] = (), device: str = "cpu") -> Params:
    """Parameters with this benchmark's section changed."""
    changed = {key: yaml.safe_load(value) for key, _, value in (change.partition("=") for change in changes)}
    return params.parse({name: {"root": str(root), **changed}, "run": {"device": device}}, "the command line")


def _write_table(target: Path, table: pd.DataFrame) -> None:
    write_text(target, table.to_csv(index=False, float_format="%.6f"))


def finish(target: Path, record: dict[str, Any], table: pd.DataFrame, section: Benchmark, clips: Sequence[Clip]) -> int:
    """Write and print the scores (percent; null where not known). 1 where there is none, unless a server has to score."""
    found = summarise(table, name_of(section))
    said, of_a_server = benchmarks.without_score(section, clips)
    scores: dict[str, dict[str, Any]] = {}  # encoder -> score -> value, low, high, clips
    for row in plain(found):
        scores.setdefault(row.pop("encoder") or "predictions", {})[row.pop("score")] = row
    unit = "percent; low and high: 95 % bootstrap interval over clips"
    write_json(target, {**record, "settings": section.model_dump(mode="json"), "unit": unit, "scores": scores})
    print(found.round(2).to_string(index=False, na_rep="-"), said, sep="\n", flush=True)
    return int(found["value"].isna().all() and not of_a_server)
