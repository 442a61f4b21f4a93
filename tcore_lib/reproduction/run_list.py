"""All runs below `results/`: a list, and what differs between two of them."""

from pathlib import Path
from typing import Any

import pandas as pd

from tcore_lib import runs
from tcore_lib.errors import InputError
from tcore_lib.params import dotted


def list_of_runs(results: str | Path) -> pd.DataFrame:
    """One row per run folder, by name.

    Returns:
        Columns run, title, notebooks (finished, of eight), scores (encoder and benchmark -> value, as text), finished (UTC of the
        last notebook), commit (ten digits, `+` = with uncommitted changes), params (first digits of their SHA-256), device.
    """
    rows = []
    for folder in runs.list_runs(results):
        records = runs.read_results(folder)
        last = runs.latest(records)
        settings = next(iter(records.values()))["settings"]
        scores = [f"{name} {value:.1f}" for name, value in _scores(records).items()]
        rows.append(
            {
                "run": folder.name,
                "title": settings["run"]["title"],
                "notebooks": f"{len(records)} of {len(runs.STAGES)}",
                "scores": "; ".join(scores) or "none",
                "finished": last["finished"],
                "commit": runs.commit(last, "+"),
                "params": last["params_sha256"][:10],
                "device": last["device"],
            }
        )
    columns = ["run", "title", "notebooks", "scores", "finished", "commit", "params", "device"]
    return pd.DataFrame(rows, columns=columns)


def difference(first: str | Path, second: str | Path) -> pd.DataFrame:
    """What differs between two runs: settings, results and provenance, but for times and memory.

    Args:
        first: a run folder.
        second: another one.

    Returns:
        One row per differing key (`03_davis_evaluation.settings.davis.top_k`), with a column per run; "not there" where a
        run does not have it.

    Raises:
        InputError: a folder holds no result of a notebook.
    """
    left, right = (dotted(runs.read_results(folder)) for folder in (first, second))
    if not left or not right:
        raise InputError(f"{first if not left else second} holds no results of a run; see python -m tcore_lib results.")
    ignored = (".finished", ".seconds", ".peak_memory_gb", ".command")
    rows = [
        {"what": key, str(first): left.get(key, "not there"), str(second): right.get(key, "not there")}
        for key in sorted({*left, *right})
        if left.get(key, "not there") != right.get(key, "not there") and not key.endswith(ignored)
    ]
    return pd.DataFrame(rows, columns=["what", str(first), str(second)])


def _scores(records: dict[str, dict[str, Any]]) -> dict[str, float]:
    """`pretrained davis` -> percent."""
    scores = {}
    for stage, record in records.items():
        for encoder, score in record["result"].get("scores", {}).items():
            if isinstance(score, dict) and score.get("value") is not None:
                scores[f"{encoder} {stage.split('_')[1]}"] = float(score["value"])
    return scores
