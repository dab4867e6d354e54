"""Trace several programs at once and read their results."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from attnlower.patterns import DEFAULT_RULES, Expr, Facts, Prover, Reader, build, evaluate
from attnlower.patterns.expr import CellRef, cells
from attnlower.patterns.metadata import value_of
from attnlower.patterns.sizes import int_expr, ranges_of, shape_of

from .program import HEAD_DIM, INPUTS, Program, Sizes, input_shape

_AXES = ("B", "H", "Q", "K")


class TraceError(Exception):
    """A program that runs on tensors does not run on fake ones."""


@dataclass
class Reading:
    """One tensor as the reader sees it.

    Attributes:
        trace: the trace it belongs to.
        node: the node that holds it.
        expr: its element at the coordinates of `facts`.
        facts: what is known of sizes and coordinates.
        unread: nodes that no rule could open, with the reason.
    """

    trace: Trace
    node: fx.Node
    expr: Expr
    facts: Facts
    unread: Mapping[str, str]

    @property
    def opaque(self) -> set[str]:
        """The unread nodes that the value depends on."""
        return {c.payload.node for c in cells(self.expr) if not c.payload.is_input}

    def values(self, expr: Expr, sizes: Sizes, inputs: Mapping[str, torch.Tensor], shape: Sequence[int]) -> Any:
        """An expression over the coordinates on the whole grid of a shape."""
        grids = {
            name: torch.arange(extent).view(*(extent if i == p else 1 for i in range(len(shape))))
            for p, (name, extent) in enumerate(zip(self.facts.extents, shape, strict=True))
        }
        known = dict(inputs)
        if self.opaque:
            known |= self.trace.node_values(self.opaque, inputs)
        return evaluate(expr, {**self.trace.numbers(sizes), **grids}, known).expand(tuple(shape))


@dataclass
class Trace:
    """Several programs in one functional ATen graph.

    Attributes:
        programs: the programs, all with the same sizes.
        graph: computes all their results.
        outputs: for each program, the nodes of its results.
        extents: B, H, Q and K as expressions.
        shape_env: of the symbolic sizes; None if they are numbers.
        symbols: sympy symbol (or number) for B, H, Q and K.
    """

    programs: tuple[Program, ...]
    graph: fx.GraphModule
    outputs: list[list[Any]]
    extents: dict[str, Expr]
    shape_env: ShapeEnv | None
    symbols: dict[str, Any]
    prover: Prover = field(default_factory=Prover)

    def numbers(self, sizes: Sizes) -> dict[str, int]:
        """A number for each size symbol."""
        return {str(self.symbols[a]): sizes[a] for a in _AXES} if self.shape_env is not None else {}

    def admits(self, sizes: Sizes) -> bool:
        """True if the sizes satisfy every guard that tracing has set."""
        if self.shape_env is None:
            return dict(sizes) == dict(self.programs[0].sizes)
        known = {self.symbols[a]: sizes[a] for a in _AXES if not isinstance(self.symbols[a], int)}
        try:
            return all(bool(g.expr.xreplace(known)) for g in self.shape_env.guards if g.expr.free_symbols <= set(known))
        except ZeroDivisionError:  # `x % size` of a size that is 0
            return False

    def node_values(self, names: set[str], inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What some nodes of the graph hold for real inputs."""
        return _values_of(self.graph.graph, names, [inputs[i.name] for i in INPUTS])

    def run(self, inputs: Mapping[str, torch.Tensor]) -> list[list[torch.Tensor]]:
        """The results of all programs by the graph itself."""
        flat = self.graph(*(inputs[i.name].clone() for i in INPUTS))
        found, start = [], 0
        for program in self.programs:
            found.append(list(flat[start : start + len(program.results)]))
            start += len(program.results)
        return found

    def read(self, node: Any) -> Reading:
        """A result at coordinates of its own."""
        extents = {f"c{i}": s for i, s in enumerate(shape_of(value_of(node)))}
        return self._read(node, extents, broadcast=False)

    def read_mask(self, node: Any) -> Reading:
        """A result as an attention mask, at (b, h, q, k)."""
        return self._read(node, dict(zip("bhqk", self.extents.values(), strict=True)), broadcast=True)

    def _read(self, node: Any, extents: Mapping[str, Expr], *, broadcast: bool) -> Reading:
        facts = Facts(ranges_of(self.shape_env), extents)
        labels = {
            n.name: CellRef(spec.name, n.name, spec.dtype, is_input=True)
            for n, spec in zip(self.graph.graph.find_nodes(op="placeholder"), INPUTS, strict=True)
        }
        literals = {n.name: getattr(self.graph, n.target) for n in self.graph.graph.find_nodes(op="get_attr")}
        reader = Reader(facts, DEFAULT_RULES, labels, literals, decider=self.prover.holds)
        coords = tuple(build.coord(c) for c in extents)
        expr = reader.broadcast(node, coords) if broadcast else reader.read(node, coords)
        return Reading(self, node, expr, facts, reader.unread)


