"""The transformers face: models, configuration and cache that its trainers, generators and adapters work with.

Importing it makes the Auto classes read directories of ours, RecurrentGemma's, and Gemma's where one head of keys
serves all queries; and PEFT's LoRA find every linear of a model by itself.
"""

from griffinlm.hf.cache import GriffinCache as GriffinCache
from griffinlm.hf.config import GriffinConfig as GriffinConfig
from griffinlm.hf.heads import GriffinForCausalLM as GriffinForCausalLM
from griffinlm.hf.heads import GriffinForSequenceClassification as GriffinForSequenceClassification
from griffinlm.hf.model import GriffinModel as GriffinModel
from griffinlm.hf.registration import register

register()
