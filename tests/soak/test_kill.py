"""kill -9 at random moments, the same command again, and at last the very result of an undisturbed run."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from coded_videos import write_video
from commands import (
    Command,
    file_digests,
    kill_later,
    leftovers,
    moments,
    stamps,
    table_digest,
    wait_for,
    weights_digest,
)  # fmt: skip
from small_clips import write_small_davis
from test_notebooks import tiny_profile
from test_pretrain import prepared

pytestmark = pytest.mark.soak
MOMENTS = int(os.environ.get("TCORE_SOAK_MOMENTS", "25"))
MINUTES = float(os.environ.get("TCORE_SOAK_MINUTES", "15"))  # of killing; on a busy machine that may be fewer moments


@dataclass
class Campaign:
    """One kind of kill.

    Attributes:
        command: what is run.
        folder: where it writes; removed to begin anew.
        result: digests of what it is for, by name: compared with the undisturbed run's.
        finished: what is finished now -> when it was made; it must not be made again.
        ready: the command shows life; moments count from here.
        victim: the process to kill, None where it is not there.
        spread: moments lie in 0 ... spread seconds, or that share of the undisturbed run's time.
        of_whole: `spread` is a share.
        moments: how many.
        breaks: whether the kill of the victim must make the command fail with a code of its own.
    """

    command: Command
    folder: Path
    result: Callable[[], dict[str, str]]
    finished: Callable[[], dict[str, Any]]
    ready: Callable[[], object]
    victim: Callable[[subprocess.Popen[bytes]], int | None]
    spread: float
    breaks: bool = False
    of_whole: bool = False
    moments: int = MOMENTS

    def run(self, seed: int, line: Any) -> None:
        """All moments, resuming each time; then to the end. Notes how it went in a line of the table."""
        began = time.monotonic()
        self.command.run()
        expected = self.result()
        assert expected
        shutil.rmtree(self.folder)
        spread = self.spread * (time.monotonic() - began) if self.of_whole else self.spread
        delays, killed, complete, kept = iter(moments(seed, 4 * self.moments, spread)), 0, 0, {}
        end = time.monotonic() + 60 * MINUTES
        while killed < self.moments and time.monotonic() < end:
            process = self.command.start()
            hit = kill_later(process, self.ready, next(delays), lambda process=process: self.victim(process))
            process.wait(300)
            self.command.all_gone()
            killed += hit
            kept = self.nothing_made_again(kept)
            if hit and self.breaks:  # it was not the command itself that was killed: it has to fail, and to say so
                assert process.returncode > 0 or self.result() == expected, self.command.printed()[-2000:]
            if not hit and process.returncode == 0:  # it was through before its moment came: begin anew
                self.is_whole(expected)
                shutil.rmtree(self.folder)
                complete, kept = complete + 1, {}
            elif not hit:
                raise AssertionError(f"failed by itself: {self.command.printed()[-2000:]}")
        self.command.run()
        self.command.all_gone()
        kept = self.nothing_made_again(kept)
        self.is_whole(expected)
        self.command.run()  # everything is finished
        assert self.nothing_made_again(kept) == kept
        line.count = self.counted(killed, self.moments)
        runs = "one complete run" if complete == 0 else f"{complete + 1} complete runs"
        line.outcome = f"equal to the undisturbed run in all {len(expected):,} results ({runs})"

    def counted(self, killed: int, wanted: int) -> str:
        """The number of moments, and why there are fewer than wanted."""
        return f"{killed} moments" + (f" of {wanted} ({MINUTES:g} minutes were over)" if killed < wanted else "")

    def nothing_made_again(self, before: dict[str, Any]) -> dict[str, Any]:
        """What is finished now; what was finished before is still the same."""
        now = self.finished()
        changed = [name for name, when in before.items() if name in now and now[name] != when]
        assert not changed, f"finished and made again: {changed[:5]}"
        return before | now

    def is_whole(self, expected: dict[str, str]) -> None:
        """The result is the undisturbed run's, and nothing temporary lies about."""
        found = self.result()
        assert found == expected, [name for name in expected if found.get(name) != expected[name]]
        assert not leftovers(self.folder)


# ---------------------------------------------------------------------------------------------- the whole line


