"""What a JSON body may hold, found out before it is parsed: parsing holds everybody else up."""

import numpy as np

from griffinlm.serve.errors import ApiError

MOST_PARTS = 1 << 17
"""Keys, lists and tables of a body. Ten thousand messages of two parts have some 110,000."""
QUOTE = ord('"')
MARKS = b":[{"
"""Each belongs to one key, list or table where it stands outside of strings."""
IS_MARK = np.isin(np.arange(256), [*MARKS])


def require_few_parts(body: bytes) -> None:
    """Refuses a body of more keys, lists and tables than are read.

    Raises:
        ApiError: there are too many, or the body is no UTF-8, which JSON must be.
    """
    if b"\0" in body:
        raise ApiError(400, "the body is not JSON in UTF-8", code="invalid_json")
    if sum(body.count(mark) for mark in MARKS) <= MOST_PARTS:
        return
    num_parts = num_marks_outside_strings(body)
    if num_parts > MOST_PARTS:
        message = f"the body has {num_parts} keys, lists and tables; at most {MOST_PARTS} are read"
        raise ApiError(400, message, code="invalid_value")


def num_marks_outside_strings(body: bytes) -> int:
    """How many keys, lists and tables a JSON text has, in a few passes over its bytes."""
    codes = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    # Only whether the number of quotes so far is odd counts, so the sum may wrap.
    is_inside = (np.cumsum(codes == QUOTE, dtype=np.uint8) & 1).view(bool)
    return int(np.count_nonzero(IS_MARK[codes] & ~is_inside))
