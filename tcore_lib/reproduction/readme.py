"""The parts of README.md that are measured or listed elsewhere: written by `python -m tcore_lib table --readme`, never by hand."""

import re
from pathlib import Path

import pandas as pd

from tcore_lib import fetch, markdown
from tcore_lib.errors import InputError
from tcore_lib.files import write_text
from tcore_lib.params import Params, load, project_root
from tcore_lib.reproduction import paper_table, study_results
from tcore_lib.reproduction.study import load_study
from tcore_lib.reproduction.table import provenance_rows

COST_OF = "quick"  # the profile whose stages stand in the cost table
SHOWN = ("quick", "released_checkpoints")  # runs in README's table; a reader's own runs do not change it
STUDY = "small_scale"  # the study in README
LONG = "evening"  # the study of one long training, shown point by point


def cost_rows(params: Params) -> pd.DataFrame:
    """Minutes and memory of each stage of a run, as text."""
    rows = provenance_rows(params)
    rows["minutes"] = [f"{minutes:.1f}" for minutes in rows["minutes"]]
    rows["peak memory, GB"] = [f"{gigabytes:.1f}" for gigabytes in rows["peak memory, GB"]]
    command = f"python -m tcore_lib reproduce params/{params.run.name}.yaml --only "
    rows["command"] = [f"`{command}{stage[:2]}`" for stage in rows["stage"]]
    return rows[["stage", "minutes", "peak memory, GB", "machine", "command"]]


def data_rows() -> pd.DataFrame:
    """Every data set and checkpoint: for what, where from, licence, size, checksum, how to get it."""
    rows = fetch.datasets_table()
    rows["data"] = [f"[{name}]({page})" for name, page in zip(rows["name"], rows["page"], strict=True)]
    rows["layout"] = [f"`{layout}`" for layout in rows["layout"]]
    rows["checksum"] = [_shortened(sums) for sums in rows["checksum"]]
    rows["get it"] = ["by hand" if not how.startswith("python") else f"`{how}`" for how in rows["how"]]
    return rows[["data", "use", "licence", "size", "checksum", "layout", "get it"]]


def _shortened(sums: str) -> str:
    """Checksums cut to eight digits; `fetch` knows and compares all of them."""
    return re.sub(r"([0-9a-f]{8})[0-9a-f]+", r"\1…", sums)


def _all_of(rows: pd.DataFrame) -> str:
    return markdown.table(list(rows.columns), rows.to_numpy().tolist())


def _published(params: Params) -> Params:
    """The same run where its committed copy lies: a reader's own run does not change README."""
    return params.model_copy(update={"run": params.run.model_copy(update={"results": "results/published"})})


def study_block() -> str:
    """Scores and verdicts of the study."""
    study = load_study(STUDY)
    scores = study_results.scores(study)
    verdicts = study_results.verdict_lines(study, scores) if len(scores) else study_results.NOT_RUN
    return f"{study_results.score_lines(study, scores)}\n\n{verdicts}"


def long_block() -> str:
    """The long training, point by point."""
    study = load_study(LONG)
    scores = study_results.scores(study)
    return study_results.curve_lines(study, scores, "full") if len(scores) else study_results.NOT_RUN


def blocks() -> dict[str, str]:
    """What stands between `<!-- NAME:begin ... -->` and `<!-- NAME:end -->` in README.md."""
    overview = paper_table.overview(project_root() / "results" / "published", SHOWN)
    return {
        "table": paper_table.as_markdown(overview, "results/published/"),
        "study": study_block(),
        "evening": long_block(),
        "data": _all_of(data_rows()),
        "cost": _all_of(cost_rows(_published(load(COST_OF)))),
    }


def write_into(readme: Path) -> None:
    """Put all blocks into README.md.

    Raises:
        InputError: a block's marks are missing.
    """
    text = readme.read_text(encoding="utf-8")
    for name, block in blocks().items():
        pattern = rf"(<!-- {name}:begin[^\n]*-->\n).*?(<!-- {name}:end -->)"
        text, count = re.subn(pattern, lambda found: f"{found[1]}{block}\n{found[2]}", text, flags=re.DOTALL)  # noqa: B023
        if count != 1:
            raise InputError(
                f"{readme} has {count} blocks {name!r}; it needs one, between {name}:begin and {name}:end."
            )
    write_text(readme, text)
