"""A layer of all loops for one token a row: what loops share is read once, what they do not is picked by row."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, rms_norm, scaled_dot_product_attention

from griffinlm.config import LOW_RANK, RG_LRU_EXPONENT
from griffinlm.model.blocks import BlockState, Layout, RecurrentBlock, RecurrentState, ResidualBlock
from griffinlm.model.layers import BlockDiagonalLinear, RMSNorm
from griffinlm.model.low_rank import RowTerms, add_terms
from griffinlm.model.recursion import LowRank

NUM_GATES = 2


class Change(NamedTuple):
    """What a step has written over in a stacked state."""

    state: Tensor
    places: tuple[Tensor, ...]
    """Of every row, [B] each, as an index of `state`."""
    before: Tensor
    """[B, ...]."""

    def take_back(self, row: int) -> None:
        """Puts back what stood in the row's place."""
        self.state[tuple(place[row] for place in self.places)] = self.before[row]


class Rows(NamedTuple):
    """Where the rows of a step stand."""

    depth: Tensor
    """[B], the loop that each runs."""
    place: Tensor
    """[B], where its state stands in the stacked states."""
    layout: Layout
    """Of one token a row, as its loop sees it."""
    num_used: int
    """Tokens that a row has read at most: so many slots of a ring hold them, or all that it has."""
    shares: Mapping[int, Tensor]
    """By the rank r of a term, [B, loops r]: 1 for the numbers of the row's own loop, 0 for the others."""
    low_rank: Sequence[tuple[int, RowTerms]]
    """Terms of adapters, by the loop that some rows run."""
    changes: list[Change]
    """To which every layer adds its own."""


class SharedLinear:
    """The linear of one place in all loops: W x + b + up (down x), of which W is one for all."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.layers, self.weight = layers, layers[0].weight
        assert all(layer.weight is self.weight for layer in layers)
        terms = _own_terms(layers)
        self.rank = terms[0].down.shape[0] if terms else 0
        if terms:
            self.down = torch.cat([term.down for term in terms])
            self.up = torch.cat([term.up for term in terms], dim=1)

    def __call__(self, x: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
        """[B, out] of x [B, in] and each row's own bias [B, out].

        The terms of all loops are computed for all rows, and those of other loops multiplied by 0: two products instead
        of two for every loop.
        """
        y = linear(x, self.weight) if bias is None else torch.addmm(bias, x, self.weight.t())
        if self.rank:
            y.addmm_(linear(x, self.down) * rows.shares[self.rank], self.up.t())
        return _with_adapters(y, self.layers, x, rows)


class SharedGates:
    """The two block-diagonal gates of one place in all loops as one product."""

    def __init__(self, gates: Sequence[Sequence[BlockDiagonalLinear]]) -> None:
        """Args: gates: of each loop its input gate and its recurrence gate."""
        self.gates = list(zip(*gates, strict=True))
        self.num_blocks, self.size, _ = gates[0][0].weight.shape
        self.weight = torch.cat([gate.weight for gate in gates[0]], dim=2)
        self.rank = 0
        terms = [_own_terms(loops) for loops in self.gates]
        if terms[0]:
            self.rank = terms[0][0].down.shape[1]
            self.down = torch.cat([term.down for loops in terms for term in loops], dim=1).transpose(1, 2).contiguous()
            ups = [torch.cat([term.up for term in loops], dim=2).transpose(1, 2) for loops in terms]
            self.up = torch.stack([torch.block_diag(*blocks) for blocks in zip(*ups, strict=True)])

    def __call__(self, x: Tensor, bias: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Both gates before their sigmoid, [B, h, b] each, of x [B, L] and the rows' biases [B, h 2 b]."""
        parts = x.unflatten(1, (self.num_blocks, self.size)).transpose(0, 1)
        y = torch.bmm(parts, self.weight)
        if self.rank:
            y = torch.baddbmm(y, torch.bmm(parts, self.down) * rows.shares[self.rank].repeat(1, NUM_GATES), self.up)
        both = (y.transpose(0, 1) + bias.unflatten(1, (self.num_blocks, -1))).chunk(NUM_GATES, dim=2)
        if rows.low_rank:
            both = [_with_adapters(y.flatten(1), g, x, rows).view_as(y) for y, g in zip(both, self.gates, strict=True)]
        return both[0], both[1]


