"""The face computes what `model.Griffin` computes, however rows are padded, packed, cut or kept."""

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the extra train")

import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import Case, assert_same_logits, cases, cuts
from transformers import DynamicCache

from griffinlm.config import ModelConfig
from griffinlm.errors import GriffinError
from griffinlm.hf import GriffinCache, GriffinConfig, GriffinForCausalLM

from .face import CONFIGS, OURS, PUBLISHED, causal_lm, padded, random_face, random_rows


@given(cases(may_be_recursive=False))
def test_logits_equal_those_of_the_model_itself(case: Case):
    expected, _ = case.model(case.tokens)
    found = causal_lm(case.model)(case.tokens)
    assert torch.equal(found.logits, expected)
    assert found.logits.dtype == torch.float32


@given(st.data())
def test_chunks_with_a_cache_equal_one_call(data: st.DataObject):
    case = data.draw(cases(may_be_recursive=False))
    face, cache = causal_lm(case.model), GriffinCache()
    chunks = case.tokens.split(data.draw(cuts(case)), dim=1)
    with torch.no_grad():
        found = [face(chunk, past_key_values=cache).logits for chunk in chunks]
        assert_same_logits(torch.cat(found, dim=1), face(case.tokens).logits)
    assert cache.get_seq_length() == case.num_tokens


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("side", ["left", "right", "mixed"])
def test_padded_rows_equal_each_alone_and_go_on_so(name: str, side: str):
    config = CONFIGS[name]
    face, rows = random_face(config), random_rows(config, [1, 2, 3, 7, 8, 9, 20])
    tokens, mask = padded(rows, side, extra=4)
    with torch.no_grad():
        outputs = face(tokens, attention_mask=mask, use_cache=True)
        more = random_rows(config, [3] * len(rows), seed=1)
        mask = torch.cat([mask, torch.ones(len(rows), 3, dtype=torch.int64)], dim=1)
        after = face(torch.cat(more), attention_mask=mask, past_key_values=outputs.past_key_values).logits
        for index, row in enumerate(rows):
            alone = face(torch.cat([row, more[index]], dim=1)).logits[0]
            real = mask[index, : tokens.shape[1]] == 1
            assert_same_logits(outputs.logits[index, real], alone[: row.shape[1]])
            assert_same_logits(after[index], alone[row.shape[1] :])


@pytest.mark.parametrize("name", CONFIGS)
def test_documents_packed_by_position_ids_equal_each_alone(name: str):
    config = CONFIGS[name]
    face, documents = random_face(config), random_rows(config, [1, 2, 3, 9, 5, 20, 1])
    positions = torch.cat([torch.arange(d.shape[1]) for d in documents])[None]
    packed = torch.cat(documents, dim=1)
    with torch.no_grad():
        found = face(packed, position_ids=positions, seq_idx=(positions == 0).cumsum(1) - 1).logits
        expected = torch.cat([face(d).logits for d in documents], dim=1)
    assert_same_logits(found, expected)


def test_position_ids_at_padding_do_not_matter():
    face, rows = random_face(PUBLISHED), random_rows(PUBLISHED, [4, 9])
    tokens, mask = padded(rows, "left")
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    with torch.no_grad():
        expected = face(tokens, attention_mask=mask).logits
        found = face(tokens, attention_mask=mask, position_ids=positions).logits
    assert torch.equal(found[mask == 1], expected[mask == 1])


@pytest.mark.parametrize("name", CONFIGS)
def test_embedded_tokens_equal_token_ids(name: str):
    face, (row,) = random_face(CONFIGS[name]), random_rows(CONFIGS[name], [11])
    embeddings = face.get_input_embeddings()(row)
    assert torch.equal(face(inputs_embeds=embeddings).logits, face(row).logits)


def test_logits_to_keep_equal_a_slice_of_all():
    face, (row,) = random_face(PUBLISHED), random_rows(PUBLISHED, [11])
    full = face(row).logits
    assert_same_logits(face(row, logits_to_keep=1).logits, full[:, -1:])
    assert_same_logits(face(row, logits_to_keep=4).logits, full[:, -4:])
    assert_same_logits(face(row, logits_to_keep=torch.tensor([2, 7])).logits, full[:, [2, 7]])


