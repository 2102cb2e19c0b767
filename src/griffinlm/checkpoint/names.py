"""One table a format: which of its tensors holds which of our parameters, and how they are laid out in it.

Reading and writing walk the same rows, so what one does the other undoes. Letters: D width, L recurrent width, X MLP
hidden, K conv taps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from griffinlm.checkpoint.errors import CheckpointError
from griffinlm.config import ModelConfig

Shape = tuple[int, ...]
TableName = Literal["griffinlm", "recurrent_gemma", "gemma", "deepmind", "flax"]

TIED_HEAD = "lm_head.weight"
"""Hugging Face's name of the head. It is the embedding, so it is never written; a file may hold a copy of it."""


@dataclass(frozen=True)
class Layout:
    """How our arrays lie in one of theirs. `unpack` undoes `pack`; both move values and never change one."""

    shape: Callable[..., Shape]
    """Shapes of ours -> shape of theirs."""
    pack: Callable[..., np.ndarray]
    """Our arrays -> theirs."""
    unpack: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    """Theirs -> our arrays, as views."""


SAME = Layout(shape=lambda a: a, pack=lambda a: a, unpack=lambda a: (a,))
TRANSPOSED = Layout(shape=lambda a: a[::-1], pack=lambda a: a.T, unpack=lambda a: (a.T,))
CHANNELS_FIRST = Layout(  # [K, L] <-> [L, 1, K]; the last tap meets the current token in both
    shape=lambda a: (a[1], 1, a[0]),
    pack=lambda a: a.T[:, None, :],
    unpack=lambda a: (a[:, 0, :].T,),
)
STACKED_WEIGHTS = Layout(  # gate and up, each [X, D] <-> [2, D, X]
    shape=lambda gate, up: (2, *gate[::-1]),
    pack=lambda gate, up: np.stack([gate.T, up.T]),
    unpack=lambda a: (a[0].T, a[1].T),
)
STACKED_BIASES = Layout(  # gate and up, each [X] <-> [2, 1, 1, X]
    shape=lambda gate, up: (2, 1, 1, *gate),
    pack=lambda gate, up: np.stack([gate, up])[:, None, None, :],
    unpack=lambda a: (a[0, 0, 0], a[1, 0, 0]),
)


@dataclass(frozen=True)
class Row:
    """One tensor of a format: its name, our parameters in it, their layout. `{i}` stands for the layer."""

    theirs: str
    ours: tuple[str, ...]
    layout: Layout = SAME


def _row(theirs: str, *ours: str, layout: Layout = SAME) -> Row:
    return Row(theirs, ours, layout)


def _layer_rows(theirs: str, ours: str, names: dict[str, str]) -> tuple[Row, ...]:
    return tuple(_row(f"{theirs}.{a}", f"{ours}.{b}") for a, b in names.items())


RECURRENT_GEMMA: tuple[Row, ...] = (
    _row("model.embed_tokens.weight", "embedding.weight"),
    _row("model.final_norm.weight", "final_norm.scale"),
    *_layer_rows(
        "model.layers.{i}",
        "layers.{i}",
        {
            "temporal_pre_norm.weight": "temporal_norm.scale",
            "channel_pre_norm.weight": "mlp_norm.scale",
            "mlp_block.gate_proj.weight": "mlp.gate.weight",
            "mlp_block.gate_proj.bias": "mlp.gate.bias",
            "mlp_block.up_proj.weight": "mlp.up.weight",
            "mlp_block.up_proj.bias": "mlp.up.bias",
            "mlp_block.down_proj.weight": "mlp.down.weight",
            "mlp_block.down_proj.bias": "mlp.down.bias",
            "temporal_block.linear_x.weight": "recurrent.linear_x.weight",
            "temporal_block.linear_x.bias": "recurrent.linear_x.bias",
            "temporal_block.linear_y.weight": "recurrent.linear_y.weight",
            "temporal_block.linear_y.bias": "recurrent.linear_y.bias",
            "temporal_block.linear_out.weight": "recurrent.linear_out.weight",
            "temporal_block.linear_out.bias": "recurrent.linear_out.bias",
            "temporal_block.conv_1d.bias": "recurrent.conv.bias",
            "temporal_block.rg_lru.recurrent_param": "recurrent.rg_lru.a_param",
            "temporal_block.rg_lru.input_gate_weight": "recurrent.rg_lru.input_gate.weight",
            "temporal_block.rg_lru.input_gate_bias": "recurrent.rg_lru.input_gate.bias",
            "temporal_block.rg_lru.recurrent_gate_weight": "recurrent.rg_lru.recurrence_gate.weight",
            "temporal_block.rg_lru.recurrent_gate_bias": "recurrent.rg_lru.recurrence_gate.bias",
            "temporal_block.q_proj.weight": "attention.query.weight",
            "temporal_block.k_proj.weight": "attention.key.weight",
            "temporal_block.v_proj.weight": "attention.value.weight",
            "temporal_block.o_proj.weight": "attention.output.weight",
            "temporal_block.o_proj.bias": "attention.output.bias",
        },
    ),
    _row("model.layers.{i}.temporal_block.conv_1d.weight", "layers.{i}.recurrent.conv.weight", layout=CHANNELS_FIRST),
)

