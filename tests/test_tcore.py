"""The step: every option runs, what is left out changes nothing, and splits of the batch do not matter."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plain_step
import pytest
import torch
from tiny_problem import formula_views, formula_weights, noise, step_plan, tiny
from torch import Tensor

from tcore_lib.errors import InputError
from tcore_lib.params import parse
from tcore_lib.training import optimiser
from tcore_lib.training.draws import draw_keep, plan_masks
from tcore_lib.training.official import load_official_weights, official_weights, reported
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.step import Trainer, not_compiled
from tcore_lib.training.tcore import TCoRe

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
CPU = torch.device("cpu")
FULL = {"dino_global", "dino_local", "koleo", "patch_past", "patch_future", "agreement"}


def wide_trainer(**changes: Any) -> Trainer:
    """A tiny trainer in float64 with weights by formula, without stochastic depth unless asked for."""
    changes = {"encoder": {"drop_path": 0.0} | changes.pop("encoder", {}), **changes}
    changes["loop"] = {"precision": "fp64"} | changes.get("loop", {})
    trainer = Trainer(tiny(**changes).pretrain, 0, CPU)
    formula_weights(trainer.model.student)
    if trainer.model.decoder is not None:
        formula_weights(trainer.model.decoder)
    formula_weights(trainer.model.teacher)
    return trainer


def some_samples(views: dict[str, Tensor], place: list[int], samples: int) -> dict[str, Tensor]:
    """The same views for some of the samples; crop-major."""
    rows = {name: len(x) // samples for name, x in views.items()}
    return {name: x[[crop * samples + i for crop in range(rows[name]) for i in place]] for name, x in views.items()}


def grads(model: TCoRe) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- exactness of what is saved -------------------------------------------------------------------------------------


def test_forward_equals_the_step_as_the_method_says_it() -> None:
    """Only masked crops through auxiliary and decoder, one head pass, no logits held: same numbers and gradients."""
    trainer = wide_trainer()
    views, plan = formula_views(trainer.settings, 4), step_plan(trainer.settings, range(4))
    values = trainer.gradients([(views, plan)], Schedules(trainer.settings).at(3))
    model, temperature = trainer.model, Schedules(trainer.settings).at(3).teacher_temperature
    ours = grads(model)
    centres = [model.cls_centre.clone(), model.patch_centre.clone()]
    trainer.model.update_centres(4, plan.masked)
    moved = [model.cls_centre.clone(), model.patch_centre.clone()]
    model.cls_centre.copy_(centres[0])
    model.patch_centre.copy_(centres[1])
    trainer.optimiser.zero_grad()
    total, terms = plain_step.losses(model, views, plan.masks, temperature)
    total.backward()
    assert set(terms) == FULL
    for name, term in (terms | {"total": total}).items():
        # patch weights are float32 in the method's original, which costs 1e-8
        assert values[name].item() == pytest.approx(term.item(), rel=3e-8), name
    for name, theirs in grads(model).items():
        assert (ours[name] - theirs).abs().max() <= 1e-7 * theirs.abs().max() + 1e-14, name
    assert set(ours) == set(grads(model))
    for mine, theirs in zip(moved, (model.cls_centre, model.patch_centre), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("blocks", [1, 3])
def test_wanted_patches_of_the_decoder_are_those_of_the_whole(blocks: int) -> None:
    decoder = wide_trainer(decoder={"num_blocks": blocks}).model.decoder
    torch.manual_seed(0)
    x, auxiliary = torch.randn(2, 3, 16, 32, dtype=torch.float64)
    wanted = torch.tensor([[0, 5], [15, 2], [7, 7]])
    whole = decoder(x, auxiliary)
    part = decoder(x, auxiliary, wanted)
    torch.testing.assert_close(part, torch.stack([whole[i, wanted[i]] for i in range(3)]), rtol=1e-12, atol=1e-13)
    weights = decoder.cross_attention(x, auxiliary)
    assert weights.shape == (3, 4, 16, 16)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 16, dtype=torch.float64))


def test_attn_mul_scales_the_cross_attention() -> None:
    off = wide_trainer(decoder={"attn_mul": 0.0}).model.decoder
    torch.manual_seed(0)
    x, a, b = torch.randn(3, 2, 16, 32, dtype=torch.float64)
    assert torch.equal(off(x, a), off(x, b))  # times 0: the auxiliary frame does not count
    on = wide_trainer(decoder={"attn_mul": 4.0}).model.decoder
    assert not torch.allclose(on(x, a), on(x, b), rtol=1e-3)


# ---- splits of the batch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_accumulation_changes_nothing(drop_path: float) -> None:
    """Four samples at once, or in two micro-batches with unequally many masked patches: same loss, gradients, centres.

    KoLeo is off: its neighbours are those of the micro-batch.
    """
    changes: dict[str, Any] = {"loss": {"koleo": 0.0}, "encoder": {"drop_path": drop_path}}
    whole = wide_trainer(**changes)
    parts = wide_trainer(**changes, loop={"accumulate": 2})
    views, hyper = formula_views(whole.settings, 4), Schedules(whole.settings).at(3)
    values = whole.gradients([(views, step_plan(whole.settings, range(4)))], hyper)
    halves = [[0, 1], [2, 3]]
    plans = [step_plan(parts.settings, half) for half in halves]
    assert len({len(plan.tokens) for plan in plans}) == 2
    batches = [(some_samples(views, half, 4), plan) for half, plan in zip(halves, plans, strict=True)]
    summed = parts.gradients(batches, hyper)
    for name in set(values) - {"feature_std"}:  # a spread over fewer samples is another figure
        assert summed[name].item() == pytest.approx(values[name].item(), rel=1e-12), name
    ours, theirs = grads(parts.model), grads(whole.model)
    for name, gradient in theirs.items():
        # positions of local crops pass through float32
        tolerance = 1e-7 if "pos" in name else 1e-11
        assert (ours[name] - gradient).abs().max() <= tolerance * gradient.abs().max(), name
    for trainer in (whole, parts):
        trainer.update(hyper)
    torch.testing.assert_close(parts.model.cls_centre, whole.model.cls_centre, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(parts.model.patch_centre, whole.model.patch_centre, rtol=1e-12, atol=1e-15)


def test_a_micro_batch_without_masked_patches_still_gives_every_gradient() -> None:
    """DistributedDataParallel would wait forever for a parameter that got none."""
    trainer = wide_trainer()
    plan = plan_masks(np.zeros((8, 16), dtype=bool), 4, 30)
    values = trainer.gradients([(formula_views(trainer.settings, 4), plan)], Schedules(trainer.settings).at(1))
    assert all(p.grad is not None for module in trainer.model.trained().values() for p in module.parameters())
    assert values["patch_past"] == values["agreement"] == 0
    before = trainer.model.patch_centre.clone()
    trainer.model.update_centres(4, 0)
    assert torch.equal(trainer.model.patch_centre, before)  # no patch was seen: the centre stays


def test_the_teacher_only_follows() -> None:
    trainer = wide_trainer()
    model, hyper = trainer.model, Schedules(trainer.settings).at(3)
    before = copy.deepcopy(model.teacher)
    trainer.step([(formula_views(trainer.settings, 4), step_plan(trainer.settings, range(4)))], hyper)
    assert not any(p.requires_grad or p.grad is not None for p in model.teacher.parameters())
    for old, new, student in zip(
        before.parameters(), model.teacher.parameters(), model.student.parameters(), strict=True
    ):
        expected = old * hyper.momentum + student * (1 - hyper.momentum)
        torch.testing.assert_close(new, expected, rtol=1e-12, atol=1e-15)


# ---- plans ----------------------------------------------------------------------------------------------------------


def test_plan_by_hand() -> None:
    masks = np.zeros((4, 5), dtype=bool)  # 2 samples: crops 0, 1 first, then 2, 3
    masks[1, [0, 3]] = True
    masks[2, [4]] = True
    plan = plan_masks(masks, samples=2, masked=3)
    assert plan.crops.tolist() == [1, 2]
    assert plan.wanted.tolist() == [[0, 3], [4, 0]]  # the last 0 is padding
    assert plan.rows.tolist() == [0, 1, 2]
    assert plan.tokens.tolist() == [1 * 5 + 0, 1 * 5 + 3, 2 * 5 + 4]
    assert plan.weights.tolist() == [0.5, 0.5, 1.0]


def test_stochastic_depth_belongs_to_the_sample() -> None:
    """Any split of the samples gives each the same draws; the frequency is the setting's."""
    keep = draw_keep(3, range(50, 450), views=6, depth=4, rate=0.1)
    assert keep.shape == (4, 2, 6 * 400)
    assert keep.float().mean().item() == pytest.approx(0.9, abs=0.005)  # sd of the mean: 0.3 / sqrt(19200) = 0.002
    part = draw_keep(3, [60, 51], views=6, depth=4, rate=0.1).unflatten(2, (6, 2))
    assert torch.equal(part, keep.unflatten(2, (6, 400))[..., [10, 1]])


