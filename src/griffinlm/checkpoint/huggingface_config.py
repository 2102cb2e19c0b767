"""config.json of Hugging Face's RecurrentGemma and Gemma (transformers 4.40 to 5.x) <-> ModelConfig."""

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from griffinlm.config import MAX_SIZE, AttentionConfig, BlockKind, ConfigError, ModelConfig, RecurrentConfig
from griffinlm.presets import bfloat16_sqrt

NUM_PATTERN_REPEATS = 100
"""transformers repeats `block_types` this often and cuts the result to the number of layers."""

_KINDS: dict[str, BlockKind] = {"recurrent": "recurrent", "attention": "local_attention"}
_BLOCK_TYPES = {kind: name for name, kind in _KINDS.items()}
_UNUSED_WINDOW_TOKENS = 2048
"""transformers' own default, written for a model without attention."""

_MISSING = object()


class _Fields:
    """The fields of a config.json; every access names the field in its error."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def get(self, name: str, default: Any = _MISSING) -> Any:
        """The value; where it is absent or null, the default."""
        value = self.values.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            raise ConfigError(f"{name} is {'null' if name in self.values else 'missing'}; it must be given")
        return default

    def size(self, name: str, default: Any = _MISSING) -> int:
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIZE:
            raise ConfigError(f"{name} is {reprlib.repr(value)}; it must be a whole number of 1 or more")
        return value

    def number(self, name: str, default: Any = _MISSING) -> float:
        value = self.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise ConfigError(f"{name} is {reprlib.repr(value)}; it must be a positive number")
        return float(value)

    def require(self, name: str, allowed: tuple[Any, ...], default: Any) -> None:
        value = self.get(name, default)
        # 1 == True in Python, but not in a configuration.
        if not any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed):
            raise ConfigError(f"{name} is {reprlib.repr(value)}; supported here: {', '.join(map(repr, allowed))}")

    def rope(self, default_fraction: float) -> tuple[float, float]:
        """Wavelength and rotated fraction: top-level fields up to transformers 4.x, `rope_parameters` from 5.0."""
        nested: dict[str, Any] = {}
        for table in ("rope_scaling", "rope_parameters"):
            values = self.get(table, {})
            if not isinstance(values, Mapping):
                raise ConfigError(f"{table} is {reprlib.repr(values)}; it must be a table of fields")
            kind = values.get("rope_type", values.get("type", "default"))
            if kind != "default":
                raise ConfigError(f"{table}.rope_type is {reprlib.repr(kind)}; supported here: 'default'")
            nested |= {name: value for name, value in values.items() if value is not None}
        for name in ("rope_theta", "partial_rotary_factor"):
            outside = self.get(name, None)
            if outside is None:
                continue
            inside = nested.setdefault(name, outside)
            if outside != inside:
                shown = f"{reprlib.repr(outside)}, but {reprlib.repr(inside)} in rope_parameters"
                raise ConfigError(f"{name} is {shown}; they must agree")
        rope = _Fields(nested)
        return rope.number("rope_theta"), rope.number("partial_rotary_factor", default_fraction)


def from_huggingface(values: Mapping[str, Any]) -> ModelConfig:
    """The model that transformers would build from a config.json of model_type recurrent_gemma or gemma.

    Raises:
        ConfigError: a field is missing, out of range, or asks for what this package does not compute.
    """
    fields = _Fields(values)
    fields.require("quantization_config", (None,), None)
    fields.require("attention_bias", (False,), False)
    fields.require("tie_word_embeddings", (True,), True)
    return _READERS[values["model_type"]](fields)


def _recurrent_gemma(fields: _Fields) -> ModelConfig:
    fields.require("hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    # transformers ignores this field and always scales.
    fields.require("embeddings_scale_by_sqrt_dim", (True,), True)
    width, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    num_layers, pattern = fields.size("num_hidden_layers"), _block_pattern(fields)
    kinds = set(pattern[:num_layers])
    both_branches = fields.size("intermediate_size")
    if both_branches % 2:
        raise ConfigError(f"intermediate_size is {both_branches}; it must be even, as it counts both branches")
    attention = None
    if "local_attention" in kinds:
        # transformers takes a missing number of key heads as one for each query head.
        fields.require("num_key_value_heads", (1,), num_heads)
        if width % num_heads:
            raise ConfigError(f"hidden_size is {width}; it must be a multiple of num_attention_heads ({num_heads})")
        fields.require("head_dim", (width // num_heads,), width // num_heads)
        wavelength, fraction = fields.rope(default_fraction=0.5)
        attention = AttentionConfig(
            num_heads=num_heads,
            head_size=width // num_heads,
            window_tokens=fields.size("attention_window_size"),
            rope_fraction=fraction,
            rope_wavelength=wavelength,
        )
    recurrent = None
    if "recurrent" in kinds:
        recurrent = RecurrentConfig(
            width=fields.size("lru_width", width),
            num_gate_blocks=num_heads,
            num_conv_taps=fields.size("conv1d_width"),
        )
    return ModelConfig(
        vocab_size=fields.size("vocab_size"),
        width=width,
        num_layers=num_layers,
        block_pattern=pattern,
        mlp_hidden=both_branches // 2,
        recurrent=recurrent,
        attention=attention,
        embedding_scale=bfloat16_sqrt(width),
        logit_soft_cap=fields.number("logits_soft_cap"),
        norm_epsilon=fields.number("rms_norm_eps"),
    )


def _block_pattern(fields: _Fields) -> tuple[BlockKind, ...]:
    # The 2B's file has the name with the underscore, the 9B's the other.
    name = "_block_types" if "_block_types" in fields.values else "block_types"
    types = fields.get(name)
    if "_block_types" in fields.values and types != fields.get("block_types", types):
        raise ConfigError("_block_types and block_types differ; they must agree")
    if not isinstance(types, list) or not types or any(not isinstance(t, str) or t not in _KINDS for t in types):
        raise ConfigError(f"{name} is {reprlib.repr(types)}; it must be a list of {' and '.join(map(repr, _KINDS))}")
    return tuple(_KINDS[t] for t in types)


def _gemma(fields: _Fields) -> ModelConfig:
    # transformers takes 'gelu' in a Gemma file for the tanh approximation that the model was trained with.
    for name in ("hidden_act", "hidden_activation"):
        fields.require(name, ("gelu_pytorch_tanh", "gelu"), "gelu_pytorch_tanh")
    fields.require("num_key_value_heads", (1,), "missing")
    fields.require("use_bidirectional_attention", (False,), False)
    width = fields.size("hidden_size")
    wavelength, fraction = fields.rope(default_fraction=1.0)
    if fraction != 1.0:
        raise ConfigError(f"partial_rotary_factor is {fraction}; supported here: 1.0, Gemma rotates the whole head")
    return ModelConfig(
        vocab_size=fields.size("vocab_size"),
        width=width,
        num_layers=fields.size("num_hidden_layers"),
        block_pattern=("global_attention",),
        mlp_hidden=fields.size("intermediate_size"),
        attention=AttentionConfig(
            num_heads=fields.size("num_attention_heads"),
            head_size=fields.size("head_dim"),
            rope_fraction=1.0,
            rope_wavelength=wavelength,
        ),
        use_bias=False,
        embedding_scale=math.sqrt(width),
        norm_epsilon=fields.number("rms_norm_eps"),
    )


_READERS: dict[str, Callable[[_Fields], ModelConfig]] = {"recurrent_gemma": _recurrent_gemma, "gemma": _gemma}
MODEL_TYPES = tuple(_READERS)


def to_huggingface(config: ModelConfig) -> dict[str, Any]:
    """The fields of a config.json from which transformers 4.40 to 5.x build this model.

    `attention_window_size` is W, as in the published files. The range of initial decays is not stored: it matters to
    a new model alone.

    Raises:
        ConfigError: transformers has no such model; the message names what it cannot express.
    """
    _refuse_unless(config.recursion is None, "its layers share parameters")
    if set(config.block_kinds) == {"global_attention"}:
        return _write_gemma(config)
    return _write_recurrent_gemma(config)


def _refuse_unless(is_expressible: bool, what: str) -> None:
    if not is_expressible:
        raise ConfigError(f"the Hugging Face format cannot express this model: {what}")


def _write_recurrent_gemma(config: ModelConfig) -> dict[str, Any]:
    attention, recurrent, scale = config.attention, config.recurrent, bfloat16_sqrt(config.width)
    _refuse_unless("global_attention" not in config.block_kinds, "it mixes global_attention with other blocks")
    _refuse_unless(config.use_bias, "use_bias is false, RecurrentGemma has biases")
    _refuse_unless(config.logit_soft_cap is not None, "logit_soft_cap is off, RecurrentGemma always has one")
    _refuse_unless(
        config.embedding_scale == scale, f"embedding_scale is {config.embedding_scale}, RecurrentGemma has {scale}"
    )
    num_repeats = -(-config.num_layers // len(config.block_pattern))
    _refuse_unless(
        num_repeats <= NUM_PATTERN_REPEATS,
        f"block_pattern is repeated {num_repeats} times, transformers repeats it at most {NUM_PATTERN_REPEATS} times",
    )
    num_heads = attention.num_heads if attention else recurrent.num_gate_blocks if recurrent else 0
    _refuse_unless(
        recurrent is None or recurrent.num_gate_blocks == num_heads,
        f"recurrent.num_gate_blocks differs from attention.num_heads ({num_heads}), RecurrentGemma has one number",
    )
    if attention is not None:
        _refuse_unless(
            attention.num_heads * attention.head_size == config.width,
            f"{attention.num_heads} heads of {attention.head_size} are not the width {config.width}",
        )
        _refuse_unless(attention.rope_fraction > 0.0, "attention.rope_fraction is 0")
    return {
        "architectures": ["RecurrentGemmaForCausalLM"],
        "model_type": "recurrent_gemma",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "block_types": [_BLOCK_TYPES[kind] for kind in config.block_pattern],
        "intermediate_size": 2 * config.mlp_hidden,
        "num_attention_heads": num_heads,
        "num_key_value_heads": 1,
        "head_dim": config.width // num_heads,
        "lru_width": recurrent.width if recurrent else config.width,
        "conv1d_width": recurrent.num_conv_taps if recurrent else 4,
        "attention_window_size": (attention and attention.window_tokens) or _UNUSED_WINDOW_TOKENS,
        "embeddings_scale_by_sqrt_dim": True,
        "logits_soft_cap": config.logit_soft_cap,
        "hidden_activation": "gelu_pytorch_tanh",
        **_shared_fields(config),
    }


def _write_gemma(config: ModelConfig) -> dict[str, Any]:
    attention, scale = config.attention, math.sqrt(config.width)
    assert attention is not None
    _refuse_unless(not config.use_bias, "use_bias is true, Gemma has no biases")
    _refuse_unless(config.logit_soft_cap is None, f"logit_soft_cap is {config.logit_soft_cap}, Gemma has none")
    _refuse_unless(config.embedding_scale == scale, f"embedding_scale is {config.embedding_scale}, Gemma has {scale}")
    _refuse_unless(
        attention.rope_fraction == 1.0, f"attention.rope_fraction is {attention.rope_fraction}, Gemma has 1.0"
    )
    return {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.mlp_hidden,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": 1,
        "head_dim": attention.head_size,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        **_shared_fields(config),
    }


def _shared_fields(config: ModelConfig) -> dict[str, Any]:
    wavelength = config.attention.rope_wavelength if config.attention else 10_000.0
    fraction = config.attention.rope_fraction if config.attention else 0.5
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": wavelength,
        "partial_rotary_factor": fraction,
        "rope_parameters": {"rope_type": "default", "rope_theta": wavelength, "partial_rotary_factor": fraction},
        "tie_word_embeddings": True,
    }
