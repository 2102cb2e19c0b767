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

SPREAD = {"count": 3, "median_ms": 20.0, "percentile_99_ms": 90.0, "most_ms": 99.0}
LOAD = {
    "date": "2026-01-01",
    "servers": [
        {
            "server": "griffin int4",
            "status": "measured",
            "first_token": {"question": SPREAD, "document": SPREAD},
            "between_tokens": SPREAD,
            "memory": [{"seconds": 0.0, "bytes": 10**9}, {"seconds": 9.0, "bytes": 10**9}],
        },
        {"server": "llama.cpp Gemma Q4_0", "status": "skipped", "reason": "it is not there"},
    ],
}

TEXT = {"bits": [9.0, 8.0, 8.0, 8.0], "bits_read_anew": [9.0, 8.0, 9.0, 8.0], "bytes": [4, 4, 4, 4]}
BASELINES = {
    "date": "2026-01-01",
    "text_settings": {"row_tokens": 8},
    "recall_settings": {"lengths": [8, 16], "tasks": {"induction_heads": 8, "selective_copying": 8}},
    "text": [
        {"model": model, "long_texts": {"books": {"positions": [0, 4, 8, 12], **TEXT}}}
        for model in ("griffin", "hawk", "mqa")
    ],
    "recall": [
        {"model": model, "task": task, "curve": [[50, 0.5], [100, share]], "accuracy": [[8, share], [16, 0.5]]}
        for model in ("griffin", "hawk", "mqa")
        for task in ("induction_heads", "selective_copying")
        for share in (0.8, 1.0)
    ],
}

THROUGHPUT = {
    "date": "2026-01-01",
    "processor": "some GPU",
    "prompt_tokens": 2048,
    "summary": [
        {"model": model, "program": program, "new_tokens": number, "tokens_per_second": 900.0, "rows": 64}
        for model in ("recurrentgemma-2b", "gemma-2b")
        for program in ("griffinlm", "transformers")
        for number in (128, 32_768)
    ],
}

DEPTHWISE = {
    "date": "2026-01-01",
    "runs": [
        {"rows": 8, "loops": 2, "loops_a_token": mean, "equal_tokens": 0.9, "rows_by_loop": [[8, 0], [3, 5], [6, 2]]}
        for mean in (1.5, 2.0)
    ],
}

SHARE = {"share": 0.5, "low": 0.4, "high": 0.6, "num": 90}
QUESTIONS = {"in_passage": SHARE, "equal": SHARE}
CHECKED = {
    "sentences": {"words_used": SHARE},
    "stories": {"words_used": SHARE, "name_occurs": SHARE, "length_obeyed": SHARE},
    **dict.fromkeys(("names", "tales", "articles"), QUESTIONS),
    "translation": {"chrf": 40.0, "chrf_interval": 1.0, "chrf_of_copying": 15.0},
}
CHECKS = {
    "date": "2026-01-01",
    "losses": [[10, 3.0], [20, 2.5]],
    "models": {"base": {"tasks": CHECKED}, "sft": {"tasks": CHECKED}},
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
    (results / "here-2026-01-01-serve_load.json").write_text(json.dumps(LOAD))
    (results / "here-2026-01-01-baselines.json").write_text(json.dumps(BASELINES))
    (results / "gpu-2026-01-01-gpu_throughput.json").write_text(json.dumps(THROUGHPUT))
    (results / "here-2026-01-01-depthwise.json").write_text(json.dumps(DEPTHWISE))
    (results / "here-2026-01-01-eyas_checks.json").write_text(json.dumps(CHECKS))
    drawn = {
        "eyas_checks.svg",
        "depthwise.svg",
        "gpu_throughput.svg",
        "memory_and_speed.svg",
        "cpu_peers.svg",
        "serve_load.svg",
        "baselines.svg",
    }
    assert draw(results, tmp_path / "second") == {"state_sizes.svg", *drawn}
    for name in drawn:
        assert "<svg" in (tmp_path / "second" / name).read_text(encoding="utf-8")