def test_stochastic_depth_reaches_every_forward() -> None:
    """Rate 0.5: the student's three forwards differ from those without, the teacher's does not."""
    on, off = wide_trainer(encoder={"drop_path": 0.5}), wide_trainer()
    views, plan = formula_views(on.settings, 4), step_plan(on.settings, range(4))
    assert all(getattr(plan, f.name) is not None for f in dataclasses.fields(plan) if f.name.startswith("keep"))
    hyper = Schedules(on.settings).at(1)
    a = on.gradients([(views, plan)], hyper)
    b = off.gradients([(views, step_plan(off.settings, range(4)))], hyper)
    assert a["teacher_entropy"] == b["teacher_entropy"]
    assert all(abs(a[name] / b[name] - 1) > 1e-6 for name in FULL)
    assert torch.equal(on.model._auxiliary(views, plan), on.model._auxiliary(views, plan))


def test_logits_of_one_feature_are_those_of_the_prototypes() -> None:
    layer = wide_trainer().model.student.head.last_layer
    feature = noise((16,), 5)
    torch.testing.assert_close(layer.logits(feature), layer() @ feature, rtol=1e-13, atol=1e-15)


# ---- every option ---------------------------------------------------------------------------------------------------

OPTIONS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "as released": ({}, FULL),
    "two decoder blocks": ({"decoder": {"num_blocks": 2}}, FULL),
    "auxiliary off": ({"decoder": {"enabled": False}}, {"dino_global", "dino_local", "koleo", "patch"}),
    "past only": ({"decoder": {"branches": "past"}}, FULL - {"patch_future", "agreement"}),
    "future only": ({"decoder": {"branches": "future"}}, FULL - {"patch_past", "agreement"}),
    "separate patch head": ({"head": {"separate_patch_head": True}}, FULL),
    "separate, auxiliary off": (
        {"head": {"separate_patch_head": True}, "decoder": {"enabled": False}},
        {"dino_global", "dino_local", "koleo", "patch"},
    ),
    "no KoLeo": ({"loss": {"koleo": 0.0}}, FULL - {"koleo"}),
    "no DINO": ({"loss": {"dino": 0.0}}, FULL - {"dino_global", "dino_local"}),
    "agreement only": ({"loss": {"patch_past": 0.0, "patch_future": 0.0}}, FULL - {"patch_past", "patch_future"}),
    "no agreement": ({"loss": {"agreement": 0.0}}, FULL - {"agreement"}),
    "no past term": ({"loss": {"patch_past": 0.0}}, FULL - {"patch_past"}),
    "nothing from patches": (
        {"loss": {"patch_past": 0.0, "patch_future": 0.0, "agreement": 0.0}},
        {"dino_global", "dino_local", "koleo"},
    ),
    "no local crops": ({"views": {"num_local": 0}}, FULL - {"dino_local"}),
    "no registers": ({"encoder": {"registers": 0}}, FULL),
    "another patch size": ({"encoder": {"patch_size": 8}}, FULL),
    "one-layer head": ({"head": {"layers": 1}}, FULL),
    "everything masked": ({"masks": {"share": 1.0, "ratio": [0.6, 0.7]}}, FULL),
    "nothing masked": ({"masks": {"share": 0.0}}, FULL),
    "activation checkpointing": ({"loop": {"activation_checkpointing": True}}, FULL),
    "bf16": ({"loop": {"precision": "bf16"}}, FULL),
    "fp16 with loss scaling": ({"loop": {"precision": "fp16"}}, FULL),
    "no clipping": ({"optimiser": {"clip_grad": 0.0}}, FULL),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_makes_a_step(name: str) -> None:
    """Two blocks and auxiliary off are what the released code crashes on."""
    changes, expected = OPTIONS[name]
    trainer = Trainer(tiny(**changes).pretrain, 0, CPU)
    formula_weights(trainer.model.student)
    model, settings = trainer.model, trainer.settings
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    views, plan = formula_views(settings, 4, torch.float32), step_plan(settings, range(4))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=128.0, enabled=trainer.precision == "fp16")
    values = trainer.step([(views, plan)], Schedules(settings).at(4))
    assert set(model.term_names) == expected <= set(values)
    assert all(torch.isfinite(value) for value in values.values())
    factors = {"dino_global": settings.loss.dino, "dino_local": settings.loss.dino}
    factors |= {
        key: getattr(settings.loss, key) for key in ("koleo", "patch", "patch_past", "patch_future", "agreement")
    }
    assert values["total"].item() == pytest.approx(sum(factors[key] * values[key].item() for key in expected), rel=1e-4)
    trained = [name if name == "decoder" else f"student.{name}" for name in model.trained()]
    for prefix in trained:
        moved = [not torch.equal(before[n], p) for n, p in model.named_parameters() if n.startswith(f"{prefix}.")]
        assert all(moved) or name in ("nothing masked", "nothing from patches"), prefix


