"""Mask programs: lines of Python over a fixed set of inputs. They run as plain torch and print as a function."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
import torch.nn.functional as F

Sizes = Mapping[str, int]

HEAD_DIM = 4


@dataclass(frozen=True)
class Input:
    """A tensor a program may read: its axes by name of the size, dtype and what its values mean."""

    name: str
    axes: tuple[str, ...]
    dtype: torch.dtype
    meaning: str


INPUTS: tuple[Input, ...] = (
    Input("x", ("B", "H", "Q", "D"), torch.float32, "query"),
    Input("y", ("B", "H", "K", "D"), torch.float32, "key"),
    Input("pad_b", ("B", "K"), torch.bool, "padding"),
    Input("pad_i", ("B", "K"), torch.int64, "padding"),
    Input("pad_f", ("B", "K"), torch.float32, "padding"),
    Input("pad_u", ("B", "K"), torch.uint8, "padding"),
    Input("pad_s", ("B", "K"), torch.int32, "padding"),
    Input("pos", ("B", "Q"), torch.int64, "positions"),
    Input("kpos", ("B", "K"), torch.int64, "positions"),
    Input("cache", ("Q",), torch.int64, "positions"),
    Input("doc", ("B", "K"), torch.int64, "documents"),
    Input("half", ("K",), torch.float16, "numbers"),
    Input("m4", ("B", "1", "Q", "K"), torch.bool, "mask"),
    Input("bias4", ("1", "H", "Q", "K"), torch.float32, "numbers"),
)
"""Every input there is. A program names those it uses; all programs of one trace share them."""

BY_NAME = {i.name: i for i in INPUTS}
_HEADER = "B, H, Q, K = x.shape[0], x.shape[1], x.shape[2], y.shape[2]"


class OutOfDomain(Exception):
    """The values of a program leave what the library promises to read: integers overflow, NaN becomes an integer."""


def input_shape(spec: Input, sizes: Mapping[str, Any]) -> tuple[Any, ...]:
    """The shape of an input at given sizes (ints or SymInts)."""
    fixed = {"D": HEAD_DIM, "1": 1}
    return tuple(fixed[a] if a in fixed else sizes[a] for a in spec.axes)


def make_inputs(rng: Random, sizes: Sizes, kind: str = "random") -> dict[str, torch.Tensor]:
    """Random values for every input. Kinds: "random", "ones" (nothing padded), "large" (numbers that floats round)."""
    return {spec.name: _values(rng, spec, input_shape(spec, sizes), kind) for spec in INPUTS}


def _values(rng: Random, spec: Input, shape: tuple[int, ...], kind: str) -> torch.Tensor:
    count = 1
    for extent in shape:
        count *= extent
    if spec.meaning in ("query", "key"):
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        return torch.randn(shape, generator=generator)
    if spec.meaning in ("padding", "mask"):
        values = [1] * count if kind == "ones" else [int(rng.random() < 0.6) for _ in range(count)]
        if kind == "large" and spec.dtype is not torch.bool:
            most = {torch.uint8: 255, torch.int32: 2**15}.get(spec.dtype, 2**24 + 1)
            odd = float("nan") if spec.dtype.is_floating_point else most
            values = [rng.choice((0, 1, 2, 3, most, odd)) for _ in range(count)]  # type: ignore[misc]
    elif spec.meaning == "positions":
        start = rng.randrange(3)
        values = [start + i % max(shape[-1], 1) for i in range(count)]
        if kind != "ones" and rng.random() < 0.5:
            values = [rng.randrange(0, 2 * shape[-1] + 1) for _ in range(count)]
    elif spec.meaning == "documents":
        values = sorted(rng.randrange(3) for _ in range(count))
    else:
        values = [rng.choice((-2.0, -0.5, 0.0, 0.25, 1.0, 3.0)) for _ in range(count)]  # type: ignore[misc]
    return torch.tensor(values, dtype=torch.float64).to(spec.dtype).view(shape)


@dataclass(frozen=True)
class Program:
    """A mask program.

    Attributes:
        lines: statements, each of which assigns or changes tensors `t0`, `t1`, ...
        results: names of the tensors to be read; the last one is the mask.
        square: True if there are as many keys as queries (`y` has the shape of `x`).
        dynamic: True to trace it with symbolic sizes.
        sizes: the sizes at which it was made and is traced.
    """

    lines: tuple[str, ...]
    results: tuple[str, ...]
    square: bool
    dynamic: bool
    sizes: Mapping[str, int]

    @property
    def used(self) -> tuple[Input, ...]:
        """The inputs it reads, x and y first."""
        words = set(re.findall(r"[A-Za-z_]\w*", "\n".join((*self.lines, *self.results))))
        return tuple(i for i in INPUTS if i.name in ("x", "y") or i.name in words)

    def source(self, name: str = "mask") -> str:
        """The program as a Python function that returns the mask."""
        arguments = ", ".join(i.name for i in self.used)
        body = "\n".join(f"    {line}" for text in (_HEADER, *self.lines) for line in text.split("\n"))
        return f"def {name}({arguments}):\n{body}\n    return {self.results[-1]}\n"

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """All variables after running the program on real tensors.

        Raises:
            OutOfDomain: if values leave what is promised to be read.
        """
        names = {**_NAMES, **{n: t.clone() for n, t in inputs.items()}}
        exec(_compiled("\n".join((_HEADER, *self.lines))), names)
        check_domain(names, "\n".join(self.lines))
        return names

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The results for all inputs in the order of `INPUTS`; for tracing."""
        names: dict[str, Any] = {**_NAMES, **{spec.name: value for spec, value in zip(INPUTS, inputs, strict=True)}}
        exec(_compiled("\n".join((_HEADER, *self.lines))), names)
        return tuple(names[r] for r in self.results)

    def without(self, position: int) -> Program:
        """The program less one line."""
        return replace(self, lines=self.lines[:position] + self.lines[position + 1 :])

    def repro(self, inputs: Mapping[str, torch.Tensor] | None = None) -> str:
        """Python to paste: the function, and a call of it if inputs are given."""
        text = f"# {'dynamic' if self.dynamic else 'static'} sizes, {dict(self.sizes)}\nimport torch\n"
        text += "import torch.nn.functional as F\nfrom math import inf, nan\n\n" + self.source()
        if inputs is not None:
            text += "\n" + "".join(f"{i.name} = {_literal(i, inputs[i.name])}\n" for i in self.used)
            text += f"print(mask({', '.join(i.name for i in self.used)}))\n"
        return text


