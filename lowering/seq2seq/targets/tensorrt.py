"""TensorRT: each program through torch_tensorrt, with attnlower's converters: one engine per program.

The programs are functional here: an engine returns the new rows of the caches, which PyTorch writes behind it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten

from ....errors import OptionError
from ..functional import FunctionalProgram, functional
from ..runtime import Runtime
from .flat import Flat, Interface, flat_runtime
from .inputs import input_forms

if TYPE_CHECKING:
    from ..programs import Seq2SeqPrograms

# Found by name when they are needed: `converters` builds on `lowering`, not the other way round.
_REGISTER = "attnlower.converters.hooks:register"
_OPTIONS = "attnlower.converters.compiling:torch_tensorrt_options"
_MODULE = "attnlower.converters.versions:torch_tensorrt_module"


def compile_with_tensorrt(programs: Seq2SeqPrograms, **options: Any) -> Runtime:
    """Compile each program with torch_tensorrt, attnlower registered meanwhile.

    Args:
        programs: the programs, on the device that TensorRT is to run on.
        options: torch_tensorrt's settings. `min_block_size` is 1 by default, so that nothing is left to PyTorch that
            TensorRT takes.

    Raises:
        TensorRTError: if torch_tensorrt or TensorRT is missing or of an unsupported version.
        OptionError: for a setting that torch_tensorrt does not have.
    """
    module = pkgutil.resolve_name(_MODULE)()
    unknown = sorted(set(options) - pkgutil.resolve_name(_OPTIONS)())
    if unknown:
        raise OptionError(f"torch_tensorrt has no settings {unknown}")
    settings = {"min_block_size": 1, **options}
    parts = {name: functional(program, {}) for name, program in programs.programs.items()}
    with pkgutil.resolve_name(_REGISTER)(), torch.no_grad():
        functions = {name: _compiled(module, part, settings) for name, part in parts.items()}
    interfaces = {name: Interface.of(part) for name, part in parts.items()}
    forms = {name: input_forms(program) for name, program in programs.programs.items()}
    return flat_runtime("tensorrt", functions, interfaces, forms)


def _compiled(module: Any, part: FunctionalProgram, settings: dict[str, Any]) -> Flat:
    examples = part.program.example_inputs
    arguments = () if examples is None else examples[0]
    run: Callable[..., Any] = module.dynamo.compile(part.program, arg_inputs=list(arguments), **settings)
    structure = part.program.call_spec.in_spec

    def flat(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        positional, keywords = tree_unflatten(inputs, structure)
        with torch.no_grad():
            return tree_leaves(run(*positional, **keywords))

    return flat
