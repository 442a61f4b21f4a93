"""Training on several devices from a notebook: a supervised torchrun whose log is followed live.

The torchrun that is started ends with the process that started it (`orphans`), and its ranks end with it: nothing is
left behind when the notebook's kernel is killed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import yaml
from tqdm import tqdm

from tcore_lib.data.shards import open_index
from tcore_lib.errors import InputError
from tcore_lib.files import write_text
from tcore_lib.machine.orphans import asked
from tcore_lib.params import Params
from tcore_lib.runs import run_folder
from tcore_lib.training.loop import pretrain
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.training_log import LOG_NAME, read_log

OUTPUT = "pretrain-output.txt"  # what the processes print, in the run's folder
PROFILE = "pretrain-params.yaml"
POLL = 0.5  # seconds between looks at the log
PATIENCE = 90.0  # seconds the processes get to write a checkpoint and end


def train(
    params: Params,
    *,
    resume: bool = True,
    progress: bool = True,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> pd.DataFrame:
    """Train a profile into its run folder, on the index notebook 00 made: what notebook 01 calls.

    With `pretrain.loop.devices` = 1 in this process, else in as many processes on this machine (`launch`).

    Args:
        params: the whole parameter file.
        resume: as in `pretrain.pretrain`.
        progress: show a progress bar.
        on_log: called with every row of the log, e.g. to draw it.

    Returns:
        The log.

    Raises:
        InputError: as `pretrain.pretrain` and `launch`.
        KeyboardInterrupt: stopped; a checkpoint has been written.
    """
    if params.pretrain.loop.devices > 1:
        return launch(params, params.pretrain.loop.devices, resume=resume, progress=progress, on_log=on_log)
    index = open_index(params.data)
    return pretrain(params, index, run_folder(params), resume=resume, progress=progress, on_log=on_log)


def launch(
    params: Params,
    devices: int,
    *,
    resume: bool = True,
    progress: bool = True,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> pd.DataFrame:
    """Train in `devices` processes, one per GPU; on a CPU they share the cores. See `train`.

    Raises:
        InputError: fewer GPUs than processes, or what the processes refused, in their words.
        KeyboardInterrupt: the kernel was interrupted; the processes have written a checkpoint and ended.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if params.run.device != "cpu" and available and devices > available:
        raise InputError(f"pretrain.loop.devices = {devices}, but this machine has {available} GPUs; lower it.")
    folder = run_folder(params)
    write_text(folder / PROFILE, yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False))
    torchrun = ["-m", "tcore_lib.machine.orphans", "--standalone", f"--nproc-per-node={devices}"]
    rank = ["-m", "tcore_lib.training.loop", str(folder / PROFILE), *([] if resume else ["--fresh"])]
    environment = asked(os.environ)
    if available == 0 or params.run.device == "cpu":
        cores = params.run.threads or os.cpu_count() or 1
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // devices)))
    with open(folder / OUTPUT, "w", encoding="utf-8") as printed:
        child = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
            [sys.executable, *torchrun, *rank],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        _follow(child, folder / LOG_NAME, Schedules(params.pretrain).steps, progress, on_log)
    finally:
        _end(child)
    if child.returncode:
        raise InputError(_reason(folder / OUTPUT, child.returncode))
    return read_log(folder / LOG_NAME)


def _follow(
    child: subprocess.Popen[bytes],
    log: Path,
    steps: int,
    progress: bool,
    on_log: Callable[[dict[str, float]], None] | None,
) -> None:
    """Hand over the log's new rows until the child ends."""
    began, shown = time.time(), 0
    with tqdm(total=steps, unit="step", desc="pretraining", file=sys.stdout, disable=not progress) as bar:
        while True:
            ended = child.poll() is not None
            if written_at(log) >= began - 1:
                rows = read_log(log)
                rows = rows[rows["step"] > shown] if len(rows) else rows
                for row in rows.to_dict("records"):
                    shown = int(row["step"])
                    bar.n = shown
                    bar.set_postfix_str(f"{row['samples_per_second']:.1f} samples/s, loss {row['total']:.4f}")
                    if on_log is not None:
                        on_log(row)
            if ended:
                return
            time.sleep(POLL)


def written_at(path: Path) -> float:
    """Unix time in seconds of a file's last change; 0 where there is none (a new run removes the log of the last one)."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask the child to end, and make it end if it does not."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _reason(printed: Path, code: int) -> str:
    """Why the processes failed: the sentence of ours they printed last, else where to read on."""
    lines = printed.read_text(encoding="utf-8", errors="replace").splitlines()
    ours = [line.split("tcore_lib: ", 1)[1] for line in lines if "tcore_lib: " in line]
    if ours:
        return ours[-1]
    return f"The training processes ended with code {code}; {printed} holds what they printed."
