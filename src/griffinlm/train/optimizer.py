"""AdamW with its two groups of parameters."""

from collections.abc import Iterable

import torch
from torch import nn

from griffinlm.train.config import OptimizerConfig

READ_FIRST = ("prefix.", "tuned_state.", "prompt_encoder.")
"""What the names of a trained prefix, state and prompt begin with."""


def is_decayed(name: str) -> bool:
    """Whether weight decay acts: never on the RG-LRU (gates and a_param), norm scales, biases and READ_FIRST."""
    return ".rg_lru." not in name and not name.endswith((".bias", ".scale")) and not name.startswith(READ_FIRST)


def build_optimizer(named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over parameters by name, the decayed ones first."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named:
        groups[is_decayed(name)].append(parameter)
    return torch.optim.AdamW(
        # torch's checkpoints do not load a group without parameters.
        [
            {"params": group, "weight_decay": config.weight_decay if decayed else 0.0}
            for decayed, group in groups.items()
            if group
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
