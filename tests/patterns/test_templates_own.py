"""A user's own templates and read rules: ten lines, asked first, believed only when proved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from attnlower import TemplateError
from attnlower.patterns import (
    BUILTIN_TEMPLATES,
    DEFAULT_RULES,
    Expr,
    Facts,
    MaskTemplate,
    RuleTable,
    SiteAnalysis,
    TemplateTable,
    analyze,
    build,
)

Q, K = build.coord("q"), build.coord("k")


@dataclass(frozen=True)
class Dilated:
    """Every n-th key, back from the query."""

    step: int
    kind: str = "dilated"

    def allowed(self, facts: Facts) -> Expr:
        apart = build.mod(build.sub(Q, K), build.const_int(self.step))
        return build.and_(build.le(K, Q), build.eq0(apart))


def find_dilated(expr: Expr, facts: Facts) -> Iterator[MaskTemplate]:
    for step in range(2, 9):
        yield Dilated(step)


def table() -> TemplateTable:
    made = TemplateTable()
    made.register("dilated")(find_dilated)
    return made


class Attend(torch.nn.Module):
    def __init__(self, mask: Any) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x, attn_mask=self.mask(x))


def site(mask: Any, templates: TemplateTable | None = None, rules: RuleTable | None = None) -> SiteAnalysis:
    x = torch.randn(2, 2, 9, 4)
    program = torch.export.export(Attend(mask), (x,), dynamic_shapes=({2: Dim("s", min=2)},), strict=False)
    (found,) = analyze(program.graph_module, templates=templates, rules=rules).sites
    assert found.classification is not None, found.problem
    return found


def apart(x: torch.Tensor) -> torch.Tensor:
    index = torch.arange(x.shape[2])
    return index[:, None] - index[None]


def every_third(x: torch.Tensor) -> torch.Tensor:
    return (apart(x) >= 0) & (apart(x) % 3 == 0)


def test_an_own_mask_is_named_and_proved() -> None:
    found = site(every_third, table()).classification
    assert found.kinds == {"dilated"}
    assert found.template == Dilated(3)
    assert found.reason.startswith("proved: Dilated(step=3")
    assert site(every_third).classification.kinds == {"opaque"}


def test_a_suggestion_alone_proves_nothing() -> None:
    found = site(lambda x: (apart(x) >= 0) & (apart(x) % 3 == 1), table()).classification
    assert "dilated" not in found.kinds
    assert site(lambda x: apart(x) >= 0, table()).classification.kinds == {"causal"}


def test_own_masks_over_data() -> None:
    """A template may speak of inputs: it gets the formula and takes what it needs from there."""

    @dataclass(frozen=True)
    class NextToken:
        element: Expr
        kind: str = "neighbour"

        def allowed(self, facts: Facts) -> Expr:
            return build.eq(self.element, build.substitute(self.element, {Q: build.add(Q, build.ONE), K: Q}))

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            mask = ids[:, None, :, None] * ids[:, None, None, :] == 7
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    @dataclass(frozen=True)
    class Product:
        formula: Expr
        kind: str = "product"

        def allowed(self, facts: Facts) -> Expr:
            return self.formula

    def find(expr: Expr, facts: Facts) -> Iterator[MaskTemplate]:
        if any(part.op.value == "mul" for part in _walk(expr)):
            yield Product(expr)

    own = TemplateTable()
    own.register("product")(find)
    x, ids = torch.randn(2, 2, 9, 4), torch.randint(0, 8, (2, 9))
    program = torch.export.export(Model(), (x, ids), strict=False)
    (found,) = analyze(program.graph_module, templates=own).sites
    assert found.classification.kinds == {"product"}
    assert not found.classification.exact


def _walk(expr: Expr) -> Iterator[Expr]:
    yield expr
    for part in expr.args:
        yield from _walk(part)


def test_names_are_taken_once() -> None:
    made = table()
    with pytest.raises(TemplateError, match="'dilated' already"):
        made.register("dilated")(find_dilated)
    assert made.replace("dilated", lambda e, f: ()).names == ("dilated",)
    assert made.without("dilated").names == ()
    assert "causal" in BUILTIN_TEMPLATES.names


def test_what_is_no_template() -> None:
    made = TemplateTable()
    made.register("nothing")(lambda expr, facts: [42])
    with pytest.raises(TemplateError, match="suggested 42, which lacks `kind`"):
        list(made.candidates(build.TRUE, Facts()))
    with pytest.raises(TemplateError, match="must be a function"):
        made.register("no function")(7)


def test_a_template_that_fails_is_a_clear_error_and_changes_nothing() -> None:
    made = TemplateTable()
    made.register("nothing")(lambda expr, facts: [42])
    with pytest.raises(TemplateError):
        site(every_third, made)
    assert site(every_third, table()).classification.kinds == {"dilated"}


def test_an_own_op_is_read_by_an_own_rule() -> None:
    with torch.library._scoped_library("attnlower_tests", "FRAGMENT") as library:
        library.define("band(Tensor x, int width) -> Tensor")

        def band(x: torch.Tensor, width: int) -> torch.Tensor:
            return apart(x).abs() <= width

        library.impl("band", band, "CPU")
        library.impl("band", lambda x, width: x.new_empty(x.shape[2], x.shape[2], dtype=torch.bool), "Meta")
        op = torch.ops.attnlower_tests.band
        rules = RuleTable()

        @rules.register(op.default)
        def read_band(reader: Any, node: Any, coords: tuple[Expr, ...]) -> Expr:
            row, column = coords
            width = reader.integer(node.args[1])
            return build.and_(build.le(column, build.add(row, width)), build.le(build.sub(row, width), column))

        known = site(lambda x: op(x, 2), rules=DEFAULT_RULES.merged(rules)).classification
        assert str(known.predicate) == "k <= q + 2 & k > q - 3"
        assert known.kinds == {"sliding_window"}
        unknown = site(lambda x: op(x, 2)).classification
        assert unknown.kinds == {"opaque"}
        assert "no read rule for attnlower_tests.band" in unknown.reason
