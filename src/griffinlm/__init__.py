"""griffinlm: language models whose memory does not grow.

model = griffinlm.load("eyas")
print(model.generate("Once upon a time", max_tokens=100).text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from griffinlm.config import ModelConfig as ModelConfig
    from griffinlm.errors import GriffinError as GriffinError
    from griffinlm.generation.completion import Generation as Generation
    from griffinlm.generation.parameters import SamplingParameters as SamplingParameters
    from griffinlm.language_model import LanguageModel as LanguageModel
    from griffinlm.loading import load as load
    from griffinlm.state import State as State
    from griffinlm.text import Tokenizer as Tokenizer

__version__ = "0.1.0"

_HOMES = {
    "ModelConfig": "griffinlm.config",
    "GriffinError": "griffinlm.errors",
    "Generation": "griffinlm.generation.completion",
    "SamplingParameters": "griffinlm.generation.parameters",
    "LanguageModel": "griffinlm.language_model",
    "load": "griffinlm.loading",
    "State": "griffinlm.state",
    "Tokenizer": "griffinlm.text",
}
"""Public names and their modules, imported when first used: `import griffinlm` costs nothing."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'griffinlm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
