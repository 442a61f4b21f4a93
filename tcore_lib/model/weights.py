"""A weight file from anywhere -> tensors by name, safely; and tensors -> a file.

Nothing here knows a network, only files and names. Nothing in a file is ever executed: torch files are read with
`weights_only`, safetensors cannot hold code. What is damaged or not a weight file is refused with one sentence.
"""

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, read_json

ABSURD = 1e6  # no trained weight is this large; a flipped exponent bit makes one that is
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # what huggingface_hub folders name their weights
OURS = "tcore_lib"  # the key under which files written here keep their metadata
DIGEST = "tensors_sha256"  # the key of the checksum in safetensors files written here
# What torch raises for a file that is no whole torch file; besides, pickle.UnpicklingError for one that wants more.
UNREADABLE = (
    RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError, OSError, OverflowError,
    pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        path: the file.
        kind: "torch" or "safetensors".
        tensors: by dotted name, e.g. `teacher.backbone.norm.weight`; wrapper names of FSDP, DDP and compile removed.
        metadata: whatever else the file holds (step, params, ...), by dotted name.
        config: the `config.json` beside it, where the source was a folder.
    """

    path: Path
    kind: str
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------- names


def _plain(name: str) -> str:
    """A parameter's name without what FSDP, DDP and torch.compile put into it."""
    kept = [part for part in name.split(".") if part not in ("_fsdp_wrapped_module", "module", "_orig_mod")]
    return ".".join(kept)


def _walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Leaves of nested dictionaries and lists as (dotted name, leaf); a branch without tensors stays one leaf."""
    children = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if children is None or not any(isinstance(leaf, Tensor) for leaf in _leaves(value)):
        yield name, value
        return
    for key, child in children:
        yield from _walk(child, f"{name}.{key}" if name else str(key))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping | list):
        for child in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(child)
    else:
        yield value


def _split(path: Path, kind: str, content: Any) -> WeightFile:
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors; give a state dict.")
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    for name, leaf in _walk(content, ""):
        (tensors if isinstance(leaf, Tensor) else metadata)[_plain(name)] = leaf
    if not tensors:
        raise InputError(f"{path} holds no tensors (its keys: {_some(content)}); give a weight file.")
    return WeightFile(path, kind, tensors, metadata)


def _some(names: Any, limit: int = 6) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


# ---------------------------------------------------------------------------------------------- reading


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path of the weights.") from error
    if not head:
        raise InputError(f"{path} is empty; the download or copy did not finish, fetch it again.")
    if head.lstrip()[:1] == b"<":
        raise InputError(f"{path} is a web page, not weights; download the file itself (the link with /resolve/).")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` or download the file.")
    return head


def check_zip(path: Path) -> None:
    """Compare every record of a torch file with its stored checksum; torch itself does not.

    Raises:
        InputError: it is truncated or damaged, no zip archive, or no torch file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} is truncated or damaged ({error}); fetch or save it again.") from error
    if damaged is not None:
        raise InputError(f"{path} is damaged: {damaged} does not match its checksum; fetch or save it again.")
    if not any(name.endswith("data.pkl") for name in names):
        raise InputError(f"{path} is a zip archive but no torch file (it holds {_some(names, 3)}); give the weights.")
    if any(name.endswith("constants.pkl") for name in names):
        raise InputError(f"{path} is a TorchScript program, not weights; save the model's state_dict() instead.")


def _read_torch(path: Path, head: bytes) -> WeightFile:
    zipped = head.startswith(b"PK\x03\x04")
    if zipped:
        check_zip(path)
    elif not head.startswith(b"\x80"):  # the first byte of a pickle, torch's older format
        raise InputError(f"{path} is no weight file (it begins with {head[:12]!r}); give a .pth, .pt or .safetensors.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read is refused below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        wanted = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", reason)
        if wanted or "Unsupported operand" in reason:  # an instruction that weights have no use for
            asked = f" ({wanted[1]})" if wanted else ""
            raise InputError(
                f"{path} wants to run code when it is opened{asked} and was not opened; give a file with tensors only."
            ) from None
        raise InputError(f"{path} is truncated, damaged or not a weight file; fetch or save it again.") from error
    except UNREADABLE as error:
        raise InputError(f"{path} is truncated, damaged or not a weight file; fetch or save it again.") from error
    return _split(path, "torch", content)


def _read_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="pt") as archive:
            text = archive.metadata() or {}
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (not a dictionary)
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(f"{path} is no intact safetensors file ({error}); fetch or save it again.") from error
    if not tensors:
        raise InputError(f"{path} holds no tensors; give a weight file.")
    if DIGEST in text and text[DIGEST] != tensors_sha256(tensors):
        raise InputError(f"{path} is damaged: its tensors do not match its checksum; fetch or save it again.")
    metadata: dict[str, Any] = {name: value for name, value in text.items() if name != DIGEST}
    if OURS in metadata:
        try:
            metadata[OURS] = json.loads(metadata[OURS])
        except ValueError as error:
            raise InputError(f"{path} is damaged: its metadata is not JSON ({error}); save it again.") from error
    return WeightFile(path, "safetensors", {_plain(name): value for name, value in tensors.items()}, metadata)


def _file_in(folder: Path) -> Path:
    """The weight file of a folder: the Hugging Face names, else the only weight file there."""
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    if list(folder.glob("*.index.json")):
        raise InputError(f"{folder} holds weights in several shards; merge them into one model.safetensors.")
    found = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".pth", ".pt", ".bin"))
    if len(found) != 1:
        what = (
            f"holds {len(found)} weight files ({_some(file.name for file in found)})" if found else "holds no weights"
        )
        raise InputError(f"{folder} {what}; give the path of one .safetensors or .pth file.")
    return found[0]


def read_weights(path: str | Path) -> WeightFile:
    """Read a .pth/.pt/.bin file, a .safetensors file, or a folder that holds one (Hugging Face layout).

    Every tensor of a torch file is memory-mapped, not read.

    Raises:
        InputError: the file is missing, empty, truncated, damaged, a web page, not a weight file, or wants to run code.
    """
    path = Path(path).expanduser()
    config: dict[str, Any] = {}
    if path.is_dir():
        if (path / "config.json").is_file():
            config = read_json(path / "config.json")
            if not isinstance(config, dict):
                raise InputError(f"{path / 'config.json'} is not a JSON object; export the folder again.")
        path = _file_in(path)
    head = _first_bytes(path)
    # a safetensors file begins with the length of its JSON header
    safe = path.suffix == ".safetensors" or head[8:9] == b"{"
    read = _read_safetensors(path) if safe else _read_torch(path, head)
    if not isinstance(read.metadata.get(OURS, {}), dict):
        raise InputError(f"{path} is damaged: its metadata {OURS!r} is not a dictionary; save it again.")
    for name, tensor in read.tensors.items():
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise InputError(f"{path} is not an ordinary weight file: {name} claims more values than the file holds.")
    return WeightFile(read.path, read.kind, read.tensors, read.metadata, config)


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
            raise InputError(f"{origin} is damaged: {name} holds the value {largest:g}; fetch or save it again.")


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
