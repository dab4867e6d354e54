"""The oracle: brute force. What the reader and the prover say of a program against the tensors it makes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch

from attnlower.errors import ReadRuleError
from attnlower.patterns import Classification
from attnlower.patterns.biases import unbounded_cells
from attnlower.patterns.classify import classify
from attnlower.patterns.evaluate import EvaluationError
from attnlower.patterns.masks import Alignment, Causal, Full
from attnlower.patterns.predicate import is_blocked, predicate_of
from attnlower.patterns.verdict import Proved

from .program import OutOfDomain, Program, check_domain, make_inputs
from .reading import Reading, Trace

Inputs = Mapping[str, torch.Tensor]
_NAN = 1.25e300


@dataclass(frozen=True)
class Failure:
    """Something the library said that is not so.

    Attributes:
        kind: "reading", "predicate", "verdict", "guard", "crash", "lowered", "incomplete", "mutation".
        program: the program.
        repro: Python to paste, with values that show it.
        detail: what was said and what is.
    """

    kind: str
    program: Program
    repro: str
    detail: str

    def __str__(self) -> str:
        return f"--- {self.kind}: {self.detail}\n{self.repro}"


@dataclass
class Tally:
    """Counts of what was run, and the failures."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)

    def fail(self, kind: str, program: Program, inputs: Inputs | None, detail: str) -> None:
        """Note a failure."""
        self.counts[f"failed {kind}"] += 1
        self.failures.append(Failure(kind, program, program.repro(inputs), detail))

    def merge(self, other: Tally) -> None:
        """Add the counts of another tally."""
        self.counts += other.counts
        self.failures += other.failures
        self.unread += other.unread


@dataclass(frozen=True)
class Trial:
    """A program run on real inputs."""

    sizes: Mapping[str, int]
    inputs: Inputs
    results: tuple[torch.Tensor, ...]


def same_numbers(found: torch.Tensor, actual: torch.Tensor) -> bool:
    """Exact equality, NaN being equal to NaN."""
    if actual.dtype.is_floating_point:
        return torch.equal(found.double().nan_to_num(nan=_NAN), actual.double().nan_to_num(nan=_NAN))
    return torch.equal(found.long(), actual.long())


def trials(
    trace: Trace,
    position: int,
    rng: Random,
    adapt: Callable[[dict[str, torch.Tensor]], None] | None = None,
    others: int = 2,
) -> Iterator[Trial]:
    """Runs of one program of a trace: at the traced sizes and, where they are symbols, at others.

    Args:
        trace: the trace.
        position: which program.
        rng: where sizes and values come from.
        adapt: changes the inputs first.
        others: how many other sizes.
    """
    program = trace.programs[position]
    sizes = [dict(program.sizes)]
    if program.dynamic:
        sizes += other_sizes(trace, program, rng, others)
    for number, chosen in enumerate(sizes):
        kind = "large" if rng.random() < 0.15 else "ones" if rng.random() < 0.15 else "random"
        inputs = make_inputs(rng, chosen, kind)
        if adapt is not None:
            adapt(inputs)
        try:
            if number and 1 in chosen.values():
                # what Python makes of a size of 1 (squeeze, broadcast) is not what was traced: ask the graph
                results = tuple(trace.run(inputs)[position])
                with contextlib.suppress(RuntimeError, IndexError, ValueError, TypeError):
                    program.run(inputs)  # for the values on the way, which must be in the domain
                check_domain(dict(zip(program.results, results, strict=True)), "\n".join(program.lines))
            else:
                names = program.run(inputs)
                results = tuple(names[r] for r in program.results)
        except (OutOfDomain, RuntimeError, IndexError, ValueError, TypeError, ZeroDivisionError):
            continue  # this program does not take these sizes or values
        yield Trial(chosen, inputs, results)


def other_sizes(trace: Trace, program: Program, rng: Random, count: int) -> Iterator[dict[str, int]]:
    """Random sizes that satisfy the guards of a trace."""
    for _ in range(12 * count):
        sizes = {a: rng.choice((1, 2, 3)) for a in "BH"} | {a: rng.randrange(1, 11) for a in "QK"}
        if program.square:
            sizes["K"] = sizes["Q"]
        if trace.admits(sizes):
            count -= 1
            yield sizes
            if not count:
                return


