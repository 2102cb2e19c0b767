"""JSON that follows a schema: which tokens may come next, by llguidance (extra `structured`)."""

import json
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from griffinlm.errors import GriffinError, in_one_line
from griffinlm.text import Tokenizer, TokenizerError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MOST_SCHEMA_BYTES = 64 * 1024
MOST_SCHEMA_LEVELS = 32
MOST_PATTERNS = 8
"""Different regular expressions in one schema. A text may have to match them all, and the work doubles with each."""

LIMITS = {"initial_lexer_fuel": 300_000, "max_lexer_states": 20_000, "max_grammar_size": 200_000}
"""Of llguidance, where its own are too generous for schemas from strangers: a second and 200 MiB at the worst found."""

MOST_REMAINDERS = 100_000
"""All that `multipleOf` can leave of a number, as whole numbers, over the schema: each is a state of the lexer."""
TOO_DEEP = f"json_schema is more than {MOST_SCHEMA_LEVELS} levels deep"

FORCED_CHARACTERS_WRITTEN = 1024
"""Of text without a choice, so many are cut into the tokenizer's tokens in advance, whatever its length."""

UTF8_BYTES = {*range(0xC0), *range(0xC2, 0xF5)}
CHECKS_KEPT = 64
VOCABULARIES_KEPT = 4


class GrammarError(GriffinError):
    """A JSON schema that cannot be followed, or tokens that do not follow it."""


class Matcher:
    """How far an answer has come in the JSON texts that follow a schema: a function of the tokens accepted."""

    def __init__(self, schema: str, tokenizer: Tokenizer) -> None:
        """Stand at the beginning of a text.

        Args:
            schema: JSON text from `schema_text`.

        Raises:
            GrammarError: llguidance is not installed, the schema is too complex, or the tokenizer lacks bytes.
        """
        self._vocab_size, self._end_ids = tokenizer.vocab_size, _end_ids(tokenizer)
        # Copies of one matcher would be made faster, but share the states of a lexer, their limit and its faults.
        vocabulary, grammar = _vocabulary(tokenizer), _library_grammar(schema)
        self._matcher: LLMatcher = _library().LLMatcher(vocabulary, grammar, log_level=0, limits=_limits())
        self._mask: np.ndarray | None = None
        """Which tokens may follow, once that has been asked since the last was accepted."""
        self._require_no_fault()

    def allowed(self) -> np.ndarray:
        """Whether each token may come next, bool [vocab of the tokenizer]; end tokens where the text may end.

        Text that the schema leaves no choice in is allowed only as the tokenizer writes it.

        Raises:
            GrammarError: no token goes on here, or finding them takes too much work.
        """
        return self._allowed()[: self._vocab_size]

    def accept(self, token: int) -> None:
        """Go on by one token.

        Raises:
            GrammarError: it is not allowed here.
        """
        self._mask = None
        self._matcher.consume_token(token)
        self._require_no_fault()

    @property
    def is_complete(self) -> bool:
        """Whether the text is whole and nothing but an end token may follow.

        Raises:
            GrammarError: as for `allowed`.
        """
        mask = self._allowed()
        return np.count_nonzero(mask) == np.count_nonzero(mask[self._end_ids])

    def _allowed(self) -> np.ndarray:
        if self._mask is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            # Where it fails, llguidance gives a mask of the end token all the same.
            self._require_no_fault()
            num_tokens = max(self._vocab_size, max(self._end_ids) + 1)
            self._mask = np.unpackbits(bits, count=num_tokens, bitorder="little").view(np.bool_)
        return self._mask

    def _require_no_fault(self) -> None:
        if self._matcher.is_error():
            raise _unfollowed(self._matcher.get_error())


def schema_text(schema: Any) -> str:
    """The JSON text of a schema, keys in their order; that of properties is the order in which they are written.

    Raises:
        GrammarError: it is no table, too large or too deep, not satisfiable, or uses what cannot be enforced on tokens.
    """
    if not isinstance(schema, dict):
        raise GrammarError(f"json_schema is {type(schema).__name__}; it must be a table (a dict)")
    try:
        text = json.dumps(schema, allow_nan=False)
    except RecursionError:
        raise GrammarError(TOO_DEEP) from None
    except (TypeError, ValueError) as fault:
        raise GrammarError(f"json_schema holds what JSON does not: {in_one_line(fault)}") from None
    if len(text) > MOST_SCHEMA_BYTES:
        raise GrammarError(f"json_schema has {len(text)} bytes; allowed are {MOST_SCHEMA_BYTES}")
    _require_simple(schema)
    _require_supported(text)
    return text


