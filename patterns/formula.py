"""Formulas as text: `k <= q & attention_mask[b, k]`."""

from __future__ import annotations

from .build import linear_parts
from .expr import BOUND, Expr, Op, Sort

_PREFERENCE = {"k": 0, "q": 1, "h": 2, "b": 3}
_MAX_LENGTH = 400


def format_expr(expr: Expr, limit: int = _MAX_LENGTH) -> str:
    """The expression as a formula, shortened with an ellipsis if it is longer than `limit` characters."""
    text = _Formatter().text(expr)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class _Formatter:
    """Writes one expression; a shared sub-expression is written once and remembered."""

    def __init__(self) -> None:
        self._memo: dict[Expr, str] = {}

    def text(self, expr: Expr) -> str:
        found = self._memo.get(expr)
        if found is None:
            found = self._write(expr)
            if len(found) > 2 * _MAX_LENGTH:
                found = found[:_MAX_LENGTH] + "..."
            self._memo[expr] = found
        return found

    def _nested(self, expr: Expr) -> str:
        """The expression as an operand: in brackets unless it reads well without."""
        plain = (Op.CONST, Op.SIZE, Op.COORD, Op.CELL, Op.APPLY, Op.ITE, Op.TO_FLOAT, Op.NOT)
        text = self.text(expr)
        return text if expr.op in plain else f"({text})"

    def _write(self, expr: Expr) -> str:
        match expr.op:
            case Op.CONST:
                return str(expr.value).lower() if expr.sort is Sort.BOOL else f"{expr.value}"
            case Op.SIZE | Op.COORD:
                return str(expr.payload)
            case Op.LINEAR:
                constant, parts = linear_parts(expr)
                return self._sum(parts, constant)
            case Op.MUL:
                return "*".join(self._nested(a) for a in expr.args)
            case Op.FLOORDIV:
                return f"{self._nested(expr.args[0])}//{self._nested(expr.args[1])}"
            case Op.MOD:
                return f"{self._nested(expr.args[0])} % {self._nested(expr.args[1])}"
            case Op.TO_FLOAT:
                return f"float({self.text(expr.args[0])})"
            case Op.ITE:
                condition, then, otherwise = (self.text(a) for a in expr.args)
                return f"where({condition}, {then}, {otherwise})"
            case Op.LE0:
                return self._inequality(expr.args[0])
            case Op.EQ0:
                return self._equation(expr.args[0], "==")
            case Op.AND:
                ordered = sorted(expr.args, key=_reading_order)
                return " & ".join(f"({self.text(a)})" if a.op is Op.OR else self.text(a) for a in ordered)
            case Op.OR:
                ordered = sorted(expr.args, key=_reading_order)
                return " | ".join(f"({self.text(a)})" if a.op is Op.AND else self.text(a) for a in ordered)
            case Op.NOT:
                return self._negation(expr.args[0])
            case Op.CELL:
                if not expr.args:
                    return str(expr.payload.label)
                return f"{expr.payload.label}[{', '.join(self.text(a) for a in expr.args)}]"
            case Op.SUM:
                name = str(expr.payload)
                return f"sum({self.text(expr.args[0])} for {name} <= {self.text(expr.args[1])})".replace(
                    name, _bound(name)
                )
            case Op.APPLY:
                return self._call(expr)
        raise ValueError(f"no text for {expr.op}")

    def _negation(self, inner: Expr) -> str:
        if inner.op is Op.EQ0:
            if inner.args[0].op is Op.CELL:  # an integer used as a truth value
                return self.text(inner.args[0])
            return self._equation(inner.args[0], "!=")
        if inner.op is Op.APPLY and inner.payload == "feq" and _is_zero(inner.args[1]):
            return self._nested(inner.args[0])
        if inner.op is Op.APPLY and inner.payload == "feq":
            return f"{self._nested(inner.args[0])} != {self._nested(inner.args[1])}"
        return f"~{self._nested(inner)}"

    def _call(self, expr: Expr) -> str:
        name = str(expr.payload).partition(":")[0]
        signs = {"add": "+", "sub": "-", "mul": "*", "div": "/", "flt": "<", "fle": "<=", "feq": "=="}
        if name in signs and len(expr.args) == 2:
            left, right = (f"({self.text(a)})" if _infix(a) else self._nested(a) for a in expr.args)
            return f"{left} {signs[name]} {right}"
        return f"{name}({', '.join(self.text(a) for a in expr.args)})"

    def _sum(self, parts: dict[Expr, int], constant: int) -> str:
        ordered = sorted(parts.items(), key=lambda t: (t[1] < 0, _preference(t[0]), t[0].serial))
        pieces: list[str] = []
        for atom, coefficient in ordered:
            factor = "" if abs(coefficient) == 1 else f"{abs(coefficient)}*"
            sign = "-" if coefficient < 0 else "+"
            product = atom.op in (Op.MUL, Op.FLOORDIV, Op.MOD) and not factor and sign == "+"
            pieces.append(f"{sign} {factor}{self.text(atom) if product else self._nested(atom)}")
        if constant or not pieces:
            pieces.append(f"{'-' if constant < 0 else '+'} {abs(constant)}")
        text = " ".join(pieces)
        return text[2:] if text.startswith("+ ") else "-" + text[2:]

    def _sides(self, expr: Expr) -> tuple[dict[Expr, int], dict[Expr, int], int]:
        """Write ``expr`` as ``left - right + constant``, both with positive coefficients."""
        constant, parts = linear_parts(expr)
        left = {a: c for a, c in parts.items() if c > 0}
        right = {a: -c for a, c in parts.items() if c < 0}
        return left, right, constant

    def _inequality(self, expr: Expr) -> str:
        # left + constant <= right
        left, right, constant = self._sides(expr)
        lead_left = min((_preference(a) for a in left), default=9)
        lead_right = min((_preference(a) for a in right), default=9)
        if left and lead_left <= lead_right:
            if constant == 1 and right:
                return f"{self._sum(left, 0)} < {self._sum(right, 0)}"
            return f"{self._sum(left, 0)} <= {self._sum(right, -constant)}"
        if constant == 0:
            return f"{self._sum(right, 0)} >= {self._sum(left, 0)}"
        # Hugging Face writes windows as k > q - W
        return f"{self._sum(right, 0)} > {self._sum(left, constant - 1)}"

    def _equation(self, expr: Expr, sign: str) -> str:
        left, right, constant = self._sides(expr)
        leads = [min((_preference(a) for a in side), default=9) for side in (left, right)]
        if leads[1] < leads[0]:
            left, right, constant = right, left, -constant
        return f"{self._sum(left, 0)} {sign} {self._sum(right, -constant)}"


def _bound(name: str) -> str:
    """How a bound coordinate is written: i, j, m, n, i4, ..."""
    number = int(name[len(BOUND) :])
    return "ijmn"[number] if number < 4 else f"i{number}"


def _preference(atom: Expr) -> int:
    return _PREFERENCE.get(str(atom.payload), 5) if atom.op is Op.COORD else 4


def _is_zero(expr: Expr) -> bool:
    return expr.is_const and expr.value == 0


def _infix(expr: Expr) -> bool:
    return expr.op is Op.APPLY and len(expr.args) == 2


def _reading_order(expr: Expr) -> tuple[int, int]:
    """Structure before data: inequalities first, upper bounds on k before lower bounds, then tensor cells."""
    if expr.op is Op.LE0:
        _, parts = linear_parts(expr.args[0])
        k_sign = next((c for a, c in parts.items() if a.op is Op.COORD and a.payload == "k"), 0)
        return (0 if k_sign > 0 else 1 if k_sign < 0 else 2, expr.serial)
    if expr.op is Op.EQ0:
        return (3, expr.serial)
    return (4, expr.serial)
