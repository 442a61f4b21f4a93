"""A weight file from anywhere -> the tensors of one encoder under the official names; and tensors -> a file.

Nothing in a file is ever executed: torch files are read with `weights_only`, safetensors cannot hold code.

The layouts of a ViT, P patches of width D and R registers:
    official: `cls_token`, `pos_embed` (1, 1 + P, D) with the position of CLS first, `register_tokens` (1, R, D),
        `mask_token` (1, D), `patch_embed.proj.*`, `blocks.i.*`, `norm.*`;
    plain: the same without mask token (DINO, MAE, DeiT);
    timm: `pos_embed` (1, P, D), the position of CLS added to `cls_token`, `reg_token`.
A SwiGLU's layers are `w12` and `w3` in the first two, `fc1` and `fc2` in timm and in `vit.ViT`.
"""

import argparse
import hashlib
import json
import math
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
DIGEST = "tensors_sha256"  # the key of the checksum in safetensors files written here
AGAIN = "another copy of the file, or an earlier checkpoint"
ABSURD = 1e6  # no trained weight is this large; a flipped exponent bit makes one that is
VIDEO = re.compile(rb"....ftyp|RIFF|\x1aE\xdf\xa3", re.DOTALL)
_scalar = np.float64(0).__reduce__()[0]  # the function by which numpy's scalars are stored
# Harmless classes that training scripts leave among their options. A file with any other is refused, not opened.
SAFE: list[Any] = [
    argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd"),
    (_scalar, "numpy.core.multiarray.scalar"), (_scalar, "numpy._core.multiarray.scalar"),
    (pathlib.PurePosixPath, "pathlib.PosixPath"),
]  # fmt: skip

# ---- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightFile:
    """What a file, or the only one of a folder, holds."""

    path: Path
    tensors: State  # by dotted names without those of FSDP, DDP and compile: `teacher.backbone.norm.weight`
    metadata: dict[
        str, Any
    ]  # step, params, ...; a folder's config.json; what stands under `OURS` at the top level, too

    @property
    def heads(self) -> int | None:
        """The number of attention heads, where an exported encoder or a training checkpoint tells."""
        try:
            if "encoder" in self.metadata:
                return int(self.metadata["encoder"]["heads"])
            return params.Encoder.model_validate(self.metadata["params"]["pretrain"]["encoder"]).shape[2]
        except (KeyError, TypeError, ValueError):
            return None


