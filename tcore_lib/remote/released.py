"""timm's networks and weights; and old names of `tcore_lib.fetch`, until their users have moved."""

from collections.abc import Mapping
from typing import Any

import timm
from huggingface_hub import hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import get_session
from torch import nn

from tcore_lib.errors import InputError
from tcore_lib.fetch import CHECKPOINTS as FILES, weights as fetch, weights_folder

__all__ = ["FILES", "fetch", "timm_model", "weights_folder"]


def _probe(url: str) -> None:
    """One quick try of an address, where the hub's client would retry for a minute. Raises what went wrong."""
    answer = get_session().head(url, timeout=5.0)
    if answer.status_code >= 400:
        raise OSError(f"the server answers {answer.status_code}")


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
