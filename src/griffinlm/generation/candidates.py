"""From logits to the tokens that may be drawn and to the one that is: temperature, top-k, top-p, min-p, a draw.

Everything is computed for several rows at once and is bit for bit what each row gives alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from griffinlm.executor import DRAWN_TEMPERATURES
from griffinlm.generation.parameters import SamplingParameters

TOTAL_TOLERANCE = 1e-5
"""Relative, of a sum of float32 weights: several times what rounding of logits, exponentials and sum can do."""

BLOCK_TOKENS = 256
FEW_TOKENS = 1024
NUMBERS_AT_ONCE = 64


def draw_tokens(logits: np.ndarray, parameters: Sequence[SamplingParameters], numbers: Sequence[float]) -> np.ndarray:
    """The token of every row that its number in [0, 1) draws by its parameters; int64 [rows].

    Args:
        logits: float32 [rows, vocab], the best of each row finite.
        parameters, numbers: of every row; temperatures above 0.
    """
    tokens, shares = np.empty(len(logits), np.int64), np.asarray(numbers)
    cut = [row for row, one in enumerate(parameters) if next(_cuts(one), None) is not None]
    plain = [row for row in range(len(logits)) if row not in cut]
    if plain:
        rows = logits[plain] if cut else logits
        temperatures = np.array([[_temperature(parameters[row])] for row in plain], np.float32)
        tokens[plain] = draw(_weights(rows, rows.max(axis=1, keepdims=True), temperatures), shares[plain])
    if cut:
        ids, kept = zip(*(candidates(logits[row], parameters[row]) for row in cut), strict=True)
        # Whole blocks, so that the sums of a row do not depend on how much others keep.
        num_blocks = -(-max(map(len, kept)) // BLOCK_TOKENS)
        weights = np.zeros((len(cut), num_blocks * BLOCK_TOKENS), np.float32)
        for row, some in zip(weights, kept, strict=True):
            row[: len(some)] = some
        tokens[cut] = [some[place] for some, place in zip(ids, draw(weights, shares[cut]), strict=True)]
    return tokens


def candidates(logits: np.ndarray, parameters: SamplingParameters) -> tuple[Sequence[int] | np.ndarray, np.ndarray]:
    """The tokens that may be drawn from float32 logits [vocab]: their ids, ascending, and float32 weights.

    The best token weighs 1; weights over their sum are probabilities. Temperature must be above 0.
    """
    ids: Sequence[int] | np.ndarray = range(len(logits))
    for cut in _cuts(parameters):
        kept = cut(logits)
        ids = kept if isinstance(ids, range) else ids[kept]
        logits = logits[kept]
    return ids, _weights(logits, logits.max(), np.float32(_temperature(parameters)))


def draw(weights: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """In each row the first index at which the running sum of weights passes a share, in [0, 1), of the whole sum.

    Sums are float32 inside blocks and float64 across them, so the index is exact but for numbers that lie within
    `TOTAL_TOLERANCE` of a step. What weighs nothing is never drawn.

    Args:
        weights: float32 [rows, vocab], not all 0 in any row.
        numbers: [rows], the shares.

    Returns:
        int64 [rows].
    """
    rows, width = np.arange(len(weights)), weights.shape[1]
    sums = np.add.reduceat(weights, np.arange(0, width, BLOCK_TOKENS), axis=1)
    reached = np.cumsum(sums, axis=1, dtype=np.float64)
    shares = numbers * reached[:, -1]
    block = _first_above(reached, shares)
    shares -= np.where(block > 0, reached[rows, block - 1], 0.0)
    start = block * BLOCK_TOKENS
    places = start[:, None] + np.arange(min(BLOCK_TOKENS, width))
    inside = weights.take(rows[:, None] * width + places, mode="clip")
    # The last block may be cut short.
    inside[places >= width] = 0.0
    return start + _first_above(np.cumsum(inside, axis=1, dtype=np.float64), shares)


def uniforms(seed: int, position: int) -> Iterator[float]:
    """Numbers in [0, 1) for this position and all that follow, each a function of seed and position alone.

    That of a position is the first that Philox gives with the seed as its key and the position as its counter.
    """
    generator = np.random.Generator(np.random.Philox(key=seed, counter=position))
    while True:
        # A count of Philox is four numbers.
        yield from generator.random((NUMBERS_AT_ONCE, 4))[:, 0].tolist()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log p over the last axis of float32 logits, in float64, to 1e-6."""
    return logits.astype(np.float64) - log_normaliser(logits)[..., None]


