"""Small random models of every kind, and cases to read with them, for the tests that state equivalences."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from tolerances import assert_agree
from torch import Tensor

from griffinlm.checkpoint.initial import initial_tensors
from griffinlm.config import AttentionConfig, ModelConfig, RecurrentConfig, RecursionConfig
from griffinlm.kernels.local_attention.reference import ring_positions
from griffinlm.model.blocks import RecurrentState
from griffinlm.model.griffin import Griffin, GriffinState
from griffinlm.model.state import new_state, tensors

PATTERNS = {
    "Hawk": ("recurrent",),
    "Griffin": ("recurrent", "recurrent", "local_attention"),
    "attention first": ("local_attention", "recurrent"),
    "attention only": ("local_attention",),
    "Gemma": ("global_attention",),
    "recurrent and global": ("recurrent", "global_attention"),
    "local and global": ("local_attention", "global_attention"),
}


PATTERN_VOCAB = 23


def pattern_config(pattern: str, recursion: RecursionConfig | None = None) -> ModelConfig:
    """Two rounds of a pattern, with a window of 6 where there is one; sizes are multiples of nothing."""
    kinds = PATTERNS[pattern]
    return ModelConfig(
        vocab_size=PATTERN_VOCAB,
        width=11,
        num_layers=2 * len(kinds),
        block_pattern=kinds,
        mlp_hidden=9,
        recurrent=RecurrentConfig(width=6, num_gate_blocks=2) if "recurrent" in kinds else None,
        attention=AttentionConfig(num_heads=2, head_size=8, window_tokens=6 if "local_attention" in kinds else None)
        if set(kinds) - {"recurrent"}
        else None,
        recursion=recursion,
    )


@st.composite
def configs(
    draw: st.DrawFn, patterns: tuple[str, ...] = tuple(PATTERNS), *, may_be_recursive: bool = True
) -> ModelConfig:
    """Tiny configurations whose sizes are multiples of nothing, ending in any kind of block.

    Up to four layers, or a few more in a recursive model.
    """
    pattern = PATTERNS[draw(st.sampled_from(patterns))]
    num_layers, recursion = draw(st.integers(1, 4)), None
    if may_be_recursive and draw(st.integers(0, 2)) == 0:
        recursion = draw(recursions())
        num_layers = recursion.num_loops * len(pattern) * draw(st.integers(1, 2 if len(pattern) == 1 else 1))
        num_layers += draw(st.integers(0, 1))
    kinds = set((pattern * num_layers)[:num_layers])
    recurrent = attention = None
    if "recurrent" in kinds:
        num_gate_blocks = draw(st.integers(1, 4))
        recurrent = RecurrentConfig(
            width=num_gate_blocks * draw(st.integers(1, 4)),
            num_gate_blocks=num_gate_blocks,
            num_conv_taps=draw(st.integers(2, 5)),
        )
    if kinds - {"recurrent"}:
        attention = AttentionConfig(
            num_heads=draw(st.integers(1, 3)),
            head_size=4 * draw(st.integers(1, 2)),
            window_tokens=draw(st.integers(1, 8)) if "local_attention" in kinds else None,
            rope_fraction=draw(st.sampled_from([0.0, 0.5, 1.0])),
            rope_wavelength=draw(st.sampled_from([100.0, 10_000.0])),
        )
    return ModelConfig(
        vocab_size=draw(st.integers(2, 23)),
        width=draw(st.integers(5, 13)),
        num_layers=num_layers,
        block_pattern=pattern,
        mlp_hidden=draw(st.integers(3, 17)),
        recurrent=recurrent,
        attention=attention,
        use_bias=draw(st.booleans()),
        embedding_scale=draw(st.sampled_from([1.0, 3.0])),
        logit_soft_cap=draw(st.sampled_from([None, 5.0])),
        recursion=recursion,
    )


def recursions() -> st.SearchStrategy[RecursionConfig]:
    """Up to three loops; no terms, or of a low rank, or of one above the full rank."""
    return st.builds(
        RecursionConfig,
        num_loops=st.integers(1, 3),
        tie=st.sampled_from(["matrices", "all"]),
        rank=st.sampled_from([0, 1, 2, 100]),
    )


def random_model(config: ModelConfig, seed: int, dtype: torch.dtype = torch.float32) -> Griffin:
    """A model with initial values, and with what starts at zero or very small moved away from it."""
    model = Griffin(config)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, values in initial_tensors(config, seed):
        weights[name] = torch.from_numpy(values)
        if name.endswith((".bias", ".scale", "conv.weight", ".low_rank.up")):
            weights[name] += 0.3 * torch.randn(values.shape, generator=generator)
    model.load_state_dict({place: weights[config.parameter_at(place)] for place in config.place_shapes()})
    return model.to(dtype)


def empty_state(model: Griffin, num_rows: int, capacity: int) -> GriffinState:
    """The state of rows that have read nothing; `capacity` counts where the model has global attention."""
    return new_state(model.config, num_rows, capacity if model.config.needs_capacity else None)


@dataclass(frozen=True)
class Case:
    """A model and tokens to read with it."""

    model: Griffin
    tokens: Tensor
    """[B, T]."""

    @property
    def num_tokens(self) -> int:
        return self.tokens.shape[1]

    def empty(self, num_rows: int | None = None) -> GriffinState:
        """An empty state with room for the tokens of the case and a few more."""
        return empty_state(self.model, self.tokens.shape[0] if num_rows is None else num_rows, self.num_tokens + 8)


def interesting_lengths(config: ModelConfig) -> st.SearchStrategy[int]:
    """1 to 5, around the window and around twice the window, and any other."""
    window = config.attention.window_tokens if config.attention is not None else None
    window = 6 if window is None else window
    return st.one_of(
        st.sampled_from(sorted({1, 2, 3, 4, 5, max(1, window - 1), window, window + 1, 2 * window + 1})),
        st.integers(1, 20),
    )


@st.composite
def cases(
    draw: st.DrawFn,
    patterns: tuple[str, ...] = tuple(PATTERNS),
    num_rows: st.SearchStrategy[int] | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    may_be_recursive: bool = True,
) -> Case:
    """A random small model and one to three rows of random tokens of an interesting length."""
    config = draw(configs(patterns, may_be_recursive=may_be_recursive))
    shape = draw(st.integers(1, 3) if num_rows is None else num_rows), draw(interesting_lengths(config))
    seed = draw(st.integers(0, 2**31))
    tokens = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))
    return Case(random_model(config, seed, dtype), tokens)


@st.composite
def cuts(draw: st.DrawFn, case: Case) -> list[int]:
    """Lengths of chunks that add up to the case's tokens."""
    chunks, left = [], case.num_tokens
    while left:
        chunks.append(min(left, draw(interesting_lengths(case.model.config))))
        left -= chunks[-1]
    return chunks


