"""One canonical call under some passes: equal to eager at every size, no guard added, nothing to do a second time."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx
from torch.export import Dim, ExportedProgram

import attnlower  # registers the op
from attnlower.lowering.exported import lifted_constants, size_ranges, with_graph
from attnlower.lowering.passes import Canonicalize
from attnlower.lowering.passes.base import PassContext, Site
from attnlower.lowering.pipeline import check_order
from attnlower.lowering.result import PassResult
from attnlower.lowering.targets import TARGETS, Target
from attnlower.patterns import analyze
from attnlower.patterns.aliasing import op_name
from attnlower.patterns.calls.canonical import canonical_arguments, is_canonical
from attnlower.patterns.calls.strict import strict_problem
from attnlower.patterns.metadata import tensor_of
from attnlower.patterns.sizes import shape_env_of

assert attnlower
Axes = tuple[str | int, ...]
Shapes = Mapping[str, Axes]
NEG = float("-inf")

TRACED = {"b": 2, "q": 5, "k": 7, "h": 4}
OTHERS = (
    {"b": 2, "q": 5, "k": 7, "h": 4},
    {"b": 1, "q": 1, "k": 1, "h": 4},
    {"b": 1, "q": 6, "k": 6, "h": 4},
    {"b": 3, "q": 1, "k": 9, "h": 4},
    {"b": 4, "q": 8, "k": 3, "h": 4},
    {"b": 2, "q": 3, "k": 1, "h": 4},
)
"""Sizes by letter: batch, queries, keys, and a second symbol for the heads where they are dynamic."""

SELF: Shapes = {"query": ("b", 4, "q", 8), "key": ("b", 4, "k", 8), "value": ("b", 4, "k", 8)}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9, torch.float16: 4e-3, torch.bfloat16: 3e-2}


class Attend(torch.nn.Module):
    """One canonical call on its inputs, which `settings` may turn into the op's arguments."""

    def __init__(self, settings: Mapping[str, Any], prepare: Callable[..., dict[str, Any]] | None) -> None:
        super().__init__()
        self.settings, self.prepare = dict(settings), prepare

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        args = dict(inputs) if self.prepare is None else self.prepare(**inputs)
        return torch.ops.attnlower.attention(**args, **self.settings)


