"""The symbolic reader: what is the value of this tensor at coordinates (b, h, q, k)?

Reading is pull-based. To know a tensor at some coordinates, the read rule of the op that made it asks the op's inputs
at mapped coordinates, down to creation ops, which answer in closed form, and to graph inputs, which answer with a CELL
(`attention_mask[b, k]`). An op without a rule answers with a CELL too, marked as unread: a pure function of the
coordinates about which nothing can be proved, so that a missing rule costs a rewrite but never an error in one.

Rules live in a `RuleTable`. The default table is assembled in `rules/`; users extend it::

    from attnlower.patterns import DEFAULT_RULES

    @DEFAULT_RULES.register(torch.ops.mylib.checkerboard.default)
    def read_checkerboard(reader, node, coords):
        q, k = coords
        return build.eq0(build.mod(build.add(q, k), build.const_int(2)))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from ..errors import ReadRuleError
from . import build
from .casts import convert
from .constants import Constants
from .expr import CellRef, Expr, Sort
from .facts import Facts
from .floats import rounded, to_float
from .metadata import value_of
from .sizes import int_expr

Coords = tuple[Expr, ...]
Rule = Callable[["Reader", fx.Node, Coords], Expr]


class Unreadable(Exception):
    """Raised by a rule that cannot answer for these arguments; the node is then treated as one without a rule."""


class RuleTable:
    """Read rules by op: an `OpOverload` (one overload) or an `OpOverloadPacket` (all overloads of an op)."""

    def __init__(self, rules: Mapping[Any, Rule] | None = None) -> None:
        self._rules: dict[Any, Rule] = dict(rules or {})

    def register(self, *ops: Any) -> Callable[[Rule], Rule]:
        """Decorator that adds a rule ``rule(reader, node, coords) -> Expr`` for one or more ops.

        Raises:
            ReadRuleError: if an op already has a rule (use `replace` to change one) or is no ATen or custom op.
        """

        def decorate(rule: Rule) -> Rule:
            for op in ops:
                if not isinstance(op, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
                    raise ReadRuleError(f"a read rule is registered for an op such as torch.ops.aten.add, not {op!r}")
                if op in self._rules:
                    raise ReadRuleError(f"{op} already has a read rule; use RuleTable.replace to change it")
                self._rules[op] = rule
            return rule

        return decorate

    def replace(self, op: Any, rule: Rule) -> RuleTable:
        """A new table in which one op has another rule."""
        return RuleTable({**self._rules, op: rule})

    def merged(self, other: RuleTable) -> RuleTable:
        """A new table with the rules of both; those of `other` win."""
        return RuleTable({**self._rules, **other._rules})

    def find(self, op: Any) -> Rule | None:
        """The rule for an op: that of the overload, else that of its packet."""
        found = self._rules.get(op)
        if found is None and isinstance(op, torch._ops.OpOverload):
            found = self._rules.get(op.overloadpacket)
        return found

    def __len__(self) -> int:
        return len(self._rules)


@dataclass
class Reader:
    """Reads the tensors of one functional ATen graph.

    Attributes:
        facts: what is known of sizes and coordinates.
        rules: the read rules.
        labels: for each boundary node, how it is shown and whether it is an input of the user's graph.
        constants: tensors known by value (lifted constants, buffers that are not written to), by node name.
        unread: filled while reading: for each node that could not be opened, the reason.
        bounds: filled while reading: for each unread constant, a bound on the absolute value of its elements.
        forms: closed forms of constants, shared by the readers of one program.
        decider: proves conditions that intervals do not settle (the solver); None does without.
    """

    facts: Facts
    rules: RuleTable
    labels: Mapping[str, CellRef] = field(default_factory=dict)
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    decider: Callable[[Expr, Facts], bool] | None = None
    forms: Constants = field(default_factory=Constants, repr=False)
    _memo: dict[tuple[fx.Node, Coords], Expr] = field(default_factory=dict, repr=False)
    _inner: dict[tuple[str, Expr], Reader] = field(default_factory=dict, repr=False)

    def read(self, value: Any, coords: Coords) -> Expr:
        """The element of a tensor node at the coordinates, or a scalar argument as an expression."""
        if not isinstance(value, fx.Node):
            return scalar_expr(value)
        recorded = value_of(value)
        if not isinstance(recorded, torch.Tensor):
            return scalar_expr(recorded)
        key = (value, coords)
        found = self._memo.get(key)
        if found is None:
            found = self._read_tensor(value, recorded, coords)
            self._memo[key] = found
        return found

    def shape(self, node: Any) -> tuple[Expr, ...]:
        """The sizes of a tensor node (empty for a scalar argument)."""
        recorded = value_of(node) if isinstance(node, fx.Node) else None
        return tuple(int_expr(s) for s in recorded.shape) if isinstance(recorded, torch.Tensor) else ()

    def dtype(self, value: Any) -> torch.dtype:
        """The dtype of a tensor node; int64, float64 or bool for a scalar argument."""
        recorded = value_of(value) if isinstance(value, fx.Node) else value
        if isinstance(recorded, torch.Tensor):
            return recorded.dtype
        if isinstance(recorded, (bool, torch.SymBool)):
            return torch.bool
        return torch.float64 if isinstance(recorded, (float, torch.SymFloat)) else torch.int64

    def integer(self, value: Any) -> Expr:
        """An integer argument (int, SymInt or the node of one)."""
        recorded = value_of(value) if isinstance(value, fx.Node) else value
        if isinstance(recorded, bool) or not isinstance(recorded, (int, torch.SymInt)):
            raise Unreadable(f"an argument is a {type(recorded).__name__}, not an integer")
        return int_expr(recorded)

    def broadcast(self, value: Any, coords: Coords) -> Expr:
        """An operand of a broadcasting op, at the coordinates of the op's result."""
        shape = self.shape(value)
        if not shape:
            return self.read(value, ())
        own = coords[len(coords) - len(shape) :]
        return self.read(value, tuple(self.broadcast_index(c, s) for c, s in zip(own, shape, strict=True)))

    def broadcast_index(self, coordinate: Expr, extent: Expr) -> Expr:
        """The index into an axis that broadcasts if its size is 1."""
        if extent is build.ONE:
            return build.ZERO
        inside = build.and_(build.le(build.ZERO, coordinate), build.lt(coordinate, extent))
        if self.facts.decide(inside):
            return coordinate  # below the extent anyway, so 0 where the extent is 1
        return self.choose(build.eq(extent, build.ONE), build.ZERO, coordinate)

    def choose(self, condition: Expr, then: Expr, otherwise: Expr) -> Expr:
        """`where(condition, then, otherwise)`, decided at once if the facts settle the condition."""
        settled = self.facts.decide(condition)
        if settled is not None:
            return then if settled else otherwise
        return build.ite(condition, then, otherwise)

    def within(self, name: str, extent: Expr) -> Reader:
        """A reader that knows one more coordinate, with its axis: what it reads holds where that axis has elements."""
        key = name, extent
        if key not in self._inner:
            facts = replace(self.facts, extents={**self.facts.extents, name: extent})
            self._inner[key] = replace(self, facts=facts, _memo={}, _inner={})
        return self._inner[key]

    def holds(self, condition: Expr, facts: Facts) -> bool:
        """True if the condition is proved under the facts, by intervals or by the solver."""
        settled = facts.decide(condition)
        if settled is None and self.decider is not None:
            settled = self.decider(condition, facts)
        return bool(settled)

    def converted(self, value: Any, coords: Coords, dtype: torch.dtype) -> Expr:
        """A broadcasting operand converted to a dtype."""
        return convert(self.broadcast(value, coords), self.dtype(value), dtype)

    def opaque(self, node: fx.Node, coords: Coords, reason: str) -> Expr:
        """The element as an unknown function of its coordinates; the reason is kept for the report."""
        # Names of this traced graph and of the user's graph are kept apart: one name must mean one tensor.
        name = node.name
        while any(ref.node == name for ref in self.labels.values()):
            name += "_traced"
        self.unread.setdefault(name, reason)
        return build.cell(CellRef(name, name, self.dtype(node), is_input=False), coords)

    def constant(self, node: fx.Node, tensor: torch.Tensor, coords: Coords) -> Expr:
        """The element of a tensor known by value: by its closed form, else a CELL that is no free input."""
        found = self.forms.of(tensor)

        def rest() -> Expr:
            ref = self.labels.get(node.name)
            shape = "x".join(str(s) for s in tensor.shape)
            reason = f"a constant of shape {shape} {found.problem or 'holds values that follow no known pattern'}"
            element = (
                self.opaque(node, coords, reason) if ref is None else build.cell(replace(ref, is_input=False), coords)
            )
            self.unread.setdefault(element.payload.node, reason)
            self.bounds[element.payload.node] = found.bound
            return element

        return rest() if found.form is None else found.form(coords, rest)

    def _read_tensor(self, node: fx.Node, recorded: torch.Tensor, coords: Coords) -> Expr:
        if recorded.dtype.is_complex:
            return self.opaque(node, coords, "complex numbers are not read")
        constant = self.constants.get(node.name)
        if constant is not None:
            return self.constant(node, constant, coords)
        ref = self.labels.get(node.name)
        if ref is not None:
            return build.cell(ref, coords)
        if node.op != "call_function":
            return self.opaque(node, coords, f"'{node.name}' is a {node.op} node without a known value")
        rule = self.rules.find(node.target)
        if rule is None:
            return self.opaque(node, coords, f"no read rule for {node.target}")
        try:
            result = rule(self, node, coords)
        except Unreadable as error:
            return self.opaque(node, coords, f"{node.target}: {error}")
        if not isinstance(result, Expr) or result.sort is not build.sort_of(recorded.dtype):
            raise ReadRuleError(
                f"the read rule for {node.target} (node '{node.name}') must return an expression of sort "
                f"{build.sort_of(recorded.dtype).value}, it returned {result!r}"
            )
        return result


