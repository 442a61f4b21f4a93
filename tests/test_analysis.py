"""Figures about encoders, on cases whose answer is known."""

import numpy as np
import pytest
import torch
from test_encoder import SMALL, drawn_vit

from tcore_lib.errors import InputError
from tcore_lib.model import features as analysis
from tcore_lib.model.encoders import FeatureEncoder


def encoder(seed: int = 0, **changes: int) -> FeatureEncoder:
    return FeatureEncoder(drawn_vit(SMALL.model_copy(update=changes), seed=seed), f"seed {seed}").eval()


def frame(seed: int = 0, height: int = 64, width: int = 96) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_weight_norms() -> None:
    one, deep = encoder(), encoder(1, depth=3)
    with torch.no_grad():
        block = one.network.blocks[1]
        for linear in (block.attn.qkv, block.attn.proj):
            linear.weight.fill_(0.5)
    table = analysis.weight_norms({"one": one, "deep": deep})
    # (3 + 1) * 64 * 64 values of 0.5
    assert table.loc[1, ("attention", "one")] == pytest.approx(0.5 * np.sqrt(4 * 64 * 64))
    assert table.index.tolist() == [0, 1, 2]
    assert np.isnan(table.loc[2, ("mlp", "one")])
    assert set(table.columns) == {(q, e) for q in ("attention", "mlp", "layer_scale") for e in ("one", "deep")}


def test_matches_find_a_shift() -> None:
    """Features moved by (1, 2) patches: every match is that shift, clear, and no patch is used twice."""
    whole = np.random.default_rng(0).normal(size=(11, 14, 32))
    found = analysis.matches(whole[:10, :12], whole[1:, 2:] * 3.0, count=8)
    assert len(found) == 8
    assert (found["row"] - found["to_row"] == 1).all()
    assert (found["column"] - found["to_column"] == 2).all()
    assert found["similarity"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert found["clarity"].is_monotonic_decreasing
    places = found[["row", "column"]].to_numpy(float)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(8) * 99
    assert apart.min() > 1.9  # sqrt(120 patches / 8) = 3.9, narrowed at most twice by 0.7
    assert len(analysis.matches(whole[:2, :2], whole[:2, :2], count=8)) == 4
    with pytest.raises(InputError, match="of one encoder"):
        analysis.matches(whole, whole[..., :16])


def test_linear_cka() -> None:
    """1 under rotation and scale; for independent noise about D / n, here 20 / 2000."""
    generator = torch.Generator().manual_seed(0)
    first, other = (torch.randn(2000, 20, generator=generator) for _ in range(2))
    rotation, _ = torch.linalg.qr(torch.randn(20, 20, generator=generator))
    assert analysis.linear_cka(first, 3 * first @ rotation + 5) == pytest.approx(1, abs=1e-6)
    assert analysis.linear_cka(first, other) == pytest.approx(20 / 2000, rel=0.3)
    # x = (1, -1), y = (1, -1) and (1, 1): the second column of y is constant and drops out
    assert analysis.linear_cka(torch.tensor([[1.0], [-1]]), torch.tensor([[1.0, 1], [-1, 1]])) == pytest.approx(1)
