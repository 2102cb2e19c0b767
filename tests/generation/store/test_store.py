"""Random conversations in a store and in a dictionary are the same; tenants, names, room and deletion."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from griffinlm import load
from griffinlm.config import ModelConfig
from griffinlm.generation.store import StateNotFoundError, StateStore, StoreError, prefix, tiers
from griffinlm.state import State, state_layout
from store.small_states import GRIFFIN, Arrays, Model, after, empty, is_same

MEMORY_BYTES, DISK_BYTES = 20_000, 1 << 30
MODELS = [
    Model(ModelConfig.preset(preset), window_dtype, precision)
    for preset in ("tiny-griffin", "tiny-hawk", "tiny-gemma")
    for window_dtype, precision in (("float32", "float32"), ("bfloat16", "bfloat16"), ("int8", "float32"))
]


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path):
    directory = tmp_path / "store" if request.param == "disk" else None
    with open_store(directory) as opened:
        yield opened


def open_store(directory: Path | None, model: Model = GRIFFIN, cap: int = DISK_BYTES) -> StateStore:
    if directory is None:
        return StateStore(model, None, memory_bytes=cap)
    return StateStore(model, directory, memory_bytes=MEMORY_BYTES, disk_bytes=cap)


def conversation(num_turns: int, num_tokens: int = 3) -> list[tuple[list[int], Arrays]]:
    """Tokens and state after every turn."""
    turns, tokens, arrays = [], [], empty(GRIFFIN)
    for turn in range(num_turns):
        tokens, arrays = [*tokens, *range(turn, turn + num_tokens)], after(arrays, num_tokens, turn)
        turns.append((tokens, arrays))
    return turns


def put_all(store: StateStore, turns: list[tuple[list[int], Arrays]], tenant: str = "a") -> list[str]:
    ids: list[str] = []
    for tokens, arrays in turns:
        ids.append(store.put(tenant, tokens, arrays, ids[-1] if ids else None))
    return ids


class RandomConversations(RuleBasedStateMachine):
    """Two handles on one store, as two processes would have them, against a dictionary."""

    @initialize(model=st.sampled_from(MODELS), on_disk=st.booleans())
    def open(self, model: Model, on_disk: bool) -> None:
        self.model, self.folder = model, tempfile.TemporaryDirectory()
        self.directory = Path(self.folder.name) / "store" if on_disk else None
        first = open_store(self.directory, model)
        self.stores = [first, open_store(self.directory, model) if on_disk else first]
        self.kept: dict[tuple[str, str], tuple[list[int], Arrays]] = {}
        self.named: dict[tuple[str, str], str] = {}

    @rule(
        data=st.data(),
        which=st.integers(0, 1),
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9),
        seed=st.integers(0, 3),
        tenant=st.sampled_from("ab"),
        has_parent=st.booleans(),
    )
    def put(self, data, which, tokens, seed, tenant, has_parent):
        mine = [("", ""), *(key for key in self.kept if key[0] == tenant)]
        before = data.draw(st.sampled_from(mine))
        known, arrays = self.kept.get(before, ([], empty(self.model)))
        if self.model.capacity is not None and len(known) + len(tokens) > self.model.capacity:
            return
        tokens, arrays = known + tokens, after(arrays, len(tokens), seed)
        parent = before[1] if has_parent and before[1] else None
        state_id = self.stores[which].put(tenant, tokens, arrays, parent)
        assert state_id == self.stores[1 - which].put(tenant, tokens, arrays)
        self.kept[tenant, state_id] = tokens, arrays

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), which=st.integers(0, 1))
    def get(self, data, which):
        tenant, state_id = data.draw(st.sampled_from(sorted(self.kept)))
        found = self.stores[which].get(tenant, state_id)
        tokens, arrays = self.kept[tenant, state_id]
        assert found.token_ids.tolist() == tokens
        assert is_same(found.arrays, arrays)
        for array in found.arrays.values():
            array.fill(0)
        assert is_same(self.stores[which].get(tenant, state_id).arrays, arrays)
        with pytest.raises(StateNotFoundError):
            self.stores[which].get("ab".replace(tenant, ""), state_id)

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), which=st.integers(0, 1))
    def delete(self, data, which):
        tenant, state_id = data.draw(st.sampled_from(sorted(self.kept)))
        self.stores[which].delete(tenant, state_id)
        del self.kept[tenant, state_id]
        self.named = {key: value for key, value in self.named.items() if value != state_id}
        for store in self.stores:
            with pytest.raises(StateNotFoundError):
                store.get(tenant, state_id)

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), which=st.integers(0, 1), name=st.sampled_from(["x", "y"]))
    def name(self, data, which, name):
        tenant, state_id = data.draw(st.sampled_from(sorted(self.kept)))
        self.stores[which].set_name(tenant, name, state_id)
        self.named[tenant, name] = state_id
        expected = {n: i for (t, n), i in sorted(self.named.items()) if t == tenant}
        assert self.stores[1 - which].names(tenant) == expected

    @rule(data=st.data(), which=st.integers(0, 1), tail=st.lists(st.integers(0, 1), max_size=9))
    def find_longest_prefix(self, data, which, tail):
        some = data.draw(st.sampled_from([[], *(tokens for tokens, _ in self.kept.values())]))
        tokens = some[: data.draw(st.integers(0, len(some)))] + tail
        for tenant in "ab":
            mine = {i: known for (t, i), (known, _) in self.kept.items() if t == tenant}
            longest = max((len(k) for k in mine.values() if tokens[: len(k)] == k), default=None)
            found = self.stores[which].find_longest_prefix(tenant, tokens)
            assert (found and found.num_tokens) == longest
            assert found is None or mine[found.id] == tokens[: found.num_tokens]

    @rule()
    def reopen(self):
        if self.directory is not None:
            self.stores[0].close()
            self.stores[0] = open_store(self.directory, self.model)

    def teardown(self):
        if not hasattr(self, "stores"):
            return
        for (tenant, state_id), (tokens, arrays) in self.kept.items():
            found = self.stores[1].get(tenant, state_id)
            assert found.token_ids.tolist() == tokens
            assert is_same(found.arrays, arrays)
        for tenant in "ab":
            assert self.stores[0].ids(tenant) == [i for t, i in self.kept if t == tenant]
        counts = self.stores[1].counts()
        most_bytes = counts.record_bytes if self.directory is None else MEMORY_BYTES
        assert counts.memory_bytes <= most_bytes
        for tenant, state_id in self.kept:
            self.stores[0].delete(tenant, state_id)
        counts = self.stores[0].counts()
        assert (counts.num_states, counts.record_bytes, counts.num_damaged) == (0, 0, 0)
        if self.directory is not None:
            assert not list((self.directory / "records").iterdir())
        for store in self.stores:
            store.close()
        self.folder.cleanup()


@pytest.fixture(autouse=True)
def _short_chains_and_blocks(monkeypatch):
    monkeypatch.setattr(tiers, "LONGEST_CHAIN", 3)
    monkeypatch.setattr(prefix, "BLOCK_TOKENS", 4)


def test_random_conversations_are_those_of_a_dictionary():
    machine = RandomConversations.TestCase
    machine.settings = settings(settings.default, stateful_step_count=25)
    machine("runTest").runTest()


def test_a_repeated_put_is_one_state(store):
    tokens, arrays = conversation(1)[0]
    assert store.put("a", tokens, arrays) == store.put("a", tokens, arrays)
    assert store.counts().num_states == 1


def test_tenants_share_neither_ids_nor_records(store):
    turns = conversation(2)
    first = put_all(store, turns, "a")
    alone = store.counts().record_bytes
    second = put_all(store, turns, "b")
    assert not set(first) & set(second)
    assert store.counts().record_bytes == 2 * alone
    with pytest.raises(StateNotFoundError):
        store.put("b", *conversation(3)[2], parent=first[1])


def test_shared_state_is_found_by_all_and_only_its_copy_is_deleted(store):
    turns = conversation(3)
    own = put_all(store, turns[:2], "a")[1]
    shared = store.share("a", own, "system prompt")
    assert store.shared("system prompt") == shared
    assert store.shared_names() == {"system prompt": shared}
    tokens = turns[2][0]
    assert store.find_longest_prefix("b", tokens) == (shared, len(turns[1][0]))
    child = store.put("b", *turns[2], parent=shared)
    with pytest.raises(StateNotFoundError):
        store.delete("b", shared)
    store.unshare("system prompt")
    with pytest.raises(StateNotFoundError):
        store.get("b", shared)
    assert is_same(store.get("b", child).arrays, turns[2][1])
    assert is_same(store.get("a", own).arrays, turns[1][1])
    with pytest.raises(StateNotFoundError):
        store.shared("system prompt")


def test_shared_name_is_not_taken_from_another_state(store):
    one, other = put_all(store, conversation(2))
    assert store.share("a", one, "n") == store.share("a", one, "n")
    with pytest.raises(StoreError, match="another shared state is called 'n'"):
        store.share("a", other, "n")


def test_models_on_one_directory_do_not_find_each_others_states(tmp_path):
    tokens, arrays = conversation(1)[0]
    other = Model(GRIFFIN.config, weights="b" * 64)
    with open_store(tmp_path / "s") as store, open_store(tmp_path / "s", other) as foreign:
        state_id = store.put("a", tokens, arrays)
        with pytest.raises(StateNotFoundError):
            foreign.get("a", state_id)
        assert foreign.find_longest_prefix("a", tokens) is None


@pytest.mark.parametrize("on_disk", [False, True])
def test_least_recently_used_leaf_makes_room_and_the_cap_holds(tmp_path, on_disk):
    turns = conversation(30)
    with open_store(tmp_path / "a" if on_disk else None) as store:
        store.put("a", *turns[0])
        size = store.counts().record_bytes
    cap = 6 * size
    with open_store(tmp_path / "b" if on_disk else None, cap=cap) as store:
        named = store.put("a", *turns[0])
        store.set_name("a", "kept", named)
        used = store.put("a", *turns[1])
        for tokens, arrays in turns[2:]:
            last = store.put("a", tokens, arrays)
            assert store.counts().record_bytes <= cap
            store.get("a", used)
        assert {named, used, last} <= set(store.ids("a"))
        assert len(store.ids("a")) < len(turns)


def test_full_store_of_named_states_refuses_and_changes_nothing(store, tmp_path):
    tokens, arrays = conversation(1)[0]
    with open_store(tmp_path / "small" if store.directory else None, cap=7000) as small:
        small.set_name("a", "n", small.put("a", tokens, arrays))
        before = small.counts()
        with pytest.raises(StoreError, match="does not fit"):
            small.put("a", *conversation(2)[1])
        assert small.counts() == before
        assert small.ids("a") == [small.named("a", "n")]


def test_nothing_of_a_deleted_state_is_left_in_any_file(tmp_path):
    directory = tmp_path / "store"
    with open_store(directory) as store, open_store(directory):
        first, second = put_all(store, conversation(2))
        store.set_name("a", "a telling name", second)
        store.delete("a", second)
        store.delete("a", first)
        for path in (path for path in directory.rglob("*") if path.is_file()):
            content = path.read_bytes()
            assert not any(secret in content for secret in (b"a telling name", first.encode(), second.encode()))
        assert {path.name for path in directory.rglob("*") if path.is_file()} <= {
            "index.sqlite",
            "index.sqlite-wal",
            "index.sqlite-shm",
        }


def test_files_are_for_their_owner_alone(tmp_path):
    tmp_path.chmod(0o755)
    with open_store(tmp_path) as store:
        put_all(store, conversation(2))
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) >= 3
        assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_deleted_parent_goes_with_its_last_child(store):
    ids = put_all(store, conversation(3))
    states = {i: store.get("a", i).arrays for i in ids}
    store.delete("a", ids[0])
    store.delete("a", ids[1])
    assert store.ids("a") == ids[2:]
    assert is_same(store.get("a", ids[2]).arrays, states[ids[2]])
    store.delete("a", ids[2])
    assert store.counts().record_bytes == 0


def test_parent_with_other_tokens_is_refused(store):
    (tokens, arrays), (_, longer) = conversation(2)
    parent = store.put("a", tokens, arrays)
    with pytest.raises(StoreError, match="do not begin with the 3 tokens of parent"):
        store.put("a", [9] * 6, longer, parent)


@pytest.mark.parametrize(
    ("tokens", "change", "message"),
    [
        ([1, 2], {}, "has read 3 tokens of its document; 2 token ids were given"),
        ([1, 2, 259], {}, "token id 259 is not in the vocabulary"),
        ([1, 2, 0.5], {}, "whole numbers"),
        ([1, 2, 3], {"pending": np.array([259])}, "pending token is 259"),
        ([1, 2, 3], {"pending": np.array([1, 2])}, "does not have the arrays of this model: pending"),
        ([1, 2, 3], {"more": np.zeros(1)}, "does not have the arrays of this model: more"),
        ([1, 2, 3], {"layers.2.keys": np.zeros((1, 8, 16), np.float32)}, "of this model: layers.2.keys"),
    ],
)
def test_what_is_no_state_of_the_model_is_refused(store, tokens, change, message):
    with pytest.raises(StoreError, match=message):
        store.put("a", tokens, {**conversation(1)[0][1], **change})
    assert store.counts().num_states == 0


def test_unknown_ids_names_and_tenants_are_refused_in_one_line(store):
    for call in (
        lambda: store.get("a", "x" * 500),
        lambda: store.delete("a", "x\n"),
        lambda: store.named("a", "n"),
        lambda: store.remove_name("a", "n"),
        lambda: store.set_name("a", "n", "x"),
        lambda: store.unshare("n"),
        lambda: store.ids(""),
        lambda: store.named("a", "n\n"),
    ):
        with pytest.raises(StoreError) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200


def test_a_disk_needs_a_cap_and_memory_takes_none(tmp_path):
    with pytest.raises(StoreError, match="disk_bytes is None"):
        StateStore(GRIFFIN, tmp_path / "s", memory_bytes=0)
    with pytest.raises(StoreError, match="disk_bytes is 5"):
        StateStore(GRIFFIN, None, memory_bytes=0, disk_bytes=5)
    with pytest.raises(StoreError, match="memory_bytes is -1"):
        StateStore(GRIFFIN, None, memory_bytes=-1)


def test_a_hundred_turns_take_under_a_quarter_of_a_hundred_states(monkeypatch, tmp_path):
    """The proportions of RecurrentGemma-2B, a 16th as wide: window 2,048, 18 recurrent blocks to 8 of attention."""
    monkeypatch.undo()
    config = ModelConfig.from_dict(
        ModelConfig.preset("recurrentgemma-2b").to_dict()
        | {"recurrent": {"width": 160, "num_gate_blocks": 10}}
        | {"attention": {"num_heads": 1, "head_size": 16, "window_tokens": 2048}}
    )
    model = Model(config, "bfloat16", "bfloat16")
    full = sum(spec.nbytes for spec in state_layout(config, 1, None, "bfloat16", "bfloat16").values())
    tokens, arrays, last = [], empty(model), None
    with open_store(tmp_path / "store", model) as store:
        for turn in range(100):
            tokens, arrays = [*tokens, *[turn] * 100], after(arrays, 100, turn)
            last = store.put("a", tokens, arrays, last)
        stored = store.counts().record_bytes
        assert is_same(store.get("a", last).arrays, arrays)
    on_disk = sum(path.stat().st_size for path in (tmp_path / "store").rglob("*") if path.is_file())
    print(f"100 turns of 100 tokens: {on_disk:,} bytes, {on_disk / (100 * full):.1%} of 100 states of {full:,} bytes")
    assert stored <= on_disk < 100 * full / 4


@pytest.mark.parametrize("window_dtype", ["float32", "float16"])
def test_a_model_goes_on_from_a_stored_state_as_if_never_stopped(tiny_model_directory, tmp_path, window_dtype):
    model = load(tiny_model_directory, window_dtype=window_dtype)
    tokens, state, last = [3, 4, 5], model.read([3, 4, 5]), None
    with StateStore(model, tmp_path / "store", memory_bytes=0, disk_bytes=1 << 24) as store:
        for turn in range(6):
            last = store.put("a", tokens, state.arrays(), last)
            more = [turn, turn + 9, turn + 20]
            tokens, state = tokens + more, model.read(more, state)
        found = store.find_longest_prefix("a", tokens)
        assert found == (last, len(tokens) - 3)
        kept = store.get("a", found.id)
        resumed = model.read(tokens[found.num_tokens :], State(kept.arrays, model.identity))
    assert is_same(resumed.arrays(), state.arrays())