@pytest.mark.parametrize("kept", [torch.arange(6), torch.tensor([3, 4, 5, 6, 7]), 8, 1])
def test_labels_of_kept_tokens_leave_out_what_those_of_all_do(kept: torch.Tensor | int):
    face, rows = random_face(PUBLISHED), torch.cat(random_rows(PUBLISHED, [12, 12]))
    mask = torch.ones_like(rows)
    mask[0, :4] = 0
    positions = torch.cat([torch.arange(7), torch.arange(5)]).expand(2, -1)
    places = slice(-kept, None) if isinstance(kept, int) else kept
    for inputs, left_out in (
        ({"attention_mask": mask}, torch.nn.functional.pad(mask == 0, (1, 0))[:, :12] | (mask == 0)),
        ({"position_ids": positions}, positions == 0),
    ):
        outputs = face(rows, **inputs, labels=rows[:, places], logits_to_keep=kept)
        wanted = rows.masked_fill(left_out, -100)[:, places][:, 1:]
        expected = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), wanted.flatten())
        torch.testing.assert_close(outputs.loss, expected, equal_nan=True)


def test_layers_that_lie_on_disk_give_the_same_logits(tmp_path: Path):
    face, (row,) = random_face(PUBLISHED), random_rows(PUBLISHED, [9])
    face.save_pretrained(tmp_path / "model")
    places = {"model.embedding": "cpu", "lm_head": "cpu", "model.final_norm": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(PUBLISHED.num_layers)}
    offloaded = GriffinForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk"
    )
    assert_same_logits(offloaded(row).logits, face(row).logits)


def test_hidden_states_of_padded_rows_equal_each_alone():
    face, rows = random_face(PUBLISHED), random_rows(PUBLISHED, [4, 9])
    tokens, mask = padded(rows, "left")
    with torch.no_grad():
        found = face.model(tokens, attention_mask=mask, output_hidden_states=True)
        assert len(found.hidden_states) == PUBLISHED.num_layers + 1
        assert found.hidden_states[-1] is found.last_hidden_state
        for index, row in enumerate(rows):
            alone = face.model(row, output_hidden_states=True).hidden_states
            for one, other in zip(found.hidden_states, alone, strict=True):
                assert_same_logits(one[index, mask[index] == 1], other[0])


def test_conversations_with_caches_of_their_own_do_not_meet():
    face, (one, other) = random_face(PUBLISHED), random_rows(PUBLISHED, [12, 12])
    caches = GriffinCache(), GriffinCache()
    found = ([], [])
    with torch.no_grad():
        for place in range(0, 12, 3):
            for row, cache, logits in zip((one, other), caches, found, strict=True):
                logits.append(face(row[:, place : place + 3], past_key_values=cache).logits)
        for row, logits in zip((one, other), found, strict=True):
            assert_same_logits(torch.cat(logits, dim=1), face(row).logits)


def gradients(face: GriffinForCausalLM, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    face.zero_grad()
    face(**inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in face.named_parameters()}


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_checkpointing_on_equals_off(name: str, use_reentrant: bool):
    face = random_face(CONFIGS[name]).train()
    tokens, mask = padded(random_rows(CONFIGS[name], [5, 12]), "left")
    inputs = {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}
    expected = gradients(face, **inputs)
    calls = []
    for depth, block in enumerate(face.model.layers):
        block.register_forward_pre_hook(lambda *_, depth=depth: calls.append(depth))
    for every_n_layers in (1, 2):
        calls.clear()
        face.activation_checkpointing_enable({"use_reentrant": use_reentrant}, every_n_layers)
        found = gradients(face, **inputs)
        num_expected = [2 if depth % every_n_layers == 0 else 1 for depth in range(len(face.model.layers))]
        assert [calls.count(depth) for depth in range(len(face.model.layers))] == num_expected
        assert all(torch.equal(found[name], values) for name, values in expected.items())


def test_training_without_a_cache_keeps_no_state():
    face, (row,) = random_face(PUBLISHED).train(), random_rows(PUBLISHED, [9])
    assert face(row).past_key_values is None
    assert face(row, use_cache=True).past_key_values is not None
    assert face.eval()(row).past_key_values is not None
    assert face(row, use_cache=False).past_key_values is None


def test_padding_adds_nothing_to_a_gradient():
    face, (row,) = random_face(OURS).train(), random_rows(OURS, [9])
    expected = gradients(face, input_ids=row, labels=row)
    for side in ("left", "right"):
        tokens, mask = padded([row], side, extra=5)
        found = gradients(face, input_ids=tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100))
        for name, values in expected.items():
            assert_same_logits(found[name], values, name)


