"""Inductor compiles the programs, each when it is first called."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..runtime import Runtime
from .packing import inductor_options

if TYPE_CHECKING:
    from ..programs import Seq2SeqPrograms


def compile_with_inductor(programs: Seq2SeqPrograms, **options: Any) -> Runtime:
    """Compile each program for all the sizes it is good for; the first call of each compiles it.

    On the CPU the weights are packed as they are at that call: a later change of the model is not seen.

    Args:
        programs: the programs.
        options: Inductor's. On the CPU `freezing` is True by default, which packs the weights, in copies.

    Raises:
        OptionError: for an option that Inductor does not have.
    """
    options = inductor_options(programs, options)
    parts = {name: CompiledProgram(program, options) for name, program in programs.programs.items()}
    return Runtime("inductor", parts["encoder"], parts["prefill"], parts["step"])


class CompiledProgram:
    """An exported program compiled by Inductor without Dynamo in front.

    A program's sizes are symbols already, so nothing has to be traced again and no guard has to be asked at a call: for
    a decoding step that takes longer than the step. Should Inductor rest on something about the sizes all the same, the
    program goes through torch.compile, which checks it at every call.
    """

    def __init__(self, program: ExportedProgram, options: Mapping[str, Any]) -> None:
        self._program, self._options = program, dict(options)
        self._run: Callable[..., Any] | None = None
        self._lock = threading.Lock()

    def __call__(self, *args: Any) -> Any:
        """Run the program, compiled by the first call."""
        if self._run is None:
            with self._lock:
                if self._run is None:
                    self._run = _compiled(self._program, self._options)
        return self._run(*args)


def _compiled(program: ExportedProgram, options: Mapping[str, Any]) -> Callable[..., Any]:
    flat = flat_module(program)
    inputs = [n.meta["val"] for n in flat.graph.nodes if n.op == "placeholder"]
    guards = _guards_of(inputs)
    before = len(guards)
    with torch.no_grad(), _unsaved():
        artifact: Any = torch._inductor.standalone_compile(flat, inputs, options={"config_patches": dict(options)})
    if len(guards) > before:
        module = program.module(check_guards=False)
        checked: Callable[..., Any] = torch.compile(module, dynamic=True, options=dict(options) or None)
        return checked
    spec = program.call_spec.out_spec

    def run(*args: Any) -> Any:
        return pytree.tree_unflatten(artifact(*pytree.tree_leaves(args)), spec)

    return run


@contextmanager
def _unsaved() -> Iterator[None]:
    """Within it nothing is said about artifacts with packed weights, which cannot be saved: they are not to be."""
    log = logging.getLogger("torch._inductor.standalone_compile")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


def flat_module(program: ExportedProgram) -> fx.GraphModule:
    """A program as a module of flat inputs and outputs, its weights inside."""
    module = program.module(check_guards=False)
    module.graph.set_codegen(fx.graph.CodeGen())
    module.recompile()
    return module


def _guards_of(inputs: Sequence[Any]) -> Sequence[Any]:
    """What has been asked of the sizes of some fake tensors so far; grows as more is asked."""
    for tensor in inputs:
        for size in tensor.shape:
            if isinstance(size, torch.SymInt):
                guards: Sequence[Any] = size.node.shape_env.guards
                return guards
    return ()
