"""The recipe of alignment at tiny size runs, and the model has learned what is liked."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "rlhf_end_to_end.sh"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a script of bash")
def test_from_text_to_a_model_that_says_what_is_liked(tmp_path: Path):
    pytest.importorskip("trl", reason="needs the extra train")
    path, work = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", tmp_path / "work"
    environment = {**os.environ, "PATH": path, "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", RECIPE, work], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((work / "reward.json").read_text())["figures"]["eval_accuracy"] > 0.9
    told = [re.fullmatch(r"(\w+): (\d+)% honey, mean reward (-?[\d.]+)", line) for line in done.stdout.splitlines()]
    (tuned, honey_before, reward_before), (aligned, honey, reward) = (match.groups() for match in told if match)
    assert (tuned, aligned) == ("tuned", "aligned")
    assert int(honey_before) < 50
    assert int(honey) > 80
    assert float(reward) > float(reward_before)
