"""Logic that changes how a mask is written and not what it says, and the forms in which attention takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .spelling import Speller


def joined(s: Speller, names: Sequence[str], conjunction: bool) -> str:
    """All of some truth values, or one of them; De Morgan's law and its relatives included."""
    if not names:
        return _constant(s, conjunction)
    result = names[0]
    for name in names[1:]:
        if s.chance(s.plainness):
            text = f"{result} & {name}" if conjunction else f"{result} | {name}"
        elif conjunction:
            text = s.choice(
                f"torch.logical_and({result}, {name})",
                f"{result} * {name}",
                f"torch.where({result}, {name}, False)",
                f"~(~{result} | ~{name})",
                f"{name} & {result}",
                f"torch.zeros(B, 1, Q, K, dtype=torch.bool).masked_fill({result} & {name}, True)",
                f"torch.ones(B, 1, Q, K, dtype=torch.bool).masked_fill(~{result}, False).masked_fill(~{name}, False)",
                f"torch.minimum({result}.int(), {name}.int()).bool()",
                f"({result}.int() * {name}.int()).bool()",
                f"({result}.int() + {name}.int()) == 2",
                f"({result}.float() * {name}) > 0",
                f"({result}.long() + {name}.long() - 1).clamp(min=0).bool()",
                f"(torch.where({result}, 0.0, -inf) + torch.where({name}, 0.0, -inf)) == 0",
                f"torch.minimum({result}, {name})",
                f"~(~{result} + ~{name})",
                f"{result} ^ ({result} & ~{name})",
                f"{result} & ({name} | ~{result})",
            )
        else:
            text = s.choice(
                f"torch.logical_or({result}, {name})",
                f"{result} + {name}",
                f"torch.where({result}, True, {name})",
                f"~(~{result} & ~{name})",
                f"{name} | {result}",
                f"torch.maximum({result}.int(), {name}.int()).bool()",
                f"({result}.int() + {name}.int()) >= 1",
                f"({result}.int() + {name}.int()) > 0",
                f"~((~{result}).int() * (~{name}).int()).bool()",
                f"{result} ^ ({name} & ~{result})",
            )
        result = s.new(text)
    return result


def _constant(s: Speller, value: bool) -> str:
    number = int(value)
    return s.new(
        s.choice(
            f"torch.full((Q, K), {value})",
            f"torch.full((1, 1, Q, K), {number}).bool()",
            f"torch.{'ones' if value else 'zeros'}(B, 1, Q, K, dtype=torch.bool)",
            f"torch.tensor({value}).expand(Q, K)",
        )
    )


def wrapped(s: Speller, name: str) -> str:
    """Zero to two layers of logic that cancel out."""
    for _ in range(s.rng.choice((0, 0, 0, 1, 2)) if not s.chance(s.plainness) else 0):
        name = s.new(_wrapping(s, name))
    return name


def _wrapping(s: Speller, m: str) -> str:
    true = s.choice(
        "(torch.arange(K) >= 0)",
        "(torch.arange(K)[None, :] < K)",
        "(torch.arange(Q)[:, None] < Q)",
        "torch.ones(Q, K, dtype=torch.bool)",
        "(torch.arange(Q)[:, None] >= 0)",
        "torch.tensor(True)",
        "((torch.arange(Q)[:, None] <= 3) | (torch.arange(Q)[:, None] > 2))",
        "(torch.arange(K) * 2 != 1)",
        "(torch.arange(K) % 2 < 2)",
    )
    return s.choice(
        f"{m} & {true}",
        f"{true} & {m}",
        f"{m} | ~{true}",
        f"~(~{m})",
        f"torch.logical_not(torch.logical_not({m}))",
        f"~(~{m} | ~{true})",
        f"{m} ^ ~{true}",
        f"~({m} ^ {true})",
        f"{m} == {true}",
        f"{m} != False",
        f"torch.where({m}, {true}, False)",
        f"torch.where(~{m}, False, {true})",
        f"{m}.int().bool()",
        f"{m}.float() != 0",
        f"{m}.to(torch.bfloat16) == 1",
        f"{m}.to(torch.float16).bool()",
        f"{m}.long() > 0",
        f"{m}.masked_fill(~{m}, False)",
        f"{m}.masked_fill({m}, True)",
        f"{m} | {m}",
        f"{m} & {m}",
        f"{m} | ({m} & {true})",
        f"{m} & ({m} | ~{true})",
        f"(1 - {m}.int()) == 0",
        f"(1.0 - {m}.float()) < 1",
        f"{m}.to(torch.uint8) == 1",
        f"torch.where({m}, 0.0, -inf) == 0.0",
        f"~torch.isneginf(torch.where({m}, 0.0, -inf))",
        f"torch.where({m}, 0.0, torch.finfo(torch.float32).min) > -1.0",
        f"torch.zeros_like({m}) | {m}",
        f"{m}.expand(B, 1, Q, K)",
        f"{m}.clone()",
        f"{m} * {true}",
    )


def final(s: Speller, name: str) -> str:
    """The mask as attention takes it: truth values, or numbers to be added."""
    if s.chance(0.5):
        return s.new(s.choice(f"{name}.expand(B, 1, Q, K)", f"{name}.expand(B, H, Q, K)")) if s.chance(0.3) else name
    low = s.choice("-inf", "-inf", "torch.finfo(torch.float32).min", "float('-inf')")
    finite = "torch.finfo(torch.float32).min"
    text = s.choice(
        f"torch.where({name}, 0.0, {low})",
        f"torch.where(~{name}, torch.tensor({low}), torch.tensor(0.0))",
        f"torch.zeros(B, 1, Q, K).masked_fill(~{name}, {low})",
        f"(~{name}).float().masked_fill(~{name}, {low})",
        f"(1.0 - {name}.float()) * {finite}",
        f"(~{name}).float() * {finite}",
        f"{name}.float().masked_fill({name} == 0, {low}).masked_fill({name} == 1, 0.0)",
        f"torch.full((B, 1, Q, K), {low}).masked_fill({name}, 0.0)",
        f"torch.full((B, 1, Q, K), {low}) * (~{name})" if low == finite else f"torch.where({name}, 0.0, {low}) + 0.0",
        f"torch.where({name}, 0.0, {low}).to(torch.float32)",
        f"{name}.float().log()",
        f"torch.zeros_like({name}, dtype=torch.float32).masked_fill({name}.logical_not(), {low})",
    )
    return s.new(text)
