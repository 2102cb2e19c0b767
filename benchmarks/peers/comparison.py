"""What the figures say: medians over rounds, and ratios of programs measured in the same round."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Figure = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """How many times the tokens a second of `theirs` are wanted from `ours`."""

    measure: str
    position: int
    ours: str
    theirs: str
    least_ratio: float


TARGETS = (
    *(
        Target("decode", position, f"griffin {ours}", f"llama.cpp Gemma {theirs}", ratio)
        for ours, theirs, ratios in (("int4", "Q4_0", (1.0, 1.3, 2.5)), ("int8", "Q8_0", (0.9, 1.1, 1.8)))
        for position, ratio in zip((0, 8192, 32_768), ratios, strict=True)
    ),
    Target("decode", 0, "griffin int4", "llama.cpp Mamba Q4_0", 1.2),
    Target("decode", 0, "griffin int4", "transformers bfloat16", 20.0),
    Target("prefill", 0, "griffin int4", "llama.cpp Gemma Q4_0", 1.0),
    Target("prefill", 0, "griffin int8", "llama.cpp Gemma Q8_0", 0.9),
    Target("prefill", 0, "griffin int4", "llama.cpp Mamba Q4_0", 2.0),
    Target("batch", 0, "griffin int4", "llama.cpp Gemma Q4_0", 1.0),
    Target("batch", 0, "griffin int8", "llama.cpp Gemma Q8_0", 1.0),
)


def summarize(figures: Iterable[Figure]) -> list[Figure]:
    """Median, least and most over the rounds of every program, measure and position, in the order of appearance."""
    groups: dict[tuple[Any, ...], list[Figure]] = {}
    for figure in figures:
        key = tuple(figure[name] for name in ("program", "measure", "position", "rows"))
        groups.setdefault(key, []).append(figure)
    summary = []
    for (program, measure, position, rows), group in groups.items():
        milliseconds = [figure["milliseconds"] for figure in group]
        summary.append(
            {
                "program": program,
                "measure": measure,
                "position": position,
                "rows": rows,
                "milliseconds": round(statistics.median(milliseconds), 3),
                "milliseconds_least": round(min(milliseconds), 3),
                "milliseconds_most": round(max(milliseconds), 3),
                "tokens_per_second": round(statistics.median(figure["tokens_per_second"] for figure in group), 3),
                "peak_rss_bytes": max(figure["peak_rss_bytes"] for figure in group),
            }
        )
    return summary


def compare(figures: Iterable[Figure], targets: Iterable[Target] = TARGETS) -> list[Figure]:
    """Every target with the median ratio over the rounds that have both sides; `ratio` is None where none has."""
    speeds = {
        (figure["program"], figure["measure"], figure["position"], figure["round"]): figure["tokens_per_second"]
        for figure in figures
    }
    rounds = sorted({key[-1] for key in speeds})
    comparisons = []
    for target in targets:
        ours, theirs = (
            [speeds.get((program, target.measure, target.position, number)) for number in rounds]
            for program in (target.ours, target.theirs)
        )
        ratios = [ours / theirs for ours, theirs in zip(ours, theirs, strict=True) if ours and theirs]
        ratio = statistics.median(ratios) if ratios else None
        comparisons.append(
            {
                "measure": target.measure,
                "position": target.position,
                "ours": target.ours,
                "theirs": target.theirs,
                "ratio": None if ratio is None else round(ratio, 3),
                "ratio_least": round(min(ratios), 3) if ratios else None,
                "ratio_most": round(max(ratios), 3) if ratios else None,
                "target": target.least_ratio,
                "met": None if ratio is None else ratio >= target.least_ratio,
            }
        )
    return comparisons
