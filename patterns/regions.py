"""Two-axis patterns of truth values: from the elements of a matrix to a formula over its row i and column j.

A row of a mask is nearly always one interval `first[i] <= j <= last[i]`. Rows are measured once; after that a bound is
a vector, and fitting it to a known shape (`i + d`, `c * (i // c)`, a constant, a few pieces) costs next to nothing. The
formula is exact: rows that the bounds miss are compared element by element, and where they differ in a few elements,
these are spelled out. A near miss of a band is thus read as that band with its exceptions, never as the band.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from . import build
from .expr import Expr

MAX_EXCEPTIONS = 16
"""Elements that may differ from a pattern; they are listed in the formula."""

MAX_PIECES = 16
"""Pieces of a bound or of a vector."""

_SIMPLE = 4
"""A formula of this cost is not worth improving upon."""

_MOST_SINKS = 256

_CHUNK_ELEMENTS = 1 << 20
"""Elements measured at a time, so that what is made on the way stays in the processor's cache."""


@dataclass(frozen=True)
class Region:
    """Where a matrix is true.

    Attributes:
        condition: the formula, given the expressions for the row and the column.
        cost: how involved it is; of two exact formulas the cheaper is the better description.
    """

    condition: Callable[[Expr, Expr], Expr]
    cost: int


@dataclass(frozen=True)
class _Rows:
    """The rows of a matrix as intervals.

    Attributes:
        first: the first true column of each row; meaningful where `filled`.
        last: the last one.
        broken: rows that are no interval.
        filled: rows that are one, and not empty.
        columns: the number of columns.
    """

    first: torch.Tensor
    last: torch.Tensor
    broken: torch.Tensor
    filled: torch.Tensor
    columns: int

    @property
    def index(self) -> torch.Tensor:
        """The row numbers."""
        return _arange(len(self.first))


@dataclass(frozen=True)
class _Bound:
    """A bound on the column: its value in every row, and the inequality that says so."""

    values: torch.Tensor
    condition: Callable[[Expr, Expr], Expr]
    cost: int


def fit_region(mask: torch.Tensor) -> Region | None:
    """An exact formula for a boolean matrix (on the CPU, at least 1 x 1); None if it follows no known pattern."""
    best: Region | None = None
    for fit in (_fit_rows, _fit_framed):
        for inverted in (False, True):
            found = fit(mask, inverted=inverted)
            if found is not None and (best is None or found.cost < best.cost):
                best = found
            if best is not None and best.cost <= _SIMPLE:
                return best
    return best


def _fit_framed(mask: torch.Tensor, *, inverted: bool) -> Region | None:
    """Leading rows that see everything, leading columns that all see or all from their own row on, and the rest.

    A window beside global tokens or sinks makes two intervals of a row.
    """
    mask = ~mask if inverted else mask
    rows, columns = mask.shape
    full_rows = _leading(mask.all(1))
    below = mask[full_rows:]
    start = _arange(rows)[full_rows:]
    shared = _leading(below.all(0)) if full_rows < rows else 0
    seen = below[:, : min(rows, columns)]
    sinks = 0
    while sinks < min(seen.shape[1], _MOST_SINKS) and torch.equal(seen[:, sinks], start >= sinks):
        sinks += 1
    edge = max(shared, sinks)
    if not (full_rows or edge) or full_rows == rows or edge == columns:
        return None
    inner = _fit_rows(mask[full_rows:, edge:], inverted=False)
    if inner is None:
        return None

    def condition(row: Expr, column: Expr) -> Expr:
        first_rows = build.lt(row, build.const_int(full_rows))
        first_columns = build.lt(column, build.const_int(edge))
        visible = build.TRUE if shared >= sinks else build.le(column, row)
        behind = build.and_(build.not_(first_rows), build.not_(first_columns))
        shifted = build.sub(row, build.const_int(full_rows)), build.sub(column, build.const_int(edge))
        rest = build.and_(behind, inner.condition(*shifted))
        seen = build.or_(first_rows, build.and_(first_columns, visible), rest)
        return build.not_(seen) if inverted else seen

    return Region(condition, inner.cost + 3 + inverted)


def _leading(values: torch.Tensor) -> int:
    """How many elements are true before the first that is not."""
    return int(values.to(torch.int64).cumprod(0).sum())


