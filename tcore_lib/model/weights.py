"""A weight file from anywhere -> the tensors of one encoder under the official names; and tensors -> a file.

Nothing in a file is ever executed: torch files are read with `weights_only`, safetensors cannot hold code. The official
layout is the one in the middle: `cls_token`, `pos_embed` (1, 1 + P, D) with the position of CLS first, `register_tokens`
(1, R, D), `mask_token` (1, D), `patch_embed.proj.*`, `blocks.i.*`, `norm.*`.
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, read_json, reading

State = dict[str, Tensor]

OURS = "tcore_lib"  # the key under which files written here keep their metadata
DIGEST = "tensors_sha256"  # the key of the checksum in safetensors files written here
AGAIN = "fetch or save it again"
ABSURD = 1e6  # no trained weight is this large; a flipped exponent bit makes one that is
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # what huggingface_hub folders name their weights
VIDEO = "a video, not weights; give the encoder here and the video where one is asked for"
OTHER_FILES = {  # what the first bytes of a file say that is no weight file
    rb"\s*<": "a web page, not weights; download the file itself (the link with /resolve/)",
    rb"version https://git-lfs": "a git-lfs pointer, not the weights; run `git lfs pull` or download the file itself",
    rb"....ftyp|RIFF|\x1aE\xdf\xa3": VIDEO,
    rb"\xff\xd8\xff|\x89PNG": "a picture, not weights; give the encoder here",
    rb"$": "empty; the download or copy did not finish, fetch it again",
}
_scalar = np.float64(0).__reduce__()[0]  # the function by which numpy's scalars are stored
# Harmless classes that training scripts leave among their options. Everything else in a file is refused, not opened.
SAFE: list[Any] = [
    argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd"),
    (_scalar, "numpy.core.multiarray.scalar"), (_scalar, "numpy._core.multiarray.scalar"),
    (pathlib.PurePosixPath, "pathlib.PosixPath"),
]  # fmt: skip

# ---------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        path: the file.
        tensors: by dotted name, e.g. `teacher.backbone.norm.weight`; wrapper names of FSDP, DDP and compile removed.
        metadata: whatever else the file holds (step, params, ...), by dotted name.
        config: the `config.json` beside it, where the source was a folder.
    """

    path: Path
    tensors: State
    metadata: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """Metadata, with what our own files keep under `OURS` laid over it."""
        ours = {**self.metadata.get(OURS, {}), **self.config.get(OURS, {})}
        return {**self.metadata, OURS: ours, **ours}


def read_weights(path: str | Path) -> WeightFile:
    """Read a .pth/.pt/.bin file, a .safetensors file, or a folder that holds one (Hugging Face layout).

    Every tensor of a torch file is memory-mapped, not read.

    Raises:
        InputError: the file is missing, damaged, not a weight file, or wants to run code.
    """
    path, config = _file_and_config(Path(path).expanduser())
    with reading(path, "check the path of the weights"), open(path, "rb") as stream:
        head = stream.read(64)
    for pattern, what in OTHER_FILES.items():
        if re.match(pattern, head, re.DOTALL):
            raise InputError(f"{path} is {what}.")
    # a safetensors file begins with the length of its JSON header
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        tensors, metadata = _read_safetensors(path)
    else:
        tensors, metadata = _read_torch(path, head)
    if not tensors:
        raise InputError(f"{path} holds no tensors (its keys: {_some(metadata)}); give a weight file.")
    if not isinstance(metadata.get(OURS, {}), dict):
        raise InputError(f"{path} is damaged: its metadata {OURS!r} is not a dictionary; save it again.")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise InputError(f"{path} is not an ordinary weight file: {name} claims more values than the file holds.")
    return WeightFile(path, tensors, metadata, config)


def _file_and_config(path: Path) -> tuple[Path, dict[str, Any]]:
    """The weight file of a folder (the Hugging Face names, else the only weight file there), and its config.json."""
    if not path.is_dir():
        return path, {}
    config = read_json(path / "config.json", "export the folder again") if (path / "config.json").is_file() else {}
    if not isinstance(config, dict):
        raise InputError(f"{path / 'config.json'} is not a JSON object; export the folder again.")
    found = [path / name for name in FOLDER_FILES if (path / name).is_file()][:1]
    found = found or sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".pth", ".pt", ".bin"))
    if len(found) != 1:
        shards = ", several shards of one: merge them" if list(path.glob("*.index.json")) else ""
        raise InputError(
            f"{path} holds {len(found)} weight files{shards}; give the path of one .safetensors or .pth file."
        )
    return found[0], config


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any]]:
    with reading(path, AGAIN):
        with safe_open(path, framework="pt") as archive:
            metadata: dict[str, Any] = dict(archive.metadata() or {})
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (not a dictionary)
        digest = metadata.pop(DIGEST, None)
        if digest is not None and digest != tensors_sha256(tensors):
            raise InputError(f"{path} is damaged: its tensors do not match its checksum; {AGAIN}.")
        if OURS in metadata:
            metadata[OURS] = json.loads(metadata[OURS])
    return {_plain(name): value for name, value in tensors.items()}, metadata


