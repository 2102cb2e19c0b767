"""How much each exit weighs in a step, and how often each layer is left out."""

import math
from collections.abc import Sequence

from griffinlm.train.exits_config import COEFFICIENTS, ExitsConfig


def exit_weights(exits: ExitsConfig, layers: Sequence[int], enabled: Sequence[bool]) -> list[float]:
    """The weights of the losses behind `layers`, full depth the last of them, which is always trained.

        weighted:    i for the i-th exit, over the sum of all
        aggressive:  c for all but the last, 1 for that
        layer_skip:  e_l = s (0 + 1 + ... + l) behind layer l, counted from 0; behind the last of L layers
                     e = L - 1 + s (0 + 1 + ... + L-2); over the sum of all (LayerSkip, equations 4 and 5)

    Args:
        enabled: which of the exits before full depth this step trains; the others weigh nothing.
    """
    given = COEFFICIENTS.get(exits.loss, 1.0) if exits.coefficient is None else exits.coefficient
    is_trained = [*enabled, True]
    if exits.loss == "aggressive":
        return [given * one for one in is_trained[:-1]] + [1.0]
    if exits.loss == "weighted":
        weights = [float(i) for i in range(1, len(layers) + 1)]
    else:
        weights = [given * (layer - 1) * layer / 2 for layer in layers]
        weights[-1] = layers[-1] - 1 + given * (layers[-1] - 2) * (layers[-1] - 1) / 2
    weights = [weight * one for weight, one in zip(weights, is_trained, strict=True)]
    return [weight / (sum(weights) or 1.0) for weight in weights]


def enabled_exits(exits: ExitsConfig, layers: Sequence[int], step: int, num_steps: int) -> list[bool]:
    """Which exits before full depth a step trains.

        rotational:  exit l where l = step mod R
        gradual:     the deepest step / (T / 2L) of the L exits before full depth (LayerSkip, section 4.1.2)

    Args:
        layers: of the exits, full depth the last of them.
    """
    num_early = len(layers) - 1
    if exits.curriculum == "rotational":
        assert exits.rotation is not None
        return [(exit - step) % exits.rotation == 0 for exit in range(num_early)]
    if exits.curriculum == "gradual":
        num_enabled = step * 2 * num_early // num_steps
        return [exit >= num_early - num_enabled for exit in range(num_early)]
    return [True] * num_early


def dropout_rate(exits: ExitsConfig, layer: int, num_layers: int, step: int, num_steps: int) -> float:
    """p = S(t) D(l) p_max, with which a row passes a layer by (LayerSkip, equation 1).

    D(l) = exp(l ln 2 / (L - 1)) - 1
    S(t) = 1, or exp(t ln 2 / (T - 1)) - 1
    """
    by_depth = math.expm1(layer * math.log(2.0) / max(num_layers - 1, 1))
    is_constant = exits.dropout_curriculum == "constant"
    over_time = 1.0 if is_constant else math.expm1(step * math.log(2.0) / max(num_steps - 1, 1))
    return over_time * by_depth * exits.layer_dropout
