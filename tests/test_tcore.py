"""The step: every option runs, and splits of the batch do not matter. (What it computes: test_parity and notebook 01.)"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_problem import formula_views, formula_weights, tiny
from torch import Tensor

from tcore_lib.model.vit import initial_vit
from tcore_lib.params import Pretrain, parse
from tcore_lib.reproduction import profile as profiles
from tcore_lib.training import optimiser
from tcore_lib.training.draws import draw, of_masks
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.step import Trainer
from tcore_lib.training.tcore import TCoRe

GOLDEN = Path(__file__).parent / "golden"
CPU = torch.device("cpu")
FULL = {"dino_global", "dino_local", "koleo", "patch_past", "patch_future", "agreement"}
OFF = {"dino_global", "dino_local", "koleo", "patch"}


def formula_trainer(**changes: Any) -> Trainer:
    """A tiny trainer with weights by formula; in float64 and without stochastic depth unless asked for."""
    changes["encoder"] = {"drop_path": 0.0} | changes.get("encoder", {})
    changes["loop"] = {"precision": "fp64"} | changes.get("loop", {})
    trainer = Trainer(tiny(**changes).pretrain, 0, CPU)
    for module in [*trainer.model.trained().values(), trainer.model.teacher]:
        formula_weights(module)
    return trainer


def batch_of(settings: Pretrain, seed: int = 0) -> tuple[dict[str, Tensor], Any]:
    """Four samples in the dtype of the settings' precision."""
    dtype = torch.float64 if settings.loop.precision == "fp64" else torch.float32
    return formula_views(settings, 4, dtype), draw(settings, seed, 0, range(4))


def moved(trainer: Trainer, step: int = 3) -> dict[str, Tensor]:
    """One step on formula views; the values it gives."""
    return trainer.step([batch_of(trainer.settings)], Schedules(trainer.settings).at(step))


def grads(model: TCoRe) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_accumulation_changes_nothing(drop_path: float) -> None:
    """Four samples at once, or in two micro-batches with unequally many masked patches: same loss, gradients, centres,
    information in the targets. KoLeo is off: its neighbours are those of the micro-batch."""
    changes: dict[str, Any] = {"loss": {"koleo": 0.0}, "encoder": {"drop_path": drop_path}}
    whole, parts = formula_trainer(**changes), formula_trainer(**changes, loop={"accumulate": 2})
    views, hyper = formula_views(whole.settings, 4), Schedules(whole.settings).at(3)
    values = whole.gradients([(views, draw(whole.settings, 0, 0, range(4)))], hyper)
    halves = []
    for first in (0, 2):  # crop-major: samples first and first + 1 of every crop
        own = {name: x.unflatten(0, (-1, 4))[:, first : first + 2].flatten(0, 1) for name, x in views.items()}
        halves.append((own, draw(parts.settings, 0, 0, [first, first + 1])))
    assert len({len(draws.patches) for _, draws in halves}) == 2
    summed = parts.gradients(halves, hyper)
    values, summed = values | whole.model.diagnostics(), summed | parts.model.diagnostics()
    for name in set(values) - {"feature_std"}:  # a spread over fewer samples is another figure
        assert summed[name].item() == pytest.approx(values[name].item(), rel=1e-12), name
    ours = grads(parts.model)
    for name, gradient in grads(whole.model).items():
        tolerance = 1e-7 if "pos" in name else 1e-11  # positions of local crops pass through float32
        assert (ours[name] - gradient).abs().max() <= tolerance * gradient.abs().max(), name
    for trainer in (whole, parts):
        trainer.update(hyper)
    for name in ("cls_centre", "patch_centre"):
        torch.testing.assert_close(getattr(parts.model, name), getattr(whole.model, name), rtol=1e-12, atol=1e-15)


def test_a_micro_batch_without_masked_patches_still_gives_every_gradient() -> None:
    """DistributedDataParallel would wait forever for a parameter that got none."""
    trainer = formula_trainer()
    draws = of_masks(np.zeros((8, 16), dtype=bool), 4, 30)
    values = trainer.gradients([(formula_views(trainer.settings, 4), draws)], Schedules(trainer.settings).at(1))
    assert all(p.grad is not None for module in trainer.model.trained().values() for p in module.parameters())
    assert not any(p.grad is not None for p in trainer.model.teacher.parameters())
    assert values["patch_past"] == values["agreement"] == 0
    before = trainer.model.patch_centre.clone()
    trainer.model.update_centres(4, 0)
    assert torch.equal(trainer.model.patch_centre, before)  # no patch was seen: the centre stays