def _read_torch(path: Path, head: bytes) -> tuple[State, dict[str, Any]]:
    zipped = head.startswith(b"PK\x03\x04")
    if not zipped and not head.startswith(b"\x80"):  # the first byte of a pickle, torch's older format
        raise InputError(f"{path} is no weight file (it begins with {head[:12]!r}); give a .pth, .pt or .safetensors.")
    with reading(path, AGAIN), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read is refused here
        if zipped:
            with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums
                if damaged := archive.testzip():
                    raise InputError(f"{path} is damaged: {damaged} does not match its checksum; {AGAIN}.")
        try:
            with torch.serialization.safe_globals(SAFE):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            wanted = re.search(r"(?:GLOBAL|Unsupported class|class) ([\w.]+\.\w+)", str(error))
            if wanted is None and "Unsupported operand" not in str(error):
                raise
            raise InputError(
                f"{path} wants to run code when it is opened{f' ({wanted[1]})' if wanted else ''} and was not opened; where "
                "you trust it, load it and save what counts alone: torch.save(model.state_dict(), FILE)."
            ) from None
        if not isinstance(content, Mapping):
            raise InputError(
                f"{path} holds a {type(content).__name__}, not a dictionary of tensors; give a state dict."
            )
        leaves = list(_walk(content, ""))
    tensors: State = {}
    metadata: dict[str, Any] = {}
    for name, leaf in leaves:
        if isinstance(leaf, Tensor):
            tensors[_plain(name)] = leaf
        else:
            metadata[_plain(name)] = vars(leaf) if isinstance(leaf, argparse.Namespace) else leaf
    return tensors, metadata


def _plain(name: str) -> str:
    """A parameter's name without what FSDP, DDP and torch.compile put into it."""
    return ".".join(part for part in name.split(".") if part not in ("_fsdp_wrapped_module", "module", "_orig_mod"))


