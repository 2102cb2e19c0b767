"""Standard output and standard error: UTF-8 whatever the locale, faults on one line, libraries held quiet."""

import contextlib
import io
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any


def force_utf8() -> None:
    """Text comes and goes as UTF-8 in every locale; file names that are not UTF-8 keep their bytes."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  (open to the end)
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace")


def print_error(message: str, hint: str | None = None) -> None:
    """One `error:` line and at most one `hint:` line on standard error."""
    with contextlib.suppress(OSError):
        print(f"error: {one_line(message)}", file=sys.stderr)
        if hint:
            print(f"hint: {one_line(hint)}", file=sys.stderr)


def print_note(message: str) -> None:
    """A line on standard error of something that is no error, but may not be what was wanted."""
    with contextlib.suppress(OSError):
        print(f"note: {one_line(message)}", file=sys.stderr)


def one_line(text: str) -> str:
    """`text` without line breaks, other characters that a terminal would obey written as escapes."""
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in joined)


def for_terminal(text: str) -> str:
    """`text` with its line breaks and tabs, other characters that a terminal would obey written as escapes."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def readable_bytes(num_bytes: int) -> str:
    """In decimal units, as disks are sold and models are listed."""
    size, units = float(num_bytes), ["bytes", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, which torch tells on a CPU by the words of a RuntimeError alone."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def print_json(value: dict[str, Any]) -> None:
    """One object on one line of standard output; infinities and NaN, which JSON lacks, are null."""
    print(json.dumps(_in_json(value), ensure_ascii=False, allow_nan=False))


def _in_json(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _in_json(entry) for key, entry in value.items()}
    return [_in_json(entry) for entry in value] if isinstance(value, list | tuple) else value


def discard_output() -> None:
    """Flushes standard output; what cannot be written any more is dropped, so that the interpreter ends in silence."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Holds back the warnings and log lines of libraries where standard error is no terminal."""
    if sys.stderr.isatty():
        yield
        return
    disabled_before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled_before)


def print_table(header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> None:
    """Names and values, or numbers under a header: a table on a terminal, plain columns elsewhere."""
    if sys.stdout.isatty():
        _print_rich_table(header, rows)
        return
    lines = [header, *rows] if header else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.rjust(w) if header else cell.ljust(w) for cell, w in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def _print_rich_table(header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=header is not None)
    for name in header or rows[0]:
        table.add_column(name, justify="right" if header else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
