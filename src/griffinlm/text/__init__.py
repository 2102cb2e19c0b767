"""Text and conversations to token ids and back."""

from griffinlm.text.chat import GEMMA_TEMPLATE as GEMMA_TEMPLATE
from griffinlm.text.errors import TokenizerError as TokenizerError
from griffinlm.text.stop import StopStringError as StopStringError
from griffinlm.text.stop import StopStrings as StopStrings
from griffinlm.text.stream import TextStream as TextStream
from griffinlm.text.tokenizer import Tokenizer as Tokenizer
