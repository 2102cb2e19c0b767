"""What kernels ask about the device is no obstacle to torch's compiler."""

import pytest
import torch

from griffinlm.kernels import device


def ask(x: torch.Tensor) -> torch.Tensor:
    device.require_triton()
    return x + 1


def test_question_for_triton_is_no_graph_break():
    """Only where there is a GPU a model asks, so no other test would see it."""
    pytest.importorskip("triton", reason="needs Triton")
    torch._dynamo.reset()
    found = torch.compile(ask, fullgraph=True, backend="eager")(torch.zeros(3))
    assert found.tolist() == [1.0, 1.0, 1.0]


def test_triton_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "HAS_TRITON", False)
    with pytest.raises(device.KernelError, match="Triton, which is not installed") as refused:
        device.require_triton()
    assert refused.value.hint == "pip install triton"
