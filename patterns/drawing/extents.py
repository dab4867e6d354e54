"""Sizes for a picture: those the caller names, those of the given tensors, and for the rest sensible ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from ...errors import DrawingError
from .. import build
from ..evaluate import EvaluationError, evaluate
from ..expr import Expr, Op, Sort, cells, coords, is_positional, sizes, walk
from ..facts import Facts

PLAIN_LENGTH = 16
"""Positions shown of a mask without constants of its own."""
WINDOWS = 3
"""How many times a mask's largest constant fits into the picture."""
_LARGEST_CONSTANT = 2**20
_ATTEMPTS = 12


def choose_sizes(
    exprs: tuple[Expr, ...],
    facts: Facts,
    given: Mapping[str, int],
    tensors: Mapping[str, torch.Tensor],
    least: Mapping[str, int],
) -> dict[str, int]:
    """A number for every size symbol.

    Args:
        exprs: what is to be drawn.
        facts: ranges of the symbols and extents of the coordinates.
        given: sizes by symbol (``s53``) or by axis (``q``).
        tensors: the given data, by label; where a coordinate indexes a tensor directly, that axis has its size.
        least: for each coordinate, the position that has to be inside.

    Raises:
        DrawingError: if a size is unknown, out of its range, or at odds with another.
    """
    symbols = sorted(sizes(*exprs, *facts.extents.values()))
    fixed: dict[str, int] = {}
    for name, value in given.items():
        if name not in symbols and name not in facts.extents:
            raise DrawingError(f"no size '{name}' in this mask; sizes are {[*facts.extents, *symbols]}")
        if not isinstance(value, int) or isinstance(value, bool):
            raise DrawingError(f"size '{name}' is {value!r}; sizes are whole numbers")
        if value < 1:
            raise DrawingError(f"size '{name}' is {value}; a picture needs at least one position on each axis")
        if name in symbols:
            _fix(fixed, name, value, facts)
    for name, value in given.items():
        if name not in symbols:
            _fix_extent(fixed, name, value, facts)
    for name, value in _sizes_of_tensors(exprs, tensors):
        if name in facts.extents and not sizes(facts.extents[name]) <= set(fixed):
            _fix_extent(fixed, name, value, facts)
    return _filled(exprs, facts, symbols, fixed, least)


def extents_at(facts: Facts, chosen: Mapping[str, int]) -> dict[str, int]:
    """The size of every axis, by coordinate.

    Raises:
        DrawingError: if an extent is not made of sizes.
    """
    found = {}
    for name, extent in facts.extents.items():
        try:
            found[name] = int(evaluate(extent, chosen, {}).item())
        except EvaluationError as error:
            raise DrawingError(f"the size of axis '{name}' is not known before the program runs: {extent!r}") from error
    return found


def _fix(fixed: dict[str, int], symbol: str, value: int, facts: Facts) -> None:
    low, high = facts.ranges.get(symbol, (0, None))
    if value < low or (high is not None and value > high):
        upper = "any" if high is None else high
        raise DrawingError(f"size '{symbol}' is {value}, outside its range {low} to {upper}")
    fixed[symbol] = value


def _fix_extent(fixed: dict[str, int], axis: str, value: int, facts: Facts) -> None:
    """Give an axis a size by solving its extent for the one symbol that is still free."""
    extent = build.substitute(facts.extents[axis], {build.size(n): build.const_int(v) for n, v in fixed.items()})
    constant, parts = build.linear_parts(extent)
    if not parts:
        if constant != value:
            raise DrawingError(f"axis '{axis}' has size {constant} here, not {value}")
        return
    (atom, factor), *others = parts.items()
    if others or atom.op is not Op.SIZE or (value - constant) % factor:
        raise DrawingError(
            f"axis '{axis}' has size {extent!r}, which does not tell the sizes apart; give {_free(extent)}"
        )
    _fix(fixed, str(atom.payload), (value - constant) // factor, facts)


def _free(extent: Expr) -> str:
    return " and ".join(f"'{name}'" for name in sorted(sizes(extent)))


def indexed_axes(*exprs: Expr) -> Iterator[tuple[Expr, int, str]]:
    """Every tensor element that the expressions read, with an axis of the tensor and the coordinate that indexes it.

    A coordinate that a sum runs over, up to `k` say, counts as `k`.
    """
    ends: dict[str, set[str]] = {}
    for part in walk(*exprs):
        if part.op is Op.SUM and part.args[1].op is Op.COORD:
            ends.setdefault(str(part.payload), set()).add(str(part.args[1].payload))
    for cell in cells(*exprs):
        for axis, index in enumerate(cell.args):
            if index.op is Op.COORD:
                names, found = [str(index.payload)], set()
                while names:
                    name = names.pop()
                    if name not in found:
                        found.add(name)
                        names += ends.get(name, ())
                yield from ((cell, axis, name) for name in sorted(found))


def _sizes_of_tensors(exprs: tuple[Expr, ...], tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, int]]:
    """For each axis that indexes a given tensor directly, its size (the smallest, if there are several)."""
    found: dict[str, int] = {}
    for cell, axis, name in indexed_axes(*exprs):
        tensor = tensors.get(cell.payload.label)
        if tensor is not None and axis < tensor.dim():
            found[name] = min(found.get(name, tensor.shape[axis]), tensor.shape[axis])
    yield from found.items()


def _filled(
    exprs: tuple[Expr, ...], facts: Facts, symbols: list[str], fixed: Mapping[str, int], least: Mapping[str, int]
) -> dict[str, int]:
    length = max(PLAIN_LENGTH, WINDOWS * largest_constant(exprs))
    queries = sizes(facts.extents["q"])
    lengths = {*queries, *sizes(facts.extents["k"]), *sizes(*exprs)}
    # more keys than queries, where the two differ, so that the axes and the corners can be told apart
    wanted = {s: 2 if s not in lengths else length if s in queries else length * 3 // 2 for s in symbols}
    for _ in range(_ATTEMPTS):
        chosen = {s: fixed[s] if s in fixed else _in_range(number, facts, s) for s, number in wanted.items()}
        extents = extents_at(facts, chosen)
        short = [name for name, size in extents.items() if size <= max(0, least.get(name, 0))]
        if not short:
            return chosen
        for symbol in sizes(*(facts.extents[name] for name in short)):
            wanted[symbol] *= 2
    for name, at in least.items():
        if name in short and extents[name] > 0:
            raise DrawingError(f"there is no position {at} on axis '{name}' of size {extents[name]}")
    raise DrawingError(f"no sizes found that leave something to draw; give sizes for {symbols}")


def _in_range(number: int, facts: Facts, symbol: str) -> int:
    low, high = facts.ranges.get(symbol, (0, None))
    return max(low, number if high is None else min(number, high), 1)


def largest_constant(exprs: tuple[Expr, ...]) -> int:
    """The largest distance that a formula speaks of: a window, a chunk, an offset; 0 if none."""
    found = [0]
    for part in walk(*exprs):
        if part.op in (Op.LE0, Op.EQ0) and part.args[0].sort is Sort.INT and is_positional(part):
            constant, terms = build.linear_parts(part.args[0])
            if any(coords(t) for t in terms):
                # `k > q - 6` is `q - k - 5 <= 0`, and six keys wide
                found.append(abs(constant) // min(abs(c) for c in terms.values()) + (part.op is Op.LE0))
        if part.op in (Op.FLOORDIV, Op.MOD) and part.args[1].is_const and coords(part.args[0]) & {"q", "k"}:
            found.append(abs(part.args[1].value))
    return max(n for n in found if n <= _LARGEST_CONSTANT)
