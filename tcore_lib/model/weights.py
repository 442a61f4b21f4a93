"""A weight file from anywhere -> the tensors of one encoder under the official names; and tensors -> a file.

Nothing in a file is ever executed: torch files are read with `weights_only`, safetensors cannot hold code. The layouts of a
ViT, P patches of width D and R registers:
    official: `cls_token`, `pos_embed` (1, 1 + P, D) with the position of CLS first, `register_tokens` (1, R, D),
        `mask_token` (1, D), `patch_embed.proj.*`, `blocks.i.*`, `norm.*`;
    plain: the same without mask token (DINO, MAE, DeiT);
    timm: `pos_embed` (1, P, D), the position of CLS added to `cls_token`, `reg_token`.
A SwiGLU's layers are `w12` and `w3` in the first two, `fc1` and `fc2` in timm and in `vit.ViT`.
"""

import argparse
import io
import json
import math
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, read_json, reading

State = dict[str, Tensor]

OURS = "tcore_lib"  # the key under which files written here keep what is known about the weights
REMEDY = (
    "give another copy or an earlier checkpoint, or, where you trust it, load it yourself and save what counts alone: "
    "torch.save(model.state_dict(), FILE)"
)
WRAPPERS = re.compile(r"\b(_fsdp_wrapped_module|module|_orig_mod)\.")  # of FSDP, DDP and torch.compile
VIDEO = re.compile(rb"....ftyp|RIFF|\x1aE\xdf\xa3", re.DOTALL)
_scalar = np.float64(0).__reduce__()[0]  # the function by which numpy's scalars are stored
# Harmless classes that training scripts leave among their options. A file with any other is refused, not opened.
SAFE: list[Any] = [
    argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd"),
    (_scalar, "numpy.core.multiarray.scalar"), (_scalar, "numpy._core.multiarray.scalar"),
    (pathlib.PurePosixPath, "pathlib.PosixPath"),
]  # fmt: skip


class WeightFile(NamedTuple):
    """What a file holds."""

    path: Path
    tensors: State  # by dotted names without those of FSDP, DDP and compile: `teacher.backbone.norm.weight`
    metadata: dict[
        str, Any
    ]  # step, params, ...; a folder's config.json; what stands under `OURS` at the top level, too

    @property
    def heads(self) -> int | None:
        """The number of attention heads, where an exported encoder or a training checkpoint tells."""
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            about = self.metadata
            known = about["encoder"] if "encoder" in about else about["params"]["pretrain"]["encoder"]
            return int(known.get("heads") or params.ARCHITECTURES[known["arch"]][2])
        return None


def read_weights(path: str | Path) -> WeightFile:
    """Read a file of torch or safetensors, or a folder as timm and the hub write it; refuse one that wants to run code."""
    path = Path(path).expanduser()
    config: dict[str, Any] = {}
    if path.is_dir():
        config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
        path = path / "model.safetensors"
    with reading(path, "check the path of the weights"), open(path, "rb") as stream:
        head = stream.read(64)
    safetensors, torchs = head[8:9] == b"{", head.startswith((b"PK\x03\x04", b"\x80"))  # a zip archive, or a pickle
    if not safetensors and not torchs:
        what = "a video" if VIDEO.match(head) else f"no weight file (it begins with {head[:20]!r})"
        raise InputError(f"{path} is {what}; here an encoder is wanted, a .pth, .pt or .safetensors.")
    with reading(path, REMEDY):
        tensors, metadata = _read_safetensors(path) if safetensors else _tensors_in(read_torch(path))
        if not tensors:
            raise ValueError("it holds no tensors")
        ours = {**metadata.get(OURS, {}), **config.get(OURS, {})}
    tensors = {WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    return WeightFile(path, tensors, {**config, **metadata, **ours, OURS: ours})


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any]]:
    with safe_open(path, framework="pt") as archive:
        metadata: dict[str, Any] = dict(archive.metadata() or {})
        if OURS in metadata:
            metadata[OURS] = json.loads(metadata[OURS])
        return {name: archive.get_tensor(name) for name in archive.keys()}, metadata  # noqa: SIM118 (no dictionary)


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU, after its checksums; a file that wants to run code is not opened."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} does not match its checksum")
    try:
        with torch.serialization.safe_globals(SAFE):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError("it is damaged, or wants to run code when it is opened and was not opened") from error


