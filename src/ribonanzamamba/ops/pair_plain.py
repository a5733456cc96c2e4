"""Updates of a map of pairs in plain PyTorch: chains of functions over the whole map, and over parts of it where no
gradient is wanted.

A chain over the whole map writes every step of it to memory and reads it again; a part stays in a processor's cache
from the first step to the last. With a gradient every step is kept anyway.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ribonanzamamba.ops.norm import plain_rms_norm

PART = 2**19
"""Numbers of a part: 2 MiB in float32, of which a chain holds a few at a time."""
WORTH_PARTS = 2**21
"""Numbers of a map from which parts are faster: smaller ones stay in the cache as they are."""


def in_parts(*tensors: Tensor) -> bool:
    """Whether the map, the first of these tensors, is gone through part by part: on a CPU, and where it holds numbers,
    not shapes alone."""
    pair = tensors[0]
    if type(pair) is not Tensor or pair.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if pair.numel() <= WORTH_PARTS:
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


def parts(pair: Tensor) -> Iterator[tuple[slice, slice]]:
    """Examples and rows of a map (b, l, l, c), part by part: some whole maps, or some rows of one."""
    b, l, _, c = pair.shape
    examples = max(1, PART // (l * l * c))
    rows = l if l * l * c <= PART else max(1, PART // (l * c))
    for example in range(0, b, examples):
        for row in range(0, l, rows):
            yield slice(example, min(example + examples, b)), slice(row, min(row + rows, l))


def by_parts(function: Callable[[slice, slice], Tensor], pair: Tensor, *used: Tensor) -> Tensor:
    """`function` of some examples and rows of a map, (examples, rows, ...), for all of them; `used` are the other
    tensors that it depends on."""
    if not in_parts(pair, *used):
        return function(slice(None), slice(None))
    out = None
    for part in parts(pair):
        result = function(*part)
        if out is None:
            out = result.new_empty(*pair.shape[:2], *result.shape[2:])
        out[part] = result
    return out


def outer_and_norm_plain(
    pair: Tensor, projected: Tensor, gain: Tensor, present: Tensor, eps: float, overwrite: bool
) -> tuple[Tensor, Tensor]:
    """`pair.outer_and_norm`."""
    projected = projected.to(pair.dtype)
    if not in_parts(pair, projected, gain):
        everything = slice(None)
        return outer_and_norm_part(pair, projected, gain, present, eps, everything, everything)
    updated, normed = pair if overwrite else torch.empty_like(pair), torch.empty_like(pair)
    for part in parts(pair):
        updated[part], normed[part] = outer_and_norm_part(pair, projected, gain, present, eps, *part)
    return updated, normed


def outer_and_norm_part(
    pair: Tensor, projected: Tensor, gain: Tensor, present: Tensor, eps: float, examples: slice, rows: slice
) -> tuple[Tensor, Tensor]:
    """Some rows of some examples of it."""
    left, right, row, column = projected[examples].chunk(4, dim=-1)
    own = pair[examples, rows]
    own = torch.addcmul(own, left[:, rows, None], right[:, None, :]).add_(row[:, rows, None]).add_(column[:, None, :])
    mask = present[examples, rows, None] & present[examples, None, :]
    return own, plain_rms_norm(own, gain, eps).masked_fill(~mask[..., None], 0)


def gated_convolution_plain(
    pair: Tensor, normed: Tensor, conv_weight: Tensor, conv_bias: Tensor, weight: Tensor, bias: Tensor, dilation: int,
    overwrite: bool,
) -> Tensor:  # fmt: skip
    """`pair.gated_convolution`."""
    reach = dilation * (conv_weight.shape[-1] // 2)
    if not in_parts(pair, normed, conv_weight, conv_bias, weight, bias):
        return pair + gated(convolve(normed, conv_weight, conv_bias, reach, reach, dilation), weight, bias)
    out = pair if overwrite else torch.empty_like(pair)
    length = pair.shape[1]
    for examples, rows in parts(pair):
        first, last = rows.start - reach, rows.stop + reach
        seen = normed[examples, max(first, 0) : min(last, length)]
        # beyond the map there are zeros
        missing = (0, 0, 0, 0, max(-first, 0), max(last - length, 0))
        hidden = convolve(F.pad(seen, missing) if any(missing) else seen, conv_weight, conv_bias, 0, reach, dilation)
        torch.add(pair[examples, rows], gated(hidden, weight, bias), out=out[examples, rows])
    return out


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, above: int, beside: int, dilation: int) -> Tensor:
    """The convolution of (b, rows, l, c), with so many zeros above and below, and beside."""
    # channels last in memory throughout: both permutes are views
    x = x.permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, padding=(above, beside), dilation=dilation).permute(0, 2, 3, 1)


def gated(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What the two halves of a convolution's result add to the map."""
    value, gate = hidden.chunk(2, dim=-1)
    return F.linear(value * F.silu(gate), weight, bias)


def norm_and_heads_plain(
    pair: Tensor, gain: Tensor, weight: Tensor, present: Tensor, eps: float, fill: float
) -> Tensor:
    """`pair.norm_and_heads`."""

    def heads(examples: slice, rows: slice) -> Tensor:
        return F.linear(plain_rms_norm(pair[examples, rows], gain, eps), weight)

    # dense rows of one head's values: what attention reads
    projected = by_parts(heads, pair, gain, weight).permute(0, 3, 1, 2)
    return projected.masked_fill(~present[:, None, None, :], fill).contiguous()
