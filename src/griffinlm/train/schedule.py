"""The learning rate over the steps of a run."""

import math

from griffinlm.train.config import PretrainConfig, ScheduleConfig


def learning_rate_factor(config: PretrainConfig, step: int) -> float:
    """`share_of_largest` in a run of stages; WSD decays in the last of them if nothing else is said."""
    return share_of_largest(config.schedule, config.num_steps, config.stages[-1].steps, step)


def share_of_largest(schedule: ScheduleConfig, num_steps: int, last_steps: int, step: int) -> float:
    """Share of the largest learning rate that step 0, 1, ... is taken with.

        warm-up:   (step + 1) / warm_up_steps
        cosine:    f + (1 - f) (1 + cos(pi u)) / 2,   u from 0 after the warm-up to 1 at the end
        wsd:       1, then f + (1 - f) (1 - sqrt(u)), u over the last decay_steps
        constant:  1

    f is `final_share`. WSD's decay is 1 - sqrt (Haegele et al., 2024).

    Args:
        last_steps: most steps of WSD's decay where it has no `decay_steps`.
    """
    if step < schedule.warm_up_steps:
        return (step + 1) / schedule.warm_up_steps
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "cosine":
        done = _share(step, schedule.warm_up_steps, num_steps)
        left = (1.0 + math.cos(math.pi * done)) / 2.0
    else:
        decay_steps = schedule.decay_steps
        if decay_steps is None:
            decay_steps = min(last_steps, num_steps - schedule.warm_up_steps)
        left = 1.0 - math.sqrt(_share(step, num_steps - decay_steps, num_steps))
    return schedule.final_share + (1.0 - schedule.final_share) * left


def _share(step: int, first: int, end: int) -> float:
    """How much of the steps from `first` to `end` lies behind `step`, 0 to 1."""
    return min(max((step - first) / max(end - first, 1), 0.0), 1.0)
