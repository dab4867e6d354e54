"""The prover: is this mask that template, for every size, coordinate and input?

z3 decides over linear integer arithmetic with uninterpreted functions. A time-out is Unknown, never a proof; a
counterexample that rests on a value the reader could not open is Unknown too, since that value is not free.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from . import build
from .expr import Expr, Op, cells, walk
from .facts import Facts
from .masks.template import MaskTemplate
from .predicate import Predicate
from .sampling import find_counterexample
from .solver import Translator
from .verdict import Proved, Refuted, Unknown, Verdict

DEFAULT_TIMEOUT_MS = 2000
"""Longest time for one question to z3, in milliseconds."""

_SMALL = 8


@dataclass
class ProofStats:
    """What proving has cost.

    Attributes:
        masks: distinct masks that were proved, refuted or given up.
        solver_calls: questions put to z3.
        solver_ms: time z3 took, in milliseconds (without its import).
        import_ms: time to import z3, in milliseconds.
    """

    masks: int = 0
    solver_calls: int = 0
    solver_ms: float = 0.0
    import_ms: float = 0.0


@dataclass
class Prover:
    """Decides claims about masks.

    Attributes:
        timeout_ms: longest time for one question to z3, in milliseconds.
        stats: what proving has cost so far.
    """

    timeout_ms: int = DEFAULT_TIMEOUT_MS
    stats: ProofStats = field(default_factory=ProofStats)
    _answers: dict[Expr, list[tuple[Facts, Verdict]]] = field(default_factory=dict, repr=False)

    def prove(self, predicate: Predicate, template: MaskTemplate, facts: Facts | None = None) -> Verdict:
        """Decide whether a mask allows exactly what a template allows.

        Args:
            predicate: the mask.
            template: the claim.
            facts: used instead of the predicate's own facts, e.g. with an assumption added.
        """
        known = predicate.facts if facts is None else facts
        return self.valid(build.iff(predicate.allowed, template.allowed(known)), known, claim=str(template))

    def valid(self, claim_expr: Expr, facts: Facts, claim: str = "") -> Verdict:
        """Decide whether a condition always holds."""
        settled = facts.decide(claim_expr)
        if settled:
            return Proved(claim)
        asked = self._answers.setdefault(claim_expr, [])
        for known, verdict in asked:
            if known == facts:
                return replace(verdict, claim=claim) if isinstance(verdict, Proved) else verdict
        z3_ready = time.perf_counter()
        translator = Translator()
        started = time.perf_counter()
        self.stats.import_ms += (started - z3_ready) * 1e3 if self.stats.solver_calls == 0 else 0.0
        try:
            verdict = self._ask(translator, claim_expr, facts, claim)
        finally:
            self.stats.solver_calls += 1
            self.stats.solver_ms += (time.perf_counter() - started) * 1e3
        asked.append((facts, verdict))
        return verdict

    def holds(self, condition: Expr, facts: Facts) -> bool:
        """True if a condition is proved."""
        return isinstance(self.valid(condition, facts), Proved)

    def _ask(self, translator: Translator, claim_expr: Expr, facts: Facts, claim: str) -> Verdict:
        z3 = translator.z3
        solver = z3.Solver()
        solver.set("timeout", int(self.timeout_ms))
        negated = z3.Not(translator.term(claim_expr))
        solver.add(*translator.facts(facts, [claim_expr]), negated)
        answer = solver.check()
        if answer == z3.unsat:
            return Proved(claim)
        if answer != z3.sat:
            return Unknown("", f"the solver gave up after {self.timeout_ms} ms ({solver.reason_unknown()})")
        unread = _unread_node(claim_expr)
        if unread is not None:
            # the solver's model may give a sum or a function of floats a value that it cannot have
            computed = not unread[0] and all(c.payload.is_input for c in cells(claim_expr))
            example = find_counterexample(claim_expr, facts) if computed else None
            return Unknown(*unread) if example is None else Refuted(example)
        witness = _witness(translator, _small_model(translator, solver))
        return Refuted(witness, "")


def _small_model(translator: Translator, solver: Any) -> Any:
    """A model with small sizes if there is one: easier to understand."""
    model = solver.model()
    solver.push()
    solver.add(*(variable <= _SMALL for variable in translator.names.values()))
    if solver.check() == translator.z3.sat:
        model = solver.model()
    solver.pop()
    return model


def _witness(translator: Translator, model: Any) -> dict[str, int | bool]:
    found: dict[str, int | bool] = {}
    for name, variable in translator.names.items():
        if not name.startswith("~"):
            found[name] = model.eval(variable, model_completion=True).as_long()
    for cell, term in translator.cells.items():
        value = model.eval(term, model_completion=True)
        indices = [model.eval(translator.term(a), model_completion=True) for a in cell.args]
        key = f"{cell.payload.label}[{', '.join(str(i) for i in indices)}]"
        if translator.z3.is_int_value(value):
            found[key] = value.as_long()
        elif translator.z3.is_true(value) or translator.z3.is_false(value):
            found[key] = bool(translator.z3.is_true(value))
    return found


def _unread_node(expr: Expr) -> tuple[str, str] | None:
    """The first value in an expression that is not an input and could not be read further."""
    for cell in cells(expr):
        if not cell.payload.is_input:
            return cell.payload.node, f"the value of '{cell.payload.node}' could not be read"
    for part in sorted(walk(expr), key=lambda e: e.serial):
        if part.op in (Op.APPLY, Op.SUM):
            return "", f"nothing is known of {part!r}"
    return None
