"""What a compiled program takes: backends do not all look at what they are given.

A package of AOTInductor reads a mask of bytes as if it were one of int64, and features of another size up to where its
own would end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves

from ....errors import ProgramError
from ....patterns.metadata import tensor_of


@dataclass(frozen=True)
class InputForm:
    """An input of a program.

    Attributes:
        name: in the program.
        dtype: of the tensor.
        device: of the tensor.
        sizes: None where a size is dynamic.
    """

    name: str
    dtype: torch.dtype
    device: torch.device
    sizes: tuple[int | None, ...]

    def fitted(self, tensor: Tensor) -> Tensor:
        """The tensor, contiguous; integers and booleans in the program's type.

        Raises:
            ProgramError: if it is on another device, floating where the program's is not or in another precision, or of
                other sizes.
        """
        if tensor.dtype is not self.dtype and not (tensor.dtype.is_floating_point or self.dtype.is_floating_point):
            tensor = tensor.to(self.dtype)
        sizes = tuple(tensor.shape)
        fits = len(sizes) == len(self.sizes) and all(b in (None, a) for a, b in zip(sizes, self.sizes, strict=True))
        if not fits or tensor.dtype is not self.dtype or tensor.device != self.device:
            wanted = [size if size is not None else "any" for size in self.sizes]
            raise ProgramError(
                f"'{self.name}' is {tensor.dtype} {list(sizes)} on {tensor.device}; the program takes {self.dtype} "
                f"{wanted} on {self.device}"
            )
        return tensor.contiguous()


def input_forms(program: ExportedProgram) -> tuple[InputForm, ...]:
    """The forms of the user's inputs, in order."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    forms = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            continue
        value = tensor_of(nodes[spec.arg.name])
        if value is None:
            raise ProgramError(f"input '{spec.arg.name}' is no tensor")
        sizes = tuple(size if isinstance(size, int) else None for size in value.shape)
        forms.append(InputForm(spec.arg.name, value.dtype, value.device, sizes))
    return tuple(forms)


def fitted(arguments: Any, forms: Sequence[InputForm]) -> list[Tensor]:
    """The tensors in nested arguments, each in its form.

    Raises:
        ProgramError: if there are more or fewer, or one does not fit.
    """
    given = tree_leaves(arguments)
    if len(given) != len(forms):
        raise ProgramError(f"the program takes {len(forms)} tensors, not {len(given)}")
    return [form.fitted(tensor) for form, tensor in zip(forms, given, strict=True)]
