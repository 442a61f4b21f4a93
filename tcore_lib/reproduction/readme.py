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
from tcore_lib.files import atomic_path, write_text
from tcore_lib.params import project_root
from tcore_lib.reproduction import table

SHOWN = ("quick", "released_checkpoints")  # published runs in README's table
COST_OF = "quick"  # the run whose stages stand in README's table of costs


def published(name: str = "") -> Path:
    """`results/published`, or one run in it."""
    return project_root() / "results" / "published" / name


def publish(run: str | Path) -> int:
    """Copy a run's results and tables (text only) to results/published/RUN, for git, and renew README's tables.

    Args:
        run: a run's folder, such as results/quick.

    Raises:
        InputError: the folder holds no finished stage.
    """
    folder = Path(run).absolute()
    found = [
        path for stage in runs.STAGES for path in sorted(folder.glob(f"{stage}*")) if path.suffix in (".json", ".csv")
    ]
    if not found:
        raise InputError(f"{folder} holds no result of a run; reproduce it first, or give another folder.")
    shutil.rmtree(published(folder.name), ignore_errors=True)  # stages that are no longer run go
    for path in found:
        with atomic_path(published(folder.name) / path.name) as temporary:
            shutil.copyfile(path, temporary)
    print(f"{len(found)} files in {published(folder.name)}")
    write_readme()
    return 0


def table_of(*names: str, readme: bool = False) -> int:
    """Print the paper's table beside what runs measured.

    Args:
        names: runs, by name or folder; all below results/ and results/published/ by default.
        readme: also renew README's tables, from what is published.

    Raises:
        InputError: there is no such run.
    """
    results = project_root() / "results"
    known = {folder.name: folder for place in (published(), results) for folder in runs.list_runs(place)}
    chosen = [known.get(name, Path(name)) for name in names] or list(known.values())
    for folder in chosen:
        if folder not in runs.list_runs(folder.parent):
            raise InputError(f"There is no run {folder}; the runs are {', '.join(known)}.")
    print(table.plain(table.show(table.of_runs(chosen))))
    if readme:
        write_readme()
    return 0


def write_readme(readme: Path | None = None) -> None:
    """Renew every block of README.md that stands between `<!-- NAME:begin ... -->` and `<!-- NAME:end -->`.

    Raises:
        InputError: README has a block that nothing here computes.
    """
    readme = readme or project_root() / "README.md"
    known = blocks()

    def renewed(found: re.Match[str]) -> str:
        if found["name"] not in known:
            raise InputError(f"{readme} has a block {found['name']!r}; known are {', '.join(known)}.")
        return f"{found['begin']}{known[found['name']]}\n{found['end']}"

    pattern = r"(?P<begin><!-- (?P<name>\w+):begin[^\n]*-->\n).*?(?P<end><!-- (?P=name):end -->)"
    write_text(readme, re.sub(pattern, renewed, readme.read_text(encoding="utf-8"), flags=re.DOTALL))


def blocks() -> dict[str, str]:
    """README's blocks as markdown, by name."""
    measured = table.of_runs(runs.list_runs(published()))
    first = table.show(measured[measured["run"].isin(SHOWN)])
    first["run"] = [f"[{run}](results/published/{run})" if run else "" for run in first["run"]]
    real = table.show(measured[measured["real"] & (measured["released"] == "")])
    real = real[real["who"] == "ours"].drop(columns=["who", "training"])
    ahead = pd.concat([table.differences(published(name)) for name in SHOWN])
    return {
        "table": table.markdown(first),
        "differences": table.markdown(table.show_differences(ahead)),
        "real": table.markdown(real) if len(real) else table.NOT_RUN,
        "data": table.markdown(data_rows()),
        "cost": table.markdown(cost_rows()),
    }


def data_rows() -> pd.DataFrame:
    """Every data set and checkpoint: for what, where from, licence, size, checksum (eight digits), how to get it."""
    rows = fetch.datasets_table()
    rows["data"] = [f"[{name}]({page})" for name, page in zip(rows["name"], rows["page"], strict=True)]
    rows["layout"] = [f"`{layout}`" for layout in rows["layout"]]
    rows["checksum"] = rows["checksum"].str.replace(r"([0-9a-f]{8})[0-9a-f]+", r"\1…", regex=True)
    rows["get it"] = [f"`{how}`" if how.startswith(("python", "tcore")) else "by hand" for how in rows["how"]]
    return rows[["data", "use", "licence", "size", "checksum", "layout", "get it"]]


def cost_rows() -> pd.DataFrame:
    """Minutes and memory of each stage of a published run, as text."""
    rows = table.provenance(published(COST_OF))
    for name in ("minutes", "peak memory, GB"):
        rows[name] = rows[name].map("{:.1f}".format)
    rows["command"] = [f"`tcore reproduce {COST_OF} --only {stage[:2]}`" for stage in rows["stage"]]
    return rows[["stage", "minutes", "peak memory, GB", "machine", "command"]]
