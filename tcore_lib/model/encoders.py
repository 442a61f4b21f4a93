"""An encoder from anywhere, read as patch features.

`load_encoder` turns a file, a folder or a name into a `FeatureEncoder`; `layer_tokens` and `attention_maps` look inside
one. The network that is trained stands in `vit`.

Letters: B images, H W pixels, h w grid of patches, P = h * w, D width, R registers, T = 1 + R + P tokens.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import get_session
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from tcore_lib import fetch, params
from tcore_lib.errors import InputError
from tcore_lib.files import reason
from tcore_lib.model.vit import ViT, initial_vit, load_official, mismatch, official_state_dict
from tcore_lib.model.weights import (
    OURS,
    State,
    WeightFile,
    architecture,
    check_values,
    find_encoder,
    known_heads,
    layout_of,
    read_weights,
    to_official,
)


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


def load_encoder(
    source: str | Path, *, device: str | torch.device = "cpu", which: str = "teacher", heads: int | None = None
) -> FeatureEncoder:
    """An encoder from anywhere, frozen and ready to read features.

    Args:
        source: one of
            a file (.pth, .pt, .bin, .ckpt, .safetensors) that holds a whole encoder under the official (DINO, DINOv2,
            T-CoRe), timm's or our names, whatever stands beside it: released files, training checkpoints, state dicts;
            a folder with such a file; one with timm's `config.json` is built as that says (also `local-dir:FOLDER`);
            `vits16_k400`, `vits16_inet`, `vitb16_k400`: the published encoders, fetched if they are not here;
            `timm:NAME` with timm's weights, `timm:NAME:random` without;
            `pixels`: no network, each patch's own normalised pixels.
        device: where it shall run.
        which: "teacher" or "student", where a file holds both; an averaged or momentum encoder counts as the teacher.
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
        path = fetch.weights(text) if text in fetch.CHECKPOINTS else Path(text.removeprefix("local-dir:")).expanduser()
        if not path.exists():
            known = ", ".join((*fetch.CHECKPOINTS, "timm:NAME", "pixels"))
            raise InputError(f"{text} is neither a file, a folder nor a known encoder; give a path or one of {known}.")
        file = read_weights(path)
        foreign = "architecture" in file.config and OURS not in file.config
        encoder = _timm_folder(file) if foreign else _plain_vit(file, which, heads)
        encoder.name = text
    return _frozen(encoder).to(device)


def _plain_vit(file: WeightFile, which: str, heads: int | None) -> FeatureEncoder:
    found = find_encoder(file.tensors, which, file.path)
    vit = _vit_of(found, heads or known_heads(file.facts), str(file.path))
    vit.layout = file.facts.get("layout", vit.layout)  # a checkpoint or a folder knows how its encoder once came in
    return FeatureEncoder(vit, str(file.path), file.facts)


def _vit_of(state: State, heads: int | None, origin: str) -> ViT:
    """The `ViT` that a state dict of one encoder, in any layout, belongs to."""
    official = to_official(state)
    settings = architecture(official, heads, origin)
    vit = initial_vit(settings, settings.img_size or 0, seed=0)
    wrong = mismatch(official_state_dict(vit), official)
    if wrong:
        raise InputError(f"{origin} is no whole plain ViT ({wrong}); give a complete encoder, alone if need be.")
    check_values(official, origin)
    load_official(vit, official, origin)
    vit.layout = layout_of(state)
    return vit


def _timm(name: str) -> FeatureEncoder:
    """`NAME` with its published weights, or `NAME:random`."""
    model, _, start = name.partition(":")
    if start not in ("", "random"):
        raise InputError(f"timm:{name} is not known; write timm:{model} or timm:{model}:random.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm_model(model, pretrained=not start)
    return FeatureEncoder(TimmNetwork(network, model), f"timm:{name}")


def _timm_folder(file: WeightFile) -> FeatureEncoder:
    """A folder that timm's own export wrote (config.json names the architecture)."""
    name, arguments = file.config["architecture"], file.config.get("model_args") or {}
    model = timm_model(name, pretrained=False, arguments=arguments)
    state = {key: value for key, value in file.tensors.items() if not key.startswith("head.")}
    wrong = mismatch(model.state_dict(), state)
    if wrong:
        raise InputError(f"{file.path} does not fit timm's {name} ({wrong}); export the folder again.")
    check_values(state, file.path)
    model.load_state_dict(state)
    model.pretrained_cfg.update(file.config.get("pretrained_cfg") or {})
    return FeatureEncoder(TimmNetwork(model, name), str(file.path.parent), file.metadata)


def timm_model(name: str, *, pretrained: bool, arguments: Mapping[str, Any] | None = None) -> Any:
    """A timm transformer without classifier, for images of any size.

    Args:
        name: as timm knows it, e.g. `vit_small_patch16_224.dino`.
        pretrained: with its published weights; else as the caller's torch seed draws it.
        arguments: further arguments of the model.

    Raises:
        InputError: timm has no such model, it takes no images of any size, or its weights cannot be had.
    """
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0][:12]}*")[:4])
        raise InputError(f"timm:{name} does not exist; {f'near it are {near}' if near else 'see timm.list_models()'}.")
    options = {**(arguments or {}), "num_classes": 0, "dynamic_img_size": True}
    try:
        if pretrained:
            options["pretrained_cfg_overlay"] = _cached_or_reachable(timm.get_pretrained_cfg(name))
        return timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:
        raise InputError(
            f"timm:{name} takes no images of any size ({reason(error)}); choose a vit_* or eva* model."
        ) from error
    except Exception as error:  # the HTTP client's own classes, or timm's RuntimeError for a tag it does not know
        hub = f", or download https://huggingface.co/timm/{name} and give the folder's path" if pretrained else ""
        raise InputError(f"timm:{name} cannot be had ({reason(error)}); fetch it while online{hub}.") from error


