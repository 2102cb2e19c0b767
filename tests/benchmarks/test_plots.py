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

PEERS = {
    "date": "2026-01-01",
    "summary": [
        {"program": program, "measure": measure, "position": position, "milliseconds": 70.0, "tokens_per_second": 90.0}
        for program in ("griffin int4", "llama.cpp Gemma Q4_0")
        for measure, position in (("prefill", 0), ("decode", 0), ("decode", 2048))
    ],
}


def draw(results: Path, pictures: Path) -> set[str]:
    subprocess.run([sys.executable, ROOT / "benchmarks" / "plots.py", results, pictures], check=True)
    return {path.name for path in pictures.iterdir()}


def test_sizes_need_no_record_and_the_newest_record_is_drawn(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    assert draw(results, tmp_path / "first") == {"state_sizes.svg"}
    (results / "here-2026-01-01-memory_and_speed.json").write_text(json.dumps(RECORD))
    (results / "here-2026-01-01-cpu_peers.json").write_text(json.dumps(PEERS))
    drawn = {"memory_and_speed.svg", "cpu_peers.svg"}
    assert draw(results, tmp_path / "second") == {"state_sizes.svg", *drawn}
    for name in drawn:
        assert "<svg" in (tmp_path / "second" / name).read_text(encoding="utf-8")
