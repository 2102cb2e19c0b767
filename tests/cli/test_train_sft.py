"""griffin train sft and merge: from conversations to an adapter, to a model, and one error line for what cannot be."""

import json

import pytest

pytest.importorskip("trl", reason="needs the extra train")


@pytest.fixture
def run_file(tmp_path, tiny_model_directory):
    messages = [{"role": "user", "content": "the hill"}, {"role": "assistant", "content": "and the hawk"}]
    rows = [json.dumps({"messages": messages}) for _ in range(8)]
    (tmp_path / "chat.jsonl").write_text("\n".join([*rows, "no row"]) + "\n")
    path = tmp_path / "tune.toml"
    path.write_text(
        f"""
        output = "out"
        model = "{tiny_model_directory}"
        batch_rows = 2
        steps = 2
        sources.chat.files = ["chat.jsonl"]
        data = {{ row_tokens = 64, held_out_share = 0.0 }}
        optimizer = {{ learning_rate = 1e-2 }}
        precision = "float32"
        device = "cpu"
        """
    )
    return path


def test_an_adapter_is_trained_generates_and_is_merged(griffin, tmp_path, run_file, tiny_model_directory):
    refused = griffin.fails("train", "sft", "--config", run_file, "--set", "lora={}")
    assert "chat.jsonl, line 9: the row is no JSON" in refused
    changes = ("--set", "lora={}", "--set", "data.bad_rows=skip")
    trained = griffin("train", "sft", "--config", run_file, *changes, "--json")
    assert trained.status == 0
    assert trained.err.count("skipped: ") == 1
    adapter = tmp_path / "out" / "adapter"
    assert trained.json["result"] == str(adapter)
    assert (trained.json["step"], trained.json["figures"]["num_conversations"]) == (2, 8)
    prompt = ("generate", "the hawk", "--max-tokens", "3", "--temperature", "0")
    beside = griffin(*prompt, "--model", tiny_model_directory, "--adapter", adapter)
    merged = griffin("train", "merge", tiny_model_directory, adapter, tmp_path / "merged")
    assert (merged.status, merged.out) == (0, f"{tmp_path / 'merged'}\n")
    assert griffin(*prompt, "--model", tmp_path / "merged").out == beside.out
    assert griffin.fails("train", "merge", tiny_model_directory, adapter, tmp_path / "merged").endswith("already")


def test_a_tuned_state_generates(griffin, tmp_path, run_file, tiny_model_directory):
    changes = ("--set", "state={}", "--set", "data.bad_rows=skip")
    trained = griffin("train", "sft", "--config", run_file, *changes)
    assert trained.out == f"{tmp_path / 'out' / 'state.safetensors'}\n"
    state = tmp_path / "out" / "state.safetensors"
    assert griffin("generate", "the", "--model", tiny_model_directory, "--adapter", state, "--max-tokens", "2").out
    assert "is there already" in griffin.fails("train", "sft", "--config", run_file, *changes)


def test_what_cannot_be_is_one_error_line(griffin, run_file, tmp_path, tiny_model_without_tokenizer):
    assert "lora and state are given" in griffin.fails(
        *("train", "sft", "--config", run_file, "--set", "lora={}", "--set", "state={}")
    )
    mute = ("--set", f"model={tiny_model_without_tokenizer}")
    assert "has no tokenizer" in griffin.fails("train", "sft", "--config", run_file, *mute)
    assert "no adapter directory" in griffin.fails("train", "merge", "eyas", tmp_path, tmp_path / "merged")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("wings=2", "wings is unknown; allowed at the top are output, model"),
        ("lora.rank=many", "lora.rank is 'many'; it must be a whole number"),
        ("data.packing=1", "data.packing is 1; it must be true or false"),
        ("sources.chat.files=nowhere.jsonl", "sources.chat.files is 'nowhere.jsonl'; it must be a list"),
        ('sources.chat.files=["nowhere.jsonl"]', "nowhere.jsonl cannot be read: No such file"),
        ('sources.chat.files=["tune.toml"]', "tune.toml has an unknown ending"),
        ("sources.chat.messages=turns", 'line 1: "turns" is missing'),
        ("model=nowhere", "there is no model 'nowhere'"),
        ("output=chat.jsonl", "chat.jsonl: File exists"),
        ("data.row_tokens=4", "0 are held out, in 1 the assistant says nothing within data.row_tokens (4)"),
        ("quantization_aware=int5", "quantization_aware is 'int5'; allowed are int4, int8"),
        ("schedule.warm_up_steps=3", "more than the 2 steps of the run"),
    ],
)
def test_a_change_that_cannot_be_is_one_error_line(griffin, run_file, change, told):
    (run_file.parent / "chat.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}) + "\n"
    )
    assert told in griffin.fails("train", "sft", "--config", run_file, "--set", change)


def test_a_file_that_is_no_run_is_one_error_line(griffin, tmp_path, run_file):
    (tmp_path / "empty.toml").write_text("")
    assert "output, model, batch_rows, optimizer, sources are missing" in griffin.fails(
        "train", "sft", "--config", tmp_path / "empty.toml"
    )
    assert "cannot be read: Is a directory" in griffin.fails("train", "sft", "--config", tmp_path)


def test_merging_what_cannot_be_is_one_error_line(griffin, tmp_path, run_file, tiny_model_directory):
    base, out = tiny_model_directory, tmp_path / "merged"
    changes = ("--set", "data.bad_rows=skip", "--set", "steps=1", "--set", "prompt={}", "--set", "output=p")
    assert griffin("train", "sft", "--config", run_file, *changes).status == 0
    prompt = tmp_path / "p" / "adapter"
    assert "peft_type is 'PROMPT_TUNING'; it must be LORA" in griffin.fails("train", "merge", base, prompt, out)
    assert "no adapter directory" in griffin.fails("train", "merge", base, tmp_path / "nowhere", out)
    assert "there is no model 'nowhere'" in griffin.fails("train", "merge", "nowhere", prompt, out)
    assert not out.exists()
