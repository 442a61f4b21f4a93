"""The auxiliary decoder: restores masked patches of the current frame from another frame (METHOD section 4).

Letters: B crops, P patches, Q wanted patches of a crop, D width.
"""

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

    def forward(self, x: Tensor, auxiliary: Tensor, wanted: Tensor | None = None) -> Tensor:
        """One block.

        Args:
            x: (B, P, D) tokens of the masked current crop.
            auxiliary: (B, P, D) tokens of the clean auxiliary crop.
            wanted: (B, Q) int64 indices of patches; only their result is computed. Every patch is still a key of the
                self-attention, so the result is the same. None = all.

        Returns:
            (B, Q, D), or (B, P, D).
        """
        crossed = self.cross_attn(x, auxiliary, auxiliary, need_weights=False)[0]
        x = self.norm1(self.attn_mul * crossed + x)
        query = x
        if wanted is not None:
            query = x.gather(1, wanted[:, :, None].expand(-1, -1, x.shape[-1]))
        query = self.norm2(self.self_attn(query, x, x, need_weights=False)[0] + query)
        return self.norm3(self.linear(query) + query)


class AuxiliaryDecoder(nn.Module):
    """`num_blocks` blocks; each one attends to the same auxiliary tokens again. One decoder serves past and future.

    Args:
        width: of the encoder's tokens.
        settings: section `pretrain.decoder`.
    """

    def __init__(self, width: int, settings: Decoder) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            DecoderBlock(width, settings.heads, settings.attn_mul) for _ in range(settings.num_blocks)
        )

    def forward(self, x: Tensor, auxiliary: Tensor, wanted: Tensor | None = None) -> Tensor:
        """(B, P, D), (B, P, D), optional (B, Q) -> (B, Q, D) or (B, P, D). See `DecoderBlock.forward`."""
        for block in self.blocks[:-1]:
            x = block(x, auxiliary)
        return self.blocks[-1](x, auxiliary, wanted)

    @torch.no_grad()
    def cross_attention(self, x: Tensor, auxiliary: Tensor) -> Tensor:
        """Where each patch looks in the auxiliary frame, in the first block.

        Returns:
            (B, heads, P, P): query patch, key patch; rows sum to 1.
        """
        first = self.blocks[0]
        assert isinstance(first, DecoderBlock)
        return first.cross_attn(x, auxiliary, auxiliary, need_weights=True, average_attn_weights=False)[1]
