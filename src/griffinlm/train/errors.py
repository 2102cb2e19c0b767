"""The error of every training run that cannot be made or carried on."""

from griffinlm.errors import GriffinError


class TrainError(GriffinError):
    """A configuration, data or checkpoint that no run can use; the message names the thing and what is allowed."""
