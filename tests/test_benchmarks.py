"""The benchmarks run, at sizes of seconds; what they say about speed is for quiet machines, and never asserted here."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tcore_lib.model.encoders import load_encoder

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


def run(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    return importlib.import_module(name)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_the_gpu_script_does_every_part_at_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one call on a GPU will do, on a CPU: every figure is there, and the encoder it hands over can be used."""
    gpu = imported("gpu", monkeypatch)
    bench = gpu.Bench(argparse.Namespace(output=tmp_path, tiny=True, clips=None, minutes=9.0))
    for part in gpu.PARTS:  # in this process, which has imported everything
        (tmp_path / part).mkdir()
        gpu.PARTS[part](bench, tmp_path / part)
    step = read(tmp_path / "step.json")["vit_small"]
    seconds = step["seconds_per_step"]
    assert step["speed_up"] == pytest.approx(seconds["plain"] / seconds["ours"], rel=0.01)
    assert step["samples_per_second"].keys() >= {"ours", "plain"}
    assert all(step["seconds_per_part"][name] > 0 for name in ("teacher", "student", "decoder", "losses and backward"))
    assert "aten::addmm" in (tmp_path / "profile-vit_small.txt").read_text()
    rates = read(tmp_path / "loader.json")["samples_per_second"]
    assert {"frames, 0 workers", "shards, 1 workers", "views on the device"} <= set(rates)
    assert all(rate > 0 for rate in rates.values())
    whole = read(tmp_path / "end_to_end.json")["vit_small"]
    hours = 374_400 * 256 / whole["samples_per_second"] / 3600
    assert whole["hours_of_the_k400_row_at_that_rate"] == pytest.approx(hours, rel=0.01)
    clips = read(tmp_path / "propagation.json")["set of DAVIS size, cpu"]
    assert (clips["clips"], clips["frames"]) == (2, 5)
    assert read(tmp_path / "propagation.json")["one clip, cpu"]["engine fp32"]["pixels"]["different"] == 0
    training = read(tmp_path / "train.json")
    assert training["what"].startswith("6 rendered videos, 10 steps")
    assert set(training["scores"]) == {"trained", "random", "pixels"}
    assert "davis J&F_m" in training["scores"]["trained"]
    assert load_encoder(tmp_path / "encoder.safetensors")(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 4, 32)


def test_a_machine_that_cannot_read_a_video_is_told_so_before_the_first_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyAV 14.0.0 did that to a whole lease: it lacks a name that ours needs."""
    gpu = imported("gpu", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--output", str(tmp_path)])
    monkeypatch.setattr(gpu, "in_its_own_process", lambda *_: pytest.fail("a part was started"))

    def old(*_: Any, **__: Any) -> None:
        raise AttributeError("module 'av.stream' has no attribute 'Disposition'")

    monkeypatch.setattr(gpu.videos, "prepare", old)
    assert gpu.main() == 1
    sentence = capsys.readouterr().err
    assert sentence.startswith("nothing was started: AttributeError: module 'av.stream'")


def test_a_failing_part_stops_no_other_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = imported("gpu", monkeypatch)
    arguments = ["gpu.py", "--tiny", "--output", str(tmp_path), "--parts", "loader,step", "--minutes", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    asked: list[str] = []

    def one(args: Any, part: str, seconds: float) -> bool:
        asked.append(part)
        return part != "loader"

    monkeypatch.setattr(gpu, "in_its_own_process", one)
    assert gpu.main() == 1
    assert asked == ["loader", "step"]
    if not torch.cuda.is_available():
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(tmp_path)])
        with pytest.raises(SystemExit):  # there is no GPU here
            gpu.main()


def test_two_ranks_are_measured(tmp_path: Path) -> None:
    run("scaling.py", "--steps", "1", "--output", tmp_path / "scaling.json")
    found = read(tmp_path / "scaling.json")
    assert [row["ranks"] for row in found["ranks"]] == [1, 2]
    assert found["ranks"][0]["gradient_bytes"] == found["ranks"][1]["gradient_bytes"]
    assert found["ranks"][1]["seconds_of_exchange"] > 0


def test_the_page_shows_the_figures_of_the_result_files(monkeypatch: pytest.MonkeyPatch) -> None:
    page = imported("page", monkeypatch)
    text = (BENCHMARKS / "README.md").read_text()
    assert page.filled(text) == text, "run: python benchmarks/page.py"


def test_a_busy_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = imported("busy", monkeypatch)
    assert busy.measured("passive", threads=1, steps=1) > 0
