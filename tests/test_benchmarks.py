"""The benchmarks run, at sizes of seconds; what they say about speed is for quiet machines, and never asserted here."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


def run(name: str, *words: str | Path) -> None:
    command = [sys.executable, str(BENCHMARKS / name), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_the_gpu_script_does_every_part_at_tiny_size(tmp_path: Path) -> None:
    """What one call on a GPU will do, on a CPU: every figure is there."""
    run("gpu.py", "--tiny", "--output", tmp_path)
    step = read(tmp_path / "step.json")["vit_small"]
    seconds = step["seconds_per_step"]
    assert step["speed_up"] == pytest.approx(seconds["plain"] / seconds["ours"], rel=0.01)
    assert step["samples_per_second"].keys() >= {"ours", "plain"}
    assert all(step["seconds_per_part"][name] > 0 for name in ("teacher", "student", "decoder", "losses and backward"))
    assert "aten::addmm" in (tmp_path / "profile-vit_small.txt").read_text()
    whole = read(tmp_path / "end_to_end.json")["vit_small"]
    hours = 374_400 * 256 / whole["samples_per_second"] / 3600
    assert whole["hours_of_the_k400_row_at_that_rate"] == pytest.approx(hours, rel=0.01)
    encoder = load((tmp_path / "encoder.safetensors.0").read_bytes())
    assert encoder["patch_embed.proj.weight"].dtype == torch.float16
    assert len((tmp_path / "train.log.csv").read_text().splitlines()) == 1 + 2  # a row per step
    clips = read(tmp_path / "propagation.json")
    assert (clips["set of DAVIS size, cpu"]["clips"], clips["set of DAVIS size, cpu"]["frames"]) == (2, 5)
    assert clips["one clip, cpu"]["engine fp32"]["pixels"]["different"] == 0


def test_a_failing_part_stops_no_other_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu, asked = imported("gpu", monkeypatch), []
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--output", str(tmp_path), "--parts", "step,end_to_end"])
    monkeypatch.setitem(gpu.PARTS, "step", lambda args: 1 // 0)
    monkeypatch.setitem(gpu.PARTS, "end_to_end", asked.append)
    assert gpu.main() == 1
    assert len(asked) == 1
    assert "failed: step" in capsys.readouterr().out
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


def test_views_and_a_busy_machine_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views, busy = (imported(name, monkeypatch) for name in ("views", "busy"))
    for name in ("SAMPLES", "ROUNDS"):
        monkeypatch.setattr(views, name, 1)
    assert (views.measure(views.write_frames(tmp_path, 2)) > 0).all(axis=None)
    assert busy.measured("passive", threads=1, steps=1) > 0


def test_the_page_shows_the_figures_of_the_result_files(monkeypatch: pytest.MonkeyPatch) -> None:
    page = imported("page", monkeypatch)
    text = (BENCHMARKS / "README.md").read_text()
    assert page.filled(text) == text, "run: python benchmarks/page.py"
