"""Messages to text by a chat template, with what users wrote kept apart from what the template wrote."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from griffinlm.errors import in_one_line
from griffinlm.text.errors import TokenizerError
from griffinlm.text.unicode import well_formed

GEMMA_TEMPLATE = """\
{#- Gemma has no system role: system text goes in front of the first user turn, two newlines between. -#}
{%- set system = messages[0] if messages[0]['role'] == 'system' else none -%}
{%- set turns = messages[1:] if system else messages -%}
{%- if not turns -%}
    {{- raise_exception('a system message needs a user message behind it') -}}
{%- endif -%}
{{- bos_token -}}
{%- for message in turns -%}
    {%- set expected = 'user' if loop.index0 % 2 == 0 else 'assistant' -%}
    {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('role ' ~ message['role'] ~ ' is unknown; allowed are system, user and assistant') -}}
    {%- elif message['role'] != expected -%}
        {{- raise_exception('a message has role ' ~ message['role'] ~ ' where ' ~ expected ~ ' is due: after at most '
            ~ 'one system message, user and assistant take turns, user first') -}}
    {%- endif -%}
    {{- '<start_of_turn>' ~ ('model' if message['role'] == 'assistant' else 'user') ~ '\\n' -}}
    {%- if system and loop.first -%}
        {{- system['content'] | trim ~ '\\n\\n' -}}
    {%- endif -%}
    {{- message['content'] | trim ~ '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""
"""The format that Gemma and RecurrentGemma were tuned on."""

_MAX_STEPS = 1_000_000
_MAX_TEMPLATE_CHARACTERS = 1_000_000
_STEPS_LEFT = "steps left"  # no template can say a name with a space in it


class ChatTemplate:
    """A jinja template as Hugging Face runs it, in a sandbox that also bounds its loops and its output.

    A template comes with a model's weights and so from a stranger: it sees the messages and the names of the special
    tokens, nothing else. Steps of loops and characters of output are counted; memory is not.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def render(
        self,
        messages: object,
        variables: Mapping[str, Any],
        cut: Callable[[str], Iterable[str]],
    ) -> list[str]:
        """The conversation as text, in pieces: what `cut` separates inside a message is separate here.

        Raises:
            TokenizerError: the messages are malformed, or the template refuses them, is wrong or does not end.
        """
        checked = _checked_messages(messages)
        values = [value for message in checked for value in message.values()]
        seam = _unused_character([self.source, *values])
        marked = [{key: seam.join(cut(value)) for key, value in message.items()} for message in checked]
        limit = _MAX_TEMPLATE_CHARACTERS + 8 * sum(map(len, values))
        pieces: list[str] = []
        num_characters = 0
        try:
            for piece in self._template.generate({**variables, "messages": marked, _STEPS_LEFT: [_MAX_STEPS]}):
                num_characters += len(piece)
                if num_characters > limit:
                    raise SecurityError(f"it writes more than {limit} characters")
                pieces.append(piece)
        except _RefusedError as fault:
            raise TokenizerError(f"the chat template refuses the messages: {_clean(fault, seam)}") from None
        except Exception as fault:
            raise TokenizerError(f"the chat template fails: {_clean(fault, seam)}") from None
        return "".join(pieces).split(seam)

    @cached_property
    def _template(self) -> jinja2.Template:
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        tree = environment.parse(self.source)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "count_steps", [], [], None, None)
        return environment.from_string(tree)


class _RefusedError(jinja2.TemplateError):
    """The template called `raise_exception`."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Only what a template needs; numbers and repeated text stay small."""

    intercepted_binops = frozenset(["*", "**"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals["raise_exception"] = _raise_exception
        self.filters["count_steps"] = _count_steps
        self.filters["tojson"] = _to_json

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply, within bounds."""
        if operator == "**":
            raise SecurityError("the operator ** is not allowed")
        sizes = [side if isinstance(side, int | float) else len(side) for side in (left, right)]
        if abs(sizes[0] * sizes[1]) > _MAX_TEMPLATE_CHARACTERS:
            raise SecurityError(f"a product is over {_MAX_TEMPLATE_CHARACTERS}")
        return left * right


@jinja2.pass_context
def _count_steps(context: jinja2.runtime.Context, items: Iterable[Any]) -> Iterator[Any]:
    steps_left: list[int] = context[_STEPS_LEFT]
    for item in items:
        steps_left[0] -= 1
        if steps_left[0] < 0:
            raise SecurityError(f"its loops take more than {_MAX_STEPS} steps")
        yield item


def _raise_exception(message: object) -> NoReturn:
    raise _RefusedError(str(message))


def _to_json(value: Any, indent: int | None = None) -> str:
    """JSON as Hugging Face's templates expect it: no HTML escapes, every character as it is."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _checked_messages(messages: object) -> list[dict[str, str]]:
    """Copies of the messages with well-formed text."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise TokenizerError(f"messages is {type(messages).__name__}; it must be a list of messages")
    if not messages:
        raise TokenizerError("messages is empty; it must hold at least one message")
    return [_checked_message(f"messages[{position}]", message) for position, message in enumerate(messages)]


def _checked_message(name: str, message: object) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise TokenizerError(f"{name} is {type(message).__name__}; it must be a table with role and content")
    if set(message) != {"role", "content"}:
        found = in_one_line(", ".join(map(str, message)) or "none")
        raise TokenizerError(f"{name} has the fields {found}; it must have exactly role and content")
    return {key: well_formed(message[key], f"{name}.{key}") for key in ("role", "content")}


def _unused_character(texts: Iterable[str]) -> str:
    """A private-use character that stands in none of the texts."""
    used = set().union(*texts)
    for code in range(0xF0000, 0x110000):
        if chr(code) not in used:
            return chr(code)
    raise TokenizerError("the messages hold every private-use character; at least one must be left for the template")


def _clean(fault: Exception, seam: str) -> str:
    return in_one_line(str(fault).replace(seam, "") or type(fault).__name__)
