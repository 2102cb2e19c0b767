"""Draws the pictures of docs/results.md from what the benchmarks wrote and from the sizes of the models.

python benchmarks/plots.py benchmarks/results docs/pictures
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from griffinlm.config import ModelConfig
from griffinlm.state import state_layout

INK, HAWK, GEMMA, MAMBA, GRIFFIN, OTHER = "#444444", "#1f6f8b", "#c8553d", "#b08d2e", "#5b8c3e", "#7a7a7a"
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


SERVERS = {"griffin eyas": ("eyas, griffin", OTHER, "-"), **PROGRAMS}
"""Servers of serve_load.py."""


def draw_serve_load(record: dict, path: Path) -> None:
    """Time to the first token by kind of request, time between tokens, resident set; lines go to 99th percentiles."""
    figure, (first, between, memory) = plt.subplots(1, 3, layout="constrained", figsize=(11.0, 3.8))
    rows = [row for row in record["servers"] if row["status"] == "measured"]
    kinds = sorted({kind for row in rows for kind in row["first_token"]}, reverse=True)

    def draw_spread(axes: Axes, height: float, found: dict, colour: str, line: str) -> None:
        axes.plot([found["median_ms"], found["percentile_99_ms"]], [height, height], line, color=colour, linewidth=2)
        axes.plot(found["median_ms"], height, "o", color=colour, markersize=5)

    for place, row in enumerate(reversed(rows)):
        name, colour, line = SERVERS[row["server"]]
        shift = 0.7 * ((place + 0.5) / len(rows) - 0.5)
        for height, kind in enumerate(kinds):
            if kind in row["first_token"]:
                draw_spread(first, height + shift, row["first_token"][kind], colour, line)
        if row["between_tokens"] is not None:
            draw_spread(between, place, row["between_tokens"], colour, line)
        seconds = [look["seconds"] for look in row["memory"]]
        sizes = [look["bytes"] / MEGABYTE for look in row["memory"]]
        memory.plot(seconds, sizes, line, color=colour, linewidth=2, label=name)
    first.set_yticks(range(len(kinds)), kinds)
    first.set_xlabel("milliseconds to the first token")
    between.set_yticks(range(len(rows)), [SERVERS[row["server"]][0] for row in reversed(rows)])
    between.set_xlabel("milliseconds between tokens")
    for axes in (first, between):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    memory.set_ylim(bottom=0)
    memory.set_xlabel("seconds of the load")
    memory.set_ylabel("resident set, megabytes")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


BASELINES = {"griffin": ("Griffin", GRIFFIN), "hawk": ("Hawk", HAWK), "mqa": ("multi-query transformer", GEMMA)}
"""Models of recipes/baselines.py as the picture names and draws them."""

Curve = list[tuple[float, float]]


def draw_seeds(axes: Axes, curves: dict[str, list[Curve]]) -> None:
    """A line for the mean of each model's seeds, and a band from the smallest to the largest of them."""
    for model, (name, colour) in BASELINES.items():
        # A curve that ended early stays where it ended.
        points = sorted({x for curve in curves[model] for x, _ in curve})
        seeds = [np.interp(points, [x for x, _ in curve], [y for _, y in curve]) for curve in curves[model]]
        axes.plot(points, np.mean(seeds, axis=0), color=colour, linewidth=2, label=name)
        axes.fill_between(points, np.min(seeds, axis=0), np.max(seeds, axis=0), color=colour, alpha=0.2, linewidth=0)


def change_by_memory(run: dict, row_tokens: int) -> Curve:
    """Bits per byte of long texts over those where the model forgets after every training row; by the row's middle."""
    sums = list(run["long_texts"].values())
    bins_a_row = row_tokens // (sums[0]["positions"][1] - sums[0]["positions"][0])
    bits, anew, num_bytes = (
        np.sum([one[name] for one in sums], axis=0).reshape(-1, bins_a_row).sum(axis=1)
        for name in ("bits", "bits_read_anew", "bytes")
    )
    return [((row + 0.5) * row_tokens, change) for row, change in enumerate((bits - anew) / num_bytes)]


