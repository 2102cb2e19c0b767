"""Finding a model and making it ready to run, on the engine that can do what is asked for."""

import hashlib
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from griffinlm.checkpoint import Checkpoint, CheckpointError, open_checkpoint, pull, quantized_copy
from griffinlm.checkpoint.adapter import AdapterTerms, LowRankAdapter, read_low_rank
from griffinlm.checkpoint.exits import Exits, read_exits
from griffinlm.errors import GriffinError, in_one_line
from griffinlm.executor import Engine, Extra
from griffinlm.generation.exits import ExitingExecutor
from griffinlm.generation.settling import SettlingEngine
from griffinlm.generation.speculation import SpeculatingExecutor
from griffinlm.language_model import LanguageModel, LoadedAdapter
from griffinlm.presets import PRESETS
from griffinlm.quantization import recipe_of
from griffinlm.recursive.first_loop import first_loop
from griffinlm.state import NOTHING_PENDING, State, bytes_written_by_a_token
from griffinlm.text import Tokenizer

BUNDLED_MODELS = Path(__file__).parent / "data"
MAX_THREADS = 1024
MAX_ADAPTER_NAME_CHARACTERS = 100
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
    adapters: Mapping[str, str | os.PathLike[str]] | None = None,
    num_guesses: int | None = None,
    early_exit: bool = False,
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
        adapters: by the name under which `LanguageModel.with_adapter` gives each, the directory of a low-rank adapter
            as PEFT writes it, or a tuned initial state, which is the file of a state of this model.
        num_guesses: tokens that the first loop of a recursive model guesses, for the whole model to check them in one
            go; answers are the same, but for logits as near as rounding (docs/numerics.md). None guesses nothing.
        early_exit: whether tokens leave the loops of a recursive model early, where the exits in its directory let
            them; the model must have been trained to skip. Its states are not those of the model without exits.

    Raises:
        GriffinError: no such model, damaged files, not enough memory, a combination that no engine has, or an adapter
            of another model or kind.
    """
    _check_arguments(engine, weights, threads, adapters, num_guesses, early_exit)
    checkpoint = open_checkpoint(find_model(path_or_name))
    exits = _exits_of(checkpoint) if early_exit else None
    paths = {name: _adapter_path(name, path) for name, path in (adapters or {}).items()}
    low_rank = {name: read_low_rank(path, checkpoint.config) for name, path in paths.items() if path.is_dir()}
    terms = {name: low_rank[name].terms if name in low_rank else {} for name in paths}
    if engine == "auto":
        needs_torch = device != "cpu" or "bfloat16" in (weights, window_dtype) or (early_exit and any(terms.values()))
        engine = "torch" if needs_torch else "onnx"
    if engine == "torch":
        built = _torch_engine(checkpoint, device, weights or "float32", window_dtype, threads, terms)
        if exits is not None:
            built = _torch_with_exits(built, exits)
        if num_guesses is not None:
            built = _torch_speculating(checkpoint, built, num_guesses)
    else:
        if device != "cpu":
            raise LoadError(f"device is {device!r}; engine onnx runs on the cpu", hint="engine torch runs there")
        if exits is not None and any(terms.values()):
            raise LoadError("low-rank adapters have no early exits on engine onnx", hint="engine torch has them")
        checkpoint = with_weights(checkpoint, weights)
        built = _onnx_engine(checkpoint, window_dtype, threads, terms)
        if exits is not None:
            built = _onnx_with_exits(checkpoint, built, threads, exits)
        if num_guesses is not None:
            built = _onnx_speculating(checkpoint, built, threads, num_guesses)
    tokenizer = _tokenizer_of(checkpoint)
    digest = checkpoint.digest if exits is None else partial(_digest_with_exits, checkpoint, exits)
    model = LanguageModel(built, tokenizer, digest)
    if not paths:
        return model
    loaded = {name: _loaded_adapter(path, low_rank.get(name), model) for name, path in paths.items()}
    return LanguageModel(built, tokenizer, digest, loaded)


def _check_arguments(
    engine: str, weights: object, threads: int | None, adapters: object, num_guesses: int | None, early_exit: bool
) -> None:
    if engine not in ENGINES:
        raise LoadError(f"engine is {engine!r}; allowed are {', '.join(ENGINES)}")
    if weights is not None and not isinstance(weights, str):
        raise LoadError(f"weights is {weights!r}; it must be the name of a type, such as int8")
    check_threads(threads)
    if adapters is not None and not isinstance(adapters, Mapping):
        raise LoadError(f"adapters is a {type(adapters).__name__}; it must be a table of names and paths")
    if num_guesses is not None and num_guesses < 1:
        raise LoadError(f"num_guesses is {num_guesses}; it must be at least 1")
    if early_exit and num_guesses is not None:
        raise LoadError(f"num_guesses is {num_guesses} beside early_exit; tokens are guessed or leave early, not both")


def _tokenizer_of(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer beside the weights, if there is one."""
    if checkpoint.tokenizer_directory is None:
        return None
    tokenizer, num_tokens = Tokenizer.from_directory(checkpoint.tokenizer_directory), checkpoint.config.vocab_size
    if tokenizer.vocab_size > num_tokens:
        raise LoadError(f"the tokenizer has {tokenizer.vocab_size} tokens; the model's vocabulary has {num_tokens}")
    return tokenizer