class StackedBlock:
    """`ResidualBlock` of one token a row, each row in a loop of its own; the state changes where it lies.

    Args:
        blocks: the same layer of every loop, from the first.
        state: stacked states, those of all slots for each loop in turn.
    """

    def __init__(self, blocks: Sequence[ResidualBlock], state: BlockState) -> None:
        self.state, first = state, blocks[0]
        self._norms = _PickedVectors(_norm_scales(blocks))
        self._linears = {
            name: SharedLinear([block.get_submodule(name) for block in blocks])  # pyright: ignore[reportArgumentType]
            for name, layer in first.named_modules()
            if isinstance(layer, nn.Linear)
        }
        self._epsilon = first.mlp_norm.epsilon
        vectors = {name: [layer.bias for layer in shared.layers] for name, shared in self._linears.items()}
        vectors = {name: biases for name, biases in vectors.items() if biases[0] is not None}
        self._attention = None
        if isinstance(state, RecurrentState):
            recurrent = [block.recurrent for block in blocks]
            self._gates = SharedGates([(one.rg_lru.input_gate, one.rg_lru.recurrence_gate) for one in recurrent])
            vectors |= _recurrent_vectors(recurrent)
            self._rates = _PickedVectors({"rate": [_rate(one) for one in recurrent]})
        else:
            self._attention = first.attention
        self._vectors = _PickedVectors(vectors)

    @property
    def ranks(self) -> set[int]:
        """Ranks of the terms that the layer adds."""
        gates = set() if self._attention is not None else {self._gates.rank}
        return ({layer.rank for layer in self._linears.values()} | gates) - {0}

    def __call__(self, x: Tensor, rows: Rows) -> Tensor:
        """[B, D] of x [B, D]."""
        scales, own = self._norms(rows.depth), self._vectors(rows.depth)
        normed = _normed(x, scales["temporal_norm"], self._epsilon)
        x = x + (self._recurrent if self._attention is None else self._attend)(normed, rows, own)
        normed = _normed(x, scales["mlp_norm"], self._epsilon)
        gate, up = (self._linear(f"mlp.{name}", normed, rows, own) for name in ("gate", "up"))
        return x + self._linear("mlp.down", gelu(gate, approximate="tanh") * up, rows, own)

    def _linear(self, name: str, x: Tensor, rows: Rows, own: Mapping[str, Tensor]) -> Tensor:
        return self._linears[name](x, own.get(name), rows)

    def _recurrent(self, x: Tensor, rows: Rows, own: Mapping[str, Tensor]) -> Tensor:
        """As `RecurrentBlock`, of x [B, D]."""
        assert isinstance(self.state, RecurrentState)
        hidden, tail = self.state
        hidden_before, tail_before = (kept.index_select(0, rows.place) for kept in self.state)
        rows.changes.append(Change(hidden, (rows.place,), hidden_before))
        rows.changes.append(Change(tail, (rows.place,), tail_before))
        branch = self._linear("recurrent.linear_y", x, rows, own)
        u = self._linear("recurrent.linear_x", x, rows, own)
        joined = torch.cat([tail_before, u[:, None].to(tail.dtype)], dim=1)
        tail.index_copy_(0, rows.place, joined[:, 1:])
        taps = own["conv.weight"].unflatten(1, (joined.shape[1], -1))
        age = torch.arange(joined.shape[1] - 1, -1, -1, device=x.device)
        seen = (rows.layout.positions >= age)[..., None]
        u = (joined * taps).mul_(seen).sum(dim=1) + own["conv.bias"]
        gates = self._gates(u, own["gates"], rows)
        input_gate, recurrence_gate = (torch.sigmoid(gate.float()) for gate in gates)
        log_a = self._rates(rows.depth)["rate"].view_as(recurrence_gate) * recurrence_gate
        starts = rows.layout.reset[..., None]
        a = torch.exp(log_a).masked_fill_(starts, 0.0)
        scale = torch.expm1(2.0 * log_a).neg_().sqrt_().masked_fill_(starts, 1.0)
        inputs = scale * input_gate * u.view_as(a)
        h = torch.addcmul(inputs, a, hidden_before.view_as(a)).flatten(1)
        hidden.index_copy_(0, rows.place, h)
        return self._linear("recurrent.linear_out", gelu(branch, approximate="tanh") * h.to(x.dtype), rows, own)

    def _attend(self, x: Tensor, rows: Rows, own: Mapping[str, Tensor]) -> Tensor:
        """As `AttentionBlock`, of x [B, D]."""
        assert self._attention is not None
        query, key, value = (
            self._linear(f"attention.{name}", x, rows, own)[:, None] for name in ("query", "key", "value")
        )
        query, key = self._attention.rotated(query, key, rows.layout)
        positions, joined = rows.layout.positions, []
        for ring, new in zip(self.state, (key, value), strict=True):
            past, new = ring[:, : rows.num_used].index_select(0, rows.place), new.to(ring.dtype)
            joined.append(torch.cat([past, new], dim=1)[:, None].to(x.dtype))
            places = rows.place, positions[:, 0] % ring.shape[1]
            rows.changes.append(Change(ring, places, ring[places]))
            ring[places] = new[:, 0]
        # A ring is never longer than the window, so all that it holds is seen; the last place is the token itself.
        slots = torch.arange(joined[0].shape[2], device=x.device)
        seen = (slots < positions) | (slots == len(slots) - 1)
        out = scaled_dot_product_attention(query, *joined, attn_mask=seen[:, None, None])
        return self._linear("attention.output", out.flatten(1), rows, own)


