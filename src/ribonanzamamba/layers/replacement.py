"""State spaces in the place of the attentions of any model: swapped, reported, and put back."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ribonanzamamba.layers.self_attention import MambaSelfAttention
from ribonanzamamba.layers.spatiotemporal import AxisAttention, ProjectedBranch, TemporalMamba


@dataclass(frozen=True)
class Swap:
    """One module of a model, and what stands in its place."""

    name: str
    """Path of the module in the model, as `named_modules` spells it."""
    before: nn.Module
    after: nn.Module


@dataclass(frozen=True)
class Replacement:
    """What `replace_attention` did to a model; `print` shows it, `restore` undoes it."""

    model: nn.Module
    swaps: tuple[Swap, ...]
    kept: tuple[tuple[str, str], ...]
    """Name of each module of the class asked for that was not swapped, and why."""
    parameters_before: int
    parameters_after: int
    """Of the whole model."""

    def restore(self) -> None:
        """Put the old modules back, with the weights they had, on the device of the new ones.

        An optimizer made after the swap knows nothing of them.
        """
        for swap in reversed(self.swaps):
            device = next(swap.after.parameters()).device
            set_module(self.model, swap.name, swap.before.to(device).train(swap.after.training))

    def __str__(self) -> str:
        lines = [
            f"{swap.name}: {type(swap.before).__name__} ({count(swap.before):,} parameters) -> "
            f"{type(swap.after).__name__} ({count(swap.after):,})"
            for swap in self.swaps
        ]
        lines += [f"{name}: kept, {reason}" for name, reason in self.kept]
        total = f"model: {self.parameters_before:,} parameters -> {self.parameters_after:,}"
        return "\n".join([*lines, total])


def replace_attention(
    model: nn.Module,
    kind: type[nn.Module] = nn.MultiheadAttention,
    build: Callable[[nn.Module], nn.Module] | None = None,
    *,
    where: Callable[[str, nn.Module], bool] | None = None,
    **options,
) -> Replacement:
    """Swap every module of a class in a model, in place, for one that `build` makes from it.

    Args:
        model: any PyTorch model. Optimizers must be made after the swap: they hold the old parameters.
        kind: class to look for, subclasses included.
        build: old module to new one with the same signature. By default a new `MambaSelfAttention` for
        `nn.MultiheadAttention` and a `TemporalMamba` for `AxisAttention`, untrained.
        where: name and module to whether it is swapped; all by default.
        options: for the default `build`, as `causal=True` or `d_state=64`.

    Attentions that cannot be self-attention (keys or values of another width, the second one of
    `nn.TransformerDecoderLayer`) are kept and listed with the reason.

    Raises:
        ValueError: nothing to swap; a model that is itself of the class; a class without a default `build`.

    >>> encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    >>> replacement = replace_attention(encoder)
    >>> [swap.name for swap in replacement.swaps]
    ['self_attn']
    >>> replacement.restore()
    >>> type(encoder.self_attn).__name__
    'MultiheadAttention'
    """
    if isinstance(model, kind):
        raise ValueError(f"the model is itself a {kind.__name__}: there is nothing to put the new one into")
    build = default_build(kind, options) if build is None else build
    parameters_before = count(model)
    swaps, kept, made = [], [], {}
    # one module may stand at several places: it is replaced by one
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, kind) or (where is not None and not where(name, module)):
            continue
        if is_cross_attention(model, name):
            kept.append((name, "it is cross-attention"))
            continue
        if id(module) not in made:
            try:
                made[id(module)] = fitted(build(module), module)
            except ValueError as error:
                kept.append((name, str(error)))
                continue
        swaps.append(Swap(name, module, made[id(module)]))
    if not swaps:
        reasons = "".join(f"; {name} is kept: {reason}" for name, reason in kept)
        raise ValueError(f"no module of class {kind.__name__} to replace in {type(model).__name__}{reasons}")
    for swap in swaps:
        set_module(model, swap.name, swap.after)
    return Replacement(model, tuple(swaps), tuple(kept), parameters_before, count(model))


def default_build(kind: type[nn.Module], options: dict) -> Callable[[nn.Module], nn.Module]:
    """What makes a state space from an attention of this class."""
    if issubclass(kind, nn.MultiheadAttention):
        return lambda attention: MambaSelfAttention.like(attention, **options)
    if issubclass(kind, AxisAttention):
        return lambda attention: projected_mamba(attention, **options)
    raise ValueError(f"build: needed for {kind.__name__}; there is a default for MultiheadAttention and AxisAttention")


def projected_mamba(attention: AxisAttention, **options) -> ProjectedBranch:
    """A `TemporalMamba` with the widths, the axis and the direction of an attention."""
    d_in, d_model = attention.qkv.in_features, attention.out.out_features
    options = {"axis": attention.axis, "causal": attention.causal} | options
    return ProjectedBranch(d_in, d_model, TemporalMamba(d_model, **options))


def is_cross_attention(model: nn.Module, name: str) -> bool:
    """Whether the name is that of PyTorch's decoder's attention to the encoder."""
    parent, _, own = name.rpartition(".")
    return own == "multihead_attn" and isinstance(model.get_submodule(parent), nn.TransformerDecoderLayer)


def fitted(new: nn.Module, old: nn.Module) -> nn.Module:
    """The new module on the device, in the dtype and in the mode of the old one."""
    parameter = next(old.parameters(), None)
    new.train(old.training)
    return new if parameter is None else new.to(device=parameter.device, dtype=parameter.dtype)


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def count(module: nn.Module) -> int:
    """Parameters, each once."""
    return sum(parameter.numel() for parameter in module.parameters())
