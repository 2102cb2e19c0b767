"""Reading in one call, in chunks, token by token, in forks and in turns gives the same numbers.

States:
- the full forward = token by token from an empty state;
- the full forward = chunks of every split, chunks of 1, 2, 3 tokens and chunks that cross the window among them;
- fork: two continuations from one state = two runs from scratch, and the parent state is unchanged;
- two conversations interleaved on one model object = each alone;
- a second run on the same object = the first (nothing survives a call);
- a new document in a used state = a fresh state (hidden state, convolution, ring);
- long decoding, many times the window, does not drift;
- the logits asked for change nothing but the logits;
- global attention refuses to pass its capacity.
"""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import (
    PATTERNS,
    Case,
    assert_same_logits,
    assert_same_state,
    cases,
    configs,
    copy_state,
    cuts,
    empty_state,
    is_same,
    random_model,
    read,
)

from griffinlm.config import ModelConfig

LOCAL = tuple(name for name, pattern in PATTERNS.items() if "global_attention" not in pattern)


@given(cases())
def test_full_forward_equals_token_by_token(case):
    logits, state = case.model(case.tokens, case.empty())
    stepped, stepped_state = read(case.model, list(case.tokens.split(1, dim=1)), case.empty())
    assert_same_logits(stepped, logits)
    assert_same_state(stepped_state, state)


@given(cases(), st.data())
def test_full_forward_equals_chunks_of_any_split(case, data):
    logits, state = case.model(case.tokens, case.empty())
    chunks = list(case.tokens.split(data.draw(cuts(case)), dim=1))
    chunked, chunked_state = read(case.model, chunks, case.empty())
    assert_same_logits(chunked, logits)
    assert_same_state(chunked_state, state)


@pytest.mark.parametrize("preset", ["tiny-griffin", "tiny-hawk", "tiny-gemma"])
def test_full_forward_equals_every_split_in_two(preset):
    config = ModelConfig.preset(preset)
    model = random_model(config, seed=0)
    for num_tokens in (1, 2, 3, 4, 5, 6, 7, 8, 15):
        tokens = torch.randint(config.vocab_size, (2, num_tokens), generator=torch.Generator().manual_seed(num_tokens))
        case = Case(model, tokens)
        logits, state = model(tokens, case.empty())
        for cut in range(1, num_tokens):
            found, found_state = read(model, [tokens[:, :cut], tokens[:, cut:]], case.empty())
            assert_same_logits(found, logits)
            assert_same_state(found_state, state)


@given(cases(LOCAL))
def test_no_state_equals_an_empty_state(case):
    logits, state = case.model(case.tokens)
    expected, expected_state = case.model(case.tokens, case.empty())
    assert_same_logits(logits, expected)
    assert_same_state(state, expected_state)


@given(cases(("Gemma", "recurrent and global")))
def test_no_state_equals_an_empty_state_with_capacity(case):
    """Without a state a global ring has exactly as many slots as the call has tokens."""
    logits, state = case.model(case.tokens)
    expected, expected_state = case.model(case.tokens, empty_state(case.model, len(case.tokens), case.num_tokens))
    assert_same_logits(logits, expected)
    assert_same_state(state, expected_state)


@given(cases(), st.data())
def test_fork_equals_two_runs_from_scratch_and_leaves_the_parent(case, data):
    cut = data.draw(st.integers(0, case.num_tokens - 1))
    beginning, ends = case.tokens[:, :cut], (case.tokens[:, cut:], case.tokens[:, cut:].flip(1))
    parent = case.model(beginning, case.empty())[1] if cut else case.empty()
    before = copy_state(parent)
    for end in ends:
        logits, state = case.model(end, parent)
        expected, expected_state = case.model(torch.cat([beginning, end], dim=1), case.empty())
        assert_same_logits(logits, expected[:, cut:])
        assert_same_state(state, expected_state)
        assert is_same(parent, before)


@given(cases(), st.data())
def test_two_interleaved_conversations_equal_each_alone(case, data):
    """The same calls in another order: bit by bit, since nothing may survive a call outside the state."""
    conversations = [case.tokens, case.tokens.flip(1)]
    chunks = [list(tokens.split(data.draw(cuts(case)), dim=1)) for tokens in conversations]
    alone = [read(case.model, parts, case.empty()) for parts in chunks]
    states, found = [case.empty(), case.empty()], [[], []]
    for turn in itertools.zip_longest(*chunks):
        for speaker, chunk in enumerate(turn):
            if chunk is not None:
                logits, states[speaker] = case.model(chunk, states[speaker])
                found[speaker].append(logits)
    for speaker, (logits, state) in enumerate(alone):
        assert torch.equal(torch.cat(found[speaker], dim=1), logits)
        assert is_same(states[speaker], state)


@given(cases(), st.data())
def test_new_document_in_a_used_state_equals_a_fresh_state(case, data):
    """It begins at position 0 in a state that read something else, and goes on in chunks without positions."""
    _, used = case.model(case.tokens.flip(1), case.empty())
    first, *rest = case.tokens.split(data.draw(cuts(case)), dim=1)
    logits, used = case.model(first, used, torch.arange(first.shape[1]).expand_as(first))
    parts = [logits]
    if rest:
        logits, used = read(case.model, rest, used)
        parts.append(logits)
    expected, expected_state = case.model(case.tokens, case.empty())
    assert_same_logits(torch.cat(parts, dim=1), expected)
    assert_same_state(used, expected_state)


@given(configs(LOCAL, may_be_recursive=False), st.integers(0, 2**31))
def test_long_decoding_does_not_drift(config, seed):
    """Every step of ten windows = the full forward; the last steps = one forward over them from the true state."""
    window = 6 if config.attention is None else config.attention.window_tokens
    model = random_model(config, seed)
    num_tokens, cut = 10 * window, 9 * window
    tokens = torch.randint(config.vocab_size, (1, num_tokens), generator=torch.Generator().manual_seed(seed))
    logits, state = model(tokens)
    early, middle = read(model, list(tokens[:, :cut].split(1, dim=1)), empty_state(model, 1, num_tokens))
    late, last = read(model, list(tokens[:, cut:].split(1, dim=1)), middle)
    whole, whole_state = model(tokens[:, cut:], middle)
    assert_same_logits(torch.cat([early, late], dim=1), logits)
    assert_same_state(last, state)
    assert_same_logits(late, whole)
    assert_same_state(last, whole_state)


@given(cases())
def test_logits_of_the_last_token_and_none_at_all_change_nothing_else(case):
    logits, state = case.model(case.tokens, case.empty(), logits="all")
    last, last_state = case.model(case.tokens, case.empty(), logits="last")
    none, none_state = case.model(case.tokens, case.empty(), logits="none")
    assert_same_logits(last, logits[:, -1:])
    assert none is None
    assert is_same(last_state, state)
    assert is_same(none_state, state)


@given(cases(("Gemma",)))
def test_global_attention_reads_up_to_its_capacity_and_refuses_to_pass_it(case):
    num_rows, num_tokens = case.tokens.shape
    exact = empty_state(case.model, num_rows, num_tokens)
    _, full = case.model(case.tokens, exact)
    for state, tokens in ((full, case.tokens[:, :1]), (exact, torch.cat([case.tokens, case.tokens[:, :1]], dim=1))):
        with pytest.raises(ValueError, match="capacity"):
            case.model(tokens, state)
