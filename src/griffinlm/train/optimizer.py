"""AdamW with its two groups of parameters."""

from collections.abc import Iterable

import torch
from torch import nn

from griffinlm.train.config import OptimizerConfig


def is_decayed(name: str) -> bool:
    """Whether weight decay acts: never on the RG-LRU (gates and a_param), norm scales, biases and a prefix."""
    return ".rg_lru." not in name and not name.endswith((".bias", ".scale")) and not name.startswith("prefix.")


def build_optimizer(named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over parameters by name, the decayed ones first."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named:
        groups[is_decayed(name)].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
