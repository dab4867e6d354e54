"""Programs that return what they would write: the same values, written by the caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from seq2seq_recipes import Exported, each
from target_checks import assert_decodes, assert_forgotten_writes_are_found, assert_generates
from torch import Tensor
from torch.export import Dim, export
from torch.export.graph_signature import OutputKind
from torch.utils._pytree import tree_leaves

from attnlower.errors import ProgramError
from attnlower.lowering.seq2seq import Seq2SeqPrograms
from attnlower.lowering.seq2seq.functional import FunctionalProgram, functional
from attnlower.lowering.seq2seq.targets.fingerprint import fingerprint
from attnlower.lowering.seq2seq.targets.flat import Interface, flat_runtime
from attnlower.lowering.seq2seq.targets.inputs import fitted, input_forms


def runner(part: FunctionalProgram) -> Callable[..., Any]:
    module = part.program.module(check_guards=False)
    structure = part.program.call_spec.in_spec

    def run(inputs: Any) -> Any:
        positional, keywords = torch.utils._pytree.tree_unflatten(list(inputs), structure)
        return tree_leaves(module(*positional, **keywords))

    return run


def functionally(programs: Seq2SeqPrograms, forget: bool = False) -> Seq2SeqPrograms:
    """The programs made functional and run by PyTorch; with writes that nobody makes, if asked."""
    parts = {name: functional(program, {}) for name, program in programs.programs.items()}
    interfaces = {name: Interface(part.outputs, () if forget else part.writes) for name, part in parts.items()}
    forms = {name: input_forms(program) for name, program in programs.programs.items()}
    runtime = flat_runtime("functional", {name: runner(part) for name, part in parts.items()}, interfaces, forms)
    return replace(programs, runtime=runtime)


@pytest.mark.parametrize("pair", each("t5"), indirect=True)
def test_functional_programs_are_the_programs(pair: Exported) -> None:
    programs = functionally(pair.programs)
    assert_generates(pair, programs)
    assert_decodes(pair, programs)
    assert_forgotten_writes_are_found(pair, programs)
    with pytest.raises(AssertionError):
        assert_decodes(pair, functionally(pair.programs, forget=True))


@pytest.mark.parametrize("pair", each("t5"), indirect=True)
@pytest.mark.parametrize("name, tokens", [("prefill", 5), ("step", 1)])
def test_only_the_new_rows_leave_a_program(pair: Exported, name: str, tokens: int) -> None:
    part = functional(pair.programs.programs[name], {})
    assert {spec.kind for spec in part.program.graph_signature.output_specs} == {OutputKind.USER_OUTPUT}
    session = pair.programs.session(*pair.source(2, 7))
    with torch.no_grad():
        session.decode(torch.full((6, 4), 11))
        assert session._self is not None
        given = (torch.full((2, 3, tokens), 12), torch.tensor([4]), session._mask, *session._self, *session._cross)
        before = [t.clone() for t in tree_leaves(given)]
        results = runner(part)(tree_leaves(given))
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(given), before, strict=True))
    assert part.outputs == 1 and results[0].shape[:3] == (2, 3, tokens)
    assert [write.dim for write in part.writes] == [3] * len(tree_leaves(session._self))
    for write in part.writes:
        assert write.index is not None
        start = 4 if name == "step" else 0
        assert results[write.index].tolist() == list(range(start, start + tokens))
        assert results[write.values].shape[3] == tokens


CASES: dict[str, tuple[Callable[[Tensor, Tensor], Any], list[int | None]]] = {
    "rows": (lambda x, i: x.index_copy_(1, i, x.new_ones(x.shape[0], 2, 4)).sum(), [1]),
    "rows, from behind": (lambda x, i: x.index_copy_(-2, i, x.new_ones(x.shape[0], 2, 4)).sum(), [1]),
    "put": (lambda x, i: torch.ops.aten.index_put_(x, [None, i], x.new_ones(x.shape[0], 2, 4)).sum(), [1]),
    "negative places": (lambda x, i: torch.ops.aten.index_put_(x, [None, i - 9], x[:, :2] * 2).sum(), [1]),
    "put, broadcast": (lambda x, i: torch.ops.aten.index_put_(x, [None, i], x.new_ones(2, 4)).sum(), [None]),
    "put, one for all": (lambda x, i: torch.ops.aten.index_put_(x, [None, i], x.new_ones(1, 1, 4)).sum(), [None]),
    "accumulated": (lambda x, i: torch.ops.aten.index_put_(x, [None, i], x[:, :2] * 2, True).sum(), [None]),
    "two places": (lambda x, i: torch.ops.aten.index_put_(x, [None, i, i % 4], x[:, :2, 0] * 3).sum(), [None]),
    "twice": (lambda x, i: x.index_copy_(1, i, x[:, :2] * 2).index_copy_(1, i + 1, x[:, :2] * 5).sum(), [None]),
    "whole": (lambda x, i: x.mul_(2).sum(), [None]),
    "what it returns": (lambda x, i: x.mul_(2), [None]),
    "a view of what it writes": (lambda x, i: (x[:, :1], x.index_copy_(1, i, x[:, :2] * 2).sum())[1], [1]),
}


@pytest.mark.parametrize("name", CASES)
def test_writes_of_every_form(name: str) -> None:
    function, dims = CASES[name]

    class Model(torch.nn.Module):
        def forward(self, x: Tensor, i: Tensor) -> Any:
            return function(x, i)

    program = export(Model(), (torch.randn(3, 9, 4), torch.tensor([2, 5])), dynamic_shapes=({0: Dim("b", min=1)}, None))
    part = functional(program, {})
    assert [write.dim for write in part.writes] == dims
    for batch in (1, 2, 3):
        given = [torch.randn(batch, 9, 4), torch.tensor([6, 3])]
        expected = [t.clone() for t in given]
        wanted = function(*expected)
        results = runner(part)(given)
        for write in part.writes:
            write.make(given, results)
        torch.testing.assert_close(results[0], wanted)
        torch.testing.assert_close(given, expected)


def test_two_inputs_change_places() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            before = x.clone()
            x.copy_(y)
            y.copy_(before)
            return x - y

    part = functional(export(Model(), (torch.ones(3), torch.zeros(3))), {})
    given = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])]
    results = runner(part)(given)
    for write in part.writes:
        write.make(given, results)
    assert [t.tolist() for t in given] == [[4.0, 5.0, 6.0], [1.0, 2.0, 3.0]]


def test_writes_into_buffers_are_refused() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(x)
            return x * self.seen

    with pytest.raises(ProgramError, match="buffers"):
        functional(export(Model(), (torch.ones(3),)), {})


class Scale(torch.nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = torch.nn.Parameter(torch.tensor([by]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


def test_fingerprints_tell_programs_apart() -> None:
    x = torch.ones(4, 2)
    same = [export(Scale(2.0), (x,)) for _ in range(2)]
    others = [
        export(Scale(3.0), (x,)),
        export(Scale(2.0), (torch.ones(5, 2),)),
        export(Scale(2.0), (x,), dynamic_shapes=({0: Dim("b", min=1, max=8)},)),
        export(Scale(2.0), (x,), dynamic_shapes=({0: Dim("b", min=1, max=9)},)),
    ]
    marks = [fingerprint(program, made_with="") for program in (*same, *others)]
    assert marks[0] == marks[1]
    assert len(set(marks)) == 1 + len(others)
    assert fingerprint(same[0], made_with="1.5") != marks[0]


@pytest.mark.parametrize("pair", each("t5"), indirect=True)
def test_masks_of_any_type_and_layout(pair: Exported) -> None:
    """What eager takes gives the same; the near misses are refused, not read as what they are not."""
    programs = functionally(pair.programs)
    source, mask = pair.source(3, 9, "right")
    assert mask is not None
    wanted = pair.programs.generate(source, mask, max_new_tokens=6)
    for other in (mask.bool(), mask.int(), mask.to(torch.uint8), mask.t().contiguous().t()):
        with torch.no_grad():
            session = programs.session(source.t().contiguous().t(), other)
            assert session.decode(torch.full((3, 2), 11)).shape[:2] == (3, 2)
        assert programs.generate(source, other, max_new_tokens=6).tolist() == wanted.tolist()
    forms = input_forms(pair.programs.programs["encoder"])
    for wrong in (mask.float(), mask[0], mask[..., None]):
        with pytest.raises(ProgramError, match="attention_mask"):
            fitted((source, wrong), forms)
    with pytest.raises(ProgramError, match="2 tensors, not 1"):
        fitted((source,), forms)