def test_loss_is_the_cross_entropy_of_capped_logits():
    face, rows = random_face(PUBLISHED), random_rows(PUBLISHED, [9, 9])
    tokens = torch.cat(rows)
    labels = tokens.clone()
    labels[0, :4] = -100
    hidden = face.model(tokens).last_hidden_state
    raw = hidden @ face.model.embedding.weight.T
    capped = 5.0 * torch.tanh(raw / 5.0)
    assert (raw - capped).abs().max() > 0.1, "the cap changes nothing here"
    counted = labels[:, 1:] != -100
    chances = capped[:, :-1].log_softmax(dim=-1).gather(2, tokens[:, 1:, None])[..., 0][counted]
    torch.testing.assert_close(face(tokens, labels=labels).loss, -chances.mean())
    torch.testing.assert_close(face(tokens, labels=labels, num_items_in_batch=7).loss, -chances.sum() / 7)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(face(tokens, labels=labels, shift_labels=shifted).loss, -chances.mean())


def test_loss_alone_equals_the_loss_beside_logits():
    face, tokens = random_face(PUBLISHED).train(), torch.cat(random_rows(PUBLISHED, [9, 9]))
    labels = tokens.clone()
    labels[0, :4] = -100
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    kinds = [{"labels": labels}, {"labels": labels, "num_items_in_batch": 7}, {"shift_labels": shifted}]
    positions = torch.cat([torch.arange(5), torch.arange(4)])[None].expand(2, -1)
    for arguments in [*kinds, {"labels": labels, "position_ids": positions}]:
        outputs = face(tokens, **arguments, skip_logits=True)
        assert outputs.logits is None
        torch.testing.assert_close(outputs.loss, face(tokens, **arguments).loss)
        found = gradients(face, input_ids=tokens, **arguments, skip_logits=True)
        for name, values in gradients(face, input_ids=tokens, **arguments).items():
            assert_same_logits(found[name], values, name)


def test_loss_alone_is_refused_where_it_would_not_be_the_models_own():
    face, (row,) = random_face(PUBLISHED), random_rows(PUBLISHED, [9])
    with pytest.raises(GriffinError, match="skip_logits is given without labels"):
        face(row, skip_logits=True)
    face.loss_function = lambda logits, **_: logits.sum()
    with pytest.raises(GriffinError, match="a loss function of its own"):
        face(row, labels=row, skip_logits=True)
    face = random_face(PUBLISHED)
    face.lm_head = torch.nn.Sequential(face.lm_head)
    with pytest.raises(GriffinError, match="lm_head is a Sequential"):
        face(row, labels=row, skip_logits=True)


def test_new_tokens_leave_the_logits_of_the_others():
    face, (row,) = random_face(PUBLISHED), random_rows(PUBLISHED, [9])
    expected = face(row).logits
    face.resize_token_embeddings(PUBLISHED.vocab_size + 3)
    assert face.lm_head.weight is face.model.embedding.weight
    assert face.config.model_config.vocab_size == PUBLISHED.vocab_size + 3
    assert torch.equal(face(row).logits[..., : PUBLISHED.vocab_size], expected)


def test_bfloat16_trains_in_mixed_precision():
    face, (row,) = random_face(PUBLISHED).train(), random_rows(PUBLISHED, [9])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = face(row, labels=row)
    outputs.loss.backward()
    assert outputs.logits.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, face(row, labels=row).loss, atol=0.05, rtol=0.05)


