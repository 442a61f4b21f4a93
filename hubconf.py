"""Encoders by name for torch.hub: `torch.hub.load(REPOSITORY, "vits16_k400")`, or `torch.hub.load(".", NAME, source="local")`.

Each returns the network in evaluation mode: images (B, 3, H, W), ImageNet-normalised, sides multiples of `patch_size` ->
patch features (B, h, w, D) after the final norm. `.tokens(images)` gives CLS and registers too.
"""

from pathlib import Path as _Path

from tcore_lib.model.encoders import FeatureEncoder as _FeatureEncoder, load_encoder as _load_encoder

dependencies = [
    "torch",
    "timm",
    "safetensors",
    "huggingface_hub",
    "pydantic",
    "yaml",
    "pandas",
    "av",
    "PIL",
    "psutil",
    "filelock",
]


def vits16_k400() -> _FeatureEncoder:
    """ViT-S/16, 400 epochs on Kinetics-400, as the authors published it (fetched once)."""
    return _load_encoder("vits16_k400")


def vits16_inet() -> _FeatureEncoder:
    """ViT-S/16, 100 epochs on ImageNet, as the authors published it (fetched once)."""
    return _load_encoder("vits16_inet")


def vitb16_k400() -> _FeatureEncoder:
    """ViT-B/16, 200 epochs on Kinetics-400, as the authors published it (fetched once)."""
    return _load_encoder("vitb16_k400")


def small() -> _FeatureEncoder:
    """The small encoder that comes with the repository (width 192, 4 blocks); results/encoders/README.md says of what."""
    return _load_encoder(_Path(__file__).parent / "results" / "encoders" / "small.safetensors")
