"""Figures of the room `model` as they were before it was rewritten (July 2026), frozen in golden/model.json.

`python tests/test_golden_model.py` writes the file anew: only when a figure is meant to change, and then say why.
Weights and images come from a formula (`tiny_problem.noise`), so they are the same on every machine; what torch draws
or computes may differ in the last bits, so floats are compared with a tolerance.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_problem import Pictures, formula_weights, noise, recorded_parameters, tiny
from torch import Tensor

from tcore_lib import params
from tcore_lib.model import attention, features as analysis
from tcore_lib.model.encoders import FeatureEncoder, attention_maps, layer_tokens, load_encoder
from tcore_lib.model.export import export
from tcore_lib.model.vit import ViT, initial_vit
from tcore_lib.training.tcore import TCoRe

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "model.json"
SMALL = params.Encoder(arch="custom", width=64, depth=2, heads=4)
FRAMES = Pictures().read(0, [0, 5, 10, 15])  # 48 x 64 pixels


def formula_vit(**changes: Any) -> ViT:
    vit = initial_vit(SMALL.model_copy(update=changes), 64, seed=0)
    formula_weights(vit)
    return vit


def sample(values: Any) -> list[float]:
    """Twelve values spread over a tensor, and its mean square: enough to see any change."""
    flat = (values if isinstance(values, Tensor) else torch.tensor(np.asarray(values))).detach().double().flatten()
    chosen = flat[torch.linspace(0, len(flat) - 1, 12).long()]
    return [*chosen.tolist(), flat.square().mean().item()]


def layouts(folder: Path) -> dict[str, list[float]]:
    """The same features out of every layout an encoder is written in."""
    encoder, images = FeatureEncoder(formula_vit(), "x"), noise((2, 3, 64, 96), 5).float()
    targets = {"safetensors": "out.safetensors", "official": "out.pth", "timm": "hub"}
    found = {name: load_encoder(export(encoder, folder / target, name)) for name, target in targets.items()}
    return {name: sample(read(images)) for name, read in {"memory": encoder, **found}.items()}


def step(vit: ViT) -> dict[str, list[float]]:
    """Masked crops under stochastic depth, in float64: tokens and gradients."""
    vit = vit.double()
    images, masks = noise((3, 3, 64, 64), 7), torch.arange(48).reshape(3, 16) % 3 == 0
    keep = torch.tensor([[[1, 0, 1], [1, 1, 0]], [[0, 1, 1], [0, 1, 1]]]).bool()
    cls, patches = vit(images, masks, keep)
    ((cls**3).sum() + (patches**3).sum()).backward()
    for parameter in vit.parameters():  # the order of the recording
        parameter.data = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
    gradients = [gradient for _, gradient in recorded_parameters(vit)]
    return {
        "cls": sample(cls),
        "patches": sample(patches),
        "gradients": sample(torch.cat([g.flatten() for g in gradients])),
    }


def start() -> dict[str, list[float]]:
    """The weights a run starts from."""
    vit = initial_vit(params.Encoder(arch="vit_tiny"), 96, seed=3)
    return {name: sample(value) for name, value in recorded_parameters(vit) if value.std() > 0 and ".1" not in name}


def looking() -> dict[str, Any]:
    """Attention and figures about features."""
    encoder, other = FeatureEncoder(formula_vit(), "a"), FeatureEncoder(formula_vit(depth=3), "b")
    images = noise((1, 3, 64, 96), 5).float()
    size = (96, 128)
    features = analysis.features(encoder, FRAMES, size)
    both = {"a": encoder, "b": other}
    return {
        "attention": sample(attention_maps(encoder, images, 0)),
        "layers": sample(layer_tokens(encoder, images)),
        "cls": sample(attention.cls_attention(encoder, noise((3, 64, 64), 6).float())),
        "features": sample(features),
        "matches": analysis.matches(features[0], features[-1]).round(6).to_dict("list"),
        "cka": analysis.similarity_by_layer(encoder, {"b": other}, FRAMES, size)["b"].tolist(),
        "weight_norms": sample(analysis.weight_norms(both).to_numpy()[:2]),
        "token_norms": sample(analysis.token_norms(both, FRAMES[0], size).to_numpy()[:2]),
    }


def decoding() -> dict[str, Any]:
    """Cross-attention of a whole model."""
    model = TCoRe(tiny().pretrain, 0)
    formula_weights(model)
    mask = np.arange(16).reshape(4, 4) % 3 == 0
    one = attention.cross_attention(model, FRAMES[:3], mask)
    around = attention.attention_of_every_query(model, FRAMES, (64, 96), reach=1)
    return {
        "past": sample(one.maps["past"]),
        "future": sample(one.maps["future"]),
        "crops": np.asarray(one.crops)[:, ::40, ::40].astype(int).ravel().tolist(),
        "statistics": attention.statistics([one]),
        "sharpest": attention.sharpest(one, 3),
        "uniform": attention.uniform_statistics((4, 6)),
        "around": {f"{a}{b}": sample(maps) for (a, b), maps in around.items()},
    }


def shipped() -> list[float]:
    """The encoder that comes with the repository, on a fixed image."""
    return sample(load_encoder(ROOT / "results/encoders/evening.safetensors")(noise((1, 3, 96, 128), 9).float()))


def values(folder: Path) -> dict[str, Any]:
    found = {"layouts": layouts(folder), "start": start(), "looking": looking(), "decoding": decoding()}
    found |= {"step": step(formula_vit()), "shipped": shipped()}
    return json.loads(json.dumps(found))


def compare(ours: Any, frozen: Any, where: str) -> None:
    if isinstance(frozen, dict):
        assert set(ours) == set(frozen), where
        for key in frozen:
            compare(ours[key], frozen[key], f"{where}.{key}")
    elif isinstance(frozen, list) and frozen and isinstance(frozen[0], list):
        assert ours == frozen, where
    else:
        tolerance = 1e-9 if where.startswith("golden.step") else 2e-5
        assert ours == pytest.approx(frozen, rel=tolerance, abs=tolerance), where


def test_figures_are_those_of_before(tmp_path: Path) -> None:
    compare(values(tmp_path), json.loads(GOLDEN.read_text()), "golden")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(values(Path(folder)), indent=1) + "\n")
