"""What requests have in common: sampling, messages, and the fields that are taken without effect."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from griffinlm.generation.answering import MAX_COUNT, GenerationOptions, Options
from griffinlm.serve.errors import ApiError

MOST_ANSWERS = 128
MOST_ALTERNATIVES = 20
MOST_STOPS = 16
MOST_STOP_CHARACTERS = 1000
MOST_BIASES = 1024
MOST_MESSAGES = 10_000
MOST_FIELDS = 64
"""Of one table."""
MOST_METADATA = 16
MOST_METADATA_KEY_CHARACTERS = 64
MOST_LABEL_CHARACTERS = 512
"""Of what a client notes on a request for itself, which is stored and told again. OpenAI's bounds of metadata."""
MOST_GRAMMARS = 8
"""Answers of one request that follow a schema: each compiles a grammar of its own, which holds up all others."""
MOST_LOG_PROBABILITIES = 1 << 17
"""Of the tokens and alternatives in all answers to one request: each takes some 900 bytes until it is sent."""
MOST_CHARACTERS = 1 << 20
"""Of all texts of a request, whose cutting into tokens takes seconds; so many tokens where they are given."""


def at_most(most: int) -> Callable[[Any], Any]:
    """Refuses longer texts, and tables of more entries before one is looked at: each wrong one would be a fault."""

    def checked(given: Any) -> Any:
        if isinstance(given, dict | str) and len(given) > most:
            what = "entries" if isinstance(given, dict) else "characters"
            raise ValueError(f"{len(given)} {what} are too many; at most {most} are read")
        return given

    return checked


class Strict(BaseModel):
    """Refuses fields that it does not know and values that would have to be converted.

    Lists of its fields are read up to the first fault: a body of 8 MiB has room for millions.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _with_few_fields(cls, given: Any) -> Any:
        return at_most(MOST_FIELDS)(given)


Stop = Annotated[str, Field(min_length=1, max_length=MOST_STOP_CHARACTERS)]
NumTokens = Annotated[int, Field(ge=1, le=MAX_COUNT)]


class SamplingFields(Strict):
    """How tokens are chosen."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None

    def sampling(self) -> Options:
        """Those that were given."""
        given = {name: getattr(self, name) for name in SamplingFields.model_fields}
        return Options(**{name: value for name, value in given.items() if value is not None})


class StopFields(Strict):
    """What ends or shifts an answer, in chat and completions."""

    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    logit_bias: Annotated[dict[str, float], BeforeValidator(at_most(MOST_BIASES))] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None

    def stops(self) -> Options:
        options = Options()
        if self.stop is not None:
            options["stop"] = self.stop
        if self.logit_bias:
            options["logit_bias"] = {_token(key): value for key, value in self.logit_bias.items()}
        return options


class StreamOptions(Strict):
    """What a stream tells besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Taken without effect."""


Label = Annotated[str, BeforeValidator(at_most(MOST_LABEL_CHARACTERS))]
MetadataKey = Annotated[str, BeforeValidator(at_most(MOST_METADATA_KEY_CHARACTERS))]


class InertFields(Strict):
    """Taken without effect: for OpenAI's own service."""

    user: Label | None = None
    metadata: Annotated[dict[MetadataKey, Label], BeforeValidator(at_most(MOST_METADATA))] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None


def bounded(said: Any) -> Any:
    """Refuses texts that would take long to be cut into tokens, or tokens to be read, by what they have together."""
    size = sum(_sizes(said))
    if size > MOST_CHARACTERS:
        raise ValueError(f"{size} characters or tokens are too many; at most {MOST_CHARACTERS} are read at once")
    return said


def _sizes(said: Any) -> Iterator[int]:
    match said:
        case str() | [int(), *_]:
            yield len(said)
        case list():
            for one in said:
                yield from _sizes(one)
        case BaseModel():
            yield from _sizes(getattr(said, "content", None) or getattr(said, "text", None))


class TextPart(Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    """A message as a client sends it, and as it sends back one that it got."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None
    """Taken without effect."""
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    def plain(self) -> dict[str, str]:
        """As templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


Messages = Annotated[
    list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True), AfterValidator(bounded)
]


class JsonSchema(Strict):
    """A schema with the name that a client gives it."""

    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Strict):
    """Some JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Strict):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


def schema_of(chosen: TextFormat | ObjectFormat | SchemaFormat | None) -> dict[str, Any] | None:
    """The JSON schema that an answer must follow."""
    match chosen:
        case SchemaFormat():
            return chosen.json_schema.schema_
        case ObjectFormat():
            return {"type": "object"}
        case _:
            return None


def check_grammars(num_answers: int, chosen: TextFormat | ObjectFormat | SchemaFormat | None) -> None:
    """Refuses more answers with a schema than one request may have."""
    if num_answers > MOST_GRAMMARS and schema_of(chosen) is not None:
        message = f"{num_answers} answers that follow a schema are asked for at once; at most {MOST_GRAMMARS} may be"
        raise ApiError(400, message, param="response_format", code="invalid_value")


def checked_options(*given: Options, num_answers: int = 1, param: str = "top_logprobs") -> GenerationOptions:
    """One set of options out of several, for all answers to a request.

    Args:
        param: the field that asks for alternatives.

    Raises:
        GriffinError: one of them is out of its range.
        ApiError: the answers may have more log-probabilities than one request can be told.
    """
    joined = Options()
    for options in given:
        joined.update(options)
    checked = GenerationOptions.of(joined)
    if checked.log_probabilities is not None:
        num_each = checked.log_probabilities + 1
        num_told = num_answers * checked.max_tokens * num_each
        if num_told > MOST_LOG_PROBABILITIES:
            of_what = f"{num_each} of each token, with {checked.max_tokens} tokens and {num_answers} answers"
            message = f"{num_told} log-probabilities would be told, {of_what}; at most {MOST_LOG_PROBABILITIES} may be"
            raise ApiError(400, message, param=param, code="invalid_value")
    return checked


def alternatives(wanted: bool | None, num_top: int | None) -> Options:
    """`logprobs` and `top_logprobs` of chat; ApiError where the second stands alone."""
    if num_top is not None and not wanted:
        raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs", code="invalid_value")
    return Options(log_probabilities=num_top or 0) if wanted else Options()


def _token(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 9):
        raise ApiError(
            400,
            f"logit_bias names token {key[:20]!r}; it must be a token's number",
            param="logit_bias",
            code="invalid_value",
        )
    return int(key)
