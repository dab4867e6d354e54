"""The table of templates: for each name, a function that reads candidates off a formula.

A candidate is only a question: the prover decides whether the mask is equal to it. So a finder may guess. Users add
masks of their own::

    from dataclasses import dataclass
    from attnlower.patterns import DEFAULT_TEMPLATES, Expr, Facts, build

    @dataclass(frozen=True)
    class Checkerboard:
        kind: str = "checkerboard"

        def allowed(self, facts: Facts) -> Expr:
            return build.eq0(build.mod(build.add(build.coord("q"), build.coord("k")), build.const_int(2)))

    @DEFAULT_TEMPLATES.register("checkerboard")
    def find_checkerboard(expr, facts):
        yield Checkerboard()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from ...errors import TemplateError
from ..expr import Expr
from ..facts import Facts
from .template import MaskTemplate

Finder = Callable[[Expr, Facts], Iterable[MaskTemplate]]
"""Reads candidates off a mask's formula, under what is known of sizes."""


class TemplateTable:
    """Finders of templates by name, in the order in which they were added."""

    def __init__(self, finders: Mapping[str, Finder] | None = None) -> None:
        self._finders: dict[str, Finder] = dict(finders or {})

    def register(self, name: str) -> Callable[[Finder], Finder]:
        """Decorator that adds a finder ``finder(expr, facts) -> iterable of templates``.

        Raises:
            TemplateError: if the name is taken; `replace` makes a table in which it means something else.
        """

        def decorate(finder: Finder) -> Finder:
            if name in self._finders:
                raise TemplateError(f"there is a template '{name}' already; use TemplateTable.replace to change it")
            if not callable(finder):
                raise TemplateError(f"the finder of '{name}' must be a function (expr, facts), not {finder!r}")
            self._finders[name] = finder
            return finder

        return decorate

    def replace(self, name: str, finder: Finder) -> TemplateTable:
        """A new table in which one name has another finder."""
        return TemplateTable({**self._finders, name: finder})

    def without(self, *names: str) -> TemplateTable:
        """A new table that lacks some names."""
        return TemplateTable({n: f for n, f in self._finders.items() if n not in names})

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(self._finders)

    def candidates(self, expr: Expr, facts: Facts) -> Iterator[MaskTemplate]:
        """What the finders suggest for a formula, each once.

        Raises:
            TemplateError: if a finder suggests something that is no template.
        """
        seen: list[MaskTemplate] = []
        for name, finder in self._finders.items():
            for template in finder(expr, facts):
                if not isinstance(getattr(template, "kind", None), str) or not callable(
                    getattr(template, "allowed", None)
                ):
                    raise TemplateError(
                        f"the finder of '{name}' suggested {template!r}, which lacks `kind` (a word) or "
                        "`allowed(facts)` (a formula)"
                    )
                if template not in seen:
                    seen.append(template)
                    yield template
