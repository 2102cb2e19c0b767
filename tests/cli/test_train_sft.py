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