def log_normaliser(logits: np.ndarray) -> np.ndarray:
    """The logarithm of the sum of exponentials over the last axis of float32 logits, in float64, to 1e-6.

    A logit less this is the log-probability of its token.
    """
    best = logits.max(axis=-1, keepdims=True)
    return best[..., 0] + np.log(_weights(logits, best, np.float32(1.0)).sum(axis=-1, dtype=np.float64))


def best_ids(logits: np.ndarray, number: int) -> np.ndarray:
    """Ascending indices of the best logits [any] and of those equal to the last of them."""
    if number >= len(logits):
        return np.arange(len(logits))
    return np.flatnonzero(logits >= np.partition(logits, -number)[-number])


def _cuts(parameters: SamplingParameters) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """The cuts asked for, in their order. Each gives the ascending indices that it keeps of float32 logits [any]."""
    temperature = _temperature(parameters)
    top_k, top_p, min_p = parameters.top_k, parameters.top_p, parameters.min_p
    if top_k is not None:
        yield lambda logits: best_ids(logits, top_k)
    if top_p is not None and top_p < 1.0:
        yield lambda logits: _fewest_reaching(logits, temperature, top_p)
    if min_p is not None and min_p > 0.0:
        yield lambda logits: np.flatnonzero(_at_least(logits, float(logits.max()) + temperature * math.log(min_p)))


def _fewest_reaching(logits: np.ndarray, temperature: float, share: float) -> np.ndarray:
    """Indices of the fewest best logits whose weight reaches this share of the whole; of equals the first ones."""
    best = logits.max()
    weights = _weights(logits, best, np.float32(temperature))
    total = float(weights.sum())
    # Only the heavy need sorting and exact weights. As many tokens as logits, each below (1 - share) / 2 of the mean
    # weight, weigh together less than may be lost; the half is for rounding. A higher bar is usually low enough too.
    for num_light in (FEW_TOKENS, len(logits)):
        lightest = (1.0 - share) / 2 * total / num_light
        heavy = np.flatnonzero(_at_least(logits, float(best) + temperature * math.log(lightest)))
        ordered = np.sort(logits[heavy])[::-1]
        reached = np.cumsum(_exact_weights(ordered, best, temperature))
        if reached.size and reached[-1] > share * total * (1.0 + TOTAL_TOLERANCE):
            break
    weights[heavy] = 0.0
    light = float(weights.sum())
    bounds = [share * (reached[-1] + light * (1.0 + error)) for error in (-TOTAL_TOLERANCE, TOTAL_TOLERANCE)]
    position, position_at_most = np.searchsorted(reached, bounds)
    if position != position_at_most:
        exact_light = _exact_weights(logits[np.flatnonzero(weights)], best, temperature).sum()
        position = np.searchsorted(reached, share * (reached[-1] + exact_light))
    num_kept = min(int(position) + 1, len(ordered))
    last = ordered[num_kept - 1]
    kept = heavy[logits[heavy] >= last]
    num_excess = len(kept) - num_kept
    return np.delete(kept, np.flatnonzero(logits[kept] == last)[-num_excess:]) if num_excess else kept


def _temperature(parameters: SamplingParameters) -> float:
    least, most = DRAWN_TEMPERATURES
    return min(max(parameters.temperature, least), most)


def _weights(logits: np.ndarray, best: np.ndarray, temperature: np.ndarray | np.float32) -> np.ndarray:
    """exp((logits - best) / temperature), all in float32."""
    weights = logits - best
    if np.any(temperature != 1.0):
        weights /= temperature
    return np.exp(weights, out=weights)


def _exact_weights(logits: np.ndarray, best: np.ndarray, temperature: float) -> np.ndarray:
    """The same in float64."""
    return np.exp((logits.astype(np.float64) - float(best)) / temperature)


def _at_least(logits: np.ndarray, floor: float) -> np.ndarray:
    """Whether float32 logits reach a float64 floor, without turning all of them into float64."""
    limits = np.finfo(np.float32)
    nearest = np.float32(min(max(floor, float(limits.min)), float(limits.max)))
    return logits >= nearest if nearest >= floor else logits > nearest


def _first_above(reached: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """In each ascending row the first index above its number, at most the first that holds the last value."""
    return ((reached > numbers[:, None]) | (reached == reached[:, -1:])).argmax(axis=1)