def test_precisions_agree() -> None:
    """bf16 and fp16 have float32's gradient up to their rounding; the auxiliary forward leaves no dead casts behind."""
    gradients = {}
    for precision in ("fp32", "bf16", "fp16"):
        changes = {
            "encoder": {"drop_path": 0.0},
            "loss": {"koleo": 0.0},
        }  # KoLeo of close neighbours magnifies rounding
        trainer = Trainer(tiny(loop={"precision": precision}, **changes).pretrain, 0, CPU)
        formula_weights(trainer.model.student)
        formula_weights(trainer.model.decoder)
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=128.0, enabled=precision == "fp16")
        batch = (formula_views(trainer.settings, 4, torch.float32), step_plan(trainer.settings, range(4)))
        trainer.gradients([batch], Schedules(trainer.settings).at(4))
        gradients[precision] = grads(trainer.model)
    for precision, tolerance in (("bf16", 0.1), ("fp16", 0.02)):
        for module in ("student.encoder", "student.head", "decoder"):
            exact = torch.cat([g.ravel() for name, g in gradients["fp32"].items() if name.startswith(module)])
            rounded = torch.cat([g.ravel() for name, g in gradients[precision].items() if name.startswith(module)])
            assert (exact - rounded).norm() < tolerance * exact.norm(), (precision, module)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own tracing asks for it
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_parts_compute_the_same(checkpointing: bool, compile_with: Callable[..., None]) -> None:
    """Loss and gradients; one piece of code serves every group of blocks, and another number of masked crops as well."""
    graphs: list[int] = []

    def traced(graph: Any, inputs: list[Any]) -> Any:
        graphs.append(len(inputs))
        return graph

    compile_with(backend=traced)
    loop = {"activation_checkpointing": checkpointing}
    plain, quick = (wide_trainer(encoder={"depth": 6, "drop_path": 0.3}, loop=loop) for _ in range(2))
    quick.model.compile_parts()
    hyper = Schedules(plain.settings).at(3)
    for seed in (0, 1):
        batch = (formula_views(plain.settings, 4), step_plan(plain.settings, range(4), seed=seed))
        a, b = plain.gradients([batch], hyper), quick.gradients([batch], hyper)
        assert a["total"].item() == pytest.approx(b["total"].item(), rel=1e-12)
        for (name, expected), gradient in zip(grads(plain.model).items(), grads(quick.model).values(), strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12, msg=name)
        if seed == 0:
            first = len(graphs)
    if checkpointing:
        return  # tracing a second forward pass may count once more
    blocks = [inputs for inputs in graphs if inputs > 30]  # three blocks' parameters go in
    assert len(blocks) == 4  # teacher, global, local and auxiliary crops: not one for each of 2 x 4 groups
    assert len(graphs) <= first + 2  # the losses: another number of masked patches


