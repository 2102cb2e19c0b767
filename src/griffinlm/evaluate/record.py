"""The record of a measurement: what it begins with, and where it is written."""

import datetime
import json
import os
import platform
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import griffinlm


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except FileNotFoundError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def header(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Command, date, machine and version of a run of a script of the checkout, named as from its root.

    Of an absolute path, alone or behind a `=`, the last part is told: where it lies is this machine's affair.
    """
    return {
        "command": shlex.join(["python", script, *(re.sub(r"(?:^|(?<==))/.*/(?=.)", "", one) for one in arguments)]),
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "logical_cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "griffinlm": griffinlm.__version__,
    }


def write(report: dict[str, Any], name: str, directory: Path) -> Path:
    """Writes a record that begins with `header` as <processor>-<date>-<name>.json."""
    device = re.sub(r"[^a-z0-9]+", "-", report["processor"].lower()).strip("-")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{device}-{report['date']}-{name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return path