def _require_simple(schema: dict[str, Any]) -> None:
    """Bounds what would cost llguidance time or stack without bounds."""
    if "x-guidance" in schema:
        raise GrammarError("json_schema has the keyword 'x-guidance'; options of llguidance are not allowed in it")
    patterns: set[str] = set()
    divisors: set[float] = set()
    for key, value, level in _entries(schema):
        if level > MOST_SCHEMA_LEVELS:
            raise GrammarError(TOO_DEEP)
        match key, value:
            case "pattern", str():
                patterns.add(value)
            case "patternProperties", dict():
                patterns |= value.keys()
            case "multipleOf", int() | float():
                divisors.add(value)
    if len(patterns) > MOST_PATTERNS:
        raise GrammarError(f"json_schema has {len(patterns)} different patterns; allowed are {MOST_PATTERNS}")
    num_remainders = sum(max(Decimal(str(divisor)).as_integer_ratio()) for divisor in divisors)
    if num_remainders > MOST_REMAINDERS:
        raise GrammarError(f"json_schema has multipleOf of {num_remainders} together; allowed are {MOST_REMAINDERS}")


def _entries(schema: dict[str, Any]) -> Iterator[tuple[str | None, Any, int]]:
    """Key, value and level of all that stands in a schema; what a table or list holds is one level below it."""
    unread: list[tuple[str | None, Any, int]] = [(None, schema, 0)]
    while unread:
        key, value, level = unread.pop()
        yield key, value, level
        if isinstance(value, dict):
            unread += [(key, inner, level + 1) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            unread += [(None, inner, level + 1) for inner in value]


@lru_cache(CHECKS_KEPT)
def _require_supported(schema: str) -> None:
    fault = _library().LLMatcher.validate_grammar(_library_grammar(schema), limits=_limits())
    if fault:
        raise _unfollowed(fault)


def _unfollowed(fault: str) -> GrammarError:
    return GrammarError(f"json_schema cannot be followed: {in_one_line(fault.removesuffix('<non-verbose/>'))}")


def _library_grammar(schema: str) -> str:
    try:
        return _library().LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
    except ValueError as fault:
        raise GrammarError(f"json_schema cannot be read: {in_one_line(fault)}") from None


def _limits() -> "LLParserLimits":
    return _library().LLParserLimits(verbose_errors=False, **LIMITS)


class _Writer:
    """A tokenizer as llguidance asks for one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        end_ids = _end_ids(tokenizer)
        num_tokens = max(tokenizer.vocab_size, max(end_ids) + 1)
        found = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.tokens = [b"" if text is None else text for text in found] + [b""] * (num_tokens - len(found))
        self.special_token_ids = [token for token, text in enumerate(self.tokens) if not text]
        self.eos_token_id, self.bos_token_id = end_ids[0], tokenizer.bos_id
        self._tokenizer = tokenizer
        self._token_of = {text: token for token, text in enumerate(self.tokens) if text}
        self._longest = max(map(len, self.tokens))
        self._byte_tokens = {text[0]: token for text, token in self._token_of.items() if len(text) == 1}
        num_missing = len(UTF8_BYTES - self._byte_tokens.keys())
        if num_missing:
            raise GrammarError(
                f"json_schema needs a tokenizer with a token for every byte of UTF-8; {num_missing} have none here"
            )

    def __call__(self, text: bytes) -> list[int]:
        """Tokens that join to this text, in which the schema leaves no choice; the first of them is what is allowed."""
        start = text.decode()[:FORCED_CHARACTERS_WRITTEN]
        written = start.encode()
        try:
            ids = self._tokenizer.encode(start)
        except TokenizerError:
            ids = []
        # A tokenizer may write other characters in place of some, or have some as a control token only.
        if b"".join(self.tokens[token] for token in ids) != written:
            ids = list(self._longest_first(written))
        return ids + [self._byte_tokens[byte] for byte in text[len(written) :]]

    def _longest_first(self, text: bytes) -> Iterator[int]:
        start = 0
        while start < len(text):
            ends = range(min(len(text), start + self._longest), start, -1)
            end = next(end for end in ends if text[start:end] in self._token_of)
            yield self._token_of[text[start:end]]
            start = end


@lru_cache(VOCABULARIES_KEPT)
def _vocabulary(tokenizer: Tokenizer) -> "LLTokenizer":
    library = _library()
    writer = library.TokenizerWrapper(_Writer(tokenizer))
    return library.LLTokenizer(writer, eos_token=_end_ids(tokenizer), slices=library.LLTokenizer.json_slices())


def _end_ids(tokenizer: Tokenizer) -> list[int]:
    """Tokens that end an answer; where the vocabulary has none, one behind its last, which no model can choose."""
    return sorted(tokenizer.end_ids) or [tokenizer.vocab_size]


def _library() -> ModuleType:
    try:
        import llguidance
    except ImportError:
        raise GrammarError(
            "a JSON schema needs the llguidance library, which is not installed",
            hint="pip install 'griffinlm[structured]'",
        ) from None
    return llguidance
