"""PyTorch runs the programs as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..runtime import Runtime

if TYPE_CHECKING:
    from ..programs import Seq2SeqPrograms


def run_eagerly(programs: Seq2SeqPrograms) -> Runtime:
    """The graphs themselves."""
    parts = {name: program.module(check_guards=False) for name, program in programs.programs.items()}
    return Runtime("eager", parts["encoder"], parts["prefill"], parts["step"])
