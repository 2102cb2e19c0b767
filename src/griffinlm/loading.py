"""Finding a model and making it ready to run, on the engine that can do what is asked for."""

import os
import re
from pathlib import Path

from griffinlm.checkpoint import Checkpoint, CheckpointError, open_checkpoint, pull, quantized_copy
from griffinlm.errors import GriffinError
from griffinlm.executor import Engine
from griffinlm.language_model import LanguageModel
from griffinlm.quantization import recipe_of
from griffinlm.text import Tokenizer

BUNDLED_MODELS = Path(__file__).parent / "data"
MAX_THREADS = 1024
ENGINES = ("auto", "onnx", "torch")


class LoadError(GriffinError):
    """A model that cannot be loaded as asked."""


def load(
    path_or_name: str | os.PathLike[str] = "eyas",
    engine: str = "auto",
    device: str = "cpu",
    weights: str | None = None,
    window_dtype: str | None = None,
    threads: int | None = None,
) -> LanguageModel:
    """Loads a model directory, a bundled model by name, or a repository pulled before (`griffin pull`).

    Args:
        engine: "onnx" (CPU), "torch", or "auto": torch where only it can do what is asked for, else onnx.
        device: where the torch engine runs, as torch names it.
        weights: "float32"; "bfloat16" (torch); "int8", "int4" or a format's name such as "int4-block32" (onnx), for
            which a small model is quantized now and kept in the cache. None is what the directory holds: quantized
            weights where `griffin quantize` made them, else float32.
        window_dtype: type of attention's keys and values in the state: "float32", "float16", "int8" (onnx) or
            "bfloat16" (torch). None is that of the activations.
        threads: CPU threads; None is one for every core.

    Raises:
        GriffinError: no such model, damaged files, not enough memory, or a combination that no engine has.
    """
    if engine not in ENGINES:
        raise LoadError(f"engine is {engine!r}; allowed are {', '.join(ENGINES)}")
    if weights is not None and not isinstance(weights, str):
        raise LoadError(f"weights is {weights!r}; it must be the name of a type, such as int8")
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MAX_THREADS):
        raise LoadError(f"threads is {threads!r}; it must be a whole number in 1..{MAX_THREADS}")
    if engine == "auto":
        engine = "torch" if device != "cpu" or "bfloat16" in (weights, window_dtype) else "onnx"
    checkpoint = open_checkpoint(find_model(path_or_name))
    if engine == "torch":
        built = _torch_engine(checkpoint, device, weights or "float32", window_dtype, threads)
    else:
        if device != "cpu":
            raise LoadError(f"device is {device!r}; engine onnx runs on the cpu", hint="--engine torch")
        checkpoint = _with_weights(checkpoint, weights)
        built = _onnx_engine(checkpoint, window_dtype, threads)
    tokenizer = None
    if checkpoint.tokenizer_directory is not None:
        tokenizer = Tokenizer.from_directory(checkpoint.tokenizer_directory)
        if tokenizer.vocab_size > checkpoint.config.vocab_size:
            size = checkpoint.config.vocab_size
            raise LoadError(f"the tokenizer has {tokenizer.vocab_size} tokens; the model's vocabulary has {size}")
    return LanguageModel(built, tokenizer, checkpoint.digest)


def find_model(path_or_name: str | os.PathLike[str]) -> Path:
    """The directory or file of a model: a bundled model's name, a path, or a repository in the local cache.

    The text "eyas" means the bundled model in every working directory; "./eyas" or a Path is a directory of that name.
    """
    name = os.fspath(path_or_name)
    is_name = isinstance(path_or_name, str) and re.fullmatch(r"[a-z0-9-]{1,40}", name)
    if is_name and (BUNDLED_MODELS / name / "config.json").exists():
        return BUNDLED_MODELS / name
    path = Path(path_or_name)
    if os.path.exists(path):
        return path
    hint = "give a model directory, 'eyas' (the bundled model), or an ORGANISATION/NAME fetched with `griffin pull`"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise LoadError(f"there is no model {name!r}", hint)
    try:
        return pull(name, offline=True)
    except CheckpointError as error:
        raise LoadError(
            f"there is no model directory {name}, and no complete copy of that name in the cache", hint
        ) from error


def _with_weights(checkpoint: Checkpoint, weights: str | None) -> Checkpoint:
    """The checkpoint itself where it holds such weights, else a copy quantized now."""
    if checkpoint.quantization is not None:
        recipe = checkpoint.quantization.recipe
        if weights is None or weights == recipe.default.name:
            return checkpoint
        if weights != "float32" and recipe_of(weights) == recipe:
            return checkpoint
        raise LoadError(
            f"weights is {weights!r}; {checkpoint.path} holds {recipe.default.name}",
            hint="leave the weights out, or load the model it was quantized from",
        )
    if weights in (None, "float32"):
        return checkpoint
    return quantized_copy(checkpoint, recipe_of(weights))


def _onnx_engine(checkpoint: Checkpoint, window_dtype: str | None, threads: int | None) -> Engine:
    from griffinlm.edge.engine import WINDOW_DTYPES, build_engine

    window_dtype = window_dtype or "float32"
    if window_dtype not in WINDOW_DTYPES:
        raise LoadError(f"window_dtype is {window_dtype!r}; engine onnx has {', '.join(WINDOW_DTYPES)}")
    return build_engine(checkpoint, window_dtype, threads)


def _torch_engine(
    checkpoint: Checkpoint, device: str, weights: str, window_dtype: str | None, threads: int | None
) -> Engine:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise LoadError("the torch engine is not installed", hint="pip install 'griffinlm[torch]'") from error
    from griffinlm.model.engine import PRECISIONS, WINDOW_DTYPES, build_engine

    if weights not in PRECISIONS:
        raise LoadError(f"weights is {weights!r}; engine torch has {', '.join(PRECISIONS)}")
    window_dtype = window_dtype or weights
    if window_dtype not in WINDOW_DTYPES:
        raise LoadError(f"window_dtype is {window_dtype!r}; engine torch has {', '.join(WINDOW_DTYPES)}")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise LoadError(
            f"device is {device!r}; torch cannot use it here: {' '.join(str(error).split())[:120]}"
        ) from error
    if threads is not None:
        torch.set_num_threads(threads)
    return build_engine(checkpoint.config, checkpoint.tensor, weights, window_dtype, device)
