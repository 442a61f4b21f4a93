"""Our step against the original's recorded steps, and against a golden problem without any file."""

from pathlib import Path

import numpy as np
import parity
import pytest
import torch
from tiny_problem import formula_views, formula_weights, tiny

from tcore_lib.training.draws import of_masks
from tcore_lib.training.schedules import Hyper
from tcore_lib.training.step import Trainer


def test_every_loss_gradient_and_weight_of_the_original(capsys: pytest.CaptureFixture[str]) -> None:
    """Three steps. All agree to 1e-13; the tolerances are 1e-9 (losses), 1e-8 (gradients), 1e-6 (weights)."""
    assert parity.main() == 0
    assert capsys.readouterr().out.endswith("parity holds\n")
    rows = parity.compare(parity.STEPS)
    assert len(rows) == 3 * 4 + 2  # centres, losses, gradients, positions at each step; weights after 0 and 2
    assert {row.quantity for row in rows} == set(parity.TOLERANCE)
    assert max(row.largest for row in rows) < 1e-12


def test_a_gradient_that_is_off_by_a_millionth_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(parity.STEPS) as archive:
        arrays = dict(archive)
    name = "step1/grad/student/backbone.norm.bias"
    arrays[name][0] += 1e-6 * np.abs(arrays[name]).max()
    np.savez(tmp_path / "steps.npz", **arrays)
    (tmp_path / "steps.json").write_bytes(parity.STEPS.with_suffix(".json").read_bytes())
    assert parity.main(tmp_path / "steps.npz") == 1
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "ABOVE" in line]
    assert line.split()[:3] == ["gradients", "1", "1.0e-06"]
    assert "parity is broken: 1 of 14" in said


# Inputs and weights are hashes (tests/tiny_problem.py), masks by hand, float64. Recorded on 2026-11-22 with the code of
# commit 58b4c71, when it agreed with the original on losses to 1e-15 and on gradients to 1e-14.
GOLDEN_STEPS = [
    {
        "dino_global": 2.3575192737480815,
        "dino_local": 4.700461850856579,
        "patch_past": 3.4553271355041337,
        "patch_future": 3.41153610927417,
        "agreement": 0.0024134692415434763,
        "koleo": 1.720397277795703,
        "total": 12.771780833037743,
        "teacher_entropy": 1.0806595628926388,
        "centre_norm": 0.24687038923180338,
        "grad_norm_encoder": 19.636278563340348,
        "grad_norm_head": 39.90702218563017,
        "grad_norm_decoder": 4.486674146942516,
    },
    {
        "dino_global": 1.8877111948322418,
        "dino_local": 3.6182230996709013,
        "patch_past": 3.0474996384300956,
        "patch_future": 2.9962030673702666,
        "agreement": 0.0019055408106540444,
        "koleo": 1.6594066252687754,
        "total": 10.544947937883391,
        "teacher_entropy": 1.325297718614583,
        "grad_norm_encoder": 14.738522071753193,
        "grad_norm_head": 36.0250828197116,
        "grad_norm_decoder": 3.89533759903007,
    },
]


def test_golden_problem() -> None:
    """Two steps: the second one also depends on AdamW, EMA and the centres of the first."""
    settings = tiny(encoder={"drop_path": 0.0}, loop={"batch_size": 3, "precision": "fp64"}).pretrain
    trainer = Trainer(settings, 0, torch.device("cpu"))
    for module in [*trainer.model.trained().values(), trainer.model.teacher]:
        formula_weights(module)
    masks = np.zeros((6, 16), dtype=bool)
    masks[1, [0, 1, 4, 5, 6]] = True
    masks[3, [3, 7]] = True
    masks[5, [8, 9, 10, 11, 12, 13, 14]] = True
    views, draws = formula_views(settings, 3), of_masks(masks, 3, 14)
    hyper = Hyper(
        lr=1e-3, encoder_lr=1e-3, decoder_lr=1e-4, last_layer_lr=1e-3, weight_decay=0.04, momentum=0.99,
        teacher_temperature=0.05,
    )  # fmt: skip
    for step, golden in enumerate(GOLDEN_STEPS):
        values = trainer.step([(views, draws)], hyper) | trainer.model.diagnostics()
        for name, expected in golden.items():
            assert values[name].item() == pytest.approx(expected, rel=1e-8), (step, name)
