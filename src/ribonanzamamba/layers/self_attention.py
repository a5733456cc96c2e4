"""`MambaSelfAttention`: a state space that is called like `torch.nn.MultiheadAttention` for self-attention."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ribonanzamamba.layers.bidirectional import BiMamba
from ribonanzamamba.layers.mamba import Mamba2, widest_head


class MambaSelfAttention(nn.Module):
    """A bidirectional or `causal` state space in the place of a self-attention: same call, same shapes, same tuple.

    `nn.MultiheadAttention(64, 8, batch_first=True)` becomes `MambaSelfAttention(64, 8, batch_first=True)`, also
    inside `nn.TransformerEncoderLayer`, in training and evaluation. There are no attention weights: the second value
    returned is None. `num_heads` is taken for the sake of the call; a state space has heads of `head_width`.
    """

    in_proj_bias = None
    """Read by `nn.TransformerEncoderLayer`: None keeps it from its fused path, which knows attention only."""
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        *,
        causal: bool = False,
        batch_first: bool = False,
        d_state: int = 32,
        expand: int = 2,
        head_width: int | None = None,
    ):
        super().__init__()
        self.embed_dim, self.num_heads, self.causal, self.batch_first = embed_dim, num_heads, causal, batch_first
        head_width = widest_head(expand * embed_dim) if head_width is None else head_width
        if causal:
            self.mamba = Mamba2(embed_dim, d_state=d_state, expand=expand, headdim=head_width)
        else:
            self.mamba = BiMamba(embed_dim, d_state=d_state, expand=expand, head_width=head_width)

    def forward(
        self,
        query: Float[Tensor, "*axes width"],
        key: Float[Tensor, "*axes width"],
        value: Float[Tensor, "*axes width"],
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "*axes width"], None]:
        """Outputs in the layout of the input, and None.

        Args:
            query, key, value: the same tensor three times: (length, batch, width), (batch, length, width) with
            `batch_first`, or (length, width).
            key_padding_mask: (batch, length), True or minus infinity where a position does not take part, anywhere in
            a row: the others are scanned as if it were not there, and its own output is 0.
            attn_mask: None, one that hides nothing, or for a causal layer the causal one.
            is_causal: promises, as in PyTorch, that `attn_mask` is the causal one; the layer must be causal.
            need_weights, average_attn_weights: without effect.

        Raises:
            ValueError: cross-attention, or a mask that this layer cannot honour.
        """
        if not (is_same(query, key) and is_same(query, value)):
            raise ValueError(
                "expected self-attention: query, key and value must be one tensor; a state space has no cross-attention"
            )
        if is_causal and not self.causal:
            raise ValueError("is_causal: this layer sees both ways; build it with causal=True")
        batched = query.dim() == 3
        x = query if batched else query[None]
        if batched and not self.batch_first:
            x = x.transpose(0, 1)
        if attn_mask is not None and not is_causal:
            self.check_mask(attn_mask, x.shape[1])
        if key_padding_mask is None:
            y = self.mamba(x)
        else:
            hidden = hidden_positions(key_padding_mask, "key_padding_mask").reshape(x.shape[:2])
            y = self.scan_present(x, hidden)
        if not batched:
            return y[0], None
        return (y if self.batch_first else y.transpose(0, 1)), None

    def scan_present(
        self, x: Float[Tensor, "batch length width"], hidden: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length width"]:
        """The layer over the positions that are not hidden, moved together to the front and back."""
        order = hidden.to(torch.uint8).sort(dim=1, stable=True).indices
        lengths: Int[Tensor, " batch"] = (~hidden).sum(1)
        return take(self.mamba(take(x, order), lengths), order.argsort(dim=1))

    def check_mask(self, attn_mask: Tensor, length: int) -> None:
        hidden = hidden_positions(attn_mask, "attn_mask")
        allowed = torch.zeros(length, length, dtype=torch.bool, device=hidden.device)
        if self.causal and bool(hidden.any()):
            allowed = torch.ones_like(allowed).triu(1)
        if hidden.shape[-2:] != allowed.shape or not bool((hidden == allowed).all()):
            kind = "the causal one" if self.causal else "one that hides nothing (causal=True takes the causal one)"
            raise ValueError(f"attn_mask: a state space takes {kind} and no other; got shape {tuple(attn_mask.shape)}")

    @property
    def in_proj_weight(self) -> Tensor:
        """Empty; of a class that keeps `nn.TransformerEncoder` from its nested tensors, which know attention only."""
        return torch.empty(0, device=self.out_proj.weight.device).as_subclass(NotForFusedAttention)

    @property
    def out_proj(self) -> nn.Linear:
        """The last layer, where `nn.TransformerEncoder` looks for it."""
        return self.mamba.out_proj

    @classmethod
    def like(cls, attention: nn.MultiheadAttention, **options) -> "MambaSelfAttention":
        """A new layer with the width and the layout of an attention; `options` are those of the class.

        Raises:
            ValueError: an attention whose keys or values have a width of their own.
        """
        if attention.kdim != attention.embed_dim or attention.vdim != attention.embed_dim:
            raise ValueError(f"cross-attention from {attention.kdim} channels to {attention.embed_dim}")
        options = {"batch_first": attention.batch_first} | options
        return cls(attention.embed_dim, attention.num_heads, **options)


class NotForFusedAttention(Tensor):
    """PyTorch's fused encoder takes plain tensors only; one of this class sends it the ordinary way."""


def is_same(a: Tensor, b: Tensor) -> bool:
    """One tensor, or two views of the same memory with the same shape."""
    return a is b or (a.shape == b.shape and a.stride() == b.stride() and a.data_ptr() == b.data_ptr())


def take(
    x: Float[Tensor, "batch length width"], order: Int[Tensor, "batch length"]
) -> Float[Tensor, "batch length width"]:
    """Positions of each row in the order given."""
    return x.gather(1, order[..., None].expand_as(x))


def hidden_positions(mask: Tensor, name: str) -> Bool[Tensor, "*axes"]:
    """True where a mask hides: a bool mask as it is, a float one where it is minus infinity.

    Raises:
        ValueError: a float mask with values other than 0 and minus infinity, which only an attention can add.

    >>> hidden_positions(torch.tensor([0.0, float("-inf")]), "attn_mask")
    tensor([False,  True])
    """
    if mask.dtype == torch.bool:
        return mask
    hidden = mask == float("-inf")
    if bool(((mask != 0) & ~hidden).any()):
        raise ValueError(f"{name}: expected True and False, or 0 and minus infinity; a state space adds no bias")
    return hidden
