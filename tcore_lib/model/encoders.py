"""An encoder from anywhere, read as patch features; and a network to train that starts from one.

Letters: B images, H W pixels, h w grid of patches, P = h * w, D width, R registers, T = 1 + R + P tokens.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from tcore_lib import fetch, params
from tcore_lib.errors import InputError
from tcore_lib.files import reason
from tcore_lib.model.vit import ViT, initial_vit
from tcore_lib.model.weights import OURS, State, architecture, find_encoder, load_exactly, read_weights, to_vit


class Pixels(nn.Module):
    """The weightless baseline: a patch's feature is its own normalised pixels, ordered channel, row, column."""

    blocks: tuple[nn.Module, ...] = ()
    num_prefix_tokens = 0

    def __init__(self, patch_size: int = 16) -> None:
        super().__init__()
        self.patch_size, self.embed_dim = patch_size, 3 * patch_size**2

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, P, 3 * patch * patch)."""
        return nn.functional.unfold(images, self.patch_size, stride=self.patch_size).transpose(1, 2)


class FeatureEncoder(nn.Module):
    """A network read as patch features, for images of any height and width that are multiples of its patch size.

    Images come ImageNet-normalised; a network trained otherwise (CLIP, SigLIP) gets its own normalisation. `network` is a `ViT`,
    a transformer of timm or `Pixels`; `name` is what tables call it; `prefix` counts tokens before the patches.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Any, name: str, metadata: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.network: Any = network  # timm models share no base class
        self.name, self.metadata = name, dict(metadata or {})
        embed = getattr(network, "patch_embed", None)
        self.patch_size: int = network.patch_size if embed is None else embed.patch_size[0]
        self.width: int = network.embed_dim
        self.prefix: int = network.num_prefix_tokens
        mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
        own = getattr(network, "pretrained_cfg", None) or {"mean": mean, "std": std}
        own_mean, own_std = torch.as_tensor(own["mean"]), torch.as_tensor(own["std"])
        self.register_buffer("scale", (std / own_std)[:, None, None], persistent=False)
        self.register_buffer("shift", ((mean - own_mean) / own_std)[:, None, None], persistent=False)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.scale.device

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches (h, w) of an image of this size in pixels; an `InputError` where they are not whole."""
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
        return self.network.forward_features(images * self.scale + self.shift)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, h, w, D) patch tokens after the final norm, without gradient."""
        return self.tokens(images)[:, self.prefix :].unflatten(1, self.grid(*images.shape[2:]))


def random_encoder(settings: params.Encoder, img_size: int, seed: int) -> FeatureEncoder:
    """The initialisation that a run with this seed starts from, frozen: what training has to beat."""
    return FeatureEncoder(initial_vit(settings, img_size, seed), "random").requires_grad_(False).eval()


def load_encoder(source: str | Path, *, device: str | torch.device = "cpu") -> FeatureEncoder:
    """An encoder from anywhere, frozen and ready to read features.

    Args:
        source: one of
            a file (.pth, .pt, .bin, .ckpt, .safetensors) that holds a whole encoder under the official (DINO, DINOv2,
            T-CoRe), timm's or our names, whatever stands beside it: released files, training checkpoints, state dicts; of
            a teacher and a student, or an averaged encoder and its origin, the first one is meant;
            a folder of timm or the Hugging Face hub (also `local-dir:FOLDER`);
            `vits16_k400`, `vits16_inet`, `vitb16_k400`: the published encoders, fetched if they are not here;
            `timm:NAME` with timm's weights, `timm:NAME:random` without;
            `pixels`: no network, each patch's own normalised pixels; `pixels:8` with patches of 8 instead of 16 pixels.
        device: where it shall run.
    """
    name, metadata = str(source), None
    kind, _, patch = name.partition(":")
    if kind == "pixels":
        if patch and (not patch.isdecimal() or int(patch) == 0):
            raise InputError(f"{name} is no encoder; write pixels:8 for patches of 8 pixels.")
        network: Any = Pixels(int(patch or 16))
    elif name.startswith("timm:"):
        model, _, start = name.removeprefix("timm:").partition(":")
        network = _timm(model, pretrained=start != "random")
    else:
        path = fetch.weights(name) if name in fetch.CHECKPOINTS else Path(name.removeprefix("local-dir:")).expanduser()
        if not path.exists():
            known = ", ".join((*fetch.CHECKPOINTS, "timm:NAME", "pixels"))
            raise InputError(f"{name} is neither a file, a folder nor a known encoder; give a path or one of {known}.")
        file = read_weights(path)
        metadata = file.metadata
        if "architecture" in metadata and not metadata[OURS]:  # a folder that timm's own export wrote
            network = _timm(f"local-dir:{path}", pretrained=True)
        else:
            network = _plain_vit(find_encoder(file), file.heads, path)
            network.layout = metadata.get("layout", network.layout)  # how a continued encoder once came in
    return FeatureEncoder(network, name, metadata).requires_grad_(False).eval().to(device)


