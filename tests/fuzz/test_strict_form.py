"""The strict form under random masks: outputs are those of eager, and a claimed key is there for every query."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from random import Random

import torch
from attnfuzz.completeness import random_members
from attnfuzz.lowered import Attend, _dynamic
from attnfuzz.oracle import Tally, judge, trials
from attnfuzz.program import INPUTS, Program, make_inputs
from attnfuzz.reading import trace
from attnfuzz.soundness import random_batch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import attnlower
from attnlower.lowering.passes.nonempty_rows import no_row_is_empty
from attnlower.patterns.calls.canonical import is_canonical
from attnlower.patterns.calls.strict import strict_problem

counts: Counter[str] = Counter()


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


def programs(rng: Random, count: int) -> Sequence[Program]:
    if rng.random() < 0.5:
        return [m.program for m in random_members(rng, count, dynamic=rng.random() < 0.5)]
    return random_batch(rng, count)


def check_rows(rng: Random, count: int) -> None:
    """Where no row is proved empty, none is: by brute force, at several sizes and inputs."""
    batch = programs(rng, count)
    try:
        traced = trace(batch)
    except Exception:
        return
    for position, program in enumerate(batch):
        judged = judge(traced, position, Tally())
        if judged is None:
            continue
        counts["masks"] += 1
        if not no_row_is_empty(judged.found.predicate, traced.prover):
            continue
        counts["claims"] += 1
        for trial in trials(traced, position, rng, others=4):
            mask = trial.results[-1]
            keys = mask if mask.dtype is torch.bool else mask != float("-inf")
            counts["rows looked at"] += 1
            assert keys.any(-1).all(), program.repro(trial.inputs)


def check_outputs(rng: Random, count: int) -> None:
    """Lower for TensorRT, whose canonical calls run their reference here, and compare with eager."""
    batch = programs(rng, count)
    first = batch[0]
    values = tuple(make_inputs(rng, first.sizes)[i.name] for i in INPUTS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(Attend(batch), values, dynamic_shapes=_dynamic(first), strict=False)
    except Exception:
        if count > 1:
            check_outputs(rng, count // 2)
        return
    lowered = attnlower.lower(exported, target="tensorrt")
    calls = [n for n in lowered.program.graph.nodes if is_canonical(n)]
    assert [strict_problem(n) for n in calls] == [""] * len(calls)
    counts["calls"] += len(batch)
    counts["strict calls"] += len(calls)
    run = lowered.program.module()
    for kind in ("random", "ones", "random"):
        inputs = make_inputs(rng, first.sizes, kind)
        values = tuple(inputs[i.name] for i in INPUTS)
        try:
            expected = Attend(batch)(*values)
        except (RuntimeError, IndexError):
            continue
        for program, left, right in zip(batch, run(*values), expected, strict=True):
            counts["outputs"] += 1
            close = torch.allclose(left, right, atol=1e-5, rtol=1e-5, equal_nan=True)
            assert close, f"{(left - right).abs().max()}\n{program.repro(inputs)}"


@sample(12)
@given(seeds)
def test_a_claimed_key_is_there(rng: Random) -> None:
    check_rows(rng, 5)


@sample(5)
@given(seeds)
def test_outputs_are_those_of_eager(rng: Random) -> None:
    check_outputs(rng, 4)


if __name__ == "__main__":
    import sys

    for seed in range(int(sys.argv[1]), int(sys.argv[2])):
        for job in (check_rows, check_outputs):
            try:
                job(Random(seed), 6)
            except Exception as error:
                print(f"seed {seed} {job.__name__}: {type(error).__name__}: {error}", flush=True)
    print(dict(counts))
