"""A function captured once as a CUDA graph and replayed; run as it is where there is no GPU."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

WARM_UP_RUNS = 2


class Program:
    """A function of tensors that stay where they are, which gives one tensor. On a GPU it is captured when made.

    Args:
        run: reads its inputs from tensors made before. On a GPU it runs a few times, and what it changes is changed.
        device: where these tensors are.
        pool: memory that programs share which never run at the same time, of `torch.cuda.graph_pool_handle`.
    """

    def __init__(self, run: Callable[[], Tensor], device: torch.device, pool: Any = None) -> None:
        self._run, self._graph = run, None
        if device.type != "cuda":
            return
        # What a first run allocates, compiles and chooses must not become part of the graph.
        stream = _stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                run()
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: only what this one does is captured.
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._out = run()

    def __call__(self) -> Tensor:
        """The result, good until the next call of any program of the pool."""
        if self._graph is None:
            return self._run()
        self._graph.replay()
        return self._out


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Where all programs of a device are captured: matrix products take a workspace of their own on every stream."""
    return torch.cuda.Stream(device)
