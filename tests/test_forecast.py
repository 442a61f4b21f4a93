"""The forecast: arithmetic by hand on given times, and real measurements of tiny profiles."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from tiny_problem import TINY, Pictures, tiny

from tcore_lib.__main__ import main
from tcore_lib.training import forecast as forecasts
from tcore_lib.training.forecast import MadeUpFrames, forecast, sentence
from tcore_lib.training.tcore import TCoRe

CPU = torch.device("cpu")


def given(load: float, views: float, model: float, update: float) -> Any:
    """A measurement that finds these seconds for whatever it measures."""

    class Given:
        seconds: ClassVar[dict[str, list[float]]] = {
            "load": [load],
            "views": [views],
            "model": [model],
            "update": [update],
        }

        def median(self, name: str) -> float:
            return self.seconds[name][0]

        def peak(self) -> int:
            return 3 * 10**9

    return lambda *_: (Given(), 10**9, 0)


def test_loader_and_step_side_by_side_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """1.6 s of loading over 4 workers = 0.4 s > 0.05 + 0.1 + 0.05 s: the loader holds up; 1.6 / 0.2 = 8 are enough."""
    monkeypatch.setattr(forecasts, "_measure", given(1.6, 0.05, 0.1, 0.05))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    cost = forecast(tiny(loop={"workers": 4}), Pictures(), torch.device("cuda"))
    assert (cost.bottleneck, cost.enough_workers) == ("loader", 8)
    assert cost.samples_per_second == pytest.approx(4 / 0.4)
    assert cost.hours == pytest.approx(8 * 0.4 / 3600)  # eight steps
    eight = forecast(tiny(loop={"workers": 8}), Pictures(), torch.device("cuda"))
    assert (eight.bottleneck, eight.samples_per_second) == ("step", pytest.approx(4 / 0.2))
    assert "8 steps of 4 samples on 1 x NVIDIA H200" in sentence(eight)


def test_one_after_the_other_on_a_cpu_and_a_batch_too_large_for_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe of four samples stands for 512: all but the update, and the memory of activations, times 128."""
    monkeypatch.setattr(forecasts, "_measure", given(1.0, 1.0, 1.0, 1.0))
    cost = forecast(tiny(loop={"batch_size": 512}), Pictures(), CPU, seconds=0.0)
    assert (cost.measured_samples, cost.load_seconds, cost.views_seconds, cost.model_seconds) == (4, 128, 128, 129)
    assert cost.samples_per_second == pytest.approx(512 / 385)
    assert cost.memory_gb == pytest.approx(1 + 2 * 128)
    assert cost.enough_workers == 0  # they would take the cores that compute


def test_real_profiles_are_measured_and_nothing_is_left_behind() -> None:
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    settings = tiny(loop={"batch_size": 24, "devices": 2, "accumulate": 3})
    cost = forecast(settings, Pictures(), CPU, steps=2, seconds=300.0)
    assert (cost.measured_samples, cost.measured_steps, cost.devices, cost.steps) == (12, 2, 2, 8)
    assert 0 < cost.views_seconds < cost.views_seconds + cost.model_seconds < 60
    assert 0.1 < cost.memory_gb < 20
    parameters = [p for module in TCoRe(tiny().pretrain, 0).trained().values() for p in module.parameters()]
    assert cost.gradient_gb == pytest.approx(4e-9 * sum(p.numel() for p in parameters), rel=1e-6)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_made_up_frames_cost_what_frames_cost() -> None:
    made = MadeUpFrames()
    (frame,) = made.read(3, [7])
    assert frame.shape == (256, 340, 3)
    assert 10_000 < len(made._jpeg) < 60_000  # a frame of Kinetics at quality 95: some 25 kB


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = tmp_path / "tiny.yaml"
    sections = {"pretrain": TINY, "run": {"device": "cpu"}, "data": {"root": str(tmp_path)}}
    profile.write_text(yaml.safe_dump(sections))
    assert main(["forecast", str(profile), "--made-up-frames", "--steps", "1"]) == 0
    assert "8 steps of 4 samples on a CPU" in capsys.readouterr().out
    assert main(["forecast", str(profile)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
