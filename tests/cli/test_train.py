"""griffin train: from rows of text to a model, and one error line for what cannot be."""

import json
import subprocess
import sys

import pytest


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "a.jsonl"
    texts = [f"the hawk and the griffin hunt over hill {number}" for number in range(60)]
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts) + "no row\n")
    return path


def run_file(directory, tokenizer, source: str) -> str:
    path = directory / "run.toml"
    path.write_text(
        f"""
        output = "out"
        tokenizer = "{tokenizer}"
        batch_rows = 2
        model = {{ preset = "tiny-hawk", vocab_size = 288 }}
        data = {{ row_tokens = 16 }}
        sources.a = {{ {source} }}
        stages = [{{ steps = 2, mixture = {{ a = 1 }} }}]
        optimizer = {{ learning_rate = 1e-3 }}
        checkpoints = {{ every_steps = 1 }}
        precision = "float32"
        device = "cpu"
        """
    )
    return str(path)


def test_packed_text_trains_a_model_that_generates(griffin, tmp_path, rows, tiny_tokenizer_directory):
    pytest.importorskip("transformers", reason="needs the extra train")
    packed = griffin(
        *("train", "pack", rows, "--tokenizer", tiny_tokenizer_directory, "--out", tmp_path / "packed"),
        *("--skip-bad-rows", "--held-out-share", "0.1", "--json"),
    )
    assert packed.status == 0
    assert packed.err == f"skipped: {rows}, line 61: the row is no JSON (Expecting value: line 1 column 1 (char 0))\n"
    assert packed.json["num_bad_rows"] == 1
    assert packed.json["train"]["num_documents"] + packed.json["held_out"]["num_documents"] == 60

    config = run_file(tmp_path, tiny_tokenizer_directory, 'packed = "packed"')
    trained = griffin("train", "pretrain", "--config", config, "--set", "seed=3", "--json")
    assert (trained.status, trained.err) == (0, "")
    assert trained.json["model"] == str(tmp_path / "out" / "model")
    assert trained.json["step"] == 2
    assert trained.json["figures"]["eval_a_bits_per_byte"] > 0
    generated = griffin("generate", "the hawk", "--model", trained.json["model"], "--max-tokens", "2")
    assert generated.status == 0

    again = griffin.fails("train", "pretrain", "--config", config)
    assert again.endswith("model exists already")


def test_packing_refuses_a_bad_row_and_tells_the_line(griffin, tmp_path, rows, tiny_tokenizer_directory):
    words = ("train", "pack", rows, "--tokenizer", tiny_tokenizer_directory, "--out", tmp_path / "packed")
    assert f"{rows}, line 61: the row is no JSON" in griffin.fails(*words)
    assert not (tmp_path / "packed").exists()


def test_a_configuration_fault_is_one_error(griffin, tmp_path, tiny_tokenizer_directory):
    config = run_file(tmp_path, tiny_tokenizer_directory, 'files = ["a.jsonl"]')
    assert "wings is unknown" in griffin.fails("train", "pretrain", "--config", config, "--set", "wings=2")
    assert "cannot be read" in griffin.fails("train", "pretrain", "--config", tmp_path / "nowhere.toml")
    assert "change 'wings'" in griffin.fails("train", "pretrain", "--config", config, "--set", "wings")
    assert "--config" in griffin.fails("train", "pretrain")
    assert "fly" in griffin.fails("train", "fly")


def test_packing_needs_no_torch_and_training_says_what_it_needs(tmp_path, rows, tiny_tokenizer_directory):
    config = run_file(tmp_path, tiny_tokenizer_directory, 'files = ["a.jsonl"]')
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from griffinlm.cli.main import main\n"
        f"pack = ['train', 'pack', {str(rows)!r}, '--tokenizer', {str(tiny_tokenizer_directory)!r}]\n"
        f"assert main([*pack, '--out', {str(tmp_path / 'packed')!r}, '--skip-bad-rows']) == 0\n"
        f"sys.exit(main(['train', 'pretrain', '--config', {config!r}]))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.endswith("error: training needs torch\nhint: pip install 'griffinlm[train]'\n")


def test_keys_of_a_run_are_told(griffin):
    assert "\nsources.NAME.files = a list: a path as text (empty)\n" in griffin("train", "keys", "pretrain").out
    told = griffin("train", "keys", "rloo", "--json").json["keys"]
    assert {"name": "num_answers", "allowed": "a whole number, 2 to 1,024", "default": "4"}.items() <= next(
        key.items() for key in told if key["name"] == "num_answers"
    )
    assert "griffin train merge has no TOML file; these have: pretrain, sft" in griffin.fails("train", "keys", "merge")
