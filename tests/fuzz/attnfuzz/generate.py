"""Random mask programs."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from random import Random

import torch

from .program import OutOfDomain, Program, fitting, make_inputs
from .state import State, is_bool, is_float
from .steps import STEPS

_FUNCTIONS = [step for step, _ in STEPS]
_WEIGHTS = [weight for _, weight in STEPS]


def random_sizes(rng: Random, square: bool, distinct: bool) -> dict[str, int]:
    """Sizes at which to make a program; distinct ones where sizes are symbols, so that words and numbers agree."""
    batch, heads = rng.choice(((2, 3), (3, 2))) if distinct else (rng.choice((1, 2)), rng.choice((1, 2, 3)))
    queries = rng.choice((4, 5, 6)) if distinct else rng.choice((1, 2, 4, 5))
    keys = queries if square else rng.choice((7, 8)) if distinct else rng.choice((3, 4, 6))
    return {"B": batch, "H": heads, "Q": queries, "K": keys}


def random_program(rng: Random, *, square: bool, dynamic: bool, sizes: dict[str, int], steps: int = 0) -> Program:
    """A program of random steps that works at the given sizes; its mask fits scores (B, H, Q, K) and is bool or float.

    Args:
        rng: where all choices come from.
        square: as many keys as queries.
        dynamic: to be traced with symbolic sizes.
        sizes: numbers for B, H, Q and K.
        steps: how many steps; random if 0.
    """
    state = State.start(rng, sizes, make_inputs(rng, sizes), dynamic=dynamic)
    if rng.random() < 0.7:
        _begin(state)
    wanted = len(state.lines) + (steps or rng.randrange(3, 14))
    for _ in range(6 * wanted):
        step = rng.choices(_FUNCTIONS, _WEIGHTS)[0]
        if len(state.lines) >= wanted:
            break
        try:
            state.add(step(state))
        except (OutOfDomain, RuntimeError, IndexError, TypeError, ValueError):
            # a write that went wrong in part: begin anew
            return random_program(rng, square=square, dynamic=dynamic, sizes=sizes)
    mask = _as_mask(state)
    words = Counter(re.findall(r"\bt\d+\b", "\n".join(state.lines)))
    leaves = [n for n in state.values if words[n] == 1 and n != mask]
    return pruned(Program(tuple(state.lines), (*leaves[-2:], mask), square, dynamic, sizes))


_OPENINGS = (
    ("torch.arange(Q)[:, None]", "torch.arange(Q).view(-1, 1)", "torch.arange(Q).unsqueeze(1)", "cache[:, None]"),
    ("torch.arange(K)[None, :]", "torch.arange(K)", "torch.arange(K).view(1, 1, 1, K)"),
    ("pad_i[:, None, None, :]", "pad_b[:, None, None, :]", "pad_f[:, None, None]", "doc[:, None, :]", "m4[:]"),
    ("pos[:, None, :, None]", "pad_s[:, None, None, :]", "pad_u[:, None, None, :]", "doc[:, None, :, None]"),
)


def _begin(state: State) -> None:
    """Coordinates and data in the shape in which masks use them."""
    for count, options in enumerate(_OPENINGS):
        if count < 2 or state.chance(0.3):
            state.add(state.choice(options))


def pruned(program: Program) -> Program:
    """The program without lines that no result depends on; programs with writes stay as they are."""
    if not all(re.match(r"t\d+ = ", line) for line in program.lines):
        return program
    needed, kept = set(program.results), []
    for line in reversed(program.lines):
        name, text = line.split(" = ", 1)
        if name in needed:
            kept.append(line)
            needed |= set(re.findall(r"\bt\d+\b", text))
    return replace(program, lines=tuple(reversed(kept)))


def _as_mask(state: State) -> str:
    """The last value that fits the scores, as truth values or floats."""
    shape = [state.sizes[n] for n in "BHQK"]
    values = [state.tensor(n) for n in state.values]
    fits = [n for n, good, v in zip(state.values, fitting(values, shape), values, strict=True) if good and v.dim() >= 2]
    name = fits[-1] if fits else state.add("(torch.arange(K)[None, :] <= torch.arange(Q)[:, None])")
    if name is None:
        raise OutOfDomain("no mask")
    value = state.tensor(name)
    if is_bool(value) or (is_float(value) and value.dtype is not torch.float64):
        return name
    made = state.add(f"{name} != 0") if not is_float(value) else state.add(f"{name}.float()")
    if made is None:
        raise OutOfDomain("no mask")
    return made
