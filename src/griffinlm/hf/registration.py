"""What other libraries look up by a model's type."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from griffinlm.hf.config import GemmaFile, GriffinConfig, RecurrentGemmaFile
from griffinlm.hf.heads import GriffinForCausalLM, GriffinForSequenceClassification
from griffinlm.hf.model import GriffinModel
from griffinlm.hf.weights import transforms

LINEAR_NAMES = (
    "linear_x",
    "linear_y",
    "linear_out",
    "query",
    "key",
    "value",
    "output",
    "gate",
    "up",
    "down",
)
"""Every linear of a block, as LoRA's target modules. The gates of the RG-LRU are no linears: `target_parameters`."""


def register() -> None:
    """Tells transformers, and PEFT where it is installed, of this package's models."""
    for config in (GriffinConfig, RecurrentGemmaFile, GemmaFile):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(GriffinConfig, GriffinModel, exist_ok=True)
    AutoModelForCausalLM.register(GriffinConfig, GriffinForCausalLM, exist_ok=True)
    # Labels are smoothed by the Trainer itself, one token on only for the models named here.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[GriffinConfig.model_type] = GriffinForCausalLM.__name__
    AutoModelForSequenceClassification.register(GriffinConfig, GriffinForSequenceClassification, exist_ok=True)
    register_checkpoint_conversion_mapping(GriffinConfig.model_type, transforms(), overwrite=True)
    try:
        from peft.utils import constants
    except ModuleNotFoundError:
        return
    constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[GriffinConfig.model_type] = list(LINEAR_NAMES)