def scalar_expr(value: Any) -> Expr:
    """A Python or symbolic scalar as an expression.

    Raises:
        Unreadable: for anything that is no scalar.
    """
    if isinstance(value, bool):
        return build.const_bool(value)
    if isinstance(value, (int, torch.SymInt)):
        return int_expr(value)
    if isinstance(value, float):
        return build.const_float(value)
    if isinstance(value, torch.SymFloat):
        return build.apply(str(value.node.expr), Sort.FLOAT, ())
    if isinstance(value, torch.SymBool):
        return build.apply(str(value.node.expr), Sort.BOOL, ())
    raise Unreadable(f"argument of type {type(value).__name__} is no scalar")


def as_dtype(expr: Expr, dtype: torch.dtype) -> Expr:
    """A scalar argument as an element of the given dtype (scalars adapt to the tensor they meet)."""
    target = build.sort_of(dtype)
    if target is Sort.FLOAT and expr.sort is Sort.INT:
        return to_float(expr, dtype)
    if target is Sort.FLOAT and expr.sort is Sort.FLOAT:
        return rounded(expr.value, dtype) if expr.is_const else expr
    if target is Sort.INT and expr.is_const and not torch.iinfo(dtype).min <= expr.value <= torch.iinfo(dtype).max:
        raise Unreadable(f"{expr.value} does not fit {dtype}")
    source = {Sort.BOOL: torch.bool, Sort.INT: torch.int64, Sort.FLOAT: torch.float64}[expr.sort]
    return convert(expr, source, dtype)


def bind(node: fx.Node) -> dict[str, Any]:
    """The arguments of an op call by name, defaults included, whether they were given by position or by keyword."""
    return bind_arguments(node.target, node.args, node.kwargs)


def bind_arguments(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an op (an OpOverload) by name, defaults included."""
    bound: dict[str, Any] = {}
    for position, argument in enumerate(op._schema.arguments):
        if position < len(args):
            bound[argument.name] = args[position]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


def wrap_dim(dim: int, rank: int) -> int:
    """A dimension counted from the front."""
    return dim + rank if dim < 0 else dim


def at(coords: Sequence[Expr], dim: int, value: Expr) -> Coords:
    """The coordinates with one of them replaced."""
    return (*coords[:dim], value, *coords[dim + 1 :])
