"""The bundled model, whose weights were trained, writes the same text in transformers."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs tests/parity/requirements.txt")

import torch
from transformers import AutoTokenizer

import griffinlm
from griffinlm.checkpoint import open_checkpoint, write_checkpoint
from griffinlm.loading import find_model

from .huggingface import load_original
from .reading import BOUND, deviation

pytestmark = pytest.mark.parity

NUM_ANSWER_TOKENS = 40


def in_blocks(array: np.ndarray, num_blocks: int) -> np.ndarray:
    """A gate's weight [blocks, size, size] or bias [blocks, size] in other blocks; the rest falls away."""
    size = array.shape[0] * array.shape[1] // num_blocks
    if array.ndim == 2:
        return array.reshape(num_blocks, size)
    dense = np.zeros((num_blocks * size,) * 2, array.dtype)
    for index, block in enumerate(array):
        place = slice(index * len(block), (index + 1) * len(block))
        dense[place, place] = block
    return np.stack([dense[i : i + size, i : i + size] for i in range(0, len(dense), size)])


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained weights as RecurrentGemma, whose gates have as many blocks as attention has heads."""
    checkpoint = open_checkpoint(find_model("eyas"))
    recurrent, attention = checkpoint.config.recurrent, checkpoint.config.attention
    assert recurrent is not None
    assert attention is not None
    number = attention.num_heads
    config = dataclasses.replace(checkpoint.config, recurrent=dataclasses.replace(recurrent, num_gate_blocks=number))
    tensors = (
        (name, in_blocks(array, number) if "rg_lru" in name and "_gate." in name else array)
        for name, array in checkpoint.tensors()
    )
    directory = tmp_path_factory.mktemp("eyas") / "huggingface"
    write_checkpoint(config, tensors, directory, "huggingface", tokenizer_directory=checkpoint.tokenizer_directory)
    return directory


def test_its_tokenizer_cuts_text_the_same_in_transformers(converted: Path):
    ours, theirs = griffinlm.Tokenizer.from_directory(converted), AutoTokenizer.from_pretrained(converted)
    for text in ("Once upon a time", "  two spaces\n\nand 12345 é€😀", "don't\tstop"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    messages = [{"role": "user", "content": "hello"}]
    rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered == ours.render_chat(messages)


@pytest.mark.parametrize("prompt", ["Once upon a time", "The history of the city", "A", "3 + 4 = "])
def test_greedy_text_equals_that_of_transformers(converted: Path, prompt: str):
    model = griffinlm.load(converted)
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode(prompt)]
    answer = model.generate(ids, max_tokens=NUM_ANSWER_TOKENS, min_tokens=NUM_ANSWER_TOKENS, temperature=0)
    whole = torch.tensor([[*ids, *answer.token_ids]])
    with torch.no_grad():
        theirs = load_original(model.config, converted)(whole, use_cache=False).logits
    ours, _ = model.forward(whole.numpy())
    assert ours is not None
    assert deviation(torch.from_numpy(ours), theirs) <= BOUND
    theirs[..., sorted(model.tokenizer.end_ids)] = -torch.inf
    assert theirs[0, len(ids) - 1 : -1].argmax(-1).tolist() == answer.token_ids
