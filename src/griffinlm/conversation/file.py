"""A conversation as one file: all turns, and the state at the present one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from griffinlm.conversation.turns import ConversationError, Place, Turn
from griffinlm.state import NOTHING_PENDING, State, StateError, StateOwner, check_layout, seal, unseal

KIND = "conversation"
TOKEN_IDS = "conversation.token_ids"
"""Name of the array beside those of the state."""
ROLES = ("user", "assistant")


def to_bytes(model: StateOwner, turns: Sequence[Turn], current: Turn, place: Place | None) -> bytes:
    """A safetensors file with fingerprint and checksum.

    Args:
        place: at the present turn; None where it would be read again, as it is then after loading.
    """
    state = None if place is None else place.state
    arrays = {} if place is None or state is None else {TOKEN_IDS: place.token_ids, **state.arrays()}
    told = [
        {"parent": turn.parent.number, "said": [message["content"] for message in turn.messages]}
        for turn in turns
        if turn.parent is not None
    ]
    plain = {name: np.asarray(array) for name, array in arrays.items()}
    return seal(plain, model.identity, {"turns": told, "current": current.number})


def from_bytes(content: bytes, model: StateOwner, name: str) -> tuple[list[Turn], Turn, Place | None]:
    """The turns, the present one, and its place, from what `to_bytes` made for the same model.

    Raises:
        StateError: it is damaged, or belongs to another model.
        ConversationError: it is no conversation.
    """
    what = f"{KIND} {name}"
    arrays, details, _ = sealed = unseal(content, KIND, name)
    sealed.require_of(model, what)
    try:
        turns, current = _turns(details["turns"]), details["current"]
        if type(current) is not int or not 0 <= current < len(turns):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise ConversationError(f"{name} is no {KIND} of griffinlm") from error
    if not arrays:
        return turns, turns[current], None
    token_ids = arrays.pop(TOKEN_IDS, np.zeros(0, np.int32))
    check_layout(arrays, model, what)
    is_listed = token_ids.dtype == np.int32 and arrays["num_tokens"].tolist() == [*token_ids.shape]
    if not is_listed or token_ids.ndim != 1 or arrays["pending"].tolist() != [NOTHING_PENDING]:
        raise StateError(f"{what} has a state of other tokens than those it lists")
    return turns, turns[current], Place(token_ids.tolist(), State(arrays, model.identity))


def _turns(told: Any) -> list[Turn]:
    turns = [Turn(0, None, [])]
    for number, turn in enumerate(told, 1):
        parent, said = turn["parent"], turn["said"]
        if type(parent) is not int or not 0 <= parent < number:
            raise ValueError
        if not isinstance(said, list) or [type(text) for text in said] != [str, str]:
            raise TypeError
        messages = [{"role": role, "content": text} for role, text in zip(ROLES, said, strict=True)]
        turns.append(Turn(number, turns[parent], messages))
        turns[parent].children.append(turns[number])
    return turns
