"""A process that puts and deletes states without end, and tells what is done as soon as it is done.

    python -m store.worker DIRECTORY SEED KILL_AFTER_CALLS

One line to standard output before and after every change; nothing is buffered. With a positive KILL_AFTER_CALLS the
process kills itself at that call of a C function, which is as near to anywhere as Python can tell.
"""

import itertools
import os
import random
import signal
import sys

from griffinlm.generation.store import StateStore
from store.small_states import GRIFFIN, after, empty

TENANT = "a"


def state_of(seed: int, num_turns: int) -> tuple[list[int], dict]:
    """Tokens and arrays of a conversation that follow from its seed and length alone."""
    tokens, arrays = [], empty(GRIFFIN)
    for turn in range(num_turns):
        tokens, arrays = [*tokens, seed % 250, turn % 250], after(arrays, 2, seed + turn)
    return tokens, arrays


def die_after(num_calls: int) -> None:
    """Kills this process at a call of a C function, counted from now."""
    left = itertools.count(num_calls, -1)

    def count(_frame: object, event: str, _argument: object) -> None:
        if event.startswith("c_") and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def tell(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def main() -> None:
    directory, seed, num_calls = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    state_of(seed, 1)  # what is imported at first use is imported now, and not counted
    if num_calls:
        die_after(num_calls)
    store = StateStore(GRIFFIN, directory, memory_bytes=10_000, disk_bytes=1 << 30)
    chance, own = random.Random(seed), []
    for number in itertools.count():
        one, last = seed + 1000 * number, None
        for num_turns in range(1, chance.randint(2, 5)):
            last = store.put(TENANT, *state_of(one, num_turns), last)
            tell("put", last, one, num_turns)
            own.append(last)
        while len(own) > 6:
            gone = own.pop(chance.randrange(len(own)))
            tell("deleting", gone)
            store.delete(TENANT, gone)
            tell("deleted", gone)


if __name__ == "__main__":
    main()