def _fit_rows(mask: torch.Tensor, *, inverted: bool) -> Region | None:
    rows = _measure(mask, inverted=inverted)
    if rows is None:
        return None
    good = rows.filled
    lower = [b for b in _lower_bounds(rows) if _misses(b, rows.first, good) <= MAX_EXCEPTIONS]
    upper = [b for b in _upper_bounds(rows) if _misses(b, rows.last, good) <= MAX_EXCEPTIONS]
    pairs = sorted(((lo, up) for lo in lower for up in upper), key=lambda p: p[0].cost + p[1].cost)
    best: tuple[int, _Bound, _Bound, list[tuple[int, int, bool]]] | None = None
    for low, high in pairs:
        cost = low.cost + high.cost
        if best is not None and cost > best[0]:
            break
        exceptions = _exceptions(mask, rows, low, high, inverted=inverted)
        if exceptions is None:
            continue
        if best is None or (cost + len(exceptions), len(exceptions)) < (best[0], len(best[3])):
            best = cost + len(exceptions), low, high, exceptions
    if best is None:
        return None
    cost, low, high, exceptions = best

    def condition(row: Expr, column: Expr) -> Expr:
        inside = build.and_(low.condition(row, column), high.condition(row, column))
        result = build.not_(inside) if inverted else inside
        for i, j, value in exceptions:
            here = build.and_(build.eq(row, build.const_int(i)), build.eq(column, build.const_int(j)))
            result = build.or_(result, here) if value else build.and_(result, build.not_(here))
        return result

    return Region(condition, cost + inverted)


