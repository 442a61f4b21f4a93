"""Ctrl-C, SIGTERM, and two commands at once: a sentence, a checkpoint, a code, and nothing lost."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from coded_videos import write_video
from commands import Command, file_digests, kill_later, leftovers, wait_for, weights_digest
from small_clips import write_small_davis
from test_kill import notebooks
from test_pretrain import prepared

pytestmark = pytest.mark.soak
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def training(folder: Path, steps: int) -> tuple[list[str], Path]:
    """The words of a training command in one process, and its run folder."""
    (folder / "data").mkdir()
    optimiser = {"epochs": steps / 8, "iterations_per_epoch": 8}
    settings = prepared(folder / "data", optimiser=optimiser, loop={"checkpoint_every": 10**6})
    run = {"name": "x", "results": str(folder / "out"), "device": "cpu"}
    (folder / "p.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json") | {"run": run}))
    return ["tcore_lib", "pretrain", str(folder / "p.yaml")], folder / "out/x"


def stopped(command: Command, ready: Callable[[], object], number: signal.Signals) -> str:
    """Stop a command after it shows life; gives its last line. Ctrl-C reaches all processes of a terminal's group."""
    process = command.start()
    assert kill_later(process, ready, 0.4, lambda: -process.pid if number == signal.SIGINT else process.pid, number)
    code = process.wait(120)
    printed = command.printed()
    assert code == CODES[number], printed[-3000:]
    assert "Traceback" not in printed, printed[-3000:]
    command.all_gone()
    return printed.strip().splitlines()[-1]


def test_signals(note: Any, project: Path, tag: str, tmp_path: Path) -> None:
    with note("stop_signals") as line:
        count = 0
        for number in CODES:
            folder = tmp_path / number.name
            folder.mkdir()
            words, run = training(folder, 800)
            command = Command(words, project, tag, folder / "train.txt")
            last = stopped(command, (run / "log.csv").exists, number)
            step = int(
                re.match(rf"tcore_lib: Stopped at step (\d+) of 800 by {number.name}; a checkpoint is in", last)[1]
            )  # type: ignore[index]
            assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{step:08d}.pt"]
            command.run()
            result = weights_digest(run / "checkpoints")
            shutil.rmtree(run)
            command.run()
            assert weights_digest(run / "checkpoints") == result

            first = write_video(folder / "in/c/000.mp4", frames=60, size=(320, 240))
            for other in range(1, 200):
                shutil.copy(first, folder / f"in/c/{other:03d}.mp4")
            out = folder / "prepared"
            command = Command(
                ["tcore_lib", "prepare", str(folder / "in"), str(out), "--workers", "2"],
                project,
                tag,
                folder / "prepare.txt",
            )
            journal = out / ".prepare-train/0-of-1.jsonl"
            last = stopped(command, lambda journal=journal: journal.exists() and journal.stat().st_size, number)
            assert last.endswith("the same command continues from what is finished.")
            assert not leftovers(out)
            assert "200 videos" in command.run()

            root, out = write_small_davis(folder / "davis", [f"clip{i}" for i in range(6)]), folder / "scores"
            words = ["tcore_lib", "evaluate", "davis", "--root", str(root), "--encoder", "pixels", "--output", str(out)]
            command = Command(words, project, tag, folder / "evaluate.txt")
            last = stopped(command, lambda command=command: "fit for evaluation" in command.printed(), number)
            assert last.endswith("the same command continues from what is finished.")
            command.run()
            assert not leftovers(out)

            (folder / "line").mkdir()
            command, _, _ = notebooks(folder / "line", project, tag)
            log = folder / "line/work/results/tiny/log.csv"
            last = stopped(command, log.exists, number)
            assert last.endswith("the same command continues from what is finished.")
            saved = list((log.parent / "checkpoints").glob("step-*.pt"))
            assert saved, "the kernel was interrupted and wrote its checkpoint"
            count += 4
        line.count = f"{count} commands: training, preparation, evaluation, notebooks"
        line.outcome = "all as promised"


def test_two_at_once(note: Any, project: Path, tag: str, tmp_path: Path) -> None:
    with note("two_at_once") as line:
        words, run = training(tmp_path, 4000)
        first = Command(words, project, tag, tmp_path / "first.txt")
        second = Command(words, project, tag, tmp_path / "second.txt")
        process = first.start()
        wait_for((run / "log.csv").exists, 180)
        refused = second.start()
        assert refused.wait(180) == 2
        assert re.fullmatch(
            rf"tcore_lib: {run} is in use by process {process.pid} on .*; wait for it, or give this run another run\.name\.",
            second.printed().strip(),
        ), second.printed()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 143
        first.all_gone()

        (tmp_path / "line").mkdir()
        driver, _, _ = notebooks(tmp_path / "line", project, tag)
        process = driver.start()
        wait_for(lambda: "cell 1" in driver.printed(), 180)
        again = Command(driver.words, project, tag, tmp_path / "again.txt")
        assert again.start().wait(180) == 2
        assert f"in use by process {process.pid} on " in again.printed()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(120) == 143
        driver.all_gone()

        root, outs = write_small_davis(tmp_path / "davis"), [tmp_path / "a", tmp_path / "b"]
        commands = [
            Command(["tcore_lib", "evaluate", "davis", "--root", str(root), "--encoder", "pixels", "--output", str(out)],
                    project, tag, out.with_suffix(".txt"))
            for out in outs
        ]  # fmt: skip
        for process in [command.start() for command in commands]:
            assert process.wait(300) == 0
        scores = [json.loads((out / "summary.json").read_text())["scores"] for out in outs]
        assert scores[0] == scores[1]
        files = [file_digests(out, "predictions/**/*.png") | file_digests(out, "objects.csv") for out in outs]
        assert files[0] == files[1]
        assert files[0]
        line.count = "training, notebooks, evaluation"
        line.outcome = "as promised; the refusal names the owner's process and machine"