def _walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Leaves of nested dictionaries and lists as (dotted name, leaf); a branch without tensors stays one leaf."""
    children = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if children is None or not _has_tensors(value):
        yield name, value
        return
    for key, child in children:
        yield from _walk(child, f"{name}.{key}" if name else str(key))


def _has_tensors(value: Any) -> bool:
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return isinstance(value, Tensor) or any(_has_tensors(child) for child in children)


def _some(names: Any, limit: int = 6) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


# ---------------------------------------------------------------------------------------------- one encoder in a file

ANCHOR = "patch_embed.proj.weight"  # every vision transformer has it
ROLES = {  # which network of a checkpoint is meant: its averaged copy, or the one the optimiser stepped
    "teacher": {"teacher", "momentum_encoder", "state_dict_ema", "model_ema", "ema"},
    "student": {"student", "base_encoder"},
}
# What may stand beside an encoder: classifiers, MAE's decoder, projection and prediction heads. Patch tokens ignore it.
BESIDE = re.compile(r"^(head|decoder|proj|predict|classif|fc\.|last_layer|dino_|ibot_|masked_embed)")
TRANSFORMERS = "embeddings.patch_embeddings.projection.weight"
_DINOV2 = {384: "small", 768: "base", 1024: "large", 1536: "giant"}  # width -> size in timm's names


def find_encoder(tensors: Mapping[str, Tensor], which: str, origin: str | Path) -> State:
    """The tensors of one encoder inside a checkpoint, without their common prefix and without what stands beside it.

    Args:
        tensors: by dotted name, e.g. `teacher.backbone.cls_token`, `model.student.backbone.cls_token`, `cls_token`.
        which: "teacher" (also: averaged or momentum encoder) or "student", where the checkpoint holds both.
        origin: what an error names.

    Raises:
        InputError: there is no encoder, not the one asked for, several, or one that timm has to load.
    """
    if which not in ROLES:
        raise InputError(f"which = {which!r} is not possible; ask for the teacher or the student.")
    prefixes = sorted(name.removesuffix(ANCHOR) for name in tensors if re.search(rf"(^|\.){re.escape(ANCHOR)}$", name))
    if not prefixes:
        raise InputError(_why_no_encoder(tensors, origin))
    role = {}
    for prefix in prefixes:
        parts = set(prefix.split("."))
        role[prefix] = next((name for name, words in ROLES.items() if parts & words), "")
    found = [prefix for prefix in prefixes if role[prefix] == which]
    if not found:  # the only network of a file is what is meant; beside an averaged copy it is the student
        unnamed = [prefix for prefix in prefixes if not role[prefix]]
        found = unnamed if (which == "teacher") == (unnamed == prefixes) else []
    if not found:
        held = " and ".join(sorted({name for name in role.values() if name})) or "only one encoder without a role"
        raise InputError(f"{origin} holds no {which}, but {held}; ask for that one.")
    if len(found) > 1:
        raise InputError(f"{origin} holds several encoders ({', '.join(found)}); save the one you mean on its own.")
    state = {name.removeprefix(found[0]): value for name, value in tensors.items() if name.startswith(found[0])}
    kept = {name: value for name, value in state.items() if not BESIDE.match(name)}
    mask, patch = kept.get("mask_token"), kept[ANCHOR]
    if mask is not None and (any(name.startswith("decoder") for name in state) or mask.numel() != len(patch)):
        del kept["mask_token"]  # a decoder's, as in MAE
    _refuse_other_networks(kept, origin)
    return kept


def _why_no_encoder(tensors: Mapping[str, Tensor], origin: str | Path) -> str:
    theirs = next((value for name, value in tensors.items() if name.endswith(TRANSFORMERS)), None)
    if theirs is not None:
        registers = "_reg4" if any("register_tokens" in name for name in tensors) else ""
        size, patch = _DINOV2.get(len(theirs), "base"), theirs.shape[-1]
        same = "timm:vit_base_patch16_224.dino, .mae, .augreg_in21k and others"
        if any("layer_scale" in name for name in tensors):
            same = f"timm:vit_{size}_patch{patch}{registers}_dinov2.lvd142m"
        return (
            f"{origin} has the names of the package transformers, which are not read; timm has these networks: {same}."
        )
    if any("flat_param" in name for name in tensors):
        return f"{origin} holds flattened shards of FSDP, no encoder; save a full state dict."
    return (
        f"{origin} holds no vision transformer (no {ANCHOR}; its tensors: {_some(tensors, 3)}); give an encoder's file."
    )


def _refuse_other_networks(state: State, origin: str | Path) -> None:
    """Networks with a patch embedding that are no plain ViT: say what they are and what reads them."""
    patch = state[ANCHOR]
    if patch.ndim == 5:
        raise InputError(
            f"{origin} is a video model whose patches span {patch.shape[2]} frames; frames are read one by one here, so give "
            "an image encoder, e.g. timm:vit_small_patch16_224.dino."
        )
    if "pos_embed" not in state and any("rope" in name for name in state):
        size = _DINOV2.get(len(patch), "small")
        raise InputError(
            f"{origin} has rotary positions (DINOv3) under its authors' names; timm reads the same network: "
            f"timm:vit_{size}_patch{patch.shape[-1]}_dinov3.lvd1689m."
        )


# ---------------------------------------------------------------------------------------------- official names


def to_official(state: State) -> State:
    """Bring timm's and chunked official names to the official ones. Other names stay.

    What a network does without is filled with what changes nothing: positions without CLS get 0 for it (timm folds it into
    CLS). DeiT's distillation token becomes a register: it is one, with a position of its own.
    """
    state = {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name): value for name, value in state.items()}
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
    positions = state.get("pos_embed")
    if positions is not None and positions.ndim == 3:
        if "dist_token" in state:
            state["register_tokens"] = state.pop("dist_token") + positions[:, 1:2]
            state["pos_embed"] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
        elif math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:  # a square number: patches only, as in timm
            state["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    if "mask_token" in state:
        state["mask_token"] = state["mask_token"].reshape(1, -1)
    elif "cls_token" in state:
        state["mask_token"] = torch.zeros_like(state["cls_token"]).reshape(1, -1)
    if _is_gated(state):
        gated = {".mlp.fc1.": ".mlp.w12.", ".mlp.fc2.": ".mlp.w3."}
        state = {re.sub(r"\.mlp\.fc[12]\.", lambda found: gated[found[0]], name): x for name, x in state.items()}
    return state


def _is_gated(state: Mapping[str, Tensor]) -> bool:
    """Whether timm's fc1 makes two halves, of which fc2 sees the product: a SwiGLU."""
    first, second = (state.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    return first is not None and second is not None and len(first) == 2 * second.shape[-1]


def layout_of(state: Mapping[str, Tensor]) -> str:
    """How an encoder came in, and shall go out again: "official", "plain" (no mask token) or "timm" (CLS folded)."""
    positions = state.get("pos_embed")
    square = positions is not None and math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]
    return "timm" if square or "reg_token" in state else "official" if "mask_token" in state else "plain"


