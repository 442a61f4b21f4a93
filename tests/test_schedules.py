"""Schedules and parameter groups are the original's."""

import json
from pathlib import Path

import pytest
import torch

from tcore_lib import params
from tcore_lib.training import optimiser
from tcore_lib.training.schedules import Schedules, cosine, linear

GOLDEN = Path(__file__).parent / "golden"
NAMES = {
    "lr": "lr",
    "wd": "weight_decay",
    "momentum": "momentum",
    "teacher_temp": "teacher_temperature",
    "last_layer_lr": "last_layer_lr",
    "aux_lr": "decoder_lr",
}


def schedules(**changes: object) -> Schedules:
    return Schedules(params.parse({"pretrain": changes}, "test").pretrain)


@pytest.mark.parametrize("key", ["global_batch_256", "shipped_script_4gpu_x_4_global_batch_16"])
def test_every_recorded_value(key: str) -> None:
    recorded = json.loads((GOLDEN / "schedules.json").read_text())[key]
    batch = {"global_batch_256": 256}.get(key, 16)
    ours = schedules(loop={"batch_size": batch})
    assert ours.peak_lr == pytest.approx(recorded["lr_after_scaling"], rel=1e-14)
    assert ours.total == recorded["epochs"] * recorded["iters_per_epoch"]
    for step, values in recorded["values"].items():
        hyper = ours.at(int(step))
        for theirs, name in NAMES.items():
            assert getattr(hyper, name) == pytest.approx(values[theirs], rel=1e-12, abs=1e-20), (step, name)


def test_shapes_of_the_curves() -> None:
    assert [cosine(i, 1.0, 0.0, 8, warmup=4) for i in (0, 3, 4, 6, 8, 99)] == pytest.approx([0, 1, 1, 0.5, 0, 0])
    assert [linear(i, 2.0, 4.0, 5) for i in (0, 2, 4, 5, 99)] == [2, 3, 4, 4, 4]
    assert linear(0, 2.0, 4.0, 0) == 4.0
    cut = schedules(loop={"max_steps": 5})  # cuts the run, not the schedule
    assert (cut.steps, cut.total) == (5, 374400)


def test_without_multipliers_only_the_decoder_has_its_own_lr() -> None:
    """The released code before October 2025: no layer decay, no frozen prototypes; weight decay multipliers stay."""
    settings = params.Optimiser(lr_multipliers=False)
    assert optimiser.group_of("encoder", "vit.patch_embed.proj.weight", settings, 12) == ("encoder_lr", 1.0, 1.0)
    assert optimiser.group_of("head", "last_layer.weight_v", settings, 12) == ("lr", 1.0, 1.0)
    assert optimiser.group_of("decoder", "blocks.0.linear.bias", settings, 12) == ("decoder_lr", 1.0, 0.0)


def test_a_held_encoder_and_one_with_a_rate_of_its_own() -> None:
    ours = schedules(optimiser={"hold_steps": 7, "encoder_lr": 0.1})
    assert [ours.at(step).encoder_lr for step in (5, 6)] == [0, 0]
    assert ours.at(7).encoder_lr == pytest.approx(0.1 * ours.at(7).lr)
    assert ours.at(7).lr > 0
    assert [schedules().at(step).last_layer_lr > 0 for step in (935, 936)] == [False, True]  # an epoch has 936 steps


def test_clipping_is_per_module() -> None:
    modules = {name: torch.nn.Linear(2, 1, bias=False) for name in ("a", "b")}
    modules["a"].weight.grad = torch.tensor([[30.0, 40.0]])  # norm 50 -> 3
    modules["b"].weight.grad = torch.tensor([[0.3, 0.4]])  # norm 0.5, left alone
    norms = optimiser.clip(modules, 3.0)
    assert [norms[name].item() for name in "ab"] == pytest.approx([50, 0.5])
    assert modules["a"].weight.grad[0].tolist() == pytest.approx([1.8, 2.4])
    assert modules["b"].weight.grad[0].tolist() == pytest.approx([0.3, 0.4])