def test_draws_by_hand() -> None:
    masks = np.zeros((4, 5), dtype=bool)  # 2 samples: crops 0, 1 first, then 2, 3
    masks[1, [0, 3]] = masks[2, 4] = True
    draws = of_masks(masks, samples=2, masked=3)
    assert draws.crops.tolist() == [1, 2]
    assert draws.patches.tolist() == [0 * 5 + 0, 0 * 5 + 3, 1 * 5 + 4]  # among the patches of these two crops
    assert draws.weights.tolist() == [0.5, 0.5, 1.0]


NO_PATCH_TERMS = {"patch_past": 0.0, "patch_future": 0.0, "agreement": 0.0}
OPTIONS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "as released": ({}, FULL),
    "two decoder blocks": ({"decoder": {"num_blocks": 2}}, FULL),
    "auxiliary off": ({"decoder": {"enabled": False}}, OFF),
    "past only": ({"decoder": {"branches": "past"}}, FULL - {"patch_future", "agreement"}),
    "future only": ({"decoder": {"branches": "future"}}, FULL - {"patch_past", "agreement"}),
    "no KoLeo": ({"loss": {"koleo": 0.0}}, FULL - {"koleo"}),
    "no DINO": ({"loss": {"dino": 0.0}}, FULL - {"dino_global", "dino_local"}),
    "agreement only": ({"loss": {"patch_past": 0.0, "patch_future": 0.0}}, FULL - {"patch_past", "patch_future"}),
    "no agreement": ({"loss": {"agreement": 0.0}}, FULL - {"agreement"}),
    "nothing from patches": ({"loss": NO_PATCH_TERMS}, {"dino_global", "dino_local", "koleo"}),
    "no local crops": ({"views": {"num_local": 0}}, FULL - {"dino_local"}),
    "other shapes": ({"encoder": {"registers": 0, "patch_size": 8}, "head": {"layers": 1}}, FULL),
    "everything masked": ({"masks": {"share": 1.0, "ratio": [0.6, 0.7]}}, FULL),
    "nothing masked": ({"masks": {"share": 0.0}}, FULL),
    "bf16": ({"loop": {"precision": "bf16"}}, FULL),
    "no clipping": ({"optimiser": {"clip_grad": 0.0}}, FULL),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_makes_a_step(name: str) -> None:
    """Two blocks and auxiliary off are what the released code crashes on."""
    changes, expected = OPTIONS[name]
    trainer = formula_trainer(**{"encoder": {"drop_path": 0.1}} | changes)
    model = trainer.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    values = moved(trainer, 4)
    assert set(model.weights) == expected == set(values) - {"total"} - {f"grad_norm_{part}" for part in model.trained()}
    assert all(torch.isfinite(value) for value in (values | model.diagnostics()).values())
    total = sum(model.weights[key] * values[key].item() for key in expected)
    assert values["total"].item() == pytest.approx(total, rel=1e-4)
    for part in model.trained():
        prefix = part if part == "decoder" else f"student.{part}"
        same = [torch.equal(before[n], p) for n, p in model.named_parameters() if n.startswith(f"{prefix}.")]
        assert not any(same) or name in ("nothing masked", "nothing from patches"), prefix


