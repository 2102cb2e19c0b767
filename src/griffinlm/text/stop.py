"""Strings that end a generation, found across the borders of pieces."""

from collections.abc import Sequence

from griffinlm.errors import GriffinError


class StopStringError(GriffinError):
    """A stop string that cannot stop anything."""


class StopStrings:
    """Passes text on until one of `stops` is complete; neither it nor anything behind it is passed on.

    The stop string that is complete first wins; of several complete at one character, the longest. So the result does
    not depend on how the text was cut into pieces. Text is held back only while it may begin a stop string: at most
    the longest stop string less one character.
    """

    def __init__(self, stops: str | Sequence[str]) -> None:
        """Watch for `stops`; one string is one stop, and no stops let everything pass.

        Raises:
            StopStringError: a stop is empty or is no string.
        """
        self._automata = [_Automaton(stop) for stop in ([stops] if isinstance(stops, str) else stops)]
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """The text to pass on, and whether a stop string is complete; after that all is ("", True)."""
        if self._stopped:
            return "", True
        if not self._automata:
            return text, False
        seen = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            complete = [len(automaton.stop) for automaton in self._automata if automaton.advance(character)]
            if complete:
                self._held, self._stopped = "", True
                return seen[: end - max(complete)], True
        num_held = max((automaton.num_matched for automaton in self._automata), default=0)
        passed = len(seen) - num_held
        self._held = seen[passed:]
        return seen[:passed], False

    def finish(self) -> str:
        """The text held back when the generation ends otherwise; "" after a stop."""
        held, self._held = self._held, ""
        for automaton in self._automata:
            automaton.num_matched = 0
        return held


class _Automaton:
    """One stop string as Knuth, Morris and Pratt read it: how much of it ends the text so far."""

    def __init__(self, stop: str) -> None:
        if not isinstance(stop, str) or not stop:
            raise StopStringError(f"a stop string is {stop!r}; it must be text of at least one character")
        self.stop = stop
        self.num_matched = 0
        self._fallback = [0]
        for character in stop[1:]:
            self._fallback.append(self._next(self._fallback[-1], character))

    def advance(self, character: str) -> bool:
        """Read one character; whether it completes the string."""
        self.num_matched = self._next(self.num_matched, character)
        return self.num_matched == len(self.stop)

    def _next(self, num_matched: int, character: str) -> int:
        while num_matched and self.stop[num_matched] != character:
            num_matched = self._fallback[num_matched - 1]
        return num_matched + (self.stop[num_matched] == character)
