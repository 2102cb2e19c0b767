"""What the chat template writes for a turn, without the conversation before it where that is possible."""

from collections.abc import Sequence

from griffinlm.errors import GriffinError
from griffinlm.serve.records import Message
from griffinlm.text import Tokenizer


def _said(*texts: str) -> list[Message]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


STAND_INS = (
    _said("What is seven times six?", "42."),
    [{"role": "system", "content": "Be brief."}, *_said("Hello", "  Hi!\n\nWell?\n", "1, 2, 3", "4")],
)
"""Two conversations as unlike as can be, to stand in the place of any."""
PROBES = (_said("Why?"), _said("Why?", "Because."), _said(" \n x", "\ty ", "z"))


class Turns:
    """The tokens of turns behind any conversation that ends with an answer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.is_context_free = self._check()
        """Whether the template writes a turn alike whatever stands before it. Else a turn needs all messages."""

    def whole(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Ids of all messages, the begin token first."""
        return self._tokenizer.encode_chat(messages, add_generation_prompt)

    def behind(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Ids of messages behind a conversation that ends with an answer; only where `is_context_free`."""
        found = self._behind(STAND_INS[0], messages, add_generation_prompt)
        assert found is not None, "checked for every message that the template takes"
        return found

    def _behind(self, before: list[Message], messages: Sequence[Message], add: bool) -> list[int] | None:
        known, all_ids = self.whole(before, False), self.whole([*before, *messages], add)
        return all_ids[len(known) :] if all_ids[: len(known)] == known else None

    def _check(self) -> bool:
        try:
            for probe in PROBES:
                is_question = probe[-1]["role"] == "user"
                found = [self._behind(before, probe, is_question) for before in STAND_INS]
                if found[0] is None or found[0] != found[1]:
                    return False
        except GriffinError:
            return False
        return True