def read(model: Griffin, chunks: list[Tensor], state: GriffinState) -> tuple[Tensor, GriffinState]:
    """Logits of all tokens and the last state after reading chunks [B, t] one after another."""
    parts = []
    for chunk in chunks:
        logits, state = model(chunk, state)
        parts.append(logits)
    return torch.cat(parts, dim=1), state


def take_rows(state: GriffinState, rows: list[int]) -> GriffinState:
    """The state of some rows, in the order given."""
    return GriffinState(state.num_tokens[rows], tuple(type(b)(*(t[rows] for t in b)) for b in state.blocks))


def copy_state(state: GriffinState) -> GriffinState:
    return take_rows(state, list(range(len(state.num_tokens))))


def is_same(one: GriffinState, other: GriffinState) -> bool:
    """Whether two states are equal bit by bit."""
    return all(map(torch.equal, tensors(one), tensors(other)))


def visible(state: GriffinState) -> list[Tensor]:
    """Every tensor of a state with zeros where nothing of the rows' present documents stands.

    What an earlier document left in a ring or in a convolution's tail is never seen, and no equivalence speaks of it.
    """
    kept = []
    for block in state.blocks:
        if isinstance(block, RecurrentState):
            past = block.convolution.shape[1]
            seen = state.num_tokens[:, None] >= past - torch.arange(past)
            kept += [block.hidden, block.convolution * seen[..., None]]
        else:
            seen = ring_positions(state.num_tokens, block.keys.shape[1]) >= 0
            kept += [block.keys * seen[..., None], block.values * seen[..., None]]
    return kept


def assert_same_logits(found: Tensor, expected: Tensor, what: str = "logits") -> None:
    assert_agree(found, expected, "model", "float32", "torch", what)


def assert_same_state(found: GriffinState, expected: GriffinState) -> None:
    """The states agree in everything that a later token can see."""
    assert torch.equal(found.num_tokens, expected.num_tokens)
    for index, (one, other) in enumerate(zip(visible(found), visible(expected), strict=True)):
        assert_agree(one, other, "model", "float32", "torch", f"state tensor {index}")
