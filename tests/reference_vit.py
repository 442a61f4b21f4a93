"""The encoder once more, in plain torch functions, written from docs/method.md section 4 and the official key names.

An oracle: no module, no timm, no `tcore_lib`; slow and obvious. It takes an official state dict.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm over the last axis, eps 1e-6."""
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-6) * weight + bias


def attended(x: Tensor, weights: dict[str, Tensor], heads: int) -> tuple[Tensor, Tensor]:
    """Multi-head self-attention of (B, T, D) tokens, and its weights (B, heads, T, T)."""
    width = x.shape[-1]
    qkv = x @ weights["attn.qkv.weight"].T + weights["attn.qkv.bias"]
    size = width // heads
    outputs, maps = [], []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        query, key, value = (qkv[..., i * width : (i + 1) * width][..., part] for i in range(3))
        attention = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(size), dim=-1)
        outputs.append(attention @ value)
        maps.append(attention)
    return torch.cat(outputs, -1) @ weights["attn.proj.weight"].T + weights["attn.proj.bias"], torch.stack(maps, 1)


def embedded(state: dict[str, Tensor], images: Tensor, masks: Tensor | None) -> Tensor:
    """CLS, registers and patches before the first block: (B, 1 + R + P, D)."""
    kernel = state["patch_embed.proj.weight"]
    width, patch = kernel.shape[0], kernel.shape[-1]
    batch, _, height, length = images.shape
    h, w = height // patch, length // patch
    rows = []
    for i in range(h):
        for j in range(w):
            pixels = images[:, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            rows.append(pixels.reshape(batch, -1) @ kernel.reshape(width, -1).T + state["patch_embed.proj.bias"])
    x = torch.stack(rows, 1)
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
    x = embedded(state, images, masks)
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for i in range(depth):
        prefix = f"blocks.{i}."
        block = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        factors = torch.ones(2, len(x), dtype=x.dtype) if scale is None else scale[i].to(x.dtype)
        branch, maps = attended(normalised(x, block["norm1.weight"], block["norm1.bias"]), block, heads)
        if i == attention_of:
            return maps
        x = x + factors[0][:, None, None] * block["ls1.gamma"] * branch
        hidden = normalised(x, block["norm2.weight"], block["norm2.bias"]) @ block["mlp.fc1.weight"].T
        hidden = hidden + block["mlp.fc1.bias"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + factors[1][:, None, None] * block["ls2.gamma"] * (
            hidden @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"]
        )
    return normalised(x, state["norm.weight"], state["norm.bias"])
