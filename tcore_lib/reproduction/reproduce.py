"""From a parameter file to the table: all problems first, then notebook after notebook through papermill.

papermill, Jupyter and pandas are imported late: a profile is refused before the seconds that takes.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from filelock import FileLock, Timeout

from tcore_lib import params as parameters, runs
from tcore_lib.errors import InputError
from tcore_lib.params import Params

LAST_CHECKPOINT = 60.0  # seconds a kernel gets to end when Ctrl-C comes: a training writes its checkpoint then
IDLE = 2.0  # seconds it gets when no cell runs: now and then Jupyter loses the request to end, and half of this is waited for it
NEW_STATE = "5"  # seconds between two states of a notebook's own progress bars
PATIENCE = 1.0  # seconds to wait for another process that is about to end
NOISE = ("Input Notebook", "Output Notebook", "Working directory", "Executing notebook", "Ending Cell", "<Figure")


class Busy(InputError):
    """Another process works on the same run."""


def reproduce(
    profile: str | Path = "quick",
    *,
    only: str | None = None,
    force: bool = False,
    changes: Annotated[Sequence[str], Parameter(name="--set")] = (),
) -> int:
    """Run a profile's notebooks into results/RUN/notebooks/ and print the table.

    Finished and unchanged notebooks are skipped. The first failure stops the run; the same command continues it.

    Args:
        profile: a parameter file, or the name of one in params/.
        only: just these notebooks, such as 3 or 03,07.
        force: also run what is finished and unchanged.
        changes: SECTION.KEY=VALUE replaces one setting of the profile; may be repeated.

    Returns:
        The exit code: 0, or 1 after a failed notebook.
    """
    params = runs.checked_profile(profile, changes, lambda params: stages_to_run(params, only))
    return run_stages(params, only=only, force=force)


def stages_to_run(params: Params, only: str | None = None) -> list[str]:
    """The stages of a run, in order, without those that the profile disables; `only` as of `reproduce`."""
    numbers = {name[:2]: name for name in runs.STAGES}
    chosen = [word.strip().zfill(2) for word in only.split(",")] if only else list(numbers)
    for number in chosen:
        if number not in numbers:
            raise InputError(f"There is no notebook {number!r}; the notebooks are {', '.join(numbers)}.")
    left = [name for number, name in numbers.items() if number in chosen and runs.is_enabled(name, params)]
    if not left:
        raise InputError("Nothing is left to run: --only excludes all notebooks this profile enables.")
    return left


def run_stages(params: Params, *, only: str | None = None, force: bool = False) -> int:
    """`reproduce` for parameters that are already checked."""
    stages = stages_to_run(params, only)
    folder = runs.run_folder(params)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=PATIENCE)
    try:
        lock.acquire()
    except Timeout:
        raise Busy(f"Another process is running {folder}; wait for it, or give this one its own run.name.") from None
    began = time.monotonic()
    print(f"run {params.run.name!r} into {folder}", flush=True)
    with lock:
        for number, stage in enumerate(stages, 1):
            head = f"[{number}/{len(stages)}] {stage}"
            if not force and runs.is_finished(stage, params):
                print(f"{head}: finished earlier and unchanged, skipped", flush=True)
                continue
            print(head, flush=True)
            stage_began, output = time.monotonic(), folder / "notebooks" / f"{stage}.ipynb"
            if failure := run_notebook(stage, params, output):
                print(f"\n{stage} failed: {failure}\nThe notebook as far as it came: {output}", flush=True)
                return 1
            print(f"{head}: finished in {_clock(stage_began)}", flush=True)
    from tcore_lib.reproduction import table

    print(f"\n{table.summary_of(folder)}\n")
    print(f"{len(stages)} notebooks in {_clock(began)}: {folder / 'notebooks'}")
    print(f"Read on: tcore book {folder}   (one site of all chapters), or make lab", flush=True)
    return 0


def _clock(began: float) -> str:
    seconds = time.monotonic() - began
    return f"{int(seconds // 60)} min {seconds % 60:02.0f} s"


def run_notebook(stage: str, params: Params, output: Path) -> str:
    """Execute one notebook into `output`, its log above papermill's progress bar; returns why it failed, or "".

    papermill's own word is not enough: after a killed kernel the executed notebook says "completed". The stage's marker counts.
    """
    os.environ.setdefault("TQDM_MININTERVAL", NEW_STATE)  # read by tqdm when it is imported
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    class ThisInterpreter(AsyncKernelManager):
        """The kernel called python3 is this interpreter, whatever else is installed under that name."""

        shutdown_wait_time = IDLE
        kernel_spec_manager = KernelSpecManager(kernel_dirs=[])

    def wait_for(seconds: float) -> Callable[..., None]:
        return lambda **_: setattr(ThisInterpreter, "shutdown_wait_time", seconds)

    output.parent.mkdir(parents=True, exist_ok=True)
    runs.forget(stage, params)
    root = parameters.project_root()
    try:
        with _log():
            execute_notebook(
                root / "notebooks" / f"{stage}.ipynb", output, parameters=parameters.injected(params), cwd=root,
                kernel_name="python3", kernel_manager_class=ThisInterpreter, language="python",
                log_output=True, progress_bar=True,
                on_cell_execute=wait_for(LAST_CHECKPOINT), on_cell_complete=wait_for(IDLE),
                coalesce_streams=True,  # the states of a progress bar become one line of the saved notebook
                extra_arguments=["--log-level=50"],  # the kernel's remarks about itself stay off the terminal
            )  # fmt: skip
    except PapermillExecutionError as error:
        reason = error.evalue if error.ename == "InputError" else f"{error.ename}: {error.evalue}"
        return " ".join(reason.split())
    except RuntimeError as error:  # nbclient: the kernel died or did not start
        return f"{type(error).__name__}: {error}"
    if not runs.is_finished(stage, params):
        return "its last cell left no result, or notebook, library or parameters changed meanwhile; run the same command again"
    return ""


@contextmanager
def _log() -> Iterator[None]:
    """Inside, papermill's log (cells, and what they print) goes to the terminal, above its progress bar."""
    from papermill.log import logger
    from tqdm.contrib.logging import logging_redirect_tqdm

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("    %(message)s"))
    handler.addFilter(_worth_reading)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        with logging_redirect_tqdm([logger]):
            yield
    finally:
        logger.removeHandler(handler)


def _worth_reading(record: logging.LogRecord) -> bool:
    """Without names of files and figures; of a bar that redraws its line with carriage returns, the newest state."""
    lines = [line.rstrip("\r ").rpartition("\r")[2] for line in record.getMessage().split("\n")]
    record.msg, record.args = "\n    ".join(filter(str.strip, lines)), ()
    return bool(record.msg) and not record.msg.startswith(NOISE)
