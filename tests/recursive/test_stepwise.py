"""Which layers the shared ones begin as where they are picked at regular distances."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import PATTERNS

from griffinlm.config import AttentionConfig, ModelConfig, RecurrentConfig, RecursionConfig
from griffinlm.presets import PRESETS
from griffinlm.recursive.settings import stepwise_layers


@pytest.mark.parametrize(
    ("preset", "num_loops", "layers"),
    [
        # Gemma's are the paper's: round(linspace(0, 17, 9)).
        ("gemma-2b", 2, [0, 2, 4, 6, 8, 11, 13, 15, 17]),
        ("gemma-2b", 3, [0, 3, 7, 10, 14, 17]),
        ("gemma-2b", 18, [0]),
        ("recurrentgemma-2b", 2, [0, 1, 5, 6, 7, 11, 13, 15, 17, 19, 21, 23]),
        ("recurrentgemma-2b", 8, [0, 12, 23]),
    ],
)
def test_layers_at_regular_distances_give_way_to_the_nearest_of_their_kind(preset, num_loops, layers):
    config = dataclasses.replace(PRESETS[preset], recursion=RecursionConfig(num_loops))
    assert stepwise_layers(config) == layers


@given(st.sampled_from(sorted(PATTERNS)), st.integers(2, 6), st.integers(1, 8), st.integers(0, 5))
def test_picks_are_distinct_in_order_of_the_right_kinds_and_keep_first_and_last(name, num_loops, num_patterns, rest):
    pattern = PATTERNS[name]
    config = ModelConfig(
        vocab_size=2,
        width=4,
        num_layers=num_loops * num_patterns * len(pattern) + rest % (num_loops * len(pattern)),
        block_pattern=pattern,
        mlp_hidden=4,
        recurrent=RecurrentConfig(width=4, num_gate_blocks=1) if "recurrent" in pattern else None,
        attention=AttentionConfig(1, 4, 3 if "local_attention" in pattern else None)
        if set(pattern) - {"recurrent"}
        else None,
        recursion=RecursionConfig(num_loops),
    )
    picks = stepwise_layers(config)
    assert len(picks) == config.num_shared_layers
    assert picks == sorted(set(picks))
    assert [config.block_kinds[layer] for layer in picks] == list(config.block_kinds[: len(picks)])
    assert picks[0] == 0
    assert len(picks) == 1 or picks[-1] == config.num_looped_layers - 1