class _PickedVectors:
    """Vectors that every loop has for itself; those of all rows are picked in one go."""

    def __init__(self, vectors: Mapping[str, Sequence[Tensor]]) -> None:
        """Args: vectors: by name, [n] of every loop."""
        self._sizes = {name: loops[0].numel() for name, loops in vectors.items()}
        rows = [[vector.flatten() for vector in loops] for loops in vectors.values()]
        self._stack = torch.stack([torch.cat(loop) for loop in zip(*rows, strict=True)]) if rows else None

    def __call__(self, depth: Tensor) -> dict[str, Tensor]:
        """By name, [B, n]."""
        if self._stack is None:
            return {}
        picked = self._stack.index_select(0, depth).split([*self._sizes.values()], dim=1)
        return dict(zip(self._sizes, picked, strict=True))


def _own_terms(layers: Sequence[nn.Module]) -> list[LowRank]:
    """The terms that the layers of a place add; none where they add none."""
    name = LOW_RANK.removeprefix(".")
    terms = [layer.get_submodule(name) for layer in layers if hasattr(layer, name)]
    return [term for term in terms if isinstance(term, LowRank)]


def _norm_scales(blocks: Sequence[ResidualBlock]) -> dict[str, list[Tensor]]:
    """1 + scale in float32."""

    def scale(norm: RMSNorm) -> Tensor:
        return 1.0 + norm.scale.float()

    return {
        "temporal_norm": [scale(block.temporal_norm) for block in blocks],
        "mlp_norm": [scale(block.mlp_norm) for block in blocks],
    }


def _recurrent_vectors(blocks: Sequence[RecurrentBlock]) -> dict[str, list[Tensor]]:
    gates = [torch.cat([one.rg_lru.input_gate.bias, one.rg_lru.recurrence_gate.bias], dim=1) for one in blocks]
    return {
        "gates": gates,
        "conv.weight": [one.conv.weight for one in blocks],
        "conv.bias": [one.conv.bias for one in blocks],
    }


def _rate(block: RecurrentBlock) -> Tensor:
    """log a where the recurrence gate is 1, float32."""
    return -RG_LRU_EXPONENT * torch.nn.functional.softplus(block.rg_lru.a_param.float())


def _normed(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * scale, computed in float32."""
    return (rms_norm(x.float(), x.shape[1:], eps=epsilon) * scale).to(x.dtype)


def _with_adapters(y: Tensor, layers: Sequence[nn.Module], x: Tensor, rows: Rows) -> Tensor:
    """The products y [B, out] with the terms that adapters add in some rows."""
    for loop, terms in rows.low_rank:
        y = add_terms(y, layers[loop], x, [terms])
    return y