_NAMES = {"torch": torch, "F": F, "inf": float("inf"), "nan": float("nan")}


@functools.lru_cache(maxsize=4096)
def _compiled(text: str) -> Any:
    return compile(text, "<mask program>", "exec")


def _literal(spec: Input, value: torch.Tensor) -> str:
    if spec.meaning in ("query", "key"):
        return f"torch.zeros({tuple(value.shape)})"
    return f"torch.tensor({value.tolist()}, dtype={spec.dtype})"


_TO_INTEGER = re.compile(r"(\.(long|int)\(\)|\.to\(torch\.(u?int\d+)\))")
_LARGEST = {torch.int64: 2**31, torch.int32: 2**15}


def check_domain(names: Mapping[str, Any], text: str) -> None:
    """Refuse values about which nothing is promised.

    Raises:
        OutOfDomain: if an integer may have overflowed on the way, or a float that no integer holds becomes one.
    """
    casts = bool(_TO_INTEGER.search(text))
    for name, value in names.items():
        if not isinstance(value, torch.Tensor) or not value.numel() or name in BY_NAME:
            continue
        largest = _LARGEST.get(value.dtype)
        if largest is not None and max(int(value.max()), -int(value.min())) > largest:
            raise OutOfDomain(f"{name} holds integers above {largest}")
        if casts and value.dtype.is_floating_point:
            numbers = value.double()
            if bool(numbers.isnan().any()) or float(numbers.abs().max()) > 2**31:
                raise OutOfDomain(f"{name} may hold what no integer does")


def fitting(values: Sequence[torch.Tensor], shape: Sequence[int]) -> list[bool]:
    """For each tensor, whether it broadcasts to a shape."""
    found = []
    for value in values:
        lead = len(shape) - value.dim()
        found.append(
            lead >= 0 and all(s in (1, t) for s, t in zip(value.shape, shape[lead:], strict=True)) and value.numel() > 0
        )
    return found