def _tensors_in(content: Any) -> tuple[State, dict[str, Any]]:
    """Tensors by dotted names, and what stands beside them."""
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, not a dictionary of tensors")
    tensors: State = {}
    metadata: dict[str, Any] = {}
    for key, value in content.items():
        found = {name: leaf for name, leaf in leaves(value, str(key)) if isinstance(leaf, Tensor)}
        tensors |= found
        if not found:
            metadata[str(key)] = vars(value) if isinstance(value, argparse.Namespace) else value
    return tensors, metadata


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dictionaries and lists as (dotted name, leaf)."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, child in value.items():
        yield from leaves(child, f"{name}.{key}" if name else str(key))


ANCHOR = "patch_embed.proj.weight"  # every vision transformer has it
AVERAGED = {
    "teacher",
    "momentum_encoder",
    "state_dict_ema",
    "model_ema",
    "ema",
}  # of a checkpoint's networks the one meant
# What may stand beside an encoder: classifiers, MAE's decoder, projection and prediction heads. Patch tokens ignore it.
BESIDE = re.compile(r"^(head|decoder|proj|predict|classif|fc\.|last_layer|dino_|ibot_|masked_embed)")
ELSEWHERE = {  # a name by which a network is known that timm has to load -> the one meant
    "patch_embeddings.projection": "one of the package transformers; timm:vit_small_patch14_dinov2.lvd142m",
    "rope": "DINOv3, with rotary positions; timm:vit_small_patch16_dinov3.lvd1689m",
}


def find_encoder(file: WeightFile) -> State:
    """The tensors of the encoder in a checkpoint, the averaged one of two, without common prefix and what stands beside it."""
    path, tensors, _ = file
    for word, known in ELSEWHERE.items():
        if any(word in name for name in tensors):
            raise InputError(
                f"{path} has names that are not read here ({known}, or another size, is the same network)."
            )
    prefixes = [name.removesuffix(ANCHOR) for name in tensors if f".{name}".endswith(f".{ANCHOR}")]
    found = [prefix for prefix in prefixes if AVERAGED & set(prefix.split("."))] or prefixes
    if len(found) != 1:
        held = f"several encoders ({', '.join(found)})" if found else f"no vision transformer (no {ANCHOR})"
        raise InputError(f"{path} holds {held}; save the encoder that you mean on its own.")
    state = {name.removeprefix(found[0]): value for name, value in tensors.items() if name.startswith(found[0])}
    patch, mask = state[ANCHOR], state.get("mask_token")
    if patch.ndim == 5:
        raise InputError(
            f"{path} is a video model whose patches span {patch.shape[2]} frames; frames are read one by one here, so give "
            "an image encoder, e.g. timm:vit_small_patch16_224.dino."
        )
    if mask is not None and (mask.numel() != len(patch) or any(name.startswith("decoder") for name in state)):
        del state["mask_token"]  # a decoder's, as in MAE
    return {name: value for name, value in state.items() if not BESIDE.match(name)}


