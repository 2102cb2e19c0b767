"""Draws the pictures of docs/results.md from what the benchmarks wrote and from the sizes of the models.

python benchmarks/plots.py benchmarks/results docs/pictures
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from griffinlm.config import ModelConfig
from griffinlm.state import state_layout

INK, HAWK, GEMMA, MAMBA, OTHER = "#444444", "#1f6f8b", "#c8553d", "#b08d2e", "#7a7a7a"
MEGABYTE = 1e6
MILLISECONDS = [20, 50, 100, 200, 500, 1000, 2000, 5000]
LENGTHS = [2**exponent for exponent in range(7, 18)]
STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "svg.hashsalt": "griffinlm",
    "figure.figsize": (7.0, 3.2),
}


def bytes_kept(preset: str, num_tokens: int) -> int:
    """Bytes of one conversation of a preset in 16 bit."""
    config = ModelConfig.preset(preset)
    capacity = num_tokens if config.needs_capacity else None
    return sum(array.nbytes for array in state_layout(config, 1, capacity, "bfloat16", "bfloat16").values())


def draw_state_sizes(path: Path) -> None:
    """What a conversation costs in memory, by its length: a state of fixed size against a transformer's cache."""
    figure, axes = plt.subplots(layout="constrained")
    for preset, name, colour in (("gemma-2b", "Gemma-2B", GEMMA), ("recurrentgemma-2b", "RecurrentGemma-2B", HAWK)):
        sizes = [bytes_kept(preset, length) / MEGABYTE for length in LENGTHS]
        axes.plot(LENGTHS, sizes, color=colour, linewidth=2)
        axes.annotate(name, (LENGTHS[-1], sizes[-1]), (6, 0), textcoords="offset points", color=colour, va="center")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(LENGTHS[::2], [f"{length:,}" for length in LENGTHS[::2]])
    axes.set_yticks([1, 10, 100, 1000], ["1 MB", "10 MB", "100 MB", "1 GB"])
    axes.minorticks_off()
    axes.set_xlabel("tokens in the conversation")
    axes.set_ylabel("memory of the conversation")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_memory_and_speed(record: dict, path: Path) -> None:
    """Resident set and time a token while one long answer is written."""
    tokens = [point["tokens"] for point in record["series"]]
    figure, (memory, speed) = plt.subplots(1, 2, layout="constrained")
    memory.plot(tokens, [point["resident_bytes"] / MEGABYTE for point in record["series"]], color=HAWK, linewidth=2)
    memory.set_ylabel("resident set, megabytes")
    speed.plot(tokens, [point["median_ms_per_token"] for point in record["series"]], color=HAWK, linewidth=2)
    speed.set_ylabel("milliseconds a token, median of 500")
    for axes in (memory, speed):
        axes.axvline(record["window_tokens"], color=INK, linewidth=0.8, linestyle=":")
        axes.set_ylim(0, 1.2 * axes.dataLim.y1)
        axes.set_xlabel("tokens written (dotted: window full)")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


PROGRAMS = {
    "griffin int4": ("RecurrentGemma-2B, griffin int4", HAWK, "-"),
    "griffin int8": ("RecurrentGemma-2B, griffin int8", HAWK, "--"),
    "llama.cpp Gemma Q4_0": ("Gemma-2B, llama.cpp Q4_0", GEMMA, "-"),
    "llama.cpp Gemma Q8_0": ("Gemma-2B, llama.cpp Q8_0", GEMMA, "--"),
    "llama.cpp Mamba Q4_0": ("Mamba-2.8B, llama.cpp Q4_0", MAMBA, "-"),
    "transformers bfloat16": ("RecurrentGemma-2B, transformers", OTHER, "-"),
}
"""Programs of cpu_peers.py as the picture names and draws them."""


def draw_cpu_peers(record: dict, path: Path) -> None:
    """Time a token by position, and speed of reading a prompt; programs with broken lines have the paler bars."""
    figure, (decode, prefill) = plt.subplots(1, 2, layout="constrained", figsize=(9.0, 3.8))
    measured = [name for name in PROGRAMS if any(row["program"] == name for row in record["summary"])]
    for place, name in enumerate(reversed(measured)):
        _, colour, line = PROGRAMS[name]
        rows = {
            kind: [row for row in record["summary"] if (row["program"], row["measure"]) == (name, kind)]
            for kind in ("decode", "prefill")
        }
        positions = [row["position"] for row in rows["decode"]]
        times = [row["milliseconds"] for row in rows["decode"]]
        decode.plot(positions, times, line, color=colour, marker="o", markersize=4, linewidth=2)
        speeds = [row["tokens_per_second"] for row in rows["prefill"]]
        bars = prefill.barh([place] * len(speeds), speeds, 0.6, color=colour, alpha=1.0 if line == "-" else 0.6)
        prefill.bar_label(bars, fmt="%.0f", padding=4, color=INK)
    positions = sorted({row["position"] for row in record["summary"] if row["measure"] == "decode"})
    if len(positions) > 1:
        decode.set_xscale("symlog", base=2, linthresh=positions[1])
    decode.set_yscale("log")
    decode.set_yticks(MILLISECONDS, [f"{milliseconds:,}" for milliseconds in MILLISECONDS])
    decode.set_ylim(0.8 * decode.dataLim.y0, 1.2 * decode.dataLim.y1)
    decode.minorticks_off()
    decode.set_xticks(positions, [f"{position:,}" for position in positions])
    decode.set_xlabel("tokens in memory")
    decode.set_ylabel("milliseconds a token")
    prefill.set_yticks(range(len(measured)), [PROGRAMS[name][0] for name in reversed(measured)])
    prefill.set_xlabel("tokens a second, reading a prompt")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def newest(results: Path, benchmark: str) -> dict | None:
    """The record of `benchmark` with the latest date."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob(f"*-{benchmark}.json"))]
    return max(records, key=lambda record: record["date"], default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("pictures", type=Path)
    options = parser.parse_args()
    options.pictures.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update(STYLE)  # pyright: ignore[reportCallIssue, reportArgumentType]  (keys are plain text)
    draw_state_sizes(options.pictures / "state_sizes.svg")
    for name, draw in (("memory_and_speed", draw_memory_and_speed), ("cpu_peers", draw_cpu_peers)):
        record = newest(options.results, name)
        if record is not None:
            draw(record, options.pictures / f"{name}.svg")


if __name__ == "__main__":
    main()
