"""The names one and the same vision transformer goes by: official, timm, Hugging Face.

Everything here maps dictionaries of tensors to dictionaries of tensors. The official layout is the one in the middle:
`cls_token`, `pos_embed` (1, 1 + P, D), `register_tokens`, `mask_token`, `patch_embed.proj.*`, `blocks.i.*`, `norm.*`.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.model.weights import OURS

State = dict[str, Tensor]

_ANCHORS = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")
_SIDES = ("teacher", "student")

_HUGGING_FACE = (  # transformers' Dinov2 and Dinov2WithRegisters -> official; query, key and value are joined below
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.(norm\d|mlp\.fc\d)\.", r"blocks.\1.\2."),
    (r"^layernorm\.", "norm."),
)


def find_encoder(tensors: Mapping[str, Tensor], which: str, origin: str | Path) -> State:
    """The tensors of one encoder inside a checkpoint, without their common prefix.

    Args:
        tensors: by dotted name, e.g. `teacher.backbone.cls_token`, `model.student.backbone.cls_token`, `cls_token`.
        which: "teacher" or "student", where the checkpoint holds both.
        origin: what an error names.

    Raises:
        InputError: there is no encoder, not the one asked for, or several.
    """
    if which not in _SIDES:
        raise InputError(f"which = {which!r} is not possible; ask for the teacher or the student.")
    prefixes = sorted(name.removesuffix(end) for name in tensors for end in _ANCHORS if name.endswith(end))
    if not prefixes:
        flat = " (its parameters are flattened shards of FSDP; save a full state dict)"
        is_flat = any("flat_param" in name for name in tensors)
        raise InputError(f"{origin} holds no vision transformer{flat if is_flat else ''}; no patch_embed.proj.weight.")
    sides = {side: [prefix for prefix in prefixes if side in prefix.split(".")] for side in _SIDES}
    found = sides[which] if any(sides.values()) or which == "student" else prefixes
    if not found:
        held = " and ".join(side for side in _SIDES if sides[side]) or "only one encoder without a role"
        raise InputError(f"{origin} holds no {which}, but {held}; ask for that one.")
    if len(found) > 1:
        raise InputError(f"{origin} holds several encoders ({', '.join(found)}); save the one you mean on its own.")
    return {name.removeprefix(found[0]): value for name, value in tensors.items() if name.startswith(found[0])}


def to_official(state: State) -> State:
    """Bring timm, Hugging Face (Dinov2) and chunked official names to the official ones. Other names stay.

    What a network does without is filled with what changes nothing: no CLS position = 0 (timm folds it into CLS), no
    LayerScale = 1, no mask token = 0.
    """
    if _ANCHORS[1] in state:
        state = _from_hugging_face(state)
    state = {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name): value for name, value in state.items()}
    if "reg_token" in state:  # timm
        state["register_tokens"] = state.pop("reg_token")
    positions = state.get("pos_embed")
    if positions is not None and positions.ndim == 3 and math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:
        # a square number of positions: patches only, as timm has it
        state["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
        state.pop("head.weight", None)  # a classifier comes after the features
        state.pop("head.bias", None)
    norm = state.get("norm.weight")
    if norm is not None:
        state.setdefault("mask_token", torch.zeros_like(norm)[None])
        if not any(name.endswith("ls1.gamma") for name in state):
            for i in range(_depth(state)):
                state |= {f"blocks.{i}.{scale}.gamma": torch.ones_like(norm) for scale in ("ls1", "ls2")}
    return state


def _from_hugging_face(state: State) -> State:
    found: State = {}
    for name, value in state.items():
        part = re.match(r"^encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(\w+)$", name)
        if part is None:
            for pattern, replacement in _HUGGING_FACE:
                name = re.sub(pattern, replacement, name)
            found[name] = value
        elif part[2] == "query":
            names = [name.replace(".query.", f".{kind}.") for kind in ("query", "key", "value")]
            three = [state[each] for each in names if each in state and state[each].shape == value.shape]
            if len(three) == 3:
                found[f"blocks.{part[1]}.attn.qkv.{part[3]}"] = torch.cat(three)
    return found


def to_timm(state: Mapping[str, Tensor]) -> State:
    """Official names -> timm's, the position of CLS folded into CLS.

    The fold, `cls_token + pos_embed[:, :1]`, is the very sum a forward pass makes. The mask token has no place there.
    """
    renamed = {name: value for name, value in state.items() if name not in ("mask_token", "register_tokens")}
    if "register_tokens" in state:
        renamed["reg_token"] = state["register_tokens"]
    renamed["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    renamed["pos_embed"] = state["pos_embed"][:, 1:]
    return renamed


def _depth(state: Mapping[str, Tensor]) -> int:
    numbers = {int(found[1]) for name in state if (found := re.match(r"^blocks\.(\d+)\.", name))}
    return max(numbers, default=-1) + 1


def architecture(state: Mapping[str, Tensor], heads: int | None, origin: str | Path) -> tuple[params.Encoder, int]:
    """Recognise the network from the shapes of its official tensors.

    Args:
        state: official layout.
        heads: attention heads, which no shape tells; None = width / 64, as every published ViT has it.
        origin: what an error names.

    Returns:
        the settings, and the image size in pixels that `pos_embed` belongs to.

    Raises:
        InputError: the shapes are those of no such network.
    """
    shapes = {
        name: tuple(state[name].shape)
        for name in ("cls_token", "pos_embed", "patch_embed.proj.weight")
        if name in state
    }
    if len(shapes) < 3:
        raise InputError(f"{origin} holds no whole vision transformer; of its first tensors there is only {shapes}.")
    patch, positions = shapes["patch_embed.proj.weight"], shapes["pos_embed"]
    grid = math.isqrt(max(positions[1] - 1, 0)) if len(positions) == 3 else 0
    if len(patch) != 4 or patch[1] != 3 or patch[2] != patch[3] or not grid or grid**2 != positions[1] - 1:
        raise InputError(f"{origin} is no ViT on square RGB patches with square positions: {shapes}.")
    width, depth = patch[0], _depth(state)
    if heads is None and width % 64:
        raise InputError(
            f"{origin} has width {width}, from which its number of attention heads cannot be told; give heads."
        )
    tokens = state.get("register_tokens")
    registers = tokens.shape[1] if tokens is not None and tokens.ndim == 3 else 0
    shape = (width, depth, heads or width // 64)
    if not 1 <= depth <= 1000 or not 1 <= shape[2] <= width or width % shape[2]:
        raise InputError(f"{origin} has width {width}, {depth} blocks and {shape[2]} heads, which is no transformer.")
    names: dict[Any, Any] = {known: name for name, known in params.ARCHITECTURES.items()}
    common = {"patch_size": patch[2], "registers": registers}
    if shape in names:
        return params.Encoder(arch=names[shape], **common), grid * patch[2]
    return params.Encoder(arch="custom", width=width, depth=depth, heads=shape[2], **common), grid * patch[2]


def known_heads(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    """The number of attention heads, if a file's metadata or the `config.json` beside it tells."""
    try:
        own = metadata.get(OURS, metadata)
        if "encoder" in own:  # an exported encoder
            return int(own["encoder"]["heads"])
        if "params" in own:  # a training checkpoint or a whole model
            return params.Encoder.model_validate(own["params"]["pretrain"]["encoder"]).shape[2]
        return int(config["num_attention_heads"])  # transformers
    except (KeyError, TypeError, ValueError):
        return None
