"""Training on several devices from a notebook: a supervised torchrun whose log is followed live.

`python -m tcore_lib.launch ARGUMENTS` is torchrun itself, but one that ends with the process that started it; its ranks
end with it. So nothing is left behind when the notebook's kernel is killed.
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

from tcore_lib.errors import InputError
from tcore_lib.files import write_text
from tcore_lib.orphans import asked, follow_parent
from tcore_lib.params import Params
from tcore_lib.runs import run_folder
from tcore_lib.schedules import Schedules
from tcore_lib.training_log import read_log

OUTPUT = "pretrain-output.txt"  # what the processes print, in the run's folder
PROFILE = "pretrain-params.yaml"
POLL = 0.5  # seconds between looks at the log
PATIENCE = 90.0  # seconds the processes get to write a checkpoint and end


def launch(
    params: Params,
    devices: int,
    *,
    resume: bool = True,
    progress: bool = True,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> pd.DataFrame:
    """Train the profile in `devices` processes on this machine, into its run folder, on the index notebook 00 made.

    Args:
        params: the whole parameter file.
        devices: processes, one per GPU; on a CPU they share the cores.
        resume: as in `pretrain.pretrain`.
        progress: show a progress bar.
        on_log: called with every row of the log.

    Returns:
        The log.

    Raises:
        InputError: fewer GPUs than processes, or what the processes refused, in their words.
        KeyboardInterrupt: the kernel was interrupted; the processes have written a checkpoint and ended.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if params.run.device != "cpu" and available and devices > available:
        raise InputError(f"pretrain.loop.devices = {devices}, but this machine has {available} GPUs; lower it.")
    folder = run_folder(params)
    profile, log = folder / PROFILE, folder / "log.csv"
    write_text(profile, yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False))
    command = [sys.executable, "-m", "tcore_lib.launch", "--standalone", f"--nproc-per-node={devices}"]
    command += ["-m", "tcore_lib.launch", "--rank", str(profile), *([] if resume else ["--fresh"])]
    environment = asked(os.environ)
    if available == 0 or params.run.device == "cpu":
        cores = params.run.threads or os.cpu_count() or 1
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // devices)))
    with open(folder / OUTPUT, "w", encoding="utf-8") as printed:
        child = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
            command, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT, env=environment
        )
    try:
        _follow(child, log, Schedules(params.pretrain).steps, progress, on_log)
    finally:
        _end(child)
    if child.returncode:
        raise InputError(_reason(folder / OUTPUT, child.returncode))
    return read_log(log)


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
            if log.is_file() and log.stat().st_mtime >= began - 1:
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


def main(arguments: list[str]) -> int:
    """torchrun, or with `--rank` first, one of its ranks."""
    follow_parent()
    if arguments[:1] == ["--rank"]:
        from tcore_lib.params import load
        from tcore_lib.pretrain import run_profile

        return run_profile(load(arguments[1]), resume="--fresh" not in arguments, progress=False)
    from torch.distributed.run import main as torchrun

    torchrun(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
