"""What a model gives for some tokens, in one form for every implementation, and the measure of agreement."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

BOUND = 2e-5
"""Of `deviation`, for logits and states in float32."""

WORST: dict[tuple[str, str], float] = {}
"""Largest deviation seen in this run, by original and kind of number; the summary of the run prints it."""

Memory = dict[str, Tensor]
"""A model's state by the names of `griffinlm.state`; entries that its `num_tokens` makes unreachable are zero."""


class Call(NamedTuple):
    """Tokens [B, T] given to a model at once, with their positions [B, T] as in `Griffin.forward`."""

    tokens: Tensor
    positions: Tensor


class Reading(NamedTuple):
    """A model's answer to a call: logits [B, T, V], and its memory after the call."""

    logits: Tensor
    memory: Memory


class Reader(Protocol):
    """One conversation with a model: each call continues where the last one ended."""

    def read(self, call: Call) -> Reading: ...


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """max|a - b| / max(1, max|b|); infinite where a number is not finite.

    Raises:
        ValueError: the shapes differ.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"ours has shape {tuple(ours.shape)}, theirs {tuple(theirs.shape)}")
    if not (torch.isfinite(ours).all() and torch.isfinite(theirs).all()):
        return float("inf")
    if not theirs.numel():
        return 0.0
    difference = (ours.double() - theirs.double()).abs().max()
    return float(difference / theirs.double().abs().max().clamp(min=1.0))


def deviations(ours: Reading, theirs: Reading, call: Call) -> dict[str, float]:
    """`deviation` of the logits of real tokens and of every array of the memory, by name.

    Raises:
        ValueError: the memories hold other names or shapes.
    """
    if ours.memory.keys() != theirs.memory.keys():
        raise ValueError(f"only one side remembers {sorted(ours.memory.keys() ^ theirs.memory.keys())}")
    real = call.positions >= 0
    found = {name: deviation(ours.memory[name], theirs.memory[name]) for name in theirs.memory}
    return {"logits": deviation(ours.logits[real], theirs.logits[real]), **found}


def assert_agreement(ours: Reader, theirs: Reader, calls: Iterable[Call], bound: float = BOUND) -> None:
    """Both sides read the calls one after the other and agree after each, logits and memory."""
    for index, call in enumerate(calls):
        found = deviations(ours.read(call), theirs.read(call), call)
        for name, value in found.items():
            kind = type(theirs).__name__, name.rpartition(".")[2]
            WORST[kind] = max(WORST.get(kind, 0.0), value)
        wrong = {name: value for name, value in found.items() if value > bound}
        assert not wrong, f"call {index} of {tuple(call.tokens.shape)} tokens deviates by more than {bound}: {wrong}"


def reachable(memory: Memory) -> Memory:
    """Zeroes what no later token can see: tail entries and ring slots that the current document has not filled."""
    num_tokens = memory["num_tokens"][:, None]
    visible = {}
    for name, array in memory.items():
        if name.endswith((".keys", ".values")):
            used = torch.arange(array.shape[1]) < num_tokens
            array = array * used[..., None]
        elif name.endswith(".convolution"):
            used = torch.arange(-array.shape[1], 0) >= -num_tokens
            array = array * used[..., None]
        visible[name] = array.clone()
    return visible
