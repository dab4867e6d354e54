"""What a suite is: rows to measure, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers.masking_utils import create_causal_mask

from attnlower.lowering.seq2seq.naming import cache_name

from ..comparison import Comparison, Tell, measure
from ..limits import Peak, limit
from ..settings import Settings

Case = Mapping[str, str | int]
"""What tells a row from the others: its dtype and sizes."""
NO_CACHE: dict[str, Any] = {cache_name(create_causal_mask): None}
"""What transformers' `masking_utils` are told of a cache where there is none."""


class Suite(Protocol):
    """A group of rows that belong into one table and one plot."""

    @property
    def name(self) -> str:
        """As on the command line."""
        ...

    @property
    def title(self) -> str:
        """One sentence for a reader of the results."""
        ...

    @property
    def axis(self) -> str:
        """The number in a case that plots run along."""
        ...

    def cases(self, settings: Settings) -> list[Case]:
        """The rows that the settings ask for."""
        ...

    def run(self, case: Case, settings: Settings, peak: Peak, tell: Tell) -> dict[str, Any]:
        """Measure one row; JSON data."""
        ...


@dataclass(frozen=True)
class LengthSuite:
    """A suite of one computation at several lengths and in several dtypes.

    Attributes:
        name: as on the command line.
        title: one sentence about it.
        build: gives the comparison for a length, a dtype and a device.
        axis: what plots run along.
    """

    name: str
    title: str
    build: Callable[[int, torch.dtype, torch.device], Comparison]
    axis: str = "length"

    def cases(self, settings: Settings) -> list[Case]:
        """Every length in every dtype."""
        return list(self._cases(settings))

    def _cases(self, settings: Settings) -> Iterator[Case]:
        for dtype in settings.dtypes:
            for length in settings.lengths_for(dtype):
                yield {"dtype": dtype, "length": length}

    def run(self, case: Case, settings: Settings, peak: Peak, tell: Tell) -> dict[str, Any]:
        """Measure one row."""
        tell("preparing")
        built = self.build(int(case["length"]), getattr(torch, str(case["dtype"])), settings.device)
        return {**measure(built, settings, tell), "limit": limit(built.work, peak)}
