"""Weights that live elsewhere: the three published encoders, and timm's. Fetched when asked for, never before.

A file that lies in the weights folder is used; the network is only tried where it is missing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import get_session
from torch import nn

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.files import read_json, sha256, write_json

REPOSITORY = "yafeng19/T-CORE"  # on huggingface.co, METHOD section 9
FILES = {
    "vits16_k400": "vits16_400ep_K400.pth",
    "vits16_inet": "vits16_100ep_INET.pth",
    "vitb16_k400": "vitb16_200ep_K400.pth",
}
# Hex SHA-256 by file name. The authors publish none; until one stands here, the first copy that is used is recorded in
# `checksums.json` beside the files, and later copies are compared with that.
SHA256: Mapping[str, str] = {}


def weights_folder() -> Path:
    """Where published weights are kept."""
    return params.resolve("data/weights")


def _probe(url: str) -> None:
    """One quick try of an address, where the hub's client would retry for a minute. Raises what went wrong."""
    answer = get_session().head(url, timeout=5.0)
    if answer.status_code >= 400:
        raise OSError(f"the server answers {answer.status_code}")


def _download(url: str, path: Path) -> str | None:
    """Fetch a published file to `path`; return its SHA-256 if the hub states one."""
    _probe(url)
    etag = get_hf_file_metadata(url).etag  # of a large file: its SHA-256
    partial = hf_hub_download(REPOSITORY, f"ckpt/{path.name}", local_dir=path.parent / ".download")
    Path(partial).replace(path)
    return etag if etag and len(etag) == 64 else None


def _checked(path: Path, published: str | None = None) -> Path:
    """Compare a file with its recorded checksum; the first time, record it.

    Raises:
        InputError: it is another file than the one recorded.
    """
    record = path.parent / "checksums.json"
    known: dict[str, str] = read_json(record) if record.is_file() else {}
    expected = SHA256.get(path.name) or known.get(path.name) or published
    digest = sha256(path)
    if expected is not None and digest != expected:
        raise InputError(
            f"{path} has SHA-256 {digest[:16]}..., not {expected[:16]}... as recorded; delete it and fetch it again, "
            f"or remove its line from {record} if the authors replaced it."
        )
    if path.name not in known:
        write_json(record, {**known, path.name: digest})
    return path


def fetch(name: str) -> Path:
    """The file of a published encoder, downloaded into `weights_folder()` if it is not there.

    Args:
        name: a key of `FILES`.

    Raises:
        InputError: it cannot be downloaded, or is not the file that was recorded.
    """
    folder, file = weights_folder(), FILES[name]
    path = folder / file
    if path.is_file():
        return _checked(path)
    url = hf_hub_url(REPOSITORY, f"ckpt/{file}")
    try:
        published = _download(url, path)
    except Exception as error:  # the HTTP library's own classes, which differ between versions of huggingface_hub
        reason = " ".join(str(error).split())
        raise InputError(
            f"{name} is not here and cannot be fetched ({reason}); download {url} and put it at {path}."
        ) from error
    return _checked(path, published)


def timm_model(name: str, *, pretrained: bool, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """A timm transformer without classifier, for images of any size.

    Args:
        name: as timm knows it, e.g. `vit_small_patch16_224.dino`.
        pretrained: with its published weights; else as the caller's torch seed draws it.
        arguments: further arguments of the model.

    Raises:
        InputError: timm has no such model, it takes no images of any size, or its weights cannot be had.
    """
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise InputError(f"timm:{name} does not exist ({error}); run timm.list_pretrained() for the names.") from error
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0][:12]}*")[:4])
        raise InputError(f"timm:{name} does not exist; {f'near it are {near}' if near else 'see timm.list_models()'}.")
    options = {**(arguments or {}), "num_classes": 0, "dynamic_img_size": True}
    try:
        if not pretrained:
            return timm.create_model(name, **options)
        options["pretrained_cfg_overlay"] = _timm_source(name, config)
        return timm.create_model(name, pretrained=True, **options)
    except TypeError as error:
        raise InputError(f"timm:{name} takes no images of any size ({error}); choose a vit_* or eva* model.") from error
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"The weights of timm:{name} cannot be had ({reason}); fetch them while online.") from error


def _timm_source(name: str, config: Any) -> dict[str, Any]:
    """Where timm shall read the weights from: the hub's cache if they are in it, so that offline nothing is tried."""
    if config is None or not (config.hf_hub_id or config.url):
        raise InputError(f"timm:{name} has no published weights; write timm:{name}:random for a random start.")
    if not config.hf_hub_id:
        return {}
    for file in (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin"):
        cached = try_to_load_from_cache(config.hf_hub_id, file) if file else None
        if isinstance(cached, str):
            return {"file": cached}
    try:
        _probe(hf_hub_url(config.hf_hub_id, config.hf_hub_filename or "model.safetensors"))
    except Exception as error:  # as in `fetch`
        reason = " ".join(str(error).split())
        raise InputError(
            f"The weights of timm:{name} are not in the cache and cannot be fetched ({reason}); load them once while "
            f"online, or download the folder https://huggingface.co/{config.hf_hub_id} and give its path."
        ) from error
    return {}