def check_threads(threads: int | None) -> None:
    """Refuses a number of threads that cannot be.

    Raises:
        GriffinError: it names what is allowed.
    """
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MAX_THREADS):
        raise LoadError(f"threads is {threads!r}; it must be a whole number in 1..{MAX_THREADS}")


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in BUNDLED_MODELS.glob("*/config.json"))


def find_model(path_or_name: str | os.PathLike[str]) -> Path:
    """The directory or file of a model: a bundled model's name, a path, or a repository in the local cache.

    The text "eyas" means the bundled model in every working directory; "./eyas" or a Path is a directory of that name.
    """
    name, bundled = os.fspath(path_or_name), bundled_models()
    if isinstance(path_or_name, str) and name in bundled:
        return BUNDLED_MODELS / name
    if not name:
        raise LoadError("the name of the model is empty")
    path = Path(path_or_name)
    if os.path.exists(path):
        return path
    hint = (
        f"give a model directory, a bundled model ({', '.join(bundled)}), "
        "or an ORGANISATION/NAME fetched with `griffin pull`"
    )
    if name in PRESETS:
        hint = f"{name} is a preset, sizes without weights; {hint}"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise LoadError(f"there is no model {name!r}", hint)
    try:
        return pull(name, offline=True)
    except CheckpointError as error:
        raise LoadError(
            f"there is no model directory {name}, and no complete copy of that name in the cache", hint
        ) from error


def with_weights(checkpoint: Checkpoint, weights: str | None) -> Checkpoint:
    """The checkpoint itself where it holds such weights, else a copy quantized now.

    Raises:
        GriffinError: there are no such weights, or the checkpoint holds other quantized ones.
    """
    if checkpoint.quantization is not None:
        recipe = checkpoint.quantization.recipe
        # Single matrices may be kept in another format, as low-rank terms are.
        if weights is None or (weights != "float32" and recipe_of(weights).default == recipe.default):
            return checkpoint
        raise LoadError(
            f"weights is {weights!r}; {checkpoint.path} holds {recipe.default.name}",
            hint="leave the weights out, or load the model it was quantized from",
        )
    if weights in (None, "float32"):
        return checkpoint
    return quantized_copy(checkpoint, recipe_of(weights))


def _adapter_path(name: object, path: str | os.PathLike[str]) -> Path:
    if not isinstance(name, str) or not re.fullmatch(rf"[\w.-]{{1,{MAX_ADAPTER_NAME_CHARACTERS}}}", name):
        raise LoadError(f"an adapter is called {str(name)[:60]!r}; letters, digits, dots, dashes and _ are allowed")
    if not os.path.exists(path):
        raise LoadError(f"there is no adapter {os.fspath(path)!r}")
    if not os.path.isdir(path) and Path(path).suffix != ".safetensors":
        raise LoadError(
            f"{path} is no adapter: it must be a directory of PEFT's, or a state in a .safetensors file",
            hint="a directory holds adapter_config.json and adapter_model.safetensors",
        )
    return Path(path)


def _loaded_adapter(path: Path, low_rank: LowRankAdapter | None, model: LanguageModel) -> LoadedAdapter:
    if low_rank is not None:
        return LoadedAdapter(low_rank.digest())
    if model.config.needs_capacity:
        raise LoadError(f"{path} is a tuned state; a model with global attention has no state of fixed size to tune")
    if model.tokenizer.bos_id is None:
        raise LoadError(f"{path} is a tuned state; it needs a tokenizer with a begin token, which it has read")
    state = State.load(path, model)
    if state.rows != 1 or state.num_tokens[0] != 1 or state.pending[0] != NOTHING_PENDING:
        found = f"{state.rows} rows of {', '.join(map(str, state.num_tokens[:3]))} tokens"
        raise LoadError(f"{path} holds {found}; a tuned state has one row that has read the begin token alone")
    if not all(np.isfinite(array.astype(np.float32)).all() for array in state.arrays().values()):
        raise LoadError(f"{path} holds NaN or infinity")
    return LoadedAdapter(state.digest(), state.arrays())


def _onnx_engine(
    checkpoint: Checkpoint, window_dtype: str | None, threads: int | None, adapters: AdapterTerms
) -> Engine:
    from griffinlm.edge.engine import WINDOW_DTYPES, build_engine

    window_dtype = window_dtype or "float32"
    if window_dtype not in WINDOW_DTYPES:
        raise LoadError(f"window_dtype is {window_dtype!r}; engine onnx has {', '.join(WINDOW_DTYPES)}")
    return build_engine(checkpoint, window_dtype, threads, adapters)