def to_layout(state: State, layout: str) -> State:
    """Official tensors as `layout_of` found them.

    In timm's layout the position of CLS is added to CLS, which is the very sum a forward pass makes.
    """
    if layout == "official":
        return state
    state = {name: value for name, value in state.items() if name != "mask_token"}
    if layout == "timm":
        gated = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
        state = {re.sub(r"\.mlp\.w\d+\.", lambda found: gated[found[0]], name): x for name, x in state.items()}
        if "register_tokens" in state:
            state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    return state


def architecture(state: Mapping[str, Tensor], heads: int | None, origin: str | Path) -> params.Encoder:
    """Recognise the network from the shapes of its official tensors.

    Args:
        state: official layout.
        heads: attention heads, which no shape tells; None = width / 64, as every published ViT has it.
        origin: what an error names.

    Raises:
        InputError: the shapes are those of no such network.
    """
    needed = ("cls_token", "pos_embed", ANCHOR, "blocks.0.attn.qkv.weight")
    missing = [name for name in needed if name not in state]
    if missing:
        raise InputError(f"{origin} is no whole vision transformer with a CLS token: {', '.join(missing)} is missing.")
    patch, positions = tuple(state[ANCHOR].shape), tuple(state["pos_embed"].shape)
    grid = math.isqrt(max(positions[1] - 1, 0)) if len(positions) == 3 else 0
    if len(patch) != 4 or patch[1] != 3 or patch[2] != patch[3] or not grid or grid**2 != positions[1] - 1:
        raise InputError(
            f"{origin} is no ViT on square RGB patches with square positions: its patch embedding is {patch}, its positions "
            f"{positions}; give another encoder."
        )
    width, depth = patch[0], len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    if heads is None and width % 64:
        raise InputError(
            f"{origin} has width {width}, from which its number of attention heads cannot be told; give heads."
        )
    shape = (width, depth, heads or width // 64)
    if not 1 <= shape[2] <= width or width % shape[2] or depth > 1000:
        raise InputError(f"{origin} has width {width}, {depth} blocks and {shape[2]} heads, which is no transformer.")
    tokens, first = state.get("register_tokens"), state.get("blocks.0.mlp.w12.weight")
    names = {known: name for name, known in params.ARCHITECTURES.items()}
    found = (
        {"arch": names[shape]}
        if shape in names
        else {"arch": "custom", "width": width, "depth": depth, "heads": shape[2]}
    )
    hidden = len(state.get("blocks.0.mlp.fc1.weight", ())) if first is None else len(first)
    return params.Encoder.model_validate(
        {
            **found,
            "patch_size": patch[2],
            "registers": tokens.shape[1] if tokens is not None and tokens.ndim == 3 else 0,
            "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in state else None,
            "mlp": "gelu" if first is None else "swiglu",
            "mlp_ratio": hidden / width or 4.0,
            "qkv_bias": "blocks.0.attn.qkv.bias" in state,
            "img_size": grid * patch[2],
        }
    )


def known_heads(metadata: Mapping[str, Any]) -> int | None:
    """The number of attention heads, if a file's metadata tells."""
    try:
        if "encoder" in metadata:  # an exported encoder
            return int(metadata["encoder"]["heads"])
        return params.Encoder.model_validate(metadata["params"]["pretrain"]["encoder"]).shape[
            2
        ]  # a training checkpoint
    except (KeyError, TypeError, ValueError):
        return None


def check_values(tensors: Mapping[str, Tensor], origin: str | Path) -> None:
    """Refuse weights that no training leaves behind.

    Raises:
        InputError: a tensor holds NaN, infinity or a value above `ABSURD`.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise InputError(f"{origin} cannot be used: {name} holds {tensor.dtype}; save it as float32.")
        largest = tensor.abs().max().item() if tensor.numel() else 0.0  # NaN wins every maximum
        if not largest <= ABSURD:
            raise InputError(f"{origin} is damaged: {name} holds the value {largest:g}; {AGAIN}.")


# ---------------------------------------------------------------------------------------------- writing


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over names, types, shapes and bytes of tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_safetensors(target: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors atomically, with a checksum that `read_weights` compares.

    Args:
        target: the file.
        tensors: by name.
        metadata: values that JSON can hold.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = {"format": "pt", OURS: json.dumps(metadata), DIGEST: tensors_sha256(plain)}
    with atomic_path(target) as temporary:
        save_file(plain, temporary, text)


def write_torch(target: str | Path, content: Mapping[str, Any]) -> None:
    """Write nested dictionaries of tensors and plain values atomically, in torch's format.

    Raises:
        InputError: the disk is full, or cannot be written.
    """
    with atomic_path(target) as temporary, open(temporary, "wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:  # closing the archive fails once more, after the disk was full
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