def _plain_vit(state: State, heads: int | None, origin: str | Path) -> ViT:
    """The `ViT` that a state dict of one encoder, in any layout, belongs to."""
    renamed, layout = to_vit(state)
    vit = initial_vit(architecture(renamed, heads, origin), 0, seed=0)
    load_exactly(vit, renamed, origin)
    vit.layout = layout
    return vit


def _timm(name: str, *, pretrained: bool, **options: Any) -> Any:
    """A timm transformer without classifier; random weights are always the same ones."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            options |= {"num_classes": 0, "dynamic_img_size": True}
            return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # the HTTP client's own classes; what a network without tokens says to these options
        near = ", ".join(timm.list_models(f"*{name.split('.')[0][:12]}*")[:4]) or "vit_small_patch16_224"
        raise InputError(
            f"timm:{name} cannot be had ({reason(error)}); choose a vit_* or eva* model, such as {near}, fetch it while "
            f"online, or download https://huggingface.co/timm/{name} and give the folder's path."
        ) from error


def start_from(vit: ViT, source: str | Path) -> None:
    """Give a network that is to be trained the weights of an encoder from anywhere (`pretrain.encoder.init`).

    The source is anything `load_encoder` takes that is a plain ViT with a CLS token. Features are then the encoder's, at every
    image size, and `vit.layout` says how it came in. For another shape, the `InputError` says what to set.
    """
    given = plain_vit(load_encoder(source))
    ours, theirs = vit.settings.model_dump() | {"img_size": vit.img_size}, given.settings.model_dump()
    free = ["drop_path", "init"]
    if ours["layer_scale"] and theirs["layer_scale"]:
        free.append("layer_scale")  # where it starts does not matter
    wrong = {name: value for name, value in theirs.items() if name not in free and value != ours[name]}
    if wrong:
        lines = ", ".join(f"{name}: {json.dumps(value)}" for name, value in wrong.items())
        raise InputError(
            f"pretrain.encoder.init = {source} is a network of another shape; set pretrain.encoder: {{{lines}}}."
        )
    vit.load_state_dict(given.state_dict())
    vit.layout = given.layout


def plain_vit(encoder: FeatureEncoder) -> ViT:
    """The network of an encoder as a `ViT`: itself, or a plain ViT of timm taken over; an `InputError` for any other."""
    network = encoder.network
    if isinstance(network, ViT):
        return network
    refusal = f"{encoder.name} is no plain ViT with a CLS token, as training and export need; choose a vit_* of timm."
    if isinstance(network, Pixels):
        raise InputError(refusal)
    vit = _plain_vit(network.state_dict(), getattr(network.blocks[0].attn, "num_heads", None), encoder.name)
    patch = vit.patch_embed.proj
    with torch.no_grad():  # its own normalisation: W (scale x + shift) + b = (W scale) x + (b + sum of W shift)
        patch.bias += (patch.weight * encoder.shift).sum((1, 2, 3))
        patch.weight *= encoder.scale
        # The same tensors can belong to another computation (activation, norm): its features tell.
        images = torch.linspace(-2, 2, 12 * vit.patch_size**2).view(1, 3, 2 * vit.patch_size, -1)
        ours, theirs = vit.tokens(images), encoder.tokens(images)
    if (ours - theirs).norm() > 1e-3 * theirs.norm():
        raise InputError(refusal)
    return vit


def _outputs(encoder: FeatureEncoder, modules: Iterable[nn.Module], images: Tensor) -> list[Tensor]:
    """What these modules inside the encoder's network give out during one pass over images (B, 3, H, W)."""
    collected: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda *call: collected.append(call[-1])) for module in modules]
    try:
        encoder.tokens(images)
    finally:
        for hook in hooks:
            hook.remove()
    return collected


def layer_tokens(encoder: FeatureEncoder, images: Tensor) -> Tensor:
    """All tokens of a transformer after every block, before the final norm: (B, 3, H, W) -> (depth, B, T, D)."""
    return torch.stack(_outputs(encoder, encoder.network.blocks, images))


def attention_maps(encoder: FeatureEncoder, images: Tensor, layer: int = -1) -> Tensor:
    """Self-attention weights of one block, negative counts from the end: (B, 3, H, W) -> (B, heads, T, T), rows sum to 1."""
    attention: Any = encoder.network.blocks[layer].attn
    fused, attention.fused_attn = attention.fused_attn, False  # only this block leaves the fused kernel
    try:
        return _outputs(encoder, [attention.attn_drop], images)[0]
    finally:
        attention.fused_attn = fused
