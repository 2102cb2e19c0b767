"""config.json of a checkpoint directory: ours, or Hugging Face's of a supported model type."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from griffinlm.checkpoint.errors import CheckpointError, reading
from griffinlm.checkpoint.huggingface_config import MODEL_TYPES, from_huggingface
from griffinlm.checkpoint.quantization_record import Quantization
from griffinlm.config import ConfigError, ModelConfig
from griffinlm.quantization import QuantizationError

CONFIG_FILE = "config.json"
ModelType = Literal["griffinlm", "recurrent_gemma", "gemma"]
OUR_MODEL_TYPE: ModelType = "griffinlm"
FORMAT_VERSION = 1
"""Raised when a config.json of ours changes its meaning; a reader refuses every other version."""
QUANTIZATION = "quantization"
"""Field of a config.json of ours whose weights are quantized."""
TRANSFORMERS = "transformers"
"""Field of a config.json of ours for what transformers stores beside the model: token ids, labels, its version."""

_FIELDS_OF_THE_FILE = ("model_type", "format_version", QUANTIZATION, TRANSFORMERS)


class ConfigFile(NamedTuple):
    """A config.json that has been read."""

    model_type: ModelType
    config: ModelConfig
    quantization: Quantization | None = None


def read_config_file(path: Path) -> ConfigFile:
    """The model that a config.json describes.

    Raises:
        CheckpointError: the file cannot be read, is not JSON, or describes no supported model.
    """
    values = read_json_table(path)
    try:
        return read_config_fields(values)
    except (ConfigError, QuantizationError) as error:
        raise CheckpointError(f"{path}: {error}", error.hint) from error
    except OverflowError as error:
        raise CheckpointError(f"{path}: a number in it is out of range") from error


def read_config_fields(values: dict[str, Any]) -> ConfigFile:
    """The model that the fields of a config.json describe.

    Raises:
        ConfigError, QuantizationError: they describe no supported model.
    """
    model_type = values.get("model_type")
    supported = (OUR_MODEL_TYPE, *MODEL_TYPES)
    if model_type not in supported:
        found = f"model_type is {model_type!r}" if "model_type" in values else "model_type is missing"
        raise ConfigError(f"{found}; supported are {', '.join(supported)}")
    if model_type == OUR_MODEL_TYPE:
        return _our_file(values)
    return ConfigFile(cast(ModelType, model_type), from_huggingface(values))


def read_json_table(path: Path) -> dict[str, Any]:
    """A JSON file whose outermost value is a table.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    with reading(path):
        values = json.loads(path.read_bytes())
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; it must be a table of fields")
    return values


def our_fields(config: ModelConfig, quantization: Quantization | None = None) -> dict[str, Any]:
    """The fields of a config.json of ours."""
    fields = {"model_type": OUR_MODEL_TYPE, "format_version": FORMAT_VERSION, **config.to_dict()}
    return fields if quantization is None else {**fields, QUANTIZATION: quantization.to_dict()}


def _our_file(values: dict[str, Any]) -> ConfigFile:
    version = values.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise ConfigError(f"format_version is {version!r}; this version of griffinlm reads {FORMAT_VERSION}")
    described = {k: v for k, v in values.items() if k not in _FIELDS_OF_THE_FILE}
    config = ModelConfig.from_dict(described)
    if QUANTIZATION not in values:
        return ConfigFile(OUR_MODEL_TYPE, config)
    quantization = Quantization.from_dict(values[QUANTIZATION])
    quantization.recipe.formats(config)  # refuses a recipe of another model
    return ConfigFile(OUR_MODEL_TYPE, config, quantization)
