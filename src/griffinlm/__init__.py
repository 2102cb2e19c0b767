"""griffinlm: language models whose memory does not grow.

    model = griffinlm.load("eyas")
    print(model.generate("Once upon a time", max_tokens=100).text)
"""

from griffinlm.config import ModelConfig as ModelConfig
from griffinlm.errors import GriffinError as GriffinError
from griffinlm.generation.completion import Generation as Generation
from griffinlm.generation.sampling import SamplingParameters as SamplingParameters
from griffinlm.language_model import LanguageModel as LanguageModel
from griffinlm.language_model import load as load
from griffinlm.state import State as State
from griffinlm.text import Tokenizer as Tokenizer

__version__ = "0.1.0"
