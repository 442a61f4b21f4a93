"""The auxiliary decoder: restores masked patches of the current frame from another frame. B crops, P patches, D width."""

from typing import Any

import torch
from torch import Tensor, nn

from tcore_lib.params import Decoder


class DecoderBlock(nn.Module):
    """Cross-attention to the auxiliary frame, self-attention, linear; post-norm (eps 1e-5); torch's initialisation."""

    def __init__(self, width: int, heads: int, attn_mul: float) -> None:
        super().__init__()
        self.attn_mul = attn_mul
        self.cross_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm1 = nn.LayerNorm(width)
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, auxiliary: Tensor) -> Tensor:
        """(B, P, D) tokens of the masked current crop, (B, P, D) of the clean auxiliary crop -> (B, P, D)."""
        x = self.norm1(self.attn_mul * self.cross_attn(x, auxiliary, auxiliary, need_weights=False)[0] + x)
        x = self.norm2(self.self_attn(x, x, x, need_weights=False)[0] + x)
        return self.norm3(self.linear(x) + x)


class AuxiliaryDecoder(nn.Module):
    """`num_blocks` blocks; each one attends to the same auxiliary tokens again. One decoder serves past and future."""

    def __init__(self, width: int, settings: Decoder) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            DecoderBlock(width, settings.heads, settings.attn_mul) for _ in range(settings.num_blocks)
        )

    def forward(self, x: Tensor, auxiliary: Tensor) -> Tensor:
        """As `DecoderBlock.forward`."""
        for block in self.blocks:
            x = block(x, auxiliary)
        return x

    @torch.no_grad()
    def cross_attention(self, x: Tensor, auxiliary: Tensor) -> Tensor:
        """Where patches look in the auxiliary frame, in the first block: (B, heads, P, P), query, key; rows sum to 1."""
        attention: Any = self.blocks[0].cross_attn
        return attention(x, auxiliary, auxiliary, average_attn_weights=False)[1]
