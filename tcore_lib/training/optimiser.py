"""AdamW with a learning rate and a weight decay per parameter (METHOD section 7), clipping per module, and the EMA."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tcore_lib import params
from tcore_lib.training.schedules import Hyper


@dataclass(frozen=True)
class Multipliers:
    """How one parameter follows the schedules."""

    lr: float
    weight_decay: float
    is_last_layer: bool = False
    is_decoder: bool = False


def encoder_layer(name: str, depth: int) -> int:
    """0 = everything before the blocks, i + 1 = block i, depth + 1 = final norm."""
    if block := re.search(r"\bblocks\.(\d+)\.", name):
        return int(block[1]) + 1
    return depth + 1 if re.search(r"\bnorm\.", name) else 0


def multipliers(module: str, name: str, settings: params.Optimiser, depth: int) -> Multipliers:
    """The multipliers of one parameter.

    Weight decay spares biases, norms and LayerScale, by name as in the original: a packed attention bias
    (`in_proj_bias`) is decayed, and so are tokens, positions and the prototypes' lengths.

    Args:
        module: `encoder`, `decoder`, or a head.
        name: the parameter's name inside the module.
        settings: section `pretrain.optimiser`.
        depth: blocks of the encoder.
    """
    decay = 0.0 if re.search(r"\.bias$|norm\d?\.|\bgamma$", name) else 1.0
    if module == "decoder":
        return Multipliers(1.0, decay, is_decoder=True)
    if not settings.lr_multipliers:
        return Multipliers(1.0, decay)
    if module != "encoder":
        return Multipliers(1.0, decay, is_last_layer="last_layer" in name)
    lr = settings.layer_decay ** (depth + 1 - encoder_layer(name, depth))
    return Multipliers(lr * settings.patch_embed_lr if "patch_embed" in name else lr, decay)


def build(modules: Mapping[str, nn.Module], settings: params.Optimiser, depth: int) -> torch.optim.AdamW:
    """AdamW over the student's modules, one parameter group for each distinct set of multipliers.

    Args:
        modules: `encoder`, `head`, ... as `TCoRe.trained()` gives them.
        settings: section `pretrain.optimiser`.
        depth: blocks of the encoder.
    """
    groups: dict[Multipliers, list[nn.Parameter]] = defaultdict(list)
    for module, network in modules.items():
        for name, parameter in network.named_parameters():
            groups[multipliers(module, name, settings, depth)].append(parameter)
    fused = all(p.device.type in ("cpu", "cuda") for group in groups.values() for p in group)
    return torch.optim.AdamW(
        [{"params": group, "multipliers": vars(key)} for key, group in groups.items()],
        lr=0.0,
        betas=settings.betas,
        weight_decay=0.0,
        fused=fused,
    )


def lr_and_decay(own: Multipliers, hyper: Hyper) -> tuple[float, float]:
    """What the schedules' values mean for a parameter: (lr, weight decay)."""
    if own.is_decoder:
        return hyper.decoder_lr, hyper.weight_decay * own.weight_decay
    lr = hyper.last_layer_lr if own.is_last_layer else hyper.lr
    return lr * own.lr, hyper.weight_decay * own.weight_decay


def apply(optimiser: torch.optim.Optimizer, hyper: Hyper) -> None:
    """Set every group's lr and weight decay to the values of a step."""
    for group in optimiser.param_groups:
        group["lr"], group["weight_decay"] = lr_and_decay(Multipliers(**group["multipliers"]), hyper)


def clip(modules: Mapping[str, nn.Module], largest: float) -> dict[str, Tensor]:
    """Scale each module's gradient down to norm `largest` (0 = leave it). Returns the norms before, on the device."""
    norms = {}
    for name, module in modules.items():
        parameters = [p for p in module.parameters() if p.grad is not None]
        norms[name] = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if largest > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, largest, norms[name])
    return norms


@torch.no_grad()
def ema(teacher: Iterable[nn.Parameter], student: Iterable[nn.Parameter], momentum: float) -> None:
    """Set teacher = momentum * teacher + (1 - momentum) * student, for all tensors in one call."""
    get_ema_multi_avg_fn(momentum)(list(teacher), list(student), None)
