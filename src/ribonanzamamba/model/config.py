"""What a RibonanzaMamba network is made of."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from ribonanzamamba.rna.records import PROBES

TASKS = ("reactivity", "structure", "coordinates")
MIXINGS = ("gate", "sum", "attention-first", "mamba-first")

Sizes = TypeVar("Sizes", bound="PlainValues")


class PlainValues:
    """A dataclass of sizes that goes to plain values and back, as in TOML or JSON."""

    @classmethod
    def from_dict(cls: type[Sizes], values: Mapping[str, Any]) -> Sizes:
        """The config these values spell; a list becomes a tuple.

        Raises:
            ValueError: an unknown key.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"model: unknown keys {unknown}; known are {sorted(known)}")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(PlainValues):
    """Sizes of a network; the defaults are the released one."""

    width: int = 256
    """Channels of the sequence track."""
    pair_width: int = 64
    """Channels of the pair track."""
    blocks: int = 8
    heads: int = 8
    """Attention heads of the sequence track."""
    kernels: tuple[int, ...] = (3, 5, 7, 17)
    """Widths of the depthwise convolutions, nucleotides; each serves an equal share of the channels."""
    d_state: int = 32
    """State size of the state space, a head and direction."""
    expand: int = 2
    """Inner width of the state space in units of `width`."""
    head_width: int = 64
    """Channels a state-space head."""
    feed_forward: int = 4
    """Inner width of the feed-forward layer in units of `width`."""
    dilations: tuple[int, ...] = (1, 2, 4, 1)
    """Dilations of the pair convolutions, nucleotides, repeated over the blocks."""
    dropout: float = 0.1
    """Dropped share of each residual branch of the sequence track."""
    mamba: bool = True
    """The state space is there; without it attention alone mixes the positions."""
    attention: bool = True
    """Attention is there; without it the state space alone mixes the positions."""
    mamba_every: int = 1
    """The state space stands in every so many blocks, the first among them; attention alone mixes in the others."""
    mamba_drop: float = 0.0
    """Share of the RNAs for which, block by block, the state space is left out of a training step: attention and the
    pair track then learn to do without."""
    mixing: str = "gate"
    """How attention and the state space stand to each other: side by side, joined by a learned "gate" or by their
    "sum", or one after the other, "attention-first" or "mamba-first"."""
    pair_every: int = 1
    """The pair track is updated after every so many blocks; 0: never, it stays as it was embedded."""
    pair_scans: int = 0
    """So many of the pair track's updates, the last ones before the last block, are followed by a state space over the
    pair map, scanned in the four phases of even and odd rows and columns."""
    coordinate_width: int = 192
    """Channels of the coordinate module."""
    coordinate_layers: int = 4
    coordinate_models: int = 5
    """Different 3D models predicted at once."""
    helices: bool = False
    """The helices that the sequence can form, with their stabilities, are an input."""
    pair_prior: bool = False
    """Pair probabilities of a thermodynamic model are an input, which may be missing."""
    probes: tuple[str, ...] = PROBES
    error_factors: tuple[float, ...] = ()
    """Factors of the predicted errors of reactivity, one a probe, fitted after training on RNAs that it did not see;
    none: 1."""
    tasks: tuple[str, ...] = TASKS
    """What the network has heads for."""

    def __post_init__(self) -> None:
        if not self.mamba and not self.attention:
            raise ValueError("model: expected mamba or attention, got neither")
        if self.mamba_every < 1 or (self.mamba_every > 1 and not self.attention):
            raise ValueError(
                f"model.mamba_every: expected at least 1, above 1 beside attention only, got {self.mamba_every}"
            )
        if not 0 <= self.mamba_drop < 1 or self.mamba_drop and not (self.mamba and self.attention):
            raise ValueError(
                f"model.mamba_drop: expected 0 or (beside attention) a share below 1, got {self.mamba_drop}"
            )
        if len(self.error_factors) not in (0, len(self.probes)):
            raise ValueError(
                f"model.error_factors: expected none or {len(self.probes)}, one a probe, got {len(self.error_factors)}"
            )
        if self.mixing not in MIXINGS:
            raise ValueError(f"model.mixing: expected one of {MIXINGS}, got {self.mixing!r}")
        for name in ("pair_every", "pair_scans"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name}: expected at least 0, got {getattr(self, name)}")
        if not self.tasks or set(self.tasks) - set(TASKS):
            raise ValueError(f"model.tasks: expected some of {TASKS}, got {self.tasks}")