def read_weights(path: str | Path) -> WeightFile:
    """Read a .pth/.pt/.bin file, a .safetensors file, or a folder that holds one (Hugging Face layout).

    Raises:
        InputError: the file is missing, damaged, not a weight file, or wants to run code.
    """
    path = Path(path).expanduser()
    config: dict[str, Any] = {}
    if path.is_dir():
        found = [file for file in path.iterdir() if file.suffix in (".safetensors", ".pth", ".pt", ".bin")]
        found = [file for file in found if file.name == "model.safetensors"] or found
        if len(found) != 1:
            raise InputError(f"{path} holds {len(found)} weight files; give the path of one .safetensors or .pth file.")
        config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
        path = found[0]
    with reading(path, "check the path of the weights"), open(path, "rb") as stream:
        head = stream.read(64)
    if VIDEO.match(head):
        raise InputError(f"{path} is a video, not weights; give the encoder here and the video where one is asked for.")
    safetensors, torchs = head[8:9] == b"{", head.startswith((b"PK\x03\x04", b"\x80"))  # a zip archive, or a pickle
    if not safetensors and not torchs:
        raise InputError(f"{path} is no weight file (it begins with {head[:20]!r}); give a .pth, .pt or .safetensors.")
    with reading(path, f"give {AGAIN}"):
        tensors, metadata = _read_safetensors(path) if safetensors else _tensors_in(read_torch(path))
        for name, tensor in tensors.items():
            held = tensor.untyped_storage().nbytes() if tensor.layout == torch.strided else 0
            if tensor.numel() * tensor.element_size() > held:
                raise ValueError(f"{name} claims more values than the file holds")
        ours = {**metadata.get(OURS, {}), **config.get(OURS, {})}
    if not tensors:
        raise InputError(f"{path} holds no tensors (its keys: {_some(metadata)}); give a weight file.")
    wrappers = ("_fsdp_wrapped_module", "module", "_orig_mod")  # of FSDP, DDP and torch.compile
    plain = {name: ".".join(part for part in name.split(".") if part not in wrappers) for name in tensors}
    tensors = {plain[name]: tensor for name, tensor in tensors.items()}
    return WeightFile(path, tensors, {**config, **metadata, **ours, OURS: ours})


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any]]:
    with safe_open(path, framework="pt") as archive:
        metadata: dict[str, Any] = dict(archive.metadata() or {})
        tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (not a dictionary)
    if metadata.pop(DIGEST, None) not in (None, tensors_sha256(tensors)):
        raise ValueError("its tensors do not match its checksum")
    if OURS in metadata:
        metadata[OURS] = json.loads(metadata[OURS])
    return tensors, metadata


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU, after its checksums; a file that wants to run code is not opened.

    Call it inside `files.reading`.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} does not match its checksum")
    try:
        with torch.serialization.safe_globals(SAFE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read is refused here
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:GLOBAL|Unsupported class|class) ([\w.]+\.\w+)", str(error))
        if wanted is None and "Unsupported operand" not in str(error):
            raise
        raise InputError(
            f"{path} wants to run code when it is opened{f' ({wanted[1]})' if wanted else ''} and was not opened; where "
            "you trust it, load it and save what counts alone: torch.save(model.state_dict(), FILE)."
        ) from None


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


