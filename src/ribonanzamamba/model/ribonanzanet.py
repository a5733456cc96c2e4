"""RibonanzaNet: the baseline, sequence to reactivity. Own code from the published facts; knows no training.

Choices of the original, all kept:
- learned embeddings and no position on the sequence track; relative positions on the pair track, constant beyond 8 nt
- each layer: full convolution, attention with a bias from the pair track, feed-forward; every norm after its residual
- the pair track gets all 32 x 32 products of two projected nucleotides, then two triangle multiplications
- two numbers a nucleotide: 2A3 and DMS (and base pairs, where asked for: that head is ours)

The original's faults are switches of `RibonanzaNetConfig`, all off by default. Two of its costs are not kept where
nothing could see them: the last layer leaves out its pair updates, which reach no output (their parameters are there
and get no gradient), and the mean of the pair track times zero is not added.

Source: He et al. 2024, "Ribonanza: deep learning of RNA structure through dual crowdsourcing"; names, shapes and faults
from github.com/Shujun-He/RibonanzaNet at efebd44, configs/pairwise.yaml.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ribonanzamamba.model.config import PlainValues
from ribonanzamamba.model.heads import PairHead
from ribonanzamamba.model.network import TOKENS, ModelOutput

PADDING = 4
"""Token of padding: A0 C1 G2 U3 are also the original's. It has no N, so that N reads as padding: a zero vector."""
LAST_KERNEL = 1
"""Width of the last layer's convolution, nucleotides."""
ATTENTION_DROPOUT = 0.1
"""The original's share, whatever its configuration says."""
ATTENTION_NORM_EPS = 1e-6
"""Of the first of the two norms after attention; all others have PyTorch's 1e-5."""
MASKED_LOGIT = -1e9
"""Finite, so that a row of nothing but padding stays finite; exp of it is exactly 0 beside any real logit."""
WEAK_MASKED_LOGIT = -1e-9
"""What the original writes instead: as good as 0, so that padding is attended to like anything else."""
OUTER_PRODUCTS = ("full", "contracted")
TASKS = ("reactivity", "structure")
ROWS, COLUMNS = 1, 2
"""Axes of a pair map."""


@dataclass(frozen=True, kw_only=True)
class RibonanzaNetConfig(PlainValues):
    """Sizes of the network, by default the public ones (11,296,898 parameters), and which faults it has, by default
    none."""

    width: int = 256
    """Channels of the sequence track."""
    pair_width: int = 64
    """Channels of the pair track."""
    layers: int = 9
    heads: int = 8
    kernel: int = 5
    """Width of the convolutions, nucleotides, odd; the last layer's is 1."""
    feed_forward: int = 4
    """Inner width of the feed-forward layer in units of `width`."""
    outer_width: int = 32
    """Channels of a nucleotide in the outer product; a pair has the square of it."""
    outer_product: str = "full"
    """"full" holds all products of all pairs in memory, as published: 4 KB a pair in float32. "contracted" gives the
    same sums up to rounding and never holds them."""
    largest_offset: int = 8
    """Relative position beyond which all are alike, nucleotides."""
    triangle_width: int = 64
    """Inner channels of the triangle multiplications; equal to `pair_width` in the original."""
    pair_transition: int = 4
    """Inner width of the pair track's feed-forward layer in units of `pair_width`."""
    dropout: float = 0.05
    """Dropped share of each residual branch, of the feed-forward layer's inside, and of attention."""
    probes: tuple[str, ...] = ("2A3", "DMS")
    tasks: tuple[str, ...] = TASKS[:1]
    """What the network has heads for: "reactivity", and where it is named "structure", by RibonanzaMamba's pair head,
    which the original has not; the last layer then updates the pair track too."""

    weak_attention_mask: bool = False
    """Fault: the attention logits of padding become -1e-9 in place of minus infinity, so that it is attended to."""
    signed_mask: bool = False
    """Fault: from the first attention on the mask says -1 for padding in place of 0. The sequence track's padding
    changes its sign in every layer, triangles add up products across padding, and padding attends to padding."""
    unmasked_training: bool = False
    """Fault: in training mode there is no mask from the first attention on; stronger than `signed_mask`."""
    double_residual: bool = False
    """Fault: dropout, residual and norm follow attention twice. Without it the first of the two norms stands idle."""
    rowwise_triangle_dropout: bool = False
    """Fault: dropout is shared along rows after both triangle multiplications, not along columns after the second."""
    fixed_attention_dropout: bool = False
    """Fault: attention drops 0.1 whatever `dropout` says."""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layers: expected at least 1, got {self.layers}")
        if self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of {self.width}, got {self.heads}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: expected an odd number, got {self.kernel}")
        if self.outer_product not in OUTER_PRODUCTS:
            raise ValueError(f"outer_product: expected one of {OUTER_PRODUCTS}, got {self.outer_product!r}")
        if self.tasks not in (TASKS[:1], TASKS):
            raise ValueError(f"tasks: expected {TASKS[:1]} or {TASKS}, got {self.tasks}")

    @property
    def sees_padding(self) -> bool:
        """Whether the faults let padding into the output."""
        return self.weak_attention_mask or self.signed_mask or self.unmasked_training

    @classmethod
    def as_published(cls) -> "RibonanzaNetConfig":
        """The public configuration with all faults: what weights trained with the original need."""
        return cls(
            weak_attention_mask=True,
            signed_mask=True,
            unmasked_training=True,
            double_residual=True,
            rowwise_triangle_dropout=True,
            fixed_attention_dropout=True,
        )


