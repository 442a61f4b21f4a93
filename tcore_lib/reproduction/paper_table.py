"""`results/paper_table.{csv,md,html}`: the authors' rows beside every run and study below `results/`, and nothing else.

A reproduction of a published row is a run whose parameter file links one of its encoders to it (`checkpoint.paper_rows`)
and which was evaluated on real data; its difference to the published figure stands beside it. Runs on rendered clips have
rows of their own and no difference: another test.
"""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tcore_lib import markdown, runs
from tcore_lib.errors import InputError
from tcore_lib.evaluation.evaluate import NOT_A_RESULT
from tcore_lib.files import read_json, write_text
from tcore_lib.params import Davis, Jhmdb, Vip
from tcore_lib.reproduction.table import BENCHMARKS, NOT_RUN, paper_rows

DETAILS = ("value", "low", "high", "spread", "clips", "difference", "settings")
_DEFAULTS = {"davis": Davis(), "jhmdb": Jhmdb(), "vip": Vip()}


def overview(results: str | Path, only: Sequence[str] | None = None) -> pd.DataFrame:
    """Every row of the table.

    Args:
        results: folder of run folders and studies.
        only: names of those to show; None = all.

    Returns:
        Columns who (`paper`, `reproduced`, `ours`), encoder, training, then per benchmark `<name> value` (percent),
        `low` and `high` (bounds of the spread), `spread` (what the bounds are), `clips`, `difference` (to the published figure,
        points), `settings` (`protocol`, or what differs from it), and `run` (the folder below `results`). NaN and None are
        what was not run.
    """
    results = Path(results)
    published = paper_rows()
    rows = [
        {"who": "paper", "encoder": row["encoder"], "training": row["training"], "run": "", "file": row["source"]}
        | {f"{name} value": row[heading] for name, (_, heading) in BENCHMARKS.items()}
        for _, row in published.iterrows()
    ]
    folders = [folder for folder in runs.list_runs(results) if only is None or folder.name in only]
    for _, row in published.iterrows():
        rows.append(_reproduced(row, folders))
    for folder in folders:
        rows += _own(folder)
    for summary in sorted(results.glob("*/summary.csv")):
        if only is None or summary.parent.name in only:
            rows += _studied(summary)
    columns = [
        "who",
        "encoder",
        "training",
        *(f"{name} {detail}" for name in BENCHMARKS for detail in DETAILS),
        "run",
        "file",
    ]
    return pd.DataFrame(rows).reindex(columns=columns)


def _linked(folder: Path, stage: str) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """A stage's record and the encoder -> released file of those evaluated on real data."""
    record = runs.read_result(folder, stage)
    if record is None:
        return None, {}
    real = record["settings"][stage.split("_")[1]]["root"] != "synthetic"
    return record, record["settings"]["checkpoint"]["paper_rows"] if real else {}


def _reproduced(published: pd.Series, folders: list[Path]) -> dict[str, Any]:
    row = {
        "who": "reproduced",
        "encoder": published["encoder"],
        "training": published["training"],
        "file": published["source"],
    }
    names = set()
    for name, (stage, heading) in BENCHMARKS.items():
        for folder in folders:
            record, linked = _linked(folder, stage)
            for encoder, released in linked.items():
                if record is not None and released == published["source"] and encoder in record["result"]["scores"]:
                    row |= _measured(name, record, encoder)
                    value = row[f"{name} value"]
                    row[f"{name} difference"] = None if value is None else value - published[heading]
                    names.add(folder.name)
    return row | {"run": ", ".join(sorted(names))}


def _own(folder: Path) -> list[dict[str, Any]]:
    """Rows of a run's encoders that reproduce no published row."""
    found: dict[str, dict[str, Any]] = {}
    training = runs.read_result(folder, "01_pretraining")
    for name, (stage, _) in BENCHMARKS.items():
        record, linked = _linked(folder, stage)
        if record is None:
            continue
        sources = record["settings"]["checkpoint"]["encoders"]
        for encoder in record["result"]["scores"]:
            if encoder not in linked:
                known = {"run": training["result"]["description"] if training else "", "random": "none"}
                start = {"who": "ours", "encoder": encoder, "training": known.get(sources[encoder], sources[encoder])}
                found.setdefault(encoder, start | {"run": folder.name})
                found[encoder] |= _measured(name, record, encoder)
    return list(found.values())


def _measured(name: str, record: dict[str, Any], encoder: str) -> dict[str, Any]:
    score, section = record["result"]["scores"][encoder], record["settings"][name]
    default = _DEFAULTS[name].model_dump(mode="json")
    other = [f"{key} {section[key]}" for key in default if key not in NOT_A_RESULT and section[key] != default[key]]
    values = {key: score.get(key) for key in ("value", "low", "high", "clips")}
    values |= {"spread": "95 % interval over clips", "settings": ", ".join(other) or "protocol"}
    if section["root"] == "synthetic":
        values["settings"] += ", rendered clips"
    return {f"{name} {key}": value for key, value in values.items()}


