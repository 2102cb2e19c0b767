"""The onnx engine: the weights of a model in one ONNX Runtime session."""

import platform
from pathlib import Path
from typing import Any

import onnxruntime

from griffinlm.checkpoint import Checkpoint, CheckpointError
from griffinlm.checkpoint.adapter import AdapterTerms
from griffinlm.config import EMBEDDING
from griffinlm.edge.ahead import build_ahead_graph
from griffinlm.edge.call import Taps
from griffinlm.edge.embedding import Embedding
from griffinlm.edge.executor import OnnxExecutor
from griffinlm.edge.graph import BuiltGraph
from griffinlm.edge.low_rank import NO_ADAPTER, num_bytes
from griffinlm.edge.memory import require_address_space, require_memory
from griffinlm.edge.model import build_graph
from griffinlm.edge.threads import num_threads
from griffinlm.errors import in_one_line
from griffinlm.executor import Extra
from griffinlm.state import state_bytes

WINDOW_DTYPES = ("float32", "float16", "int8")
WORKING_BYTES = 92 << 20
"""What libraries and activations take beside weights and states, and beside what a process holds before it loads."""
LAID_OUT_SHARE = 1.1
"""Of the bytes of quantized weights: what ONNX Runtime's own layout of them takes at most."""


class OnnxEngine:
    """The weights of a model, held once, and those of its adapters, ready to run on a CPU."""

    precision = "float32"

    def __init__(
        self,
        checkpoint: Checkpoint,
        session: Any,
        window_dtype: str,
        taps: Taps | None = None,
        adapters: AdapterTerms | None = None,
    ) -> None:
        self.config = checkpoint.config
        self.window_dtype = window_dtype
        self.session, self.taps = session, taps
        self.embedding = Embedding(checkpoint, EMBEDDING)
        adapters = adapters or {}
        places = {name: place for place, name in enumerate(_with_terms(adapters))}
        self.adapter_places = {name: places.get(name, NO_ADAPTER) for name in adapters}
        """Which of the graph's adapters each name is; `NO_ADAPTER` where it adds nothing to a product."""
        self.has_low_rank = bool(places)

    def extra(self, capacity: int | None = None) -> Extra:
        return Extra()

    def executor(self, num_slots: int, capacity: int | None = None) -> OnnxExecutor:
        return OnnxExecutor(self, num_slots, capacity)


def _with_terms(adapters: AdapterTerms | None) -> AdapterTerms:
    return {name: terms for name, terms in (adapters or {}).items() if terms}


def build_engine(
    checkpoint: Checkpoint, window_dtype: str, threads: int | None, adapters: AdapterTerms | None = None
) -> OnnxEngine:
    """Builds the graph of a checkpoint and loads it.

    Args:
        adapters: low-rank terms by the name of the adapter and that of the matrix.

    Raises:
        CheckpointError: the weights are damaged, or ONNX Runtime cannot run what they make.
        NotEnoughMemoryError: the weights would not fit, found before they are read.
    """
    low_rank = _with_terms(adapters)
    require_room(checkpoint, num_bytes(low_rank), window_dtype, threads)
    checkpoint.verify()
    built = build_graph(checkpoint, window_dtype, activation_levels(), low_rank)
    return OnnxEngine(checkpoint, new_session(built, checkpoint, threads), window_dtype, adapters=adapters)


def ahead_session(checkpoint: Checkpoint, window_dtype: str, threads: int | None, num_first_layers: int) -> Any:
    """A session of the graph that reads ahead, in which so many layers guess; quantized weights are held once more.

    Raises:
        CheckpointError, NotEnoughMemoryError: as `build_engine`.
    """
    require_room(checkpoint, 0, window_dtype, threads)
    built = build_ahead_graph(checkpoint, window_dtype, activation_levels(), num_first_layers)
    return new_session(built, checkpoint, threads)


def require_room(
    checkpoint: Checkpoint, adapter_bytes: int = 0, window_dtype: str = "float32", threads: int | None = None
) -> None:
    """Refuses weights that do not fit into memory beside the state of one conversation, where that has a fixed size.

    Raises:
        NotEnoughMemoryError: with the numbers.
    """
    config, is_quantized = checkpoint.config, checkpoint.quantization is not None
    wanted = round(LAID_OUT_SHARE * checkpoint.num_bytes) if is_quantized else 4 * config.num_parameters
    wanted += adapter_bytes + WORKING_BYTES
    if not config.needs_capacity:
        wanted += state_bytes(config, None, window_dtype, "float32")
    require_address_space(wanted, num_threads(threads), str(checkpoint.path))
    require_memory(wanted, str(checkpoint.path))


def new_session(built: BuiltGraph, checkpoint: Checkpoint, threads: int | None) -> Any:
    """One session, which is one copy of the weights: ONNX Runtime lays quantized ones out anew in memory of its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads(threads)
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # What goes wrong is told by the exception.
    if built.folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(built.folder))
    if checkpoint.quantization is None:
        # float32 weights are then used where they lie, in the file's own pages.
        options.add_session_config_entry("session.disable_prepacking", "1")
    if built.arrays:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in built.arrays.values()]
        options.add_external_initializers(list(built.arrays), values)
    try:
        return onnxruntime.InferenceSession(
            built.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the library's own classes derive from nothing narrower
        raise CheckpointError(f"{checkpoint.path}: ONNX Runtime cannot load the model: {in_one_line(error)}") from error


def activation_levels() -> int:
    """Largest magnitude of a rounded activation that integer products stay exact with.

    x86 processors without VNNI add two products of a byte each in 16 bits, which saturate at full range.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return 127
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 63
    return 127 if "vnni" in flags else 63
