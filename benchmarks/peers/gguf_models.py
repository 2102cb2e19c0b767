"""Writes a GGUF file of random weights in the shapes of a model that llama.cpp knows.

Run as `python -m peers.gguf_models MODEL TYPE PATH [characters]`; needs numpy and gguf. Every matrix is of TYPE,
embedding and head too: `llama-quantize` would keep a Q4_0 model's head in Q6_K, so these files are smaller than its
own, and faster. With `characters` the file has a vocabulary, in which every character is a token; else it has none.
"""

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter  # pyright: ignore[reportMissingImports]

from .characters import BYTES, CONTROL, vocabulary

BLOCK_WEIGHTS = 32
BLOCK_BYTES = {"Q4_0": 16, "Q8_0": 32}
"""Bytes of a block's numbers, behind its float16 scale."""
TYPICAL_LEVEL = {"Q4_0": 4.6, "Q8_0": 73.9}
"""Standard deviation of a uniformly drawn number of a block: what a scale of 1 gives."""
CONTEXT_TOKENS = 1 << 17


@dataclass(frozen=True)
class Gemma:
    """Sizes of a Gemma transformer."""

    num_layers: int
    width: int
    mlp_hidden: int
    num_heads: int
    head_size: int
    vocab_size: int

    architecture = "gemma"

    def describe(self, writer: GGUFWriter) -> None:
        writer.add_feed_forward_length(self.mlp_hidden)
        writer.add_head_count(self.num_heads)
        writer.add_head_count_kv(1)
        writer.add_key_length(self.head_size)
        writer.add_value_length(self.head_size)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, [out, in]; vectors stay float32."""
        D, inner = self.width, self.num_heads * self.head_size
        yield "token_embd.weight", (self.vocab_size, D)
        for layer in range(self.num_layers):
            yield f"blk.{layer}.attn_norm.weight", (D,)
            yield f"blk.{layer}.attn_q.weight", (inner, D)
            yield f"blk.{layer}.attn_k.weight", (self.head_size, D)
            yield f"blk.{layer}.attn_v.weight", (self.head_size, D)
            yield f"blk.{layer}.attn_output.weight", (D, inner)
            yield f"blk.{layer}.ffn_norm.weight", (D,)
            yield f"blk.{layer}.ffn_gate.weight", (self.mlp_hidden, D)
            yield f"blk.{layer}.ffn_up.weight", (self.mlp_hidden, D)
            yield f"blk.{layer}.ffn_down.weight", (D, self.mlp_hidden)
        yield "output_norm.weight", (D,)


@dataclass(frozen=True)
class Mamba:
    """Sizes of a Mamba state space model."""

    num_layers: int
    width: int
    inner: int
    state_size: int
    num_conv_taps: int
    step_rank: int
    vocab_size: int

    architecture = "mamba"

    def describe(self, writer: GGUFWriter) -> None:
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        writer.add_ssm_conv_kernel(self.num_conv_taps)
        writer.add_ssm_inner_size(self.inner)
        writer.add_ssm_state_size(self.state_size)
        writer.add_ssm_time_step_rank(self.step_rank)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, [out, in]; llama.cpp takes convolution and decay (`ssm_a`) in float32 only."""
        D, inner = self.width, self.inner
        yield "token_embd.weight", (self.vocab_size, D)
        for layer in range(self.num_layers):
            yield f"blk.{layer}.attn_norm.weight", (D,)
            yield f"blk.{layer}.ssm_in.weight", (2 * inner, D)
            yield f"blk.{layer}.ssm_conv1d.weight", (inner, self.num_conv_taps)
            yield f"blk.{layer}.ssm_conv1d.bias", (inner,)
            yield f"blk.{layer}.ssm_x.weight", (self.step_rank + 2 * self.state_size, inner)
            yield f"blk.{layer}.ssm_dt.weight", (inner, self.step_rank)
            yield f"blk.{layer}.ssm_dt.bias", (inner,)
            yield f"blk.{layer}.ssm_a", (inner, self.state_size)
            yield f"blk.{layer}.ssm_d", (inner,)
            yield f"blk.{layer}.ssm_out.weight", (D, inner)
        yield "output_norm.weight", (D,)


