"""What reading and training cost: operations and bytes, counted from a configuration alone."""

import math
from typing import NamedTuple

from griffinlm.config import EMBEDDING, LOW_RANK, BlockKind, ModelConfig, is_matrix

FLOAT32_BYTES = 4
ADAM_MOMENTS = 2
ATTENTION_BLOCK_TOKENS = 256
"""Queries that attention takes at once, at least; half a window where that is more."""


class Operations(NamedTuple):
    """Floating-point operations; a multiplication with its addition counts two.

    Counted are matrix products: linears, gates, the head, and attention over the tokens that each token sees. What is
    done number by number (scan, convolution, norms, activation functions) is left out; memory bounds it, not
    arithmetic.
    """

    blocks: int
    """Linears and gates of the blocks."""
    attention: int
    """Queries with keys, and weights with values."""
    head: int

    @property
    def total(self) -> int:
        return sum(self)


def reading_operations(config: ModelConfig, row_tokens: int) -> Operations:
    """Operations of the forward pass over one document of `row_tokens`.

    blocks     2 T (parameters of all matrices and low-rank terms; those that layers share count in each of them)
    attention  4 (num_heads head_size) sum over tokens t of min(t, W) + 1, for each attention block
    head       2 T V D
    """
    shapes = config.place_shapes()
    matrices = sum(math.prod(shape) for name, shape in shapes.items() if is_matrix(name) or LOW_RANK in name)
    head = math.prod(shapes[EMBEDDING])
    attention = 0
    for kind in config.block_kinds:
        if kind != "recurrent" and config.attention is not None:
            window = config.attention.window_of(kind)
            inner = config.attention.num_heads * config.attention.head_size
            attention += 4 * inner * num_visible_pairs(row_tokens, window)
    return Operations(2 * row_tokens * (matrices - head), attention, 2 * row_tokens * head)


def num_visible_pairs(row_tokens: int, window_tokens: int | None) -> int:
    """sum of min(t, W) + 1 over t = 0..T-1: pairs of a token and a token that it sees, itself included."""
    full = min(row_tokens, row_tokens if window_tokens is None else window_tokens + 1)
    return full * (full + 1) // 2 + (row_tokens - full) * full


class Losses(NamedTuple):
    """What a step's loss takes beside the head at full depth."""

    num_exits: int = 0
    """Places before full depth where the head gives a loss, too; steps count as if each trained all."""
    num_asked: int = 0
    """Passes of the head that have no gradient: for what an exit learns from full depth, or whether a token leaves."""
    teacher: ModelConfig | None = None
    """A model that reads the same tokens, and whose head gives what every loss learns."""
    num_taught: int = 0
    """Losses that learn from the teacher."""


ONE_LOSS = Losses()


def training_operations(config: ModelConfig, row_tokens: int, recompute: bool, losses: Losses = ONE_LOSS) -> int:
    """Operations of forward and backward pass over one document: three times reading, and what is computed again.

        3 (blocks + attention + (1 + num_exits) head) + num_asked head
        + blocks + attention of the teacher + num_taught of its head

    `recompute` adds the blocks, but for their last product, before which torch stops. Layers that are left out by
    chance, and tokens that leave, count as read.
    """
    reading = reading_operations(config, row_tokens)
    operations = 3 * reading.total + (3 * losses.num_exits + losses.num_asked) * reading.head
    if losses.teacher is not None:
        told = reading_operations(losses.teacher, row_tokens)
        operations += told.blocks + told.attention + losses.num_taught * told.head
    if not recompute:
        return operations
    last_products = 2 * row_tokens * config.num_layers * config.mlp_hidden * config.width
    return operations + reading.blocks + reading.attention - last_products


class TrainingMemory(NamedTuple):
    """Bytes of one device at the worst moment of an optimizer step."""

    weights: int
    gradients: int
    optimizer: int
    """Both moments of AdamW."""
    gathered: int
    """Parameters that are whole for a while: copies in bfloat16 on one device, gathered units on several."""
    activations: int
    logits: int
    """Those of a chunk, which become their own gradient, and of every loss the head's part of the embedding's
    gradient."""
    teacher: int
    """Weights of the model that is learned from."""

    @property
    def total(self) -> int:
        return sum(self)


