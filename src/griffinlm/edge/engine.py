"""The onnx engine: the weights of a model in one ONNX Runtime session."""

import platform
from pathlib import Path
from typing import Any

import onnxruntime

from griffinlm.checkpoint import Checkpoint, CheckpointError
from griffinlm.edge.call import Taps
from griffinlm.edge.embedding import Embedding
from griffinlm.edge.executor import OnnxExecutor
from griffinlm.edge.graph import BuiltGraph
from griffinlm.edge.memory import require_memory
from griffinlm.edge.model import EMBEDDING, build_graph
from griffinlm.edge.threads import num_threads

WINDOW_DTYPES = ("float32", "float16", "int8")
WORKING_BYTES = 150 << 20
"""What interpreter, libraries and activations take beside weights and states."""


class OnnxEngine:
    """The weights of a model, held once, ready to run on a CPU."""

    precision = "float32"

    def __init__(self, checkpoint: Checkpoint, session: Any, window_dtype: str, taps: Taps | None = None) -> None:
        self.config = checkpoint.config
        self.window_dtype = window_dtype
        self.session, self.taps = session, taps
        self.embedding = Embedding(checkpoint, EMBEDDING)

    def executor(self, num_slots: int, capacity: int | None = None) -> OnnxExecutor:
        return OnnxExecutor(self, num_slots, capacity)


def build_engine(checkpoint: Checkpoint, window_dtype: str, threads: int | None) -> OnnxEngine:
    """Builds the graph of a checkpoint and loads it.

    Raises:
        CheckpointError: the weights are damaged, or ONNX Runtime cannot run what they make.
        NotEnoughMemoryError: the weights would not fit, found before they are read.
    """
    require_room(checkpoint)
    checkpoint.verify()
    built = build_graph(checkpoint, window_dtype, activation_levels())
    return OnnxEngine(checkpoint, new_session(built, checkpoint, threads), window_dtype)


def require_room(checkpoint: Checkpoint) -> None:
    """Refuses weights that do not fit into memory; raises NotEnoughMemoryError with the numbers."""
    is_quantized = checkpoint.quantization is not None
    num_bytes = checkpoint.num_bytes if is_quantized else 4 * checkpoint.config.num_parameters
    require_memory(num_bytes + WORKING_BYTES, str(checkpoint.path))


def new_session(built: BuiltGraph, checkpoint: Checkpoint, threads: int | None) -> Any:
    """One session, which is one copy of the weights: ONNX Runtime lays quantized ones out anew in memory of its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads(threads)
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = 3
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
        words = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{checkpoint.path}: ONNX Runtime cannot load the model: {words}") from error


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
