"""griffin train reward, rloo and dpo: from rows to a model, and one error line for what cannot be."""

import json

import pytest

pytest.importorskip("trl", reason="needs the extra train")


@pytest.fixture
def run_file(tmp_path, tiny_model_directory):
    rows = [{"prompt": f"the hill {n}", "chosen": "and the hawk", "rejected": "no"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    path = tmp_path / "align.toml"
    path.write_text(
        f"""
        output = "out"
        model = "{tiny_model_directory}"
        batch_rows = 2
        steps = 1
        sources.rows.files = ["rows.jsonl"]
        data = {{ row_tokens = 100, held_out_share = 0.0 }}
        optimizer = {{ learning_rate = 1e-2 }}
        precision = "float32"
        device = "cpu"
        """
    )
    return path


def test_a_reward_model_teaches_a_policy_that_generates(griffin, tmp_path, run_file):
    def trained(kind, *changes):
        options = [word for change in (f"output={tmp_path / kind}", *changes) for word in ("--set", change)]
        return griffin("train", kind, "--config", run_file, *options).out.strip()

    reward = trained("reward")
    assert reward == str(tmp_path / "reward" / "model")
    policy = trained("rloo", f"reward={reward}", "num_answers=2", "max_answer_tokens=4")
    assert griffin("generate", "--model", policy, "--max-tokens", "2", "the").status == 0
    told = griffin("train", "dpo", "--config", run_file, "--set", f"output={tmp_path / 'dpo'}", "--json").json
    assert told["step"] == 1
    assert told["figures"]["num_rows"] == 8


def test_what_cannot_be_is_one_error(griffin, tmp_path, run_file):
    assert "beta is unknown" in griffin.fails("train", "dpo", "--config", run_file, "--set", "beta=1")
    assert "reward is missing" in griffin.fails("train", "rloo", "--config", run_file)
    changes = ("reward=none", "num_answers=2", "max_answer_tokens=4")
    refused = griffin.fails("train", "rloo", "--config", run_file, *(w for c in changes for w in ("--set", c)))
    assert "there is no reward model" in refused
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    assert "rows.jsonl, line 1" in griffin.fails("train", "reward", "--config", run_file)
