"""The smallest T-CoRe that has every part: for tests, a few milliseconds a step."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tcore_lib import params
from tcore_lib.model.vit import ViT

TINY: dict[str, dict[str, Any]] = {
    "encoder": {"arch": "custom", "width": 32, "depth": 2, "heads": 2},
    "views": {"global_size": 64, "local_size": 32, "num_local": 2},
    "decoder": {"heads": 4},
    "head": {"hidden": 48, "bottleneck": 16, "prototypes": 96},
    "optimiser": {
        "epochs": 2.0,
        "iterations_per_epoch": 4,
        "warmup_epochs": 1.0,
        "teacher_temperature_epochs": 1.0,
        "freeze_last_layer_epochs": 0.5,
    },
    "loop": {"batch_size": 4, "log_every": 1, "checkpoint_every": 2, "workers": 0},
}


def tiny(seed: int = 0, **changes: dict[str, Any]) -> params.Params:
    """Parameters of a tiny run; `changes` are sections of `pretrain`, merged over the tiny ones."""
    sections = {name: TINY.get(name, {}) | changes.get(name, {}) for name in {*TINY, *changes}}
    return params.parse({"pretrain": sections, "run": {"device": "cpu", "seed": seed}}, "test")


class Pictures:
    """An index of coloured patterns that move: `num_videos` clips of 20 frames."""

    def __init__(self, num_videos: int = 12, height: int = 48, width: int = 64) -> None:
        self.num_frames = np.full(num_videos, 20)
        self._size = (height, width)

    def __len__(self) -> int:
        return len(self.num_frames)

    def read(self, i: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        y, x = np.indices(self._size)
        planes = [(x * (i + 2) + 3 * y, y * (i + 3) + 5, (x + y) * (i + 1)) for _ in frame_indices]
        return [
            np.stack([(plane + 7 * j) % 256 for plane in three], axis=-1).astype(np.uint8)
            for three, j in zip(planes, frame_indices, strict=True)
        ]


def noise(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers in -1..1 by a formula, bit-equal on every machine: the splitmix64 hash of seed * 2^32 + position."""
    x = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(seed << 32)
    with np.errstate(over="ignore"):
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x ^= x >> np.uint64(31)
    values = (x >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
    return torch.from_numpy(values).reshape(tuple(shape)).to(dtype)


def recorded_parameters(module: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """A model's parameters as they were named, ordered and divided when tests/golden was recorded: the position of CLS by
    itself, a ViT's own under `vit`."""
    if isinstance(module, ViT):
        own = {name: parameter.detach() for name, parameter in module.named_parameters()}
        positions = own.pop("pos_embed")
        yield f"{prefix}cls_pos", positions[:, :1]
        yield f"{prefix}mask_token", own.pop("mask_token")
        yield f"{prefix}vit.cls_token", own.pop("cls_token")
        if "register_tokens" in own:
            yield f"{prefix}vit.reg_token", own.pop("register_tokens")
        yield f"{prefix}vit.pos_embed", positions[:, 1:]
        yield from ((f"{prefix}vit.{name}", parameter) for name, parameter in own.items())
        return
    yield from ((f"{prefix}{name}", p.detach()) for name, p in module.named_parameters(recurse=False))
    for name, child in module.named_children():
        yield from recorded_parameters(child, f"{prefix}{name}.")


def formula_weights(model: torch.nn.Module) -> None:
    """Fill a model by formula: matrices of scale 1 / sqrt(columns), norm weights near 1, LayerScale 0.5, rest small."""
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(recorded_parameters(model)):
            wave = noise(parameter.shape, seed)
            if name.endswith(("gamma", "weight_g")) or (parameter.ndim == 1 and name.endswith("weight")):
                value = (0.5 if name.endswith("gamma") else 1.0) + 0.1 * wave
            else:
                value = wave / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1 * wave
            parameter.copy_(value)


def formula_views(settings: params.Pretrain, samples: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Views of a batch by formula, crop-major."""
    views = settings.views
    large, small = (3, views.global_size, views.global_size), (3, views.local_size, views.local_size)
    sets = {name: noise((2 * samples, *large), 1000 + i, dtype) for i, name in enumerate(("current", "past", "future"))}
    return sets | {"local": noise((views.num_local * samples, *small), 1009, dtype)}
