"""The error of everything that a user can cause. Other exceptions are faults of ours."""


class GriffinError(ValueError):
    """One line that names the thing, the value found and what is allowed; `hint` says in one line what to do next."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