class RibonanzaNet(nn.Module):
    """The network."""

    def __init__(self, config: RibonanzaNetConfig):
        super().__init__()
        self.config = config
        self.nucleotide = nn.Embedding(TOKENS, config.width, padding_idx=PADDING)
        self.outer_product = OuterProduct(config)
        self.offset = nn.Linear(2 * config.largest_offset + 1, config.pair_width)
        kernels = [config.kernel] * (config.layers - 1) + [LAST_KERNEL]
        self.blocks = nn.ModuleList([RibonanzaNetLayer(config, kernel) for kernel in kernels])
        self.reactivity_head = nn.Linear(config.width, len(config.probes))
        # last, so that it takes no random numbers from the others
        self.pair_head = PairHead(config.width, config.pair_width) if "structure" in config.tasks else None

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
        tasks: Collection[str] = ("reactivity",),
    ) -> ModelOutput:
        """Reactivity (no bounds, no error estimate) and, with a pair head, base pairs, where `tasks` asks for them.

        `mask` is True for real nucleotides, which come first in each row. With the faults of the mask, the output at
        real nucleotides depends on the padding's length.
        """
        wanted = [task for task in self.config.tasks if task in tasks]
        if not wanted:
            return ModelOutput()
        x = self.nucleotide(tokens.masked_fill(~mask, PADDING))
        offset = clipped_offset(tokens.shape[1], self.config.largest_offset, tokens.device)
        # row `offset` of the transposed weight is what the layer makes of a one-hot vector
        offset_feature = F.embedding(offset, self.offset.weight.t()) + self.offset.bias
        pair = self.outer_product(x)
        # under autocast the largest tensor stays in the compute dtype
        pair = pair + offset_feature.to(pair.dtype)
        sign = mask.to(x.dtype)
        later_sign = self.later_sign(mask).to(x.dtype)
        pair_sign = later_sign[:, :, None] * later_sign[:, None, :]
        for block in self.blocks[:-1]:
            x, pair = block(x, pair, sign, pair_sign)
            sign = later_sign
        outputs = {}
        if "structure" in wanted:
            x, pair = self.blocks[-1](x, pair, sign, pair_sign)
            outputs["pair_logit"], outputs["no_partner_logit"] = self.pair_head(x, pair, mask)
        else:
            x = self.blocks[-1].update_sequence(x, pair, sign, pair_sign)
        if "reactivity" in wanted:
            outputs["reactivity"] = self.reactivity_head(x).float()
        return ModelOutput(**outputs)

    def fuse(self) -> None:
        """Compile all layers that update both tracks, in place (minutes on a GPU, at the first batch of each shape: pad
        to few lengths); worth it for training."""
        for block in self.blocks if self.pair_head is not None else self.blocks[:-1]:
            block.compile(dynamic=False)

    def later_sign(self, mask: Bool[Tensor, "batch length"]) -> Float[Tensor, "batch length"]:
        """What stands for the mask from the first attention on: 1 and 0, or with the faults 1 and -1, or only 1."""
        if self.training and self.config.unmasked_training:
            return torch.ones_like(mask, dtype=torch.float32)
        return torch.where(mask, 1.0, -1.0 if self.config.signed_mask else 0.0)


