"""How long one call takes on a device. The CUDA part has been written to the documentation and never been run."""

from __future__ import annotations

from collections.abc import Callable

import torch

from attnlower import timing


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """The function that gives a call's seconds: wall-clock time on a CPU, between two events on a CUDA device."""
    return timing.seconds_of if device.type != "cuda" else lambda call: _cuda_seconds(call, device)


def _cuda_seconds(call: Callable[[], object], device: torch.device) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3
