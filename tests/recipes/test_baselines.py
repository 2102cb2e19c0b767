"""The three baselines are of one size, their runs go on where they were cut off, and bits are those of `score`."""

import json
import lzma
import math
import random
import shutil
from pathlib import Path

import pytest

import griffinlm

RECIPES = Path(__file__).parents[2] / "recipes"
WORDS = [f"hawk{number}" for number in range(50)]


@pytest.fixture(autouse=True)
def recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="needs the extra train")
    monkeypatch.syspath_prepend(str(RECIPES))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sixty documents of every source, some of them held out."""
    draw = random.Random(0)
    for source in ("tinystories", "wiki_simple", "books"):
        path = tmp_path / "data" / "pretrain" / f"{source}.jsonl.xz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with lzma.open(path, "wt", encoding="utf-8") as file:
            for _ in range(60):
                print(json.dumps({"text": " ".join(draw.choices(WORDS, k=150))}), file=file)
    return tmp_path / "data"


@pytest.mark.parametrize("width", [64, 128, 768])
def test_parameters_are_equal_within_two_hundredths(width: int):
    from baseline_models import PATTERNS, Size, baseline

    size = Size(vocab_size=16, width=width, num_layers=6, head_size=16, window_tokens=8)
    griffin, hawk, mqa = (baseline(kind, size) for kind in PATTERNS)
    for config in (griffin, mqa):
        assert config.num_parameters == pytest.approx(hawk.num_parameters, rel=0.02)
    assert (hawk.attention, mqa.recurrent) == (None, None)
    assert hawk.mlp_hidden == 3 * width < griffin.mlp_hidden < mqa.mlp_hidden


def test_bits_by_position_add_up_to_the_score_of_the_texts():
    from baseline_text import bits_by_position
    from baselines import SMOKE_TEXT

    model = griffinlm.load("eyas", threads=1)
    texts = [" ".join(random.Random(seed).choices(WORDS, k=150)) for seed in range(2)]
    assert model.tokenizer.bos_id is not None
    ids = [[model.tokenizer.bos_id, *model.tokenizer.encode(text)[:128]] for text in texts]
    sums = bits_by_position(model, ids, SMOKE_TEXT)
    rows = [[one[0], *one[first : first + 16]] for one in ids for first in range(1, 129, 16)]
    for name, read in (("bits", ids), ("bits_read_anew", rows)):
        whole = -sum(float(model.score(one).sum()) for one in read) / math.log(2.0)
        assert sum(sums[name]) == pytest.approx(whole, abs=0.05 * len(sums[name]))
    assert sums["positions"] == list(range(0, 128, 4))
    assert sum(sums["bytes"]) == sum(len(model.tokenizer.decode(one[1:]).encode("utf-8")) for one in ids)


def test_runs_cut_off_and_resumed_give_the_same_record(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    from baselines import main

    def record() -> dict:
        command = [str(data), str(tmp_path / "work"), "--smoke", "--seeds", "1", "--out", str(tmp_path / "out")]
        assert main(command) == 0
        (path,) = (tmp_path / "out").iterdir()
        return json.loads(path.read_text(encoding="utf-8"))

    whole = record()
    assert [run["model"] for run in whole["text"]] == ["griffin", "hawk", "mqa"]
    assert len(whole["recall"]) == 6
    assert len({run["tokens"] for run in whole["text"]}) == 1
    shutil.rmtree(tmp_path / "work" / "runs" / "hawk-0" / "model")
    (tmp_path / "work" / "results" / "text-hawk-0.json").unlink()
    (tmp_path / "work" / "results" / "induction_heads-mqa-0.json").unlink()
    assert record() == whole
    assert "| selective_copying | mqa |" in capsys.readouterr().out


def test_results_of_other_settings_are_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    from baselines import main

    kept = tmp_path / "work" / "results" / "text-griffin-0.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"settings": {"steps": 7}, "found": {}}), encoding="utf-8")
    assert main([str(data), str(tmp_path / "work"), "--smoke"]) == 2
    assert f"error: {kept} was made with other settings" in capsys.readouterr().err


def test_text_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    from baselines import main

    assert main([str(tmp_path), str(tmp_path / "work"), "--smoke"]) == 2
    assert f"error: text file {tmp_path / 'pretrain' / 'tinystories.jsonl.xz'} cannot be" in capsys.readouterr().err
