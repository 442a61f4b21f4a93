"""One command from a parameter file to the paper's table: checks the profile, then runs the notebooks through papermill."""

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from papermill import execute_notebook
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from tcore_lib import params as parameters, runs
from tcore_lib.errors import InputError
from tcore_lib.machine.locks import sole_owner
from tcore_lib.params import Params
from tcore_lib.reproduction import table

LAST_CHECKPOINT = 60.0  # seconds a kernel gets to end when the driver is interrupted


def plan(params: Params, only: list[str] | None = None, start: str | None = None) -> list[str]:
    """The stages to run, in order.

    Args:
        params: the checked profile; stages it disables are left out.
        only: stage numbers such as `["03", "07"]`; None = all.
        start: the first stage number.

    Raises:
        InputError: a number names no notebook, or nothing is left to run.
    """
    numbers = {name[:2]: name for name in runs.STAGES}
    for number in [*(only or []), *([start] if start else [])]:
        if number not in numbers:
            raise InputError(f"There is no notebook {number!r}; the notebooks are {', '.join(numbers)}.")
    chosen = [
        name
        for number, name in numbers.items()
        if (not only or number in only) and (not start or number >= start) and runs.is_enabled(name, params)
    ]
    if not chosen:
        raise InputError("Nothing is left to run: --only and --from exclude all notebooks this profile enables.")
    return chosen


def reproduce(
    profile: str | Path,
    *,
    only: list[str] | None = None,
    start: str | None = None,
    force: bool = False,
    changes: Sequence[str] = (),
) -> int:
    """Run a profile's notebooks into `results/<run>/notebooks/` and print the table.

    Finished and unchanged stages are skipped, unless `force`. Stops at the first failure. `changes` replace single settings,
    see `params.changed`.

    Returns:
        The exit code: 0, or 1 after a failed notebook.

    Raises:
        InputError: the profile is wrong or another process runs it; nothing has been started then.
    """
    path = parameters.find_profile(profile)
    params = runs.checked_profile(profile, changes, lambda params: plan(params, only, start))
    sections = parameters.injected(params)
    stages = plan(params, only, start)
    folder = runs.run_folder(params)
    print(f"{path.name}: run {params.run.name!r} into {folder}", flush=True)
    began = time.monotonic()
    with sole_owner(folder / ".lock"):
        _say_cost(params, stages)
        for number, stage in enumerate(stages, 1):
            head = f"[{number}/{len(stages)}] {stage}"
            if not force and runs.is_finished(stage, params):
                print(f"{head}: finished earlier and unchanged, skipped", flush=True)
            elif not _run_stage(stage, sections, params, head):
                return 1
    print(f"\n{table.as_text(table.paper_table(params))}\n")
    print(f"{len(stages)} notebooks in {_clock(time.monotonic() - began)}: {folder / 'notebooks'}", flush=True)
    return 0


def _say_cost(params: Params, stages: list[str]) -> None:
    """Print what evaluations on a large real benchmark will take, if any of them is about to run."""
    ahead = {stage.split("_")[1] for stage in stages if not runs.is_finished(stage, params)}
    real = [name for name in ("davis", "jhmdb", "vip") if name in ahead and getattr(params, name).root != "synthetic"]
    if real:
        # late: it brings torch, which the quick profile's driver does without
        from tcore_lib.reproduction import evaluation_cost

        print(evaluation_cost.sentence(evaluation_cost.estimate(params)), flush=True)


def _run_stage(stage: str, sections: dict[str, Any], params: Params, head: str) -> bool:
    """Execute one notebook; True when its last cell wrote the marker."""
    source = parameters.project_root() / "notebooks" / f"{stage}.ipynb"
    output = runs.run_folder(params) / "notebooks" / source.name
    output.parent.mkdir(parents=True, exist_ok=True)
    runs.forget(stage, params)
    began = time.monotonic()
    print(head, flush=True)
    failure = ""
    try:
        with _LineEcho(sys.stdout) as echo:
            execute_notebook(
                str(source), str(output), parameters=sections, engine_name="tcore", kernel_name="python3", language="python",
                progress_bar=False, cwd=str(parameters.project_root()), stdout_file=echo, stderr_file=echo,
                coalesce_streams=True,  # a progress bar's states become one line of the saved notebook
                extra_arguments=["--log-level=50"],  # the kernel's own remarks, also at its end, stay off the terminal
            )  # fmt: skip
    except PapermillExecutionError as error:
        failure = error.evalue if error.ename == "InputError" else f"{error.ename}: {error.evalue}"
    except RuntimeError as error:  # nbclient: the kernel died or did not start
        failure = f"{type(error).__name__}: {error}"
    if not failure and not runs.is_finished(stage, params):
        failure = "the notebook, the library or the parameters changed while it ran; run the same command again"
        if not runs.has_marker(stage, params):
            failure = "the notebook ended without its last cell's result"
    if failure:
        print(f"\n{stage} failed: {' '.join(failure.split())}\nThe notebook as far as it came: {output}", flush=True)
        return False
    print(f"{head}: finished in {_clock(time.monotonic() - began)}", flush=True)
    return True


class _TitledEngine(NBClientEngine):
    """papermill's engine, saying on the terminal which cell runs and under which heading it stands."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
        # Ctrl-C interrupts the kernel; a training then writes its checkpoint, for which nbclient's 5 seconds are few.
        options["config"] = Config(KernelManager={"shutdown_wait_time": LAST_CHECKPOINT})
        cells = nb_man.nb.cells
        code = [index for index, cell in enumerate(cells) if cell.cell_type == "code"]
        cell_start = nb_man.cell_start

        def announce(cell: Any, cell_index: int, **rest: Any) -> Any:
            if cell.cell_type == "code":
                heading = _heading(cells[:cell_index])
                print(f"    cell {code.index(cell_index) + 1}/{len(code)}{heading}", flush=True)
            return cell_start(cell, cell_index, **rest)

        nb_man.cell_start = announce
        return super().execute_managed_notebook(nb_man, kernel_name, **options)


papermill_engines.register("tcore", _TitledEngine)


def _heading(cells: list[Any]) -> str:
    for cell in reversed(cells):
        if cell.cell_type == "markdown":
            titles = [line.lstrip("# ").strip() for line in cell.source.splitlines() if line.startswith("#")]
            if titles:
                return f"  {titles[-1]}"
    return ""


class _LineEcho(contextlib.AbstractContextManager["_LineEcho"]):
    """A text stream that turns a kernel's output into indented log lines.

    tqdm redraws its line with carriage returns; a log gets the newest state every few seconds and the last one.
    """

    def __init__(self, terminal: TextIO, every: float = 5.0) -> None:
        self.terminal, self.every = terminal, every
        self.partial, self.shown = "", 0.0

    def write(self, text: str) -> int:
        *lines, self.partial = (self.partial + text.replace("\r\n", "\n")).split("\n")
        for line in lines:
            self._show(line)
        if "\r" in self.partial and time.monotonic() - self.shown > self.every:
            self._show(self.partial)
        return len(text)

    def flush(self) -> None:
        self.terminal.flush()

    def _show(self, line: str) -> None:
        states = [state for state in line.split("\r") if state.strip()]
        if states:
            self.shown = time.monotonic()
            print(f"      {states[-1].rstrip()}", file=self.terminal, flush=True)

    def __exit__(self, *exc: object) -> None:
        self._show(self.partial)
        self.partial = ""


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)} min {seconds % 60:02.0f} s"
