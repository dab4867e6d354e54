"""The weights of several programs in one file, each once, whatever programs use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

NAME = "weights.pt"


def save_programs(programs: Mapping[str, ExportedProgram], folder: Path) -> None:
    """Write `NAME.pt2` per program, without weights, and one file of weights, in which programs share what they share.

    Args:
        programs: by name.
        folder: is there.
    """
    for name, program in programs.items():
        torch.export.save(_without_weights(program), folder / f"{name}.pt2")
    torch.save({name: dict(program.state_dict) for name, program in programs.items()}, folder / NAME)


def load_programs(names: tuple[str, ...], folder: Path) -> dict[str, ExportedProgram]:
    """Read what `save_programs` has written; programs share weights as they did.

    Args:
        names: of the programs.
        folder: that holds them.
    """
    weights: dict[str, dict[str, Any]] = torch.load(folder / NAME, weights_only=True)
    return {name: _with_weights(torch.export.load(folder / f"{name}.pt2"), weights[name]) for name in names}


def _without_weights(program: ExportedProgram) -> ExportedProgram:
    return _with_weights(program, {name: _emptied(t) for name, t in program.state_dict.items()})


def _emptied(weight: torch.Tensor) -> torch.Tensor:
    """What stands for a weight in a program's own file."""
    empty = weight.detach().new_empty(0)
    return torch.nn.Parameter(empty, weight.requires_grad) if isinstance(weight, torch.nn.Parameter) else empty


def _with_weights(program: ExportedProgram, weights: dict[str, Any]) -> ExportedProgram:
    return ExportedProgram(
        root=program.graph_module,
        graph=program.graph,
        graph_signature=program.graph_signature,
        state_dict=weights,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=list(program.verifiers),
    )
