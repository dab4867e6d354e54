"""Writes taken out of a graph and put back: the program computes and writes what eager does, call after call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from attnlower.errors import TensorRTError
from attnlower.lowering.passes.cache_writes import put_back_writes, take_out_writes
from attnlower.lowering.passes.scalar_rank import write_scalar_rank
from attnlower.lowering.writing import copy_into, put_into, scatter_into

_ATEN = torch.ops.aten


class Stateful(torch.nn.Module):
    """`step(module, x, position)` on a module with caches of 8 slots (1, 2, 8, 4) and a counter."""

    def __init__(self, step: Callable[..., Any]) -> None:
        super().__init__()
        self.step = step
        torch.manual_seed(0)
        self.register_buffer("keys", torch.randn(1, 2, 8, 4))
        self.register_buffer("values", torch.randn(1, 2, 8, 4))
        self.register_buffer("count", torch.tensor(1))
        self.register_buffer("weight", torch.randn(4, 4))

    def forward(self, x: Tensor, position: Tensor) -> Any:
        return self.step(self, x, position)


def index_copy(m: Any, x: Tensor, position: Tensor) -> Tensor:
    m.keys.index_copy_(2, position, x @ m.weight)
    return m.keys.sum(2)


def index_put(m: Any, x: Tensor, position: Tensor) -> Tensor:
    m.keys[:, :, position] = x
    return m.keys.sum(2)


def accumulated(m: Any, x: Tensor, position: Tensor) -> Tensor:
    _ATEN.index_put_(m.keys, [None, None, position], x, True)
    return m.keys.sum(2)


def scattered(m: Any, x: Tensor, position: Tensor) -> Tensor:
    m.keys.scatter_(2, position[None, None, :, None].expand_as(x), x)
    return m.keys.sum(2)


def sliced(m: Any, x: Tensor, position: Tensor) -> Tensor:
    m.keys[:, :, 3:5] = x
    return m.keys.sum(2) + position.sum()


def counted(m: Any, x: Tensor, position: Tensor) -> Tensor:
    m.keys.index_copy_(2, torch.arange(x.shape[2]) + m.count, x)
    m.count.add_(x.shape[2])
    return m.keys.sum(2) * m.count


def twice(m: Any, x: Tensor, position: Tensor) -> Tensor:
    m.keys.index_copy_(2, position, x)
    m.keys.index_copy_(2, position + 3, 2 * x)
    return m.keys.sum(2)


def mixed(m: Any, x: Tensor, position: Tensor) -> Tensor:
    """A write of rows and a scatter into one buffer, whose order matters."""
    m.keys.index_copy_(2, position, x)
    m.keys.scatter_(2, position[None, None, :, None].expand_as(x), 2 * x)
    return m.keys.sum(2)


def both(m: Any, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    m.keys.index_copy_(2, position, x)
    m.values.index_copy_(2, position, -x)
    return m.keys.sum(2), m.values.mean()


def rolled(m: Any, x: Tensor, position: Tensor) -> Tensor:
    m.keys.copy_(torch.cat([m.keys[:, :, x.shape[2] :], x], 2))
    return m.keys.sum(2) + position.sum()


def rolled_in_place(m: Any, x: Tensor, position: Tensor) -> Tensor:
    new = m.keys.roll(-1, dims=2)
    new[:, :, torch.tensor([7])] = x[:, :, :1]
    m.keys.copy_(new)
    return m.keys.sum(2) + position.sum()


def rows_of_itself(m: Any, x: Tensor, position: Tensor) -> Tensor:
    """The rows that are written are a view of what is written."""
    m.keys.index_copy_(2, position, m.keys[:, :, 5:7])
    return m.keys.sum(2) + x.sum()


def swapped(m: Any, x: Tensor, position: Tensor) -> Tensor:
    before = m.keys.clone()
    m.keys.copy_(m.values)
    m.values.copy_(before)
    return m.keys.sum(2) + x.sum() + position.sum()


def old_value_returned(m: Any, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    before = m.keys.clone()
    m.keys.index_copy_(2, position, x)
    return before, m.keys.transpose(1, 2)


def never_read(m: Any, x: Tensor, position: Tensor) -> Tensor:
    m.keys.copy_(x.sum() + torch.zeros(1, 2, 8, 4))
    return x + position.sum()


def into_an_input(m: Any, x: Tensor, position: Tensor) -> Tensor:
    m.keys.index_copy_(2, position, x)
    x.mul_(2)
    return m.keys.sum(2)


STEPS = {
    step.__name__: step
    for step in (
        *(index_copy, index_put, accumulated, scattered, sliced, counted, twice, mixed, both, rolled, rolled_in_place),
        *(rows_of_itself, swapped, old_value_returned, never_read, into_an_input),
    )
}


def exported(model: torch.nn.Module, args: tuple[Any, ...]) -> fx.GraphModule:
    """As torch_tensorrt sees it: core ATen, the writes at the end."""
    program = torch.export.export(copy.deepcopy(model), copy.deepcopy(args), strict=False)
    return program.run_decompositions().module(check_guards=False)


def without_unused(gm: fx.GraphModule) -> None:
    """What torch_tensorrt does: nodes that nobody uses go, whatever they write."""
    for node in reversed(list(gm.graph.nodes)):
        if node.op not in ("placeholder", "output") and not node.users:
            gm.graph.erase_node(node)
    gm.recompile()


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(1, 2, 2, 4), torch.tensor([1, 2])


def targets(gm: fx.GraphModule) -> list[Any]:
    return [n.target for n in gm.graph.nodes if n.op == "call_function"]


def writes(gm: fx.GraphModule) -> list[fx.Node]:
    """The calls of the ops that write."""
    ops = [op._opoverload for op in (copy_into, put_into, scatter_into)]
    return [n for n in gm.graph.nodes if n.target in ops]


def same_calls(model: torch.nn.Module, gm: fx.GraphModule, calls: int = 3) -> None:
    """Both give the same outputs, buffers and inputs, call after call; the state of both changes."""
    model = copy.deepcopy(model)
    gm.load_state_dict(model.state_dict(), strict=False)
    for number in range(calls):
        x, position = inputs()
        position = position + number
        ours, eagers = x.clone(), x.clone()
        torch.testing.assert_close(gm(ours, position), model(eagers, position))
        torch.testing.assert_close(ours, eagers)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(dict(gm.named_buffers())[name], buffer)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_what_is_written_survives(step: Callable[..., Any]) -> None:
    model = Stateful(step)
    gm = exported(model, inputs())
    assert _ATEN.copy_.default in targets(gm)
    taken = take_out_writes(gm)
    assert taken.changed
    without_unused(gm)
    assert not any(t._schema.is_mutable for t in targets(gm) if isinstance(t, torch._ops.OpOverload))
    write_scalar_rank(gm)
    assert put_back_writes(gm).changed
    same_calls(model, gm)


@pytest.mark.parametrize("step", [index_copy, rolled, into_an_input], ids=lambda step: step.__name__)
def test_without_the_pass_it_does_not(step: Callable[..., Any]) -> None:
    """The baseline: the graph computes the first call and forgets."""
    model = Stateful(step)
    gm = exported(model, inputs())
    without_unused(gm)
    with pytest.raises(AssertionError):
        same_calls(model, gm)


@pytest.mark.parametrize(
    "step, op",
    [
        (index_copy, put_into),
        (index_put, put_into),
        (scattered, scatter_into),
        (twice, put_into),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_rows_are_written_in_place(step: Callable[..., Any], op: Any) -> None:
    """No whole cache leaves the graph: `copy_(b, index_put(b, i, u))` is `index_put_(b, i, u)`."""
    gm = exported(Stateful(step), inputs())
    take_out_writes(gm)
    (output,) = (n for n in gm.graph.nodes if n.op == "output")
    assert all(value.meta["val"].shape != (1, 2, 8, 4) for value in output.args[0])
    put_back_writes(gm)
    (write,) = writes(gm)
    assert write.target is op._opoverload and len(write.args[0]) == (2 if step is twice else 1)


@pytest.mark.parametrize("step", [rolled, rolled_in_place, swapped, accumulated, mixed], ids=lambda step: step.__name__)
def test_what_moves_is_copied_whole(step: Callable[..., Any]) -> None:
    """Near misses: an index_put into something else than the buffer itself, or one that adds, writes no rows."""
    gm = exported(Stateful(step), inputs())
    take_out_writes(gm)
    put_back_writes(gm)
    (write,) = writes(gm)
    assert write.target is copy_into._opoverload


def test_a_view_of_what_is_written_is_copied_first() -> None:
    gm = exported(Stateful(rows_of_itself), inputs())
    take_out_writes(gm)
    put_back_writes(gm)
    (write,) = writes(gm)
    assert write.args[3][0].target is _ATEN.clone.default


@pytest.mark.parametrize("step", [both, counted], ids=lambda step: step.__name__)
def test_writes_wait_for_every_result(step: Callable[..., Any]) -> None:
    """A partitioner must not run a write before an engine that still reads."""
    gm = exported(Stateful(step), inputs())
    take_out_writes(gm)
    put_back_writes(gm)
    (output,) = (n for n in gm.graph.nodes if n.op == "output")
    for write in writes(gm):
        assert set(output.args[0]) <= set(write.args[-1])
        assert all(n.target is _ATEN.alias.default for n in write.args[0])


def test_a_program_without_writes_is_left_alone() -> None:
    gm = exported(Stateful(lambda m, x, position: x @ m.weight + m.keys.sum() + position.sum()), inputs())
    code = gm.code
    assert not take_out_writes(gm).changed and not put_back_writes(gm).changed
    assert gm.code == code


def test_a_write_into_an_intermediate_is_none() -> None:
    def step(m: Any, x: Tensor, position: Tensor) -> Tensor:
        y = x + 1
        y[:, :, 0] = 3.0
        return y + position.sum()

    gm = exported(Stateful(step), inputs())
    assert not take_out_writes(gm).changed
    same_calls(Stateful(step), gm)


class Raw:
    """Graphs by hand, for what export does not give."""

    def __init__(self) -> None:
        self.root = torch.nn.Module()
        self.root.register_buffer("keys", torch.zeros(3))
        self.graph = fx.Graph()
        self.x = self.graph.placeholder("x")
        self.keys = self.graph.get_attr("keys")
        for node in (self.x, self.keys):
            node.meta["val"] = torch.zeros(3)

    def call(self, target: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        node.meta["val"] = torch.zeros(3)
        return node

    def module(self, *outputs: fx.Node) -> fx.GraphModule:
        self.graph.output(tuple(outputs))
        return fx.GraphModule(self.root, self.graph)


def in_place_in_the_middle(raw: Raw) -> fx.GraphModule:
    written = raw.call(_ATEN.add_.Tensor, raw.keys, raw.x)
    return raw.module(raw.call(_ATEN.mul.Tensor, written, raw.x))


def in_place_unused(raw: Raw) -> fx.GraphModule:
    raw.call(_ATEN.add_.Tensor, raw.keys, raw.x)
    return raw.module(raw.x)


def read_after_the_write(raw: Raw) -> fx.GraphModule:
    raw.call(_ATEN.copy_.default, raw.keys, raw.x)
    return raw.module(raw.call(_ATEN.mul.Tensor, raw.keys, raw.x))


def written_twice(raw: Raw) -> fx.GraphModule:
    raw.call(_ATEN.copy_.default, raw.keys, raw.x)
    raw.call(_ATEN.copy_.default, raw.keys, raw.call(_ATEN.neg.default, raw.x))
    return raw.module(raw.x)


def through_a_view(raw: Raw) -> fx.GraphModule:
    raw.call(_ATEN.copy_.default, raw.call(_ATEN.view.default, raw.keys, [3]), raw.x)
    return raw.module(raw.x)


@pytest.mark.parametrize(
    "build", [in_place_in_the_middle, in_place_unused, read_after_the_write, written_twice], ids=lambda b: b.__name__
)
def test_what_is_not_understood_is_refused(build: Callable[[Raw], fx.GraphModule]) -> None:
    gm = build(Raw())
    code = gm.code
    with pytest.raises(TensorRTError, match="would forget"):
        take_out_writes(gm)
    assert gm.code == code


def test_a_write_through_a_view_is_refused() -> None:
    with pytest.raises(TensorRTError, match="would forget"):
        take_out_writes(through_a_view(Raw()))


def test_a_graph_that_returns_no_tuple_is_refused() -> None:
    raw = Raw()
    raw.call(_ATEN.copy_.default, raw.keys, raw.x)
    raw.graph.output(raw.x)
    with pytest.raises(TensorRTError, match="must return a tuple"):
        take_out_writes(fx.GraphModule(raw.root, raw.graph))


def test_losing_the_writes_is_an_error() -> None:
    """A lowering pass that makes a new module of the graph, without its meta, must not go unnoticed."""
    gm = exported(Stateful(index_copy), inputs())
    take_out_writes(gm)
    other = fx.GraphModule(gm, gm.graph)
    other.meta = {}
    with pytest.raises(TensorRTError, match="were lost"):
        put_back_writes(other)


def test_scalars_keep_their_rank() -> None:
    raw = Raw()
    total = raw.call(_ATEN.sum.default, raw.x)
    twice = raw.call(_ATEN.mul.Tensor, total, 2)
    for node in (total, twice):
        node.meta["val"] = torch.tensor(0.0)
    gm = raw.module(raw.call(_ATEN.neg.default, raw.x), twice)
    result = write_scalar_rank(gm)
    gm.recompile()
    assert [change.node for change in result.changes] == [total.name, twice.name]
    assert all(set(n.users) <= {n.next} for n in (total, twice)) and total.next.target is _ATEN.view.default
    torch.testing.assert_close(gm(torch.ones(3)), (-torch.ones(3), torch.tensor(6.0)))


def test_views_and_larger_tensors_have_their_rank() -> None:
    raw = Raw()
    first = raw.call(_ATEN.select.int, raw.x, 0, 0)
    first.meta["val"] = torch.tensor(0.0)
    gm = raw.module(raw.call(_ATEN.mul.Tensor, raw.x, first))
    assert not write_scalar_rank(gm).changed
