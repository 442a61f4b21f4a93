"""The original's names: of a whole model's weights, and of the loss terms in its logs."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.model.vit import load_official, mismatch, official_state_dict
from tcore_lib.training.tcore import TCoRe

_DECODER_NAMES = (
    (r"^blocks\.", "decoder."),
    (r"\.(cross_attn|self_attn|linear)\.", r".auxiliary_\1."),
    (r"\.norm(\d)\.", r".auxiliary_layer_norm\1."),
)


def _official_decoder_name(name: str) -> str:
    for pattern, new in _DECODER_NAMES:
        name = re.sub(pattern, new, name)
    return f"auxiliary_decoder.{name}"


def official_weights(model: TCoRe) -> dict[str, dict[str, Tensor]]:
    """All weights of a model as released checkpoints hold them. Tensors share memory with it except `pos_embed`.

    Returns:
        `student` and `teacher`, each `backbone.*`, `dino_head.*` and, for a separate patch head, `ibot_head.*`; and
        `auxiliary`: `auxiliary_decoder.*`, empty without a decoder.
    """
    weights: dict[str, dict[str, Tensor]] = {}
    for role, networks in (("student", model.student), ("teacher", model.teacher)):
        weights[role] = {f"backbone.{k}": v for k, v in official_state_dict(networks.encoder).items()}
        for prefix, head in (("dino_head", networks.head), ("ibot_head", networks.patch_head)):
            if head is not None:
                weights[role] |= {f"{prefix}.{k}": v.detach() for k, v in head.state_dict().items()}
    weights["auxiliary"] = {}
    if model.decoder is not None:
        weights["auxiliary"] = {_official_decoder_name(k): v.detach() for k, v in model.decoder.state_dict().items()}
    return weights


def load_official_weights(model: TCoRe, weights: Mapping[str, Mapping[str, Tensor]], origin: str) -> None:
    """Copy weights in the layout of `official_weights` into the model, exactly.

    Raises:
        InputError: a tensor is missing, unexpected or misshapen.
    """
    own = official_weights(model)
    for role, expected in own.items():
        wrong = mismatch(expected, weights.get(role, {}))
        if wrong:
            raise InputError(
                f"{origin}: the {role} does not fit ({wrong}); use the settings these weights were trained with."
            )
    for role, networks in (("student", model.student), ("teacher", model.teacher)):
        inner = {k.removeprefix("backbone."): v for k, v in weights[role].items() if k.startswith("backbone.")}
        load_official(networks.encoder, inner, origin)
    with torch.no_grad():
        for role, expected in own.items():
            for name, tensor in expected.items():
                if not name.startswith("backbone."):
                    tensor.copy_(weights[role][name])


def model_of(settings: params.Pretrain, seed: int, weights: Mapping[str, Mapping[str, Tensor]], origin: str) -> TCoRe:
    """A model with the weights of a checkpoint or a model file (`official_weights`), on the CPU, in evaluation mode.

    Raises:
        InputError: the weights belong to other settings.
    """
    model = TCoRe(settings, seed)
    load_official_weights(model, weights, origin)
    return model.eval()


def reported(terms: Mapping[str, float], settings: params.Loss) -> dict[str, float]:
    """Terms under the names and with the factors of the released logs.

    KoLeo, the patch terms and the agreement are shown halved there, and KoLeo with its weight.
    """
    names = {
        "dino_local": ("dino_local_crops_loss", 1.0),
        "dino_global": ("dino_global_crops_loss", 1.0),
        "koleo": ("koleo_loss", settings.koleo / 2),
        "patch": ("ibot_loss", 0.5),
        "patch_past": ("past_tea_ibot_loss", 0.5),
        "patch_future": ("future_tea_ibot_loss", 0.5),
        "agreement": ("past_future_MSE_loss", 0.5),
    }
    return {names[name][0]: value * names[name][1] for name, value in terms.items()}
