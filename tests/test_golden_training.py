"""The training room against figures of the code before it was rewritten (tests/golden/training.json, commit a7f1196)."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_problem import Pictures, formula_weights, recorded_parameters, tiny

from tcore_lib import params
from tcore_lib.data.masking import block_masks
from tcore_lib.machine import Place
from tcore_lib.training.batches import loader
from tcore_lib.training.draws import draw_keep
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.step import Trainer
from tcore_lib.training.tcore import TCoRe

GOLDEN = json.loads((Path(__file__).parent / "golden" / "training.json").read_text())
CPU = torch.device("cpu")


def three_steps(settings: params.Params, index: Any, first: int, count: int, formula: bool) -> tuple[TCoRe, list[Any]]:
    trainer = Trainer(settings.pretrain, settings.run.seed, CPU)
    if formula:
        for module in (trainer.model.student, trainer.model.teacher, trainer.model.decoder):
            formula_weights(module)
    rows = []
    for step, batch in enumerate(loader(settings, index, Place(), CPU, first, first + count), start=first):
        values = trainer.step([trainer.inputs(*batch[:3])], Schedules(settings.pretrain).at(step))
        rows.append({name: float(value) for name, value in (values | trainer.model.diagnostics()).items()})
    return trainer.model, rows


@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-7), ("fp32", 1e-3)])
def test_three_tiny_steps(precision: str, tolerance: float) -> None:
    """Losses, gradient norms, weights and centres, through the loader, stochastic depth, AdamW, EMA and centres."""
    golden = GOLDEN[f"tiny {precision}"]
    model, rows = three_steps(tiny(loop={"precision": precision}), Pictures(), 3, 3, formula=True)
    same_rows(rows, golden["steps"], tolerance)
    for name, parameter in recorded_parameters(model):
        flat = parameter.double().flatten()
        found = [flat[i].item() for i in (0, len(flat) // 3, len(flat) - 1)] + [flat.abs().sum().item()]
        assert found == pytest.approx(golden["weights"][name], rel=tolerance, abs=3 * tolerance), name
    for kind, centre in (("cls", model.cls_centre), ("patch", model.patch_centre)):
        assert centre.double()[::19].tolist() == pytest.approx(golden["centres"][kind], rel=tolerance, abs=tolerance)


def test_five_steps_of_the_quick_profile() -> None:
    """Its settings of then, on coloured patterns: from the official initialisation, in float32."""
    settings = params.parse({"pretrain": GOLDEN["quick"]["pretrain"], "run": {"device": "cpu"}}, "quick")
    _, rows = three_steps(settings, Pictures(48, 160, 213), 0, 5, formula=False)
    same_rows(rows, GOLDEN["quick"]["steps"], 2e-2)


def same_rows(rows: list[Any], golden: list[Any], tolerance: float) -> None:
    """What was logged step by step; the centre was then looked at before it moved, now it is after."""
    for step, (row, expected) in enumerate(zip(rows, golden, strict=True)):
        for name, value in expected.items():
            if name != "centre_norm":
                assert row[name] == pytest.approx(value, rel=tolerance), (step, name)
            elif step > 0:
                assert rows[step - 1][name] == pytest.approx(value, rel=tolerance), step


@pytest.mark.parametrize("profile", GOLDEN["draws"])
def test_masks_and_stochastic_depth(profile: str) -> None:
    """Masks of the first three steps and the dropped branches of the first 64 samples, bit for bit."""
    of = GOLDEN["draws"][profile]
    for step, (digest, masked) in enumerate(zip(of["masks"], of["masked"], strict=True)):
        side, ratio = of["side"], tuple(of["ratio"])
        masks = block_masks(of["seed"], step, 2 * of["batch"], (side, side), of["share"], ratio)
        assert (sha256(masks), masks.sum()) == (digest, masked)
    keep = draw_keep(of["seed"], range(64), of["views"], of["depth"], of["drop_path"]).numpy()
    assert (sha256(keep), (~keep).sum()) == (of["keep"], of["dropped"])


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
