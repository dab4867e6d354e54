"""Masks that are a template by construction, however they are written: are they proved to be it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch

from attnlower.patterns import Facts, build
from attnlower.patterns.classify import is_rewritable
from attnlower.patterns.verdict import Proved

from .families import FAMILIES, Family
from .generate import random_sizes
from .meaning import And, Meaning, formula, on_data, table
from .oracle import Judged, Tally, check_verdict, judge
from .program import OutOfDomain, Program, make_inputs
from .reading import Trace
from .soundness import traces_of
from .spelling import spelled

BATCH = 8
DYNAMIC_SHARE = 0.3


@dataclass(frozen=True)
class Member:
    """A mask of a family and a program that makes it."""

    family: Family
    meaning: Meaning
    program: Program


def random_members(
    rng: Random, count: int = BATCH, families: Sequence[Family] = FAMILIES, dynamic: bool | None = None
) -> list[Member]:
    """Members of random families, all of the same sizes; the programs are run, and those that do not run are dropped.

    Raises:
        AssertionError: if a program does not make the mask it should: then the speller is wrong.
    """
    symbolic = rng.random() < DYNAMIC_SHARE if dynamic is None else dynamic
    square = rng.random() < 0.6
    sizes = random_sizes(rng, square, symbolic)
    # windows must be shorter than the sequence, and a causal mask of one query is full
    sizes |= {"Q": max(sizes["Q"], 4) + 2, "K": max(sizes["K"], 4) + 2 if not square else max(sizes["Q"], 4) + 2}
    if not square and sizes["Q"] == sizes["K"]:
        sizes["K"] += 1
    fitting = [f for f in families if f.square in (None, square)]
    found: list[Member] = []
    while fitting and len(found) < count:
        family = rng.choice(fitting)
        meaning = family.make(rng)
        program = spelled(rng, meaning, square=square, dynamic=symbolic, sizes=sizes)
        if runs_as(program, meaning, rng):
            found.append(Member(family, meaning, program))
    return found


def runs_as(program: Program, meaning: Meaning, rng: Random) -> bool:
    """True if a program runs; what it makes must be the mask of the meaning.

    Raises:
        AssertionError: if it makes another mask.
    """
    inputs = make_inputs(rng, program.sizes)
    try:
        mask = program.run(inputs)[program.results[-1]]
    except OutOfDomain:
        return False
    except Exception as error:
        raise AssertionError(f"the speller wrote what does not run: {error}\n{program.source()}") from error
    allowed = mask if mask.dtype is torch.bool else mask == 0
    expected = table(meaning, program.sizes, inputs)
    shape = torch.broadcast_shapes(expected.shape, allowed.shape)
    assert torch.equal(allowed.expand(shape), expected.expand(shape)), f"not {meaning}:\n{program.source()}"
    return True


def positional_part(meaning: Meaning) -> Meaning:
    """A meaning without the conditions on data that it is a conjunction with."""
    if isinstance(meaning, And):
        return And(tuple(positional_part(p) for p in meaning.parts))
    return And(()) if on_data(meaning) else meaning


def shortfall(member: Member, judged: Judged) -> str:
    """What is missing for a proof of the family's template; empty if nothing is."""
    found, facts = judged.found, judged.reading.facts
    opaque = judged.reading.opaque
    if opaque:
        return "not read: " + "; ".join(judged.reading.unread.get(n, n).replace(f"'{n}'", "it") for n in sorted(opaque))
    if not isinstance(found.verdict, Proved):
        return f"not proved ({type(found.verdict).__name__.lower()})"
    if found.template is None or found.template.kind != member.family.kind:
        return f"proved to be {found.template}, not {member.family.kind}"
    if not equal_claims(judged, positional_part(member.meaning), facts):
        return f"proved to be {found.template}, with other parameters"
    if found.predicate.bias is not None:
        return "a bias was seen"
    if not member.family.data:
        return "" if found.exact else "not exact"
    if found.open or not set(member.family.data) <= found.kinds:
        return f"kinds are {sorted(found.kinds)}, without {member.family.data}"
    if "padding" in member.family.data and is_rewritable(found.template) and found.guard is None:
        return "no guard"
    return ""


def equal_claims(judged: Judged, meaning: Meaning, facts: Facts) -> bool:
    """True if the proved template is the formula of a meaning."""
    if judged.found.template is None:
        return False
    claimed, expected = judged.found.template.allowed(facts), formula(meaning, facts)
    return claimed is expected or judged.reading.trace.prover.holds(build.iff(claimed, expected), facts)


def fuzz_completeness(
    rng: Random, tally: Tally, count: int = BATCH, families: Sequence[Family] = FAMILIES, dynamic: bool | None = None
) -> None:
    """Spell, trace and judge some masks; each that is not proved is a failure of kind "incomplete"."""
    members = random_members(rng, count, families, dynamic)
    by_program = {id(m.program): m for m in members}
    for found in traces_of([m.program for m in members], tally):
        for position, program in enumerate(found.programs):
            _check_member(found, position, by_program[id(program)], rng, tally)


def _check_member(trace: Trace, position: int, member: Member, rng: Random, tally: Tally) -> None:
    judged = judge(trace, position, tally)
    tally.counts["programs"] += 1
    tally.counts["equal by construction"] += 1
    if judged is None:
        return
    tally.counts[f"family {member.family.name}"] += 1
    missing = shortfall(member, judged)
    if missing:
        tally.counts[f"unproved {member.family.name}"] += 1
        text = f"{member.family.name}: {missing} | {judged.found.predicate} | {judged.found.reason}"
        tally.fail("incomplete", member.program, None, text)
    else:
        tally.counts["proved"] += 1
    if rng.random() < 0.3:
        check_verdict(trace, position, rng, tally, others=1, judged=judged)
