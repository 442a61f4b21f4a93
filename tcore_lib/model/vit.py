"""The vision transformer that is trained: timm's, under the names of official files, with what training needs besides.

That is the mask token, stochastic depth decided from outside, and groups of blocks that a GPU runs as one piece.

Letters: B images, H W pixels, h w grid of patches, P = h * w, D width, R registers, T = 1 + R + P tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import SwiGLUPacked, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tcore_lib import params
from tcore_lib.machine import compiled
from tcore_lib.randomness import generator

GROUP = 3  # blocks compiled together: each call costs the host a millisecond


def run_blocks(blocks: Sequence[Any], x: Tensor, scale: Tensor | None) -> Tensor:
    """Timm's blocks one after the other, (B, T, D) -> (B, T, D); on a GPU one piece, which serves every such group.

    `scale` (blocks, 2, B) is 0 or 1 / (1 - p), of each sample's attention and MLP branch; None = 1 everywhere.
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


def timm_arguments(settings: params.Encoder, img_size: int) -> dict[str, Any]:
    """What timm has to know to build the same network."""
    width, depth, heads = settings.shape
    return {
        "img_size": img_size,
        "patch_size": settings.patch_size,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": settings.mlp_ratio,
        "qkv_bias": settings.qkv_bias,
        "reg_tokens": settings.registers,
        "init_values": settings.layer_scale,
        "no_embed_class": True,
        "dynamic_img_size": True,
    }


class ViT(VisionTransformer):
    """CLS + R registers + patches, pre-norm blocks, final LayerNorm; initial weights come from torch's own generator.

    Its state dict is the official layout (`weights`). `img_size` is the side, in pixels, of the square image whose patches have
    a learned position each. `compile_blocks`: run groups of `GROUP` blocks through torch.compile; `layout`: how the weights came
    in and go out (`weights.layout_of`).
    """

    cls_token: Any
    pos_embed: Any
    blocks: Any

    def __init__(self, settings: params.Encoder, img_size: int) -> None:
        gated: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if settings.mlp == "swiglu" else {}
        arguments = timm_arguments(settings, img_size) | gated
        super().__init__(**arguments, num_classes=0, global_pool="", weight_init="skip")
        self.settings, self.img_size, self.patch_size = settings, img_size, settings.patch_size
        self.width, self.depth, self.heads = settings.shape
        self.prefix = 1 + settings.registers
        self.compile_blocks = False
        self.layout = "official"
        self.reg_token = None  # timm's name for them
        self.register_tokens: nn.Parameter | None = None
        if settings.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, settings.registers, self.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patch_embed.num_patches, self.width))
        self.mask_token = nn.Parameter(torch.zeros(1, self.width))
        self._truncated_normal()

    def _patches(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> embedded patches (B, h, w, D), before positions."""
        proj, side = self.patch_embed.proj, self.patch_size
        if not images.is_cuda:
            return proj(images).permute(0, 2, 3, 1)
        # As one matrix product: cuDNN takes ten times longer for a convolution of three channels in half precision.
        batch, _, height, width = images.shape
        cells = images.reshape(batch, 3, height // side, side, width // side, side)
        flat = cells.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (B, h, w, 3 * side * side)
        return F.linear(flat, proj.weight.flatten(1), proj.bias)

    def embed(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) images, (B, P) bool masks -> (B, T, D) tokens before the first block: CLS, registers, P."""
        x = self._patches(images)
        batch, grid = x.shape[0], (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)  # (B, P, D), row by row
        if masks is not None:
            x = torch.where(masks[:, :, None], self.mask_token.to(x.dtype), x)
        position, trained = self.pos_embed, self.patch_embed.grid_size
        if grid != tuple(trained):
            if position.dtype == torch.float64:
                position = position.float().double()  # the original rounds all positions to float32 to resize them
            position = resample_abs_pos_embed(position, list(grid), list(trained), num_prefix_tokens=1)
        prefix = [self.cls_token + position[:, :1], *([] if self.register_tokens is None else [self.register_tokens])]
        return torch.cat([*(token.expand(batch, -1, -1) for token in prefix), x + position[:, 1:]], dim=1)

    def tokens(self, images: Tensor, masks: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """All tokens (B, T, D) after the final norm: CLS, registers, patches. Arguments as of `forward`."""
        x = self.embed(images, masks)
        scale = None if keep is None else keep.float() / (1.0 - self.settings.drop_path)
        size, run = (GROUP, compiled(run_blocks, dynamic=False)) if self.compile_blocks else (1, run_blocks)
        for i in range(0, self.depth, size):
            group = list(self.blocks[i : i + size])
            weights = None if scale is None else scale[i : i + size]
            if self.compile_blocks and weights is not None and not torch.is_grad_enabled():
                torch._dynamo.maybe_mark_dynamic(x, 0)  # auxiliary crops: their number may change
                torch._dynamo.maybe_mark_dynamic(weights, 2)
            x = run(group, x, weights)
        return self.norm(x)

    def forward_features(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """(B, 3, H, W) images -> all tokens (B, T, D), as of every timm model."""
        return self.tokens(images)

    def forward(  # type: ignore[override]
        self, images: Tensor, masks: Tensor | None = None, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """CLS (B, D) and patches (B, P, D), row by row, after the final norm.

        Args:
            images: (B, 3, H, W), ImageNet-normalised; H and W multiples of the patch size.
            masks: (B, P) bool, True = the patch's embedding is replaced by the mask token.
            keep: (depth, 2, B) bool, False where stochastic depth skips the attention ([:, 0]) or the MLP ([:, 1]) of a
                block for a sample; what is kept is scaled by 1 / (1 - drop_path). None = nothing is skipped or scaled.
        """
        x = self.tokens(images, masks, keep)
        return x[:, 0], x[:, self.prefix :]

    @torch.no_grad()
    def _truncated_normal(self) -> None:
        """As DINOv2 starts; the patch embedding as torch initialises a convolution, mask token and biases 0."""
        nn.init.trunc_normal_(self.pos_embed[:, 1:], std=0.02)
        nn.init.trunc_normal_(self.pos_embed[:, :1], std=0.02)  # by itself: the seed decides the draws' order
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


@contextmanager
def seeded(seed: int, *part: int) -> Iterator[None]:
    """Inside, torch draws initial weights from (seed, part); its own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(seed, "init", *part).integers(2**62)))
        yield


def initial_vit(settings: params.Encoder, img_size: int, seed: int) -> ViT:
    """The encoder that a run with this seed starts from, for crops of side `img_size` unless the settings say another."""
    with seeded(seed):
        return ViT(settings, settings.img_size or img_size)
