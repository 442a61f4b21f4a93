"""What git keeps of runs, and README's generated blocks, which are computed from nothing else.

A run writes into `results/<run>`, which git ignores. `publish` copies its text results to `results/published/<run>`: the only
writer there. So a newcomer's run changes neither what is committed nor README.
"""

import re
import shutil
from pathlib import Path

import pandas as pd

from tcore_lib import fetch, runs
from tcore_lib.errors import InputError
from tcore_lib.files import write_text
from tcore_lib.params import project_root
from tcore_lib.reproduction import table

SHOWN = ("quick", "released_checkpoints")  # published runs in README's table
SEEDS = (
    "quick",
    "quick_seed1",
    "quick_seed2",
)  # published runs whose differences stand there: three seeds of one profile
REAL = "real_clips"  # the run whose encoders stand in README's table of real clips
COST_OF = "quick"  # the run whose stages stand in README's table of costs


def published(name: str = "") -> Path:
    """`results/published`, or one run in it."""
    return project_root() / "results" / "published" / name


def publish(run: str | Path) -> int:
    """Copy a run's results and tables (text only) to results/published/RUN, for git, and renew README's tables.

    Args:
        run: a run's folder, such as results/quick.
    """
    folder = Path(run).absolute()
    if folder not in runs.list_runs(folder.parent):
        raise InputError(f"{folder} holds no result of a run; reproduce it first, or give another folder.")
    target = published(folder.name)
    shutil.rmtree(target, ignore_errors=True)  # stages that are no longer run go
    target.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        if path.name.split(".")[0] in runs.STAGES and path.suffix in (".json", ".csv"):
            shutil.copyfile(path, target / path.name)
    print(f"{len(list(target.iterdir()))} files in {target}")
    write_readme()
    return 0


def table_of(*names: str, readme: bool = False) -> int:
    """Print the paper's table beside what runs measured.

    Args:
        names: runs, by name or folder; all below results/ and results/published/ by default.
        readme: also renew README's tables, from what is published.
    """
    known = {folder.name: folder for place in (published(), published().parent) for folder in runs.list_runs(place)}
    chosen = [known.get(name, Path(name)) for name in names] or list(known.values())
    for folder in chosen:
        if folder not in runs.list_runs(folder.parent):
            raise InputError(f"There is no run {folder}; the runs are {', '.join(known)}.")
    print(table.markdown(table.show(table.of_runs(chosen)), "simple"))
    if readme:
        write_readme()
    return 0


def write_readme() -> None:
    """Renew every block of README.md that stands between `<!-- NAME:begin ... -->` and `<!-- NAME:end -->`."""
    path = project_root() / "README.md"
    text = path.read_text(encoding="utf-8")
    for name, block in blocks().items():
        old = re.search(rf"<!-- {name}:begin[^\n]*-->\n(.*?)<!-- {name}:end -->", text, re.DOTALL)
        if old:
            text = f"{text[: old.start(1)]}{block}\n{text[old.end(1) :]}"
    write_text(path, text)


def blocks() -> dict[str, str]:
    """README's blocks as markdown, by name."""
    shown = table.show(table.of_runs(map(published, SHOWN)))
    shown["run"] = [f"[{run}](results/published/{run})" if run else "" for run in shown["run"]]
    real = table.show(table.of_runs([published(REAL)]))
    real = real[real["who"] == "ours"].drop(columns=["who", "training"])

    data = fetch.datasets_table()
    data["data"] = "[" + data["name"] + "](" + data["page"] + ")"
    data["layout"] = "`" + data["layout"] + "`"
    data["checksum"] = data["checksum"].str.replace(r"([0-9a-f]{8})[0-9a-f]+", r"\1…", regex=True)
    data["get it"] = [f"`{how}`" if how.startswith("tcore") else "by hand" for how in data["how"]]

    cost = table.provenance(published(COST_OF)).round(1).astype(str)
    cost["command"] = [f"`tcore reproduce {COST_OF} --only {stage[:2]}`" for stage in cost["stage"]]
    return {
        "table": table.markdown(shown),
        "differences": table.markdown(table.show_differences(pd.concat(map(table.differences, map(published, SEEDS))))),
        "real": table.markdown(real) if len(real) else "not run",
        "data": table.markdown(data[["data", "use", "licence", "size", "checksum", "layout", "get it"]]),
        "cost": table.markdown(cost[["stage", "minutes", "peak memory, GB", "machine", "command"]]),
    }
