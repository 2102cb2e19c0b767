"""What a tokenizer library must give: the one face of `tokenizers` and `sentencepiece`."""

from collections.abc import Iterable, Mapping
from typing import Protocol


class Backend(Protocol):
    """A vocabulary and its rule of cutting text; control tokens are the ones that text must never become."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def control(self) -> Mapping[str, int]:
        """Id by literal of every control token."""
        ...

    def default_name(self, role: str) -> str | None:
        """The token of a role (`bos`, `eos`, `pad`, `unk`) where no settings name one."""
        ...

    def id_of(self, token: str) -> int | None:
        """Id of the token with that name, None where there is none."""
        ...

    def make_control(self, tokens: Iterable[str]) -> None:
        """Count these tokens of the vocabulary as control tokens from now on."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of well-formed text; a literal of a control token becomes that token.

        Raises:
            TokenizerError: the vocabulary has no token for some of the text.
        """
        ...

    def token_bytes(self, token_id: int) -> bytes | None:
        """UTF-8 bytes that the token stands for, perhaps part of a character; None where no token has that id."""
        ...
