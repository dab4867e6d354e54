"""One variant's peak memory: `python -m attnbench.memory_child CASE VARIANT DEVICE` prints it as a line of JSON."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import re
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from attnlower.demo_model import Call

from . import models
from .check import Expected, agreement
from .suites.memory import MODELS

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


def measure(case: dict[str, Any], variant: str, device: torch.device) -> dict[str, float]:
    """Compile, check against eager on a short row, call once, then measure the second call."""
    widths, length = MODELS[case["model"]], case["length"]
    model = models.build(widths, getattr(torch, case["dtype"]), device)
    tokens = torch.randint(3, models.VOCABULARY, (1, length), generator=torch.Generator().manual_seed(1)).to(device)
    call = Call(model, tokens)
    module = variant_of(variant, model, widths, length, device)
    eager = call(model)
    found = agreement(call(module), Expected(eager))
    if found.problem:
        raise SystemExit(found.problem)
    before = reset_peak(device)
    call(module)
    highest = peak(device)
    weights = sum(p.nbytes for p in model.parameters())
    return {"peak_bytes": highest, "call_bytes": highest - before, "weight_bytes": weights}


def variant_of(variant: str, model: Any, widths: models.Widths, length: int, device: torch.device) -> Any:
    """The callable of a variant's name; the oracle is flex_attention for a window, the causal kernel else."""
    if variant == "eager":
        return model
    if variant != "oracle":
        return torch.compile(model, backend=variant, dynamic=False)
    name, made = next(iter(models.hand_made(widths, length, device).items()))
    return torch.compile(models.with_attention(model, f"by_hand_{name}", made), dynamic=False)


def reset_peak(device: torch.device) -> int:
    """Forget the peak so far; gives the bytes held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed since the start counts no more
    RESET.write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak(device: torch.device) -> int:
    """The most bytes held since `reset_peak`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _status("VmHWM")


def _status(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    return int(match[1]) * 1024 if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    with torch.no_grad():
        print(json.dumps(measure(json.loads(sys.argv[1]), sys.argv[2], torch.device(sys.argv[3]))))
