"""True masks, changed by one element, one bound or one operation: never proved to be what they were."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import torch

from .completeness import Member, equal_claims, positional_part
from .families import FAMILIES
from .generate import random_sizes
from .meaning import And, Le, Meaning, Near, Or, SameChunk, table
from .oracle import Judged, Tally, check_verdict
from .program import OutOfDomain, Program, make_inputs
from .reading import Trace
from .soundness import traces_of
from .spelling import spelled

DYNAMIC_SHARE = 0.3


def mutated(rng: Random, meaning: Meaning) -> Meaning | None:
    """A meaning with one bound or one operation changed; None if there is nothing to change."""
    options: list[Meaning] = []
    match meaning:
        case Le(left, right, shift, moved):
            options += [replace(meaning, shift=shift + 1), replace(meaning, shift=shift - 1)]
            if {left, right} == {"q", "k"}:
                options.append(Le(right, left, shift, moved))  # transposed
                options.append(replace(meaning, moved=rng.choice([m for m in (-1, 0, 1) if m != moved])))
        case Near(width):
            options += [Near(width + 1), *([Near(width - 1)] if width else [])]
            options.append(And((meaning, Le("k", "q"))))
        case SameChunk(size):
            options += [SameChunk(size + 1), *([SameChunk(size - 1)] if size > 1 else [])]
        case And(parts) | Or(parts) if parts:
            at = rng.randrange(len(parts))
            inner = mutated(rng, parts[at])
            if inner is not None:
                options.append(type(meaning)((*parts[:at], inner, *parts[at + 1 :])))
            if len(parts) > 1:
                options.append(Or(parts) if isinstance(meaning, And) else And(parts))
                options.append(type(meaning)((*parts[:at], *parts[at + 1 :])))
    return rng.choice(options) if options else None


def with_one_element_changed(rng: Random, program: Program) -> Program:
    """The program with one pair of query and key allowed or blocked against the rule, by a write."""
    name, count = program.results[-1], len(program.lines)
    q, k = rng.randrange(program.sizes["Q"]), rng.randrange(program.sizes["K"])
    changed = f"t{count}"
    lines = (
        f"{changed} = ({name} & torch.ones(B, 1, Q, K, dtype=torch.bool)).clone()",
        f"{changed}[..., {q}, {k}] = ~{changed}[..., {q}, {k}]",
    )
    if program.dynamic:  # the place must exist at every size
        lines = (lines[0], lines[1].replace(f"{q}, {k}", "-1, 0"))
    return replace(program, lines=(*program.lines, *lines), results=(changed,))


def fuzz_mutations(rng: Random, tally: Tally, count: int = 8) -> None:
    """Spell and change some masks and check what is said of them."""
    dynamic, square = rng.random() < DYNAMIC_SHARE, rng.random() < 0.6
    sizes = random_sizes(rng, square, dynamic)
    sizes |= {"Q": sizes["Q"] + 2, "K": sizes["Q"] + 2 if square else sizes["K"] + 3}
    families = [f for f in FAMILIES if f.square in (None, square)]
    members: dict[int, Member] = {}
    programs: list[Program] = []
    for _ in range(4 * count):
        family = rng.choice(families)
        meaning = family.make(rng)
        if rng.random() < 0.3:
            program = spelled(rng, meaning, square=square, dynamic=dynamic, sizes=sizes, boolean=True)
            program = with_one_element_changed(rng, program)
        else:
            changed = mutated(rng, meaning)
            if changed is None:
                continue
            program = spelled(rng, changed, square=square, dynamic=dynamic, sizes=sizes)
        try:
            program.run(make_inputs(rng, sizes))
        except (OutOfDomain, RuntimeError, IndexError):
            continue
        programs.append(program)
        members[id(program)] = Member(family, meaning, program)
        if len(programs) == count:
            break
    for found in traces_of(programs, tally) if programs else []:
        for position, program in enumerate(found.programs):
            tally.counts["programs"] += 1
            tally.counts["mutations"] += 1
            judged = check_verdict(found, position, rng, tally)
            if judged is not None:
                _check_not_the_original(found, position, members[id(program)], judged, rng, tally)


def _check_not_the_original(
    trace: Trace, position: int, member: Member, judged: Judged, rng: Random, tally: Tally
) -> None:
    """If a changed mask is proved to be the original template all the same, the two must be equal at every size."""
    if member.family.data or not judged.found.exact:
        return
    if not equal_claims(judged, positional_part(member.meaning), judged.reading.facts):
        return
    tally.counts["mutations equal to the original"] += 1
    program = trace.programs[position]
    for sizes in _range_of_sizes(program) if program.dynamic else [dict(program.sizes)]:
        if not trace.admits(sizes):
            continue
        inputs = make_inputs(rng, sizes)
        try:
            mask = program.run(inputs)[program.results[-1]]
        except (OutOfDomain, RuntimeError, IndexError):
            continue
        allowed = mask if mask.dtype is torch.bool else mask == 0
        expected = table(member.meaning, sizes, inputs)
        shape = torch.broadcast_shapes(expected.shape, allowed.shape)
        if not torch.equal(allowed.expand(shape), expected.expand(shape)):
            tally.fail(
                "mutation", program, inputs, f"proved to be {judged.found.template}, which it was; sizes {sizes}"
            )
            return


def _range_of_sizes(program: Program) -> list[dict[str, int]]:
    pairs = [(q, k) for q in range(2, 12) for k in range(2, 12) if (q == k) == program.square]
    return [{"B": 2, "H": 2, "Q": q, "K": k} for q, k in pairs]
