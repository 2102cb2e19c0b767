"""The bundled model, whose weights were trained, writes the same text in transformers."""

from pathlib import Path

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


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = open_checkpoint(find_model("eyas"))
    directory = tmp_path_factory.mktemp("eyas") / "huggingface"
    tokenizer = checkpoint.tokenizer_directory
    write_checkpoint(checkpoint.config, checkpoint.tensors(), directory, "huggingface", tokenizer_directory=tokenizer)
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
    model = griffinlm.load("eyas")
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
