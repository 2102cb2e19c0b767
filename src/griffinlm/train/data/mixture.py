"""Which row comes when: a function of seed and place alone, so that a run resumes by its step number."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from griffinlm.train.data.token_file import Row, TokenFile

NUM_ROUNDS = 4
"""Rounds of the Feistel network: four make a permutation that cannot be told from a random one."""
BLOCK_ROWS = 1024
"""Rows over which every source's share is met to within one row."""


def permuted(index: int, size: int, key: bytes) -> int:
    """Where `index` goes in a permutation of 0..size-1 that the key chooses; nothing of length `size` is made.

    A Feistel network permutes the numbers of an even number of bits; from a place past the size the walk goes on.
    """
    half = max((size - 1).bit_length() + 1, 2) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(NUM_ROUNDS):
            digest = hashlib.blake2b(b"%d %d" % (turn, right), digest_size=8, key=key).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        index = left << half | right
        if index < size:
            return index


class Mixture:
    """Sources mixed by weight, from row 0 of a stage on.

    The first n rows hold floor(n * share) rows of every source at the ends of blocks (the heaviest takes what is left
    over); inside a block their order is drawn. A source gives its rows in a random order of its own, each once before
    any comes again, and then in another order.
    """

    def __init__(
        self, files: Mapping[str, TokenFile], weights: Mapping[str, float], row_tokens: int, seed: int, stage: int = 0
    ) -> None:
        """Mixes those files whose weight is above 0."""
        self.names = [name for name, weight in weights.items() if weight > 0]
        self._files, self._row_tokens, self._seed, self._stage = files, row_tokens, seed, stage
        total = sum(weights[name] for name in self.names)
        self._shares = [weights[name] / total for name in self.names]
        self._heaviest = int(np.argmax(self._shares))
        self._block_rows = max(BLOCK_ROWS, len(self.names) ** 2)
        self._order_of_block = lru_cache(maxsize=4)(self._draw_order)

    def source_of(self, index: int) -> tuple[str, int]:
        """The source of a row of the stage, and how many rows of it came before in the stage."""
        block, place = divmod(index, self._block_rows)
        order = self._order_of_block(block)
        source = int(order[place])
        before = self._counts_at_block(block)[source] + int((order[:place] == source).sum())
        return self.names[source], before

    def counts(self, num_rows: int) -> dict[str, int]:
        """How many of the first rows come from each source."""
        block, place = divmod(num_rows, self._block_rows)
        inside = np.bincount(self._order_of_block(block)[:place], minlength=len(self.names))
        return dict(zip(self.names, (self._counts_at_block(block) + inside).tolist(), strict=True))

    def row(self, index: int, rows_before: Mapping[str, int]) -> Row:
        """Row `index` of the stage, where `rows_before` of each source were read in earlier stages."""
        name, before = self.source_of(index)
        file = self._files[name]
        size = file.num_rows(self._row_tokens)
        epoch, place = divmod(before + rows_before.get(name, 0), size)
        key = hashlib.sha256(f"{self._seed} {name} {epoch}".encode()).digest()
        return file.row(permuted(place, size, key), self._row_tokens)

    def _counts_at_block(self, block: int) -> np.ndarray:
        """Rows of each source in all blocks before this one."""
        num_rows = block * self._block_rows
        counts = np.array([int(num_rows * share) for share in self._shares])
        counts[self._heaviest] += num_rows - counts.sum()
        return counts

    def _draw_order(self, block: int) -> np.ndarray:
        quotas = self._counts_at_block(block + 1) - self._counts_at_block(block)
        order = np.repeat(np.arange(len(self.names)), quotas)
        np.random.default_rng([self._seed, self._stage, block]).shuffle(order)
        return order


class TrainingRows:
    """All rows of a run in order: a sequence whose item k is row k of step k // batch_rows."""

    def __init__(self, stages: Sequence[tuple[Mixture, int]]) -> None:
        """Stages are mixtures and how many rows they have."""
        self._stages: list[tuple[int, Mixture, dict[str, int]]] = []
        self._num_rows = 0
        rows_before: dict[str, int] = {}
        for mixture, num_rows in stages:
            self._stages.append((self._num_rows, mixture, rows_before))
            counts = mixture.counts(num_rows)
            rows_before = {n: rows_before.get(n, 0) + counts.get(n, 0) for n in rows_before | counts}
            self._num_rows += num_rows

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        first, mixture, rows_before = next(stage for stage in reversed(self._stages) if stage[0] <= index)
        return mixture.row(index - first, rows_before)._asdict()
