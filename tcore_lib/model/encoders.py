"""An encoder from anywhere, read as patch features.

`load_encoder` turns a file, a folder or a name into a `FeatureEncoder`; `layer_tokens` and `attention_maps` look inside
one. The network that is trained stands in `vit`.

Letters: B images, H W pixels, h w grid of patches, P = h * w, D width, R registers, T = 1 + R + P tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.model import layouts
from tcore_lib.model.vit import ViT, initial_vit, load_official, mismatch, official_state_dict
from tcore_lib.model.weights import OURS, WeightFile, check_values, read_weights
from tcore_lib.remote import released


class TimmNetwork(nn.Module):
    """Any transformer of timm whose images may have any size: DINO, DINOv2/v3, MAE, CLIP, ...

    Raises:
        InputError: the model is no plain transformer.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Any, name: str) -> None:  # timm models share no base class
        super().__init__()
        needed = ("blocks", "patch_embed", "num_prefix_tokens", "embed_dim", "forward_features")
        if not all(hasattr(model, attribute) for attribute in needed):
            raise InputError(f"timm's {name} is no vision transformer with patch tokens; choose a vit_* or eva* model.")
        self.model: Any = model
        self.architecture = name
        self.patch_size, self.width = model.patch_embed.patch_size[0], model.embed_dim
        self.prefix = model.num_prefix_tokens
        mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
        own_mean, own_std = torch.tensor(model.pretrained_cfg["mean"]), torch.tensor(model.pretrained_cfg["std"])
        # images come ImageNet-normalised; a model trained otherwise (CLIP, SigLIP) gets its own normalisation
        self.register_buffer("scale", (std / own_std)[:, None, None], persistent=False)
        self.register_buffer("shift", ((mean - own_mean) / own_std)[:, None, None], persistent=False)

    @property
    def blocks(self) -> nn.Sequential:
        """The transformer's blocks."""
        return self.model.blocks

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, T, D), as timm's `forward_features` gives them."""
        return self.model.forward_features(images * self.scale + self.shift)


class Pixels(nn.Module):
    """The weightless baseline: a patch's feature is its own normalised pixels, ordered channel, row, column."""

    blocks: tuple[nn.Module, ...] = ()

    def __init__(self, patch_size: int = 16) -> None:
        super().__init__()
        self.patch_size, self.width, self.prefix = patch_size, 3 * patch_size**2, 0

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, P, 3 * patch * patch)."""
        return nn.functional.unfold(images, self.patch_size, stride=self.patch_size).transpose(1, 2)


class FeatureEncoder(nn.Module):
    """A network read as patch features, for images of any height and width that are multiples of its patch size.

    The network itself is left as it is, so a student in training can be looked at too.

    Attributes:
        name: what the encoder is called in tables; its source by default.
        network: a `ViT`, `TimmNetwork` or `Pixels`.
        patch_size: pixels.
        width: D, length of a feature.
        prefix: number of tokens before the patches (CLS and registers).
        metadata: what is known about the weights (step, params, scores, ...).
    """

    def __init__(
        self, network: ViT | TimmNetwork | Pixels, name: str, metadata: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.network: ViT | TimmNetwork | Pixels = network
        self.name, self.metadata = name, dict(metadata or {})
        self.patch_size: int = network.patch_size
        self.width: int = network.width
        self.prefix: int = network.prefix

    @property
    def device(self) -> torch.device:
        """Where its weights are; the CPU where it has none."""
        return next(self.parameters(), torch.empty(0)).device

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches (h, w) of an image of this size in pixels.

        Raises:
            InputError: the size is not a multiple of the patch size.
        """
        if height < 1 or width < 1 or height % self.patch_size or width % self.patch_size:
            raise InputError(
                f"{self.name} cannot take images of {height}x{width} pixels (height x width); "
                f"make both multiples of its patch size, {self.patch_size}."
            )
        return height // self.patch_size, width // self.patch_size

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, T, D) tokens after the final norm: CLS, registers, patches."""
        self.grid(*images.shape[2:])
        return self.network.tokens(images)

    def forward(self, images: Tensor) -> Tensor:
        """Patch features.

        Args:
            images: (B, 3, H, W), ImageNet-normalised.

        Returns:
            (B, h, w, D), patch tokens after the final norm; no gradient is recorded.

        Raises:
            InputError: H or W is not a multiple of the patch size.
        """
        h, w = self.grid(*images.shape[2:])
        return self.tokens(images)[:, self.prefix :].unflatten(1, (h, w))


def random_encoder(settings: params.Encoder, img_size: int, seed: int) -> FeatureEncoder:
    """The initialisation that a run with this seed starts from, frozen: what training has to beat."""
    return _frozen(FeatureEncoder(initial_vit(settings, img_size, seed), "random"))


def _frozen(encoder: FeatureEncoder) -> FeatureEncoder:
    return encoder.requires_grad_(False).eval()


# ---------------------------------------------------------------------------------------------- loading


def _ours(file: WeightFile, which: str, heads: int | None) -> FeatureEncoder:
    """A file in the official, our own, timm's or Hugging Face's layout as a `ViT`."""
    state = layouts.to_official(layouts.find_encoder(file.tensors, which, file.path))
    heads = heads or layouts.known_heads(file.metadata, file.config)
    settings, img_size = layouts.architecture(state, heads, file.path)
    vit = initial_vit(settings, img_size, seed=0)
    wrong = mismatch(official_state_dict(vit), state)
    if wrong:
        raise InputError(f"{file.path} is no whole {settings.arch} encoder ({wrong}); give a complete one.")
    check_values(state, file.path)
    load_official(vit, state, str(file.path))
    return FeatureEncoder(vit, str(file.path), {**file.metadata, **file.metadata.get(OURS, {})})


def _timm(name: str) -> FeatureEncoder:
    """`NAME` with its published weights, or `NAME:random`."""
    model, _, start = name.partition(":")
    if start not in ("", "random"):
        raise InputError(f"timm:{name} is not known; write timm:{model} or timm:{model}:random.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = released.timm_model(model, pretrained=not start)
    return FeatureEncoder(TimmNetwork(network, model), f"timm:{name}")


def _timm_folder(file: WeightFile) -> FeatureEncoder:
    """A folder that timm's own export wrote (config.json names the architecture)."""
    name, arguments = file.config["architecture"], file.config.get("model_args") or {}
    model = released.timm_model(name, pretrained=False, arguments=arguments)
    state = {key: value for key, value in file.tensors.items() if not key.startswith("head.")}
    wrong = mismatch(model.state_dict(), state)
    if wrong:
        raise InputError(f"{file.path} does not fit timm's {name} ({wrong}); export the folder again.")
    check_values(state, file.path)
    model.load_state_dict(state)
    return FeatureEncoder(TimmNetwork(model, name), str(file.path.parent), file.metadata)