def test_what_cannot_be_compiled_is_said_in_one_sentence() -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C compiler found")

    with pytest.raises(RuntimeError) as failure:
        torch.compile(lambda x: x + 1, backend=broken)(torch.ones(1))
    sentence = str(not_compiled(failure.value))
    assert sentence.startswith("pretrain.loop.compile is true, but torch.compile cannot generate code here (")
    assert "no C compiler found" in sentence
    assert sentence.endswith("install a C compiler, or set it to false.")
    assert not_compiled(RuntimeError("something else")) is None


def test_initial_weights_follow_from_the_seed() -> None:
    settings = tiny().pretrain
    torch.manual_seed(1)
    a, state = TCoRe(settings, 7), torch.get_rng_state()
    torch.manual_seed(2)
    b, c = TCoRe(settings, 7), TCoRe(settings, 8)
    for (name, x), y, z in zip(a.state_dict().items(), b.state_dict().values(), c.state_dict().values(), strict=True):
        assert torch.equal(x, y), name
        if name.endswith("mlp.0.weight"):
            assert not torch.equal(x, z)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # building a model leaves torch's own generator alone
    heads = zip(a.student.parameters(), a.teacher.parameters(), strict=True)
    assert all(torch.equal(student, teacher) for student, teacher in heads)


def test_displayed_values() -> None:
    """The released logs halve KoLeo (after its weight), the patch terms and the agreement."""
    shown = reported({"koleo": 3.0, "patch_past": 5.0, "agreement": 0.5, "dino_local": 7.0}, tiny().pretrain.loss)
    expected = {"koleo_loss": 0.1 * 3 / 2, "past_tea_ibot_loss": 2.5, "past_future_MSE_loss": 0.25}
    assert shown == pytest.approx(expected | {"dino_local_crops_loss": 7.0})


