"""Exported states come back exactly with the same key and model; anything else is refused whole, in one line."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.config import ModelConfig
from griffinlm.generation.store import SignatureError, StateStore, StoreError
from griffinlm.generation.store.signed import seal, unseal
from store.small_states import GRIFFIN, Model, after, empty, is_same

KEY = b"k" * 32
STATES = [([1, 2, 3], after(empty(GRIFFIN), 3, 0)), ([4] * 9, after(empty(GRIFFIN), 9, 2))]


def exported(num_states: int = 1) -> bytes:
    with new_store() as store:
        return store.export_states("a", [store.put("a", *state) for state in STATES[:num_states]], KEY)


def new_store(model: Model = GRIFFIN, memory_bytes: int = 1 << 20) -> StateStore:
    return StateStore(model, None, memory_bytes=memory_bytes)


def assert_refused(data: bytes, key: bytes = KEY, model: Model = GRIFFIN, error=SignatureError, **options) -> str:
    with new_store(model) as store:
        with pytest.raises(error) as caught:
            store.import_states("b", data, key, **options)
        assert store.counts().num_states == 0
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("preset", ["tiny-griffin", "tiny-hawk", "tiny-gemma"])
def test_exported_states_are_the_same_in_another_store_and_tenant(preset):
    model = Model(ModelConfig.preset(preset), "bfloat16", "bfloat16")
    arrays = after(empty(model), 5, 3)
    with new_store(model) as store, new_store(model) as other:
        data = store.export_states("a", [store.put("a", [1] * 5, arrays)], KEY)
        (state_id,) = other.import_states("b", data, KEY)
        found = other.get("b", state_id)
        assert found.token_ids.tolist() == [1] * 5
        assert is_same(found.arrays, arrays)
        assert other.export_states("b", [state_id], KEY) == data


def test_a_pack_of_several_states_is_imported_whole():
    with new_store() as store:
        ids = store.import_states("b", exported(2), KEY)
        for state_id, (tokens, arrays) in zip(ids, STATES, strict=True):
            assert store.get("b", state_id).token_ids.tolist() == tokens
            assert is_same(store.get("b", state_id).arrays, arrays)


def test_a_pack_without_room_for_all_is_not_imported_in_part():
    with new_store(memory_bytes=8_000) as store:
        kept = store.put("b", *STATES[0])
        with pytest.raises(StoreError, match="does not fit"):
            store.import_states("b", exported(2), KEY)
        assert store.ids("b") == [kept]
        assert is_same(store.get("b", kept).arrays, STATES[0][1])


SEALED = exported(2)


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(place, change):
    data = bytearray(SEALED)
    data[place] ^= change
    assert_refused(bytes(data))


@given(st.integers(0, len(SEALED) - 1))
def test_any_cut_is_refused(length):
    assert_refused(SEALED[:length])


@given(st.binary(min_size=1, max_size=64))
def test_anything_appended_is_refused(more):
    assert_refused(SEALED + more)


def test_another_key_is_refused():
    assert "signature" in assert_refused(SEALED, key=b"j" * 32)


@pytest.mark.parametrize("key", [b"", b"short", "k" * 32])
def test_a_key_that_protects_nothing_is_refused(key):
    assert "signing key is" in assert_refused(SEALED, key=key)


def test_another_models_states_are_refused_by_what_differs():
    model = dataclasses.replace(GRIFFIN, weights="b" * 64)
    assert_refused(SEALED, model=model)
    assert "other weights" in assert_refused(SEALED, model=model)


def test_oversized_states_are_refused_before_the_signature_is_computed():
    assert f"{len(SEALED)} bytes; at most 100" in assert_refused(SEALED, largest_bytes=100)


def test_a_small_export_that_unpacks_to_a_huge_state_is_refused_before_it_is_allocated():
    model = Model(ModelConfig.preset("tiny-gemma"))
    with new_store(model) as store:
        data = store.export_states("a", [store.put("a", [1], after(empty(model), 1, 0))], KEY)
    assert "unpack to" in assert_refused(data, model=model, largest_bytes=len(data))


def test_a_newer_format_is_refused_by_its_version():
    data = bytearray(SEALED)
    data[len(b"griffinlm states")] = 2
    assert "format version 2; this program reads 1" in assert_refused(bytes(data))


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_unsealed_records_are_those_sealed(records):
    fingerprint = GRIFFIN.identity.fingerprint
    assert unseal(seal(records, fingerprint, KEY), fingerprint, KEY, 1 << 20) == records


@given(st.binary(max_size=200))
def test_a_signed_record_that_is_none_is_refused(record):
    assert_refused(seal([record], GRIFFIN.identity.fingerprint, KEY), error=StoreError)


def test_signed_arrays_that_do_not_fit_the_model_are_refused():
    hawk = Model(ModelConfig.preset("tiny-hawk"))
    with new_store(hawk) as store:
        data = store.export_states("a", [store.put("a", [1], after(empty(hawk), 1, 0))], KEY)
    (record,) = unseal(data, hawk.identity.fingerprint, KEY, 1 << 20)
    resealed = seal([record], dataclasses.replace(hawk.identity.fingerprint), KEY)
    # tiny-griffin under the same fingerprint: only the arrays can tell.
    message = assert_refused(resealed, model=GRIFFIN, error=StoreError)
    assert "record" in message


def test_signed_tokens_outside_the_vocabulary_are_refused():
    small = dataclasses.replace(GRIFFIN, config=dataclasses.replace(GRIFFIN.config, vocab_size=4))
    assert np.max(STATES[1][0]) == 4
    assert "token id 4" in assert_refused(SEALED, model=small, error=StoreError)
