"""What a release or an architecture may keep, and why. Everything else that is not rewritten or not known fails."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Exempt:
    """One exception.

    Attributes:
        models: it is for these only; empty for all.
        case: words of the case's label, such as "eager"; all must occur.
        reason: what the report says, or a part of it.
        why: for the page, a sentence.
    """

    models: tuple[str, ...]
    case: tuple[str, ...]
    reason: str
    why: str

    def covers(self, model: str, case: str, text: str) -> bool:
        """True if this exception is for a finding."""
        return (
            (not self.models or model in self.models)
            and all(word in case for word in self.case)
            and self.reason in text
        )


EXCEPTIONS = (
    Exempt(
        ("bloom",),
        ("dynamic",),
        "scales what it adds to the scores",
        "With dynamic=True Dynamo takes Bloom's `beta`, a float of the module, for an input: ALiBi times an unknown "
        "number; noticed and left as it is",
    ),
    Exempt(
        ("bloom", "falcon", "t5"),
        ("eager",),
        "what is added to the scores stays",
        "A bias (ALiBi, T5's buckets) is added to the causal scores, which no causal kernel takes",
    ),
    Exempt(
        ("gpt2",),
        ("eager", "dynamic"),
        "checking that at every call would cost more than the mask does",
        "The mask is a buffer of 1024 by 1024, which is not worth comparing at every call for as few tokens as here",
    ),
    Exempt(
        ("gemma2",),
        ("eager",),
        "the scores are soft-capped (tanh)",
        "The scores are soft-capped, which no fused kernel takes; the mask is read and proved, the call stays",
    ),
    Exempt(
        ("gemma2", "mistral"),
        ("dynamic",),
        "would add a guard to the program",
        "Releases of 2025 cut a window's mask to size by comparing symbolic sizes; in the graph for lengths below the "
        "window that comparison is open, and reading it would add a guard to the user's program",
    ),
)
