"""The first loop of a recursive model as a model of its own."""

import copy
import dataclasses

from griffinlm.checkpoint import Checkpoint
from griffinlm.recursive.settings import RecursiveError


def first_loop(checkpoint: Checkpoint) -> Checkpoint:
    """The model of the first loop's layers and the head, in the same files; nothing is copied.

    Raises:
        RecursiveError: the model's layers do not loop.
    """
    config = checkpoint.config
    if config.recursion is None:
        raise RecursiveError("the model has no loops", hint="griffin recursive makes a model that has")
    part = copy.copy(checkpoint)
    recursion = dataclasses.replace(config.recursion, num_loops=1)
    part.config = dataclasses.replace(config, num_layers=config.num_shared_layers, recursion=recursion)
    return part
