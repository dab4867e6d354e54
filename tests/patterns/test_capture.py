"""Capturing the subgraph of a mask: from any graph, without a guard, without a change, with writes in their order."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

import attnlower
from attnlower.errors import CaptureError
from attnlower.patterns import Analysis, Proved, analyze, find_attention
from attnlower.patterns.aliasing import op_name, written_tensors
from attnlower.patterns.capture import capture_masks, guards, trace
from attnlower.patterns.metadata import input_label, value_of
from attnlower.patterns.sizes import shape_env_of

X = torch.randn(2, 3, 5, 4)
PAD = torch.ones(2, 5, dtype=torch.int64)


def causal(x: torch.Tensor) -> torch.Tensor:
    n = x.shape[-2]
    return torch.arange(n)[None, :] <= torch.arange(n)[:, None]


class Padded(torch.nn.Module):
    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = causal(x) & attention_mask[:, None, None, :].bool()
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def exported(dynamic: bool = True, module: torch.nn.Module | None = None) -> fx.GraphModule:
    shapes: Any = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}) if dynamic else None
    # export marks the dimensions of its example tensors as dynamic, and the marks stay: each capture gets its own
    args = (X.clone(), PAD.clone())
    return torch.export.export(module or Padded(), args, dynamic_shapes=shapes, strict=False).graph_module


def snapshot(gm: fx.GraphModule) -> tuple[Any, ...]:
    """Everything about a graph that a reader could change."""
    nodes = [
        (n.name, n.op, str(n.target), str(n.args), str(n.kwargs), sorted(map(str, n.meta)), repr(n.meta.get("val")))
        for n in gm.graph.nodes
    ]
    return gm.code, len(gm.graph.nodes), nodes, sorted(vars(gm))


def sizes_snapshot(gm: fx.GraphModule) -> tuple[Any, ...]:
    env = shape_env_of([value_of(n) for n in gm.graph.nodes])
    if env is None:
        return ()
    return (
        [str(g.expr) for g in env.guards],
        {str(s): str(r) for s, r in env.var_to_range.items()},
        {str(s): str(r) for s, r in env.replacements.items()},
        {str(k): [str(a.expr) for a in v] for k, v in env.deferred_runtime_asserts.items()},
        str(sorted(map(str, env.divisible))),
        env.frozen,
        "_log_guard" in vars(env),
    )


def uses(gm: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    calls, _ = find_attention(gm.graph)
    found: dict[fx.Node, list[fx.Node]] = {}
    for call in calls:
        for term in call.terms:
            found.setdefault(term.node, []).append(call.node)
    return found


# --- nothing changes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
def test_an_exported_graph_stays_as_it_was(dynamic: bool) -> None:
    gm = exported(dynamic)
    before, sizes = snapshot(gm), sizes_snapshot(gm)
    assert isinstance(analyze(gm).sites[0].classification.verdict, Proved)  # type: ignore[union-attr]
    capture_masks(gm, uses(gm))
    assert snapshot(gm) == before
    assert sizes_snapshot(gm) == sizes


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_dynamo_graph_stays_as_it_was(dynamic: bool) -> None:
    seen: list[bool] = []

    def backend(gm: fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        before, sizes = snapshot(gm), sizes_snapshot(gm)
        assert isinstance(analyze(gm).sites[0].classification.verdict, Proved)  # type: ignore[union-attr]
        seen.append(snapshot(gm) == before and sizes_snapshot(gm) == sizes)
        return gm.forward

    torch._dynamo.reset()
    compiled = torch.compile(Padded(), backend=backend, dynamic=dynamic, fullgraph=True)
    compiled(X, PAD)
    assert seen == [True]
    if dynamic:  # no guard came in: another length runs in the same graph
        compiled(torch.randn(6, 3, 9, 4), torch.ones(6, 9, dtype=torch.int64))
        assert seen == [True]
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(lambda x: causal(x).repeat(1, 1) & (torch.arange(x.shape[2]) % 2 == 0), id="repeat"),
        pytest.param(lambda x: F.pad(causal(x)[:, 1:], (1, 0), value=True), id="pad"),
        pytest.param(lambda x: torch.cat([causal(x)[:2], causal(x)[2:]], 0), id="cat"),
        pytest.param(lambda x: causal(x).flip(0).flip(0), id="flip"),
        pytest.param(lambda x: causal(x).reshape(-1).view(x.shape[2], x.shape[2]), id="reshape"),
        pytest.param(lambda x: causal(x).unbind(0)[0].expand(x.shape[2], -1), id="unbind"),
        pytest.param(lambda x: torch.stack(causal(x).split(1, 0)[:1])[0].expand(x.shape[2], -1), id="split"),
    ],
)
def test_no_guard_whatever_the_mask_is_made_of(mask: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask(x)) * attention_mask.sum()

    try:
        gm = exported(True, Model())
    except Exception as error:  # some of them need a static size to be exported at all
        pytest.skip(f"torch.export: {str(error)[:60]}")
    before, sizes = snapshot(gm), sizes_snapshot(gm)
    analyze(gm)
    assert snapshot(gm) == before
    assert sizes_snapshot(gm) == sizes


def test_the_fake_mode_is_left_as_it_was() -> None:
    gm = exported()
    mode = next(value_of(n) for n in gm.graph.nodes if n.op == "placeholder").fake_mode
    mode.allow_non_fake_inputs, cache = False, mode.cache_enabled
    analyze(gm)
    assert mode.allow_non_fake_inputs is False
    assert mode.cache_enabled is cache


def steps_written(x: torch.Tensor) -> torch.Tensor:
    """Every second column open. Functionalising the write asks whether there are two, which no one asked yet."""
    mask = causal(x)
    mask[:, ::2] = True
    return mask


@pytest.fixture
def strict_about_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions about the strides of a new tensor count as guards: they stand for those that do matter."""
    monkeypatch.setattr(guards, "_LAYOUT_QUESTIONS", {"_extract_tensor_metadata"})


