"""A runtime of compiled functions that take and give flat lists of tensors and write nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..functional import FunctionalProgram, Write
from ..runtime import Encoded, Runtime
from .inputs import InputForm, fitted

Flat = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Interface:
    """What the outputs of a compiled program are.

    Attributes:
        outputs: number of the program's own; they come first.
        writes: what the caller writes with the others.
    """

    outputs: int
    writes: tuple[Write, ...]

    @classmethod
    def of(cls, program: FunctionalProgram) -> Interface:
        """The interface of a program."""
        return cls(program.outputs, program.writes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Interface:
        """What `to_dict` gave."""
        return cls(data["outputs"], tuple(Write(**write) for write in data["writes"]))


def flat_runtime(
    name: str,
    functions: Mapping[str, Flat],
    interfaces: Mapping[str, Interface],
    forms: Mapping[str, Sequence[InputForm]],
) -> Runtime:
    """The runtime of the three programs' functions; what they do not write themselves is written after each call.

    Args:
        name: of the backend.
        functions: "encoder", "prefill" and "step"; each is given contiguous tensors.
        interfaces: theirs.
        forms: of their inputs.
    """

    def run(part: str, arguments: tuple[Any, ...]) -> Sequence[Tensor]:
        given = tree_leaves(arguments)
        results = functions[part](fitted(given, forms[part]))
        for write in interfaces[part].writes:
            write.make(given, results)
        return results[: interfaces[part].outputs]

    def encoder(*arguments: Any) -> Encoded:
        hidden, *projected = run("encoder", arguments)
        layers = len(projected) // 2
        return hidden, projected[:layers], projected[layers:]

    def prefill(*arguments: Any) -> Tensor:
        return run("prefill", arguments)[0]

    def step(*arguments: Any) -> Tensor:
        return run("step", arguments)[0]

    return Runtime(name, encoder, prefill, step)
