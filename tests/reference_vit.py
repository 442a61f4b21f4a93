"""The encoder once more, in plain torch functions, written from docs/method.md section 4 and the official key names.

An oracle: no module, no timm, no `tcore_lib`; slow and obvious. It takes an official state dict.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def attended(x: Tensor, weights: dict[str, Tensor], heads: int) -> tuple[Tensor, Tensor]:
    """Multi-head self-attention of (B, T, D) tokens, and its weights (B, heads, T, T)."""
    qkv = x @ weights["attn.qkv.weight"].T + weights["attn.qkv.bias"]
    outputs, maps = [], []
    for query, key, value in zip(*(part.chunk(heads, -1) for part in qkv.chunk(3, -1)), strict=True):
        maps.append(torch.softmax(query @ key.transpose(1, 2) / math.sqrt(key.shape[-1]), dim=-1))
        outputs.append(maps[-1] @ value)
    return torch.cat(outputs, -1) @ weights["attn.proj.weight"].T + weights["attn.proj.bias"], torch.stack(maps, 1)


def embedded(state: dict[str, Tensor], images: Tensor, masks: Tensor | None) -> Tensor:
    """CLS, registers and patches before the first block: (B, 1 + R + P, D)."""
    kernel = state["patch_embed.proj.weight"]
    width, patch = kernel.shape[0], kernel.shape[-1]
    batch, _, height, length = images.shape
    h, w = height // patch, length // patch
    pixels = F.unfold(images, patch, stride=patch).transpose(1, 2)  # (B, P, 3 * patch * patch)
    x = pixels @ kernel.reshape(width, -1).T + state["patch_embed.proj.bias"]
    if masks is not None:
        x = masks[..., None] * state["mask_token"] + ~masks[..., None] * x
    cls_position, positions = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    grid = math.isqrt(positions.shape[1])
    if (h, w) != (grid, grid):
        cls_position = cls_position.float().to(x.dtype)  # the original resizes in float32, CLS's row passing through
        square = positions.float().reshape(1, grid, grid, width).permute(0, 3, 1, 2)
        resized = F.interpolate(square, size=(h, w), mode="bicubic", align_corners=False, antialias=True)
        positions = resized.permute(0, 2, 3, 1).reshape(1, h * w, width).to(x.dtype)
    cls = (state["cls_token"] + cls_position).expand(batch, -1, -1)
    registers = state["register_tokens"].expand(batch, -1, -1)
    return torch.cat([cls, registers, x + positions], 1)


def reference_tokens(
    state: dict[str, Tensor],
    heads: int,
    images: Tensor,
    masks: Tensor | None = None,
    scale: Tensor | None = None,
    attention_of: int | None = None,
) -> Tensor:
    """All tokens after the final norm, (B, T, D); with `attention_of` the attention weights of that block instead.

    `scale` (depth, 2, B) multiplies the residual branches of each sample.
    """
    x, width = embedded(state, images, masks), state["cls_token"].shape[-1]
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for i in range(depth):
        prefix = f"blocks.{i}."
        block = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        factors = torch.ones(2, len(x), dtype=x.dtype) if scale is None else scale[i].to(x.dtype)
        branch, maps = attended(
            F.layer_norm(x, (width,), block["norm1.weight"], block["norm1.bias"], 1e-6), block, heads
        )
        if i == attention_of:
            return maps
        x = x + factors[0][:, None, None] * block["ls1.gamma"] * branch
        hidden = F.layer_norm(x, (width,), block["norm2.weight"], block["norm2.bias"], 1e-6)
        hidden = F.gelu(hidden @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"]) @ block["mlp.fc2.weight"].T
        x = x + factors[1][:, None, None] * block["ls2.gamma"] * (hidden + block["mlp.fc2.bias"])
    return F.layer_norm(x, (width,), state["norm.weight"], state["norm.bias"], 1e-6)
