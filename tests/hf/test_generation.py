"""`generate` writes with a cache what it writes without one, and what each row writes alone."""

import copy

import pytest

pytest.importorskip("transformers", reason="needs the extra train")

import torch
from small_models import assert_same_logits

import griffinlm.hf.model
from griffinlm.errors import GriffinError
from griffinlm.hf import GriffinCache

from .face import CONFIGS, PUBLISHED, padded, random_face, random_rows

LENGTH = {"max_new_tokens": 25, "min_new_tokens": 25}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 4},
        {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True},
        {"do_sample": True, "num_beams": 3},
    ],
)
def test_generation_with_a_cache_equals_that_without(name: str, how: dict):
    face = random_face(CONFIGS[name], eos_token_id=1, pad_token_id=0)
    tokens, mask = padded(random_rows(CONFIGS[name], [3, 11]), "left")
    written = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        written.append(face.generate(tokens, attention_mask=mask, use_cache=use_cache, **LENGTH, **how))
    assert torch.equal(*written)


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_of_a_padded_batch_write_what_each_writes_alone(name: str):
    face, rows = random_face(CONFIGS[name], pad_token_id=0), random_rows(CONFIGS[name], [1, 2, 12])
    tokens, mask = padded(rows, "left")
    together = face.generate(tokens, attention_mask=mask, do_sample=False, **LENGTH)
    for row, found in zip(rows, together, strict=True):
        alone = face.generate(row, do_sample=False, **LENGTH)
        assert torch.equal(found[tokens.shape[1] :], alone[0, row.shape[1] :])


def test_a_second_generate_equals_the_first():
    face, (row,) = random_face(PUBLISHED), random_rows(PUBLISHED, [1])
    first = face.generate(row, do_sample=False, **LENGTH)
    assert torch.equal(face.generate(row, do_sample=False, **LENGTH), first)


@pytest.mark.parametrize("num_kept", [22, 512])
@pytest.mark.parametrize("name", CONFIGS)
def test_assisted_generation_equals_plain_greedy(name: str, num_kept: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(griffinlm.hf.model, "NUM_TOKENS_TO_TAKE_BACK", num_kept)
    face, (row,) = random_face(CONFIGS[name]), random_rows(CONFIGS[name], [30])
    assistant = random_face(CONFIGS[name])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    plain = face.generate(row, do_sample=False, **LENGTH)
    calls = []
    assistant.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(face.generate(row, assistant_model=assistant, do_sample=False, **LENGTH), plain)
    assert calls, "the assistant was not asked"


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_looked_up_in_the_prompt_equal_plain_greedy(name: str):
    face, (row,) = random_face(CONFIGS[name]), random_rows(CONFIGS[name], [6])
    row = row.repeat(1, 4)
    plain = face.generate(row, do_sample=False, **LENGTH)
    assert torch.equal(face.generate(row, prompt_lookup_num_tokens=5, do_sample=False, **LENGTH), plain)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_conversation_that_goes_on_from_its_cache_equals_the_whole(name: str):
    face, (one, other) = random_face(CONFIGS[name]), random_rows(CONFIGS[name], [7, 4])
    first = face.generate(one, do_sample=False, return_dict_in_generate=True, **LENGTH)
    whole = torch.cat([first.sequences, other], dim=1)
    cache = copy.copy(first.past_key_values)
    found = face.generate(whole, past_key_values=cache, do_sample=False, **LENGTH)
    assert torch.equal(found, face.generate(whole, do_sample=False, **LENGTH))
    again = face.generate(whole, past_key_values=first.past_key_values, do_sample=False, **LENGTH)
    assert torch.equal(again, found), "the fork changed the cache it was made from"


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_back", [1, 2, 9, 12])
def test_tokens_taken_back_equal_never_read(name: str, num_back: int):
    face, (one, other, last) = random_face(CONFIGS[name]), random_rows(CONFIGS[name], [5, 12, 6])
    cache = GriffinCache()
    with torch.no_grad():
        face(one, past_key_values=cache)
        cache.activate_past_recording()
        for start in range(0, 12, 4):
            face(other[:, start : start + 4], past_key_values=cache)
        kept = other[:, : 12 - num_back]
        cache.crop(-num_back)
        assert cache.get_seq_length() == 5 + kept.shape[1]
        found = face(last[:, :3], past_key_values=cache).logits
        cache.crop(-1)
        cache.crop(0)
        found = torch.cat([found[:, :2], face(last[:, 2:], past_key_values=cache).logits], dim=1)
        expected = face(torch.cat([one, kept, last], dim=1)).logits[:, -6:]
    assert_same_logits(found, expected)


def test_what_was_not_recorded_cannot_be_taken_back():
    face, (row,) = random_face(PUBLISHED), random_rows(PUBLISHED, [5])
    cache = face(row).past_key_values
    with pytest.raises(GriffinError, match="1 tokens cannot be taken back; 0 were recorded"):
        cache.crop(-1)
    with pytest.raises(GriffinError, match="negative"):
        cache.crop(3)


def test_rows_of_a_cache_can_be_chosen_and_repeated():
    face, rows = random_face(PUBLISHED), random_rows(PUBLISHED, [5, 5])
    (more,) = random_rows(PUBLISHED, [3], seed=2)
    with torch.no_grad():
        cache = face(torch.cat(rows)).past_key_values
        cache.batch_select_indices(torch.tensor([1, 0, 1]))
        assert cache.batch_size == 3
        found = face(more.expand(3, -1), past_key_values=cache).logits
        for index, row in enumerate((rows[1], rows[0], rows[1])):
            assert_same_logits(found[index : index + 1], face(torch.cat([row, more], dim=1)).logits[:, -3:])
        cache = face(rows[0]).past_key_values
        cache.batch_repeat_interleave(2)
        assert_same_logits(face(more.expand(2, -1), past_key_values=cache).logits, found[[1, 1]])


def test_a_static_cache_is_refused():
    face, (row,) = random_face(PUBLISHED), random_rows(PUBLISHED, [5])
    with pytest.raises(GriffinError, match="cache_implementation is 'static'"):
        face.generate(row, cache_implementation="static", max_new_tokens=2)


def test_an_early_exit_of_the_assistant_is_refused_and_leaves_the_model():
    face, (row,) = random_face(PUBLISHED), random_rows(PUBLISHED, [5])
    expected = face.generate(row, do_sample=False, **LENGTH)
    with pytest.raises(GriffinError, match="assistant_early_exit is 2"):
        face.generate(row, assistant_early_exit=2, do_sample=False, **LENGTH)
    assert torch.equal(face.generate(row, do_sample=False, **LENGTH), expected)


def test_tokens_taken_back_again_and_again_are_not_read_from_the_start():
    face, (row,) = random_face(PUBLISHED), random_rows(PUBLISHED, [3])
    cache = GriffinCache()
    cache.activate_past_recording()
    with torch.no_grad():
        for _ in range(4):
            face(row, past_key_values=cache)
            cache.crop(-1)
            assert cache.unread.positions.shape[1] == 2
        found = face(row, past_key_values=cache).logits
        assert_same_logits(found, face(torch.cat([row[:, :2]] * 4 + [row], dim=1)).logits[:, -3:])
