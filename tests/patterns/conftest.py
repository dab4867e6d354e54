"""What the tests of patterns/ share: reading a tensor function and checking it by brute force, and captured masks."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from attnlower.patterns import (
    DEFAULT_RULES,
    Analysis,
    Classification,
    Expr,
    Facts,
    Prover,
    Reader,
    RuleTable,
    SiteAnalysis,
    analyze,
    build,
    evaluate,
    mask_tensor,
)
from attnlower.patterns.capture import CapturedMasks, capture_masks
from attnlower.patterns.expr import cells
from attnlower.patterns.metadata import value_of
from attnlower.patterns.predicate import is_blocked
from attnlower.patterns.sizes import ranges_of, shape_env_of, shape_of

Tensors = Sequence[torch.Tensor]

# The same examples in every run; to hunt for more, run with --hypothesis-profile=default.
settings.register_profile("patterns", deadline=None, derandomize=True, database=None)
settings.load_profile("patterns")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


# --- reading one function -------------------------------------------------------------------------------------


@dataclass
class Reading:
    """What the reader made of a tensor function."""

    graph: fx.GraphModule
    captured: CapturedMasks
    node: fx.Node
    expr: Expr
    facts: Facts
    unread: Mapping[str, str]

    @property
    def opaque(self) -> bool:
        """True if the value depends on a tensor that no rule could open."""
        return any(not c.payload.is_input for c in cells(self.expr))

    def sizes(self, inputs: Sequence[Any]) -> dict[str, int]:
        """A number for every size symbol, from real inputs."""
        found: dict[str, int] = {}
        for node, value in zip(self._placeholders(), inputs, strict=True):
            recorded = value_of(node)
            if isinstance(recorded, torch.Tensor):
                for symbolic, actual in zip(recorded.shape, value.shape, strict=True):
                    if isinstance(symbolic, torch.SymInt):
                        found.setdefault(str(symbolic.node.expr), actual)
        return found

    def tensors(self, inputs: Sequence[Any]) -> dict[str, torch.Tensor]:
        """The inputs by the labels that formulas use."""
        nodes = self._placeholders()
        return {
            self.captured.labels[name].label: inputs[nodes.index(node)]
            for name, node in self.captured.inputs.items()
            if node in nodes and name in self.captured.labels
        }

    def evaluate(self, inputs: Sequence[Any], shape: Sequence[int]) -> torch.Tensor:
        """The expression on the whole grid of coordinates."""
        grids = {
            name: torch.arange(extent).view(*(extent if i == p else 1 for i in range(len(shape))))
            for p, (name, extent) in enumerate(zip(self.facts.extents, shape, strict=True))
        }
        return evaluate(self.expr, {**self.sizes(inputs), **grids}, self.tensors(inputs)).expand(tuple(shape))

    def _placeholders(self) -> list[fx.Node]:
        return [n for n in self.graph.graph.nodes if n.op == "placeholder"]


def read_function(
    fn: Callable[..., torch.Tensor], *inputs: Any, dynamic: bool = False, rules: RuleTable = DEFAULT_RULES
) -> Reading:
    """Trace a function with make_fx, capture its result as a mask and read it at coordinates c0, c1, ..."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gm = make_fx(fn, tracing_mode="symbolic" if dynamic else "fake")(*inputs)
    output = next(n for n in gm.graph.nodes if n.op == "output")
    node = output.args[0]
    captured = capture_masks(gm, {node: [output]})
    extents = {f"c{i}": s for i, s in enumerate(shape_of(value_of(node)))}
    facts = Facts(ranges_of(shape_env_of(value_of(n) for n in gm.graph.nodes)), extents)
    reader = Reader(facts, rules, captured.labels, captured.constants, decider=Prover().holds)
    expr = reader.read(captured.outputs[node], tuple(build.coord(c) for c in extents))
    return Reading(gm, captured, node, expr, facts, reader.unread)


def same_numbers(found: torch.Tensor, actual: torch.Tensor) -> bool:
    """Exact equality, NaN being equal to NaN; integers are compared as integers, without wrapping around."""
    if actual.dtype.is_floating_point:
        return torch.equal(found.double().nan_to_num(nan=1.25e300), actual.double().nan_to_num(nan=1.25e300))
    return torch.equal(found.long(), actual.long())


@pytest.fixture
def read() -> Callable[..., Reading]:
    """`read(fn, *inputs, dynamic=False)`: what the reader makes of a function."""
    return read_function


