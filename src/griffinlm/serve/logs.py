"""Logs: one JSON object a line on standard error. Nothing that a client wrote is in them, and no key."""

import json
import logging
import sys
import time
import traceback
from typing import Any

LOGGER = logging.getLogger("griffinlm.serve")


class _JsonLines(logging.Formatter):
    """The fields of a record as one line."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            # Behind the first line libraries tell what they held, which may be a client's.
            "message": record.getMessage().partition("\n")[0],
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            fields["fault"] = described(record.exc_info[1])
        return json.dumps(fields)


def described(error: BaseException) -> list[str]:
    """The type of a fault and where it came from, without its words, which may be a client's."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return [type(error).__name__, *(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)]


def start_logs() -> None:
    """From now on all that the server and its libraries log is JSON."""
    logging.disable(logging.NOTSET)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    LOGGER.setLevel(logging.INFO)


def log_event(message: str, **fields: Any) -> None:
    """One line, with fields that no client wrote."""
    LOGGER.info(message, extra={"fields": fields})


def log_fault(message: str, error: BaseException) -> None:
    """A fault of ours, without its words."""
    LOGGER.error(message, exc_info=error)
