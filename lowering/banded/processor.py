"""How fast a processor's flex_attention is beside PyTorch's own attention kernels.

Inductor writes flex_attention's kernel for the vectors that a processor has; PyTorch's kernel on CPUs calls a library
of matrix products. So it is a matter of the processor which of the two is faster.
"""

from __future__ import annotations

import enum
import functools
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")


class FlexSpeed(enum.Enum):
    """Classes of processors, by what was measured on one of each.

    SLOW: CPUs without AVX512.
    FAIR: AMD's processors with AVX512 before family 26.
    FAST: AMD's processors with AVX512 from family 26 on (Zen 5).
    UNKNOWN: CPUs of other makers with AVX512, and other devices, of which none was measured.
    """

    SLOW = enum.auto()
    FAIR = enum.auto()
    FAST = enum.auto()
    UNKNOWN = enum.auto()


def flex_speed(device: torch.device) -> FlexSpeed:
    """The class of the processor that a device is."""
    if device.type != "cpu":
        return FlexSpeed.UNKNOWN
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return FlexSpeed.SLOW
    vendor, family = vendor_and_family()
    if vendor != "AuthenticAMD":
        return FlexSpeed.UNKNOWN
    return FlexSpeed.FAST if family >= 26 else FlexSpeed.FAIR


@functools.cache
def vendor_and_family() -> tuple[str, int]:
    """The processor's maker and family as Linux tells them; an empty name and 0 where it does not."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
    except (OSError, UnicodeDecodeError):
        return "", 0
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    family = told.get("cpu family", "")
    return told.get("vendor_id", ""), int(family) if family.isdecimal() else 0
