"""What is known about sizes and coordinates, and what follows from it by interval arithmetic alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from .build import ONE, TRUE, ZERO, add, and_, const_int, floordiv, le, linear_parts, lt, mod, scaled, sub
from .expr import Expr, Op


@dataclass(frozen=True)
class Facts:
    """Ranges of the size symbols and extents of the coordinates.

    Attributes:
        ranges: inclusive (lower, upper) of each size symbol; None for "no upper bound".
        extents: for each coordinate, the (symbolic) size of its axis: 0 <= coordinate < size.
        assumed: a condition that the caller has vouched for, or that is checked at run time.
    """

    ranges: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    extents: Mapping[str, Expr] = field(default_factory=dict)
    assumed: Expr = TRUE

    def bounds(self, expr: Expr) -> tuple[int | None, int | None]:
        """Inclusive lower and upper bound of an integer; None where there is none."""
        constant, parts = linear_parts(expr)
        return self._bound(constant, parts, low=True), self._bound(constant, parts, low=False)

    def decide(self, condition: Expr) -> bool | None:
        """The truth value of a condition, if intervals settle it."""
        match condition.op:
            case Op.CONST:
                return bool(condition.value)
            case Op.LE0:
                low, high = self.bounds(condition.args[0])
                if high is not None and high <= 0:
                    return True
                return False if low is not None and low > 0 else None
            case Op.EQ0:
                low, high = self.bounds(condition.args[0])
                if (low is not None and low > 0) or (high is not None and high < 0):
                    return False
                return True if low == 0 and high == 0 else None
            case Op.NOT:
                inner = self.decide(condition.args[0])
                return None if inner is None else not inner
            case Op.AND:
                answers = [self.decide(a) for a in condition.args]
                return False if False in answers else (True if None not in answers else None)
            case Op.OR:
                answers = [self.decide(a) for a in condition.args]
                return True if True in answers else (False if None not in answers else None)
        return None

    def remainder(self, value: Expr, divisor: Expr) -> Expr:
        """``value % divisor`` for a positive divisor; the value itself where it is known to lie below the divisor."""
        found = mod(value, divisor)
        if found.op is Op.MOD and found.args[1] is divisor and self._below(found.args[0], divisor):
            return found.args[0]
        return found

    def quotient(self, value: Expr, divisor: Expr) -> Expr:
        """``value // divisor`` for a positive divisor, without what is known to lie between 0 and the divisor."""
        found = floordiv(value, divisor)
        for atom, factor in linear_parts(found)[1].items():
            if atom.op is Op.FLOORDIV and atom.args[1] is divisor and self._below(atom.args[0], divisor):
                found = sub(found, scaled(atom, factor))
        return found

    def _below(self, value: Expr, limit: Expr) -> bool:
        return self.decide(and_(le(ZERO, value), lt(value, limit))) is True

    def _bound(self, constant: int, parts: Mapping[Expr, int], *, low: bool) -> int | None:
        # Replace each coordinate by the end of its axis that makes the sum extreme; sizes may then cancel.
        total = const_int(constant)
        for atom, coefficient in parts.items():
            at_low_end = (coefficient > 0) == low
            if atom.op is Op.COORD and at_low_end:
                continue
            if atom.op is Op.COORD:
                extent = self.extents.get(str(atom.payload))
                if extent is None:
                    return None
                total = add(total, scaled(sub(extent, ONE), coefficient))
            else:
                total = add(total, scaled(atom, coefficient))
        rest, atoms = linear_parts(total)
        for atom, coefficient in atoms.items():
            lower, upper = self._atom_range(atom)
            end = lower if (coefficient > 0) == low else upper
            if end is None:
                return None
            rest += coefficient * end
        return rest

    def _atom_range(self, atom: Expr) -> tuple[int | None, int | None]:
        match atom.op:
            case Op.SIZE:
                least, most = self.ranges.get(str(atom.payload), (0, None))
                # where there is a coordinate there is an element
                return (1 if least < 1 and any(e is atom for e in self.extents.values()) else least), most
            case Op.COORD:
                extent = self.extents.get(str(atom.payload))
                return 0, None if extent is None else self._minus_one(extent)
            case Op.MOD if atom.args[1].is_const and atom.args[1].value > 0:
                return 0, atom.args[1].value - 1
            case Op.FLOORDIV if atom.args[1].is_const and atom.args[1].value > 0:
                low, high = self.bounds(atom.args[0])
                divisor = atom.args[1].value
                return (None if low is None else low // divisor), (None if high is None else high // divisor)
            case Op.MUL:
                ends = [self.bounds(a) for a in atom.args]
                if all(low is not None and low >= 0 for low, _ in ends):
                    (l0, h0), (l1, h1) = ends
                    return (l0 or 0) * (l1 or 0), None if h0 is None or h1 is None else h0 * h1
            case Op.ITE:
                (l0, h0), (l1, h1) = (self.bounds(a) for a in atom.args[1:])
                low = None if l0 is None or l1 is None else min(l0, l1)
                return low, None if h0 is None or h1 is None else max(h0, h1)
            case Op.CELL:
                if atom.payload.dtype is torch.uint8:
                    return 0, 255
        return None, None

    def _minus_one(self, extent: Expr) -> int | None:
        high = self.bounds(extent)[1]
        return None if high is None else high - 1
