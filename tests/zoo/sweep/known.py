"""Attention calls that stay unknown, each with the op that is missing and why. What is not listed fails the sweep."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownUnknown:
    """A kind of mask that is not read.

    Attributes:
        reason: pattern of the report's reason.
        why: what it is about the mask.
    """

    reason: str
    why: str


KNOWN_UNKNOWN: tuple[KnownUnknown, ...] = (
    KnownUnknown(
        r"aten\.scatter",
        "the keys of each query are chosen at run time (top-k of an indexer's scores) and written into the mask by "
        "their index: no formula over positions exists",
    ),
)


def known(reason: str) -> KnownUnknown | None:
    """The entry that a report's reason falls under."""
    return next((k for k in KNOWN_UNKNOWN if re.search(k.reason, reason)), None)