def random_inputs(shapes: Shapes, sizes: Mapping[str, int], dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
    """Random tensors; masks have rows without any key, biases too."""
    torch.manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for name, axes in shapes.items():
        shape = [sizes[a] if isinstance(a, str) else a for a in axes]
        tensor = torch.randn(shape, dtype=torch.float32)
        if name in ("mask", "padding"):
            found[name] = tensor > 0.3
        elif name == "bias":
            found[name] = tensor.masked_fill(torch.rand(shape) < 0.4, NEG).to(dtype)
        elif name == "wide_bias":
            found[name] = tensor.masked_fill(torch.rand(shape) < 0.4, NEG)
        else:
            found[name] = tensor.to(dtype)
    return found


def export_call(model: torch.nn.Module, shapes: Shapes, dtype: torch.dtype, separate: bool = False) -> ExportedProgram:
    """torch.export with a symbol per letter, or a symbol of its own for every axis with a letter."""
    letters = {a for axes in shapes.values() for a in axes if isinstance(a, str)}
    named = {letter: Dim(letter, min=1, max=512) for letter in letters}
    dims = {
        name: {i: Dim.DYNAMIC if separate else named[a] for i, a in enumerate(axes) if isinstance(a, str)}
        for name, axes in shapes.items()
    }
    args = random_inputs(shapes, TRACED, dtype)
    return torch.export.export(model.eval(), (args,), dynamic_shapes=(dims,), strict=False)


def env_state(gm: fx.GraphModule) -> Any:
    """What the ShapeEnv knows."""
    env = shape_env_of(t for n in gm.graph.nodes if (t := tensor_of(n)) is not None)
    if env is None:
        return None
    ranges = {str(s): str(r) for s, r in env.var_to_range.items()}
    return len(env.guards), dict(env.replacements), ranges, len(env.axioms), len(env.deferred_runtime_asserts)


def passed(program: ExportedProgram, passes: Sequence[Any], target: Target) -> tuple[fx.GraphModule, list[PassResult]]:
    """The graph after Canonicalize and the passes; they add no guard, and have nothing to do a second time."""
    from attnlower.lowering.copying import copy_graph_module

    every = (Canonicalize(), *passes)
    check_order(every)
    before = env_state(program.graph_module)
    analysis = analyze(program.graph_module, constants=lifted_constants(program), ranges=size_ranges(program))
    gm, nodes = copy_graph_module(program.graph_module)
    sites = [Site(found, nodes[found.call.node]) for found in analysis.sites]
    context = PassContext(gm, nodes, sites, target, prover=analysis.prover)
    results = [entry.run(context) for entry in every]
    gm.graph.lint()
    code = str(gm.graph)
    again = [entry.run(context) for entry in passes]
    assert not [r for r in again if r.changes], "a second run changes something"
    assert str(gm.graph) == code
    assert env_state(program.graph_module) == before, "a guard was added"
    for node in gm.graph.nodes:
        if node.op == "call_function":
            assert "val" in node.meta, node.name
    gm.recompile()
    return gm, results


@dataclass
class Checked:
    """What became of a call.

    Attributes:
        gm: the graph after the passes.
        results: what the passes said.
    """

    gm: fx.GraphModule
    results: list[PassResult]

    @property
    def calls(self) -> list[fx.Node]:
        """The canonical calls that are left."""
        return [n for n in self.gm.graph.nodes if is_canonical(n)]

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the only call."""
        (call,) = self.calls
        return canonical_arguments(call)

    @property
    def problem(self) -> str:
        """Why the only call is not strict."""
        (call,) = self.calls
        return strict_problem(call)

    @property
    def ops(self) -> Counter[str]:
        """How often each op occurs."""
        return Counter(op_name(n) for n in self.gm.graph.nodes if n.op == "call_function")

    @property
    def changes(self) -> list[str]:
        """What the passes under test did."""
        return [c.what for r in self.results[1:] for c in r.changes]

    @property
    def what_decomposed(self) -> str:
        """What `decompose_attention` did to the only call."""
        (what,) = [c.what for r in self.results if r.name == "decompose_attention" for c in r.changes]
        return what

    @property
    def refusals(self) -> list[str]:
        """What they refused."""
        return [f.reason for r in self.results[1:] for f in r.refusals]


def recorded_shapes_hold(program: ExportedProgram, gm: fx.GraphModule, args: Any, sizes: Mapping[str, int]) -> None:
    """The static sizes and dtypes that the graph records are those that its nodes have."""
    from torch.fx import Interpreter

    class Watch(Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            recorded = tensor_of(n)
            if isinstance(value, torch.Tensor) and recorded is not None:
                assert value.dtype is recorded.dtype, n.name
                assert value.dim() == recorded.dim(), n.name
                for real, size in zip(value.shape, recorded.shape, strict=True):
                    assert not isinstance(size, int) or size == real, n.name
                    if isinstance(size, torch.SymInt) and len(size.node.expr.free_symbols) == 1:
                        symbol = next(iter(size.node.expr.free_symbols))
                        known = seen.setdefault(str(symbol), real) if size.node.expr == symbol else None
                        assert known is None or known == real, f"{n.name}: {size} is {real}, not {known}"
            return value

    seen: dict[str, int] = {}
    Watch(gm).run(*args)


def check(
    passes: Sequence[Any],
    shapes: Shapes = SELF,
    settings: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    target: str | Target = "eager",
    prepare: Callable[..., dict[str, Any]] | None = None,
    expected: Callable[..., torch.Tensor] | None = None,
    sizes: Sequence[Mapping[str, int]] = OTHERS,
    separate: bool = False,
    tolerance: float | None = None,
) -> Checked:
    """Run passes over a call and compare with eager at every size.

    Args:
        passes: what runs after Canonicalize.
        shapes: the inputs' axes: a number, or the letter of a symbol.
        settings: the op's other arguments.
        dtype: of the floating inputs.
        target: a target or its name.
        prepare: makes the op's tensors from the inputs.
        expected: what the call should give, from the inputs; by default what the op itself gives.
        sizes: the sizes at which outputs are compared.
        separate: every dynamic axis is a symbol of its own.
        tolerance: absolute and relative; by default that of the dtype.
    """
    model = Attend(settings or {}, prepare)
    program = export_call(model, shapes, dtype, separate)
    gm, results = passed(program, passes, TARGETS[target] if isinstance(target, str) else target)
    run = runner(program, gm)
    close = TOLERANCE[dtype] if tolerance is None else tolerance
    for seed, known in enumerate(sizes):
        inputs = random_inputs(shapes, known, dtype, seed)
        want = model(inputs) if expected is None else expected(**inputs)
        got = run(inputs)
        assert got.dtype is want.dtype and got.shape == want.shape
        torch.testing.assert_close(
            got, want, rtol=close, atol=close, equal_nan=True, msg=lambda m, known=known: f"{m}\n{known}"
        )
        placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
        if len(placeholders) == len(inputs):
            recorded_shapes_hold(program, gm, list(inputs.values()), known)
    return Checked(gm, results)


def runner(program: ExportedProgram, gm: fx.GraphModule) -> Callable[..., torch.Tensor]:
    """Calls a rewritten graph with the program's inputs."""
    found: Callable[..., torch.Tensor] = with_graph(program, copy.deepcopy(gm)).module()
    return found


def same(left: torch.Tensor, right: torch.Tensor, tolerance: float | None = None) -> None:
    """Equal shapes, dtypes and, within the dtype's tolerance, values; NaN where the other has NaN."""
    close = TOLERANCE[right.dtype] if tolerance is None else tolerance
    torch.testing.assert_close(left, right, rtol=close, atol=close, equal_nan=True)


@pytest.fixture(scope="session", name="check")
def check_fixture() -> Callable[..., Checked]:
    """Runs passes over a canonical call and compares with eager."""
    return check


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """Pieces of `check` for tests that need them one by one."""
    return SimpleNamespace(
        passed=passed,
        export_call=export_call,
        random_inputs=random_inputs,
        env_state=env_state,
        runner=runner,
        same=same,
        Attend=Attend,
        self_shapes=SELF,
        sizes=OTHERS,
    )


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The dtypes of the floating inputs."""
    found: torch.dtype = request.param
    return found