def test_a_question_about_strides_is_no_guard() -> None:
    gm = make_fx(lambda x: attend(x, steps_written(x)), tracing_mode="symbolic", pre_dispatch=True)(X)
    before, sizes = snapshot(gm), sizes_snapshot(gm)
    (site,) = analyze(gm).sites
    assert str(site.classification.predicate) == "k <= q | k % 2 == 0"
    assert snapshot(gm) == before
    assert sizes_snapshot(gm) == sizes


@pytest.mark.usefixtures("strict_about_strides")
def test_a_mask_that_needs_a_guard_is_refused_every_time() -> None:
    """The ShapeEnv answers a question from its cache the second time, without logging a guard."""
    gm = make_fx(lambda x: attend(x, steps_written(x)), tracing_mode="symbolic", pre_dispatch=True)(X)
    before, sizes = snapshot(gm), sizes_snapshot(gm)
    for _ in range(3):
        with pytest.raises(CaptureError, match="would add a guard"):
            capture_masks(gm, uses(gm))
        (site,) = analyze(gm).sites
        assert site.classification is None
        assert "would add a guard" in site.problem
    assert snapshot(gm) == before
    assert sizes_snapshot(gm) == sizes


class RelativeAndWritten(torch.nn.Module):
    """Two masks: a bias with its batch axis inside (strides that are products of sizes), and one that is written to."""

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        for _ in range(2):  # frames: their number is a quotient of a quotient of the number of samples
            x = F.avg_pool2d(x, (3, 1), stride=(2, 1))
        attention_mask = attention_mask[:, : x.shape[2]]
        batch, heads, length, width = x.shape
        flat = x.reshape(batch * heads, length, width)
        bias = torch.matmul(flat.transpose(0, 1), x.new_ones(length, width, length)).transpose(0, 1)
        bias = bias.view(batch * heads, length, length)
        x = F.scaled_dot_product_attention(flat, flat, flat, attn_mask=bias).view(batch, heads, length, width)
        mask = attention_mask.clone()
        mask[:, 0] = 1
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask[:, None, None, :].bool())


