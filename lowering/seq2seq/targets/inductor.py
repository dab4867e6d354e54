"""Inductor compiles the programs, when they are first called or ahead of time into packages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..runtime import Runtime

if TYPE_CHECKING:
    from ..programs import Seq2SeqPrograms


def compile_with_inductor(programs: Seq2SeqPrograms, **options: Any) -> Runtime:
    """Each program through torch.compile; a program is compiled when it is first called.

    Args:
        programs: the programs.
        options: Inductor's.
    """
    parts = {
        name: torch.compile(program.module(check_guards=False), dynamic=True, options=options or None)
        for name, program in programs.programs.items()
    }
    return Runtime("inductor", parts["encoder"], parts["prefill"], parts["step"])
