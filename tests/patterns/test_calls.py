"""Attention in every spelling. What a call record says is computed and compared with what the graph computes."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import attnlower.lowering.op  # noqa: F401  (registers attnlower::attention)
from attnlower.patterns import AttentionCall, NearMiss, find_attention
from attnlower.patterns.calls import TermMode
from attnlower.patterns.calls.canonical import is_canonical

INF = float("inf")
Q, K, V = (torch.randn(2, 3, 5, 4) for _ in range(3))
KEEP = torch.rand(2, 1, 5, 5) > 0.3
KEEP[..., 0] = True
ADD = torch.where(KEEP, 0.0, -INF)
BIAS = torch.randn(1, 3, 5, 5)
HOW = ("export", "dynamo")


class Recorder(fx.Interpreter):
    """Runs a graph and keeps the value of every node."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


class Wrapped(torch.nn.Module):
    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.fn(*inputs)


def graph_of(fn: Callable[..., Any], inputs: tuple[torch.Tensor, ...], how: str) -> tuple[fx.GraphModule, list[Any]]:
    """The graph of a function and the inputs that it takes."""
    if how == "decomposed":
        return make_fx(fn, tracing_mode="fake")(*inputs), list(inputs)
    if how == "export":
        return torch.export.export(Wrapped(fn), inputs, strict=False).graph_module, list(inputs)
    kept: list[Any] = []

    def backend(gm: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        kept.extend([gm, list(example_inputs)])
        return gm.forward

    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compile(fn, backend=backend, fullgraph=True)(*inputs)
    torch._dynamo.reset()
    return kept[0], kept[1]


def found(fn: Callable[..., Any], *inputs: torch.Tensor, how: str) -> tuple[list[AttentionCall], list[NearMiss]]:
    calls, misses = find_attention(graph_of(fn, inputs, how)[0].graph)
    return list(calls), list(misses)


def recomputed(call: AttentionCall, values: dict[fx.Node, Any]) -> torch.Tensor:
    """Attention as the record describes it."""
    query, key, value = (values[n] for n in (call.query, call.key, call.value))
    if call.enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scale = values[call.scale] if isinstance(call.scale, fx.Node) else call.scale
    scores = (query @ key.transpose(-1, -2)) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if call.is_causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:]).tril().bool(), -INF)
    for term in call.terms:
        tensor = values[term.node]
        if term.mode is TermMode.ADD or (term.mode is TermMode.ATTN_MASK and tensor.dtype is not torch.bool):
            scores = scores + tensor
        elif term.mode is TermMode.BLOCK:
            scores = scores.masked_fill(tensor.bool(), -INF if term.fill is None else term.fill)
        else:
            scores = scores.masked_fill(~tensor.bool(), -INF if term.fill is None else term.fill)
    return torch.softmax(scores, -1) @ value


def one_call(fn: Callable[..., Any], *inputs: torch.Tensor, how: str, blocked: str = "") -> AttentionCall:
    """The one call of a function; its record computes what its node does."""
    gm, taken = graph_of(fn, inputs, how)
    calls, misses = find_attention(gm.graph)
    assert len(calls) == 1, misses
    assert misses == ()
    call = calls[0]
    if blocked:
        assert any(blocked in b for b in call.blockers), call.blockers
        return call
    assert call.blockers == ()
    recorder = Recorder(gm)
    recorder.run(*taken)
    torch.testing.assert_close(recomputed(call, recorder.values), recorder.values[call.node], atol=1e-5, rtol=1e-4)
    return call


# --- scaled_dot_product_attention -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "terms", "causal", "scale"),
    [
        (lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v), 0, False, None),
        (lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), 1, False, None),
        (lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), 1, False, None),
        (lambda q, k, v, m: F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m), 1, False, None),
        (lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, None, 0.0, True), 0, True, None),
        (lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, is_causal=True), 0, True, None),
        (lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, 0.0, False, scale=0.3), 1, False, 0.3),
        (lambda q, k, v, m: F.scaled_dot_product_attention(q, k, value=v, scale=1.0), 0, False, 1.0),
    ],
)
def test_sdpa_arguments_in_dynamo_graphs(fn: Any, terms: int, causal: bool, scale: float | None) -> None:
    call = one_call(fn, Q, K, V, KEEP, how="dynamo")
    assert (len(call.terms), call.is_causal, call.scale, call.spelling) == (terms, causal, scale, "sdpa")
    assert all(t.mode is TermMode.ATTN_MASK for t in call.terms)


