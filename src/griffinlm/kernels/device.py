"""What kernels ask about the device that they run on."""

from importlib.util import find_spec

import torch

from griffinlm.errors import GriffinError

INTERPRETED_PROCESSORS = 4
"""Processors of a device that there is none of: Triton's interpreter runs on a CPU."""
HAS_TRITON = find_spec("triton") is not None
"""Asked once: torch.compile cannot look into the question, and would break its graph there."""


class KernelError(GriffinError):
    """A kernel cannot run here."""


def next_power_of_two(number: int) -> int:
    """The least power of two that is not below a number from 1 on."""
    return 1 << (number - 1).bit_length()


def require_triton() -> None:
    """Raises KernelError where Triton is not installed."""
    if not HAS_TRITON:
        raise KernelError("the kernels for a GPU need Triton, which is not installed", "pip install triton")


def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