def notebooks(
    folder: Path, project: Path, tag: str, *options: str
) -> tuple[Command, Callable[[], dict[str, str]], Any]:
    """The driver on the smallest profile; its results; its finished stages."""
    profile = folder / "tiny.yaml"
    content = tiny_profile(folder / "work")
    content["pretrain"]["optimiser"] |= {"iterations_per_epoch": 20}
    content["pretrain"]["loop"] |= {"checkpoint_every": 5}
    profile.write_text(yaml.safe_dump(content))
    run, data = folder / "work/results/tiny", folder / "work/data"
    command = Command(["tcore_lib", "reproduce", str(profile), *options], project, tag, folder / "printed.txt")

    def result() -> dict[str, str]:
        found = {"weights": weights_digest(run / "checkpoints")}
        found |= {path.name: table_digest(path) for path in run.glob("*.csv") if path.name != "00_data_prep.runs.csv"}
        return found | file_digests(data, "index-*.parquet") | file_digests(data, "frames/**/*.jpg")

    def finished() -> dict[str, Any]:
        marks = {path.name: json.loads(path.read_text())["id"] for path in (run / ".finished").glob("[0-9]*")}
        return marks | stamps(data, "frames/**/*.jpg")

    return command, result, finished


def kernel_of(command: Command) -> int | None:
    kernels = [pid for pid, line in command.processes().items() if "ipykernel_launcher" in line]
    return kernels[0] if kernels else None


def test_notebooks(note: Any, project: Path, tag: str, tmp_path: Path) -> None:
    """Preparation, training and an evaluation in notebooks, killed in turn at the kernel and at the driver."""
    with note("kill_kernel") as kernels, note("kill_papermill") as drivers:
        command, result, finished = notebooks(tmp_path, project, tag, "--only", "00,01,03")
        hits = {"kernel": 0, "papermill": 0}

        def victim(process: subprocess.Popen[bytes]) -> int | None:
            turn = min(hits, key=hits.__getitem__)
            pid = kernel_of(command) if turn == "kernel" else process.pid
            hits[turn] += pid is not None
            campaign.breaks = turn == "kernel"
            return pid

        campaign = Campaign(
            command, tmp_path / "work", result, finished,
            ready=lambda: kernel_of(command) is not None, victim=victim, spread=0.1, of_whole=True, moments=2 * MOMENTS,
        )  # fmt: skip
        campaign.run(seed=1, line=kernels)
        drivers.outcome = kernels.outcome
        for line, kind in ((kernels, "kernel"), (drivers, "papermill")):
            line.count = campaign.counted(hits[kind], MOMENTS)


# ---------------------------------------------------------------------------------------------- training, two ranks


def test_rank(note: Any, project: Path, tag: str, tmp_path: Path) -> None:
    with note("kill_rank") as line:
        (tmp_path / "data").mkdir()
        settings = prepared(
            tmp_path / "data", optimiser={"epochs": 20.0, "iterations_per_epoch": 8},
            loop={"checkpoint_every": 5, "log_every": 1, "keep_last": 2},
        )  # fmt: skip
        content = settings.model_dump(mode="json") | {
            "run": {"name": "x", "results": str(tmp_path / "out"), "device": "cpu"}
        }
        (tmp_path / "p.yaml").write_text(yaml.safe_dump(content))
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tcore_lib"]
        words = [*torchrun, "pretrain", str(tmp_path / "p.yaml")]
        command = Command(words, project, tag, tmp_path / "printed.txt")
        run, pick = tmp_path / "out/x", np.random.default_rng(3)
        before: dict[str, int] = {}

        def grown() -> bool:
            """A new row of the log: the steps of this start have begun."""
            size = (run / "log.csv").stat().st_mtime_ns if (run / "log.csv").exists() else 0
            return size > before.get("log", 0)

        def rank(_: object) -> int | None:
            before["log"] = (run / "log.csv").stat().st_mtime_ns
            alive = command.processes().items()
            ranks = [pid for pid, text in alive if "tcore_lib pretrain" in text and "torch.distributed" not in text]
            return int(pick.choice(sorted(ranks))) if ranks else None

        def rows() -> dict[str, str]:
            """Rows of the log up to the newest checkpoint: their seconds would change if the steps were made again."""
            steps = sorted(int(path.stem[5:]) for path in (run / "checkpoints").glob("step-*.pt"))
            text = (run / "log.csv").read_text().splitlines()[1:] if steps and (run / "log.csv").exists() else []
            return {
                row.split(",")[0]: row
                for row in text
                if row.split(",")[0].isdigit() and int(row.split(",")[0]) <= steps[-1]
            }

        def result() -> dict[str, str]:
            return {"weights": weights_digest(run / "checkpoints"), "log": table_digest(run / "log.csv")}

        campaign = Campaign(command, tmp_path / "out", result, rows, grown, rank, spread=1.5, breaks=True)
        campaign.run(seed=4, line=line)


