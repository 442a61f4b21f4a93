"""The vision transformer that is trained.

The network is timm's `VisionTransformer`. Ours are the mask token, the separate CLS position, stochastic depth decided
from outside, two ways to initialise it, and the official names of its weights.

Letters: B images, H W pixels, h w grid of patches, P = h * w, D width, R registers, T = 1 + R + P tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import SwiGLUPacked, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tcore_lib import params
from tcore_lib.machine import compiled
from tcore_lib.model.weights import official_names, refuse_misfits
from tcore_lib.randomness import generator

GROUP = 3  # blocks compiled together: each call costs the host a millisecond

# ---------------------------------------------------------------------------------------------- the forward pass


def run_blocks(blocks: Sequence[Any], x: Tensor, scale: Tensor | None) -> Tensor:
    """Timm `Block`s one after the other: on a GPU compiled as one piece, which serves every such group of every encoder.

    The weights of the branches are an argument, not a state of the block: activation checkpointing runs this function a
    second time, after other forward passes have been made.

    Args:
        blocks: a group of them.
        x: (B, T, D).
        scale: (blocks, 2, B), 0 or 1 / (1 - p), of each sample's attention and MLP branch; None = 1 everywhere.
    """
    for i, block in enumerate(blocks):
        if scale is None:
            x = block(x)
            continue
        attention, mlp = scale[i].to(x.dtype)[:, :, None, None]  # (B, 1, 1) each
        # addcmul: LayerScale, stochastic depth and sum in one pass over the tokens
        x = torch.addcmul(x, block.attn(block.norm1(x)), attention * getattr(block.ls1, "gamma", 1.0))
        x = torch.addcmul(x, block.mlp(block.norm2(x)), mlp * getattr(block.ls2, "gamma", 1.0))
    return x


class ViT(nn.Module):
    """CLS + R registers + patches, pre-norm blocks, final LayerNorm. Initial weights come from torch's own generator.

    Args:
        settings: section `pretrain.encoder`: shape and initialisation.
        img_size: pixels; side of the square image whose patches have a learned position each.

    Attributes:
        vit: timm's VisionTransformer; positions on patches only.
        mask_token: (1, D), stands in for the embedding of a masked patch.
        cls_pos: (1, 1, D), the position of CLS. A parameter of its own because it is stepped and decayed on its own;
            the official layout stores it as the first row of `pos_embed`.
        activation_checkpointing: recompute each group of blocks in the backward pass instead of storing it.
        layout: how the weights came in and shall go out (`weights.layout_of`).
        compile_blocks: run groups of `GROUP` blocks through torch.compile.
    """

    def __init__(self, settings: params.Encoder, img_size: int) -> None:
        super().__init__()
        width, depth, heads = settings.shape
        self.settings, self.img_size = settings, img_size
        self.patch_size, self.width, self.depth, self.heads = settings.patch_size, width, depth, heads
        self.activation_checkpointing = False
        self.compile_blocks = False
        self.layout = "official"
        self._scale: Tensor | None = None
        gated: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if settings.mlp == "swiglu" else {}
        self.vit: Any = VisionTransformer(
            **self.timm_arguments(), num_classes=0, global_pool="", weight_init="skip", **gated
        )
        self.prefix = self.vit.num_prefix_tokens  # CLS and registers
        self.cls_pos = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        _truncated_normal(self)
        if settings.init_scheme == "mimetic":
            _mimetic(self)

    def timm_arguments(self) -> dict[str, Any]:
        """What timm has to know to build the same network."""
        return {
            "img_size": self.img_size,
            "patch_size": self.patch_size,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.heads,
            "mlp_ratio": self.settings.mlp_ratio,
            "qkv_bias": self.settings.qkv_bias,
            "reg_tokens": self.settings.registers,
            "init_values": self.settings.layer_scale,
            "no_embed_class": True,
            "dynamic_img_size": True,
        }

    @property
    def blocks(self) -> nn.Sequential:
        """The transformer's blocks."""
        return self.vit.blocks

    def set_drop_keep(self, keep: Tensor | None) -> None:
        """Stochastic depth of the following forward passes, until it is set again.

        Args:
            keep: (depth, 2, B) bool, False where a sample skips the attention ([:, 0]) or the MLP ([:, 1]) of a block;
                what is kept is scaled by 1 / (1 - drop_path). None switches it off.
        """
        self._scale = None if keep is None else keep.float() / (1.0 - self.settings.drop_path)

    def _patches(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> embedded patches (B, h, w, D), before positions."""
        embed, side = self.vit.patch_embed, self.patch_size
        if not images.is_cuda:
            return embed(images)
        # As one matrix product: cuDNN takes ten times longer for a convolution of three channels in half precision.
        batch, _, height, width = images.shape
        cells = images.reshape(batch, 3, height // side, side, width // side, side)
        flat = cells.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (B, h, w, 3 * side * side)
        return F.linear(flat, embed.proj.weight.flatten(1), embed.proj.bias)

    def embed(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) images, (B, P) bool masks -> (B, T, D) tokens before the first block: CLS, registers, P."""
        vit = self.vit
        x = self._patches(images)
        batch, grid = x.shape[0], (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)  # (B, P, D), row by row
        if masks is not None:
            x = torch.where(masks[:, :, None], self.mask_token.to(x.dtype), x)
        position = resample_abs_pos_embed(vit.pos_embed, grid, vit.patch_embed.grid_size, num_prefix_tokens=0)
        cls_pos: Tensor = self.cls_pos
        if cls_pos.dtype == torch.float64 and grid != tuple(vit.patch_embed.grid_size):
            cls_pos = cls_pos.float().double()  # the original rounds all positions to float32 to resize them
        prefix = [vit.cls_token + cls_pos]
        if vit.reg_token is not None:
            prefix.append(vit.reg_token)
        return torch.cat([*(token.expand(batch, -1, -1) for token in prefix), x + position], dim=1)

    def tokens(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) images, (B, P) bool masks -> (B, T, D) tokens after the final norm: CLS, registers, patches."""
        x, scale = self.embed(images, masks), self._scale
        if scale is not None and scale.shape != (self.depth, 2, len(x)):
            raise ValueError(f"drop keep is {tuple(scale.shape)}, the batch needs {(self.depth, 2, len(x))}")
        size, run = (GROUP, compiled(run_blocks, dynamic=False)) if self.compile_blocks else (1, run_blocks)
        for i in range(0, self.depth, size):
            group = list(self.blocks[i : i + size])
            weights = None if scale is None else scale[i : i + size]
            if self.compile_blocks and weights is not None and not torch.is_grad_enabled():
                torch._dynamo.maybe_mark_dynamic(x, 0)  # auxiliary crops: their number may change
                torch._dynamo.maybe_mark_dynamic(weights, 2)
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(run, group, x, weights, use_reentrant=False)
            else:
                x = run(group, x, weights)
        return self.vit.norm(x)

    def forward(self, images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """CLS and patch tokens after the final norm.

        Args:
            images: (B, 3, H, W), ImageNet-normalised; H and W multiples of the patch size.
            masks: (B, P) bool, True = the patch's embedding is replaced by the mask token.

        Returns:
            CLS (B, D) and patches (B, P, D), row by row.
        """
        x = self.tokens(images, masks)
        return x[:, 0], x[:, self.prefix :]


# ---------------------------------------------------------------------------------------------- initialisation


def _truncated_normal(vit: ViT) -> None:
    """As DINOv2 starts; the patch embedding as torch initialises a convolution, mask token and biases 0."""
    nn.init.trunc_normal_(vit.vit.pos_embed, std=0.02)
    nn.init.trunc_normal_(vit.cls_pos, std=0.02)
    nn.init.normal_(vit.vit.cls_token, std=1e-6)
    if vit.vit.reg_token is not None:
        nn.init.normal_(vit.vit.reg_token, std=1e-6)
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def _mimetic(vit: ViT) -> None:
    """Attention that starts like a trained network's (Trockman & Kolter, 2023, section 4).

    With Z normal of variance 1 / D, each head's `W_q^T W_k` becomes the best approximation of 0.7 Z + 0.7 I of the head's
    rank, and `W_v^T W_proj^T` becomes 0.4 Z - 0.4 I. Positions start as the sines and cosines of MAE (He et al., 2022) and
    stay trainable; CLS starts without a position.
    """
    width, heads = vit.width, vit.heads
    identity = torch.eye(width)
    for block in vit.blocks:
        attention: Any = block.attn
        query, key, value = attention.qkv.weight.view(3, heads, width // heads, width)  # (heads, D / heads, D) each
        for head in range(heads):
            left, right = _factors(0.7 * torch.randn(width, width) / width**0.5 + 0.7 * identity, width // heads)
            query[head], key[head] = left.T, right
        left, right = _factors(0.4 * torch.randn(width, width) / width**0.5 - 0.4 * identity, width)
        value.copy_(left.T.view_as(value))
        attention.proj.weight.copy_(right.T)
    vit.vit.pos_embed.copy_(_sine_positions(vit.vit.patch_embed.grid_size, width))
    vit.cls_pos.zero_()


def _factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(D, D) -> (D, rank) and (rank, D) of equal size whose product is the nearest matrix of that rank."""
    u, s, vh = torch.linalg.svd(matrix)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank]