def draw_baselines(record: dict, path: Path) -> None:
    """What memory gives by position in a text, recall by length, and how fast recall was learned."""
    figure, (text, induction, copying) = plt.subplots(1, 3, layout="constrained", figsize=(11.0, 3.6))

    def curves(part: str, curve: Callable[[dict], Curve], **wanted: str) -> dict[str, list[Curve]]:
        runs = [run for run in record[part] if wanted.items() <= run.items()]
        return {model: [curve(run) for run in runs if run["model"] == model] for model in BASELINES}

    row_tokens = record["text_settings"]["row_tokens"]
    draw_seeds(text, curves("text", lambda run: change_by_memory(run, row_tokens)))
    draw_seeds(induction, curves("recall", lambda run: run["accuracy"], task="induction_heads"))
    draw_seeds(copying, curves("recall", lambda run: run["curve"], task="selective_copying"))
    text.axvline(row_tokens, color=INK, linewidth=0.8, linestyle=":")
    text.axhline(0.0, color=INK, linewidth=0.8)
    text.set_xlabel("position (dotted: training length)")
    text.set_ylabel(f"bits per byte, over reading anew every {row_tokens}")
    text.legend(frameon=False)
    lengths = record["recall_settings"]["lengths"]
    induction.axvline(record["recall_settings"]["tasks"]["induction_heads"], color=INK, linewidth=0.8, linestyle=":")
    induction.set_xscale("log", base=2)
    induction.set_xticks(lengths, [f"{length:,}" for length in lengths])
    induction.minorticks_off()
    induction.set_xlabel("tokens (dotted: training length)")
    induction.set_ylabel("induction heads, share right")
    copying.set_xlabel("training steps")
    copying.set_ylabel("selective copying, share of tokens right")
    for axes in (induction, copying):
        axes.set_ylim(0, 1.05)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_gpu_throughput(record: dict, path: Path) -> None:
    """The largest throughput of sampling by the number of new tokens, as in figure 1a of the paper."""
    figure, axes = plt.subplots(layout="constrained")
    lines: dict[tuple[str, str], list[dict]] = {}
    for found in record["summary"]:
        lines.setdefault((found["model"], found["program"]), []).append(found)
    for (model, program), points in lines.items():
        x, y = [point["new_tokens"] for point in points], [point["tokens_per_second"] for point in points]
        colour = HAWK if model == "recurrentgemma-2b" else GEMMA
        axes.plot(x, y, color=colour, linewidth=2, linestyle="-" if program == "griffinlm" else ":", marker="o")
        axes.annotate(f"{model}, {program}", (x[-1], y[-1]), (6, 0), textcoords="offset points", color=colour)
    numbers = sorted({point["new_tokens"] for point in record["summary"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(
        f"new tokens after a prompt of {record['prompt_tokens']:,}\n"
        "(steps timed at set positions, the time between them on a line, added up)"
    )
    axes.set_ylabel("largest throughput, tokens a second")
    axes.set_title(record["processor"], fontsize=10)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_depthwise(record: dict, path: Path) -> None:
    """Rows in each loop at every step of depth-wise batching, of the run with the most rows and the fewest loops."""
    run = min(record["runs"], key=lambda run: (-run["rows"], run["loops_a_token"]))
    figure, axes = plt.subplots(layout="constrained")
    rows = np.asarray(run["rows_by_loop"]).T
    names = [f"loop {loop + 1}" for loop in range(len(rows))]
    shades = plt.get_cmap("Blues")(np.linspace(0.4, 0.9, len(rows)))
    axes.stackplot(np.arange(rows.shape[1]), rows, labels=names, colors=list(shades), step="mid")
    axes.set_ylim(0, run["rows"])
    axes.set_xlabel("step, one loop of all rows")
    axes.set_ylabel("rows in flight")
    quality = f"{run['equal_tokens']:.0%} of tokens those of full depth"
    axes.set_title(f"{run['loops_a_token']:.2f} of {run['loops']} loops a token, {quality}", fontsize=10)
    figure.legend(frameon=False, loc="outside right upper")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_eyas_policies(record: dict, path: Path) -> None:
    """A policy's run: rewards of the model that teaches and the one that watches, distance, what answers show."""
    found = record["curves"]
    panels = (
        ("mean reward", {"teaches": ("reward", HAWK), "watches": ("watched reward", GEMMA)}),
        ("nats a token", {"KL to the tuned model": ("kl of a token", HAWK), "entropy": ("entropy", MAMBA)}),
        (
            "share",
            {
                "answers ended": ("ended", HAWK),
                "what was asked, by rule": ("rule", GRIFFIN),
                "runs of 4 repeated": ("repeated runs", GEMMA),
            },
        ),
    )
    figure, row = plt.subplots(1, len(panels), figsize=(9.5, 3.8), layout="constrained")
    for axes, (label, lines) in zip(row, panels, strict=True):
        for name, (curve, colour) in lines.items():
            if curve not in found:  # no rule, or no reward model that watched
                continue
            axes.plot(np.arange(1, len(found[curve]) + 1), found[curve], color=colour, linewidth=1.5, label=name)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_eyas_checks(record: dict, path: Path) -> None:
    """The loss of instruction tuning, and what each stage does with requests that it has not seen."""
    figure, (loss, shares, chrf) = plt.subplots(
        1, 3, layout="constrained", figsize=(10.5, 3.4), gridspec_kw={"width_ratios": [2, 4, 1]}
    )
    loss.plot(*zip(*record["losses"], strict=True), color=HAWK, linewidth=1.5)
    loss.set_xlabel("step of tuning")
    loss.set_ylabel("nats a token of the answers")
    colours = dict(zip(record["models"], (OTHER, HAWK, GRIFFIN, GEMMA), strict=False))
    figures = (
        ("sentences", "words_used", "asked words\nin a sentence"),
        ("stories", "words_used", "asked words\nin a story"),
        ("stories", "name_occurs", "asked name\noccurs"),
        ("stories", "length_obeyed", "asked length\nobeyed"),
        ("names", "equal", "name found"),
        ("tales", "in_passage", "tale: answer\nin passage"),
        ("articles", "in_passage", "article: answer\nin passage"),
    )
    width = 0.8 / len(colours)
    for number, (name, model) in enumerate(record["models"].items()):
        tasks, shift = model["tasks"], (number - (len(colours) - 1) / 2) * width
        found = [tasks[task][figure_name] for task, figure_name, _ in figures]
        middle = np.array([one["share"] for one in found])
        spread = [middle - [one["low"] for one in found], [one["high"] for one in found] - middle]
        places = np.arange(len(figures)) + shift
        shares.bar(places, middle, width, color=colours[name], label=name, yerr=spread, error_kw={"linewidth": 0.8})
        translation = tasks["translation"]
        chrf.bar(shift, translation["chrf"], width, color=colours[name], yerr=translation["chrf_interval"])
        chrf.axhline(translation["chrf_of_copying"], color=INK, linewidth=0.8, linestyle=":")
    shares.set_xticks(np.arange(len(figures)), [label for _, _, label in figures], fontsize=7)
    shares.set_ylim(0, 1.12)
    shares.legend(frameon=False, loc="upper left", ncols=len(colours), fontsize=8)
    chrf.set_xticks([0], ["chrF of French\n(dotted: copying)"], fontsize=7)
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
    for name, draw in (
        ("memory_and_speed", draw_memory_and_speed),
        ("cpu_peers", draw_cpu_peers),
        ("serve_load", draw_serve_load),
        ("baselines", draw_baselines),
        ("gpu_throughput", draw_gpu_throughput),
        ("depthwise", draw_depthwise),
        ("eyas_policies", draw_eyas_policies),
        ("eyas_checks", draw_eyas_checks),
    ):
        record = newest(options.results, name)
        if record is not None:
            draw(record, options.pictures / f"{name}.svg")


if __name__ == "__main__":
    main()
