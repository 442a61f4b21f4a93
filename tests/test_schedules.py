"""Schedules and parameter groups are the original's."""

import json
from pathlib import Path

import pytest
import torch

from tcore_lib import params
from tcore_lib.model.heads import ProjectionHead
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
# Printed by the original's schedule code for the K400 ViT-S/16 row (golden/schedules.json, global_batch_256).
K400 = {
    0: (0.0, 0.03999999999999998, 0.992, 0.04, 0.0, 0.0),
    1: (5.3421657139804475e-08, 0.0400000000063368, 0.9920000000001408, 0.04000106841411731, 0.0,
    5.342165713980448e-09),
    935: (4.994924942571719e-05, 0.04000553976789112, 0.9920001231059531, 0.0409989671996866, 0.0,
    4.994924942571719e-06),
    936: (5.000267108285699e-05, 0.04000555162393782, 0.9920001233694208, 0.041000035613803915, 5.000267108285699e-05,
    5.0002671082857e-06),
    18719: (0.001, 0.04221586242347719, 0.9920492413871884, 0.0599996438619609, 0.001, 0.0001),
    18720: (0.001, 0.04221609869287518, 0.9920492466376194, 0.060000712276078214, 0.001, 0.0001),
    28079: (0.0009982943185694458, 0.044973061743118325, 0.9921105124831804, 0.07, 0.0009982943185694458,
    9.983096850688203e-05),
    100000: (0.0008767122714316347, 0.09973618845120802, 0.9933274708544713, 0.07, 0.0008767122714316347,
    8.778229716890073e-05),
    374399: (1.0000000194843946e-06, 0.3999999999936632, 0.9999999999998592, 0.07, 1.0000000194843946e-06,
    1.0000000019308859e-06),
    374400: (1e-06, 0.4, 1.0, 0.07, 1e-06, 1e-06),
}  # fmt: skip


def schedules(**changes: object) -> Schedules:
    return Schedules(params.parse({"pretrain": changes}, "test").pretrain)


@pytest.mark.parametrize("step", K400)
def test_the_k400_row(step: int) -> None:
    hyper = schedules().at(step)
    assert tuple(getattr(hyper, name) for name in NAMES.values()) == pytest.approx(K400[step], rel=1e-12, abs=1e-20)


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


def test_max_steps_cuts_the_run_not_the_schedule() -> None:
    cut = schedules(loop={"max_steps": 5})
    assert (cut.steps, cut.total) == (5, 374400)
    assert schedules(loop={"max_steps": 10**9}).steps == 374400


# ---- multipliers of every parameter ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name", "lr", "decay"),
    [  # ViT-S: lr 0.9^(13 - layer), golden/param_groups.json
        ("encoder", "vit.cls_token", 0.2541865828329001, 1),  # 0.9^13
        ("encoder", "cls_pos", 0.2541865828329001, 1),
        ("encoder", "mask_token", 0.2541865828329001, 1),
        ("encoder", "vit.patch_embed.proj.weight", 0.05083731656658002, 1),  # 0.2 x 0.9^13
        ("encoder", "vit.patch_embed.proj.bias", 0.05083731656658002, 0),
        ("encoder", "vit.blocks.0.ls1.gamma", 0.2824295364810001, 0),  # 0.9^12
        ("encoder", "vit.blocks.11.attn.qkv.weight", 0.9, 1),
        ("encoder", "vit.blocks.11.norm2.weight", 0.9, 0),
        ("encoder", "vit.norm.weight", 1.0, 0),
        ("head", "last_layer.weight_g", 1.0, 1),
        ("head", "mlp.0.bias", 1.0, 0),
        ("decoder", "blocks.0.cross_attn.in_proj_bias", 1.0, 1),
        ("decoder", "blocks.0.cross_attn.out_proj.bias", 1.0, 0),
        ("decoder", "blocks.0.norm3.weight", 1.0, 0),
    ],
)
def test_multipliers(module: str, name: str, lr: float, decay: float) -> None:
    own = optimiser.group_of(module, name, params.Optimiser(), depth=12)
    rate = {"encoder": "encoder_lr", "decoder": "decoder_lr", "head": "lr"}[module]
    assert own == ("last_layer_lr" if "last_layer" in name else rate, pytest.approx(lr, rel=1e-14), decay)


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


def test_a_frozen_layer_does_not_move_but_the_rest_does() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(8, params.Head(prototypes=6, hidden=8, bottleneck=4))
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    stepper = optimiser.build({"head": head}, params.Optimiser(), depth=2)
    for step in (5, 935):  # the first epoch has 936 steps
        (head(torch.randn(5, 8)) @ head.last_layer().T).square().sum().backward()
        optimiser.apply(stepper, schedules().at(step))
        stepper.step()
    after = head.state_dict()
    assert all(torch.equal(before[name], after[name]) == name.startswith("last_layer") for name in before)


def test_clipping_is_per_module() -> None:
    modules = {name: torch.nn.Linear(2, 1, bias=False) for name in ("a", "b")}
    modules["a"].weight.grad = torch.tensor([[30.0, 40.0]])  # norm 50 -> 3
    modules["b"].weight.grad = torch.tensor([[0.3, 0.4]])  # norm 0.5, left alone
    norms = optimiser.clip(modules, 3.0)
    assert [norms[name].item() for name in "ab"] == pytest.approx([50, 0.5])
    assert modules["a"].weight.grad[0].tolist() == pytest.approx([1.8, 2.4])
    assert modules["b"].weight.grad[0].tolist() == pytest.approx([0.3, 0.4])
    optimiser.clip(modules, 0.0)
    assert modules["a"].weight.grad[0].tolist() == pytest.approx([1.8, 2.4])


def test_ema_by_hand() -> None:
    teacher, student = torch.nn.Parameter(torch.tensor([1.0])), torch.nn.Parameter(torch.tensor([5.0]))
    optimiser.ema([teacher], [student], 0.75)
    assert teacher.item() == 0.75 * 1 + 0.25 * 5
