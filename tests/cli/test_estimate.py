"""griffin estimate: figures that follow from the counts, in the base install."""

import subprocess
import sys

import pytest

from griffinlm.cost import training_operations
from griffinlm.presets import PRESETS

TWO_B = ("estimate", "recurrentgemma-2b", "--devices", "64", "--tokens", "2T", "--price", "2.5")


def test_the_2b_model_on_2t_tokens(griffin):
    facts = griffin(*TWO_B, "--json").json
    config = PRESETS["recurrentgemma-2b"]
    assert facts["parameters"] == config.num_parameters
    assert facts["tokens"] == 2 * 10**12
    kept = facts["kept"]
    seconds = training_operations(config, 2048, False) / 2048 * 2e12 / (64 * 989e12 * 0.4)
    assert kept["hours"] == pytest.approx(seconds / 3600)
    assert kept["device_hours"] == pytest.approx(64 * kept["hours"])
    assert kept["cost"] == pytest.approx(2.5 * kept["device_hours"])
    assert kept["memory_bytes"]["total"] == sum(v for k, v in kept["memory_bytes"].items() if k != "total")
    assert facts["recomputed"]["memory_bytes"]["total"] < kept["memory_bytes"]["total"]


def test_plain_output_says_what_is_assumed(griffin):
    run = griffin(*TWO_B)
    assert (run.status, run.err) == (0, "")
    assert run.out.isascii()
    for words in ("2,682,862,080", "64 h200, 141 GB each", "40% of 989 TFLOP/s", "device hours", "cost", "fits"):
        assert words in run.out


def test_loops_exits_and_a_teacher_are_told_and_cost(griffin, tmp_path, tiny_model_directory):
    run = (
        f"output = 'out'\ntokenizer = '{tiny_model_directory}'\nbatch_rows = 2\n"
        "model = {preset = 'tiny-griffin', vocab_size = 288, num_layers = 6, recursion = {num_loops = 2}}\n"
        "data = {row_tokens = 24}\noptimizer = {learning_rate = 1e-2}\ncheckpoints = {every_steps = 2}\n"
        "sources = {a = {files = ['a.jsonl']}}\nstages = [{steps = 4, mixture = {a = 1}}]\n"
    )
    (tmp_path / "plain.toml").write_text(run)
    exits = f"exits = {{loss = 'weighted', skips = true}}\nteacher = '{tiny_model_directory}'\n"
    (tmp_path / "exits.toml").write_text(exits + run)
    plain, found = (griffin("estimate", tmp_path / f"{name}.toml", "--json").json for name in ("plain", "exits"))
    assert (plain["recursion"]["loops"], plain["exits"], plain["teacher_parameters"]) == (2, 0, None)
    assert found["exits"] == 1
    flops = found["flops_per_token"]
    # A loss and a look behind the exit, and a teacher that reads and tells of both losses; it is half as deep.
    assert flops["training_kept"] - plain["flops_per_token"]["training_kept"] > (3 + 1 + 2) * flops["head"]
    text = griffin("estimate", tmp_path / "exits.toml").out
    for words in ("2 loops through 3 layers", "a loss behind 1, beside that of full depth", "teacher     "):
        assert words in text


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_estimated(griffin, preset):
    run = griffin("estimate", preset, "--batch", "1", "--row-tokens", "512", "--device", "a100")
    assert (run.status, run.err) == (0, "")
    assert "days" not in run.out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("nowhere",), "nowhere"),
        (("eyas", "--device", "abacus"), "abacus"),
        (("eyas", "--tokens", "many"), "tokens is 'many'"),
        (("eyas", "--devices", "0"), "--devices"),
        (("eyas", "--utilisation", "2"), "utilisation is 2.0"),
        (("eyas", "--price", "-1"), "--price"),
        (("recurrentgemma-2b", "--price", "3"), "--price is 3, but nothing says how many tokens"),
    ],
)
def test_what_cannot_be_estimated_is_one_error(griffin, arguments, named):
    assert named in griffin.fails("estimate", *arguments)


def test_it_needs_no_torch():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from griffinlm.cli.main import main\n"
        "sys.exit(main(['estimate', 'recurrentgemma-9b', '--tokens', '300B']))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
