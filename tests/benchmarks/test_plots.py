"""The pictures are drawn from whatever the benchmarks wrote."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORD = {
    "date": "2026-01-01",
    "window_tokens": 7,
    "series": [{"tokens": n, "median_ms_per_token": 1.0, "resident_bytes": 10**8} for n in (0, 500, 1000)],
}


def draw(results: Path, pictures: Path) -> set[str]:
    subprocess.run([sys.executable, ROOT / "benchmarks" / "plots.py", results, pictures], check=True)
    return {path.name for path in pictures.iterdir()}


def test_sizes_need_no_record_and_the_newest_record_is_drawn(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    assert draw(results, tmp_path / "first") == {"state_sizes.svg"}
    (results / "here-2026-01-01-memory_and_speed.json").write_text(json.dumps(RECORD))
    assert draw(results, tmp_path / "second") == {"state_sizes.svg", "memory_and_speed.svg"}
    assert "<svg" in (tmp_path / "second" / "memory_and_speed.svg").read_text(encoding="utf-8")
