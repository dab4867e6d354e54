"""A bounded sample of the fuzzer (`make fuzz` runs it at length), and checks that it would notice what it looks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import torch
from attnfuzz.completeness import fuzz_completeness, random_members, shortfall
from attnfuzz.families import FAMILIES
from attnfuzz.generate import random_program, random_sizes
from attnfuzz.lowered import fuzz_compiled, fuzz_lowered
from attnfuzz.meaning import And, Le, Padding, table
from attnfuzz.mutations import fuzz_mutations, mutated
from attnfuzz.oracle import Judged, Tally, check_reading, check_verdict, judge
from attnfuzz.program import INPUTS, Program, make_inputs
from attnfuzz.reading import trace
from attnfuzz.run import JOBS, UNSOUND, WANTED, completeness, report, run_job, unsound
from attnfuzz.shrinking import shrunk
from attnfuzz.soundness import fuzz_soundness
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from attnlower.patterns import build
from attnlower.patterns.masks import Causal
from attnlower.patterns.verdict import Proved


# The same examples in every run. Failures come with a program to paste, shrunk by the fuzzer itself.
def sample(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


seeds = st.integers(0, 2**32 - 1).map(Random)


def check(tally: Tally) -> None:
    wrong = [f for f in tally.failures if f.kind in (*UNSOUND, "crash")]
    assert not wrong, "\n".join(str(shrunk(f)) for f in wrong)


@sample(30)
@given(seeds)
def test_what_is_said_of_random_programs_is_true(rng: Random) -> None:
    tally = Tally()
    fuzz_soundness(rng, tally, count=5)
    check(tally)


def test_masks_equal_to_a_template_are_proved() -> None:
    tally = Tally()
    for seed in range(12):
        fuzz_completeness(Random(f"sample {seed}"), tally, count=6)
    check(tally)
    assert completeness(tally) >= WANTED - 0.01, report(tally)  # one in a small sample may be missed
    assert tally.counts["equal by construction"] >= 60


@sample(12)
@given(seeds)
def test_changed_masks_are_not_proved_to_be_what_they_were(rng: Random) -> None:
    tally = Tally()
    fuzz_mutations(rng, tally, count=5)
    check(tally)


def test_lowered_programs_compute_what_eager_does() -> None:
    tally = Tally()
    for seed in (0, 3):
        fuzz_lowered(Random(f"sample {seed}"), tally, count=4)
    check(tally)
    assert tally.counts["outputs compared"] >= 12


def test_compiled_programs_compute_what_eager_does() -> None:
    tally = Tally()
    for seed in range(2):
        fuzz_compiled(Random(f"sample {seed}"), tally, count=3)
    check(tally)
    assert tally.counts["compiled outputs compared"] >= 12
    assert any(name.startswith("compiled action") for name in tally.counts)


# --- would it notice? ---------------------------------------------------------------------------------------------

SIZES = {"B": 2, "H": 2, "Q": 5, "K": 5}


def program(*lines: str, dynamic: bool = False) -> Program:
    names = [line.split(" = ")[0] for line in lines if " = " in line and "[" not in line.split(" = ")[0]]
    return Program(lines, (names[-1],), True, dynamic, SIZES)


CAUSAL = program("t0 = torch.arange(K)[None] <= torch.arange(Q)[:, None]")
PADDED = program("t0 = (torch.arange(K)[None] <= torch.arange(Q)[:, None]) & (pad_i != 0)[:, None, None, :]")


def failures(check: Callable[..., object], made: Program, **changes: object) -> set[str]:
    """Kinds of failures found by a check."""
    found, tally = trace([made]), Tally()
    check(found, 0, Random(0), tally, **changes)
    return {f.kind for f in tally.failures}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("made", [CAUSAL, PADDED])
def test_true_claims_pass(made: Program, dynamic: bool) -> None:
    made = replace(made, dynamic=dynamic)
    assert not failures(check_reading, made)
    assert not failures(check_verdict, made)


def test_a_wrong_reading_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    le = build.le
    monkeypatch.setattr(build, "le", lambda left, right: le(left, build.add(right, build.ONE)))
    from attnlower.patterns.rules import pointwise

    monkeypatch.setitem(pointwise._INT_COMPARISONS, "le", build.le)
    assert failures(check_reading, CAUSAL) == {"reading"}
    assert failures(check_verdict, CAUSAL) == {"predicate"}


def judged(made: Program) -> Judged:
    found = judge(trace([made]), 0, Tally())
    assert found is not None
    return found


def test_a_wrong_template_is_noticed() -> None:
    found = judged(CAUSAL)
    one_off = replace(found, found=replace(found.found, template=Causal(offset=build.ONE)))
    assert failures(check_verdict, CAUSAL, judged=one_off) == {"verdict"}


def test_a_wrong_guard_is_noticed() -> None:
    found = judged(PADDED)
    assert found.found.guard is not None
    assert not failures(check_verdict, PADDED, judged=found)
    backwards = replace(found.found.guard.conditions[0], relation="==")  # all padding
    wrong = replace(found, found=replace(found.found, guard=replace(found.found.guard, conditions=(backwards,))))
    assert failures(check_verdict, PADDED, judged=wrong) == {"guard"}


def test_data_that_is_left_out_is_noticed() -> None:
    found = judged(PADDED)
    assert isinstance(found.found.verdict, Proved)
    forgotten = replace(found, found=replace(found.found, data=()))
    assert failures(check_verdict, PADDED, judged=forgotten) == {"verdict"}


def test_other_sizes_are_tried() -> None:
    """A mask that is causal at the traced sizes only."""
    made = program(
        "t0 = torch.arange(K)[None] <= torch.arange(Q)[:, None]",
        "t1 = t0 & (torch.arange(Q)[:, None] < 5)",
        dynamic=True,
    )
    found = judged(made)
    wrong = replace(found, found=replace(found.found, template=Causal(), exact=True, verdict=Proved("")))
    assert "verdict" in failures(check_verdict, made, judged=wrong, others=8)


def test_a_failure_prints_a_program_that_runs() -> None:
    inputs = make_inputs(Random(0), SIZES)
    made = PADDED
    names: dict[str, object] = {}
    exec(made.repro(inputs), names)
    mask = names["mask"](names["x"], names["y"], names["pad_i"])  # type: ignore[operator]
    expected = table(And((Le("k", "q"), Padding("pad_i"))), SIZES, inputs)
    assert torch.equal(mask.expand(expected.shape), expected)


def test_failures_are_shrunk() -> None:
    lines = ("t0 = torch.arange(Q)", "t1 = torch.ones(3)", "t2 = torch.arange(K)[None] <= t0[:, None]", "t3 = t0 + 1")
    made = Program(lines, ("t1", "t3", "t2"), True, False, SIZES)
    tally = Tally()
    with pytest.MonkeyPatch.context() as patch:
        from attnlower.patterns.rules import pointwise

        patch.setitem(pointwise._INT_COMPARISONS, "le", build.lt)
        check_verdict(trace([made]), 0, Random(0), tally)
        assert [f.kind for f in tally.failures] == ["predicate"]
        small = shrunk(tally.failures[0])
    assert len(small.program.lines) == 2
    assert "mask" in str(small)


# --- the generators -----------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_programs() -> None:
    def make(seed: int) -> Program:
        rng = Random(seed)
        return random_program(rng, square=False, dynamic=True, sizes=random_sizes(rng, False, True))

    assert make(3) == make(3)
    assert make(3) != make(4)


def test_random_programs_use_many_ops_and_all_inputs() -> None:
    rng = Random(0)
    text, used = "", set()
    for _ in range(300):
        made = random_program(rng, square=False, dynamic=False, sizes=random_sizes(rng, False, False))
        text += made.source()
        used |= {i.name for i in made.used}
    assert used == {i.name for i in INPUTS}
    for op in (
        "arange",
        "tril",
        "expand",
        "flip",
        "where",
        "masked_fill",
        "gather",
        "cat",
        "pad",
        "cumsum",
        "clone()[",
    ):
        assert op.split("()")[0] in text, op


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_every_family_has_members_that_are_proved(family: object) -> None:
    rng = Random(0)
    members = []
    while not members:
        members = random_members(rng, 1, [family], dynamic=False)  # type: ignore[list-item]
    found = judge(trace([members[0].program]), 0, Tally())
    assert found is not None
    assert shortfall(members[0], found) == ""


def test_mutations_change_the_mask() -> None:
    rng, changed = Random(0), 0
    for _ in range(200):
        family = rng.choice(FAMILIES)
        meaning = family.make(rng)
        other = mutated(rng, meaning)
        if other is not None:
            assert other != meaning
            sizes = {"B": 1, "H": 1, "Q": 9, "K": 9 if family.square else 11}
            inputs = make_inputs(rng, sizes)
            changed += not torch.equal(table(meaning, sizes, inputs), table(other, sizes, inputs))
    assert changed > 120


def test_a_job_that_fails_itself_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(rng: Random, tally: Tally) -> None:
        tally.counts["programs"] += 1
        raise ValueError("a mistake in the fuzzer")

    monkeypatch.setitem(JOBS, "soundness", (broken, 1.0))
    tally = run_job("0:soundness:0")
    assert tally.counts["failed crash"] == 1
    assert "a mistake in the fuzzer" in report(tally)


def test_a_run_is_counted_and_reported() -> None:
    tally = run_job("0:soundness:0")
    assert tally.counts["programs"] > 0
    assert unsound(tally) == 0
    assert "fully read" in report(tally)