def training_memory(
    config: ModelConfig,
    rows: int,
    row_tokens: int,
    precision: str = "bfloat16",
    num_devices: int = 1,
    recompute: bool = False,
    loss_chunk_tokens: int = 2048,
    losses: Losses = ONE_LOSS,
) -> TrainingMemory:
    """Memory of `griffin train pretrain` on each of `num_devices`.

    Weights, gradients and moments are float32 and divided among the devices. Activations are counted block by block
    from the tensors that the backward pass needs; with `recompute` a block keeps only its input, until it is computed
    again. One more block is counted for what a backward pass works with.

    Args:
        rows: rows that a device reads at once.
    """
    element = FLOAT32_BYTES if precision == "float32" else 2
    num_tokens = rows * row_tokens
    share = -(-config.num_parameters // num_devices)
    blocks = [_block_activations(config, kind, row_tokens, element) for kind in config.block_kinds]
    kept = sum(blocks)
    if recompute:
        kept = FLOAT32_BYTES * config.width * len(blocks) + max(blocks)
    around = 3 * FLOAT32_BYTES * config.width * (1 + losses.num_exits)
    chunk = min(loss_chunk_tokens, num_tokens)
    logit_bytes = FLOAT32_BYTES + (0 if element == FLOAT32_BYTES else 2 * element)
    if losses.num_asked or losses.num_taught:
        logit_bytes += FLOAT32_BYTES
    head_gradients = FLOAT32_BYTES * config.width * (1 + losses.num_exits)
    return TrainingMemory(
        weights=FLOAT32_BYTES * share,
        gradients=FLOAT32_BYTES * share,
        optimizer=ADAM_MOMENTS * FLOAT32_BYTES * share,
        gathered=_gathered(config, element, num_devices),
        activations=num_tokens * (kept + around + max(blocks)),
        logits=config.vocab_size * (chunk * logit_bytes + head_gradients),
        teacher=0 if losses.teacher is None else FLOAT32_BYTES * losses.teacher.num_parameters,
    )


def _block_activations(config: ModelConfig, kind: BlockKind, row_tokens: int, element: int) -> int:
    """Bytes that a token's way through a block leaves for the backward pass.

    The residual stream with its norms 4 D float32; the MLP 3 X; a recurrent block 4 L, 3 L float32 for gates and state,
    and the state once more where its type is another; attention queries and outputs, keys, values and angles, and a
    mask over the keys of a block of queries.
    """
    size = 4 * FLOAT32_BYTES * config.width + 3 * element * config.mlp_hidden
    if kind == "recurrent":
        assert config.recurrent is not None
        outputs = 0 if element == FLOAT32_BYTES else element
        return size + (4 * element + 3 * FLOAT32_BYTES + outputs) * config.recurrent.width
    assert config.attention is not None
    window = config.attention.window_of(kind)
    inner, head_size = config.attention.num_heads * config.attention.head_size, config.attention.head_size
    keys = row_tokens if window is None else min(row_tokens, window + max(ATTENTION_BLOCK_TOKENS, window // 2))
    rotation = FLOAT32_BYTES * config.attention.rotated_size
    return size + element * (2 * inner + 2 * head_size + keys) + rotation + FLOAT32_BYTES * config.attention.num_heads


def _gathered(config: ModelConfig, element: int, num_devices: int) -> int:
    """One device: a bfloat16 copy of every matrix. Several: the embedding's unit and two blocks, with gradients.

    Layers that share parameters are in the embedding's unit.
    """
    if num_devices == 1:
        return 0 if element == FLOAT32_BYTES else element * config.num_parameters
    sizes: dict[str, int] = {}
    for name, shape in config.parameter_shapes().items():
        is_own_unit = name.startswith("layers.") and config.recursion is None
        unit = ".".join(name.split(".")[:2]) if is_own_unit else ""
        sizes[unit] = sizes.get(unit, 0) + math.prod(shape)
    outer = sizes.pop("")
    return 2 * element * (outer + 2 * max(sizes.values(), default=0))
