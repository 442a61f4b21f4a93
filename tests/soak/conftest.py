"""The soak tests: everything that takes minutes. `make soak` runs them and writes results/benchmarks/reliability.md.

Each test replaces its own line of the table; a line keeps when and at which commit it was measured, so that a part can be
measured again. What has never been measured is shown as "not run".
"""

import datetime
import fcntl
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tabulate import tabulate

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "results" / "benchmarks" / "reliability.md"
LOCK = ROOT / ".pytest_cache" / "reliability.lock"  # two workers write the table
sys.path.insert(0, str(ROOT / "tests"))  # small_clips, coded_videos, mutations, ...

ROWS = {  # key -> (what, which promise)
    "kill_kernel": (
        "kill -9 of a notebook's kernel",
        "rerun equal to the bit, nothing finished made again, nothing left",
    ),
    "kill_papermill": ("kill -9 of papermill (the driver)", "the same; its kernel ends by itself"),
    "kill_rank": ("kill -9 of one rank of two", "the same; the other rank ends"),
    "kill_preparation": ("kill -9 of a data preparation", "the same"),
    "kill_evaluation": ("kill -9 of an evaluation", "the same"),
    **{
        f"{command}_{number}": (f"{word} during {command}", "a sentence, its exit code, nothing lost, no orphan")
        for number, word in (("SIGINT", "Ctrl-C"), ("SIGTERM", "SIGTERM"))
        for command in ("training", "preparation", "evaluation", "notebooks")
    },
    "two_at_once": ("two commands at once", "the same run: the second is refused; the same data: both equal"),
    "profiles": ("random damage to the shipped profiles", "a plan or one sentence"),
    "files": (
        "damaged files, every reader",
        "read, skipped or refused in one sentence; nothing elsewhere, nothing executed",
    ),
    "media": ("damaged videos, images, frame folders", "read or skipped with a reason; bounded memory"),
}
HEAD = """# Reliability

What `tests/soak` measured, line by line. `make soak` runs all of it and rewrites this file; faults that need only seconds
(full and read-only disks, vanished files, dead loader processes, full devices, NaN) are in `tests/test_faults.py`.

"""
COLUMNS = ("what", "promise", "how many", "outcome", "minutes", "when, commit")


class Note:
    """What a test found out, for its line of the table."""

    def __init__(self) -> None:
        self.count = ""
        self.outcome = ""


@pytest.fixture
def note() -> Callable[[str], object]:
    """`with note("kill_rank") as line:` writes the line when the test is through, or that it failed."""

    @contextmanager
    def noting(key: str) -> Iterator[Note]:
        assert key in ROWS
        line, began = Note(), time.monotonic()
        try:
            yield line
        except BaseException as error:
            line.outcome = f"**failed**: {' '.join(str(error).split())[:160].replace('|', '/')}"
            raise
        finally:
            when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
            minutes = f"{(time.monotonic() - began) / 60:.1f}"
            _write_line(key, [line.count, line.outcome, minutes, f"{when}, {_commit()}"])

    return noting


def _commit() -> str:
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    return asked.stdout.strip() or "no commit"


def _write_line(key: str, cells: list[str]) -> None:
    """Put one line into the table; the others stay as they are."""
    LOCK.parent.mkdir(exist_ok=True)
    with open(LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = {what: ["", "not run", "", ""] for what, _ in ROWS.values()}
        for line in TABLE.read_text().splitlines() if TABLE.exists() else []:
            what, _, *known = (
                (cell.strip() for cell in line.strip("|").split("|")) if line.count("|") == 7 else ("", "")
            )
            if what in lines:
                lines[what] = known
        lines[ROWS[key][0]] = cells
        rows = tabulate([[what, promise, *lines[what]] for what, promise in ROWS.values()], COLUMNS, tablefmt="github")
        machine = (
            f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        )
        TABLE.write_text(
            f"{HEAD}{rows}\n\nMachine: {machine}. Other work ran beside it; minutes are not a benchmark.\n"
        )


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the library, the notebooks and the profiles: a change of the checkout meanwhile changes nothing here."""
    root = tmp_path_factory.mktemp("project")
    for name in ("tcore_lib", "notebooks", "params"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "results").mkdir()
    shutil.copy(ROOT / "results" / "paper.csv", root / "results")
    return root


@pytest.fixture
def tag() -> str:
    """A mark in the environment of everything a test starts, by which it is found again."""
    return uuid.uuid4().hex
