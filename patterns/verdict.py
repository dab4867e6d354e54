"""The three answers of the prover."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Proved:
    """The claim holds for every size, every coordinate and every input."""

    claim: str = ""


@dataclass(frozen=True)
class Refuted:
    """The claim fails at the witness.

    Attributes:
        witness: coordinates (b, h, q, k), sizes and input elements at which it fails.
        reason: the same in words.
    """

    witness: Mapping[str, int | bool] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Unknown:
    """Neither proved nor refuted.

    Attributes:
        node: the graph node that could not be read, or empty if the solver gave up.
        reason: why.
    """

    node: str = ""
    reason: str = ""


Verdict = Proved | Refuted | Unknown
