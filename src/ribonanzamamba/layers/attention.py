"""Self-attention along the sequence, biased by the pair track."""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ribonanzamamba.layers.norm import EPS, RMSNorm
from ribonanzamamba.ops import norm_and_heads

MASKED_LOGIT = -1e9
"""Finite, so that a row without any real position stays finite; exp of it is exactly 0 beside any real logit."""


class PairBiasedAttention(nn.Module):
    """Attention whose logits get a learned bias from each pair's features; masked positions are never attended to."""

    def __init__(self, width: int, pair_width: int, *, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: expected a divisor of {width}, got {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.pair_norm = RMSNorm(pair_width)
        self.bias = nn.Linear(pair_width, heads, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.query_norm = RMSNorm(width // heads)
        self.key_norm = RMSNorm(width // heads)

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        pair: Float[Tensor, "batch length length pair_width"],
        mask: Bool[Tensor, "batch length"],
    ) -> Float[Tensor, "batch length width"]:
        q, k, v = rearrange(self.qkv(x), "b l (three h d) -> b l three h d", three=3, h=self.heads).unbind(2)
        # the norms read q and k where the projection wrote them
        q, k, v = (rearrange(part, "b l h d -> b h l d") for part in (self.query_norm(q), self.key_norm(k), v))
        # dense, as the fused attention kernels want it
        bias = norm_and_heads(pair, self.pair_norm.weight, self.bias.weight, mask, EPS, MASKED_LOGIT)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(v.dtype))
        return self.out(rearrange(y, "b h l d -> b l (h d)"))
