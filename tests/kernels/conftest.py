"""Triton kernels without a GPU: run by Triton's interpreter, on memory that holds NaN until it is written.

Where there is a GPU the same tests run on it, and `test_on_gpu.py` beside them.
"""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from device import HAS_GPU

collect_ignore = [] if HAS_GPU else ["test_on_gpu.py"]

KERNELS = tuple(
    # In this order: those of a step take functions of the others.
    f"griffinlm.kernels.{module}"
    for module in (
        "linear_scan.triton",
        "local_attention.triton",
        "soft_cap.triton",
        "token_draw.triton",
        "token_step.triton_products",
        "token_step.triton",
    )
)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without a GPU kernels of this package run in the interpreter, whether or not the process was started for it."""
    triton = pytest.importorskip("triton")
    if HAS_GPU:
        yield
        return
    from triton.runtime.interpreter import InterpretedFunction

    modules = [importlib.import_module(name) for name in KERNELS]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # What Triton's own language has as kernels was decorated when it was imported.
    for name, function in list(vars(triton.language).items()):
        if isinstance(function, triton.JITFunction):
            monkeypatch.setattr(triton.language, name, InterpretedFunction(function.fn))
    _mend_bfloat16(monkeypatch)
    for module in modules:
        importlib.reload(module)
    yield
    monkeypatch.undo()
    for module in modules:
        importlib.reload(module)


def _mend_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cuts digits where a GPU rounds to bfloat16, and multiplies matrices of it as whole numbers."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def rounding_cast(self: Any, source: Any, to: Any) -> Any:
        if (source.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, to)
        rounded = torch.tensor(source.data).to(torch.bfloat16).view(torch.uint16)
        return TensorHandle(rounded.numpy(), tl.bfloat16)

    def float_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        a, b = (cast(self, h, tl.float32) if h.dtype.scalar == tl.bfloat16 else h for h in (a, b))
        return dot(self, a, b, *others)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounding_cast)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", float_dot)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New memory holds NaN: torch fills it where algorithms have to be deterministic."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