def check_reading(trace: Trace, position: int, rng: Random, tally: Tally) -> None:
    """Every result of a program equals what was read, at every coordinate."""
    program = trace.programs[position]
    readings: list[Reading] = []
    for node in trace.outputs[position]:
        try:
            readings.append(trace.read(node))
        except Exception as error:
            tally.fail("crash", program, None, f"reading: {type(error).__name__}: {error}")
            return
    tally.counts["programs read"] += 1
    tally.counts["programs read fully"] += not any(r.opaque for r in readings)
    for reading in readings:
        tally.unread.update(reading.unread[n].replace(f"'{n}'", "it") for n in reading.opaque if n in reading.unread)
    for trial in trials(trace, position, rng):
        tally.counts["trials"] += 1
        for reading, actual, name in zip(readings, trial.results, program.results, strict=True):
            if not actual.numel() or len(reading.facts.extents) != actual.dim():
                continue
            try:
                found = reading.values(reading.expr, trial.sizes, trial.inputs, actual.shape)
            except EvaluationError as error:
                tally.counts[f"not evaluated: {error}"] += 1
                continue
            except (RuntimeError, IndexError, ZeroDivisionError) as error:
                tally.fail("crash", program, trial.inputs, f"evaluating {name} = {reading.expr!r}: {error}")
                return
            if not same_numbers(found, actual):
                where = _first_difference(found, actual)
                text = f"{name} was read as {reading.expr!r}; sizes {dict(trial.sizes)}: {where}"
                tally.fail("reading", program, trial.inputs, text)
                return


def _first_difference(found: torch.Tensor, actual: torch.Tensor) -> str:
    left, right = (t.double().nan_to_num(nan=_NAN) for t in (found, actual))
    at = tuple((left != right).nonzero()[0].tolist())
    return f"at {at} it is {actual[at].item()}, not {found[at].item()}"


# --- verdicts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """A mask with its classification."""

    reading: Reading
    found: Classification


def judge(trace: Trace, position: int, tally: Tally) -> Judged | None:
    """Classify the mask of a program; None (and a failure) if that crashes."""
    program, node = trace.programs[position], trace.outputs[position][-1]
    try:
        reading = trace.read_mask(node)
        dtype = node.meta["val"].dtype
        found = classify(predicate_of(reading.expr, dtype, reading.facts), dtype, trace.prover)
    except ReadRuleError:
        tally.counts["masks that hide what they block"] += 1  # `analyze` calls such a mask unknown
        return None
    except Exception as error:
        tally.fail("crash", program, None, f"classifying: {type(error).__name__}: {error}")
        return None
    return Judged(reading, found)


def check_verdict(
    trace: Trace, position: int, rng: Random, tally: Tally, *, others: int = 2, judged: Judged | None = None
) -> Judged | None:
    """Whatever is claimed of a program's mask is so, at random sizes and for random data."""
    judged = judged or judge(trace, position, tally)
    if judged is None:
        return None
    tally.counts["verdicts"] += 1
    tally.counts[f"verdict {type(judged.found.verdict).__name__.lower()}"] += 1
    for trial in trials(trace, position, rng, others=others):
        try:
            if not _check_claims(trace.programs[position], judged, trial, tally):
                return judged
        except EvaluationError as error:
            tally.counts[f"not evaluated: {error}"] += 1
    guard = judged.found.guard
    if guard is not None:
        tally.counts["guards"] += 1
        for trial in trials(trace, position, rng, lambda inputs: _satisfy(judged.found, inputs), others=others):
            _check_guard(trace.programs[position], judged, trial, tally)
    return judged


def _satisfy(found: Classification, inputs: dict[str, torch.Tensor]) -> None:
    """Change inputs so that a guard's conditions hold."""
    for condition in found.guard.conditions if found.guard else ():
        value = inputs[condition.label]
        if condition.relation == "==":
            inputs[condition.label] = torch.full_like(value, condition.value)
        elif value.dtype is torch.bool:
            inputs[condition.label] = torch.full_like(value, not condition.value)
        else:
            inputs[condition.label] = torch.where(value == condition.value, condition.value + 1, value).to(value.dtype)
        assert bool(condition.holds(inputs[condition.label]))


def _scores(trial: Trial) -> tuple[int, ...]:
    return tuple(trial.sizes[a] for a in "BHQK")