class RibonanzaNetLayer(nn.Module):
    """One layer: the sequence track from both tracks, then the pair track."""

    def __init__(self, config: RibonanzaNetConfig, kernel: int):
        super().__init__()
        self.dropout = config.dropout
        self.double_residual = config.double_residual
        self.convolution = nn.Conv1d(config.width, config.width, kernel, padding=kernel // 2)
        self.convolution_norm = nn.LayerNorm(config.width)
        self.attention = BiasedAttention(config)
        self.attention_norm = nn.LayerNorm(config.width)
        self.feed_forward_in = nn.Linear(config.width, config.feed_forward * config.width)
        self.feed_forward_out = nn.Linear(config.feed_forward * config.width, config.width)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.outer_product = OuterProduct(config)
        self.outgoing = TriangleMultiplication(config, "bikd,bjkd->bijd")
        self.ingoing = TriangleMultiplication(config, "bkjd,bkid->bijd")
        # dropout is drawn once along this axis, and shared
        self.ingoing_shared = ROWS if config.rowwise_triangle_dropout else COLUMNS
        self.pair_transition = nn.Sequential(
            nn.LayerNorm(config.pair_width),
            nn.Linear(config.pair_width, config.pair_transition * config.pair_width),
            nn.ReLU(),
            nn.Linear(config.pair_transition * config.pair_width, config.pair_width),
        )

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        pair: Float[Tensor, "batch length length pair_width"],
        sign: Float[Tensor, "batch length"],
        pair_sign: Float[Tensor, "batch length length"],
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch length length pair_width"]]:
        """Both tracks; the arguments are those of `update_sequence`."""
        x = self.update_sequence(x, pair, sign, pair_sign)
        return x, self.update_pair(x, pair, pair_sign)

    def update_sequence(
        self,
        x: Float[Tensor, "batch length width"],
        pair: Float[Tensor, "batch length length pair_width"],
        sign: Float[Tensor, "batch length"],
        pair_sign: Float[Tensor, "batch length length"],
    ) -> Float[Tensor, "batch length width"]:
        """The sequence track after convolution, attention and feed-forward; `sign` is 0 where nothing enters the
        convolution, `pair_sign` at most 0 where nothing is attended to."""
        x = x * sign[..., None]
        x = self.convolution_norm(x + self.convolution(x.transpose(1, 2)).transpose(1, 2))
        y = self.attention(x, pair, pair_sign)
        if self.double_residual:
            y = self.attention.norm(self.drop(y) + x)
        x = self.attention_norm(x + self.drop(y))
        y = self.feed_forward_out(self.drop(F.gelu(self.feed_forward_in(x))))
        return self.feed_forward_norm(x + self.drop(y))

    def update_pair(
        self,
        x: Float[Tensor, "batch length width"],
        pair: Float[Tensor, "batch length length pair_width"],
        pair_sign: Float[Tensor, "batch length length"],
    ) -> Float[Tensor, "batch length length pair_width"]:
        """The pair track after outer product, triangles and transition."""
        pair = pair + self.outer_product(x)
        pair = pair + shared_dropout(self.outgoing(pair, pair_sign), self.dropout, ROWS, self.training)
        pair = pair + shared_dropout(self.ingoing(pair, pair_sign), self.dropout, self.ingoing_shared, self.training)
        return pair + self.pair_transition(pair)

    def drop(self, x: Tensor) -> Tensor:
        """Ordinary dropout."""
        return F.dropout(x, self.dropout, self.training)


class BiasedAttention(nn.Module):
    """Attention with a bias from the pair track."""

    def __init__(self, config: RibonanzaNetConfig):
        super().__init__()
        self.heads = config.heads
        self.dropout = ATTENTION_DROPOUT if config.fixed_attention_dropout else config.dropout
        self.masked_logit = WEAK_MASKED_LOGIT if config.weak_attention_mask else MASKED_LOGIT
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, config.width, bias=False)
        self.value = nn.Linear(config.width, config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.norm = nn.LayerNorm(config.width, eps=ATTENTION_NORM_EPS)
        """For `double_residual`."""
        self.pair_norm = nn.LayerNorm(config.pair_width)
        self.bias = nn.Linear(config.pair_width, config.heads, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        pair: Float[Tensor, "batch length length pair_width"],
        pair_sign: Float[Tensor, "batch length length"],
    ) -> Float[Tensor, "batch length width"]:
        q, k, v = (
            rearrange(each(x), "b l (h d) -> b h l d", h=self.heads) for each in (self.query, self.key, self.value)
        )
        logit = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + rearrange(
            self.bias(self.pair_norm(pair)), "b i j h -> b h i j"
        )
        # float32 also under autocast: half precision does not hold the masked logit
        logit = logit.float().masked_fill(pair_sign[:, None] <= 0, self.masked_logit)
        share = F.dropout(logit.softmax(-1), self.dropout, self.training)
        return self.out(rearrange(share.to(v.dtype) @ v, "b h l d -> b l (h d)"))


class OuterProduct(nn.Module):
    """Features of every pair: a linear layer on all products of a channel of one nucleotide and one of the other."""

    def __init__(self, config: RibonanzaNetConfig):
        super().__init__()
        self.contracted = config.outer_product == "contracted"
        self.down = nn.Linear(config.width, config.outer_width)
        self.out = nn.Linear(config.outer_width**2, config.pair_width)

    def forward(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length length pair_width"]:
        u = self.down(x)
        if self.contracted:
            # the sum over j's channels first: a (length x pair_width) matrix a nucleotide in place of a number a pair
            weight = rearrange(self.out.weight, "p (c d) -> p c d", c=u.shape[-1])
            return torch.einsum("bid,bjpd->bijp", u, torch.einsum("pcd,bjc->bjpd", weight, u)) + self.out.bias
        products = u[:, None, :, :, None] * u[:, :, None, None, :]  # b i j, channel of j, channel of i
        return self.out(products.flatten(-2))


class TriangleMultiplication(nn.Module):
    """Each pair from the pairs its two nucleotides make with all third ones, of which padding is none.

    Source: Jumper et al. 2021, supplement, algorithms 11 and 12, but with a gate's start at sigmoid(1) everywhere.
    """

    def __init__(self, config: RibonanzaNetConfig, equation: str):
        super().__init__()
        self.equation = equation
        self.norm = nn.LayerNorm(config.pair_width)
        self.left = nn.Linear(config.pair_width, config.triangle_width)
        self.right = nn.Linear(config.pair_width, config.triangle_width)
        self.left_gate = nn.Linear(config.pair_width, config.triangle_width)
        self.right_gate = nn.Linear(config.pair_width, config.triangle_width)
        self.out_gate = nn.Linear(config.pair_width, config.triangle_width)
        self.out_norm = nn.LayerNorm(config.triangle_width)
        self.out = nn.Linear(config.triangle_width, config.pair_width)
        for gate in (self.left_gate, self.right_gate, self.out_gate):
            nn.init.zeros_(gate.weight)
            nn.init.ones_(gate.bias)

    def forward(
        self,
        pair: Float[Tensor, "batch length length pair_width"],
        pair_sign: Float[Tensor, "batch length length"],
    ) -> Float[Tensor, "batch length length pair_width"]:
        pair = self.norm(pair)
        left = self.left(pair) * self.left_gate(pair).sigmoid()
        right = self.right(pair) * self.right_gate(pair).sigmoid()
        # -1, 0 and 1 are exact in any dtype
        sign = pair_sign[..., None].to(left.dtype)
        left, right = left * sign, right * sign
        mixed = torch.einsum(self.equation, left, right)
        return self.out(self.out_norm(mixed) * self.out_gate(pair).sigmoid())


def clipped_offset(length: int, largest: int, device: torch.device | str = "cpu") -> Int[Tensor, "length length"]:
    """i - j for every pair (i, j), clipped to -largest .. largest and counted from 0.

    >>> clipped_offset(4, 2)[0].tolist(), clipped_offset(4, 2)[3].tolist()
    ([2, 1, 0, 0], [4, 4, 3, 2])
    """
    position = torch.arange(length, device=device)
    return (position[:, None] - position[None, :]).clamp(-largest, largest) + largest


def shared_dropout(x: Tensor, rate: float, axis: int, training: bool) -> Tensor:
    """Dropout that is the same all along one axis.

    >>> shared_dropout(torch.ones(1, 3, 2), 1.0, 1, training=True).sum().item()
    0.0
    """
    if not training or rate == 0:
        return x
    kept = x.new_ones([1 if k == axis else size for k, size in enumerate(x.shape)])
    return x * F.dropout(kept, rate)


_LAYER_NAMES = {
    "conv": "convolution",
    "norm3": "convolution_norm",
    "self_attn.w_qs": "attention.query",
    "self_attn.w_ks": "attention.key",
    "self_attn.w_vs": "attention.value",
    "self_attn.fc": "attention.out",
    "self_attn.layer_norm": "attention.norm",
    "pairwise_norm": "attention.pair_norm",
    "pairwise2heads": "attention.bias",
    "norm1": "attention_norm",
    "linear1": "feed_forward_in",
    "linear2": "feed_forward_out",
    "norm2": "feed_forward_norm",
    "outer_product_mean.proj_down1": "outer_product.down",
    "outer_product_mean.proj_down2": "outer_product.out",
    "pair_transition.0": "pair_transition.0",
    "pair_transition.1": "pair_transition.1",
    "pair_transition.3": "pair_transition.3",
}
_TRIANGLE_NAMES = {
    "norm": "norm",
    "left_proj": "left",
    "right_proj": "right",
    "left_gate": "left_gate",
    "right_gate": "right_gate",
    "out_gate": "out_gate",
    "to_out_norm": "out_norm",
    "to_out": "out",
}
_NAMES = {
    "encoder": "nucleotide",
    "outer_product_mean.proj_down1": "outer_product.down",
    "outer_product_mean.proj_down2": "outer_product.out",
    "pos_encoder.linear": "offset",
    "decoder": "reactivity_head",
}
"""The original's name of a module: ours."""
_WITHOUT_BIAS = ("encoder", "w_qs", "w_ks", "w_vs", "fc", "pairwise2heads")
"""Last words of the original's names."""


def read_published_state_dict(
    state_dict: Mapping[str, Tensor], config: RibonanzaNetConfig | None = None
) -> dict[str, Tensor]:
    """The original's weights under our names, for `RibonanzaNet.load_state_dict`; `config` says how many layers
    (by default 9). The network that gets them needs the faults they were trained with: `as_published`.

    Raises:
        ValueError: names that are missing or unknown, such as those of triangular attention.
    """
    return _rename(state_dict, dict(_parameter_names(config or RibonanzaNetConfig())))


def write_published_state_dict(
    state_dict: Mapping[str, Tensor], config: RibonanzaNetConfig | None = None
) -> dict[str, Tensor]:
    """Our weights under the original's names: the inverse of `read_published_state_dict`.

    Raises:
        ValueError: names that are missing or unknown.
    """
    return _rename(state_dict, {ours: theirs for theirs, ours in _parameter_names(config or RibonanzaNetConfig())})


def _rename(state_dict: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    missing, unknown = sorted(set(names) - set(state_dict)), sorted(set(state_dict) - set(names))
    if missing or unknown:
        raise ValueError(f"RibonanzaNet weights: missing {missing}, unknown {unknown}")
    return {new: state_dict[old] for old, new in names.items()}


def _parameter_names(config: RibonanzaNetConfig) -> Iterator[tuple[str, str]]:
    """The original's and our name of every parameter."""
    for theirs, ours in _module_names(config.layers):
        yield f"{theirs}.weight", f"{ours}.weight"
        if theirs.split(".")[-1] not in _WITHOUT_BIAS:
            yield f"{theirs}.bias", f"{ours}.bias"


def _module_names(layers: int) -> Iterator[tuple[str, str]]:
    yield from _NAMES.items()
    for k in range(layers):
        for theirs, ours in _LAYER_NAMES.items():
            yield f"transformer_encoder.{k}.{theirs}", f"blocks.{k}.{ours}"
        for theirs, ours in (("triangle_update_out", "outgoing"), ("triangle_update_in", "ingoing")):
            for their_part, our_part in _TRIANGLE_NAMES.items():
                yield f"transformer_encoder.{k}.{theirs}.{their_part}", f"blocks.{k}.{ours}.{our_part}"
