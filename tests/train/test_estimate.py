"""Estimates: what is read, and that time and memory follow from the counts."""

import dataclasses

import pytest

from griffinlm.cost import ONE_LOSS, training_memory, training_operations
from griffinlm.presets import PRESETS
from griffinlm.train.errors import TrainError
from griffinlm.train.estimate import DEVICES, Plan, estimate, parse_count, read_plan


def test_time_is_all_operations_over_what_the_devices_reach():
    config = PRESETS["recurrentgemma-2b"]
    found = estimate(Plan(config, row_tokens=2048, tokens=2 * 10**12), "h200", 64, 0.5)
    operations = training_operations(config, 2048, recompute=False) * 2 * 10**12 / 2048
    assert found.kept_seconds == pytest.approx(operations / (64 * DEVICES["h200"].bfloat16_flops * 0.5))
    assert found.recomputed_seconds is not None
    assert 1.15 < found.recomputed_seconds / found.kept_seconds < 1.34
    # Six operations a parameter and token, and some for attention.
    assert operations / (6 * config.num_parameters * 2 * 10**12) == pytest.approx(1.02, abs=0.02)


def test_a_run_is_read_as_it_will_train(run, run_file):
    plan = read_plan(str(run_file), 1)
    assert plan.model.vocab_size == 288
    assert (plan.row_tokens, plan.rows, plan.tokens) == (24, 8, run().num_steps * run().step_tokens)
    found = estimate(plan, "a100", 2)
    assert found.kept == training_memory(plan.model, 8, 24, "float32", 2, False, 2048)


def test_exits_and_a_teacher_of_a_run_are_counted(run_file, tiny_model_directory):
    text = run_file.read_text(encoding="utf-8") + "\n[exits]\nloss = 'aggressive'\nlayers = [1, 2]\n"
    run_file.write_text(f"teacher = '{tiny_model_directory}'\n{text}", encoding="utf-8")
    plan = read_plan(str(run_file))
    teacher = PRESETS["tiny-griffin"].num_parameters + (288 - PRESETS["tiny-griffin"].vocab_size) * plan.model.width
    assert (plan.losses.num_exits, plan.losses.num_asked, plan.losses.num_taught) == (2, 2, 1)
    assert plan.losses.teacher is not None
    assert plan.losses.teacher.num_parameters == teacher
    found, alone = (estimate(one, "a100", 1) for one in (plan, dataclasses.replace(plan, losses=ONE_LOSS)))
    assert found.kept.teacher == 4 * teacher
    assert found.kept_seconds is not None
    assert alone.kept_seconds is not None
    assert found.kept_seconds > alone.kept_seconds
    run_file.write_text(run_file.read_text(encoding="utf-8").replace("[1, 2]", "[2, 1]"), encoding="utf-8")
    with pytest.raises(TrainError, match=r"exits\.layers is \[2, 1\]"):
        read_plan(str(run_file))


def test_a_step_of_a_run_is_divided_among_the_devices(run_file):
    assert read_plan(str(run_file), 4).rows == 2
    with pytest.raises(TrainError, match="batch_rows is 8; it must be a multiple of"):
        read_plan(str(run_file), 3)


def test_a_model_directory_and_a_preset_are_plans_without_tokens(tiny_model_directory):
    assert read_plan(str(tiny_model_directory)).model.vocab_size == 288
    assert read_plan("eyas") == Plan(PRESETS["eyas"])
    assert estimate(read_plan("eyas"), "h100", 1).kept_seconds is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("300000", 300_000), ("15M", 15 * 10**6), ("1.5b", 15 * 10**8), ("2T", 2 * 10**12), ("3k", 3000)],
)
def test_numbers_of_tokens(text, number):
    assert parse_count(text) == number


@pytest.mark.parametrize("text", ["", "0", "-1", "2X", "1e9", "T", "1.5.2", "9" * 30])
def test_what_is_no_number_of_tokens_is_refused(text):
    with pytest.raises(TrainError, match="tokens is"):
        parse_count(text)


def test_what_nobody_knows_is_refused():
    with pytest.raises(TrainError, match="device is 'abacus'; known are a100, h100"):
        estimate(read_plan("eyas"), "abacus", 1)
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(TrainError, match="utilisation is"):
            estimate(read_plan("eyas"), "h100", 1, share)
    with pytest.raises(TrainError, match="there is no preset or file 'nowhere'"):
        read_plan("nowhere")