def test_a_new_model_has_the_initial_values_of_the_package():
    config = GriffinConfig.from_model_config(ModelConfig.preset("eyas"))
    torch.manual_seed(3)
    face = GriffinForCausalLM(config)
    torch.manual_seed(3)
    assert all(map(torch.equal, face.parameters(), GriffinForCausalLM(config).parameters()))
    assert face.lm_head.weight is face.model.embedding.weight
    layer = face.model.layers[0]
    assert not layer.temporal_norm.scale.any()
    assert not layer.mlp.up.bias.any()
    assert layer.mlp.up.weight.std().item() == pytest.approx(320**-0.5, rel=0.02)
    assert layer.mlp.down.weight.std().item() == pytest.approx((2 / (6 * 960)) ** 0.5, rel=0.02)
    decay = torch.sigmoid(-layer.recurrent.rg_lru.a_param)
    assert 0.9 <= decay.min() <= decay.max() <= 0.999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": torch.ones(1, 3, dtype=torch.int64), "token_type_ids": torch.ones(1, 3)}, "token_type_ids"),
        ({"input_ids": torch.ones(1, 3, dtype=torch.int64), "output_attentions": True}, "output_attentions"),
        (
            {"input_ids": torch.ones(1, 3, dtype=torch.int64), "attention_mask": torch.ones(1, 4)},
            "attention_mask is [1, 4]; it must be [1, 3]",
        ),
        (
            {"input_ids": torch.ones(1, 3, dtype=torch.int64), "position_ids": torch.tensor([[0, 1, 5]])},
            "position 5 continues no document; here it must be 2",
        ),
        (
            {"input_ids": torch.ones(1, 3, dtype=torch.int64), "position_ids": torch.tensor([[0, 1]])},
            "position_ids is [1, 2]; it must be [1, 3]",
        ),
        (
            {"input_ids": torch.ones(1, 3, dtype=torch.int64), "cu_seq_lens_q": torch.tensor([0, 1, 3])},
            "without position_ids",
        ),
        (
            {"input_ids": torch.ones(1, 3, dtype=torch.int64), "past_key_values": DynamicCache()},
            "past_key_values is a DynamicCache; it must be a GriffinCache",
        ),
        ({"input_ids": torch.ones(1, 0, dtype=torch.int64)}, "the inputs are [1, 0]; they must be [rows, tokens]"),
        ({"input_ids": torch.ones(3, dtype=torch.int64)}, "the inputs are [3]; they must be [rows, tokens]"),
        (
            {"input_ids": torch.ones(1, 3, dtype=torch.int64), "labels": torch.ones(1, 2, dtype=torch.int64)},
            "labels are [1, 2]; logits are kept for [1, 3]",
        ),
        (
            {
                "input_ids": torch.ones(1, 3, dtype=torch.int64),
                "labels": torch.ones(1, 3, dtype=torch.int64),
                "logits_to_keep": 1,
            },
            "labels are [1, 3]; logits are kept for [1, 1]",
        ),
    ],
)
def test_what_would_have_to_be_ignored_is_refused(arguments: dict, message: str):
    with pytest.raises(GriffinError) as refusal:
        random_face(PUBLISHED)(**arguments)
    assert message in str(refusal.value)


def test_a_cache_of_other_rows_is_refused():
    face, rows = random_face(PUBLISHED), random_rows(PUBLISHED, [4, 4])
    cache = face(rows[0]).past_key_values
    with pytest.raises(GriffinError, match="the inputs have 2 rows; the cache has 1"):
        face(torch.cat(rows), past_key_values=cache)


def test_loss_of_packed_documents_equals_that_of_each_alone():
    face, documents = random_face(PUBLISHED), random_rows(PUBLISHED, [4, 9, 2])
    positions = torch.cat([torch.arange(d.shape[1]) for d in documents])[None]
    packed = torch.cat(documents, dim=1)
    with torch.no_grad():
        expected = sum(face(d, labels=d, num_items_in_batch=1).loss for d in documents)
        found = face(packed, position_ids=positions, labels=packed, num_items_in_batch=1).loss
    torch.testing.assert_close(found, expected)