GEMMA: tuple[Row, ...] = (
    _row("model.embed_tokens.weight", "embedding.weight"),
    _row("model.norm.weight", "final_norm.scale"),
    *_layer_rows(
        "model.layers.{i}",
        "layers.{i}",
        {
            "input_layernorm.weight": "temporal_norm.scale",
            "self_attn.q_proj.weight": "attention.query.weight",
            "self_attn.k_proj.weight": "attention.key.weight",
            "self_attn.v_proj.weight": "attention.value.weight",
            "self_attn.o_proj.weight": "attention.output.weight",
            "post_attention_layernorm.weight": "mlp_norm.scale",
            "mlp.gate_proj.weight": "mlp.gate.weight",
            "mlp.up_proj.weight": "mlp.up.weight",
            "mlp.down_proj.weight": "mlp.down.weight",
        },
    ),
)

DEEPMIND: tuple[Row, ...] = (
    _row("embedder.input_embedding", "embedding.weight"),
    _row("final_norm.scale", "final_norm.scale"),
    *_layer_rows(
        "blocks.{i}",
        "layers.{i}",
        {
            "temporal_pre_norm.scale": "temporal_norm.scale",
            "channel_pre_norm.scale": "mlp_norm.scale",
            "mlp_block.ffw_down.weight": "mlp.down.weight",
            "mlp_block.ffw_down.bias": "mlp.down.bias",
            "recurrent_block.linear_x.weight": "recurrent.linear_x.weight",
            "recurrent_block.linear_x.bias": "recurrent.linear_x.bias",
            "recurrent_block.linear_y.weight": "recurrent.linear_y.weight",
            "recurrent_block.linear_y.bias": "recurrent.linear_y.bias",
            "recurrent_block.linear_out.weight": "recurrent.linear_out.weight",
            "recurrent_block.linear_out.bias": "recurrent.linear_out.bias",
            "recurrent_block.conv_1d.w": "recurrent.conv.weight",
            "recurrent_block.conv_1d.b": "recurrent.conv.bias",
            "recurrent_block.rg_lru.a_param": "recurrent.rg_lru.a_param",
            "recurrent_block.rg_lru.input_gate.w": "recurrent.rg_lru.input_gate.weight",
            "recurrent_block.rg_lru.input_gate.b": "recurrent.rg_lru.input_gate.bias",
            "recurrent_block.rg_lru.a_gate.w": "recurrent.rg_lru.recurrence_gate.weight",
            "recurrent_block.rg_lru.a_gate.b": "recurrent.rg_lru.recurrence_gate.bias",
            "attention_block.proj_q.weight": "attention.query.weight",
            "attention_block.proj_k.weight": "attention.key.weight",
            "attention_block.proj_v.weight": "attention.value.weight",
            "attention_block.proj_final.weight": "attention.output.weight",
            "attention_block.proj_final.bias": "attention.output.bias",
        },
    ),
    _row(
        "blocks.{i}.mlp_block.ffw_up.w",
        "layers.{i}.mlp.gate.weight",
        "layers.{i}.mlp.up.weight",
        layout=STACKED_WEIGHTS,
    ),
    _row(
        "blocks.{i}.mlp_block.ffw_up.b",
        "layers.{i}.mlp.gate.bias",
        "layers.{i}.mlp.up.bias",
        layout=STACKED_BIASES,
    ),
)


def _flax(row: Row) -> Row:
    """Flax's row of a tensor of DeepMind's torch code: the weight of a linear is a `kernel`, stored transposed."""
    if not row.theirs.endswith(".weight"):
        return row
    return replace(row, theirs=row.theirs.removesuffix("weight") + "kernel", layout=TRANSPOSED)


TABLES: dict[str, tuple[Row, ...]] = {
    "recurrent_gemma": RECURRENT_GEMMA,
    "gemma": GEMMA,
    "deepmind": DEEPMIND,
    "flax": tuple(_flax(row) for row in DEEPMIND),
}


@dataclass(frozen=True)
class Entry:
    """A tensor that a checkpoint of one configuration must hold."""

    theirs: str
    ours: tuple[str, ...]
    layout: Layout
    shape: Shape
    """Of theirs."""


def entries(table: TableName, config: ModelConfig) -> tuple[Entry, ...]:
    """Every tensor of a checkpoint of `config` in a format; each of our parameters is in exactly one of them.

    Raises:
        CheckpointError: the format has no place for a parameter that `config` has, or none for layers that share one.
    """
    if table != "griffinlm" and config.recursion is not None:
        raise CheckpointError(f"the format {table} has no layers that share parameters")
    shapes = config.parameter_shapes()
    found = [_entry(row, shapes) for row in _rows(table, config, shapes) if all(name in shapes for name in row.ours)]
    homeless = shapes.keys() - {name for entry in found for name in entry.ours}
    if homeless:
        first = next(name for name in shapes if name in homeless)
        raise CheckpointError(
            f"the format {table} has no place for {len(homeless)} parameters of this model, the first is {first}"
        )
    return tuple(found)


def _rows(table: TableName, config: ModelConfig, shapes: dict[str, Shape]) -> list[Row]:
    if table == "griffinlm":
        return [_row(name, name) for name in shapes]
    rows = [row for row in TABLES[table] if "{i}" not in row.theirs]
    for i in range(config.num_layers):
        rows += [
            replace(row, theirs=row.theirs.format(i=i), ours=tuple(name.format(i=i) for name in row.ours))
            for row in TABLES[table]
            if "{i}" in row.theirs
        ]
    return rows


def _entry(row: Row, shapes: dict[str, Any]) -> Entry:
    return Entry(row.theirs, row.ours, row.layout, row.layout.shape(*(shapes[name] for name in row.ours)))
