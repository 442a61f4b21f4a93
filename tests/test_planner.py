"""The forecast: arithmetic by hand on given times, and real measurements of tiny profiles."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from tiny_problem import TINY, Pictures, tiny

from tcore_lib.__main__ import main
from tcore_lib.errors import InputError
from tcore_lib.machine.meter import Meter
from tcore_lib.training import forecast as planner
from tcore_lib.training.forecast import Forecast, MadeUpFrames, forecast, readable

CPU = torch.device("cpu")
GPU = Forecast(  # a step of 0.2 s, loading of 1.6 s
    device="NVIDIA H200", cores=16, devices=1, steps=36_000, batch_size=256, measured_samples=256, measured_steps=20,
    load_seconds=1.6, views_seconds=0.05, model_seconds=0.15, workers=4, memory_gb=30.0, gradient_gb=0.2,
)  # fmt: skip


def test_loader_and_step_side_by_side_on_a_gpu() -> None:
    """1.6 s of loading over 4 workers = 0.4 s > 0.2 s: the loader holds up; 1.6 / 0.2 = 8 workers are enough."""
    assert GPU.seconds == pytest.approx(0.4)
    assert GPU.bottleneck == "loader"
    assert GPU.enough_workers == 8
    assert GPU.hours == pytest.approx(4.0)  # 36,000 * 0.4 s
    assert GPU.samples_per_second == pytest.approx(640)  # 256 / 0.4
    eight = replace(GPU, workers=8)
    assert eight.bottleneck == "step"
    assert eight.hours == pytest.approx(2.0)
    assert "2.0 hours at 1.28e+03 samples/s, and 30 GB of memory" in str(eight)
    assert "the step is the bottleneck, 8 workers per rank are enough (this run uses 8)" in str(eight)


def test_loader_and_step_one_after_the_other_on_a_cpu() -> None:
    alone = replace(GPU, device="cpu", workers=0)
    assert alone.seconds == pytest.approx(1.8)
    assert alone.bottleneck == "loader"
    assert alone.enough_workers == 0  # they would take the cores that compute
    assert replace(alone, load_seconds=0.1).bottleneck == "step"


def test_durations_are_said_in_their_unit() -> None:
    assert readable(0.05) == "3.0 minutes"
    assert readable(26.0) == "26.0 hours"
    assert readable(24 * 400) == "400 days"


def test_a_real_profile_is_measured() -> None:
    got = forecast(tiny(), Pictures(), CPU, steps=4, seconds=30.0)
    assert (got.steps, got.batch_size, got.measured_samples, got.measured_steps) == (8, 4, 4, 4)
    assert not got.extrapolated
    assert 0 < got.load_seconds < 1
    assert 0 < got.views_seconds < got.step_seconds < 5
    assert 0.1 < got.memory_gb < 20
    assert got.gradient_gb == pytest.approx(4e-9 * sum(p.numel() for p in _parameters()), rel=1e-6)
    assert got.hours == pytest.approx(8 * (got.load_seconds + got.step_seconds) / 3600)
    assert list(got.table().index)[-1] == "workers"


def _parameters() -> list[torch.nn.Parameter]:
    from tcore_lib.training.tcore import TCoRe

    return [p for module in TCoRe(tiny().pretrain, 0).trained().values() for p in module.parameters()]


def test_a_batch_too_large_for_the_time_is_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time at all: the probe of four samples is scaled to a batch of 512, 128 times as much; the update is not."""
    monkeypatch.setattr(Meter, "median", lambda self, name: 1.0)
    got = forecast(tiny(loop={"batch_size": 512}), Pictures(), CPU, seconds=0.0)
    assert (got.measured_samples, got.measured_steps) == (4, 1)
    assert got.extrapolated
    assert "extrapolated to the whole batch" in str(got)
    assert (got.load_seconds, got.views_seconds, got.model_seconds) == (128.0, 128.0, 129.0)


def test_ranks_and_micro_batches_share_the_batch() -> None:
    got = forecast(tiny(loop={"batch_size": 24, "devices": 2, "accumulate": 3}), Pictures(), CPU, steps=2, seconds=60.0)
    assert (got.measured_samples, got.devices, got.extrapolated) == (12, 2, False)
    assert "2 x" not in str(got)  # a CPU is one, however many processes share it
    assert got.samples_per_second == pytest.approx(24 / got.seconds)


def test_nothing_is_left_behind() -> None:
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    forecast(tiny(), Pictures(), CPU, steps=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_full_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(planner.Trainer, "gradients", full)
    with pytest.raises(InputError, match=r"memory is full with pretrain\.loop.batch_size = 4"):
        forecast(tiny(), Pictures(), CPU)


def test_made_up_frames_cost_what_frames_cost() -> None:
    made = MadeUpFrames()
    (frame,) = made.read(3, [7])
    assert frame.shape == (256, 340, 3)
    assert 10_000 < len(made._jpeg) < 60_000  # a frame of Kinetics at quality 95: some 25 kB


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = tmp_path / "tiny.yaml"
    sections = {"pretrain": TINY, "run": {"device": "cpu"}, "data": {"root": str(tmp_path)}}
    profile.write_text(yaml.safe_dump(sections))
    assert main(["plan", str(profile), "--made-up-frames", "--steps", "2"]) == 0
    assert "8 steps of 4 samples on cpu" in capsys.readouterr().out
    assert main(["plan", str(profile)]) == 2
    assert "prepare the data first" in capsys.readouterr().err


def test_meter_sees_memory_that_is_used_and_given_back() -> None:
    meter = Meter(CPU)
    meter.reset_peak()
    before = meter.in_use()
    with meter("work"):
        torch.ones(60_000_000).sum()  # 240 MB
    assert meter.peak() - before > 200e6
    assert len(meter.seconds["work"]) == 1
    assert meter.median("work") > 0
