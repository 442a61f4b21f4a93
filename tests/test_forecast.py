"""The forecast: arithmetic by hand on given times, and real measurements of tiny profiles."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from test_pretrain import prepared
from tiny_problem import TINY, Pictures, tiny

from tcore_lib import machine
from tcore_lib.__main__ import main
from tcore_lib.training import forecast as forecasts
from tcore_lib.training.forecast import forecast

CPU = torch.device("cpu")


def given(**seconds: float) -> Any:
    """A measurement that finds these seconds for whatever it measures, and 3 GB at the peak."""
    return lambda *_: SimpleNamespace(median=seconds.get, peak=lambda: 3 * 10**9)


def test_loader_and_step_side_by_side_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """1.6 s of loading over 4 workers = 0.4 s > 0.15 + 0.05 s: the loader holds up; 1.6 / 0.2 = 8 are enough."""
    monkeypatch.setattr(forecasts, "_measured", given(load=1.6, gradients=0.15, update=0.05))
    cost = forecast(tiny(loop={"workers": 4}), Pictures(), torch.device("cuda"))
    assert (cost.bottleneck, cost.enough_workers, cost.memory_gb) == ("loader", 8, 3)
    assert cost.samples_per_second == pytest.approx(4 / 0.4)
    assert cost.hours == pytest.approx(8 * 0.4 / 3600)  # eight steps
    eight = forecast(tiny(loop={"workers": 8}), Pictures(), torch.device("cuda"))
    assert (eight.bottleneck, eight.samples_per_second) == ("step", pytest.approx(4 / 0.2))


def test_one_after_the_other_on_a_cpu_where_eight_samples_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight samples stand for 512: all but the update times 64."""
    monkeypatch.setattr(forecasts, "_measured", given(load=1.0, gradients=2.0, update=1.0))
    cost = forecast(tiny(loop={"batch_size": 512}), Pictures(), CPU)
    assert (cost.load_seconds, cost.step_seconds) == (64, 129)
    assert cost.samples_per_second == pytest.approx(512 / 193)
    assert cost.enough_workers == 0  # they would take the cores that compute


def test_command_measures_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "load", lambda: 1.5)
    profile = tmp_path / "p.yaml"
    prepared(tmp_path, loop={"max_steps": 8})
    profile.write_text(yaml.safe_dump({"pretrain": TINY, "run": {"device": "cpu"}, "data": {"root": str(tmp_path)}}))
    state = torch.get_rng_state()
    assert main(["forecast", str(profile), "--steps", "1"]) == 0
    assert torch.equal(torch.get_rng_state(), state)  # a throw-away model moves no generator
    said = capsys.readouterr().out
    assert said.startswith("Others keep 1.5 of this machine's")
    assert re.search(r"^hours +\d.*^bottleneck +step", said, re.MULTILINE | re.DOTALL)
