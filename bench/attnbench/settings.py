"""What a run of the benchmarks is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

LENGTHS = (512, 2048, 4096, 8192)
LENGTHS_LOW_PRECISION = (512, 4096)
QUICK_LENGTHS = (1024,)


@dataclass(frozen=True)
class Settings:
    """One run.

    Attributes:
        device: where tensors live and kernels run.
        dtypes: names of torch's dtypes.
        lengths: tokens in a row; empty for the suite's own choice.
        variants: the variants to time besides eager; empty for all.
        rounds: timed calls of each variant; None for as many as fit into `seconds_per_row`.
        quick: a few small rows only.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    lengths: tuple[int, ...] = ()
    variants: tuple[str, ...] = ()
    rounds: int | None = None
    quick: bool = False

    @property
    def least_rounds(self) -> int:
        """However long a call takes, so many rounds are run."""
        return self.rounds or (3 if self.quick else 7)

    @property
    def most_rounds(self) -> int:
        """However short a call is, no more rounds are run."""
        return self.rounds or (9 if self.quick else 301)

    @property
    def seconds_per_row(self) -> float:
        """Rounds are added up to the most until a row has been timed for so long."""
        return 2.0 if self.quick else 15.0

    def lengths_for(self, dtype: str) -> tuple[int, ...]:
        """The lengths that a suite of single attention calls is run at."""
        if self.lengths:
            return self.lengths
        if self.quick:
            return QUICK_LENGTHS
        return LENGTHS if dtype == "float32" else LENGTHS_LOW_PRECISION

    def wants(self, variant: str) -> bool:
        """Whether to time a variant."""
        return variant == "eager" or not self.variants or variant in self.variants
