"""GriffinConfig: a ModelConfig in the form that transformers asks for, and its config.json."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import GemmaConfig, GenerationConfig, PreTrainedConfig

from griffinlm.checkpoint.config_file import OUR_MODEL_TYPE, QUANTIZATION, TRANSFORMERS, our_fields, read_config_fields
from griffinlm.checkpoint.huggingface_config import to_huggingface
from griffinlm.config import ConfigError, ModelConfig

_DEFAULTS = ModelConfig.preset("recurrentgemma-2b").to_dict()
_KEPT_FROM_PUBLISHED = (
    "architectures",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "use_cache",
    "transformers_version",
    "attn_implementation",
    "name_or_path",
)
"""Fields of a published config.json that say something else than what the model computes."""
_ALLOWED_ARGUMENTS = {
    "_attn_implementation_internal",
    "_experts_implementation_internal",
    "_name_or_path",
    "attn_implementation",
    "experts_implementation",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "torch_dtype",
    *GenerationConfig._get_default_generation_params(),
}
"""Arguments of a configuration that are not fields of it."""


def file_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields of a config.json that describe a model: in the published form that can express it, else in ours."""
    try:
        return to_huggingface(config)
    except ConfigError:
        return our_fields(config)


class GriffinConfig(PreTrainedConfig):
    """The fields of `ModelConfig` as transformers' trainers and tools read them, under its names for them too.

    `hidden_size`, `num_hidden_layers`, `intermediate_size` (of one branch) and `final_logit_softcapping` are other
    names of `width`, `num_layers`, `mlp_hidden` and `logit_soft_cap`. Fields that are not given are RecurrentGemma
    2B's. A config.json is written in the published form of RecurrentGemma or Gemma where that can express the model,
    else in ours; `from_dict` reads all three.

    Raises:
        ConfigError: a field is unknown, or no model can have it.
    """

    model_type: ClassVar[str] = OUR_MODEL_TYPE
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "width",
        "num_hidden_layers": "num_layers",
        "intermediate_size": "mlp_hidden",
        "final_logit_softcapping": "logit_soft_cap",
    }

    vocab_size: int = _DEFAULTS["vocab_size"]
    width: int = _DEFAULTS["width"]
    num_layers: int = _DEFAULTS["num_layers"]
    block_pattern: list[str] | tuple[str, ...] = tuple(_DEFAULTS["block_pattern"])
    mlp_hidden: int = _DEFAULTS["mlp_hidden"]
    recurrent: dict[str, Any] | None = dataclasses.field(default_factory=lambda: dict(_DEFAULTS["recurrent"]))
    attention: dict[str, Any] | None = dataclasses.field(default_factory=lambda: dict(_DEFAULTS["attention"]))
    use_bias: bool = _DEFAULTS["use_bias"]
    embedding_scale: float = _DEFAULTS["embedding_scale"]
    logit_soft_cap: float | None = _DEFAULTS["logit_soft_cap"]
    norm_epsilon: float = _DEFAULTS["norm_epsilon"]
    tie_word_embeddings: bool = True
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        names = {f.name for f in dataclasses.fields(self)}
        unknown = kwargs.keys() - _ALLOWED_ARGUMENTS - self.attribute_map.keys()
        if unknown:
            raise ConfigError(f"unknown fields {', '.join(sorted(unknown))}; allowed are {', '.join(sorted(names))}")
        super().__post_init__(**kwargs)
        self.block_pattern = list(self.block_pattern)
        self.model_config  # noqa: B018  (refuses what no model can have)

    @property
    def model_config(self) -> ModelConfig:
        """What the model computes.

        Raises:
            ConfigError: the fields have been changed to something that no model can have.
        """
        if not self.tie_word_embeddings:
            raise ConfigError("tie_word_embeddings is false; the head is the embedding in every model of this family")
        return ModelConfig.from_dict({name: getattr(self, name) for name in _DEFAULTS})

    @classmethod
    def from_model_config(cls, config: ModelConfig, **kwargs: Any) -> "GriffinConfig":
        """The form of a model for transformers; `kwargs` are the other fields, such as token ids and labels."""
        return cls(**_fields(config), **kwargs)

    @property
    def num_attention_heads(self) -> int:
        """Query heads, or blocks of the gates where there is no attention."""
        return self.attention["num_heads"] if self.attention else (self.recurrent or {})["num_gate_blocks"]

    def to_dict(self) -> dict[str, Any]:
        """Every field, and those that other programs look for under transformers' names."""
        aliases = {name: getattr(self, name) for name in (*self.attribute_map, "num_attention_heads")}
        return {**super().to_dict(), **aliases}

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields of config.json: a published form where it can express the model, else ours."""
        aliases = (*self.attribute_map, "num_attention_heads", "model_type")
        rest = {k: v for k, v in super().to_diff_dict().items() if k not in _DEFAULTS and k not in aliases}
        fields = file_fields(self.model_config)
        if fields["model_type"] == OUR_MODEL_TYPE:
            return {**fields, TRANSFORMERS: rest}
        if rest.get("architectures") in (None, ["GriffinForCausalLM"], ["GriffinModel"]):
            rest["architectures"] = fields["architectures"]
        return {**fields, **rest}

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Any:
        """The configuration of a directory or repository, of any model type that `from_dict` reads."""
        values, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        return cls.from_dict(values, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """The configuration that a config.json of ours, RecurrentGemma's or Gemma's describes, or that `to_dict` gave.

        Raises:
            ConfigError: it describes no supported model, or one whose weights are quantized.
        """
        values = dict(config_dict)
        if "width" in values and "format_version" not in values:
            values = {k: v for k, v in values.items() if k not in ("num_attention_heads", "model_type")}
            return super().from_dict(values, **kwargs)
        given = {name: values[name] for name in _KEPT_FROM_PUBLISHED if name in values}
        if values.get("model_type") == OUR_MODEL_TYPE:
            if QUANTIZATION in values:
                raise ConfigError(
                    "the weights are quantized; transformers' classes train and run float weights",
                    hint="load the model that was quantized, or run this one with griffinlm.load()",
                )
            given |= values.pop(TRANSFORMERS, {})
            values = {name: value for name, value in values.items() if name not in _KEPT_FROM_PUBLISHED}
        config = read_config_fields(values).config
        return super().from_dict({**_fields(config), **given}, **kwargs)


def _fields(config: ModelConfig) -> dict[str, Any]:
    if config.recursion is not None:
        raise ConfigError(
            "recursion is given; transformers' classes have no layers that share parameters",
            hint="train it with griffin train pretrain, run it with griffinlm.load()",
        )
    return config.to_dict()


class RecurrentGemmaFile(GriffinConfig):
    """What `AutoConfig` finds for a config.json of model_type recurrent_gemma: it reads it as a `GriffinConfig`."""

    model_type: ClassVar[str] = "recurrent_gemma"

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        return GriffinConfig.from_dict(config_dict, **kwargs)


class GemmaFile(GriffinConfig):
    """What `AutoConfig` finds for model_type gemma: a `GriffinConfig` where that fits, else transformers' own."""

    model_type: ClassVar[str] = "gemma"

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        try:
            read_config_fields(dict(config_dict))
        except ConfigError:
            return GemmaConfig.from_dict(dict(config_dict), **kwargs)
        return GriffinConfig.from_dict(config_dict, **kwargs)
