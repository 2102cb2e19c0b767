"""Held-out bits per byte: how many bits a model needs for each byte of text it has not seen."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from griffinlm.errors import GriffinError
from griffinlm.language_model import LanguageModel
from griffinlm.progress import progress


class EvaluationError(GriffinError):
    """Text that nothing can be measured on."""


@dataclass(frozen=True)
class Evaluation:
    """Sums over documents."""

    bits: float
    num_bytes: int
    num_tokens: int
    num_documents: int

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.num_bytes


def evaluate_documents(model: LanguageModel, documents: Iterable[str], num_documents: int | None = None) -> Evaluation:
    """sum of -log2 p(token | BOS and the tokens before it in its document) / bytes of the text in UTF-8.

    The model predicts the document's tokens only, not its end. Bytes are those of the text itself, so that models with
    different tokenizers compare.

    Args:
        num_documents: how many there are, for the progress bar.

    Raises:
        EvaluationError: the documents hold no text at all, or the tokenizer has no BOS to begin them with.
    """
    if model.tokenizer.bos_id is None:
        raise EvaluationError("the tokenizer has no BOS token; the first token of a document could not be counted")
    bits, num_bytes, num_tokens, num_seen = 0.0, 0, 0, 0
    for document in progress(documents, "evaluating", num_documents):
        num_seen += 1
        if not document:
            continue
        scores = model.score(document)
        bits -= float(scores.sum()) / math.log(2.0)
        num_bytes += len(document.encode("utf-8"))
        num_tokens += len(scores)
    if not num_bytes:
        raise EvaluationError(f"there is no text in the {num_seen} documents; at least one byte is needed")
    return Evaluation(bits, num_bytes, num_tokens, num_seen)