def _onnx_speculating(checkpoint: Checkpoint, engine: Engine, threads: int | None, num_guesses: int) -> Engine:
    from griffinlm.edge.ahead import MAX_GUESSES
    from griffinlm.edge.drafting import OnnxDraftingExecutor, bytes_ahead
    from griffinlm.edge.engine import OnnxEngine, ahead_session

    assert isinstance(engine, OnnxEngine)
    if num_guesses > MAX_GUESSES:
        raise LoadError(f"num_guesses is {num_guesses}; engine onnx guesses up to {MAX_GUESSES} tokens at a time")
    num_first_layers = first_loop(checkpoint).config.num_layers
    session = ahead_session(checkpoint, engine.window_dtype, threads, num_first_layers)
    kept = Extra(0, (num_guesses + 1) * bytes_ahead(engine.config, engine.window_dtype))

    def make_executor(num_slots: int, capacity: int | None) -> SpeculatingExecutor:
        return SpeculatingExecutor(OnnxDraftingExecutor(engine, session, num_slots, capacity), num_guesses)

    return SettlingEngine(engine, make_executor, kept)


def _exits_of(checkpoint: Checkpoint) -> Exits:
    """The exits of a model that skips."""
    if not checkpoint.config.skips:
        raise LoadError(
            f"{checkpoint.path} was not trained to do without the tokens that leave its loops early",
            hint="eyas-recursive was; `skips` of a run's exits trains a recursive model so",
        )
    exits = read_exits(checkpoint.path, checkpoint.config)
    if exits is None:
        raise LoadError(f"{checkpoint.path} does not say when tokens may leave early", hint="griffin exits finds it")
    return exits


def _digest_with_exits(checkpoint: Checkpoint, exits: Exits) -> str:
    """Of weights that tokens pass in part: other exits leave other states."""
    return hashlib.sha256(f"{checkpoint.digest()} {exits.digest()}".encode()).hexdigest()


def _onnx_with_exits(checkpoint: Checkpoint, engine: Engine, threads: int | None, exits: Exits) -> Engine:
    """The engine of a model that skips, whose tokens leave where its exits let them."""
    from griffinlm.edge.engine import OnnxEngine
    from griffinlm.edge.skipping import OnnxSkippingExecutor, loop_sessions

    assert isinstance(engine, OnnxEngine)
    sessions = loop_sessions(checkpoint, engine.window_dtype, threads)

    def make_executor(num_slots: int, capacity: int | None) -> ExitingExecutor:
        return ExitingExecutor(OnnxSkippingExecutor(engine, sessions, exits, num_slots, capacity))

    return SettlingEngine(engine, make_executor, _kept_on_the_way(engine))


def _torch_with_exits(engine: Engine, exits: Exits) -> Engine:
    """The same on torch."""
    from griffinlm.model.engine import TorchEngine
    from griffinlm.model.exits import ProbeRule
    from griffinlm.model.skipping import TorchSkippingExecutor

    assert isinstance(engine, TorchEngine)
    rule = ProbeRule(engine.model, exits)

    def make_executor(num_slots: int, capacity: int | None) -> ExitingExecutor:
        return ExitingExecutor(TorchSkippingExecutor(engine, num_slots, capacity, rule))

    return SettlingEngine(engine, make_executor, _kept_on_the_way(engine))


def _kept_on_the_way(engine: Engine) -> Extra:
    """What tokens on their way through the loops have written over, kept until they leave."""
    return Extra(0, bytes_written_by_a_token(engine.config, engine.window_dtype, engine.precision))


def _torch_engine(
    checkpoint: Checkpoint,
    device: str,
    weights: str,
    window_dtype: str | None,
    threads: int | None,
    adapters: AdapterTerms,
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
        raise LoadError(f"device is {device!r}; torch cannot use it here: {in_one_line(error)}") from error
    if threads is not None:
        torch.set_num_threads(threads)
    return build_engine(checkpoint.config, checkpoint.tensor, weights, window_dtype, device, adapters)


def _torch_speculating(checkpoint: Checkpoint, engine: Engine, num_guesses: int) -> Engine:
    from griffinlm.model.drafting import TorchDraftingExecutor, bytes_ahead
    from griffinlm.model.engine import TorchEngine

    assert isinstance(engine, TorchEngine)
    first_loop(checkpoint)  # refuses a model without loops
    kept = Extra(0, (num_guesses + 1) * bytes_ahead(engine.config, engine.precision))

    def make_executor(num_slots: int, capacity: int | None) -> SpeculatingExecutor:
        return SpeculatingExecutor(TorchDraftingExecutor(engine, num_slots, capacity), num_guesses)

    return SettlingEngine(engine, make_executor, kept)