@pytest.fixture
def check_read() -> Callable[..., Reading]:
    """`check_read(fn, *inputs, others=[...], dynamic=None)`: read a function and compare with the real tensor.

    The function is captured once with static and once with symbolic shapes (`dynamic` chooses one), read, evaluated on
    the whole coordinate grid and compared with what it returns. The symbolic reading is compared at the sizes of
    `others` too. Returns the last reading.
    """

    def check(
        fn: Callable[..., torch.Tensor],
        *inputs: Any,
        others: Sequence[Tensors] = (),
        dynamic: bool | None = None,
        rules: RuleTable = DEFAULT_RULES,
    ) -> Reading:
        reading: Reading | None = None
        for symbolic in (False, True) if dynamic is None else (dynamic,):
            reading = read_function(fn, *inputs, dynamic=symbolic, rules=rules)
            assert not reading.opaque, f"not read: {dict(reading.unread)}"
            for values in (inputs, *others) if symbolic else (inputs,):
                actual = fn(*(v.clone() if isinstance(v, torch.Tensor) else v for v in values))
                found = reading.evaluate(values, actual.shape)
                assert same_numbers(found, actual), f"{reading.expr!r} is not {actual} but {found}"
        assert reading is not None
        return reading

    return check


@pytest.fixture
def check_opaque() -> Callable[..., Reading]:
    """`check_opaque(fn, *inputs, reason="...")`: reading stops at a named node, and nothing can be proved of it."""

    def check(
        fn: Callable[..., torch.Tensor], *inputs: Any, reason: str, node: str = "", dynamic: bool = False
    ) -> Reading:
        reading = read_function(fn, *inputs, dynamic=dynamic)
        assert reading.opaque, f"was read as {reading.expr!r}"
        assert any(reason in text for text in reading.unread.values()), dict(reading.unread)
        if node:
            assert node in reading.unread
        if reading.expr.sort.value == "bool":
            prover = Prover()
            assert not prover.holds(reading.expr, reading.facts)
            assert not prover.holds(build.not_(reading.expr), reading.facts)
        return reading

    return check


# --- masks in attention ---------------------------------------------------------------------------------------

MaskFunction = Callable[..., torch.Tensor]