def _some(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


# ---- one encoder in a file ------------------------------------------------------------------------------------------

ANCHOR = "patch_embed.proj.weight"  # every vision transformer has it
ROLES = {  # which network of a checkpoint is meant: its averaged copy, or the one the optimiser stepped
    "teacher": {"teacher", "momentum_encoder", "state_dict_ema", "model_ema", "ema"},
    "student": {"student", "base_encoder"},
}
# What may stand beside an encoder: classifiers, MAE's decoder, projection and prediction heads. Patch tokens ignore it.
BESIDE = re.compile(r"^(head|decoder|proj|predict|classif|fc\.|last_layer|dino_|ibot_|masked_embed)")


def find_encoder(file: WeightFile, which: str) -> State:
    """The tensors of one encoder inside a checkpoint, without their common prefix and without what stands beside it.

    `which`, where the checkpoint holds both, is "teacher" (also: averaged or momentum encoder) or "student".

    Raises:
        InputError: there is no encoder, not the one asked for, several, or one that timm has to load.
    """
    origin, tensors = file.path, file.tensors
    prefixes = sorted(name.removesuffix(ANCHOR) for name in tensors if f".{name}".endswith(f".{ANCHOR}"))
    if not prefixes:
        if any(name.endswith("patch_embeddings.projection.weight") for name in tensors):
            raise InputError(
                f"{origin} has the names of the package transformers, which are not read; timm has these networks: "
                "timm:vit_small_patch14_dinov2.lvd142m, timm:vit_base_patch16_224.mae and others."
            )
        raise InputError(f"{origin} holds no vision transformer (no {ANCHOR}; its tensors: {_some(tensors, 3)}).")
    roles = {}
    for prefix in prefixes:
        roles[prefix] = next((role for role, words in ROLES.items() if words & set(prefix.split("."))), "")
    found = [prefix for prefix in prefixes if roles[prefix] == which]
    unnamed = [prefix for prefix in prefixes if not roles[prefix]]
    # the only network of a file is what is meant; beside an averaged copy it is the student
    if not found and which == ("teacher" if unnamed == prefixes else "student"):
        found = unnamed
    if not found:
        held = " and ".join(sorted({role for role in roles.values() if role})) or "only one encoder without a role"
        raise InputError(f"{origin} holds no {which}, but {held}; ask for that one.")
    if len(found) > 1:
        raise InputError(f"{origin} holds several encoders ({', '.join(found)}); save the one you mean on its own.")
    state = {name.removeprefix(found[0]): value for name, value in tensors.items() if name.startswith(found[0])}
    patch, mask, foreign = state[ANCHOR], state.get("mask_token"), any(name.startswith("decoder") for name in state)
    if mask is not None and (foreign or mask.numel() != len(patch)):
        del state["mask_token"]  # a decoder's, as in MAE
    if patch.ndim == 5:
        raise InputError(
            f"{origin} is a video model whose patches span {patch.shape[2]} frames; frames are read one by one here, so give "
            "an image encoder, e.g. timm:vit_small_patch16_224.dino."
        )
    if "pos_embed" not in state and any("rope" in name for name in state):
        size = {768: "base", 1024: "large"}.get(len(patch), "small")
        raise InputError(
            f"{origin} has rotary positions (DINOv3) under its authors' names; timm reads the same network: "
            f"timm:vit_{size}_patch{patch.shape[-1]}_dinov3.lvd1689m."
        )
    return {name: value for name, value in state.items() if not BESIDE.match(name)}


# ---- layouts --------------------------------------------------------------------------------------------------------

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


def to_vit(state: Mapping[str, Tensor]) -> State:
    """A state dict in any layout under the names of `vit.ViT`. Names that belong to no layout stay.

    What a network does without is filled with what changes nothing: positions without CLS get 0 for it, a mask token is
    0. DeiT's distillation token becomes a register: it is one, with a position of its own.
    """
    state = _renamed(state, CHUNKS, REGISTERS, *GATED)
    positions = state.get("pos_embed")
    if positions is not None and positions.ndim == 3:
        if "dist_token" in state:
            state["register_tokens"] = state.pop("dist_token") + positions[:, 1:2]
            state["pos_embed"] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
        elif _is_square(positions.shape[1]):
            state["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    token = state.get("mask_token", state[ANCHOR].new_zeros(len(state[ANCHOR])))
    return {**state, "mask_token": token.reshape(1, -1)}


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def layout_of(state: Mapping[str, Tensor]) -> str:
    """How an encoder came in, and shall go out again: "official", "plain" or "timm"."""
    if "reg_token" in state or ("dist_token" not in state and _is_square(state["pos_embed"].shape[1])):
        return "timm"
    return "official" if "mask_token" in state else "plain"


def to_layout(state: Mapping[str, Tensor], layout: str) -> State:
    """A ViT's tensors as `layout_of` found them. The sum that timm stores for CLS is the one a forward pass makes."""
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
            raise ValueError(f"its width, {width}, does not tell its number of attention heads: give heads")
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
    """Copy weights into a network, or say what is missing, unexpected, misshapen, no float, not finite or absurd."""
    with reading(origin, f"give whole weights of this architecture, {AGAIN}"):
        for name, tensor in state.items():
            largest = tensor.abs().max().item()  # NaN wins every maximum
            if not tensor.is_floating_point() or not largest <= ABSURD:
                raise ValueError(f"{name} holds {tensor.dtype} up to {largest:g}")
        network.load_state_dict(state)


# ---- writing --------------------------------------------------------------------------------------------------------


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over names, types, shapes and bytes of tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_safetensors(target: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors atomically, with metadata that JSON can hold and a checksum that `read_weights` compares."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = {"format": "pt", OURS: json.dumps(metadata), DIGEST: tensors_sha256(plain)}
    with atomic_path(target) as temporary:
        save_file(plain, temporary, text)


def write_torch(target: str | Path, content: Mapping[str, Any]) -> None:
    """Write nested dictionaries of tensors and plain values atomically, in torch's format."""
    with atomic_path(target) as temporary, open(temporary, "wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:  # closing the archive fails once more, after the disk was full
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
