"""What the self-check of a compiled graph has seen so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from .differences import Difference


@dataclass
class Verification:
    """The self-check of one graph; it grows while `options={"verify": N}` is at work.

    Attributes:
        calls: calls that were compared with the untouched graph.
        output: the largest difference between outputs, or inputs written into.
        site: path of the module, or node, whose attention differed most; empty if none was rewritten.
        at_site: that difference, between the rewritten graph run eagerly and the untouched one.
        skipped: why calls were not compared, each reason once.
    """

    calls: int = 0
    output: Difference = field(default_factory=Difference)
    site: str = ""
    at_site: Difference = field(default_factory=Difference)
    skipped: list[str] = field(default_factory=list)

    def skip(self, reason: str) -> None:
        """Note why a call is not compared."""
        if reason not in self.skipped:
            self.skipped.append(reason)

    def to_dict(self) -> dict[str, object]:
        """The self-check as JSON data."""
        return {
            "calls": self.calls,
            "output_difference": self.output.relative,
            "worst_site": self.site,
            "worst_site_difference": self.at_site.relative,
            "skipped": list(self.skipped),
        }

    def __str__(self) -> str:
        parts = [f"{self.calls} call(s) compared with the untouched graph"]
        if self.calls:
            parts.append(f"outputs differ by {self.output}")
        if self.site:
            parts.append(f"attention differs most at {self.site}, by {self.at_site}")
        parts += [f"not compared: {reason}" for reason in self.skipped]
        return "; ".join(parts)
