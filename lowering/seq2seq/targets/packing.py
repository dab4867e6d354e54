"""Inductor's options for programs whose weights are constants: packed once, as the CPU's own kernels want them.

A decoding step reads every weight of the decoder once and does little with it, so its time is that of the reading.
oneDNN reads weights in its own layout about three times as fast as MKL reads the model's on an AMD processor, and a
layer's projections of one input are one product. The packed weights are copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ....errors import OptionError

if TYPE_CHECKING:
    from ..programs import Seq2SeqPrograms

PACKED: Mapping[str, Any] = {"freezing": True, "cpp.enable_concat_linear": True}


def inductor_options(programs: Seq2SeqPrograms, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options of Inductor over those for packed weights, which are for programs on the CPU.

    Raises:
        OptionError: for an option that Inductor does not have.
    """
    unknown = sorted(set(given) - set(torch._inductor.list_options()))
    if unknown:
        raise OptionError(f"Inductor has no options {unknown}")
    weights = [t for program in programs.programs.values() for t in program.state_dict.values()]
    on_cpu = all(t.device.type == "cpu" for t in weights)
    return {**(PACKED if on_cpu and torch.backends.mkldnn.is_available() else {}), **given}