def load_encoder(
    source: str | Path, *, device: str | torch.device = "cpu", which: str = "teacher", heads: int | None = None
) -> FeatureEncoder:
    """An encoder from anywhere, frozen and ready to read features.

    Args:
        source: one of
            a file: official T-CoRe (`{"teacher": {"backbone.*", ...}}`), a training checkpoint of this library, a bare
            state dict (official or timm names), as .pth, .pt, .bin or .safetensors;
            a folder with `model.safetensors` and `config.json` (timm, or transformers' Dinov2WithRegisters; its Dinov2
            too, but that one resizes positions without antialias, we with it);
            `vits16_k400`, `vits16_inet`, `vitb16_k400`: the published encoders, fetched if they are not here;
            `timm:NAME` with timm's weights, `timm:NAME:random` without;
            `pixels`: no network, each patch's own normalised pixels.
        device: where it shall run.
        which: "teacher" or "student", where a file holds both.
        heads: attention heads, where neither the width (64 per head) nor the file tells them.

    Raises:
        InputError: the source cannot be had, read or trusted, or its tensors are not those of one whole encoder.
    """
    text = str(source)
    if text == "pixels":
        encoder = FeatureEncoder(Pixels(), "pixels")
    elif text.startswith("timm:"):
        encoder = _timm(text.removeprefix("timm:"))
    else:
        path = released.fetch(text) if text in released.FILES else Path(text).expanduser()
        if not path.exists():
            known = ", ".join((*released.FILES, "timm:NAME", "pixels"))
            raise InputError(f"{text} is neither a file, a folder nor a known encoder; give a path or one of {known}.")
        file = read_weights(path)
        foreign = "architecture" in file.config and OURS not in file.config
        encoder = _timm_folder(file) if foreign else _ours(file, which, heads)
        encoder.name = text
    return _frozen(encoder).to(device)


# ---------------------------------------------------------------------------------------------- looking inside


@torch.no_grad()
def layer_tokens(encoder: FeatureEncoder | ViT, images: Tensor) -> Tensor:
    """All tokens after every block, before the final norm.

    Args:
        encoder: a transformer.
        images: (B, 3, H, W), ImageNet-normalised.

    Returns:
        (depth, B, T, D); the first `encoder.prefix` tokens are CLS and registers. Pixels have depth 0.
    """
    network = encoder.network if isinstance(encoder, FeatureEncoder) else encoder
    collected: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *call: collected.append(call[-1])) for block in network.blocks]
    try:
        network.tokens(images)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(collected) if collected else images.new_empty(0)


@torch.no_grad()
def attention_maps(encoder: FeatureEncoder | ViT, images: Tensor, layer: int = -1) -> Tensor:
    """Self-attention weights of one block. Only this block leaves the fused kernel, and only for this call.

    Args:
        encoder: a transformer.
        images: (B, 3, H, W), ImageNet-normalised.
        layer: block; negative counts from the end.

    Returns:
        (B, heads, T, T): each row (a query) sums to 1; tokens are CLS, registers, patches row by row.

    Raises:
        InputError: the encoder has no such layer.
    """
    network = encoder.network if isinstance(encoder, FeatureEncoder) else encoder
    if not -len(network.blocks) <= layer < len(network.blocks):
        raise InputError(f"layer = {layer} is not possible: the encoder has {len(network.blocks)} blocks; choose one.")
    attention: Any = network.blocks[layer].attn
    collected: list[Tensor] = []
    hook = attention.attn_drop.register_forward_hook(lambda *call: collected.append(call[-1]))
    fused, attention.fused_attn = attention.fused_attn, False
    try:
        network.tokens(images)
    finally:
        attention.fused_attn = fused
        hook.remove()
    return collected[0]
