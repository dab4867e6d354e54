"""Models, captures and counts that the tests of lowering/ share."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch.export import Dim, ExportedProgram

import attnlower
from attnlower.lowering.api import _tensor_inputs
from attnlower.lowering.banded import processor
from attnlower.lowering.exported import lifted_constants, size_ranges, with_graph
from attnlower.lowering.options import parse_options
from attnlower.lowering.pipeline import PIPELINE, Variant, build_variant
from attnlower.lowering.plan import Plan, make_plan
from attnlower.lowering.targets import TARGETS, Target
from attnlower.patterns import Analysis, analyze
from attnlower.patterns.aliasing import op_name
from attnlower.patterns.conditions import parse_conditions
from attnlower.patterns.metadata import tensor_of
from attnlower.patterns.sizes import shape_of

EAGER = {"target": "eager", "strict": True}
NEG = float("-inf")
Mask = Callable[..., torch.Tensor]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """Each test compiles anew, with the same random numbers."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def vectors(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Ways are chosen as on one CPU with AVX512, whatever these tests run on; sets another's instructions and maker."""

    def use(name: str, family: int = 25, vendor: str = "AuthenticAMD") -> None:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)
        monkeypatch.setattr(processor, "vendor_and_family", lambda: (vendor, family))

    use("AVX512")
    return use


# --- models ---------------------------------------------------------------------------------------------------


def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention by matmul and softmax, as Hugging Face's eager attention; the mask is additive."""
    scores = torch.matmul(q, k.transpose(2, 3)) * (1 / math.sqrt(q.shape[-1]))
    if mask is not None:
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, dim=-1), v)


class SelfAttention(torch.nn.Module):
    """Some layers of attention of x to itself under one mask, `mask(x)` or `mask(x, attention_mask)`."""

    def __init__(self, mask: Mask, layers: int = 1, spelling: str = "sdpa") -> None:
        super().__init__()
        self.mask, self.layers, self.spelling = mask, layers, spelling

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        mask = self.mask(x) if attention_mask is None else self.mask(x, attention_mask)
        for _ in range(self.layers):
            if self.spelling == "eager":
                x = written_out(x, x, x, mask)
            else:
                x = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
        return x


