"""The vision transformer that is trained (METHOD section 4).

The network is timm's `VisionTransformer`. Ours are the mask token, the separate CLS position, stochastic depth decided
from outside, and the official key layout.

Letters: B images, H W pixels, h w grid of patches, P = h * w, D width, R registers, T = 1 + R + P tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.machine import compiled
from tcore_lib.randomness import generator

GROUP = 3  # blocks compiled together: each call costs the host a millisecond


def _residual_block(block: Any, x: Tensor, scale: Tensor) -> Tensor:
    """One timm block whose two residual branches are weighted per sample: LayerScale, weight and sum in one pass each.

    The weights are an argument, not a state of the block: activation checkpointing runs this function a second time,
    after other forward passes have been made.

    Args:
        block: a timm `Block`.
        x: (B, T, D).
        scale: (2, B), 0 or 1 / (1 - p), for the attention and the MLP branch.
    """
    attention, mlp = scale.to(x.dtype)[:, :, None, None]  # (B, 1, 1) each
    x = torch.addcmul(x, block.attn(block.norm1(x)), attention * block.ls1.gamma)
    return torch.addcmul(x, block.mlp(block.norm2(x)), mlp * block.ls2.gamma)


def _thinned_block(block: Any, x: Tensor, scale: Tensor) -> Tensor:
    """The same as `_residual_block`, but a branch is computed for the samples that keep it only.

    How many these are has to be known before the next call, for which a GPU would be waited for.
    """
    for weights, norm, branch, gamma in (
        (scale[0], block.norm1, block.attn, block.ls1.gamma),
        (scale[1], block.norm2, block.mlp, block.ls2.gamma),
    ):
        kept = weights.nonzero()[:, 0]
        if 0 < len(kept) < len(x):
            some = branch(norm(x.index_select(0, kept))) * (weights[kept, None, None].to(x.dtype) * gamma)
            x = x.index_add(0, kept, some.to(x.dtype))
        else:  # all; or none, and then its parameters need gradients of zero all the same
            x = torch.addcmul(x, branch(norm(x)), weights[:, None, None].to(x.dtype) * gamma)
    return x


def _block_of_some(block: Any, x: Tensor, scale: Tensor | None, rows: Tensor) -> Tensor:
    """The last block where few tokens are looked at: every token is a key, but what follows is made for some only.

    Args:
        block: a timm `Block`.
        x: (B, T, D).
        scale: (2, B) as in `_residual_block`, or None without stochastic depth.
        rows: (N,) int64 among the B * T tokens.

    Returns:
        (N, D).
    """
    batch, tokens, width = x.shape
    attention = block.attn
    q, k, v = (
        attention.qkv(block.norm1(x))
        .view(batch, tokens, 3, attention.num_heads, attention.head_dim)
        .permute(2, 0, 3, 1, 4)
    )
    seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, width)
    factors = x.new_ones(2, 1, 1) if scale is None else scale[:, rows // tokens, None].to(x.dtype)
    x = x.flatten(0, 1).index_select(0, rows)
    x = torch.addcmul(x, attention.proj(seen.index_select(0, rows)), factors[0] * block.ls1.gamma)
    return torch.addcmul(x, block.mlp(block.norm2(x)), factors[1] * block.ls2.gamma)


def _several_blocks(blocks: Sequence[Any], x: Tensor, scale: Tensor | None) -> Tensor:
    """Blocks one after the other: what is compiled as one piece, which serves every such group of every encoder.

    Args:
        blocks: timm `Block`s.
        x: (B, T, D).
        scale: (blocks, 2, B) for `_residual_block`, or None without stochastic depth.
    """
    for i, block in enumerate(blocks):
        x = block(x) if scale is None else _residual_block(block, x, scale[i])
    return x


class ViT(nn.Module):
    """The encoder that is trained: CLS + R registers + patches, LayerScale, final LayerNorm (METHOD section 4).

    Initialised as DINOv2 does it: linear weights and positions truncated normal 0.02, CLS and registers normal 1e-6,
    mask token 0, biases 0, the patch embedding as torch initialises a convolution. The draws come from torch's global
    generator; `initial_vit` seeds it.

    Attributes:
        vit: timm's VisionTransformer; positions on patches only.
        mask_token: (1, D), stands in for the embedding of a masked patch.
        cls_pos: (1, 1, D), the position of CLS. A parameter of its own because it is stepped and decayed on its own;
            the official layout stores it as the first row of `pos_embed`.
        activation_checkpointing: recompute each block in the backward pass instead of storing it.
        compile_blocks: generate code (torch.compile) for `GROUP` blocks at a time: one piece for all groups of all
            encoders, so that it takes seconds.
    """

    def __init__(self, settings: params.Encoder, img_size: int) -> None:
        super().__init__()
        width, depth, heads = settings.shape
        self.settings, self.img_size = settings, img_size
        self.patch_size, self.width, self.depth, self.heads = settings.patch_size, width, depth, heads
        self.activation_checkpointing = False
        self.compile_blocks = False
        self._scale: Tensor | None = None
        self.vit: Any = VisionTransformer(
            img_size=img_size,
            patch_size=settings.patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            reg_tokens=settings.registers,
            init_values=settings.layer_scale,
            no_embed_class=True,
            dynamic_img_size=True,
            num_classes=0,
            global_pool="",
            weight_init="skip",
        )
        self.prefix = self.vit.num_prefix_tokens  # CLS and registers
        self.cls_pos = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self._initialise()

    @property
    def blocks(self) -> nn.Sequential:
        """The transformer's blocks."""
        return self.vit.blocks

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.vit.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_pos, std=0.02)
        nn.init.normal_(self.vit.cls_token, std=1e-6)
        if self.vit.reg_token is not None:
            nn.init.normal_(self.vit.reg_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

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

    def tokens(self, images: Tensor, masks: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Tokens after the final norm: CLS, registers, patches of every image, or some of them.

        Args:
            images: (B, 3, H, W).
            masks: (B, P) bool.
            rows: (N,) int64, the tokens wanted, among all B * T; None = all.

        Returns:
            (B, T, D), or (N, D).
        """
        x = self.embed(images, masks)
        scale = self._scale
        if scale is not None and scale.shape != (self.depth, 2, len(x)):
            raise ValueError(f"drop keep is {tuple(scale.shape)}, the batch needs {(self.depth, 2, len(x))}")
        thin = x.device.type == "cpu" and not torch.compiler.is_compiling()
        size = GROUP if self.compile_blocks else 1
        for i in range(0, self.depth, size):
            function: Callable[..., Tensor] = self.blocks[i]
            arguments: tuple[Any, ...] = (x,)
            if self.compile_blocks:
                function = compiled(_several_blocks, dynamic=False)
                part = slice(i, i + size)
                weights = None if scale is None else scale[part]
                arguments = (list(self.blocks[part]), x, weights)
                if weights is not None and not torch.is_grad_enabled():  # auxiliary crops: their number may change
                    torch._dynamo.maybe_mark_dynamic(x, 0)
                    torch._dynamo.maybe_mark_dynamic(weights, 2)
            elif rows is not None and i == self.depth - 1:
                function, arguments = _block_of_some, (self.blocks[i], x, None if scale is None else scale[i], rows)
            elif scale is not None:
                function, arguments = (_thinned_block if thin else _residual_block), (self.blocks[i], x, scale[i])
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(function, *arguments, use_reentrant=False)
            else:
                x = function(*arguments)
        if rows is not None and self.compile_blocks:  # a group of blocks is one piece
            x = x.flatten(0, 1).index_select(0, rows)
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

    def some(self, images: Tensor, patches: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`forward` where few patches are looked at: the last block's MLP is left out for the others (not so if compiled).

        Args:
            images: as for `forward`.
            patches: (N,) int64, those wanted among all B * P.
            masks: as for `forward`.

        Returns:
            CLS (B, D) and the patches (N, D).
        """
        count = images.shape[2] * images.shape[3] // self.patch_size**2
        cls = torch.arange(len(images), device=images.device) * (self.prefix + count)
        rows = torch.cat([cls, patches + (patches // count + 1) * self.prefix])
        of_cls, of_patches = self.tokens(images, masks, rows).split([len(cls), len(patches)])
        return of_cls, of_patches


@contextmanager
def seeded(seed: int, *part: int) -> Iterator[None]:
    """Inside, torch draws initial weights from (seed, part); its own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(seed, "init", *part).integers(2**62)))
        yield


def initial_vit(settings: params.Encoder, img_size: int, seed: int) -> ViT:
    """The student and teacher that a run with this seed starts from. torch's own generator is left as it was."""
    with seeded(seed):
        return ViT(settings, img_size)


def official_state_dict(vit: ViT) -> dict[str, Tensor]:
    """The encoder's weights under the official names.

    `cls_token`, `pos_embed` (1, 1 + P, D) with the position of CLS first, `register_tokens` (1, R, D),
    `mask_token` (1, D), `patch_embed.proj.*`, `blocks.i.*`, `norm.*`. All but `pos_embed` share the parameters' memory.
    """
    names = {"reg_token": "register_tokens"}  # timm's name -> the official one, where they differ
    state = {names.get(name, name): value.detach() for name, value in vit.vit.state_dict().items()}
    state["pos_embed"] = torch.cat([vit.cls_pos.detach(), state["pos_embed"]], dim=1)
    state["mask_token"] = vit.mask_token.detach()
    first = [name for name in ("cls_token", "pos_embed", "register_tokens", "mask_token") if name in state]
    return {name: state[name] for name in (*first, *(name for name in state if name not in first))}


def difference(expected: Mapping[str, Tensor], given: Mapping[str, Any]) -> str:
    """What is missing, unexpected or misshapen in a state dict, as one clause; empty if nothing is."""
    missing = sorted(set(expected) - set(given))
    unexpected = sorted(set(given) - set(expected))
    misshapen = [
        f"{name} is {tuple(given[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    found = []
    for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)):
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            found.append(f"{len(names)} {kind}: {', '.join(names[:8])}{more}")
    return "; ".join(found)


def load_official(vit: ViT, state: Mapping[str, Tensor], origin: str = "the weights") -> None:
    """Copy official weights into `vit`, exactly.

    Args:
        vit: of the same shape.
        state: as `official_state_dict` returns them.
        origin: what an error names, e.g. the file.

    Raises:
        InputError: lists every tensor that is missing, unexpected or misshapen; nothing is copied then.
    """
    wrong = difference(official_state_dict(vit), state)
    if wrong:
        raise InputError(
            f"{origin} do not fit this encoder ({wrong}); load them into the architecture they were made for."
        )
    names = {"register_tokens": "reg_token"}
    inner = {names.get(name, name): value for name, value in state.items() if name != "mask_token"}
    inner["pos_embed"] = state["pos_embed"][:, 1:]
    vit.vit.load_state_dict(inner)
    with torch.no_grad():
        vit.cls_pos.copy_(state["pos_embed"][:, :1])
        vit.mask_token.copy_(state["mask_token"])