# ---------------------------------------------------------------------------------------------- data, evaluation


def test_preparation(note: Any, project: Path, tag: str, tmp_path: Path) -> None:
    with note("kill_preparation") as line:
        first = write_video(tmp_path / "in/c/000.mp4", frames=60, size=(320, 240))
        for number in range(1, 400):
            shutil.copy(first, tmp_path / f"in/c/{number:03d}.mp4")
        (tmp_path / "in/c/bad.mp4").write_bytes(first.read_bytes()[:3000])
        out = tmp_path / "out"
        words = ["tcore_lib", "prepare", str(tmp_path / "in"), str(out), "--frames", "8", "--workers", "2"]
        command = Command(words, project, tag, tmp_path / "printed.txt")
        seen = [0]

        def finished() -> int:
            return len(list(out.glob("frames/train/c/*")))

        def grown() -> bool:
            return finished() > seen[0]

        def main(process: subprocess.Popen[bytes]) -> int:
            seen[0] = finished()
            return process.pid

        def result() -> dict[str, str]:
            seen[0] = 0
            return (
                file_digests(out, "index-*.parquet")
                | file_digests(out, "frames/**/*.jpg")
                | file_digests(out, "bad_files.csv")
            )

        campaign = Campaign(
            command, out, result, lambda: stamps(out, "frames/**/*.jpg"), grown, main, spread=1.0,
        )  # fmt: skip
        campaign.run(seed=5, line=line)


def test_evaluation(note: Any, project: Path, tag: str, tmp_path: Path) -> None:
    with note("kill_evaluation") as line:
        root, out = (
            write_small_davis(tmp_path / "davis", [f"clip{i:02d}" for i in range(10)], frames=5),
            tmp_path / "out",
        )
        words = ["tcore_lib", "evaluate", "davis", "--root", str(root), "--encoder", "pixels", "--output", str(out)]
        command = Command(words, project, tag, tmp_path / "printed.txt")

        def result() -> dict[str, str]:
            scores = {"scores": json.dumps(json.loads((out / "summary.json").read_text())["scores"])}
            return scores | file_digests(out, "objects.csv") | file_digests(out, "predictions/**/*.png")

        campaign = Campaign(
            command, out, result, lambda: stamps(out, "clips/**/*.json"),
            ready=lambda: "fit for evaluation" in command.printed(), victim=lambda process: process.pid, spread=3.0,
        )  # fmt: skip
        campaign.run(seed=6, line=line)


def test_a_kill_is_noticed(project: Path, tag: str, tmp_path: Path) -> None:
    """The watchers themselves: an orphan, a leftover and a file made again are found."""
    command = Command(["http.server", "0", "--bind", "127.0.0.1"], project, tag, tmp_path / "printed.txt")
    process = command.start()
    wait_for(lambda: process.pid in command.processes(), 30)
    with pytest.raises(AssertionError, match="orphans"):
        command.all_gone(0.1)
    process.kill()
    process.wait()
    command.all_gone(10)
    (tmp_path / ".step-00000004.123.tmp.pt").touch()
    (tmp_path / "fine.pt").touch()
    assert leftovers(tmp_path) == [".step-00000004.123.tmp.pt"]
    campaign = Campaign(command, tmp_path, dict, lambda: {"a": 2}, bool, lambda _: None, 1.0)
    with pytest.raises(AssertionError, match="made again"):
        campaign.nothing_made_again({"a": 1})
