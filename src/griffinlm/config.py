"""ModelConfig: what a model is, as a value. One class holds RecurrentGemma, Griffin, Hawk and Gemma."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from griffinlm.errors import GriffinError, shown

BlockKind = Literal["recurrent", "local_attention", "global_attention"]
DecayRange = Literal["decay", "decay_to_the_eighth"]
Tie = Literal["matrices", "all"]

RG_LRU_EXPONENT = 8.0
"""c of the RG-LRU: log a_t = -c * r_t * softplus(a_param) (Griffin paper, equation 6)."""

MAX_SIZE, MAX_LAYERS = 2**31, 10_000
MIN_NUMBER, MAX_NUMBER = 1e-30, 1e30
"""Bounds far outside every real model: a damaged configuration is refused before anything is computed from it."""


EMBEDDING = "embedding.weight"
"""The name of the embedding, which is the head as well."""
LOW_RANK = ".low_rank"
"""Follows the name of a linear or gate in those of the term that a layer adds to a shared matrix."""


class ConfigError(GriffinError):
    """A model configuration that no model can have; the message names the field, the value and what is allowed."""


@dataclass(frozen=True)
class RecurrentConfig:
    """Sizes of the recurrent block: two linears up, short convolution, RG-LRU, one linear down."""

    width: int
    """L, channels of the recurrence (`lru_width`)."""
    num_gate_blocks: int
    """Blocks of the block-diagonal gates; each is [width / num_gate_blocks] squared."""
    num_conv_taps: int = 4
    """Taps of the causal depthwise convolution, the current token included."""
    initial_decay_range: DecayRange = "decay"
    """Which quantity starts uniform on the ring [0.9, 0.999]: the decay a (DeepMind's code) or a^8 (the paper)."""

    def __post_init__(self) -> None:
        _check_values(self, "recurrent.")
        if self.num_conv_taps < 2:
            raise ConfigError(f"recurrent.num_conv_taps is {self.num_conv_taps}; it must be at least 2")
        if self.width % self.num_gate_blocks:
            raise ConfigError(
                f"recurrent.width is {self.width}; it must be a multiple of num_gate_blocks ({self.num_gate_blocks})"
            )
        if self.initial_decay_range not in get_args(DecayRange):
            raise ConfigError(
                f"recurrent.initial_decay_range is {shown(self.initial_decay_range)}; "
                f"allowed are {', '.join(get_args(DecayRange))}"
            )


@dataclass(frozen=True)
class AttentionConfig:
    """Sizes of multi-query attention: `num_heads` query heads share one key and value head."""

    num_heads: int
    head_size: int
    window_tokens: int | None = None
    """W, the number of tokens seen *before* the current one in local attention; None where attention is global."""
    rope_fraction: float = 0.5
    """Share of each head that is rotated by position (RecurrentGemma: the first half; Gemma: all)."""
    rope_wavelength: float = 10_000.0

    def __post_init__(self) -> None:
        _check_values(self, "attention.", may_be_zero=("rope_fraction",))
        if self.rope_fraction > 1.0 or self.rotated_size % 2:
            raise ConfigError(
                f"attention.rope_fraction is {self.rope_fraction} of a head of {self.head_size}; "
                "it must lie in 0..1 and rotate an even number of channels"
            )

    def window_of(self, kind: BlockKind) -> int | None:
        """`window_tokens` of a block of local attention; None where it sees the whole document."""
        return self.window_tokens if kind == "local_attention" else None

    @property
    def rotated_size(self) -> int:
        """Channels at the front of each head that carry the position."""
        return int(self.head_size * self.rope_fraction)


@dataclass(frozen=True)
class RecursionConfig:
    """Layers that share parameters: layer l computes with those of layer l mod K, for l below num_loops * K.

    K is `ModelConfig.num_shared_layers`. The layers behind the last loop share nothing.
    """

    num_loops: int
    """R, how often a pass goes through the K layers."""
    tie: Tie = "matrices"
    """What they share: the matrices of linears and gates, or all parameters. Norms, biases, convolutions and decays
    are then a layer's own, or shared too."""
    rank: int = 0
    """r of the term up (down x) by which each layer's product with a shared matrix differs; 0 is none, and a rank above
    that of the matrix is cut to it."""
    skips: bool = False
    """Whether the loops behind the one where a token leaves never read it: each advances its states by the tokens that
    reach it and counts the positions of those only, as if the others were not there."""

    def __post_init__(self) -> None:
        _check_values(self, "recursion.", may_be_zero=("rank",))
        if self.tie not in get_args(Tie):
            raise ConfigError(f"recursion.tie is {shown(self.tie)}; allowed are {', '.join(get_args(Tie))}")


@dataclass(frozen=True)
class Step:
    """One block of the forward pass, as both engines walk it."""

    kind: BlockKind
    weights: str
    """Prefix of the block's places, e.g. `layers.7`; `ModelConfig.parameter_at` says which parameter stands at one."""
    depth: int
    """Which block of the pass this is, from 0."""
    state: str
    """Prefix of the block's state arrays, which no other block shares."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides what a model computes. Frozen; equal configurations compute equal functions."""

    vocab_size: int
    width: int
    """D, channels of the residual stream."""
    num_layers: int
    block_pattern: tuple[BlockKind, ...]
    """Kinds of the temporal blocks, repeated and cut to `num_layers`."""
    mlp_hidden: int
    """X, channels of *one* branch of the gated MLP (RecurrentGemma's `intermediate_size` elsewhere counts both)."""
    recurrent: RecurrentConfig | None = None
    attention: AttentionConfig | None = None
    use_bias: bool = True
    """Bias on the MLP's linears and on attention's output; the recurrent block always has them."""
    embedding_scale: float = 1.0
    """Factor on the input embedding: sqrt(width) rounded to bfloat16 for RecurrentGemma, 1 for the paper's models."""
    logit_soft_cap: float | None = None
    """c of logits = c * tanh(logits / c); None leaves the logits as they are."""
    norm_epsilon: float = 1e-6
    recursion: RecursionConfig | None = None
    """Which layers share parameters; None where every layer has its own."""

    def __post_init__(self) -> None:
        _check_values(self, "")
        if not self.block_pattern:
            raise ConfigError("block_pattern is empty; it must name at least one block kind")
        for kind in self.block_pattern:
            if kind not in get_args(BlockKind):
                raise ConfigError(f"block_pattern holds {shown(kind)}; allowed are {', '.join(get_args(BlockKind))}")
        kinds = set(self.block_kinds)
        if ("recurrent" in kinds) != (self.recurrent is not None):
            raise ConfigError("recurrent sizes must be given exactly where the pattern has recurrent blocks")
        if bool(kinds & {"local_attention", "global_attention"}) != (self.attention is not None):
            raise ConfigError("attention sizes must be given exactly where the pattern has attention blocks")
        if self.attention is not None and ("local_attention" in kinds) != (self.attention.window_tokens is not None):
            raise ConfigError("attention.window_tokens must be given exactly where the pattern has local_attention")
        if self.recursion is not None and not self.num_shared_layers:
            most, period = self.num_layers // len(self.block_pattern), len(self.block_pattern)
            raise ConfigError(
                f"recursion.num_loops is {self.recursion.num_loops}; {self.num_layers} layers in a pattern of {period} "
                f"have room for {most}"
            )

    @property
    def block_kinds(self) -> tuple[BlockKind, ...]:
        """Kind of every layer: the pattern repeated and cut to `num_layers`."""
        repeats = -(-self.num_layers // len(self.block_pattern))
        return (self.block_pattern * repeats)[: self.num_layers]

    @property
    def needs_capacity(self) -> bool:
        """Whether the state grows with the sequence (global attention) and so must be given a capacity."""
        return "global_attention" in self.block_kinds

    @property
    def num_loops(self) -> int:
        """R, how often a pass goes through the layers that share parameters; 1 without recursion."""
        return 1 if self.recursion is None else self.recursion.num_loops

    @property
    def num_shared_layers(self) -> int:
        """K, the most layers of whole patterns of which all loops together have room; 0 without recursion."""
        if self.recursion is None:
            return 0
        period = len(self.block_pattern)
        return self.num_layers // (period * self.num_loops) * period

    @property
    def num_looped_layers(self) -> int:
        """R K, the first layers of the pass; those behind them share nothing."""
        return self.num_loops * self.num_shared_layers

    @property
    def skips(self) -> bool:
        """Whether tokens that leave the loops early are never read by the deeper ones; `RecursionConfig.skips`."""
        return self.recursion is not None and self.recursion.skips and self.num_loops > 1

    def loop_of(self, layer: int) -> int:
        """Which loop a layer belongs to, from 0: those behind the loops to the last one, all to 0 without recursion."""
        if self.recursion is None:
            return 0
        return min(layer // self.num_shared_layers, self.num_loops - 1)

    def plan(self) -> tuple[Step, ...]:
        """The blocks of one forward pass in order."""
        return tuple(
            Step(kind=kind, weights=f"layers.{i}", depth=i, state=f"layers.{i}")
            for i, kind in enumerate(self.block_kinds)
        )

    def parameter_at(self, place: str) -> str:
        """The name of the parameter that stands at a place of `place_shapes`: the place itself, or a shared one."""
        if self.recursion is None or not place.startswith("layers."):
            return place
        _, number, name = place.split(".", 2)
        is_shared = is_matrix(name) if self.recursion.tie == "matrices" else LOW_RANK not in name
        if not is_shared or int(number) >= self.num_looped_layers:
            return place
        return f"layers.{int(number) % self.num_shared_layers}.{name}"

    def place_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of everything that the blocks compute with, as if no layer shared a parameter with another."""
        D = self.width
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, D)}
        for step in self.plan():
            block = self._recurrent_shapes() if step.kind == "recurrent" else self._attention_shapes()
            block = {"temporal_norm.scale": (D,), **block, "mlp_norm.scale": (D,), **self._mlp_shapes()}
            if step.depth < self.num_looped_layers:
                block |= self._low_rank_shapes(block)
            shapes.update({f"{step.weights}.{name}": shape for name, shape in block.items()})
        shapes["final_norm.scale"] = (D,)
        return shapes

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter; linear weights are [out, in]. The head is the embedding, stored once.

        A parameter that layers share is stored once, under the name of the first of them.
        """
        return {place: shape for place, shape in self.place_shapes().items() if self.parameter_at(place) == place}

    def _low_rank_shapes(self, block: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """down [r, in] and up [out, r] of every matrix of a block; of a gate [h, r, b] and [h, b, r]."""
        assert self.recursion is not None
        shapes: dict[str, tuple[int, ...]] = {}
        for name in filter(is_matrix, block if self.recursion.rank else ()):
            *blocks, out, into = block[name]
            rank, term = min(self.recursion.rank, out, into), name.removesuffix(".weight") + LOW_RANK
            shapes |= {f"{term}.down": (*blocks, rank, into), f"{term}.up": (*blocks, out, rank)}
        return shapes

    def _recurrent_shapes(self) -> dict[str, tuple[int, ...]]:
        assert self.recurrent is not None
        D, L, h = self.width, self.recurrent.width, self.recurrent.num_gate_blocks
        b = L // h
        return {
            **_linear_shapes("recurrent.linear_y", L, D, bias=True),
            **_linear_shapes("recurrent.linear_x", L, D, bias=True),
            "recurrent.conv.weight": (self.recurrent.num_conv_taps, L),
            "recurrent.conv.bias": (L,),
            "recurrent.rg_lru.input_gate.weight": (h, b, b),
            "recurrent.rg_lru.input_gate.bias": (h, b),
            "recurrent.rg_lru.recurrence_gate.weight": (h, b, b),
            "recurrent.rg_lru.recurrence_gate.bias": (h, b),
            "recurrent.rg_lru.a_param": (L,),
            **_linear_shapes("recurrent.linear_out", D, L, bias=True),
        }

    def _attention_shapes(self) -> dict[str, tuple[int, ...]]:
        assert self.attention is not None
        D, k = self.width, self.attention.head_size
        inner = self.attention.num_heads * k
        return {
            **_linear_shapes("attention.query", inner, D, bias=False),
            **_linear_shapes("attention.key", k, D, bias=False),
            **_linear_shapes("attention.value", k, D, bias=False),
            **_linear_shapes("attention.output", D, inner, bias=self.use_bias),
        }

    def _mlp_shapes(self) -> dict[str, tuple[int, ...]]:
        D, X = self.width, self.mlp_hidden
        return {
            **_linear_shapes("mlp.gate", X, D, bias=self.use_bias),
            **_linear_shapes("mlp.up", X, D, bias=self.use_bias),
            **_linear_shapes("mlp.down", D, X, bias=self.use_bias),
        }

    @property
    def num_parameters(self) -> int:
        """Parameters, the tied embedding counted once."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    @property
    def num_embedding_parameters(self) -> int:
        return self.vocab_size * self.width

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` gives back an equal configuration.

        `recursion` is there only where layers share parameters, so that digests of other models do not depend on it.
        """
        values = dataclasses.asdict(self)
        values["block_pattern"] = list(self.block_pattern)
        if self.recursion is None:
            del values["recursion"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """The configuration that `to_dict` wrote.

        Raises:
            ConfigError: a field is unknown, missing, of the wrong type, or out of range.
        """
        fields = _checked_names(cls, "", values)
        if isinstance(fields["block_pattern"], list):
            fields["block_pattern"] = tuple(fields["block_pattern"])
        parts = {"recurrent": RecurrentConfig, "attention": AttentionConfig, "recursion": RecursionConfig}
        for name, part in parts.items():
            if fields.get(name) is not None:
                fields[name] = part(**_checked_names(part, f"{name}.", fields[name]))
        return cls(**fields)

    @classmethod
    def preset(cls, name: str) -> "ModelConfig":
        """A published or test configuration by name; `griffinlm.presets.PRESETS` lists them.

        Raises:
            ConfigError: no preset has that name.
        """
        from griffinlm.presets import PRESETS

        try:
            return PRESETS[name]
        except KeyError:
            raise ConfigError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}") from None


def is_matrix(name: str) -> bool:
    """Whether a parameter is a matrix: the weight of a linear or of a gate, or the embedding."""
    return name.endswith(".weight") and not name.endswith(".conv.weight")


def _linear_shapes(name: str, out: int, into: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (out, into)}
    return {**shapes, f"{name}.bias": (out,)} if bias else shapes


_KINDS_OF_VALUE: dict[Any, tuple[str, tuple[type, ...]]] = {
    int: ("an integer", (int,)),
    float: ("a number", (int, float)),
    bool: ("true or false", (bool,)),
    DecayRange: ("a name", (str,)),
    Tie: ("a name", (str,)),
    tuple[BlockKind, ...]: ("a list of block kinds", (tuple,)),
    RecurrentConfig | None: ("recurrent sizes or null", (RecurrentConfig, type(None))),
    AttentionConfig | None: ("attention sizes or null", (AttentionConfig, type(None))),
    RecursionConfig | None: ("a recursion or null", (RecursionConfig, type(None))),
    int | None: ("an integer or null", (int, type(None))),
    float | None: ("a number or null", (int, float, type(None))),
}
"""What may stand in a field of each annotated type: in words, and as classes."""


def _check_values(config: Any, prefix: str, may_be_zero: tuple[str, ...] = ()) -> None:
    """Every field of the dataclass `config` has its annotated type; integers are sizes, numbers positive and finite."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        words, allowed = _KINDS_OF_VALUE[field.type]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise ConfigError(f"{name} is {shown(value)}; it must be {words}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if float in allowed:
            if not MIN_NUMBER <= value <= MAX_NUMBER and not (value == 0 and field.name in may_be_zero):
                raise ConfigError(f"{name} is {shown(value)}; it must be a positive number up to {MAX_NUMBER:g}")
        else:
            largest = MAX_LAYERS if field.name == "num_layers" else MAX_SIZE
            smallest = 0 if field.name in may_be_zero else 1
            if not smallest <= value <= largest:
                raise ConfigError(f"{name} is {shown(value)}; it must lie in {smallest}..{largest}")


def _checked_names(cls: type, prefix: str, values: object) -> dict[str, Any]:
    """`values` as keyword arguments of the dataclass `cls`, or a ConfigError naming all unknown and missing fields."""
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{prefix.rstrip('.') or 'the configuration'} is {shown(values)}; it must be a table of fields"
        )
    fields = {field.name: field for field in dataclasses.fields(cls)}
    faults = [f"unknown {prefix}{shown(name)}" for name in values if name not in fields]
    faults += [
        f"missing {prefix}{n}" for n, f in fields.items() if n not in values and f.default is dataclasses.MISSING
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ConfigError(
            f"the configuration has faults: {', '.join(faults[:5])}{more}; allowed are {', '.join(fields)}"
        )
    return dict(values)
