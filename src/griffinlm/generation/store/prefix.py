"""Hashes of beginnings of a document, so that the longest known one is found by looking values up.

The hash of a document's whole blocks is a chain, each over the one before and the tokens of its block. A state is kept
under the hash of its whole blocks and under that of all its tokens. For a new document every block gives one hash to
look up; what is found there are at most as many lengths as a block has tokens, and of each the hash of all tokens says
whether it is a beginning. Both begin with the scope: equal documents of two tenants have nothing in common.
"""

import hashlib

import numpy as np

BLOCK_TOKENS = 64


class PrefixHashes:
    """Hashes of all beginnings of one document in one scope."""

    def __init__(self, scope: bytes, token_ids: np.ndarray) -> None:
        self._tokens = token_ids.astype("<i4")
        self.blocks = [scope]
        """SHA-256 of the first 0, 1, 2, ... whole blocks."""
        for start in range(0, len(token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            block = self._tokens[start : start + BLOCK_TOKENS].tobytes()
            self.blocks.append(hashlib.sha256(self.blocks[-1] + block).digest())

    def of_first(self, num_tokens: int) -> bytes:
        """SHA-256 of the first tokens, which may end inside a block."""
        num_blocks = num_tokens // BLOCK_TOKENS
        rest = self._tokens[num_blocks * BLOCK_TOKENS : num_tokens].tobytes()
        return hashlib.sha256(b"end" + self.blocks[num_blocks] + rest).digest()
