"""What a generated mask is meant to say: a small formula, apart from every way to write it down in torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from attnlower.patterns import Expr, Facts, build

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Le:
    """`left <= right + shift + moved * (K - Q)`, for left and right in "q", "k", "0" and "c" (`cache[q]`)."""

    left: str
    right: str
    shift: int = 0
    moved: int = 0

    @property
    def offset(self) -> str:
        """What is added to the right side, as Python."""
        return {0: str(self.shift), 1: f"K - Q + {self.shift}", -1: f"Q - K + {self.shift}"}[self.moved]


@dataclass(frozen=True)
class Near:
    """`|q - k| <= width`."""

    width: int


@dataclass(frozen=True)
class SameChunk:
    """`q // size == k // size`."""

    size: int


@dataclass(frozen=True)
class Padding:
    """The key is not padding, by one of the inputs `pad_*`."""

    source: str


@dataclass(frozen=True)
class SameDocument:
    """`doc[b, q] == doc[b, k]`, for as many keys as queries."""


@dataclass(frozen=True)
class InBlock:
    """`doc[b, q] >= 1`: the query belongs to a block."""


@dataclass(frozen=True)
class And:
    """All of them."""

    parts: tuple[Meaning, ...]


@dataclass(frozen=True)
class Or:
    """One of them."""

    parts: tuple[Meaning, ...]


Meaning = Le | Near | SameChunk | Padding | SameDocument | InBlock | And | Or

TRUE = And(())


def formula(meaning: Meaning, facts: Facts) -> Expr:
    """A meaning without data as an expression over q and k.

    Raises:
        ValueError: for padding and documents, whose formula depends on how they are written.
    """
    q, k = build.coord("q"), build.coord("k")
    match meaning:
        case Le(left, right, shift, moved) if "c" not in (left, right):
            named = {"q": q, "k": k, "0": build.ZERO}
            offset = build.const_int(shift)
            if moved:
                offset = build.add(offset, build.scaled(build.sub(facts.extents["k"], facts.extents["q"]), moved))
            return build.le(named[left], build.add(named[right], offset))
        case Near(width):
            w = build.const_int(width)
            return build.and_(build.le(build.sub(q, w), k), build.le(k, build.add(q, w)))
        case SameChunk(size):
            n = build.const_int(size)
            return build.eq(build.floordiv(q, n), build.floordiv(k, n))
        case And(parts):
            return build.and_(*(formula(p, facts) for p in parts))
        case Or(parts):
            return build.or_(*(formula(p, facts) for p in parts))
    raise ValueError(f"{meaning} depends on data")


def table(meaning: Meaning, sizes: Sizes, inputs: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
    """The mask itself, of shape (B, 1, Q, K), by the plainest means. Without inputs nothing is padded."""
    q, k = torch.arange(sizes["Q"]).view(1, 1, -1, 1), torch.arange(sizes["K"]).view(1, 1, 1, -1)
    shape = (sizes["B"], 1, sizes["Q"], sizes["K"])
    match meaning:
        case Le(left, right, shift, moved):
            cache = q if inputs is None else inputs["cache"].view(1, 1, -1, 1)
            named = {"q": q, "k": k, "0": torch.tensor(0), "c": cache}
            more = moved * (sizes["K"] - sizes["Q"])
            return (named[left] <= named[right] + shift + more).expand(shape)
        case Near(width):
            return ((q - k).abs() <= width).expand(shape)
        case SameChunk(size):
            return (q // size == k // size).expand(shape)
        case Padding(source):
            if inputs is None:
                return torch.ones(shape, dtype=torch.bool)
            return (inputs[source] != 0)[:, None, None, :].expand(shape)
        case SameDocument():
            if inputs is None:
                return torch.ones(shape, dtype=torch.bool)
            return (inputs["doc"][:, None, :, None] == inputs["doc"][:, None, None, :]).expand(shape)
        case InBlock():
            if inputs is None:
                return torch.ones(shape, dtype=torch.bool)
            return (inputs["doc"] >= 1)[:, None, :, None].expand(shape)
        case And(parts) | Or(parts):
            result = torch.full(shape, isinstance(meaning, And))
            for part in parts:
                own = table(part, sizes, inputs)
                result = result & own if isinstance(meaning, And) else result | own
            return result


def on_data(meaning: Meaning) -> bool:
    """True if inputs have a say in the mask."""
    match meaning:
        case Padding() | SameDocument() | InBlock():
            return True
        case Le(left, right):
            return "c" in (left, right)
        case And(parts) | Or(parts):
            return any(on_data(p) for p in parts)
    return False


def as_scalar(meaning: Meaning) -> str:
    """The meaning as Python over 0-d tensors b, h, q and k, as a mask function of transformers has it."""
    match meaning:
        case Le(left, right, _, _):
            named = {"q": "q", "k": "k", "0": "torch.zeros((), dtype=torch.int64)", "c": "cache[q]"}
            return f"({named[left]} <= {named[right]} + {meaning.offset})"
        case Near(width):
            return f"((q - k).abs() <= {width})"
        case SameChunk(size):
            return f"(q // {size} == k // {size})"
        case Padding(source):
            return f"({source}[b, k] != 0)"
        case SameDocument():
            return "(doc[b, q] == doc[b, k])"
        case InBlock():
            return "(doc[b, q] >= 1)"
        case And(parts):
            return f"({' & '.join(as_scalar(p) for p in parts)})" if parts else "(q >= 0)"
        case Or(parts):
            return f"({' | '.join(as_scalar(p) for p in parts)})"
