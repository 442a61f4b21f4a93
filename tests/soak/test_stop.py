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
CONTINUES = "the same command continues from what is finished."


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


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
class TestSignals:
    """Each stops a command in the middle of its work."""

    def test_training(self, note: Any, project: Path, tag: str, tmp_path: Path, number: signal.Signals) -> None:
        with note(f"training_{number.name}") as line:
            words, run = training(tmp_path, 400)
            command = Command(words, project, tag, tmp_path / "printed.txt")
            last = stopped(command, (run / "log.csv").exists, number)
            found = re.match(rf"tcore_lib: Stopped at step (\d+) of 400 by {number.name}; a checkpoint is in", last)
            assert found, last
            assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{int(found[1]):08d}.pt"]
            command.run()
            result = weights_digest(run / "checkpoints")
            shutil.rmtree(run)
            command.run()
            assert weights_digest(run / "checkpoints") == result
            line.outcome = f"stopped at step {found[1]} of 400; then equal to the undisturbed run"

    def test_preparation(self, note: Any, project: Path, tag: str, tmp_path: Path, number: signal.Signals) -> None:
        with note(f"preparation_{number.name}") as line:
            first = write_video(tmp_path / "in/c/000.mp4", frames=60, size=(320, 240))
            for other in range(1, 400):
                shutil.copy(first, tmp_path / f"in/c/{other:03d}.mp4")
            out = tmp_path / "out"
            words = ["tcore_lib", "prepare", str(tmp_path / "in"), str(out), "--workers", "2"]
            command = Command(words, project, tag, tmp_path / "printed.txt")
            last = stopped(command, lambda: any(out.glob("frames/train/c/*")), number)
            assert last.endswith(CONTINUES)
            assert not leftovers(out)
            done = len(list((out / "frames/train/c").iterdir()))
            assert 0 < done < 400
            assert "400 videos" in command.run()
            line.outcome = f"stopped after {done} of 400 videos; then all there"

    def test_evaluation(self, note: Any, project: Path, tag: str, tmp_path: Path, number: signal.Signals) -> None:
        with note(f"evaluation_{number.name}") as line:
            root, out = write_small_davis(tmp_path / "davis", [f"clip{i}" for i in range(6)]), tmp_path / "out"
            words = ["tcore_lib", "evaluate", "davis", "--root", str(root), "--encoder", "pixels", "--output", str(out)]
            command = Command(words, project, tag, tmp_path / "printed.txt")
            assert stopped(command, lambda: "fit for evaluation" in command.printed(), number).endswith(CONTINUES)
            done = len(list(out.glob("clips/*/*.json")))
            command.run()
            assert not leftovers(out)
            line.outcome = f"stopped after {done} of 6 clips; then all scored"

    def test_notebooks(self, note: Any, project: Path, tag: str, tmp_path: Path, number: signal.Signals) -> None:
        """The driver hears it, the kernel trains: it has to be told, and to write its checkpoint."""
        with note(f"notebooks_{number.name}") as line:
            command, _, _ = notebooks(tmp_path, project, tag, "--only", "00,01")
            run = tmp_path / "work/results/tiny"
            assert stopped(command, (run / "log.csv").exists, number).endswith(CONTINUES)
            saved = sorted(path.name for path in (run / "checkpoints").glob("step-*.pt"))
            assert saved
            assert not leftovers(tmp_path / "work")
            line.outcome = f"the kernel left {saved[-1]}"


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
