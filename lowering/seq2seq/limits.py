"""The sizes that exported encoder-decoder programs are good for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from ...errors import LimitError


@dataclass(frozen=True)
class Limits:
    """Upper bounds; everything from 1 up to them runs.

    Attributes:
        batch_size: sources in one call.
        max_source_len: positions of the encoder's output, tokens for text: the capacity of the cross cache.
        max_target_len: decoder tokens, the start token included: the capacity of the self-attention cache.
        max_beams: decoder rows per source.
    """

    batch_size: int
    max_source_len: int
    max_target_len: int
    max_beams: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise LimitError(f"{field.name} is a positive whole number, not {value!r}")

    def check_source(self, batch: int, length: int) -> None:
        """Check a batch of sources.

        Raises:
            LimitError: if there are more of them, or longer ones, than the programs were exported for.
        """
        if batch > self.batch_size:
            raise LimitError(f"{batch} sources; the programs were exported for batch_size={self.batch_size}")
        if length > self.max_source_len:
            raise LimitError(
                f"{length} source positions; the programs were exported for max_source_len={self.max_source_len}"
            )

    def check_target(self, beams: int, length: int) -> None:
        """Check what is to be decoded.

        Raises:
            LimitError: if there are more rows per source, or more decoder tokens, than the programs were exported for.
        """
        if beams > self.max_beams:
            raise LimitError(f"{beams} rows per source; the programs were exported for max_beams={self.max_beams}")
        if length > self.max_target_len:
            raise LimitError(
                f"{length} decoder tokens; the programs were exported for max_target_len={self.max_target_len}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The limits as JSON data."""
        return asdict(self)