def _studied(summary: Path) -> list[dict[str, Any]]:
    """Rows of a study: mean over seeds, spread of one standard deviation."""
    try:
        table = pd.read_csv(summary).set_index(["variant", "benchmark"])
        titles = read_json(summary.parent / "study.json")["variants"]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{summary} cannot be read ({error}); write it again: python -m tcore_lib study.") from error
    rows = []
    for variant, title in titles.items():
        row: dict[str, Any] = {
            "who": "ours",
            "encoder": title,
            "training": "study, see its page",
            "run": summary.parent.name,
        }
        for name in BENCHMARKS:
            if (variant, name) in table.index:
                mean, std, seeds = table.loc[(variant, name), ["mean", "std", "seeds"]]
                bounds = {} if math.isnan(std) else {"low": mean - std, "high": mean + std}
                values = {
                    "value": mean,
                    **bounds,
                    "spread": f"± 1 std over {seeds:.0f} seeds",
                    "settings": "protocol, rendered clips",
                }
                row |= {f"{name} {key}": value for key, value in values.items()}
        if any(f"{name} value" in row for name in BENCHMARKS):
            rows.append(row)
    return rows


def cell(row: pd.Series, name: str) -> str:
    """One score as text: `64.2 (+0.1)` for a reproduction, `33.2 [21.5, 47.0]` with a spread, or `not run`."""
    value = row[f"{name} value"]
    if pd.isna(value):
        return NOT_RUN
    text = f"{value:.1f}"
    if not pd.isna(row[f"{name} difference"]):
        text += f" ({row[f'{name} difference']:+.1f})"
    if not pd.isna(row[f"{name} low"]):
        text += f" [{row[f'{name} low']:.1f}, {row[f'{name} high']:.1f}]"
    return text


def as_shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text: who, encoder, training, the three scores, where from."""
    paper = table["who"] == "paper"
    origin = table["run"].fillna("").where(~paper, table["file"])
    shown = table[["who", "encoder", "training"]].copy()
    for name, (_, title) in BENCHMARKS.items():
        shown[title] = [cell(row, name) for _, row in table.iterrows()]
    return shown.assign(**{"file or run": origin.to_list()})


def as_markdown(table: pd.DataFrame, prefix: str = "") -> str:
    """As markdown; runs link to their folder, `prefix` + name."""
    shown = as_shown(table)
    runs_of = table["run"].fillna("")
    linked = [f"[{text}]({prefix}{run})" if run and ", " not in run else text
              for text, run in zip(shown["file or run"], runs_of, strict=True)]  # fmt: skip
    shown["file or run"] = linked
    return markdown.table(list(shown.columns), shown.to_numpy().tolist(), right=(3, 4, 5))


def as_html(table: pd.DataFrame) -> str:
    """As a page of its own; runs link to their folder beside it."""
    shown = as_shown(table)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in shown.columns)
    body = []
    for (_, row), run, who in zip(shown.iterrows(), table["run"].fillna(""), table["who"], strict=True):
        cells = [html.escape(str(text)) for text in row]
        if run and ", " not in run:
            cells[-1] = f'<a href="{html.escape(run, quote=True)}/">{cells[-1]}</a>'
        body.append(f'<tr class="{who}">' + "".join(f"<td>{text}</td>" for text in cells) + "</tr>")
    return _PAGE.format(head=head, body="\n".join(body), note=html.escape(NOTE))


NOTE = (
    "Scores in percent. paper: the authors' figures (paper.csv). reproduced: the same row measured here, with the difference "
    "to the paper in points. ours: other encoders and data, not comparable with the paper. Brackets: for runs the 95 % bootstrap "
    "interval over clips, for studies one standard deviation over seeds around the mean. All columns: paper_table.csv."
)
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>T-CoRe: paper and measured</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ padding: .35rem .7rem; text-align: left; border-bottom: 1px solid #8884; }}
td:nth-child(n+4):nth-child(-n+6) {{ font-variant-numeric: tabular-nums; white-space: nowrap; }}
tr.paper {{ font-weight: 600; }}
p {{ opacity: .8; }}
</style>
<h1>T-CoRe: paper and measured</h1>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table>
<p>{note}</p>
</html>
"""


def write(results: str | Path) -> pd.DataFrame:
    """Write `paper_table.csv`, `.md` and `.html` into `results`; returns the table."""
    results = Path(results)
    table = overview(results)
    write_text(results / "paper_table.csv", table.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
    page = f"# The paper's table and what was measured here\n\nWritten by `python -m tcore_lib table`. {NOTE}\n\n"
    write_text(results / "paper_table.md", page + as_markdown(table) + "\n")
    write_text(results / "paper_table.html", as_html(table))
    return table
