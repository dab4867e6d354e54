"""The suites, one per file."""

from __future__ import annotations

from .base import Suite
from .causal import CAUSAL
from .chunked import CHUNKED
from .compile_time import COMPILE_TIME
from .decode import DECODE
from .end_to_end import END_TO_END
from .gqa import GQA
from .memory import MEMORY
from .packed import PACKED
from .padded import PADDED
from .sliding import SLIDING

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (CAUSAL, SLIDING, CHUNKED, PACKED, PADDED, GQA, DECODE, END_TO_END, COMPILE_TIME, MEMORY)
}
