"""What an error of torch means, and how it is told."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, the CPU's allocator or Python has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU's allocator has no exception of its own.
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def first_line(error: BaseException) -> str:
    """The first line of what it says, else its class."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
