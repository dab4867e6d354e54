"""Made-up inputs for a mask that depends on data, so that a reader sees what such a mask looks like.

Which input gets what is told by how the mask reads it, never by its name: an element at the key's own position that
can block it alone is padding, one compared between query and key for equality is a document's number, one compared for
order (or with its neighbour) is a position, which restarts in each document where there are documents. What is drawn
with such inputs is an example and is called so; nothing is proved from it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from .. import build
from ..expr import Expr, Op, Sort, cells, coords, walk
from ..facts import Facts

_DOCUMENTS = (0.3, 0.7)
"""Where the second and the third document begin, as shares of the row."""
_PADDED = 4
"""One key in so many is padding."""


@dataclass(frozen=True)
class Example:
    """Made-up inputs.

    Attributes:
        tensors: by label.
        notes: what they are, one sentence each.
    """

    tensors: Mapping[str, torch.Tensor]
    notes: tuple[str, ...]


class _Role(enum.Enum):
    PADDING = enum.auto()
    PREFIX = enum.auto()
    FLAGGED = enum.auto()
    BREAKS = enum.auto()
    DOCUMENTS = enum.auto()
    POSITIONS = enum.auto()
    QUERY_POSITIONS = enum.auto()
    OFFSET = enum.auto()
    LENGTH = enum.auto()
    NOTHING = enum.auto()


def example_inputs(
    allowed: Expr, facts: Facts, chosen: Mapping[str, int], extents: Mapping[str, int], batch: int = 0
) -> Example | None:
    """Inputs under which the mask is drawn as an example; None if its shape of use suggests none.

    Args:
        allowed: the mask's formula.
        facts: extents of the coordinates.
        chosen: a number for every size symbol.
        extents: the size of every axis.
        batch: the row that is going to be drawn; even rows are padded on the right, odd ones on the left.
    """
    by_label: dict[str, list[Expr]] = {}
    for cell in cells(allowed):
        by_label.setdefault(cell.payload.label, []).append(cell)
    numbers = Facts({}, {n: build.const_int(v) for n, v in extents.items()})
    tensors: dict[str, torch.Tensor] = {}
    notes: list[str] = []
    for label, uses in by_label.items():
        role = _role(allowed, uses, set(facts.extents))
        if role is None:
            return None
        maker = _Maker(allowed, uses, label, extents, batch)
        row, note = maker.make(role)
        shape = _shape(uses, numbers, chosen, extents)
        fits = shape if not shape or role in (_Role.OFFSET, _Role.LENGTH, _Role.NOTHING) else (*shape[:-1], -1)
        tensors[label] = _spread(row, shape, fits)
        notes.append(note)
    return Example(tensors, tuple(notes)) if tensors else None


def _spread(row: torch.Tensor, shape: Sequence[int], fits: Sequence[int]) -> torch.Tensor:
    """A row for every index of the leading axes, repeated at its end where the axis is longer."""
    if not row.dim():
        return row.expand(tuple(shape)).clone()
    missing = shape[-1] - row.shape[0]
    longer = torch.cat([row, row[-1:].expand(missing)]) if missing > 0 else row[: shape[-1]]
    return longer.expand(tuple(fits)).clone()


def _shape(
    uses: Sequence[Expr], numbers: Facts, chosen: Mapping[str, int], extents: Mapping[str, int]
) -> tuple[int, ...]:
    """Sizes of a tensor that hold every index it is read at."""
    known = {build.size(n): build.const_int(v) for n, v in chosen.items()}
    shape = [1] * len(uses[0].args)
    for use in uses:
        for axis, index in enumerate(use.args):
            high = numbers.bounds(build.substitute(index, known))[1]
            shape[axis] = max(shape[axis], max(extents.values()) if high is None else high + 1)
    return tuple(shape)


def _role(allowed: Expr, uses: Sequence[Expr], axes: set[str]) -> _Role | None:
    """What an input seems to be for; None for one that depends on query and key at once (a whole mask)."""
    used = [{e.payload for a in use.args for e in walk(a) if e.op is Op.COORD} for use in uses]
    if any({"q", "k"} <= names for names in used):
        return None
    at_query, at_key = any("q" in names for names in used), any("k" in names for names in used)
    in_sums = [use for use, names in zip(uses, used, strict=True) if names - axes]
    blocks_alone = _tested(build.conjuncts(allowed), uses) is not None
    if at_query and at_key and not _compared(allowed, uses):
        return _Role.PADDING if blocks_alone else _Role.FLAGGED
    if (at_query and at_key) or (len(in_sums) > 1 and not at_key):
        return _Role.POSITIONS if _ordered(allowed, uses) or len(in_sums) > 1 else _Role.DOCUMENTS
    if at_key:
        return _Role.PADDING if blocks_alone or _tested(walk(allowed), uses) is None else _Role.PREFIX
    if in_sums:
        return _Role.BREAKS
    return _Role.QUERY_POSITIONS if at_query else _scalar_role(allowed, uses)


def _tested(terms: Iterable[Expr], uses: Sequence[Expr]) -> tuple[float, float] | None:
    """Values for which one of the terms, a condition on one of the elements alone, holds and does not hold."""
    for term in terms:
        found = cells(term) if term.sort is Sort.BOOL else []
        if len(found) != 1 or found[0] not in uses:
            continue
        tried = {v: _at(term, found[0], v) for v in _candidates(term)}
        holds, fails = (next((v for v, known in tried.items() if known is wanted), None) for wanted in (True, False))
        if holds is not None and fails is not None:
            return holds, fails
    return None


def _at(term: Expr, cell: Expr, value: float) -> bool | None:
    """The truth of a condition on one element at a value of it."""
    if cell.sort is Sort.BOOL:
        constant = build.const_bool(bool(value))
    else:
        constant = build.const_float(value) if cell.sort is Sort.FLOAT else build.const_int(int(value))
    found = build.substitute(term, {cell: constant})
    return bool(found.value) if found.is_const else None


def _compared(allowed: Expr, uses: Sequence[Expr]) -> bool:
    """True if the element at the query's position is compared with that at the key's."""
    for part in walk(allowed):
        if part.op in (Op.LE0, Op.EQ0, Op.APPLY) and part.sort is Sort.BOOL:
            inside = [c for c in cells(part) if c in uses]
            if any("q" in coords(c) for c in inside) and any("k" in coords(c) for c in inside):
                return True
    return False


def _has_documents(allowed: Expr) -> bool:
    """True if some data is compared for equality between query and key."""
    equations = (e for e in walk(allowed) if e.op is Op.EQ0 or (e.op is Op.APPLY and e.payload == "feq"))
    return any({"q", "k"} <= coords(e) and cells(e) for e in equations)


def _ordered(allowed: Expr, uses: Sequence[Expr]) -> bool:
    """True if elements at the query's and at the key's position are compared for order."""
    for part in walk(allowed):
        if part.op is Op.LE0:
            inside = [u for u in uses if any(u is a for a in build.linear_parts(part.args[0])[1])]
            if any("q" in coords(u) for u in inside) and any("k" in coords(u) for u in inside):
                return True
    return False


def _scalar_role(allowed: Expr, uses: Sequence[Expr]) -> _Role:
    """An input read at one place: added to the query's position, a bound on the key's, or neither."""
    for part in walk(allowed):
        if part.op is not Op.LE0:
            continue
        terms = build.linear_parts(part.args[0])[1]
        if any(u in terms for u in uses):
            named = coords(*(t for t in terms if t.op is Op.COORD))
            if {"q", "k"} <= named:
                return _Role.OFFSET
            if "k" in named:
                return _Role.LENGTH
    return _Role.NOTHING


@dataclass(frozen=True)
class _Maker:
    """Makes one row of an input, as long as the longer axis, and says what it is."""

    allowed: Expr
    uses: Sequence[Expr]
    label: str
    extents: Mapping[str, int]
    batch: int

    def make(self, role: _Role) -> tuple[torch.Tensor, str]:
        makers: dict[_Role, Callable[[], tuple[torch.Tensor, str]]] = {
            _Role.PADDING: self._padding,
            _Role.PREFIX: self._prefix,
            _Role.FLAGGED: self._flagged,
            _Role.BREAKS: self._breaks,
            _Role.DOCUMENTS: self._documents,
            _Role.POSITIONS: self._positions,
            _Role.QUERY_POSITIONS: self._query_positions,
            _Role.OFFSET: self._offset,
            _Role.LENGTH: self._length,
            _Role.NOTHING: self._nothing,
        }
        row, note = makers[role]()
        return row.to(self.uses[0].payload.dtype), note

    def _padding(self) -> tuple[torch.Tensor, str]:
        keys = self.extents["k"]
        count = max(1, keys // _PADDED) if keys > 1 else 0
        real, pad = self._values()
        row = torch.full((keys,), real, dtype=torch.float64)
        right = self.batch % 2 == 0
        row[keys - count :] = pad if right else row[keys - count :]
        row[: 0 if right else count] = pad
        return row, f"{self.label}: the {'last' if right else 'first'} {count} of {keys} keys are padding"

    def _prefix(self) -> tuple[torch.Tensor, str]:
        keys = self.extents["k"]
        count = (keys + 2) // 3
        yes, no = self._values()
        row = torch.where(torch.arange(keys) < count, yes, no)
        return row, f"{self.label}: {yes:g} for the first {count} of {keys} keys, {no:g} for the others"

    def _flagged(self) -> tuple[torch.Tensor, str]:
        yes, no = self._values()
        starts = [*self._starts(), max(self.extents["q"], self.extents["k"])]
        row = torch.where(self._numbers() == 1, yes, no)
        return row, f"{self.label}: {yes:g} from position {starts[1]} to {starts[-2] - 1}, {no:g} elsewhere"

    def _breaks(self) -> tuple[torch.Tensor, str]:
        yes, no = self._values()
        starts = self._starts()
        row = torch.full((max(self.extents["q"], self.extents["k"]),), no, dtype=torch.float64)
        row[starts[1:]] = yes
        return row, f"{self.label}: {yes:g} {'nowhere' if not starts[1:] else f'at {_listed(starts[1:])}'}, else {no:g}"

    def _values(self) -> tuple[float, float]:
        """Values of an element for which the term that tests it holds and does not hold."""
        found = _tested(build.conjuncts(self.allowed), self.uses) or _tested(walk(self.allowed), self.uses)
        return found or (1.0, 0.0)

    def _starts(self) -> list[int]:
        length = max(self.extents["q"], self.extents["k"])
        return [0, *sorted({round(share * length) for share in _DOCUMENTS} - {0, length})]

    def _numbers(self) -> torch.Tensor:
        length = max(self.extents["q"], self.extents["k"])
        starts = torch.tensor(self._starts())
        return (torch.arange(length).unsqueeze(1) >= starts).sum(1) - 1

    def _documents(self) -> tuple[torch.Tensor, str]:
        return self._numbers(), f"{self.label}: {len(self._starts())} documents, beginning at {_listed(self._starts())}"

    def _positions(self) -> tuple[torch.Tensor, str]:
        if not _has_documents(self.allowed):
            return torch.arange(max(self.extents["q"], self.extents["k"])), f"{self.label}: 0, 1, 2, ..."
        starts = torch.tensor(self._starts())
        numbers = self._numbers()
        row = torch.arange(numbers.shape[0]) - starts[numbers]
        return row, f"{self.label}: restarts at {_listed(self._starts())}, so {len(starts)} documents"

    def _query_positions(self) -> tuple[torch.Tensor, str]:
        seen = max(0, self.extents["k"] - self.extents["q"])
        return torch.arange(self.extents["q"]) + seen, f"{self.label}: {seen}, {seen + 1}, {seen + 2}, ..."

    def _offset(self) -> tuple[torch.Tensor, str]:
        offset = self.extents["k"] - self.extents["q"]
        offset = offset if offset > 0 else self.extents["k"] // 4
        return torch.tensor(offset), f"{self.label} = {offset}"

    def _length(self) -> tuple[torch.Tensor, str]:
        length = (self.extents["k"] + 1) // 2
        return torch.tensor(length), f"{self.label} = {length}"

    def _nothing(self) -> tuple[torch.Tensor, str]:
        if self.uses[0].sort is Sort.BOOL:
            return torch.tensor(True), f"{self.label} is true"
        return torch.tensor(0), f"{self.label} = 0"


def _candidates(term: Expr) -> list[float]:
    """Values that may decide a test: 1 and 0, and those next to the numbers it compares with."""
    found = [1, 0]
    for part in walk(term):
        if part.op in (Op.LE0, Op.EQ0):
            constant, _ = build.linear_parts(part.args[0])
            found += [v for base in (constant, -constant) for v in (base, base + 1, base - 1)]
        elif part.op is Op.CONST and part.sort is Sort.FLOAT and abs(part.value) < 2**31:
            found += [int(part.value), int(part.value) + 1]
    return [float(v) for v in dict.fromkeys(found) if v >= 0]


def _listed(numbers: Sequence[int]) -> str:
    *first, last = (str(n) for n in numbers)
    return f"{', '.join(first)} and {last}" if first else last