def _values_of(graph: fx.Graph, names: set[str], inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the named nodes hold, computing what they depend on and nothing else."""
    needed = {n for n in graph.nodes if n.name in names}
    for node in reversed(graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    held: dict[fx.Node, Any] = dict(zip(graph.find_nodes(op="placeholder"), inputs, strict=True))
    for node in graph.nodes:
        if node in needed and node.op == "get_attr":
            held[node] = getattr(graph.owning_module, node.target)
        elif node in needed and node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), held.__getitem__)
            held[node] = node.target(*args, **kwargs)
    return {n.name: held[n] for n in held if n.name in names}


def trace(programs: Sequence[Program]) -> Trace:
    """Trace programs of the same sizes together.

    Raises:
        TraceError: if one of them does not run on fake tensors, or only by fixing a size.
    """
    first = programs[0]
    shape_env = ShapeEnv() if first.dynamic else None
    mode = FakeTensorMode(shape_env=shape_env, allow_non_fake_inputs=True)
    mode.cache_enabled = shape_env is None
    fakes, sizes = _fake_inputs(mode, first)

    def together(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(result for program in programs for result in program(*inputs))

    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.no_grad())
        if shape_env is not None:
            stack.enter_context(enable_python_dispatcher())
        else:
            stack.enter_context(mode)
        try:
            function = torch.func.functionalize(together, remove="mutations")
            graph = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*fakes)
        except Exception as error:
            raise TraceError(f"{type(error).__name__}: {error}") from error
    if shape_env is not None and shape_env.replacements:
        raise TraceError(f"tracing fixes a size: {dict(shape_env.replacements)}")
    flat = list(graph.graph.output_node().args[0])
    outputs: list[list[Any]] = []
    for program in programs:
        outputs.append([flat.pop(0) for _ in program.results])
    extents = {a: int_expr(sizes[a]) for a in _AXES}
    symbols = {a: sizes[a].node.expr if isinstance(sizes[a], torch.SymInt) else sizes[a] for a in _AXES}
    return Trace(tuple(programs), graph, outputs, extents, shape_env, symbols)


def _fake_inputs(mode: FakeTensorMode, program: Program) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Every input as a fake tensor, and B, H, Q and K as they know them."""
    plain = program.sizes
    sizes: dict[str, Any] = dict(plain)
    if program.dynamic:
        lead = torch.zeros(plain["B"], plain["H"], plain["Q"])
        context = StatelessSymbolicContext([DimDynamic.DYNAMIC] * 3)
        fake = mode.from_tensor(lead, symbolic_context=context)
        sizes |= {"B": fake.shape[0], "H": fake.shape[1], "Q": fake.shape[2], "K": fake.shape[2]}
        if not program.square:
            context = StatelessSymbolicContext([DimDynamic.DYNAMIC])
            sizes["K"] = mode.from_tensor(torch.zeros(plain["K"]), symbolic_context=context).shape[0]
    with mode:
        fakes = [torch.empty(input_shape(spec, sizes), dtype=spec.dtype) for spec in INPUTS]
    assert fakes[0].shape[-1] == HEAD_DIM
    return fakes, sizes