def _measure(mask: torch.Tensor, *, inverted: bool) -> _Rows | None:
    """The rows as intervals; None if too many of them are none."""
    columns = _arange(mask.shape[1]).to(torch.int16 if mask.shape[1] < 2**15 else torch.int64)
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    broken_so_far = 0
    for given in mask.split(max(1, _CHUNK_ELEMENTS // mask.shape[1])):
        part = (~given if inverted else given).contiguous()
        counts = part.sum(1)
        first = part.view(torch.uint8).argmax(1)
        last = first + counts - 1
        low, high = (edge.to(columns.dtype)[:, None] for edge in (first, last))
        span = (columns >= low).logical_and_(columns <= high)
        broken = (span != part).any(1)
        parts.append((first, last, broken))
        broken_so_far += int(broken.sum())
        if broken_so_far > MAX_EXCEPTIONS:
            return None
    first, last, broken = (torch.cat(p) for p in zip(*parts, strict=True))
    return _Rows(first, last, broken, ~broken & (last >= first), mask.shape[1])


def _misses(bound: _Bound, actual: torch.Tensor, good: torch.Tensor) -> int:
    return int((bound.values != actual)[good].sum())


def _exceptions(
    mask: torch.Tensor, rows: _Rows, low: _Bound, high: _Bound, *, inverted: bool
) -> list[tuple[int, int, bool]] | None:
    """The elements in which a matrix differs from the columns between two bounds; None if there are too many."""
    fits = torch.where(
        rows.filled, (low.values == rows.first) & (high.values == rows.last), (low.values > high.values) & ~rows.broken
    )
    misfits = (~fits).nonzero()[:, 0]
    if len(misfits) > MAX_EXCEPTIONS:
        return None
    columns = _arange(rows.columns)
    inside = (columns >= low.values[misfits, None]) & (columns <= high.values[misfits, None])
    actual = mask[misfits]
    wrong = (inside != (~actual if inverted else actual)).nonzero()
    if len(wrong) > MAX_EXCEPTIONS:
        return None
    return [(int(misfits[r]), int(c), bool(actual[r, c])) for r, c in wrong.tolist()]


# --- bounds ---------------------------------------------------------------------------------------------------


def _at_least(value: Callable[[Expr], Expr]) -> Callable[[Expr, Expr], Expr]:
    return lambda row, column: build.le(value(row), column)


def _at_most(value: Callable[[Expr], Expr]) -> Callable[[Expr, Expr], Expr]:
    return lambda row, column: build.le(column, value(row))


def _shifted(distance: int) -> Callable[[Expr], Expr]:
    return lambda row: build.add(row, build.const_int(distance))


def _fixed(value: int) -> Callable[[Expr], Expr]:
    return lambda row: build.const_int(value)


def _chunk_start(size: int, phase: int, ahead: int = 0) -> Callable[[Expr], Expr]:
    """`size * ((i - phase) // size) + phase + ahead`."""

    def value(row: Expr) -> Expr:
        chunk = build.floordiv(build.sub(row, build.const_int(phase)), build.const_int(size))
        return build.add(build.scaled(chunk, size), build.const_int(phase + ahead))

    return value


def _lower_bounds(rows: _Rows) -> Iterator[_Bound]:
    """Shapes that the first column may follow, from the votes of the rows."""
    index, first, good = rows.index, rows.first, rows.filled
    yield _Bound(torch.zeros_like(first), lambda row, column: build.TRUE, 0)
    least = _vote(first[good])
    if least is None:
        return
    yield _Bound(torch.full_like(first, least), _at_least(_fixed(least)), 1)
    distance = _vote((first - index)[good & (first > 0)])
    if distance is not None:
        moving, band = index + distance, _at_least(_shifted(distance))
        yield _Bound(moving.clamp(min=0), band, 1)
        also = _at_least(_fixed(least))
        yield _Bound(moving.clamp(min=least), lambda i, j: build.and_(band(i, j), also(i, j)), 2)
        yield _Bound(moving.clamp(max=least).clamp(min=0), lambda i, j: build.or_(band(i, j), also(i, j)), 2)
    for size, phase in _chunks(rows):
        values = _floor(index - phase, size) * size + phase
        yield _Bound(values.clamp(min=0), _at_least(_chunk_start(size, phase)), 2)
    yield from _in_pieces(first, good, _at_least)


def _upper_bounds(rows: _Rows) -> Iterator[_Bound]:
    """Shapes that the last column may follow."""
    index, last, good, end = rows.index, rows.last, rows.filled, rows.columns - 1
    yield _Bound(torch.full_like(last, end), lambda row, column: build.TRUE, 0)
    most = _vote(last[good])
    if most is None:
        return
    yield _Bound(torch.full_like(last, most), _at_most(_fixed(most)), 1)
    distance = _vote((last - index)[good & (last < end)])
    if distance is not None:
        moving, band = index + distance, _at_most(_shifted(distance))
        yield _Bound(moving.clamp(max=end), band, 1)
        also = _at_most(_fixed(most))
        yield _Bound(moving.clamp(max=most), lambda i, j: build.and_(band(i, j), also(i, j)), 2)
        yield _Bound(moving.clamp(min=most).clamp(max=end), lambda i, j: build.or_(band(i, j), also(i, j)), 2)
    for size, phase in _chunks(rows):
        values = _floor(index - phase, size) * size + phase + size - 1
        yield _Bound(values.clamp(max=end), _at_most(_chunk_start(size, phase, size - 1)), 2)
    yield from _in_pieces(last, good, _at_most)


def _arange(length: int) -> torch.Tensor:
    """On the CPU, whatever the default device."""
    return torch.arange(length, device="cpu")


def _vote(values: torch.Tensor) -> int | None:
    """The most frequent value."""
    return int(values.mode().values) if len(values) else None


def _chunks(rows: _Rows) -> Iterator[tuple[int, int]]:
    """Sizes of chunks and where the chunks begin (a remainder): distances between the first columns, or the last."""
    found: dict[tuple[int, int], None] = {}
    for starts in (rows.first[rows.filled], rows.last[rows.filled & (rows.last < rows.columns - 1)] + 1):
        distinct = starts.unique()
        # the matrix may begin inside a chunk
        size = _vote((distinct[1:] if len(distinct) > 2 else distinct).diff())
        phase = _vote(starts % size) if size is not None and size > 1 else None
        if size is not None and phase is not None:
            found[size, phase] = None
    yield from found


def _floor(values: torch.Tensor, divisor: int) -> torch.Tensor:
    return torch.div(values, divisor, rounding_mode="floor")


def _in_pieces(
    values: torch.Tensor, good: torch.Tensor, bound: Callable[[Callable[[Expr], Expr]], Callable[[Expr, Expr], Expr]]
) -> Iterator[_Bound]:
    """A bound that is a constant or moves with the row, piece by piece; rows that are no interval are passed over."""
    pieces = piecewise(values) if bool(good.all()) else None
    if pieces is None or len(pieces) < 2:
        return

    def condition(row: Expr, column: Expr) -> Expr:
        terms = []
        for begin, end, slope, value in pieces:
            shape = _shifted(value) if slope else _fixed(value)
            terms.append(build.and_(_between(row, begin, end, len(values)), bound(shape)(row, column)))
        return build.or_(*terms)

    yield _Bound(values, condition, 2 * len(pieces))


def _between(index: Expr, begin: int, end: int, extent: int) -> Expr:
    low = build.TRUE if begin == 0 else build.le(build.const_int(begin), index)
    high = build.TRUE if end == extent else build.lt(index, build.const_int(end))
    return build.and_(low, high)


def piecewise(values: torch.Tensor) -> list[tuple[int, int, int, int]] | None:
    """A vector of integers as pieces `(begin, end, slope, value)`: `value + slope * i`, with a slope of 0 or 1.

    Returns:
        At most `MAX_PIECES` pieces, each as long as it can be; None if that is too few.
    """
    length = len(values)
    constant_until, moving_until = (_run_ends(v) for v in (values, values - _arange(length)))
    pieces: list[tuple[int, int, int, int]] = []
    begin = 0
    while begin < length:
        if len(pieces) == MAX_PIECES:
            return None
        end, moving_end = int(constant_until[begin]), int(moving_until[begin])
        value = int(values[begin])
        if moving_end > end:
            pieces.append((begin, moving_end, 1, value - begin))
        else:
            pieces.append((begin, end, 0, value))
        begin = max(end, moving_end)
    return pieces


def _run_ends(values: torch.Tensor) -> torch.Tensor:
    """For each position, where the run of equal values that it belongs to ends."""
    changes = torch.cat([(values.diff() != 0).nonzero()[:, 0] + 1, _arange(len(values) + 1)[-1:]])
    return changes[torch.searchsorted(changes, _arange(len(values)), right=True)]


def interval_of(index: Expr, begin: int, end: int, extent: int) -> Expr:
    """`begin <= index < end` on an axis of the given extent; a bound at its end is left out."""
    return _between(index, begin, end, extent)
