"""`explain`: which implementation runs for some tensors, and why."""

from torch import Tensor

from ribonanzamamba.ops.backend import Explanation
from ribonanzamamba.ops.selective_scan import explain_selective_scan
from ribonanzamamba.ops.ssd import explain_ssd


def explain(x: Tensor, B: Tensor | None = None, *, backend: str = "auto") -> Explanation:
    """Which implementation `ssd` (x (b, l, h, p)) or `selective_scan` (x (b, l, d)) takes for these tensors, and why.

    B (b, l, g, n) matters where a large state rules the kernels out.

    Raises:
        ValueError: x of another shape, an unknown backend, or one that cannot run.

    >>> import torch
    >>> print(explain(torch.zeros(1, 8, 16)))
    inplace: the tensors are on the CPU
    """
    if x.dim() == 4:
        return explain_ssd(x, x if B is None else B, backend)
    if x.dim() == 3:
        return explain_selective_scan(x, backend)
    raise ValueError(f"x: expected (b, l, h, p) for ssd or (b, l, d) for selective_scan, got {tuple(x.shape)}")
