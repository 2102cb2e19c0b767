"""The recipe of a small model's life runs, and the model has learned to answer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny_end_to_end.sh"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a script of bash")
def test_from_text_to_an_answer_of_the_served_model(tmp_path: Path):
    for module, extra in (("trl", "train"), ("uvicorn", "serve")):
        pytest.importorskip(module, reason=f"needs the extra {extra}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", RECIPE, tmp_path / "work"], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    pretrained, tuned = (float(line.split()[0]) for line in done.stdout.splitlines() if "bits per byte" in line)
    assert pretrained < 0.2, "the stories were not learned"
    assert tuned < 2.0
    assert done.stdout.splitlines()[-1] == "The owl lives in the wood."