def _split(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(allowed, added to the scores) of a mask tensor; None where it holds what no mask may hold."""
    if mask.dtype is torch.bool:
        return mask, torch.zeros(mask.shape, dtype=torch.float64)
    if bool(mask.isnan().any()) or bool((mask > 1e30).any()):
        return None
    blocked = torch.tensor([is_blocked(v, mask.dtype) for v in mask.flatten().tolist()], dtype=torch.bool)
    return ~blocked.view(mask.shape), mask.double()


def _check_claims(program: Program, judged: Judged, trial: Trial, tally: Tally) -> bool:
    shape = _scores(trial)
    try:
        split = _split(trial.results[-1].expand(shape))
    except RuntimeError:  # at size 1 the graph's tensor may have another shape
        return True
    if split is None:
        tally.counts["masks with NaN or inf"] += 1
        return True
    allowed, added = split
    reading, found = judged.reading, judged.found
    predicate = found.predicate

    def over(expr: Any) -> torch.Tensor:
        return reading.values(expr, trial.sizes, trial.inputs, shape)

    def fail(kind: str, detail: str) -> bool:
        text = f"{detail}; formula {predicate}; {found.reason}; sizes {dict(trial.sizes)}"
        tally.fail(kind, program, trial.inputs, text)
        return False

    if predicate.bias is not None and any(not c.payload.is_input for c in unbounded_cells(predicate.bias, {})):
        tally.counts["biases that could not be read"] += 1  # `analyze` calls such a mask unknown
        return True
    try:
        if not torch.equal(over(predicate.allowed), allowed):
            return fail("predicate", f"`allowed` is wrong: {_first_difference(over(predicate.allowed), allowed)}")
        bias = over(predicate.bias) if predicate.bias is not None else torch.zeros(shape, dtype=torch.float64)
        if not torch.equal(bias[allowed], added[allowed]):
            return fail("predicate", "`bias` is wrong")
    except EvaluationError as error:
        tally.counts[f"not evaluated: {error}"] += 1
    if found.template is None:
        return True
    claimed = over(found.template.allowed(reading.facts))
    plain = by_hand(found.template, shape)
    if plain is not None and not torch.equal(plain, claimed):
        return fail("verdict", f"{found.template} is not what its name says")
    if found.exact:
        tally.counts["exact masks checked"] += 1
        if not torch.equal(claimed, allowed) or bool(added[allowed].any()):
            return fail("verdict", f"is not {found.template}")
    if bool((allowed & ~claimed).any()):
        return fail("verdict", f"allows more than {found.template}")
    if isinstance(found.verdict, Proved) and not found.open:
        whole = claimed
        for template in found.data:
            whole = whole & over(template.allowed(reading.facts))
        tally.counts["proofs checked"] += 1
        if not torch.equal(whole, allowed):
            return fail("verdict", f"is not {found.template} and {', '.join(str(t) for t in found.data)}")
    return True


def by_hand(template: Any, shape: tuple[int, ...]) -> torch.Tensor | None:
    """The mask that a template's name stands for, without its formula; None if it has parameters."""
    if isinstance(template, Full):
        return torch.ones(shape, dtype=torch.bool)
    if isinstance(template, Causal) and template.offset is None:
        shift = shape[-1] - shape[-2] if template.alignment is Alignment.LOWER_RIGHT else 0
        return torch.ones(shape, dtype=torch.bool).tril(shift)
    return None


def _check_guard(program: Program, judged: Judged, trial: Trial, tally: Tally) -> None:
    found, guard = judged.found, judged.found.guard
    assert guard is not None
    try:
        split = _split(trial.results[-1].expand(_scores(trial)))
    except RuntimeError:
        return
    if split is None:
        return
    tally.counts["guards checked"] += 1
    allowed, added = split
    claimed = judged.reading.values(
        guard.template.allowed(judged.reading.facts), trial.sizes, trial.inputs, _scores(trial)
    )
    if not torch.equal(claimed, allowed) or bool(added[allowed].any()):
        conditions = " and ".join(str(c) for c in guard.conditions)
        text = f"is not {guard.template} under {conditions}; formula {found.predicate}; sizes {dict(trial.sizes)}"
        tally.fail("guard", program, trial.inputs, text)
