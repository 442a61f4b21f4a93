"""Each long command killed at random moments, and at last the very result of an undisturbed run. `make soak`."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from tabulate import tabulate

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from coded_videos import write_video  # noqa: E402
from small_clips import write_small_davis  # noqa: E402
from test_notebooks import tiny_profile  # noqa: E402

pytestmark = pytest.mark.soak
MOMENTS = int(os.environ.get("TCORE_SOAK_MOMENTS", "6"))  # of every kind
ROWS: list[tuple[str, str, str]] = []


@pytest.fixture(scope="module", autouse=True)
def reliability() -> Any:
    """After all four commands: the table results/benchmarks/reliability.md."""
    yield
    if len(ROWS) == len(COMMANDS) * len(SIGNALS):
        table = tabulate(ROWS, ("killed", "by", "outcome"), tablefmt="github")
        when = f"{datetime.now(UTC):%Y-%m-%d}, `make soak`"
        (ROOT / "results/benchmarks/reliability.md").write_text(f"# Reliability\n\n{when}: tests/soak.\n\n{table}\n")


def small_profile(folder: Path) -> str:
    content = tiny_profile(folder / "out")
    content["pretrain"]["optimiser"]["iterations_per_epoch"] = 40
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "tiny.yaml")


def preparation(folder: Path) -> list[str]:
    first = write_video(folder / "in/c/000.mp4", frames=60, size=(320, 240))
    for number in range(1, 200):
        shutil.copy(first, folder / f"in/c/{number:03d}.mp4")
    return ["prepare", str(folder / "in"), str(folder / "out"), "--frames", "8", "--workers", "2"]


def training(folder: Path) -> list[str]:
    profile = small_profile(folder)
    run(["reproduce", "--only", "00", profile], folder).wait()
    return ["pretrain", profile]


def evaluation(folder: Path) -> list[str]:
    root = write_small_davis(folder / "davis", [f"clip{i:02d}" for i in range(10)], frames=8)
    return ["evaluate", "davis", "--root", str(root), "--encoder", "pixels", "--output", str(folder / "out")]


def reproduction(folder: Path) -> list[str]:
    return ["reproduce", small_profile(folder), "--only", "00,01,03"]


COMMANDS: dict[str, tuple[Callable[[Path], list[str]], str]] = {  # and the files that must not be made again
    "preparation": (preparation, "frames/**/*.jpg"),
    "training": (training, "results/*/checkpoints/*0.pt"),
    "evaluation": (evaluation, "clips/**/*.json"),
    "reproduction": (reproduction, "data/frames/**/*.jpg"),
}
SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 143}  # -> the exit code


def run(words: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(folder / "printed.txt", "wb") as printed:
        command = [sys.executable, "-m", "tcore_lib", *words]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=printed, stderr=printed)


def results(out: Path) -> dict[str, str]:
    """File -> SHA-256 of what it says: bytes, a table without its times, the tensors of the newest checkpoint."""
    found = {}
    for path in sorted(out.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(out).parts):
            continue  # the state of a command in the middle of its work
        if path.suffix in (".jpg", ".png") and "figures" not in path.parts:
            content = path.read_bytes()
        elif path.suffix == ".csv":
            table = pd.read_csv(path)
            kept = [name for name in table if not re.search(r"second|memory|time|hours|speed", name)]
            content = table[kept].to_csv(index=False).encode()
        elif path.suffix == ".pt" and path == max(path.parent.glob("step-*.pt")):
            saved = torch.load(path, weights_only=True)
            parts = {name: saved[name] for name in ("student", "teacher", "auxiliary", "centres")}
            content = b"".join(tensor.numpy().tobytes() for part in parts.values() for tensor in part.values())
        else:
            continue
        found[str(path.relative_to(out))] = hashlib.sha256(content).hexdigest()
    return {name: digest for name, digest in found.items() if not name.endswith("00_data_prep.runs.csv")}


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment(name: str, number: signal.Signals, tmp_path: Path) -> None:
    prepare, finished = COMMANDS[name]
    words, out = prepare(tmp_path), tmp_path / "out"
    begun = tmp_path / "begun"  # what was there before the command, such as a training's data
    shutil.copytree(out, begun) if out.exists() else begun.mkdir()
    start = time.monotonic()
    assert run(words, tmp_path).wait(600) == 0, (tmp_path / "printed.txt").read_text()[-2000:]
    seconds, expected = time.monotonic() - start, results(out)
    assert expected
    shutil.rmtree(out)
    shutil.copytree(begun, out)
    hits, made = 0, {}
    for moment in np.random.default_rng(number).uniform(0.2, 0.9, MOMENTS):
        process = run(words, tmp_path)
        time.sleep(float(moment) * seconds)
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(number)
        code = process.wait(120)
        hits += code != 0
        assert code in (0, SIGNALS[number])
        assert not psutil.wait_procs(children, timeout=90)[1], "orphans"
        assert "Traceback" not in (tmp_path / "printed.txt").read_text()
        now = {path: path.stat().st_mtime_ns for path in out.glob(finished)}
        assert not [path for path, when in made.items() if now.get(path, when) != when], "finished, and made again"
        made |= now
    for _ in range(2):  # to the end; then everything is finished
        assert run(words, tmp_path).wait(600) == 0
        assert results(out) == expected
    assert not [path for path in out.rglob(".*") if re.fullmatch(r"\..*\.tmp(\.\w+)?", path.name)]
    ROWS.append((name, number.name, f"{hits} of {MOMENTS} moments hit; then equal in all {len(expected):,} files"))