def _sine_positions(grid: tuple[int, int], width: int) -> Tensor:
    """(1, h * w, D): sines and cosines of column, then of row, wavelengths from 2 pi to 2 pi 10^4 patches."""
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in (column, row)]  # (h * w, width / 4) each
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)[None].float()


@contextmanager
def seeded(seed: int, *part: int) -> Iterator[None]:
    """Inside, torch draws initial weights from (seed, part); its own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(seed, "init", *part).integers(2**62)))
        yield


def initial_vit(settings: params.Encoder, img_size: int, seed: int) -> ViT:
    """The encoder that a run with this seed starts from, before `settings.init` is looked at.

    `img_size` is the side of a global crop in pixels; the settings' own, if given, counts instead.
    """
    with seeded(seed):
        return ViT(settings, settings.img_size or img_size)


# ---------------------------------------------------------------------------------------------- official names


def official_state_dict(vit: ViT) -> dict[str, Tensor]:
    """The encoder's weights in the official layout (`weights`). All but `pos_embed` share the parameters' memory."""
    state = {name: value.detach() for name, value in official_names(vit.vit.state_dict()).items()}
    state["pos_embed"] = torch.cat([vit.cls_pos.detach(), state["pos_embed"]], dim=1)
    return {**state, "mask_token": vit.mask_token.detach()}


@torch.no_grad()
def load_official(vit: ViT, state: Mapping[str, Tensor], origin: str | Path = "the weights") -> None:
    """Copy weights in the official layout into `vit`, exactly; an error names `origin`.

    Raises:
        InputError: they do not fit, or hold what no training leaves behind; nothing is copied then.
    """
    refuse_misfits(official_state_dict(vit), state, origin)
    own = {**official_names(vit.vit.state_dict()), "mask_token": vit.mask_token}
    vit.cls_pos.copy_(state["pos_embed"][:, :1])
    for name, value in state.items():
        own[name].copy_(value[:, 1:] if name == "pos_embed" else value)
