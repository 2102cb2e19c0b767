"""Random low-rank adapters as PEFT writes them, and the weights that they stand for by PEFT's own definition."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from griffinlm.config import EMBEDDING, ModelConfig, is_matrix
from griffinlm.quantization.recipe import GATES

ALPHA = 3.0


class Factors(NamedTuple):
    """A and B of a matrix [N, K], [r, K] and [N, r]; of a gate [h, i, o], as PEFT has it, [h * r, o] and [i, r * h]."""

    a: np.ndarray
    b: np.ndarray

    def delta(self, shape: tuple[int, ...], scaling: float) -> np.ndarray:
        """What is added to the matrix: scaling B A; PEFT takes a gate for [experts, out, in]."""
        if len(shape) == 2:
            return scaling * self.b.astype(np.float64) @ self.a
        a = self.a.reshape(shape[0], -1, shape[2]).astype(np.float64)
        b = self.b.reshape(shape[1], -1, shape[0])
        return scaling * np.einsum("ore,eri->eoi", b, a)


def adaptable(config: ModelConfig) -> list[str]:
    return [place for place in config.place_shapes() if is_matrix(place) and place != EMBEDDING]


def random_factors(
    config: ModelConfig, seed: int, rank: int = 2, endings: tuple[str, ...] = ("",), size: float = 0.3
) -> dict[str, Factors]:
    """Of the matrices whose names end so, by our names."""
    random, shapes = np.random.default_rng(seed), config.place_shapes()

    def normal(*shape: int) -> np.ndarray:
        return (size * random.standard_normal(shape)).astype(np.float32)

    found = {}
    for name in adaptable(config):
        if name.removesuffix(".weight").endswith(endings):
            shape = shapes[name]
            if len(shape) == 2:
                found[name] = Factors(normal(rank, shape[1]), normal(shape[0], rank))
            else:
                found[name] = Factors(normal(shape[0] * rank, shape[2]), normal(shape[1], rank * shape[0]))
    return found


def settings(rank: int, **changes: Any) -> dict[str, Any]:
    """Fields of an adapter_config.json; gates are adapted as parameters."""
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": ALPHA,
        "use_rslora": False,
        "bias": "none",
        "target_parameters": [gate.removeprefix(".") for gate in GATES],
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
    }
    return {**fields, **changes}


def tensors_of(factors: Mapping[str, Factors], prefix: str = "base_model.model.model.") -> dict[str, np.ndarray]:
    out = {}
    for name, (a, b) in factors.items():
        module = prefix + name.removesuffix(".weight")
        out |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    return out


def write_adapter(
    directory: Path, config: ModelConfig, factors: Mapping[str, Factors], rank: int = 2, **changes: Any
) -> Path:
    """A directory of an adapter under our names."""
    has_gates = config.recurrent is not None
    fields = settings(rank, **({} if has_gates else {"target_parameters": None}) | changes)
    return write_files(directory, fields, tensors_of(factors))


def write_files(directory: Path, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, _tensors(directory))
    return directory


def _tensors(directory: Path) -> str:
    return str(directory / "adapter_model.safetensors")


def merged(
    read: Callable[[str], np.ndarray], factors: Mapping[str, Factors], scaling: float
) -> Callable[[str], np.ndarray]:
    """Gives parameters with the adapter in them: W + scaling B A."""

    def values(name: str) -> np.ndarray:
        weight = read(name)
        if name not in factors:
            return weight
        return (weight + factors[name].delta(weight.shape, scaling)).astype(np.float32)

    return values
