"""Masks joined: everything that both allow, or everything that either allows."""

from __future__ import annotations

from dataclasses import dataclass

from .. import build
from ..expr import Expr
from ..facts import Facts
from .prefix import Prefix
from .template import MaskTemplate


@dataclass(frozen=True)
class AllOf:
    """What every part allows.

    Attributes:
        parts: two or more templates.
    """

    parts: tuple[MaskTemplate, ...]
    kind: str = "and"

    def allowed(self, facts: Facts) -> Expr:
        """The conjunction."""
        return build.and_(*(p.allowed(facts) for p in self.parts))

    def __str__(self) -> str:
        return " and ".join(dict.fromkeys(f"({p})" if isinstance(p, AnyOf) else str(p) for p in self.parts))


@dataclass(frozen=True)
class AnyOf:
    """What at least one part allows.

    Attributes:
        parts: two or more templates.
    """

    parts: tuple[MaskTemplate, ...]
    kind: str = "or"

    def allowed(self, facts: Facts) -> Expr:
        """The disjunction."""
        return build.or_(*(p.allowed(facts) for p in self.parts))

    def __str__(self) -> str:
        return " or ".join(dict.fromkeys(f"({p})" if isinstance(p, AllOf) else str(p) for p in self.parts))


def simple_parts(template: MaskTemplate) -> tuple[MaskTemplate, ...]:
    """The templates a joined one is made of; the template itself if it is none."""
    if isinstance(template, (AllOf, AnyOf)):
        return tuple(inner for part in template.parts for inner in simple_parts(part))
    return (template,)


def kinds_of(*templates: MaskTemplate) -> frozenset[str]:
    """The words for templates that hold together.

    "full" says nothing beside another word, and a window or chunks imply where they end, so that "causal" is left out.
    """
    words: set[str] = set()
    for part in (part for template in templates for part in simple_parts(template)):
        words.add(part.kind)
        if isinstance(part, Prefix):
            words |= kinds_of(part.base) - {"causal", "full"}
    if words & {"sliding_window", "chunked"}:
        words.discard("causal")
    if len(words) > 1:
        words.discard("full")
    return frozenset(words)