# Names on the way in, and on the way out again; chunks are those of DINOv2's trainings: `blocks.0.3.norm1.bias`.
CHUNKS, REGISTERS = (r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"), ("reg_token", "register_tokens")
GATED = ((r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2."))
UNGATED = ((r"\.mlp\.fc1\.", ".mlp.w12."), (r"\.mlp\.fc2\.", ".mlp.w3."))


def _renamed(state: Mapping[str, Tensor], *rules: tuple[str, str]) -> State:
    renamed = {}
    for name, tensor in state.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    return renamed


def _is_gated(state: Mapping[str, Tensor]) -> bool:
    """Whether the MLP is a SwiGLU: its first layer has two halves."""
    return len(state["blocks.0.mlp.fc1.weight"]) == 2 * state["blocks.0.mlp.fc2.weight"].shape[1]


def to_vit(state: Mapping[str, Tensor]) -> tuple[State, str]:
    """A state dict in any layout under the names of `vit.ViT`, and the layout: "official", "plain" or "timm".

    What a network does without is filled with what changes nothing: positions without CLS get 0 for it, a mask token is
    0. DeiT's distillation token becomes a register: it is one, with a position of its own. Names of no layout stay.
    """
    layout = "timm" if "reg_token" in state else "official" if "mask_token" in state else "plain"
    state = _renamed(state, CHUNKS, REGISTERS, *GATED)
    positions = state.get("pos_embed")
    if positions is not None and positions.ndim == 3:
        if "dist_token" in state:
            state["register_tokens"] = state.pop("dist_token") + positions[:, 1:2]
            state["pos_embed"] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
        elif math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:
            layout = "timm"
            state["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    token = state.get("mask_token", state[ANCHOR].new_zeros(len(state[ANCHOR])))
    return {**state, "mask_token": token.reshape(1, -1)}, layout


def to_layout(state: Mapping[str, Tensor], layout: str) -> State:
    """A ViT's tensors as `to_vit` found them."""
    state = {name: value.detach() for name, value in state.items() if layout == "official" or name != "mask_token"}
    if layout != "timm":
        return _renamed(state, *UNGATED) if _is_gated(state) else state
    cls_position, state["pos_embed"] = state["pos_embed"].tensor_split([1], dim=1)
    state["cls_token"] = state["cls_token"] + cls_position
    return _renamed(state, REGISTERS[::-1])


def architecture(state: Mapping[str, Tensor], heads: int | None, origin: str | Path) -> params.Encoder:
    """The network from the shapes of a ViT's tensors, or an `InputError`. Heads: None = width / 64, as in published ViTs."""
    with reading(origin, "give a whole plain ViT with a CLS token"):
        width, _, _, patch_size = state[ANCHOR].shape
        if heads is None and width % 64:
            raise ValueError(f"nothing tells its number of heads, nor does its width, {width}")
        shape = (width, len({name.split(".")[1] for name in state if name.startswith("blocks.")}), heads or width // 64)
        arch = next((name for name, known in params.ARCHITECTURES.items() if known == shape), "custom")
        return params.Encoder(
            arch=arch,
            **(dict(zip(("width", "depth", "heads"), shape, strict=True)) if arch == "custom" else {}),
            patch_size=patch_size,
            registers=state["register_tokens"].shape[1] if "register_tokens" in state else 0,
            layer_scale=1e-5 if "blocks.0.ls1.gamma" in state else None,
            mlp="swiglu" if _is_gated(state) else "gelu",
            mlp_ratio=len(state["blocks.0.mlp.fc1.weight"]) / width,
            qkv_bias="blocks.0.attn.qkv.bias" in state,
            img_size=math.isqrt(state["pos_embed"].shape[1] - 1) * patch_size,
        )


def load_exactly(network: nn.Module, state: State, origin: str | Path) -> None:
    """Copy weights into a network, or say what is missing, unexpected, misshapen, no float or not finite."""
    with reading(origin, REMEDY):
        for name, tensor in state.items():
            if not (tensor.is_floating_point() and tensor.isfinite().all()):
                raise ValueError(f"{name} holds NaN, infinity or {tensor.dtype}")
        network.load_state_dict(state)


def write_safetensors(target: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors atomically, with metadata that JSON can hold."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(target) as temporary:
        save_file(plain, temporary, {"format": "pt", OURS: json.dumps(metadata)})


def write_torch(target: str | Path, content: Mapping[str, Any]) -> None:
    """Write nested dictionaries of tensors and plain values atomically, in torch's format."""
    stream = io.BytesIO()  # torch's own error for a full disk does not say so
    torch.save(content, stream)
    with atomic_path(target) as temporary:
        temporary.write_bytes(stream.getbuffer())
