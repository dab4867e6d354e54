"""What tells whether a file was compiled from a given program."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from ....patterns.metadata import tensor_of


def fingerprint(program: ExportedProgram, *, made_with: str) -> str:
    """A digest of a program's ops, sizes and weights, the same after saving and loading.

    Args:
        program: the program.
        made_with: what else decides about the result, such as the compiler's version.
    """
    digest = hashlib.sha256(made_with.encode())
    numbers: dict[fx.Node, str] = {}
    symbols: dict[str, str] = {}
    for node in program.graph.nodes:
        numbers[node] = f"%{len(numbers)}"
        operands = fx.node.map_arg((node.args, sorted(node.kwargs.items())), numbers.__getitem__)
        name = node.target if node.op == "call_function" else ""
        digest.update(f"{node.op} {name} {operands} {_form(tensor_of(node), symbols)}\n".encode())
    for spec in program.graph_signature.input_specs:
        digest.update(f"{spec.kind} {spec.target}\n".encode())
    ranges = {str(symbol): f"{r.lower} {r.upper}" for symbol, r in program.range_constraints.items()}
    digest.update(repr([(number, ranges.get(symbol)) for symbol, number in symbols.items()]).encode())
    for tensors in (program.state_dict, program.constants):
        _add(digest, tensors)
    return digest.hexdigest()


def _form(tensor: Tensor | None, symbols: dict[str, str]) -> str:
    """Dtype, device and sizes; a symbolic size by its place among those that were met."""
    if tensor is None:
        return ""
    sizes = [str(s) if isinstance(s, int) else symbols.setdefault(str(s), f"s{len(symbols)}") for s in tensor.shape]
    return f"{tensor.dtype} {tensor.device} {sizes}"


def _add(digest: Any, tensors: Mapping[str, Any]) -> None:
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            digest.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
            digest.update(plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
