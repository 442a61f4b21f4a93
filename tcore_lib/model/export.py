"""An encoder out of this library: safetensors, timm / Hugging Face folder, official file, torch.export, ONNX."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, write_json
from tcore_lib.model.encoders import FeatureEncoder, load_encoder
from tcore_lib.model.vit import ViT, official_state_dict
from tcore_lib.model.weights import OURS, to_layout, write_safetensors, write_torch


def description(vit: ViT) -> dict[str, int | str]:
    """What a reader needs to rebuild the network."""
    return {
        "arch": vit.settings.arch,
        "width": vit.width,
        "depth": vit.depth,
        "heads": vit.heads,
        "patch_size": vit.patch_size,
        "registers": vit.settings.registers,
        "img_size": vit.img_size,
    }


def _metadata(encoder: FeatureEncoder, vit: ViT, given: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into the file: the network's shape, what is known of its training, and what the caller adds."""
    known: dict[str, Any] = {key: encoder.metadata[key] for key in ("step", "params") if key in encoder.metadata}
    if "params" in known:
        with suppress(ValidationError):  # written under an older schema: the parameters themselves are kept
            known["params_sha256"] = params.Params.model_validate(known["params"]).digest()
    earlier = encoder.metadata.get(OURS, {})
    whole = {**earlier, **known, **given, "encoder": description(vit)}
    try:
        return json.loads(json.dumps(whole, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"metadata cannot be written as JSON ({error}); give text, numbers, lists and dicts."
        ) from error


def _vit(encoder: FeatureEncoder, form: str) -> ViT:
    if not isinstance(encoder.network, ViT):
        raise InputError(f"{encoder.name} has no weights in T-CoRe's layout and cannot be written as {form}.")
    return encoder.network


def to_safetensors(encoder: FeatureEncoder, target: Path, metadata: Mapping[str, Any]) -> None:
    """Official names in one .safetensors file, with metadata and a checksum. Loses nothing."""
    vit = _vit(encoder, "safetensors")
    write_safetensors(target, official_state_dict(vit), _metadata(encoder, vit, metadata))


def to_official(encoder: FeatureEncoder, target: Path, metadata: Mapping[str, Any]) -> None:
    """`{"teacher": {"backbone.*": ...}}`, what the authors' evaluation code reads. Loses nothing."""
    vit = _vit(encoder, "official")
    teacher = {f"backbone.{name}": value.cpu().clone() for name, value in official_state_dict(vit).items()}
    write_torch(target, {"teacher": teacher, OURS: _metadata(encoder, vit, metadata)})


def to_timm(encoder: FeatureEncoder, target: Path, metadata: Mapping[str, Any]) -> None:
    """A folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`, ready for `huggingface_hub.upload_folder`.

    The features stay the same bits. What features do not need is lost: the mask token, and the position of CLS as a
    parameter of its own (it is added to CLS).
    """
    vit = _vit(encoder, "timm")
    arch = "vit_small" if vit.settings.arch == "custom" else vit.settings.arch
    side = vit.img_size
    about = _metadata(encoder, vit, metadata)
    write_safetensors(target / "model.safetensors", to_layout(official_state_dict(vit), "timm"), about)
    config = {
        "architecture": f"{arch}_patch16_224",  # the function that builds it; all it decides stands in model_args
        "num_classes": 0,
        "num_features": vit.width,
        "global_pool": "token",
        "model_args": {
            "img_size": side,
            "patch_size": vit.patch_size,
            "embed_dim": vit.width,
            "depth": vit.depth,
            "num_heads": vit.heads,
            "reg_tokens": vit.settings.registers,
            "no_embed_class": True,
            "init_values": vit.settings.layer_scale,
            "dynamic_img_size": True,
        },
        "pretrained_cfg": {
            "tag": "tcore",
            "custom_load": False,
            "input_size": [3, side, side],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(IMAGENET_DEFAULT_MEAN),
            "std": list(IMAGENET_DEFAULT_STD),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        OURS: about,
    }
    write_json(target / "config.json", config)


def _traced(encoder: FeatureEncoder) -> torch.export.ExportedProgram:
    """The program images (B, 3, H, W) -> features (B, h, w, D), any batch, sides of 2 to 256 patches."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    rows, columns = (torch.export.Dim(name, min=2, max=256) for name in ("rows", "columns"))
    patch = encoder.patch_size
    example = torch.zeros(2, 3, 6 * patch, 5 * patch)  # no two sizes equal, or they would be taken for one
    return torch.export.export(encoder, (example,), dynamic_shapes=({0: batch, 2: patch * rows, 3: patch * columns},))


def to_torch_export(encoder: FeatureEncoder, target: Path, metadata: Mapping[str, Any]) -> None:
    """A `torch.export` program: images (B, 3, H, W), ImageNet-normalised -> features (B, h, w, D)."""
    vit = _vit(encoder, "pt2")
    about = {OURS: json.dumps(_metadata(encoder, vit, metadata))}
    with atomic_path(target) as temporary:
        torch.export.save(_traced(encoder), temporary, extra_files=about)


def to_onnx(encoder: FeatureEncoder, target: Path, metadata: Mapping[str, Any]) -> None:
    """An ONNX model, input `images` (B, 3, H, W), output `features` (B, h, w, D); agrees to about 1e-5."""
    vit = _vit(encoder, "onnx")
    absent = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(f"ONNX needs the package {' and '.join(absent)}; pip install onnx onnxscript, or choose pt2.")
    program: Any = torch.onnx.export(
        _traced(encoder), (), input_names=["images"], output_names=["features"], dynamo=True, verbose=False
    )
    program.model.metadata_props[OURS] = json.dumps(_metadata(encoder, vit, metadata))
    with atomic_path(target) as temporary:
        program.save(temporary)


Writer = Callable[[FeatureEncoder, Path, Mapping[str, Any]], None]
FORMATS: dict[str, tuple[str, Writer]] = {  # name -> suffix of the target, what writes it
    "safetensors": (".safetensors", to_safetensors),
    "timm": ("", to_timm),
    "official": (".pth", to_official),
    "pt2": (".pt2", to_torch_export),
    "onnx": (".onnx", to_onnx),
}


def export(
    source: FeatureEncoder | str | Path,
    target: str | Path,
    format: str = "safetensors",
    metadata: Mapping[str, Any] | None = None,
    *,
    which: str = "teacher",
) -> Path:
    """Write an encoder for use elsewhere.

    Args:
        source: an encoder, or anything `load_encoder` takes.
        target: the file to write (.safetensors, .pth, .pt2, .onnx), or for timm the folder.
        format: safetensors | timm | official | pt2 (torch.export) | onnx.
        metadata: what shall be known about the weights (run, commit, scores, ...), values that JSON can hold.
        which: "teacher" or "student", where the source holds both.

    Returns:
        the target.

    Raises:
        InputError: the source cannot be read, the format is unknown or unsuited, or the target does not fit it.
    """
    if format not in FORMATS:
        raise InputError(f"format = {format!r} does not exist; choose one of {', '.join(FORMATS)}.")
    suffix, write = FORMATS[format]
    target = Path(target).expanduser()
    if suffix and (target.suffix != suffix or target.is_dir()):
        raise InputError(f"{target} cannot hold the format {format}; give a file that ends in {suffix}.")
    if not suffix and target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file, but the format {format} is a folder; give another target.")
    encoder = source if isinstance(source, FeatureEncoder) else load_encoder(source, which=which)
    write(encoder, target, metadata or {})
    return target