def test_a_copy_that_is_taken_asks_nothing_of_the_sizes() -> None:
    shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC})
    args = (torch.randn(2, 3, 21, 4), torch.ones(2, 21, dtype=torch.int64))
    gm = torch.export.export(RelativeAndWritten(), args, dynamic_shapes=shapes, strict=False).graph_module
    sizes = sizes_snapshot(gm)
    captured = capture_masks(gm, uses(gm))
    assert captured.mutates
    assert not captured.refused
    assert sizes_snapshot(gm) == sizes
    expected = analyze(gm).sites[1].classification
    assert expected is not None
    assert isinstance(expected.verdict, Proved)
    assert "padding" in expected.kinds


class Selected(torch.nn.Module):
    """A mask that is read, and one that is written at places whose number the data say."""

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        x = F.scaled_dot_product_attention(x, x, x, attn_mask=causal(x))
        places = torch.arange(x.shape[2])[keep]
        counted = torch.zeros(x.shape[2], dtype=torch.int64)
        counted[places % x.shape[2]] = 1
        return F.scaled_dot_product_attention(x, x, x, attn_mask=(counted[None, :] > 0) & causal(x))


def test_values_of_unknown_length_end_the_ancestors() -> None:
    """Replayed, a selection would have another unknown length than the recorded one, which later nodes refer to."""
    args = (X.clone(), torch.tensor([True, False, True, True, False]))
    gm = torch.export.export(Selected(), args, dynamic_shapes=({2: Dim("s", min=2)}, {0: Dim("s", min=2)})).graph_module
    captured = capture_masks(gm, uses(gm))
    assert not captured.refused
    selections = [n for n in gm.graph.nodes if op_name(n) == "index"]
    assert selections
    assert set(selections) <= set(captured.inputs.values())
    first, second = analyze(gm).sites
    assert first.classification is not None
    assert isinstance(first.classification.verdict, Proved)
    assert second.classification is None or not isinstance(second.classification.verdict, Proved)