class Attend(torch.nn.Module):
    """One attention call per mask function; each gets x (B, H, Q, D), y (B, H, K, D) and the further inputs."""

    def __init__(self, masks: Mapping[str, MaskFunction], is_causal: bool = False) -> None:
        super().__init__()
        self.masks, self.is_causal = dict(masks), is_causal

    def forward(self, x: torch.Tensor, y: torch.Tensor, *data: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(
            F.scaled_dot_product_attention(x, y, y, attn_mask=mask(x, y, *data)) for mask in self.masks.values()
        )


class SelfAttend(Attend):
    """Attention of x to itself, so that the numbers of queries and keys are one size."""

    def forward(self, x: torch.Tensor, *data: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return tuple(F.scaled_dot_product_attention(x, x, x, attn_mask=mask(x, *data)) for mask in self.masks.values())


@dataclass
class Site:
    """One analysed attention call with the function that made its mask."""

    name: str
    mask: MaskFunction
    analysis: SiteAnalysis
    sizes_of: Callable[[Sequence[torch.Tensor]], dict[str, int]]
    labels: Sequence[str]

    @property
    def classification(self) -> Classification:
        assert self.analysis.classification is not None, self.analysis.problem
        return self.analysis.classification

    @property
    def kinds(self) -> set[str]:
        return set(self.classification.kinds)

    @property
    def verdict(self) -> str:
        return type(self.classification.verdict).__name__

    @property
    def formula(self) -> str:
        return str(self.classification.predicate)

    def check(self, *inputs: torch.Tensor) -> None:
        """The predicate allows exactly what the real mask allows, and its bias is the real bias there."""
        actual = self.mask(*inputs)
        predicate = self.classification.predicate
        tensors = dict(zip(self.labels, inputs, strict=False))
        sizes = self.sizes_of(inputs)
        allowed = mask_tensor(predicate, sizes, tensors)
        # What SDPA adds to the scores, shape of the scores included.
        actual = actual.expand(*allowed.shape)
        if actual.dtype is torch.bool:
            assert torch.equal(allowed, actual), f"{self.formula} is not {actual}"
            return
        blocked = torch.tensor([is_blocked(v, actual.dtype) for v in actual.flatten().tolist()]).view(actual.shape)
        assert torch.equal(allowed, ~blocked), f"{self.formula} is not {actual}"
        bias = torch.zeros(()) if predicate.bias is None else self._grid(predicate.bias, sizes, tensors, allowed.shape)
        assert torch.equal(bias.expand(actual.shape)[allowed].double(), actual[allowed].double())

    def _grid(
        self, expr: Expr, sizes: Mapping[str, int], tensors: Mapping[str, torch.Tensor], shape: Sequence[int]
    ) -> torch.Tensor:
        grids = {
            name: torch.arange(n).view(*(n if i == p else 1 for i in range(len(shape))))
            for p, (name, n) in enumerate(zip(self.classification.predicate.facts.extents, shape, strict=True))
        }
        return evaluate(expr, {**sizes, **grids}, tensors)


@dataclass
class Sites:
    """The analysed attention calls of one captured module, by the name of the mask."""

    analysis: Analysis
    by_name: dict[str, Site] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Site:
        return self.by_name[name]


def capture(
    module: torch.nn.Module, inputs: Sequence[torch.Tensor], how: str, dynamic_shapes: Any
) -> tuple[fx.GraphModule, Analysis]:
    """The graph of a module by torch.export or Dynamo, and its analysis (for Dynamo from within the backend).

    The placeholders that hold constants, not the user's inputs, are marked with meta["constant"].
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "export":
            program = torch.export.export(module, tuple(inputs), dynamic_shapes=dynamic_shapes, strict=False)
            constants = {
                spec.arg.name: program.constants[spec.target]
                for spec in program.graph_signature.input_specs
                if spec.target in program.constants
            }
            analysis = analyze(program.graph_module, constants=constants)
            for node in program.graph.nodes:
                node.meta["constant"] = node.name in constants
            return program.graph_module, analysis
        kept: list[tuple[fx.GraphModule, Analysis]] = []

        def backend(gm: fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
            kept.append((gm, analyze(gm)))
            return gm.forward

        torch._dynamo.reset()
        torch.compile(module, backend=backend, dynamic=dynamic_shapes is not None, fullgraph=True)(*inputs)
        torch._dynamo.reset()
        return kept[0]


def analyzed(
    masks: Mapping[str, MaskFunction],
    inputs: Sequence[torch.Tensor],
    how: str,
    dynamic_shapes: Any = None,
    cross: bool = False,
) -> Sites:
    """Capture one module with an attention call per mask and analyse it."""
    module = Attend(masks) if cross else SelfAttend(masks)
    if dynamic_shapes is not None and how == "export":
        shapes = list(dynamic_shapes)
        lead = 2 if cross else 1
        dynamic_shapes = (*shapes[:lead], tuple(shapes[lead:])) if len(shapes) > lead else tuple(shapes)
    gm, analysis = capture(module, inputs, how, dynamic_shapes)
    assert len(analysis.sites) == len(masks)

    def sizes_of(values: Sequence[torch.Tensor]) -> dict[str, int]:
        found: dict[str, int] = {}
        for node, value in zip(_tensor_inputs(gm), values, strict=False):
            for symbolic, actual in zip(value_of(node).shape, value.shape, strict=True):
                if isinstance(symbolic, torch.SymInt):
                    found.setdefault(str(symbolic.node.expr), actual)
        return found

    labels = _labels(analysis, gm, inputs)
    sites = Sites(analysis)
    for (name, mask), site in zip(masks.items(), analysis.sites, strict=True):
        sites.by_name[name] = Site(name, mask, site, sizes_of, labels)
    return sites


def _labels(analysis: Analysis, gm: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> list[str]:
    """For each input, the name under which formulas speak of it."""
    known: dict[str, str] = {}
    if analysis.captured is not None:
        for name, node in analysis.captured.inputs.items():
            if name in analysis.captured.labels:
                known[node.name] = analysis.captured.labels[name].label
    labels = [known.get(n.name, n.name) for n in _tensor_inputs(gm)]
    return labels + [f"unused{i}" for i in range(len(inputs) - len(labels))]  # the graph may leave the last ones out


def _tensor_inputs(gm: fx.GraphModule) -> list[fx.Node]:
    """The placeholders of the user's tensors. A graph may leave the last ones out, but it keeps the order."""
    nodes = [n for n in gm.graph.nodes if n.op == "placeholder" and isinstance(value_of(n), torch.Tensor)]
    return [n for n in nodes if not n.meta.get("constant")]


@pytest.fixture(scope="session")
def analyze_masks() -> Callable[..., Sites]:
    """`analyze_masks(masks, inputs, how, dynamic_shapes=None, cross=False)`: all masks in one captured module."""
    return analyzed


@pytest.fixture(scope="session")
def capture_module() -> Callable[..., tuple[fx.GraphModule, Analysis]]:
    """`capture_module(module, inputs, how, dynamic_shapes)`: a graph and its analysis."""
    return capture


@pytest.fixture
def grid() -> Callable[..., dict[str, torch.Tensor]]:
    """`grid(q=4, k=5)`: index tensors that span all coordinates."""

    def make(**extents: int) -> dict[str, torch.Tensor]:
        return {
            name: torch.arange(n).view(*(n if i == p else 1 for i in range(len(extents))))
            for p, (name, n) in enumerate(extents.items())
        }

    return make


@pytest.fixture
def points() -> Callable[..., Iterator[dict[str, int]]]:
    """`points(q=4, k=5)`: every combination of coordinates as plain numbers."""

    def make(**extents: int) -> Iterator[dict[str, int]]:
        for values in itertools.product(*(range(n) for n in extents.values())):
            yield dict(zip(extents, values, strict=True))

    return make