class CrossAttention(torch.nn.Module):
    """Attention of q to k under `mask(q, k)` or `mask(q, k, attention_mask)`."""

    def __init__(self, mask: Mask, spelling: str = "sdpa") -> None:
        super().__init__()
        self.mask, self.spelling = mask, spelling

    def forward(self, q: torch.Tensor, k: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        mask = self.mask(q, k) if attention_mask is None else self.mask(q, k, attention_mask)
        if self.spelling == "eager":
            return written_out(q, k, k, mask)
        return F.scaled_dot_product_attention(q, k, k, attn_mask=mask)


class DecoderLayer(torch.nn.Module):
    """A projection, causal attention with padding, a projection."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        batch, length, _ = hidden.shape
        q, k, v = self.qkv(hidden).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return hidden + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


class Decoder(torch.nn.Module):
    """A tiny decoder in the manner of Hugging Face: called with an attention_mask of ones and zeros."""

    def __init__(self, layers: int = 2, width: int = 32) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([DecoderLayer(width) for _ in range(layers)])

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        allowed = causal(hidden)[None, None]
        if attention_mask is not None:
            allowed = allowed & attention_mask[:, None, None, :].to(torch.bool)
        for layer in self.layers:
            hidden = layer(hidden, allowed)
        return hidden


# --- masks ----------------------------------------------------------------------------------------------------


def positions(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(q, k) for the second last axis of x, to be broadcast."""
    index = torch.arange(x.shape[-2], device=x.device)
    return index[:, None], index[None, :]


def causal(x: torch.Tensor) -> torch.Tensor:
    """k <= q."""
    q = torch.arange(x.shape[1 if x.dim() == 3 else 2], device=x.device)
    return q[None, :] <= q[:, None]


def causal_float(x: torch.Tensor) -> torch.Tensor:
    """The same, additive, with -inf."""
    return torch.zeros(x.shape[2], x.shape[2]).masked_fill(~causal(x), NEG)


def causal_min(x: torch.Tensor) -> torch.Tensor:
    """The same, additive, with finfo.min."""
    return torch.zeros(x.shape[2], x.shape[2]).masked_fill(~causal(x), torch.finfo(torch.float32).min)


def padded(x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """k <= q & attention_mask[b, k]."""
    return causal(x)[None, None] & attention_mask[:, None, None, :].to(torch.bool)


def full(x: torch.Tensor) -> torch.Tensor:
    """Everything allowed, in a way that is not obvious."""
    q, k = positions(x)
    return (k <= q) | (k > q)


def _strict(x: torch.Tensor) -> torch.Tensor:
    q, k = positions(x)
    return k < q


def _one_ahead(x: torch.Tensor) -> torch.Tensor:
    q, k = positions(x)
    return k <= q + 1


def _transposed(x: torch.Tensor) -> torch.Tensor:
    return causal(x).transpose(0, 1)


def _one_flipped_off(x: torch.Tensor) -> torch.Tensor:
    q, k = positions(x)
    return (k <= q) & ~((q == 3) & (k == 1))


def _one_flipped_on(x: torch.Tensor) -> torch.Tensor:
    q, k = positions(x)
    return (k <= q) | ((q == 1) & (k == 2))


def _per_head(x: torch.Tensor) -> torch.Tensor:
    return causal(x) | (torch.arange(x.shape[1])[:, None, None] == 1)


def _per_batch(x: torch.Tensor) -> torch.Tensor:
    return causal(x) | (torch.arange(x.shape[0])[:, None, None, None] == 1)


def _minus_one(x: torch.Tensor) -> torch.Tensor:
    return torch.where(causal(x), 0.0, -1.0)


def _minus_ten(x: torch.Tensor) -> torch.Tensor:
    return torch.where(causal(x), 0.0, -10.0)


def _window(x: torch.Tensor) -> torch.Tensor:
    q, k = positions(x)
    return (k <= q) & (k > q - 3)


def _both_ways_window(x: torch.Tensor) -> torch.Tensor:
    q, k = positions(x)
    return (k - q).abs() < 3


def _packed(x: torch.Tensor) -> torch.Tensor:
    q, k = positions(x)
    return (k <= q) & (k // 4 == q // 4)


def _prefix(x: torch.Tensor) -> torch.Tensor:
    q, k = positions(x)
    return (k <= q) | (k < 2)


def _alibi(x: torch.Tensor) -> torch.Tensor:
    q, k = positions(x)
    slopes = torch.tensor([0.5, 0.25, 0.125])[:, None, None]
    return ((k - q) * slopes).masked_fill(k > q, NEG)


def _t5(x: torch.Tensor) -> torch.Tensor:
    q, k = positions(x)
    table = torch.linspace(-1.0, 1.0, 7)
    return table[(k - q).clamp(-3, 3) + 3].masked_fill(k > q, torch.finfo(torch.float32).min)


def _empty_row_inf(x: torch.Tensor) -> torch.Tensor:
    q, k = positions(x)
    return torch.zeros(x.shape[2], x.shape[2]).masked_fill((k > q) | (k == 0), NEG)


def _empty_row_min(x: torch.Tensor) -> torch.Tensor:
    q, k = positions(x)
    return torch.zeros(x.shape[2], x.shape[2]).masked_fill((k > q) | (k == 0), torch.finfo(torch.float32).min)


def _all_blocked_inf(x: torch.Tensor) -> torch.Tensor:
    return torch.full((x.shape[2], x.shape[2]), NEG)


def _all_blocked_min(x: torch.Tensor) -> torch.Tensor:
    return torch.full((x.shape[2], x.shape[2]), torch.finfo(torch.float32).min)


NEAR_MISSES: dict[str, Mask] = {
    "k < q": _strict,
    "k <= q + 1": _one_ahead,
    "transposed": _transposed,
    "one element off": _one_flipped_off,
    "one element on": _one_flipped_on,
    "per head": _per_head,
    "per batch row": _per_batch,
    "-1 for -inf": _minus_one,
    "-10 for -inf": _minus_ten,
    "window": _window,
    "window both ways": _both_ways_window,
    "packed": _packed,
    "prefix": _prefix,
    "ALiBi": _alibi,
    "T5": _t5,
    "empty row, -inf": _empty_row_inf,
    "empty row, finfo.min": _empty_row_min,
    "all blocked, -inf": _all_blocked_inf,
    "all blocked, finfo.min": _all_blocked_min,
}
"""Masks that are neither full nor causal at the sizes of `inputs`, though some nearly are."""


@pytest.fixture(params=list(NEAR_MISSES))
def near_miss(request: pytest.FixtureRequest) -> Mask:
    """One mask after the other that must not be taken for full or causal."""
    return NEAR_MISSES[request.param]


@pytest.fixture(params=["dynamo", "export"])
def capture(request: pytest.FixtureRequest) -> str:
    """Both captures."""
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["static", "dynamic"])
def dynamic(request: pytest.FixtureRequest) -> bool:
    """Static and dynamic shapes."""
    return bool(request.param)


@pytest.fixture(scope="session")
def masks() -> SimpleNamespace:
    """Masks by name."""
    return SimpleNamespace(
        causal=causal,
        causal_float=causal_float,
        causal_min=causal_min,
        padded=padded,
        full=full,
        positions=positions,
        near_misses=NEAR_MISSES,
    )


@pytest.fixture(scope="session")
def models() -> SimpleNamespace:
    """Model classes."""
    return SimpleNamespace(
        SelfAttention=SelfAttention,
        CrossAttention=CrossAttention,
        Decoder=Decoder,
        DecoderLayer=DecoderLayer,
        written_out=written_out,
    )


# --- captures -------------------------------------------------------------------------------------------------


def inputs(length: int = 8, batch: int = 2, heads: int = 3, width: int = 16) -> torch.Tensor:
    """Random (batch, heads, length, width)."""
    return torch.randn(batch, heads, length, width)


@pytest.fixture(scope="session", name="inputs")
def inputs_fixture() -> Callable[..., torch.Tensor]:
    """Makes random (batch, heads, length, width)."""
    return inputs


def exported(model: torch.nn.Module, args: Sequence[Any], dynamic: bool, dims: Any = None) -> ExportedProgram:
    """torch.export; with dynamic shapes, batch and length are symbols unless `dims` says otherwise."""
    if dims is None and dynamic:
        batch, length = Dim("batch", max=64), Dim("length", max=512)
        dims = tuple(_dynamic_dims(a, batch, length) for a in args)
    return torch.export.export(model, tuple(args), dynamic_shapes=dims, strict=False)


def _dynamic_dims(value: Any, batch: Any, length: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return None
    return {4: {0: batch, 2: length}, 3: {0: batch, 1: length}, 2: {0: batch, 1: length}, 1: {0: batch}}[value.dim()]


@dataclass
class Lowering:
    """A model lowered through one of the two captures.

    Attributes:
        run: calls the lowered model.
        report: what was done.
        graph: the lowered graph of an export; None for Dynamo.
    """

    run: Callable[..., Any]
    report: attnlower.Report
    graph: fx.GraphModule | None = None

    @property
    def actions(self) -> list[str]:
        """What was done at each site."""
        return [site.action for site in self.report.sites]


def lowered(
    model: torch.nn.Module,
    args: Sequence[Any],
    capture: str = "export",
    dynamic: bool = True,
    *,
    assume: Any = None,
    dims: Any = None,
    **options: Any,
) -> Lowering:
    """The whole pipeline for target eager."""
    model = model.eval()
    if capture == "dynamo":
        compiled = torch.compile(
            model, backend="attnlower", dynamic=dynamic, fullgraph=True, options={**EAGER, **options}
        )
        compiled(*args)
        return Lowering(compiled, attnlower.last_report())
    done = attnlower.lower(exported(model, args, dynamic, dims), target="eager", assume=assume)
    return Lowering(done.program.module(), done.report, done.program.graph_module)


@pytest.fixture(scope="session", name="lowered")
def lowered_fixture() -> Callable[..., Lowering]:
    """The whole pipeline for target eager."""
    return lowered


@pytest.fixture(scope="session", name="exported")
def exported_fixture() -> Callable[..., ExportedProgram]:
    """torch.export with symbolic batch and length."""
    return exported


@dataclass
class PassRun:
    """Some passes over one graph.

    Attributes:
        gm: the graph as captured.
        variant: the rewritten copy.
        analysis: what the masks mean.
        code_before: the captured graph's code before the passes ran.
        run: calls the rewritten graph with the model's arguments.
    """

    gm: fx.GraphModule
    variant: Variant
    analysis: Analysis
    code_before: str
    run: Callable[..., Any]

    @property
    def before(self) -> Counter[str]:
        """How often each op occurs in the captured graph."""
        return ops(self.gm)

    @property
    def after(self) -> Counter[str]:
        """How often each op occurs in the rewritten graph."""
        return ops(self.variant.gm)

    def result(self, name: str) -> Any:
        """The result of one pass."""
        return next(r for r in self.variant.results if r.name == name)


def ops(gm: fx.GraphModule) -> Counter[str]:
    """How often each op occurs, by its bare name; the canonical op is `attention`."""
    return Counter(op_name(n) for n in gm.graph.nodes if n.op in ("call_function", "call_method"))


def run_passes(
    model: torch.nn.Module,
    args: Sequence[Any],
    passes: Sequence[Any] = PIPELINE,
    capture: str = "export",
    dynamic: bool = True,
    *,
    assumed: str | None = None,
    target: Target | None = None,
    dims: Any = None,
) -> PassRun:
    """Capture a model, run these passes over its graph, and nothing else."""
    target = target or TARGETS["eager"]
    found: list[PassRun] = []

    def over(gm: fx.GraphModule, run: Callable[[Variant], Callable[..., Any]], **known: Any) -> None:
        analysis = analyze(gm, **known)
        code = gm.code
        conditions = parse_conditions(assumed, _tensor_inputs(gm)) if assumed is not None else ()
        variant = build_variant(gm, analysis, target, conditions, tuple(passes))
        found.append(PassRun(gm, variant, analysis, code, run(variant)))

    if capture == "dynamo":

        def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
            over(gm, lambda variant: compiled)
            return found[-1].variant.gm.forward

        compiled = torch.compile(model.eval(), backend=backend, dynamic=dynamic, fullgraph=True)
        compiled(*args)
        return found[0]
    program = exported(model.eval(), args, dynamic, dims)

    def run(variant: Variant) -> Callable[..., Any]:
        return lambda *given: with_graph(program, copy.deepcopy(variant.gm)).module()(*given)

    over(program.graph_module, run, constants=lifted_constants(program), ranges=size_ranges(program))
    return found[0]


@pytest.fixture(scope="session", name="run_passes")
def run_passes_fixture() -> Callable[..., PassRun]:
    """Some passes over one graph."""
    return run_passes


@pytest.fixture(scope="session", name="ops")
def ops_fixture() -> Callable[..., Counter[str]]:
    """How often each op of a graph occurs."""
    return ops


def planned(model: Callable[..., Any], args: Sequence[Any], *, dynamic: bool | None = False, **options: Any) -> Plan:
    """What the backend would do with these options, without compiling anything."""
    chosen = parse_options(options)
    plans: list[Plan] = []

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        plans.append(make_plan(gm, chosen.target, guard=chosen.padding == "guard"))
        return gm.forward

    torch._dynamo.reset()
    torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)(*args)
    (plan,) = plans
    return plan


@pytest.fixture(scope="session", name="planned")
def planned_fixture() -> Callable[..., Plan]:
    """What the backend would do, without compiling anything."""
    return planned


def same(left: Any, right: Any, tolerance: float = 1e-5) -> None:
    """Equal outputs, NaN where the other has NaN."""
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.fixture(scope="session", name="same")
def same_fixture() -> Callable[..., None]:
    """Asserts equal outputs, NaN included."""
    return same


def square_nodes(gm: fx.GraphModule, length: Any) -> list[str]:
    """Nodes whose tensors have the sequence length on both last axes."""
    from attnlower.patterns.sizes import int_expr

    size = int_expr(length)
    shapes = {n.name: shape_of(t) for n in gm.graph.nodes if (t := tensor_of(n)) is not None}
    return [name for name, shape in shapes.items() if len(shape) >= 2 and shape[-1] is size and shape[-2] is size]


@pytest.fixture(scope="session", name="square_nodes")
def square_nodes_fixture() -> Callable[..., list[str]]:
    """Names of a graph's S x S tensors."""
    return square_nodes
