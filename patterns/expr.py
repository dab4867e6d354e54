"""Expressions over mask coordinates: the language in which a mask's meaning is written down.

An `Expr` is an immutable, interned (hash-consed) node: two expressions with the same structure are the same
object, so `is` decides structural equality and a dict keyed by `Expr` memoises a walk over the shared graph.

There are three sorts. INT covers coordinates, sizes and integer tensors; BOOL covers masks; FLOAT covers additive
masks and biases. Integers are kept in linear normal form (`3*q - k + 2`), and every comparison of integers becomes
`linear <= 0` or `linear == 0`, so the many spellings of one inequality (`k <= q`, `q >= k`, `~(k > q)`, `k < q + 1`)
are one object. Integers are mathematical integers: tensors of int32 and int64 are assumed not to overflow.

Use the functions of `build.py` to make expressions; they simplify while they build.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch


class Sort(enum.Enum):
    """The type of an expression."""

    INT = "int"
    BOOL = "bool"
    FLOAT = "float"


class Op(enum.Enum):
    """What an expression node does with its arguments."""

    CONST = "const"  # payload: the Python value
    SIZE = "size"  # payload: name of a ShapeEnv symbol; never negative
    COORD = "coord"  # payload: name of a coordinate (b, h, q, k); never negative
    LINEAR = "linear"  # payload: (constant, coefficients); args: the atoms
    MUL = "mul"  # product of two non-constant integers
    FLOORDIV = "floordiv"
    MOD = "mod"
    TO_FLOAT = "to_float"  # payload: dtype; an integer as a float that holds it exactly
    ITE = "ite"  # args: condition, value if true, value if false
    LE0 = "le0"  # args[0] <= 0
    EQ0 = "eq0"  # args[0] == 0
    AND = "and"
    OR = "or"
    NOT = "not"
    SUM = "sum"  # payload: name of a bound coordinate; args: body, last. The body summed from 0 to last, both included
    CELL = "cell"  # payload: CellRef; args: indices. One element of a tensor that is not read any further
    APPLY = "apply"  # payload: function name; a pure function about which nothing is assumed


@dataclass(frozen=True)
class CellRef:
    """The tensor behind a CELL: an input of the graph, or a value that no read rule could open.

    Attributes:
        label: name shown in formulas, e.g. ``attention_mask``.
        node: name of the graph node that holds the tensor.
        dtype: element type of the tensor.
        is_input: True for an input of the graph, whose value a caller chooses freely; False for a value computed in
            the graph by an op without a read rule (nothing may be concluded from its freedom).
    """

    label: str
    node: str
    dtype: torch.dtype
    is_input: bool


class Expr:
    """One interned expression node. Compare with `is`; build with `attnlower.patterns.build`."""

    __slots__ = ("__weakref__", "args", "op", "payload", "serial", "sort")

    op: Op
    sort: Sort
    payload: Any
    args: tuple[Expr, ...]
    serial: int

    def __repr__(self) -> str:
        from .formula import format_expr

        return format_expr(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # copies and unpickled expressions are interned, too: `is` stays structural equality
        return intern_expr, (self.op, self.sort, self.args, self.payload)

    def __bool__(self) -> bool:
        raise TypeError("an Expr has no truth value; compare with `is`, or decide it with Facts or the prover")

    @property
    def is_const(self) -> bool:
        """True if the expression is a constant."""
        return self.op is Op.CONST

    @property
    def value(self) -> Any:
        """The Python value of a constant."""
        if self.op is not Op.CONST:
            raise ValueError(f"{self!r} is not a constant")
        return self.payload[1] if self.sort is Sort.FLOAT else self.payload


_interned: WeakValueDictionary[tuple[Any, ...], Expr] = WeakValueDictionary()
_serials = itertools.count()


def intern_expr(op: Op, sort: Sort, args: tuple[Expr, ...] = (), payload: Any = None) -> Expr:
    """Return the one expression with this structure, without simplifying anything."""
    key = (op, sort, args, payload)
    found = _interned.get(key)
    if found is None:
        found = Expr()
        found.op, found.sort, found.args, found.payload = op, sort, args, payload
        found.serial = next(_serials)
        _interned[key] = found
    return found


def float_payload(value: float) -> tuple[str, float]:
    """A key that tells 0.0 from -0.0 and makes every NaN the same."""
    # one NaN object: two of them are not equal, so neither would the keys be
    return ("nan", math.nan) if math.isnan(value) else (repr(value), value)


def walk(*roots: Expr) -> Iterator[Expr]:
    """Every distinct sub-expression of the roots, each once."""
    seen: set[Expr] = set()
    stack = list(roots)
    while stack:
        expr = stack.pop()
        if expr in seen:
            continue
        seen.add(expr)
        yield expr
        stack.extend(expr.args)


def cells(*roots: Expr) -> list[Expr]:
    """Every CELL below the roots, in a stable order."""
    return sorted((e for e in walk(*roots) if e.op is Op.CELL), key=lambda e: e.serial)


BOUND = "~"
"""First character of the coordinates that a SUM runs over: bound names, which are no coordinates of the mask."""


def coords(*roots: Expr) -> set[str]:
    """Names of the coordinates the roots depend on, tensor indices included, bound ones left out."""
    return {e.payload for e in walk(*roots) if e.op is Op.COORD and not e.payload.startswith(BOUND)}


def fresh_bound(*roots: Expr) -> str:
    """A name for a bound coordinate that occurs nowhere in the roots.

    The first free one, so that the same tensor read at two positions gives sums with the same body.
    """
    used = {e.payload for e in walk(*roots) if e.op in (Op.COORD, Op.SUM)}
    return next(name for i in itertools.count() if (name := f"{BOUND}{i}") not in used)


def sizes(*roots: Expr) -> set[str]:
    """Names of the size symbols the roots depend on."""
    return {e.payload for e in walk(*roots) if e.op is Op.SIZE}


def is_positional(expr: Expr) -> bool:
    """True if the value follows from coordinates and sizes alone: no tensor data, no unread function."""
    return not any(e.op in (Op.CELL, Op.APPLY) for e in walk(expr))
