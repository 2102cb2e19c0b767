"""The TOML file of a tuning run: paths, and every contradiction refused with the names of the entries."""

from pathlib import Path

import pytest

from griffinlm.train.errors import TrainError

from .tuning import Tuned, tuning_run


@pytest.fixture
def run(tmp_path: Path, tiny_model_directory: Path) -> Tuned:
    return tuning_run(tmp_path, tiny_model_directory)


def test_paths_are_relative_to_the_file_and_a_name_stays_a_name(run: Tuned, tmp_path: Path):
    config = run("model=eyas")
    assert config.output == tmp_path / "out"
    assert config.sources["chat"].files == (tmp_path / "chat.jsonl",)
    assert config.model == "eyas"
    (tmp_path / "mine").mkdir()
    assert run("model=mine").model == str(tmp_path / "mine")


def test_weights_and_low_rank_terms_are_packed_and_prompts_and_states_are_not(run: Tuned):
    assert run().is_packed
    assert run("lora={}").is_packed
    assert not run("prompt={}").is_packed
    assert not run("state={}").is_packed
    assert not run("data.packing=false").is_packed


CONTRADICTIONS = {
    ("lora={}", "state={}"): "lora and state are given",
    ("lora={}", "quantization_aware=int4"): "quantization_aware is given with lora",
    ("prompt={}", "data.packing=true"): "a tuned prompt begins a row",
    ("rows_per_device=3",): "batch_rows is 4; it must be a multiple of rows_per_device",
    ("sources.chat.files=[]",): "sources.chat.files is empty",
    ("sources.chat.prompt=en",): "sources.chat must have both prompt and answer",
    ("sources.chat.instruction=Say: ",): "sources.chat.instruction is given without",
    ("lora.rang=3",): "lora.rang is unknown; allowed in lora are rank, alpha, dropout, gates",
    ("lora.rank=0",): "lora.rank is 0; it must be 1 to 4,096",
    ("lora.gates=true", "lora.dropout=0.1"): "lora.gates is true with a lora.dropout",
    ("epochs=2",): "epochs and steps are given",
    ("schedule.decay_steps=3",): "schedule.decay_steps is given with kind 'constant'",
    ("schedule.warm_up_steps=7",): "more than the 6 steps of the run",
    ("quantization_aware=int5",): "quantization_aware is 'int5'; allowed are int4, int8, int4-block32",
    ("quantization_aware=float32",): "quantization_aware is 'float32'; allowed are int4",
    ("state={}", "state.weights=int5"): "state.weights is 'int5'; allowed are float32, bfloat16, int4",
}


@pytest.mark.parametrize("changes", CONTRADICTIONS, ids=" ".join)
def test_a_contradiction_is_refused(run: Tuned, changes: tuple[str, ...]):
    with pytest.raises(TrainError) as caught:
        run(*changes)
    assert CONTRADICTIONS[changes] in str(caught.value)