@pytest.mark.parametrize("batched", [False, True], ids=["plain", "vmap"])
def test_writes_are_traced_away_once(monkeypatch: pytest.MonkeyPatch, batched: bool) -> None:
    """A second trace only where vmap's levels are numbered in the graph."""
    traces: list[bool] = []
    monkeypatch.setattr(trace, "make_fx", lambda *args, **kwargs: traces.append(True) or make_fx(*args, **kwargs))

    def fn(x: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(x.shape[2])
        if batched:
            mask = torch.vmap(torch.vmap(lambda q, k: k <= q, (None, 0)), (0, None))(steps, steps)
        else:
            mask = steps[None, :] <= steps[:, None]
        mask = mask.clone()
        mask[:, 0] = True
        return attend(x, mask)

    _, analysis = dynamo(fn, X.clone())
    (site,) = analysis.sites
    assert site.classification is not None
    assert str(site.classification.predicate.allowed) == "k <= q"
    assert len(traces) == 1 + batched


@pytest.mark.usefixtures("strict_about_strides")
def test_a_mask_that_cannot_be_captured_does_not_keep_others_from_it() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return attend(x, causal(x)) + attend(x, steps_written(x)) + attend(x, ~causal(x))

    gm = make_fx(fn, tracing_mode="symbolic", pre_dispatch=True)(X)
    first, second, third = analyze(gm).sites
    assert first.classification is not None
    assert first.classification.kinds == {"causal"}
    assert second.classification is None
    assert "would add a guard" in second.problem
    assert third.classification is not None
    assert str(third.classification.predicate) == "k > q"


# --- what is captured -----------------------------------------------------------------------------------------


def test_the_ancestors_of_a_mask_and_its_inputs() -> None:
    gm = exported()
    captured = capture_masks(gm, uses(gm))
    assert {c.label for c in captured.labels.values()} == {"attention_mask"}
    assert all(c.is_input for c in captured.labels.values())
    assert not captured.mutates
    assert not captured.refused
    targets = {n.target for n in captured.graph_module.graph.nodes if n.op == "call_function"}
    assert all(isinstance(t, torch._ops.OpOverload) or callable(t) for t in targets)
    assert torch.ops.aten.scaled_dot_product_attention.default not in targets


def test_the_model_s_own_arithmetic_is_where_a_mask_ends() -> None:
    class Gated(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = torch.nn.Linear(4, 5)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            bias = self.gate(x) + attention_mask[:, None, None, :]
            return F.scaled_dot_product_attention(x, x, x, attn_mask=bias)

    gm = exported(False, Gated())
    captured = capture_masks(gm, uses(gm))
    ops = [n for n in captured.graph_module.graph.nodes if n.op == "call_function"]
    assert not any("linear" in str(n.target) or "addmm" in str(n.target) for n in ops)
    assert {c.is_input for c in captured.labels.values()} == {True, False}


def test_a_node_without_metadata_is_named() -> None:
    gm = exported(False)
    node = next(n for n in gm.graph.nodes if n.name == "attention_mask")
    del node.meta["val"]
    with pytest.raises(CaptureError, match="'attention_mask' has no meta"):
        capture_masks(gm, uses(gm))
    site = analyze(gm).sites[0]
    assert site.classification is None
    assert "attention_mask" in site.problem


def test_a_graph_without_any_metadata_is_refused_by_name() -> None:
    gm = exported(False)
    for node in gm.graph.nodes:
        node.meta.pop("val", None)
    site = analyze(gm).sites[0]
    assert site.classification is None
    assert site.problem_node == "x"
    assert "no meta['val']" in site.problem


def test_a_failed_trace_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("what went wrong\n\nwhat you might do about it")

    gm = exported()
    monkeypatch.setattr(trace, "make_fx", failing)
    with pytest.raises(CaptureError, match=r"ATen: RuntimeError: what went wrong$"):
        capture_masks(gm, uses(gm))


def test_an_empty_graph_and_one_without_attention() -> None:
    empty = fx.GraphModule({}, fx.Graph())
    assert analyze(empty).sites == ()
    gm = make_fx(lambda x: x * 2)(X)
    assert analyze(gm).sites == ()
    assert analyze(gm).captured is None


# --- writes ---------------------------------------------------------------------------------------------------


def dynamo(fn: Callable[..., Any], *inputs: torch.Tensor) -> tuple[fx.GraphModule, Analysis]:
    kept: list[tuple[fx.GraphModule, Analysis]] = []

    def backend(gm: fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        kept.append((gm, analyze(gm)))
        return gm.forward

    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compile(fn, backend=backend, fullgraph=True)(*inputs)
    torch._dynamo.reset()
    return kept[0]


def attend(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def before_write(x: torch.Tensor) -> torch.Tensor:
    mask = causal(x)
    mask[0, 3] = True
    return attend(x, mask)


def through_view(x: torch.Tensor) -> torch.Tensor:
    mask = causal(x)
    row = mask[0]
    row[3] = True
    return attend(x, mask)


def through_base(x: torch.Tensor) -> torch.Tensor:
    mask = causal(x)
    seen = mask[None, None]
    mask[0, 3] = True
    return attend(x, seen)


def through_view_of_view(x: torch.Tensor) -> torch.Tensor:
    mask = causal(x)
    seen = mask.view(1, 1, 5, 5)
    mask.t()[3].narrow(0, 0, 1).fill_(True)
    return attend(x, seen)


def through_expand(x: torch.Tensor) -> torch.Tensor:
    mask = causal(x)
    seen = mask[None, None].expand(2, 3, 5, 5)
    mask.masked_fill_(torch.arange(5) == 3, True)
    return attend(x, seen)


def by_out(x: torch.Tensor) -> torch.Tensor:
    mask = causal(x)
    torch.logical_or(mask, torch.arange(5) == 3, out=mask)
    return attend(x, mask)


def by_operator(x: torch.Tensor) -> torch.Tensor:
    mask = causal(x)
    mask |= torch.arange(5) == 3
    return attend(x, mask)


def by_copy(x: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask.copy_(causal(x))
    mask[0, 3] = True
    return attend(x, mask)


def by_index_put(x: torch.Tensor) -> torch.Tensor:
    mask = causal(x)
    mask.index_put_((torch.tensor(0), torch.tensor(3)), torch.tensor(True))
    return attend(x, mask)


@pytest.mark.parametrize(
    "fn",
    [
        before_write,
        through_view,
        through_base,
        through_view_of_view,
        through_expand,
        by_out,
        by_operator,
        by_copy,
        by_index_put,
    ],
)
def test_a_write_before_the_use_is_seen(fn: Callable[..., Any]) -> None:
    _, analysis = dynamo(fn, X)
    site = analysis.sites[0]
    if site.classification is None:
        assert site.problem  # refused with a reason: as good
        return
    found = site.classification
    assert not found.exact
    assert found.template is None or not isinstance(found.verdict, Proved)


def test_an_input_that_is_written_to() -> None:
    def fn(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        mask.copy_(causal(x))
        return attend(x, mask)

    _, analysis = dynamo(fn, X, torch.ones(5, 5, dtype=torch.bool))
    site = analysis.sites[0]
    assert site.classification is None or site.classification.kinds == {"causal"}

    def emptied(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        mask[:, 1:] = False
        return attend(x, causal(x) & mask)

    _, analysis = dynamo(emptied, X, torch.ones(5, 5, dtype=torch.bool))
    assert analysis.sites[0].classification is None or not analysis.sites[0].classification.exact


def test_a_write_after_the_use_does_not_matter() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        mask = causal(x)
        out = attend(x, mask)
        mask.fill_(False)
        return out + mask.sum()

    _, analysis = dynamo(fn, X)
    assert analysis.sites[0].classification is not None
    assert analysis.sites[0].classification.kinds == {"causal"}


@pytest.mark.parametrize("view", [False, True])
def test_a_write_between_two_uses_is_refused(view: bool) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        mask = causal(x)
        out = attend(x, mask)
        (mask[0] if view else mask).fill_(True)
        return out + attend(x, mask)

    _, analysis = dynamo(fn, X)
    for site in analysis.sites:
        assert site.classification is None
        assert "written to" in site.problem


def test_two_masks_of_one_buffer() -> None:
    """The second mask is made of what the first one was overwritten with."""

    def fn(x: torch.Tensor) -> torch.Tensor:
        buffer = causal(x)
        first = attend(x, buffer.clone())
        buffer[0, 3] = True
        return first + attend(x, buffer.clone())

    _, analysis = dynamo(fn, X)
    first, second = analysis.sites
    assert first.classification is None or first.classification.kinds == {"causal"}
    assert second.classification is None or not second.classification.exact


def test_two_views_of_one_buffer() -> None:
    """A write after the first use goes into the memory that the first mask lies in."""

    def opened(x: torch.Tensor) -> torch.Tensor:
        buffer = causal(x)
        first = attend(x, buffer[None, None])
        buffer.fill_(True)
        return first + attend(x, buffer[None])

    def closed(x: torch.Tensor) -> torch.Tensor:
        buffer = torch.ones(5, 5, dtype=torch.bool)
        first = attend(x, buffer[None, None])
        buffer.copy_(causal(x))
        return first + attend(x, buffer[None])

    for fn, kinds in ((opened, ["causal", "full"]), (closed, ["full", "causal"])):
        _, analysis = dynamo(fn, X)
        for site, kind in zip(analysis.sites, kinds, strict=True):
            assert site.classification is None or site.classification.kinds == {kind}


def test_an_unrelated_write_does_not_matter() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        other = torch.zeros(5)
        mask = causal(x)
        other[2] = 1.0
        return attend(x, mask) + other[:1]

    _, analysis = dynamo(fn, X)
    assert analysis.sites[0].classification is not None
    assert analysis.sites[0].classification.kinds == {"causal"}


IN_PLACE = [
    *(
        operator.iadd,
        operator.isub,
        operator.imul,
        operator.imatmul,
        operator.itruediv,
        operator.ifloordiv,
        operator.imod,
    ),
    *(operator.ipow, operator.iand, operator.ior, operator.ixor, operator.ilshift, operator.irshift),
]


@pytest.mark.parametrize(
    ("make", "writes"),
    [
        (lambda g, a: g.call_function(torch.ops.aten.add_.Tensor, (a, 1)), True),
        (lambda g, a: g.call_function(torch.ops.aten.add.Tensor, (a, 1)), False),
        (lambda g, a: g.call_method("masked_fill_", (a, a, 0)), True),
        (lambda g, a: g.call_method("masked_fill", (a, a, 0)), False),
        (lambda g, a: g.call_method("__len__", (a,)), False),
        (lambda g, a: g.call_function(torch.add, (a, 1), {"out": a}), True),
        (lambda g, a: g.call_function(torch.relu_, (a,)), True),
        *((lambda g, a, f=f: g.call_function(f, (a, 1)), True) for f in IN_PLACE),
        *((lambda g, a, f=f: g.call_function(f, (a, 1)), False) for f in (operator.pow, operator.and_, operator.or_)),
        (lambda g, a: g.call_method("__ipow__", (a, 2)), True),
        (lambda g, a: g.call_method("__pow__", (a, 2)), False),
        (lambda g, a: g.call_function(F.dropout, (a,), {"inplace": True}), True),
        (lambda g, a: g.call_function(F.dropout, (a,), {"inplace": False}), False),
    ],
)
def test_what_counts_as_a_write(make: Callable[..., fx.Node], writes: bool) -> None:
    graph = fx.Graph()
    tensor = graph.placeholder("a")
    node = make(graph, tensor)
    assert written_tensors(node) == ([tensor] if writes else [])


# --- names ----------------------------------------------------------------------------------------------------


def test_op_names() -> None:
    graph = fx.Graph()
    a = graph.placeholder("a")
    assert op_name(graph.call_function(torch.ops.aten.add.Tensor, (a, a))) == "add"
    assert op_name(graph.call_function(torch.add, (a, a))) == "add"
    assert op_name(graph.call_method("add", (a, a))) == "add"


def test_inputs_are_called_as_the_user_calls_them() -> None:
    gm, analysis = dynamo(Padded().forward, X, PAD)
    assert analysis.sites[0].classification is not None
    assert str(analysis.sites[0].classification.predicate) == "k <= q & attention_mask[b, k]"
    assert [input_label(n) for n in gm.graph.nodes if n.op == "placeholder"][-1:] != [""]


def test_an_unread_value_and_an_input_of_one_name_are_two_values() -> None:
    """A node of the traced mask may have the name of a node of the user's graph."""

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            scores = torch.matmul(x[0, 0], x[0, 0].mT)
            rolled = torch.roll(scores, 1)
            return attend(x, (scores > 0) == (torch.roll(rolled, 1) > 0)) + attention_mask.sum()

    analysis = analyze(exported(False, Model()))
    found = analysis.sites[0].classification
    assert found is not None
    assert not isinstance(found.verdict, Proved)


def test_an_example_input_that_starts_inside_its_memory() -> None:
    """Export records how much memory is behind such an input by symbols of its own; nothing may be asked of them."""

    class Padded(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            position = torch.arange(x.shape[2])
            mask = (position <= position[:, None]) & attention_mask[:, None, None, :].bool()
            return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    x, padding = torch.randn(2, 3, 7, 8), torch.ones(3, 7, dtype=torch.long)
    lowered = attnlower.lower(torch.export.export(Padded(), (x, padding[1:])), assume="attention_mask.all()")
    (site,) = lowered.report.sites
    assert (site.action, site.formula) == ("guarded", "k <= q & attention_mask[b, k]")
    torch.testing.assert_close(lowered.program.module()(x, padding[1:]), Padded()(x, padding[1:]))
