"""A program in the making: its lines so far, and what they give at the sizes it is made at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch

from .program import _HEADER, _NAMES, INPUTS, OutOfDomain, Sizes, check_domain

_LARGEST_TENSOR = 4000


@dataclass
class State:
    """What the steps of a random program see.

    Attributes:
        rng: where all choices come from.
        sizes: numbers for B, H, Q and K.
        names: every variable with its value.
        lines: the program so far.
        values: names of the tensors made so far, inputs that were looked at included.
        dynamic: True if the sizes will be symbols.
    """

    rng: Random
    sizes: Sizes
    names: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    dynamic: bool = False
    _count: int = 0

    @classmethod
    def start(cls, rng: Random, sizes: Sizes, inputs: dict[str, torch.Tensor], *, dynamic: bool) -> State:
        """A state without lines."""
        names = {**_NAMES, **{n: t.clone() for n, t in inputs.items()}}
        exec(_HEADER, names)
        return cls(rng, sizes, names, dynamic=dynamic)

    def tensor(self, name: str) -> torch.Tensor:
        """The value of a variable."""
        value: torch.Tensor = self.names[name]
        return value

    def add(self, text: str | None) -> str | None:
        """Run one more line and keep it if it works; the new variable's name, or "" for a write.

        A text without " = " or with an indexed target is a statement, any other one the value of a new variable.
        """
        if text is None:
            return None
        statement = text.startswith("!")
        name = "" if statement else f"t{self._count}"
        line = text[1:] if statement else f"{name} = {text}"
        before = dict(self.names)
        try:
            exec(line, self.names)
            if not statement:
                value = self.names[name]
                if not isinstance(value, torch.Tensor) or not 0 < value.numel() <= _LARGEST_TENSOR or value.dim() > 5:
                    raise OutOfDomain("not a tensor of a fit size")
            check_domain(self.names, "\n".join((*self.lines, line)))
        except Exception:
            if not statement:
                self.names.clear()
                self.names.update(before)
                return None
            raise  # a write may have been done in part
        self.lines.append(line)
        if not statement:
            self._count += 1
            self.values.append(name)
        return name

    def pick(self, fits: Callable[[torch.Tensor], bool] = lambda t: True) -> str | None:
        """A variable whose value fits; late ones are more likely."""
        found = [n for n in self.values if fits(self.tensor(n))]
        if not found:
            return None
        return found[-1 - min(int(self.rng.expovariate(0.25)), len(found) - 1)]

    def two(self, fits: Callable[[torch.Tensor], bool] = lambda t: True) -> tuple[str, str] | None:
        """Two variables that broadcast against each other."""
        first = self.pick(fits)
        if first is None:
            return None
        shape = self.tensor(first).shape
        for _ in range(3):
            second = self.pick(lambda t: fits(t) and broadcasts(shape, t.shape))
            if second != first:
                break
        return None if second is None else (first, second)

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self.rng.random() < probability

    def choice(self, options: Iterable[Any]) -> Any:
        """One of some options."""
        return self.rng.choice(list(options))

    def dim(self, size: int) -> str:
        """A size in words: a name, a shape that has it, or the number."""
        words = [n for n in ("B", "H", "Q", "K") if self.sizes[n] == size]
        if not words or self.chance(0.15):
            words += [f"{n}.shape[{i}]" for n in self.values for i, s in enumerate(self.tensor(n).shape) if s == size]
        return self.choice(words) if words and size != 1 else str(size)

    def extent(self) -> tuple[str, int]:
        """A size for a new axis, in words and as a number."""
        name = self.choice("QQKKKBH1")
        if name == "1":
            return "1", 1
        size = self.sizes[name]
        if self.chance(0.1):
            more = self.rng.randrange(1, 4)
            return f"{name} + {more}", size + more
        if self.chance(0.05):
            return f"2 * {name}", 2 * size
        return name, size

    def shape_text(self, shape: Iterable[int]) -> str:
        """A shape in words, as the arguments of a call."""
        return ", ".join(self.dim(s) for s in shape)


def broadcasts(left: Iterable[int], right: Iterable[int]) -> bool:
    """True if two shapes broadcast against each other."""
    pairs = zip(reversed(list(left)), reversed(list(right)), strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs)


def is_integer(t: torch.Tensor) -> bool:
    """True for integers, truth values not included."""
    return not t.dtype.is_floating_point and t.dtype is not torch.bool


def is_float(t: torch.Tensor) -> bool:
    """True for floats of any width."""
    return t.dtype.is_floating_point


def is_bool(t: torch.Tensor) -> bool:
    """True for truth values."""
    return t.dtype is torch.bool


INPUT_NAMES = tuple(i.name for i in INPUTS if i.meaning not in ("query", "key"))
