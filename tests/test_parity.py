"""Our step against the original's recorded steps (a golden problem without them: test_golden_training)."""

from pathlib import Path

import numpy as np
import parity
import pytest


def test_every_loss_gradient_and_weight_of_the_original(capsys: pytest.CaptureFixture[str]) -> None:
    """Three steps. All agree to 1e-13; the tolerances are 1e-9 (losses), 1e-8 (gradients), 1e-6 (weights)."""
    assert parity.main() == 0
    assert capsys.readouterr().out.endswith("parity holds\n")
    table = parity.compare(parity.STEPS)
    assert len(table) == 3 * 4 + 2  # centres, losses, gradients, positions at each step; weights after 0 and 2
    assert set(table["quantity"]) == set(parity.TOLERANCE)
    assert table["largest"].max() < 1e-12


def test_a_gradient_that_is_off_by_a_millionth_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(parity.STEPS) as archive:
        arrays = dict(archive)
    name = "step1/grad/student/backbone.norm.bias"
    arrays[name][0] += 1e-6 * np.abs(arrays[name]).max()
    np.savez(tmp_path / "steps.npz", **arrays)
    (tmp_path / "steps.json").write_bytes(parity.STEPS.with_suffix(".json").read_bytes())
    assert parity.main(tmp_path / "steps.npz") == 1
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.endswith("False")]
    assert line.split()[:3] == ["gradients", "1", "1.0e-06"]
    assert "parity is broken: 1 of 14" in said