@pytest.mark.parametrize("mask", [KEEP, ADD, BIAS, BIAS[0], KEEP[0, 0]], ids=["bool", "inf", "bias", "3d", "2d"])
def test_sdpa_masks(mask: torch.Tensor) -> None:
    one_call(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), Q, K, V, mask, how="dynamo")


@pytest.mark.parametrize("how", ["dynamo", "export"])
def test_grouped_queries(how: str) -> None:
    class Grouped(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    q = torch.randn(2, 6, 5, 4)
    if how == "dynamo":
        call = one_call(Grouped(), q, K, V, how="dynamo")
    else:
        graph = torch.export.export(Grouped(), (q, K, V), strict=False).graph_module.graph
        (call,), _ = find_attention(graph)
    assert call.enable_gqa


def sdpa_graph(target: Any, *args: Any, **kwargs: Any) -> tuple[fx.Graph, fx.Node]:
    """One call by hand, with fake tensors as metadata; one-letter strings stand for inputs."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    mode = FakeTensorMode()
    shapes = {"q": Q, "k": K, "v": V, "m": BIAS}

    def input_node(name: Any) -> Any:
        if name not in shapes if isinstance(name, str) else True:
            return name
        if name not in nodes:
            nodes[name] = graph.placeholder(name)
            nodes[name].meta["val"] = mode.from_tensor(shapes[name].clone())
        return nodes[name]

    node = graph.call_function(target, tuple(map(input_node, args)), {n: input_node(a) for n, a in kwargs.items()})
    return graph, node


def test_aten_sdpa_by_hand() -> None:
    target = torch.ops.aten.scaled_dot_product_attention.default
    graph, node = sdpa_graph(target, "q", "k", "v", "m", 0.1, False, scale=0.5)
    (call,), misses = find_attention(graph)
    assert misses == ()
    assert (call.node, call.spelling, call.scale, call.dropout_p, len(call.terms)) == (node, "sdpa", 0.5, 0.1, 1)


def test_what_sdpa_arguments_are_not_taken() -> None:
    target = torch.ops.aten.scaled_dot_product_attention.default
    graph, _ = sdpa_graph(target, "q", "k", "v", "m", 0.0, True)
    (call,), _ = find_attention(graph)
    assert any("attn_mask and is_causal" in b for b in call.blockers)
    graph, _ = sdpa_graph(target, "q", "k", None)
    assert "not a tensor of the graph" in find_attention(graph)[1][0].reason
    graph, _ = sdpa_graph(F.scaled_dot_product_attention, "q", "k", "v", attn_mask=3.0)
    assert "attn_mask is a float" in find_attention(graph)[1][0].reason
    graph, _ = sdpa_graph(F.scaled_dot_product_attention, "q", "k", "v", is_causal="m")
    assert "is_causal is not a constant" in find_attention(graph)[1][0].reason


# --- fused kernels --------------------------------------------------------------------------------------------

aten = torch.ops.aten
FUSED = {
    "flash": (aten._scaled_dot_product_flash_attention.default, ("q", "k", "v"), 9),
    "efficient": (aten._scaled_dot_product_efficient_attention.default, ("q", "k", "v", "m", False), 4),
    "cudnn": (aten._scaled_dot_product_cudnn_attention.default, ("q", "k", "v", "m", False), 9),
    "flash_for_cpu": (aten._scaled_dot_product_flash_attention_for_cpu.default, ("q", "k", "v"), 2),
    "overrideable": (aten._scaled_dot_product_fused_attention_overrideable.default, ("q", "k", "v", "m"), 9),
}


def fused_graph(spelling: str, **kwargs: Any) -> tuple[fx.Graph, fx.Node]:
    target, args, _ = FUSED[spelling]
    return sdpa_graph(target, *args, **kwargs)


@pytest.mark.parametrize("spelling", FUSED)
def test_fused_kernels(spelling: str) -> None:
    graph, node = fused_graph(spelling, is_causal=False, scale=0.25)
    output = graph.call_function(operator.getitem, (node, 0))
    graph.call_function(operator.getitem, (node, 1))  # unused
    graph.output(output)
    (call,), misses = find_attention(graph)
    assert misses == ()
    assert (call.spelling, call.node, call.scale, call.blockers) == (spelling, output, 0.25, ())
    assert [n.name for n in (call.query, call.key, call.value)] == ["q", "k", "v"]
    assert [t.node.name for t in call.terms] == (["m"] if "m" in FUSED[spelling][1] else [])
    assert not call.is_causal


@pytest.mark.parametrize("spelling", FUSED)
def test_fused_kernels_whose_other_outputs_are_used_stay(spelling: str) -> None:
    graph, node = fused_graph(spelling)
    output, extra = (graph.call_function(operator.getitem, (node, i)) for i in (0, 1))
    graph.output((output, extra))
    (call,), _ = find_attention(graph)
    assert any("log-sum-exp" in b for b in call.blockers)


@pytest.mark.parametrize("spelling", FUSED)
def test_fused_kernels_that_are_returned_whole_are_near_misses(spelling: str) -> None:
    graph, node = fused_graph(spelling)
    graph.output(node)
    calls, (miss,) = find_attention(graph)
    assert calls == ()
    assert miss.node is node
    assert "not taken apart" in miss.reason


def test_is_causal_of_a_fused_kernel() -> None:
    target, _, _ = FUSED["flash"]
    graph, node = sdpa_graph(target, "q", "k", "v", 0.0, True)
    graph.output(graph.call_function(operator.getitem, (node, 0)))
    (call,), _ = find_attention(graph)
    assert call.is_causal
    assert call.terms == ()


@pytest.mark.parametrize("masked", [False, True])
def test_a_decomposed_graph_calls_the_cpu_kernel(masked: bool) -> None:
    def fn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, m if masked else None, is_causal=not masked)

    call = one_call(fn, Q, K, V, BIAS.expand(2, 3, 5, 5).contiguous(), how="decomposed")
    assert call.spelling == "flash_for_cpu"
    assert (len(call.terms), call.is_causal) == (int(masked), not masked)


def test_a_decomposed_boolean_mask_is_read_like_any_other() -> None:
    call = one_call(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), Q, K, V, KEEP, how="decomposed")
    assert call.spelling in ("flash_for_cpu", "eager")
    assert len(call.terms) == 1


# --- the canonical op -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alignment", ["none", "upper_left"])
def test_canonical_calls(alignment: str) -> None:
    op = torch.ops.attnlower.attention.default
    graph, node = sdpa_graph(op, "q", "k", "v", None, "m", alignment, scale=0.5, enable_gqa=False)
    (call,), misses = find_attention(graph)
    assert misses == ()
    assert is_canonical(node)
    assert (call.spelling, call.scale, call.is_causal) == ("canonical", 0.5, alignment == "upper_left")
    assert [t.mode for t in call.terms] == [TermMode.ADD]


def test_canonical_masks_and_biases_are_both_terms() -> None:
    op = torch.ops.attnlower.attention.default
    for mask, bias, modes in (
        (KEEP, None, [TermMode.KEEP]),
        (KEEP, BIAS, [TermMode.ADD, TermMode.KEEP]),
        (None, BIAS, [TermMode.ADD]),
    ):
        graph = fx.Graph()
        nodes = [graph.placeholder(n) for n in ("q", "k", "v")]
        extra = [graph.placeholder(n) if t is not None else None for n, t in (("mask", mask), ("bias", bias))]
        graph.call_function(op, (*nodes, *extra))
        (call,), _ = find_attention(graph)
        assert [t.mode for t in call.terms] == modes


def test_lower_right_canonical_calls_are_left_alone() -> None:
    graph, _ = sdpa_graph(torch.ops.attnlower.attention.default, "q", "k", "v", alignment="lower_right")
    calls, (miss,) = find_attention(graph)
    assert calls == ()
    assert "already canonical" in miss.reason


# --- attention written out ------------------------------------------------------------------------------------

Scores = Callable[[torch.Tensor], torch.Tensor]


def written(scores: Callable[..., torch.Tensor], after: Scores = lambda w: w) -> Callable[..., torch.Tensor]:
    """softmax(scores(q, k, ...)) @ v, with something between the softmax and the second matmul."""
    return lambda q, k, v, *rest: torch.matmul(after(torch.softmax(scores(q, k, *rest), dim=-1)), v)


def product(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return torch.matmul(q, k.transpose(-1, -2))


FORMS: list[tuple[str, Callable[..., torch.Tensor], float | None]] = [
    ("unscaled", lambda q, k, m: product(q, k), 1.0),
    ("scaled-after", lambda q, k, m: product(q, k) * 0.5, 0.5),
    ("scaled-before-number", lambda q, k, m: 0.5 * product(q, k), 0.5),
    ("divided", lambda q, k, m: product(q, k) / 2, 0.5),
    ("divided-method", lambda q, k, m: product(q, k).div(4.0), 0.25),
    ("scaled-twice", lambda q, k, m: product(q, k) / 2 * 0.5, 0.25),
    ("scaled-query", lambda q, k, m: product(q * 0.5, k), 1.0),
    ("added", lambda q, k, m: product(q, k) * 0.5 + m, 0.5),
    ("added-first", lambda q, k, m: m + product(q, k) * 0.5, 0.5),
    ("added-method", lambda q, k, m: (product(q, k) * 0.5).add(m), 0.5),
    ("added-unscaled", lambda q, k, m: product(q, k) + m, 1.0),
    ("added-twice", lambda q, k, m: product(q, k) + m + m[:, :1], 1.0),
    ("at-sign", lambda q, k, m: q @ k.mT * 0.5 + m, 0.5),
    ("permuted", lambda q, k, m: torch.matmul(q, k.permute(0, 1, 3, 2)) + m, 1.0),
    ("positive-axes", lambda q, k, m: torch.matmul(q, k.transpose(2, 3)) + m, 1.0),
    ("swapaxes", lambda q, k, m: torch.matmul(q, k.swapaxes(-2, -1)) + m, 1.0),
    ("contiguous-key", lambda q, k, m: torch.matmul(q, k.transpose(-1, -2).contiguous()) + m, 1.0),
    ("cast", lambda q, k, m: (product(q, k) * 0.5).float() + m, 0.5),
    ("cast-and-back", lambda q, k, m: ((product(q, k) * 0.5).double() + m).float(), 0.5),
    ("in-place", lambda q, k, m: product(q, k).mul_(0.5).add_(m), 0.5),
]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("scores", "scale"), [(s, c) for _, s, c in FORMS], ids=[n for n, _, _ in FORMS])
def test_scores_written_out(how: str, scores: Any, scale: float) -> None:
    call = one_call(written(scores), Q, K, V, BIAS.expand(2, 3, 5, 5), how=how)
    assert call.spelling == "eager"
    assert call.scale == scale
    assert call.empty_rows_are_nan


FILLS = [
    ("masked_fill", lambda q, k, m: product(q, k).masked_fill(~m, -INF), TermMode.BLOCK),
    ("masked_fill_", lambda q, k, m: product(q, k).masked_fill_(~m, -INF), TermMode.BLOCK),
    ("masked_fill-min", lambda q, k, m: product(q, k).masked_fill(~m, torch.finfo(torch.float32).min), TermMode.BLOCK),
    ("where", lambda q, k, m: torch.where(m, product(q, k), -INF), TermMode.KEEP),
    ("where-min", lambda q, k, m: torch.where(m, product(q, k), torch.finfo(torch.float32).min), TermMode.KEEP),
    ("where-full", lambda q, k, m: torch.where(m, product(q, k), torch.full((), -INF)), TermMode.KEEP),
    ("where-blocked", lambda q, k, m: torch.where(~m, -INF, product(q, k)), TermMode.BLOCK),
    ("scaled-before", lambda q, k, m: (product(q, k) / 2).masked_fill(~m, -INF), TermMode.BLOCK),
]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("scores", "mode"), [(s, c) for _, s, c in FILLS], ids=[n for n, _, _ in FILLS])
def test_scores_filled_by_a_mask(how: str, scores: Any, mode: TermMode) -> None:
    call = one_call(written(scores), Q, K, V, KEEP, how=how)
    assert [t.mode for t in call.terms] == [mode]


@pytest.mark.parametrize("how", HOW)
def test_a_bias_and_a_fill_in_both_orders(how: str) -> None:
    bias_first = written(lambda q, k, m, b: (product(q, k) + b).masked_fill(~m, -INF))
    mask_first = written(lambda q, k, m, b: product(q, k).masked_fill(~m, -INF) + b)
    bias = BIAS.expand(2, 3, 5, 5)
    assert [t.mode for t in one_call(bias_first, Q, K, V, KEEP, bias, how=how).terms] == [TermMode.ADD, TermMode.BLOCK]
    assert [t.mode for t in one_call(mask_first, Q, K, V, KEEP, bias, how=how).terms] == [TermMode.BLOCK, TermMode.ADD]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    "after",
    [
        lambda w: w.to(torch.float32),
        lambda w: F.dropout(w, 0.0, training=True),
        lambda w: F.dropout(w, 0.5, training=False),
        lambda w: w.double().float(),
        lambda w: w.contiguous(),
    ],
)
def test_steps_after_the_softmax(how: str, after: Any) -> None:
    one_call(written(lambda q, k: product(q, k) * 0.5, after), Q, K, V, how=how)


@pytest.mark.parametrize("how", HOW)
def test_three_axes(how: str) -> None:
    fn = written(lambda q, k, m: torch.bmm(q, k.transpose(1, 2)) * 0.5 + m)
    bmm = lambda q, k, v, m: torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) + m, -1), v)  # noqa: E731
    for f in (fn, bmm):
        one_call(f, Q[0], K[0], V[0], BIAS[0], how=how)


@pytest.mark.parametrize("how", HOW)
def test_softmax_in_another_dtype(how: str) -> None:
    def fn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.matmul(F.softmax(product(q, k) * 0.5, dim=-1, dtype=torch.float32).to(q.dtype), v)

    one_call(fn, Q, K, V, how=how)


# --- attention that must stay as it is ------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
def test_weights_that_are_returned(how: str) -> None:
    def fn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights = torch.softmax(product(q, k) * 0.5, -1)
        return torch.matmul(weights, v), weights

    one_call(fn, Q, K, V, how=how, blocked="weights are used elsewhere")


@pytest.mark.parametrize("how", HOW)
def test_scores_that_are_returned(how: str) -> None:
    def fn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = product(q, k) * 0.5
        return torch.matmul(torch.softmax(scores, -1), v), scores

    one_call(fn, Q, K, V, how=how, blocked="scores are used elsewhere")


@pytest.mark.parametrize("how", HOW)
def test_soft_caps(how: str) -> None:
    fn = written(lambda q, k, m: torch.tanh(product(q, k) * 0.5 / 30.0) * 30.0 + m)
    one_call(fn, Q, K, V, BIAS.expand(2, 3, 5, 5), how=how, blocked="soft-capped")


def test_real_dropout() -> None:
    fn = written(lambda q, k: product(q, k), lambda w: F.dropout(w, 0.5, training=True))
    one_call(fn, Q, K, V, how="dynamo", blocked="dropout is applied")


NEAR = [
    ("wrong-axis", lambda q, k, v, m: torch.softmax(product(q, k), dim=-2) @ v, "last axis"),
    ("head-axis", lambda q, k, v, m: torch.softmax(product(q, k), dim=1) @ v, "last axis"),
    ("key-not-transposed", lambda q, k, v, m: torch.softmax(q @ k[:, :, :4], -1) @ v[:, :, :4], "not a transpose"),
    (
        "wrong-axes",
        lambda q, k, v, m: torch.softmax(q @ k[:, :, :4].transpose(1, 2).transpose(1, 2), -1) @ v[:, :, :4],
        "not a transpose",
    ),
    (
        "wrong-permutation",
        lambda q, k, v, m: torch.softmax(q @ k[:, :, :3].permute(0, 2, 3, 1), -1) @ v[:, :, :3],
        "not a transpose",
    ),
    ("scale-after-mask", lambda q, k, v, m: torch.softmax((product(q, k) + m) * 0.5, -1) @ v, "scales the mask"),
    (
        "scale-after-fill",
        lambda q, k, v, m: torch.softmax(product(q, k).masked_fill(m > 0, -INF) * 0.5, -1) @ v,
        "after the fill",
    ),
    (
        "scale-after-where",
        lambda q, k, v, m: torch.softmax(torch.where(m > 0, product(q, k), -INF) / 2, -1) @ v,
        "after the choice",
    ),
    ("scale-is-a-tensor", lambda q, k, v, m: torch.softmax(product(q, k) * m, -1) @ v, "scaled by a tensor"),
    ("other-op", lambda q, k, v, m: torch.softmax(torch.relu(product(q, k)), -1) @ v, "stands between"),
    ("subtraction", lambda q, k, v, m: torch.softmax(product(q, k) - m, -1) @ v, "stands between"),
    ("no-product", lambda q, k, v, m: torch.softmax(m.expand(2, 3, 5, 5), -1) @ v, ""),
    (
        "rounded-division",
        lambda q, k, v, m: torch.softmax(torch.div(product(q, k), 2, rounding_mode="floor"), -1) @ v,
        "more arguments",
    ),
    (
        "scaled-addition",
        lambda q, k, v, m: torch.softmax(torch.add(product(q, k), m, alpha=2), -1) @ v,
        "more arguments",
    ),
    ("number-over-scores", lambda q, k, v, m: torch.softmax(2.0 / product(q, k), -1) @ v, ""),
    ("fill-zero", lambda q, k, v, m: torch.softmax(product(q, k).masked_fill(m > 0, 0.0), -1) @ v, "does not block"),
    ("fill-1e4", lambda q, k, v, m: torch.softmax(product(q, k).masked_fill(m > 0, -1e4), -1) @ v, "does not block"),
    ("fill-1e9", lambda q, k, v, m: torch.softmax(product(q, k).masked_fill(m > 0, -1e9), -1) @ v, "does not block"),
    ("fill-inf", lambda q, k, v, m: torch.softmax(product(q, k).masked_fill(m > 0, INF), -1) @ v, "does not block"),
    ("where-zero", lambda q, k, v, m: torch.softmax(torch.where(m > 0, product(q, k), 0.0), -1) @ v, "does not block"),
    ("where-1e4", lambda q, k, v, m: torch.softmax(torch.where(m > 0, -1e4, product(q, k)), -1) @ v, "does not block"),
    (
        "where-two-scores",
        lambda q, k, v, m: torch.softmax(torch.where(m > 0, product(q, k), product(k, q)), -1) @ v,
        "no choice",
    ),
]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("fn", "reason"), [(f, r) for _, f, r in NEAR], ids=[n for n, _, _ in NEAR])
def test_near_misses(how: str, fn: Any, reason: str) -> None:
    calls, misses = found(fn, Q, K, V, BIAS.expand(2, 3, 5, 5).contiguous(), how=how)
    assert all(c.blockers for c in calls), calls
    if reason:
        assert any(reason in m.reason for m in misses), misses


@pytest.mark.parametrize("how", HOW)
def test_shapes_that_attention_does_not_have(how: str) -> None:
    def broadcast(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax(product(q, k[:, :1]), -1) @ v

    calls, misses = found(broadcast, Q, K, V, how=how)
    assert calls == []
    assert any("batch and head axes" in m.reason for m in misses)

    def flat(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax(torch.matmul(q[0, 0], k[0, 0].t()), -1) @ v[0, 0]

    calls, misses = found(flat, Q, K, V, how=how)
    assert calls == []


def statement_fill(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    scores = product(q, k)
    scores.masked_fill_(m, -INF)
    return torch.matmul(torch.softmax(scores, -1), v)


def statement_setitem(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    scores = product(q, k)
    scores[:, :, :, 1] = -INF
    return torch.matmul(torch.softmax(scores, -1), v)


def mask_overwritten(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(5, 5).masked_fill(m[0, 0], -INF)
    scores = product(q, k) + mask
    mask.fill_(0.0)
    return torch.matmul(torch.softmax(scores, -1), v)


def weights_overwritten(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    weights = torch.softmax(product(q, k), -1)
    weights.mul_(m)
    return torch.matmul(weights, v)


def key_overwritten(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    key = k.clone()
    scores = product(q, key)
    key.zero_()
    return torch.matmul(torch.softmax(scores, -1), v)


@pytest.mark.parametrize(
    "fn", [statement_fill, statement_setitem, mask_overwritten, weights_overwritten, key_overwritten]
)
def test_writes_in_the_middle_of_attention(fn: Any) -> None:
    """In-place steps whose result is not used: the graph below the softmax does not show them."""
    calls, misses = found(fn, Q, K, V, ~KEEP, how="dynamo")
    assert all(c.blockers for c in calls)
    assert calls or any("writes into a tensor" in m.reason for m in misses)


def test_a_softmax_that_is_no_attention_is_not_mentioned() -> None:
    calls, misses = found(lambda q: torch.softmax(q, -1) * 2, Q, how="decomposed")
    assert (calls, misses) == ([], [])
    calls, misses = found(lambda q, k: torch.matmul(q, k.mT), Q, K, how="decomposed")
    assert (calls, misses) == ([], [])


def test_calls_come_in_graph_order() -> None:
    def fn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        x = F.scaled_dot_product_attention(q, k, v)
        x = torch.matmul(torch.softmax(product(x, k), -1), v)
        return F.scaled_dot_product_attention(x, k, v, is_causal=True)

    calls, _ = found(fn, Q, K, V, how="dynamo")
    assert [c.spelling for c in calls] == ["sdpa", "eager", "sdpa"]
    assert [c.is_causal for c in calls] == [False, False, True]
