"""Conditions on graph inputs: `attention_mask.all()`. Checked per call, or vouched for by the caller of `lower`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import OptionError
from . import build
from .constants import is_plain, same_bits
from .expr import CellRef, Expr, Op, Sort, cells, walk


@dataclass(frozen=True)
class Condition:
    """Every element of an input is (not) equal to a value.

    Attributes:
        label: the user's name of the input, e.g. ``attention_mask``.
        node: name of the graph node that holds it.
        relation: ``!=`` or ``==``.
        value: the number compared with.
    """

    label: str
    node: str
    relation: str
    value: int

    def __str__(self) -> str:
        if self.relation == "!=" and self.value == 0:
            return f"{self.label}.all()"
        return f"({self.label} {self.relation} {self.value}).all()"

    def holds(self, tensor: torch.Tensor) -> bool:
        """The condition's value for an input tensor, read back by the host."""
        if self.relation == "!=":
            counted = tensor if self.value == 0 else tensor != self.value
        else:
            counted = tensor == self.value
        # counting takes half the time of all(), and is a measurable part of a short call
        return int(torch.count_nonzero(counted)) == tensor.numel()

    def implies(self, other: object) -> bool:
        """True if this condition makes another one true (same input)."""
        if not isinstance(other, Condition) or self.node != other.node:
            return False
        if self.relation == other.relation and self.value == other.value:
            return True
        return self.relation == "==" and other.relation == "!=" and self.value != other.value


@dataclass(frozen=True, eq=False)
class ValueCondition:
    """A buffer, or a mask passed in whole, holds what it held at compile time, bit for bit.

    All elements are compared at every call. Nothing less is sound: a tensor's identity and version counter miss writes
    through `.data`, and a buffer may be replaced as a whole. `same_bits` says what that costs.

    Attributes:
        label: what reports call it: "buffer 'bias'", "input 'attention_mask'".
        node: name of the graph node that holds it.
        expected: a copy of the value it had.
    """

    label: str
    node: str
    expected: torch.Tensor

    def __str__(self) -> str:
        return f"{self.label} keeps its value"

    def holds(self, tensor: torch.Tensor) -> bool:
        """True if a tensor holds the expected value."""
        return is_plain(tensor) and same_bits(tensor, self.expected)

    def implies(self, other: object) -> bool:
        """True for the same condition."""
        return self is other


AnyCondition = Condition | ValueCondition
"""What a variant of a program may rest on."""

_ALL = re.compile(r"^(?P<name>[A-Za-z_][\w.\[\]]*)\.all\(\)$")
_COMPARED = re.compile(r"^\(\s*(?P<name>[A-Za-z_][\w.\[\]]*)\s*(?P<relation>==|!=)\s*(?P<value>-?\d+)\s*\)\.all\(\)$")


def parse_conditions(text: str | Iterable[str], inputs: Mapping[str, str]) -> tuple[Condition, ...]:
    """Read assumptions such as ``attention_mask.all()`` or ``(input_ids != 0).all() and attention_mask.all()``.

    Args:
        text: one assumption, several joined by ``and``, or several strings.
        inputs: for each input's name, the name of its node.

    Raises:
        OptionError: if the text is none of these forms or names no input.
    """
    texts = [text] if isinstance(text, str) else list(text)
    found: list[Condition] = []
    for part in (p.strip() for t in texts for p in re.split(r"\s+and\s+", t.strip())):
        match = _ALL.match(part) or _COMPARED.match(part)
        if match is None:
            raise OptionError(
                f"cannot read the assumption {part!r}; write 'attention_mask.all()', '(attention_mask == 1).all()' "
                "or '(input_ids != 0).all()', several joined by 'and'"
            )
        name = match["name"]
        if name not in inputs:
            raise OptionError(f"the assumption {part!r} names no input of the program; inputs are {sorted(inputs)}")
        parts = match.groupdict()
        found.append(Condition(name, inputs[name], parts.get("relation") or "!=", int(parts.get("value") or 0)))
    return tuple(found)


def truth_candidates(value: Expr) -> Iterable[tuple[tuple[Condition, ...], Expr]]:
    """Weakest conditions on inputs first: pairs of conditions and the mask element simplified under them.

    First every test of an input's element against a number is taken to come out as "different" (`attention_mask[b, k]`
    is not 0, `input_ids[b, k]` is not the pad id); then every element is taken to be 1.
    """
    refs = _input_refs(value)
    if not refs:
        return
    weak = _as_different(value, refs)
    if weak is not None:
        yield weak
    if all(ref.dtype is not torch.bool for ref in refs):
        ones = {cell: build.const_float(1.0) if cell.sort is Sort.FLOAT else build.ONE for cell in cells(value)}
        conditions = tuple(Condition(ref.label, ref.node, "==", 1) for ref in refs)
        yield conditions, build.substitute(value, ones)


def _input_refs(value: Expr) -> list[CellRef]:
    """The inputs a mask depends on; none if it depends on anything else."""
    refs: dict[str, CellRef] = {}
    for cell in cells(value):
        if not cell.payload.is_input:
            return []
        refs[cell.payload.node] = cell.payload
    return list(refs.values())


def _as_different(value: Expr, refs: Sequence[CellRef]) -> tuple[tuple[Condition, ...], Expr] | None:
    tests: dict[str, set[int]] = {ref.node: set() for ref in refs}
    replaced: dict[Expr, Expr] = {}
    for part in walk(value):
        tested = _tested_cell(part)
        if tested is not None:
            cell, number = tested
            tests[cell.payload.node].add(number)
            replaced[part] = build.TRUE if part.op is Op.CELL else build.FALSE
    if any(len(numbers) != 1 for numbers in tests.values()):
        return None
    conditions = tuple(Condition(ref.label, ref.node, "!=", next(iter(tests[ref.node]))) for ref in refs)
    return conditions, build.substitute(value, replaced)


def _tested_cell(part: Expr) -> tuple[Expr, int] | None:
    """The input element that a condition compares with a number, and the number."""
    if part.op is Op.CELL and part.sort is Sort.BOOL:
        return part, 0
    if part.op is Op.EQ0:
        constant, terms = build.linear_parts(part.args[0])
        (cell, factor), *others = terms.items()
        if not others and cell.op is Op.CELL and abs(factor) == 1:
            return cell, -constant * factor
    if part.op is Op.APPLY and part.payload == "feq":
        left, right = part.args
        if left.op is Op.CELL and right.is_const and abs(right.value) < 2**24 and right.value == int(right.value):
            return left, int(right.value)
    return None
