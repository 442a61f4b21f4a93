"""Real commands, watched from outside: their processes, their ends, and what they leave on disk."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

MARK = "TCORE_SOAK"
LIMIT = 600.0  # seconds for anything
LEFTOVER = re.compile(r"\..*\.tmp(\.\w+)?|scratch-.*|\.unpack-.*")


@dataclass
class Command:
    """A command of the library in a copy of the project.

    Attributes:
        words: what stands after `python -m`.
        project: where it runs.
        tag: the mark of all its processes.
        log: file for what it prints.
    """

    words: list[str]
    project: Path
    tag: str
    log: Path

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, in a session of its own, with Ctrl-C as a terminal gives it (a shell's `&` would have it ignored)."""

        def heed() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        environment = {**os.environ, "PYTHONPATH": str(self.project), MARK: self.tag, "OMP_NUM_THREADS": "1"}
        with open(self.log, "wb") as printed:
            return subprocess.Popen(
                [sys.executable, "-m", *self.words], stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT,
                cwd=self.project, env=environment, start_new_session=True, preexec_fn=heed,
            )  # fmt: skip

    def run(self) -> str:
        """Run it to its end, which has to be a good one; gives what it printed."""
        process = self.start()
        process.wait(LIMIT)
        assert process.returncode == 0, self.printed()[-2000:]
        return self.printed()

    def printed(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def processes(self) -> dict[int, str]:
        """Process id -> command line of everything alive that this command started."""
        found = {}
        wanted = f"{MARK}={self.tag}".encode()
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    if wanted in (folder / "environ").read_bytes().split(b"\0"):
                        found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:
                    continue
        return {pid: line for pid, line in found.items() if line}  # an empty line is a process that has ended

    def all_gone(self, seconds: float = 90.0) -> None:
        """Wait until nothing of it is alive; what stays is an orphan."""
        wait_for(lambda: not self.processes(), seconds, lambda: f"orphans: {self.processes()}")


def wait_for(condition: Callable[[], object], seconds: float, why: Callable[[], str] = lambda: "") -> None:
    """Look again and again, up to a limit."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s {why()}"
        time.sleep(0.02)


def kill_later(
    process: subprocess.Popen[bytes], ready: Callable[[], object], delay: float, victim: Callable[[], int | None],
    number: signal.Signals = signal.SIGKILL,
) -> bool:  # fmt: skip
    """Wait until `ready()`, then `delay` seconds, and send the victim a signal, as soon as there is one.

    Returns:
        False where the command ended before.
    """
    end = time.monotonic() + LIMIT
    while not ready():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end
        time.sleep(0.01)
    end = time.monotonic() + delay
    while time.monotonic() < end:
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    while (target := victim()) is None:  # between two notebooks there is no kernel
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    try:
        os.kill(target, number)
    except ProcessLookupError:
        return False
    return True


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders below a folder."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if LEFTOVER.fullmatch(path.name)]


def weights_digest(checkpoints: Path) -> str:
    """Hex SHA-256 of all numbers of the newest checkpoint: weights, centres, optimiser."""
    newest = sorted(checkpoints.glob("step-*.pt"))[-1]
    content = torch.load(newest, map_location="cpu", weights_only=True)
    digest = hashlib.sha256(str(content["step"]).encode())

    def add(value: object, name: str) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                add(value[key], f"{name}.{key}")

    for part in ("student", "teacher", "auxiliary", "centres", "optimiser"):
        add(content[part], part)
    return digest.hexdigest()


def table_digest(path: Path) -> str:
    """Hex SHA-256 of a CSV without its columns of time and memory."""
    table = pd.read_csv(path)
    kept = [name for name in table if not re.search(r"second|memory|time|hours|speed", name)]
    return hashlib.sha256(table[kept].to_csv(index=False).encode()).hexdigest()


def file_digests(folder: Path, pattern: str) -> dict[str, str]:
    """Relative path -> hex SHA-256 of the files that match."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }


def stamps(folder: Path, pattern: str) -> dict[str, int]:
    """Relative path -> time of writing (ns) of the files that match."""
    found = {}
    for path in sorted(folder.glob(pattern)):
        try:
            found[str(path.relative_to(folder))] = path.stat().st_mtime_ns
        except OSError:  # just replaced
            continue
    return found


def moments(seed: int, count: int, spread: float) -> np.ndarray:
    """Seconds after a command shows life, `count` of them in 0 ... spread, the same for the same seed."""
    return np.random.default_rng(seed).uniform(0, spread, count)