MODELS: dict[str, Gemma | Mamba] = {
    "gemma-2b": Gemma(18, 2048, 16_384, 8, 256, 256_000),
    "mamba-2.8b": Mamba(64, 2560, 5120, 16, 4, 160, 50_280),
    "tiny-gemma": Gemma(2, 128, 256, 2, 64, 512),
    "tiny-mamba": Mamba(2, 128, 256, 16, 4, 32, 512),
}


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and not name.endswith(("ssm_conv1d.weight", "ssm_a"))


def random_blocks(shape: tuple[int, ...], kind: str, random: np.random.Generator) -> np.ndarray:
    """uint8 [out, bytes of a row]: weights of about 1 / sqrt(in), drawn as quantized numbers with one scale."""
    num_rows, num_inputs = shape
    blocks = np.empty((num_rows * num_inputs // BLOCK_WEIGHTS, 2 + BLOCK_BYTES[kind]), np.uint8)
    scale = np.float16(1.0 / (TYPICAL_LEVEL[kind] * math.sqrt(num_inputs)))
    blocks[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)
    blocks[:, 2:] = np.frombuffer(random.bytes(len(blocks) * BLOCK_BYTES[kind]), np.uint8).reshape(len(blocks), -1)
    return blocks.reshape(num_rows, -1)


def plain_values(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """float32: ones for norms, decays below zero as Mamba has them, small numbers elsewhere."""
    if name.endswith("norm.weight"):
        return np.ones(shape, np.float32)
    if name.endswith("ssm_a"):
        return -np.broadcast_to(np.arange(1, shape[1] + 1, dtype=np.float32), shape).copy()
    return 0.1 * random.standard_normal(shape, dtype=np.float32)


def describe_characters(writer: GGUFWriter, vocab_size: int) -> None:
    """The vocabulary of characters in SentencePiece's form, which writes a space as U+2581."""
    normal, unknown, control, byte = 1, 2, 3, 6  # llama.cpp's types of tokens
    types = [control] * len(CONTROL) + [byte] * len(BYTES)
    types[CONTROL.index("<unk>")] = unknown
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token.replace(" ", "\u2581") for token in vocabulary(vocab_size)])
    writer.add_token_scores([0.0] * vocab_size)
    writer.add_token_types([*types, *[normal] * (vocab_size - len(types))])
    for role, add in (
        ("<bos>", writer.add_bos_token_id),
        ("<eos>", writer.add_eos_token_id),
        ("<unk>", writer.add_unk_token_id),
        ("<pad>", writer.add_pad_token_id),
    ):
        add(CONTROL.index(role))
    writer.add_add_space_prefix(False)


def write_model(model: str, kind: str, path: Path, has_characters: bool = False) -> None:
    """Writes `model` of MODELS with matrices of type `kind`, tensor by tensor; nothing half-written stays at `path`."""
    sizes = MODELS[model]
    partial = path.with_suffix(".partial")
    writer: Any = GGUFWriter(partial, sizes.architecture)
    writer.add_block_count(sizes.num_layers)
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(sizes.width)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(sizes.vocab_size)
    if has_characters:
        describe_characters(writer, sizes.vocab_size)
    else:
        writer.add_tokenizer_model("no_vocab")
    sizes.describe(writer)
    shapes = list(sizes.shapes())
    for name, shape in shapes:
        if is_quantized(name, shape):
            row_bytes = shape[1] // BLOCK_WEIGHTS * (2 + BLOCK_BYTES[kind])
            described = ((shape[0], row_bytes), np.dtype(np.uint8), shape[0] * row_bytes, GGMLQuantizationType[kind])
        else:
            described = (shape, np.dtype(np.float32), 4 * math.prod(shape), None)
        writer.add_tensor_info(name, *described)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    for name, shape in shapes:
        draw = random_blocks(shape, kind, random) if is_quantized(name, shape) else plain_values(name, shape, random)
        writer.write_tensor_data(draw)
    writer.close()
    os.replace(partial, path)


if __name__ == "__main__":
    write_model(sys.argv[1], sys.argv[2], Path(sys.argv[3]), has_characters=sys.argv[4:] == ["characters"])