def _cached_or_reachable(config: Any) -> dict[str, str]:
    """Timm's weights in the hub's cache, for its overlay; else one quick try of the hub, whose client retries for a minute."""
    if not config.hf_hub_id:
        return {}
    for file in ("model.safetensors", "pytorch_model.bin"):
        cached = try_to_load_from_cache(config.hf_hub_id, file)
        if isinstance(cached, str):
            return {"file": cached}
    get_session().head(hf_hub_url(config.hf_hub_id, "config.json"), timeout=5.0)
    return {}


# ---------------------------------------------------------------------------------------------- continuing from one

SHAPE = ("arch", "width", "depth", "heads", "patch_size", "registers", "mlp", "mlp_ratio", "qkv_bias", "img_size")


def start_from(vit: ViT, source: str | Path, which: str = "teacher") -> None:
    """Give a network that is to be trained the weights of an encoder from anywhere (`pretrain.encoder.init`).

    Its features are then the encoder's, at every image size: positions keep the grid they came with. A timm model that
    expects another normalisation of its images gets it folded into the patch embedding. `vit.layout` says how the
    encoder came in; `export` writes it that way again.

    Args:
        vit: of the same shape; `encoder_settings(source)` tells it.
        source: anything `load_encoder` takes that is a plain ViT with a CLS token: patch size, registers, LayerScale, GELU
            or SwiGLU, biases and positions as they are.
        which: "teacher" or "student", where a file holds both.

    Raises:
        InputError: the source cannot be had, is no plain ViT, or has another shape (then the sentence says what to set).
    """
    given = plain_vit(load_encoder(source, which=which))
    ours = {**vit.settings.model_dump(), "img_size": vit.img_size}
    theirs = given.settings.model_dump()
    wrong = {name: theirs[name] for name in SHAPE if ours[name] != theirs[name]}
    if (ours["layer_scale"] is None) != (theirs["layer_scale"] is None):
        wrong["layer_scale"] = theirs["layer_scale"]
    if wrong:
        lines = ", ".join(f"{name}: {json.dumps(value)}" for name, value in wrong.items())
        raise InputError(
            f"pretrain.encoder.init = {source} is a network of another shape; set pretrain.encoder: {{{lines}}}."
        )
    load_official(vit, official_state_dict(given), str(source))
    vit.layout = given.layout


def encoder_settings(source: str | Path, which: str = "teacher") -> dict[str, Any]:
    """What `pretrain.encoder` has to say to continue from an encoder: its shape and `init`, without defaults."""
    found = plain_vit(load_encoder(source, which=which)).settings
    return {**found.model_dump(exclude_defaults=True), "init": str(source)}


def plain_vit(encoder: FeatureEncoder) -> ViT:
    """The network of an encoder as a `ViT`: itself, or a plain ViT of timm taken over.

    Raises:
        InputError: it is no plain ViT: its features would be others.
    """
    network = encoder.network
    if isinstance(network, ViT):
        return network
    refusal = (
        f"{encoder.name} is no plain ViT with a CLS token, which training continues from; choose a vit_* model of timm"
    )
    if not isinstance(network, TimmNetwork):
        raise InputError(f"{refusal}.")
    heads = getattr(network.blocks[0].attn, "num_heads", None)
    vit = _vit_of(dict(network.model.state_dict()), heads, encoder.name)
    patch = vit.vit.patch_embed.proj
    with torch.no_grad():  # W (scale x + shift) + b = (W scale) x + (b + sum of W shift)
        patch.bias += (patch.weight * network.shift).sum((1, 2, 3))
        patch.weight *= network.scale
        # The same tensors can belong to another computation (activation, norm): its features tell.
        side = 2 * vit.patch_size
        images = torch.linspace(-2, 2, 3 * side**2).view(1, 3, side, side)
        ours, theirs = vit.tokens(images), network.tokens(images)
    if (ours - theirs).norm() > 1e-3 * theirs.norm():
        raise InputError(f"{refusal}: its features are not those of one with these weights.")
    return vit


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
