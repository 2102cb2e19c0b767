"""The table of recursive models in small: what its rows begin from, and what it says of the paper's order."""

import dataclasses
import json
import lzma
import random
from pathlib import Path

import pytest

from griffinlm.checkpoint import initial_tensors, open_checkpoint, write_checkpoint

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(autouse=True)
def recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="needs the extra train")
    monkeypatch.syspath_prepend(str(RECIPES))


@pytest.fixture
def base(tmp_path: Path, tiny_tokenizer_directory: Path) -> Path:
    from baseline_models import baseline
    from recursive_table import SMOKE

    config = baseline("griffin", dataclasses.replace(SMOKE.size, vocab_size=300))
    write_checkpoint(config, initial_tensors(config, 0), tmp_path / "base", "griffinlm", None, tiny_tokenizer_directory)
    return tmp_path / "base"


def test_inherited_layers_are_those_at_regular_distances_of_the_right_kind(base: Path, tmp_path: Path):
    from recursive_table import ROWS, start

    model = start(ROWS["reduced, inherited layers"], base, tmp_path / "half")
    half, whole = open_checkpoint(model["directory"]), open_checkpoint(base)
    assert half.config == dataclasses.replace(whole.config, num_layers=3)
    for name, values in half.tensors():
        # Of the places 0, 2 (to even) and 5 the second is attention's, and gives way to the recurrent layer before it.
        layer = {"0": "0", "1": "1", "2": "5"}.get(name.split(".")[1])
        source = name if layer is None else ".".join(["layers", layer, *name.split(".")[2:]])
        assert (values == whole.tensor(source)).all()


def test_recursive_rows_share_everything_and_have_half_the_layers(base: Path, tmp_path: Path):
    from recursive_table import ROWS, start

    for number, (name, row) in enumerate(ROWS.items()):
        if row.recursion is None:
            continue
        config = open_checkpoint(start(row, base, tmp_path / str(number))["directory"]).config
        assert config.recursion is not None
        assert (config.recursion.num_loops, config.recursion.tie, config.num_shared_layers) == (2, "all", 3)
        assert f"rank {config.recursion.rank}" in name or config.recursion.rank == 0


def test_the_order_holds_where_it_does_for_all_seeds():
    from recursive_table import KINDS, PAPER, ROWS, tables

    bits = dict.fromkeys(ROWS, 2.0)
    for better, worse in reversed(PAPER):
        bits[better] = min(bits[better], bits[worse] - 0.1)
    bits["stepwise"] = 5.0
    found = [
        {"model": kind, "seed": seed, "row": name, "not_embedding": 10, "bits_per_byte": bits[name] + seed * 0.01}
        for kind in KINDS
        for seed in (0, 1)
        for name in ROWS
    ]
    lines = tables(found).splitlines()
    assert len(lines) == 2 + len(ROWS) + 1 + 2 + len(PAPER)
    verdicts = {tuple(line.split(" | ")[:2]): line for line in lines[-len(PAPER) :]}
    assert "does not hold" in verdicts["| stepwise", "average"]
    assert verdicts["| stepwise, distilled", "stepwise"].count("holds") == 2
    for run in found:
        if run["row"] == "stepwise" and run["seed"] == 1:
            run["bits_per_byte"] = 0.0
    assert "seeds differ" in tables(found)


def test_a_prefix_counts_the_numbers_that_a_token_can_see(tmp_path: Path):
    import numpy as np
    from recursive_table import num_prefix_parameters
    from safetensors.numpy import save_file

    shapes = {"layers.0.hidden": (1, 6), "layers.0.convolution": (1, 3, 6), "layers.1.keys": (1, 8, 4)}
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file({**arrays, "num_tokens": np.zeros(1, np.int64), "pending": np.zeros(1, np.int64)}, tmp_path / "prefix")
    assert num_prefix_parameters(tmp_path / "prefix", 5) == 6 + 18 + 20
    assert num_prefix_parameters(tmp_path / "prefix", 9) == 6 + 18 + 32


@pytest.mark.slow
def test_the_whole_table_runs_and_a_second_time_reads_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from recursive_table import main

    draw, path = random.Random(0), tmp_path / "data" / "pretrain" / "tinystories.jsonl.xz"
    path.parent.mkdir(parents=True)
    with lzma.open(path, "wt", encoding="utf-8") as file:
        for _ in range(100):
            print(json.dumps({"text": " ".join(draw.choices(["the", "hawk", "and", "griffin"], k=60))}), file=file)
    words = [str(tmp_path / "data"), str(tmp_path / "work"), "--seeds", "1", "--smoke", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert main(words) == 0
    assert capsys.readouterr().out == first
    (record,) = (tmp_path / "out").iterdir()
    assert len(json.loads(record.read_text())["found"]) == 26
