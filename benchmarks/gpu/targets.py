"""What the measurements are to show, beside what they have shown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]
"""Rows by module."""

SHAPE = [8, 8192, 2560]
SHORT, LONG = 2048, 32_768
"""New tokens between which throughput is to stay."""


def figure(tables: Tables, module: str, name: str, **what: Any) -> float | None:
    """What the first row of a module that is as asked for has under a name."""
    for row in tables.get(module, ()):
        if name in row and all(row.get(key) == value for key, value in what.items()):
            return row[name]
    return None


def ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def fastest_peer(rows: Iterable[Row]) -> float | None:
    """Seconds of the fastest forward scan of others, at the first shape."""
    peers = (row for row in rows if row.get("computes") and "forward_seconds" in row)
    return min((row["forward_seconds"] for row in peers), default=None)


def targets(tables: Tables) -> list[dict[str, Any]]:
    """A row for each figure: what it is, from where to where it is wanted, and what was found; None where nothing was.

    A figure without bounds stands there to be compared, and is neither met nor missed.

    Throughput is that of `throughput.summarise`, training rows are `summary.compared` ones.
    """
    scan = {"program": "griffinlm", "shape": SHAPE}
    peer = ratio(fastest_peer(tables.get("scan", ())), figure(tables, "scan", "forward_seconds", **scan))

    def at(num_tokens: int, model: str) -> float | None:
        what = {"program": "griffinlm", "model": model, "new_tokens": num_tokens}
        return figure(tables, "throughput", "tokens_per_second", **what)

    def training(length: int) -> float | None:
        return figure(tables, "training", "times_as_fast_as_transformer", model="griffin-400m", tokens=length)

    def decode(program: str) -> float | None:
        return figure(tables, "decode", "share_of_bound", model="recurrentgemma-2b", rows=1, program=program)

    flat, falls = (ratio(at(LONG, model), at(SHORT, model)) for model in ("recurrentgemma-2b", "gemma-2b"))
    wanted = (
        ("forward scan, of copy bandwidth", 0.6, None, figure(tables, "scan", "forward_share_of_copy", **scan)),
        ("forward scan, times as fast as the fastest peer", 1.0, None, peer),
        ("Griffin 400M, times as fast as the transformer at 2,048", 1.0, None, training(2048)),
        ("Griffin 400M, times as fast as the transformer at 8,192", 1.3, None, training(8192)),
        ("RecurrentGemma-2B, one row, of the bandwidth bound", 0.75, None, decode("griffinlm")),
        ("the same where kernels overlap", None, None, decode("griffinlm, overlapped")),
        ("the same by plain operators", None, None, decode("griffinlm, plain operators")),
        ("the same by compiled blocks", None, None, decode("griffinlm, compiled")),
        ("RecurrentGemma-2B, throughput of 32,768 new tokens over that of 2,048", 0.95, 1.05, flat),
        ("Gemma-2B, the same", None, 0.95, falls),
        (
            "loss by the kernels, nats from plain operators",
            None,
            0.03,
            figure(tables, "loss_curve", "largest_distance", program="kernels"),
        ),
    )
    return [
        {"target": what, "least": least, "most": most, "found": found, "is_met": _is_within(found, least, most)}
        for what, least, most, found in wanted
    ]


def _is_within(found: float | None, least: float | None, most: float | None) -> bool | None:
    if found is None or least is most is None:
        return None
    return (least is None or found >= least) and (most is None or found <= most)
