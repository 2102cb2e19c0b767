"""What a run's file may say, and what no run can be."""

import dataclasses
from pathlib import Path

import pytest

from griffinlm.config import ModelConfig
from griffinlm.train.config import PretrainConfig, model_config, read_pretrain_config
from griffinlm.train.errors import TrainError


def test_paths_are_relative_to_the_file(run, run_file):
    config = run()
    assert config.output == run_file.parent / "out"
    assert config.sources["a"].files == (run_file.parent / "a.jsonl",)
    assert config.tokenizer.is_absolute()


def test_steps_and_tokens_are_those_of_all_stages(run):
    assert (run().num_steps, run().step_tokens) == (6, 8 * 24)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["stages=[]"], "stages is empty"),
        (["fly=1"], "fly is unknown; allowed at the top are output, tokenizer, model"),
        (["optimizer.speed=1"], "optimizer.speed is unknown; allowed in optimizer are learning_rate"),
        (["data.row_tokens=1"], "data.row_tokens is 1; it must be 2 to"),
        (["data.bad_rows=ignore"], "data.bad_rows is 'ignore'; allowed are skip, refuse"),
        (["precision=float16"], "precision is 'float16'; allowed are float32, bfloat16"),
        (["sources.a.packed=x"], "sources.a must have either files or packed"),
        (["sources.c={}"], "sources.c must have either files or packed"),
        (["sources.c.packed=x"], "source c has a weight in no stage"),
        (["stages.0.mixture.z=1"], "stages.0.mixture names z; sources are a, b"),
        (["stages.1.mixture.b=0"], "stages.1.mixture has no weight above 0"),
        (["stages.0.mixture.a=-1"], "stages.0.mixture.a is -1; it must be 0 to"),
        (["stages.0.mixture.a=0"], "source a has a weight in no stage"),
        (["rows_per_device=3"], "batch_rows is 8; it must be a multiple of rows_per_device (3)"),
        (["schedule.kind=cosine", "schedule.decay_steps=2"], "schedule.decay_steps is given with kind 'cosine'"),
        (["schedule.warm_up_steps=7"], "schedule.warm_up_steps and decay_steps are more than the 6 steps"),
        (["model.directory=x"], "model.directory is given with other fields"),
        (["schedule=cosine"], "schedule is 'cosine'; it must be a table"),
        (["model={directory = 5}"], "model.directory is 5; it must be a path as text"),
        (
            ["batch_rows=1099511627776", "stages.0.steps=1099511627776"],
            "all stages have 1,208,925,819,616,828,197,961,728",
        ),
        (['output="a\\u0000b"'], "output is 'a\\x00b'; no path has a NUL in it"),
        (["batch_rows=4\nseed=1"], "batch_rows is '4\\nseed=1'; it must be a whole number"),
        (["data.row_tokens=16777217"], "data.row_tokens is 16777217; it must be 2 to 16,777,216"),
        ([f"optimizer.learning_rate=1{'0' * 400}"], "optimizer.learning_rate is an integer of 1,329 bits; it must be"),
        ([f"batch_rows=1{'0' * 5000}"], "batch_rows is '10000"),
        ([f"batch_rows=0x1{'0' * 5000}"], "batch_rows is an integer of 20,001 bits; it must be 1 to"),
    ],
)
def test_a_run_that_cannot_be_is_refused_with_the_entry(run, changes, told):
    with pytest.raises(TrainError) as caught:
        run(*changes)
    assert str(caught.value).startswith(told)


def test_a_source_is_called_by_a_name(run_file):
    text = run_file.read_text().replace("[sources.a]", '[sources."../a"]').replace("{ a = 3", '{ "../a" = 3')
    run_file.write_text(text)
    with pytest.raises(TrainError, match="is no name"):
        read_pretrain_config(run_file)


def test_a_model_is_a_preset_with_changed_fields():
    found = model_config({"preset": "tiny-griffin", "vocab_size": 288, "attention": {"window_tokens": 5}})
    preset = ModelConfig.preset("tiny-griffin")
    assert preset.attention is not None
    attention = dataclasses.replace(preset.attention, window_tokens=5)
    assert found == dataclasses.replace(preset, vocab_size=288, attention=attention)


def test_a_model_may_be_given_by_all_its_fields():
    preset = ModelConfig.preset("tiny-griffin")
    assert model_config(preset.to_dict()) == preset


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"preset": "tiny-dragon"}, "no preset is called 'tiny-dragon'"),
        ({"preset": 5}, "model.preset is 5"),
        ({"preset": "tiny-griffin", "wings": 2}, "unknown 'wings'"),
        ({"preset": "tiny-griffin", "width": -1}, "width is -1"),
        ({}, "missing vocab_size"),
    ],
)
def test_a_model_that_cannot_be_is_refused(values, told):
    with pytest.raises(TrainError) as caught:
        model_config(values)
    assert told in str(caught.value)


def test_every_entry_is_read_somewhere():
    """An entry that nothing reads would be an option that does nothing."""
    package = Path(__file__).parents[2] / "src" / "griffinlm" / "train"
    source = "".join(path.read_text() for path in package.rglob("*.py"))
    for part in (PretrainConfig, *_tables(PretrainConfig)):
        for entry in dataclasses.fields(part):
            assert f".{entry.name}" in source, f"{part.__name__}.{entry.name}"


def _tables(cls: type) -> list[type]:
    from griffinlm.train import config

    return [
        c
        for c in vars(config).values()
        if dataclasses.is_dataclass(c) and c.__module__ == cls.__module__ and c is not cls
    ]


def test_the_recipe_is_a_run():
    config = read_pretrain_config(Path(__file__).parents[2] / "recipes" / "pretrain.toml")
    assert config.num_steps == 1500
    assert model_config(config.model) == ModelConfig.preset("eyas")
