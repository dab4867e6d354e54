"""Whole graphs: one classification per distinct mask, near misses reported, a cost that hardly grows with layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

from attnlower.errors import ReadRuleError
from attnlower.patterns import (
    DEFAULT_RULES,
    Analysis,
    Prover,
    RuleTable,
    Unknown,
    analyze,
    build,
)

X = torch.randn(2, 3, 6, 4)
PAD = torch.ones(2, 6, dtype=torch.int64)
SHAPES = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC})


def causal(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2])[None] <= torch.arange(x.shape[2])[:, None]


class Stack(torch.nn.Module):
    """Layers of attention. Each makes its mask anew unless `shared`."""

    def __init__(self, layers: int, shared: bool, windows: bool = False) -> None:
        super().__init__()
        self.layers, self.shared, self.windows = layers, shared, windows
        self.blocks = torch.nn.ModuleList(Block() for _ in range(layers))

    def mask(self, x: torch.Tensor, pad: torch.Tensor, layer: int) -> torch.Tensor:
        mask = causal(x) & pad[:, None, None, :].bool()
        if self.windows and layer % 2:
            mask = mask & (torch.arange(x.shape[2])[None] > torch.arange(x.shape[2])[:, None] - 3)
        return mask

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = self.mask(x, attention_mask, 0)
        for layer, block in enumerate(self.blocks):
            x = block(x, mask if self.shared else self.mask(x, attention_mask, layer))
        return x


class Block(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def exported(model: torch.nn.Module, dynamic: bool = True) -> fx.GraphModule:
    return torch.export.export(
        model, (X.clone(), PAD.clone()), dynamic_shapes=SHAPES if dynamic else None, strict=False
    ).graph_module


# --- one proof per mask ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 12])
@pytest.mark.parametrize("shared", [True, False])
def test_one_proof_for_all_layers(layers: int, shared: bool) -> None:
    analysis = analyze(exported(Stack(layers, shared)))
    assert len(analysis.sites) == layers
    assert analysis.prover.stats.masks == 1
    assert len({id(s.classification) for s in analysis.sites}) == 1
    assert len({s.mask_value for s in analysis.sites}) == 1
    assert all(s.classification.kinds == {"causal", "padding"} for s in analysis.sites)  # type: ignore[union-attr]
    assert [s.module for s in analysis.sites] == [f"blocks.{i}" for i in range(layers)]
    assert all(s.square and not s.problem for s in analysis.sites)


def test_alternating_masks_are_two() -> None:
    analysis = analyze(exported(Stack(8, shared=False, windows=True)))
    assert analysis.prover.stats.masks == 2
    kinds = [set(s.classification.kinds) for s in analysis.sites]  # type: ignore[union-attr]
    assert kinds == [{"causal", "padding"}, {"sliding_window", "padding"}] * 4


def test_questions_to_the_solver_do_not_grow_with_layers() -> None:
    calls = {n: analyze(exported(Stack(n, shared=False))).prover.stats.solver_calls for n in (1, 2, 16)}
    assert calls[1] == calls[2] == calls[16]


def test_a_prover_counts_over_several_graphs() -> None:
    prover = Prover()
    gm = exported(Stack(2, shared=True))
    assert analyze(gm, prover=prover).prover is prover
    analyze(gm, prover=prover)
    assert prover.stats.masks == 2


# --- what is reported -----------------------------------------------------------------------------------------


def test_sites_without_a_mask_and_with_the_flag() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            x = F.scaled_dot_product_attention(x, x, x)
            x = F.scaled_dot_product_attention(x, x, x, is_causal=True)
            return F.scaled_dot_product_attention(x, x, x, attn_mask=causal(x)) * attention_mask.sum()

    full, flag, mask = analyze(exported(Model())).sites
    assert [s.classification.kinds for s in (full, flag, mask)] == [{"full"}, {"causal"}, {"causal"}]  # type: ignore[union-attr]
    assert [s.mask_value is None for s in (full, flag, mask)] == [True, True, False]
    assert flag.classification is mask.classification


def test_near_misses_are_reported() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            weights = torch.softmax(torch.relu(x @ x.mT), -1)
            return F.scaled_dot_product_attention(weights @ x, x, x) * attention_mask.sum()

    analysis = analyze(exported(Model()))
    assert len(analysis.sites) == 1
    (miss,) = analysis.near_misses
    assert "relu" in miss.reason


def test_equal_masks_over_different_sizes_are_two() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            y = x[:, :, :4]
            a = F.scaled_dot_product_attention(x, x, x, attn_mask=causal(x))
            return a.sum() + F.scaled_dot_product_attention(y, y, y, attn_mask=causal(y)).sum() + attention_mask.sum()

    analysis = analyze(exported(Model(), dynamic=False))
    assert analysis.prover.stats.masks == 2
    assert [s.classification.kinds for s in analysis.sites] == [{"causal"}, {"causal"}]  # type: ignore[union-attr]


def test_eager_terms_are_one_mask() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            scores = (x @ x.transpose(-1, -2)) * 0.5
            scores = scores.masked_fill(~causal(x), float("-inf"))
            scores = scores + torch.where(attention_mask[:, None, None].bool(), 0.0, float("-inf"))
            return torch.softmax(scores, -1) @ x

    (site,) = analyze(exported(Model())).sites
    assert site.call.spelling == "eager"
    assert len(site.call.terms) == 2
    assert site.classification is not None
    assert str(site.classification.predicate) == "k <= q & attention_mask[b, k]"


def test_a_mask_that_depends_on_the_heads_of_grouped_queries() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            q = torch.cat([x, x], 1)
            mask = causal(x) | (torch.arange(6) == 5)[:, None, None]
            return F.scaled_dot_product_attention(q, x, x, attn_mask=mask, enable_gqa=True) * attention_mask.sum()

    (site,) = analyze(exported(Model(), dynamic=False)).sites
    assert site.classification is not None
    assert not site.classification.exact
    assert repr(site.classification.predicate.facts.extents["h"]) == "6"


def test_very_deep_masks_are_refused_not_crashed_on() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            mask = attention_mask[:, None, None]
            for _ in range(600):
                mask = mask * attention_mask[:, None, None]
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask > 0)

    (site,) = analyze(exported(Model(), dynamic=False)).sites
    if site.classification is None:
        assert "RecursionError" in site.problem
    else:
        assert not site.classification.exact


# --- rules of the user ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkerboard() -> Any:
    @torch.library.custom_op("attnlower_tests::checkerboard", mutates_args=())
    def op(x: torch.Tensor) -> torch.Tensor:
        n = x.shape[-2]
        return (torch.arange(n)[None] + torch.arange(n)[:, None]) % 2 == 0

    @op.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return x.new_empty((x.shape[-2], x.shape[-2]), dtype=torch.bool)

    return torch.ops.attnlower_tests.checkerboard.default


class Checked(torch.nn.Module):
    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = torch.ops.attnlower_tests.checkerboard(x) & causal(x)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask) * attention_mask.sum()


def test_an_op_without_a_rule_is_unknown_and_named(checkerboard: Any) -> None:
    (site,) = analyze(exported(Checked())).sites
    found = site.classification
    assert found is not None
    assert isinstance(found.verdict, Unknown)
    assert "opaque" in found.kinds
    assert not found.exact
    assert found.guard is None
    assert "no read rule for attnlower_tests.checkerboard" in found.reason
    assert "checkerboard" in found.verdict.node


def test_an_op_with_a_rule_of_the_user(checkerboard: Any) -> None:
    mine = RuleTable()

    @mine.register(checkerboard)
    def read(reader: Any, node: fx.Node, coords: Any) -> Any:
        return build.eq0(build.mod(build.add(*coords), build.const_int(2)))

    (site,) = analyze(exported(Checked()), rules=DEFAULT_RULES.merged(mine)).sites
    assert site.classification is not None
    assert str(site.classification.predicate) == "k <= q & (k + q) % 2 == 0"
    assert DEFAULT_RULES.find(checkerboard) is None


def test_a_rule_that_returns_no_expression(checkerboard: Any) -> None:
    broken = DEFAULT_RULES.replace(checkerboard, lambda reader, node, coords: 3)
    (site,) = analyze(exported(Checked()), rules=broken).sites
    assert site.classification is None
    assert "must return an expression of sort bool" in site.problem
    wrong = DEFAULT_RULES.replace(checkerboard, lambda reader, node, coords: coords[0])
    (site,) = analyze(exported(Checked()), rules=wrong).sites
    assert "must return an expression of sort bool" in site.problem


def test_registering_rules(checkerboard: Any) -> None:
    table = RuleTable()
    table.register(torch.ops.aten.add)(lambda reader, node, coords: build.ZERO)
    with pytest.raises(ReadRuleError, match="already has a read rule"):
        table.register(torch.ops.aten.add)(lambda reader, node, coords: build.ZERO)
    with pytest.raises(ReadRuleError, match="is registered for an op"):
        table.register(torch.add)(lambda reader, node, coords: build.ZERO)
    assert len(table) == 1
    assert table.find(torch.ops.aten.add.Tensor) is table.find(torch.ops.aten.add)


# --- sizes and values given by the caller ---------------------------------------------------------------------


def test_ranges_may_be_given() -> None:
    class Window(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            near = torch.arange(x.shape[2])[None] > torch.arange(x.shape[2])[:, None] - 64
            return F.scaled_dot_product_attention(x, x, x, attn_mask=causal(x) & near) * attention_mask.sum()

    gm = exported(Window())

    def kinds(analysis: Analysis) -> set[str]:
        found = analysis.sites[0].classification
        assert found is not None
        return set(found.kinds)

    assert kinds(analyze(gm)) == {"sliding_window"}
    symbol = str(next(n for n in gm.graph.nodes if n.name == "x").meta["val"].shape[2])
    assert kinds(analyze(gm, ranges={symbol: (1, 64)})) == {"causal"}
    assert kinds(analyze(gm, ranges={symbol: (1, 65)})) == {"sliding_window"}


def test_lifted_constants_are_known_by_value() -> None:
    class Literal(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            mask = torch.where(causal(x), torch.tensor(0.0), torch.tensor(float("-inf")))
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask) * attention_mask.sum()

    program = torch.export.export(Literal(), (X.clone(), PAD.clone()), strict=False)
    constants = {
        s.arg.name: program.constants[s.target]
        for s in program.graph_signature.input_specs
        if s.target in program.constants
    }
    (known,) = analyze(program.graph_module, constants=constants).sites
    assert known.classification is not None
    assert known.classification.kinds == {"causal"}
    (unknown,) = analyze(program.graph_module).sites
    assert unknown.classification is not None
    assert not unknown.classification.exact
    # in a graph of make_fx they are attributes
    (traced,) = analyze(make_fx(Literal(), tracing_mode="fake", pre_dispatch=True)(X, PAD)).sites
    assert traced.classification is not None
    assert traced.classification.kinds == {"causal"}


def test_a_literal_that_the_graph_writes_to_is_not_known() -> None:
    gm = make_fx(lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=causal(x)), pre_dispatch=True)(X)
    gm.register_buffer("_tensor_constant0", torch.tensor(True))
    mask = next(n for n in gm.graph.nodes if "scaled_dot" in str(n.target)).args[3]
    with gm.graph.inserting_before(mask.next):
        literal = gm.graph.get_attr("_tensor_constant0")
        lifted = gm.graph.call_function(torch.ops.aten.lift_fresh_copy.default, (literal,))
        literal.meta["val"] = lifted.meta["val"] = torch.tensor(True)
        both = gm.graph.call_function(torch.ops.aten.bitwise_and.Tensor, (mask, lifted))
        both.meta["val"] = mask.meta["val"]
    call = next(n for n in gm.graph.nodes if "scaled_dot" in str(n.target))
    call.args = (*call.args[:3], both, *call.args[4:])
    (site,) = analyze(gm).sites
    assert site.classification is not None
    assert site.classification.kinds == {"causal"}
    with gm.graph.inserting_before(lifted):
        changed = gm.graph.call_function(torch.ops.aten.logical_not_.default, (literal,))
        changed.meta["val"] = literal.meta["val"]
    (site,) = analyze(gm).sites
    assert site.classification is None or not site.classification.exact


# --- batches and heads that broadcast -------------------------------------------------------------------------


def test_a_mask_for_more_batch_rows_than_the_query_has() -> None:
    """Row 1 of the batch is not causal, and the query has only row 0: nothing may follow from row 0 alone."""

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            one = x[:1]
            mask = causal(x)[None] | (torch.arange(2) == 1)[:, None, None]
            return F.scaled_dot_product_attention(one, x, x, attn_mask=mask[:, None]) * attention_mask.sum()

    (site,) = analyze(exported(Model(), dynamic=False)).sites
    assert site.classification is None or not site.classification.exact


def test_a_mask_with_more_axes_than_the_scores() -> None:
    graph = fx.Graph()
    q, mask = graph.placeholder("q"), graph.placeholder("mask")
    q.meta["val"], mask.meta["val"] = X[0], torch.ones(2, 3, 6, 6, dtype=torch.bool)
    call = graph.call_function(torch.ops.aten.scaled_dot_product_attention.default, (q, q, q, mask))
    call.meta["val"] = X[0]
    graph.output(call)
    (site,) = analyze(fx.GraphModule({}, graph)).sites
    assert site.classification is None
    assert site.problem == "'mask' has more axes than the scores"


# --- masks that are added as numbers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "bias"),
    [
        (lambda x: causal(x), "where(k <= q, 1.0, 0.0)"),  # scores + True is scores + 1: nothing is blocked
        (lambda x: (~causal(x)).long(), "where(k > q, 1.0, 0.0)"),
        (lambda x: torch.where(causal(x), 0, -10000), "where(k <= q, 0.0, -10000.0)"),
        (lambda x: torch.where(causal(x), 0, torch.iinfo(torch.int32).min), "where(k <= q, 0.0, -2147483648.0)"),
    ],
)
def test_a_boolean_or_integer_mask_that_is_added_blocks_nothing(mask: Callable[..., Any], bias: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            scores = x @ x.transpose(-1, -2) + mask(x)
            return torch.softmax(scores, -1) @ x * attention_mask.sum()

    (site,) = analyze(exported(Model())).sites
    assert site.classification is not None
    assert site.classification.kinds == {"bias"}
    assert not site.classification.exact
    assert str(site.classification.predicate) == f"true; bias {bias}"


def test_an_attention_mask_of_integers_is_refused() -> None:
    graph = fx.Graph()
    q, mask = graph.placeholder("q"), graph.placeholder("mask")
    q.meta["val"], mask.meta["val"] = X, torch.ones(6, 6, dtype=torch.int64)
    call = graph.call_function(torch.ops.aten.scaled_dot_product_attention.default, (q, q, q, mask))
    call.meta["val"] = X
    graph.output(call)
    (site,) = analyze(fx.GraphModule({}, graph)).sites
    assert site.classification is None
    assert "boolean or floating" in site.problem