def test_bf16_has_the_gradient_of_fp32_up_to_its_rounding() -> None:
    """The auxiliary forward leaves no dead casts behind."""
    flat: dict[str, dict[str, Tensor]] = {}
    for precision in ("fp32", "bf16"):  # without KoLeo, whose close neighbours magnify rounding
        trainer = formula_trainer(loop={"precision": precision}, loss={"koleo": 0.0})
        trainer.gradients([batch_of(trainer.settings)], Schedules(trainer.settings).at(4))
        modules = trainer.model.trained().items()
        flat[precision] = {name: torch.cat([p.grad.ravel() for p in module.parameters()]) for name, module in modules}
    for name, exact in flat["fp32"].items():
        assert (exact - flat["bf16"][name]).norm() < 0.1 * exact.norm(), name


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own tracing asks for it
def test_compiled_parts_compute_the_same(compile_with: Callable[..., None]) -> None:
    """Loss and gradients; one piece of code serves every group of blocks, and another number of masked crops as well."""
    graphs: list[int] = []

    def traced(graph: Any, inputs: list[Any]) -> Any:
        graphs.append(len(inputs))
        return graph

    compile_with(backend=traced)
    plain, quick = (formula_trainer(encoder={"depth": 6, "drop_path": 0.3}) for _ in range(2))
    quick.model.compile_parts()
    hyper, first = Schedules(plain.settings).at(3), 0
    for seed in (0, 1):
        batch = batch_of(plain.settings, seed)
        a, b = plain.gradients([batch], hyper), quick.gradients([batch], hyper)
        assert a["total"].item() == pytest.approx(b["total"].item(), rel=1e-12)
        for (name, expected), gradient in zip(grads(plain.model).items(), grads(quick.model).values(), strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12, msg=name)
        first = first or len(graphs)
    blocks = [inputs for inputs in graphs if inputs > 30]  # three blocks' parameters go in
    assert len(blocks) == 4  # teacher, global, local and auxiliary crops: not one for each of 2 x 4 groups
    assert len(graphs) <= first + 4  # the losses: another number of masked patches


def test_parameter_groups_of_the_small_vit() -> None:
    """All 200 tensors of ViT-S: shape, learning rate and weight decay multipliers, last layer, decoder."""
    golden = json.loads((GOLDEN / "param_groups.json").read_text())
    settings = parse({}, "test").pretrain
    with torch.device("meta"):  # full size without its memory
        model = TCoRe(settings, 0)
    names = {"encoder": "student.backbone", "head": "student.dino_head", "decoder": "auxiliary.auxiliary_decoder"}
    stepper = optimiser.build(model.trained(), settings.optimiser, settings.encoder.shape[1])
    group_of = {id(p): group["group"] for group in stepper.param_groups for p in group["params"]}
    found: dict[str, tuple[list[int], dict[str, Any]]] = {}
    for module, network in model.trained().items():
        for name, parameter in network.named_parameters():
            if module == "decoder":
                name = name.replace("blocks.", "decoder.").replace(".norm", ".auxiliary_layer_norm")
                name = re.sub(r"\.(cross_attn|self_attn|linear)\.", r".auxiliary_\1.", name)
            found[f"{names[module]}.{name}"] = (list(parameter.shape), group_of[id(parameter)])
    assert set(found) == set(golden["params"])
    assert len(found) == 200
    for name, expected in golden["params"].items():
        shape, own = found[name]
        assert shape == expected["shape"], name
        assert own["lr"] == pytest.approx(expected["lr_multiplier"], rel=1e-14), name
        assert own["weight_decay"] == expected["wd_multiplier"], name
        assert (own["rate"] == "last_layer_lr") == expected["is_last_layer"], name
        assert (own["rate"] == "decoder_lr") == expected["is_aux_layer"], name
    counts = {names[k]: sum(p.numel() for p in module.parameters()) for k, module in model.trained().items()}
    assert counts == golden["parameter_counts"]
    assert tuple(golden["betas"]) == settings.optimiser.betas
    assert golden["clip_grad"] == settings.optimiser.clip_grad


def test_before_training_means_the_encoder_that_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notebook 06 compares with where the training started: `pretrain.encoder.init`, where that is set."""
    shape = {"arch": "custom", "width": 64, "depth": 1, "heads": 1}
    given = initial_vit(tiny(encoder=shape).pretrain.encoder, 64, seed=5).state_dict()
    torch.save(given, tmp_path / "vit.pth")
    run = tiny(encoder=shape | {"init": str(tmp_path / "vit.pth")})
    monkeypatch.setattr(profiles, "newest_checkpoint", lambda _: tmp_path)
    monkeypatch.setattr(profiles.checkpoints, "read_model", lambda _: TCoRe(run.pretrain, 0))
    model = profiles.decoders(run)["before training"]
    for network in (model.student, model.teacher):
        assert all(torch.equal(value, given[name]) for name, value in network.encoder.state_dict().items())
