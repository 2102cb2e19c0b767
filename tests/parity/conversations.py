"""Calls that between them meet every rule of time: packing, padding, long prompts, rings that turn several times."""

from collections.abc import Iterator, Sequence

import torch

from .reading import Call

PADDING_TOKEN = 0


def prefill(documents: Sequence[Sequence[int]], vocab_size: int, seed: int) -> Call:
    """One call; row i holds documents of the lengths `documents[i]` one behind the other, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens = max(sum(lengths) for lengths in documents)
    tokens = torch.full((len(documents), num_tokens), PADDING_TOKEN)
    positions = torch.full_like(tokens, -1)
    for row, lengths in enumerate(documents):
        start = num_tokens - sum(lengths)
        tokens[row, start:] = torch.randint(vocab_size, (sum(lengths),), generator=generator)
        positions[row, start:] = torch.cat([torch.arange(length) for length in lengths])
    return Call(tokens, positions)


def decoding(before: Call, num_steps: int, vocab_size: int, seed: int) -> Iterator[Call]:
    """Calls of one token a row that go on from the end of `before`."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(num_steps):
        tokens = torch.randint(vocab_size, (before.tokens.shape[0], 1), generator=generator)
        yield Call(tokens, before.positions[:, -1:] + 1 + step)


def conversation(documents: Sequence[Sequence[int]], num_steps: int, vocab_size: int, seed: int = 0) -> list[Call]:
    """A prefill of documents, then `num_steps` single tokens."""
    first = prefill(documents, vocab_size, seed)
    return [first, *decoding(first, num_steps, vocab_size, seed + 1)]