# ---- the official layout --------------------------------------------------------------------------------------------


def test_official_weights_round_trip() -> None:
    changes: dict[str, Any] = {"head": {"separate_patch_head": True}, "decoder": {"num_blocks": 2}}
    a, b = wide_trainer(**changes).model, wide_trainer(**changes).model
    for parameter in b.parameters():
        parameter.data.add_(1.0)
    weights = official_weights(a)
    assert {name.split(".")[0] for name in weights["teacher"]} == {"backbone", "dino_head", "ibot_head"}
    assert "auxiliary_decoder.decoder.1.auxiliary_cross_attn.in_proj_weight" in weights["auxiliary"]
    load_official_weights(b, weights, "test")
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    with pytest.raises(InputError, match=r"student does not fit .8 unexpected: ibot_head"):
        load_official_weights(wide_trainer(decoder={"num_blocks": 2}).model, weights, "test")
    with pytest.raises(InputError, match="auxiliary does not fit"):
        load_official_weights(wide_trainer(head={"separate_patch_head": True}).model, weights, "test")


def test_parameter_groups_of_the_small_vit() -> None:
    """All 200 tensors of ViT-S: shape, learning rate and weight decay multipliers, last layer, decoder."""
    if not GOLDEN.is_dir():
        pytest.skip(f"{GOLDEN} is not here")
    golden = json.loads((GOLDEN / "param_groups.json").read_text())
    settings = parse({}, "test").pretrain
    with torch.device("meta"):  # full size without its memory
        model = TCoRe(settings, 0)
    names = {"encoder": "student.backbone", "head": "student.dino_head", "decoder": "auxiliary.auxiliary_decoder"}
    shadow = copy.deepcopy(model)  # every parameter carries its group through the renaming
    stepper = optimiser.build(shadow.trained(), settings.optimiser, settings.encoder.shape[1])
    group_of = {id(p): group["multipliers"] for group in stepper.param_groups for p in group["params"]}
    found: dict[str, tuple[list[int], dict[str, Any]]] = {}
    for module, network in shadow.trained().items():
        for name, parameter in network.named_parameters():
            full = _official(module, name)
            if full is not None:
                found[f"{names[module]}.{full}"] = (list(parameter.shape), group_of[id(parameter)])
    assert set(found) == set(golden["params"])
    assert len(found) == 200
    for name, expected in golden["params"].items():
        shape, own = found[name]
        if name.endswith("pos_embed"):
            shape = [1, shape[1] + 1, shape[2]]  # the position of CLS is a parameter of its own
        assert shape == expected["shape"], name
        assert own["lr"] == pytest.approx(expected["lr_multiplier"], rel=1e-14), name
        assert own["weight_decay"] == expected["wd_multiplier"], name
        assert own["is_last_layer"] == expected["is_last_layer"], name
        assert own["is_decoder"] == expected["is_aux_layer"], name
    counts = {names[k]: sum(p.numel() for p in module.parameters()) for k, module in shadow.trained().items()}
    assert counts == golden["parameter_counts"]
    assert tuple(golden["betas"]) == settings.optimiser.betas
    assert golden["clip_grad"] == settings.optimiser.clip_grad


def _official(module: str, name: str) -> str | None:
    """Our name of a parameter -> the official one; None for the position of CLS, which has none of its own."""
    if module == "encoder":
        name = name.removeprefix("vit.").replace("reg_token", "register_tokens")
        return None if name == "cls_pos" else name
    if module == "decoder":
        name = name.replace("blocks.", "decoder.", 1).replace(".norm", ".auxiliary_layer_norm")
        for part in ("cross_attn", "self_attn", "linear"):
            name = name.replace(f".{part}.", f".auxiliary_{part}.")
    return name
