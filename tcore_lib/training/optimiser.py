"""AdamW with a learning rate and a weight decay per parameter (docs/method.md section 7), clipping per module, and the EMA."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tcore_lib import params
from tcore_lib.training.schedules import Hyper


class Group(NamedTuple):
    """How one parameter follows the schedules."""

    rate: str  # the field of `Hyper` that is its learning rate
    lr: float  # multiplier of that rate
    weight_decay: float  # multiplier of the weight decay, 0 or 1


def group_of(module: str, name: str, settings: params.Optimiser, depth: int) -> Group:
    """The group of the parameter `name` of the module `encoder`, `decoder` or `head`; the encoder has `depth` blocks.

    Weight decay spares biases, norms and LayerScale, by name as in the original: a packed attention bias
    (`in_proj_bias`) is decayed, and so are tokens, positions and the prototypes' lengths.
    """
    decay = 0.0 if re.search(r"\.bias$|norm\d?\.|\bgamma$", name) else 1.0
    if module == "decoder":
        return Group("decoder_lr", 1.0, decay)
    if module != "encoder":
        return Group("last_layer_lr" if "last_layer" in name and settings.lr_multipliers else "lr", 1.0, decay)
    if not settings.lr_multipliers:
        return Group("encoder_lr", 1.0, decay)
    block = re.search(r"\bblocks\.(\d+)\.", name)
    last = depth + 1 if re.search(r"\bnorm\.", name) else 0
    layer = int(block[1]) + 1 if block else last  # 0 = before the blocks, i + 1 = block i, depth + 1 = final norm
    lr = settings.layer_decay ** (depth + 1 - layer)
    return Group("encoder_lr", lr * (settings.patch_embed_lr if "patch_embed" in name else 1.0), decay)


def build(modules: Mapping[str, nn.Module], settings: params.Optimiser, depth: int) -> torch.optim.AdamW:
    """AdamW over `TCoRe.trained()`, one parameter group for each distinct `Group`."""
    groups: dict[Group, list[nn.Parameter]] = defaultdict(list)
    for module, network in modules.items():
        for name, parameter in network.named_parameters():
            groups[group_of(module, name, settings, depth)].append(parameter)
    options = [{"params": parameters, "group": group._asdict()} for group, parameters in groups.items()]
    on_meta = any(p.is_meta for parameters in groups.values() for p in parameters)
    return torch.optim.AdamW(options, lr=0.0, betas=settings.betas, weight_decay=0.0, fused=not on_meta)


def apply(optimiser: torch.optim.Optimizer, hyper: Hyper) -> None:
    """Set every group's lr and weight decay to the values of a step."""
    for options in optimiser.param_groups:
        group = Group(**options["group"])
        options["lr"] = getattr(hyper, group.rate) * group.lr
        options["weight_decay"] = hyper.weight_decay * group.weight_decay


def clip(modules: Mapping[str, nn.Module], largest: float) -> dict[str, Tensor]:
    """Scale each module's gradient down to norm `largest` (0 = leave it). Returns the norms before, on the device."""
    bound = largest if largest > 0 else float("inf")
    return {name: torch.nn.utils.clip_grad_norm_(module.parameters(), bound) for name, module in modules.items()}


@torch.no_grad()
def ema(teacher: Iterable[nn.Parameter], student: Iterable[nn.Parameter], momentum: float) -> None:
    """Set teacher = momentum * teacher + (1 - momentum) * student, for all tensors in one call."""
    get_ema_multi_avg_fn(momentum)(list(teacher), list(student), None)
