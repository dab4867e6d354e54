"""`register`: put the pipeline in front of torch_tensorrt, for all its entry points at once, and take it out again."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import fx

from ..lowering.graph_modules import fixed_tensors, origins_of
from ..lowering.history import remember
from ..lowering.logs import log_report
from ..lowering.passes.cache_writes import put_back_writes, take_out_writes
from ..lowering.passes.embedding_indices import write_embedding_indices
from ..lowering.passes.index_values import write_index_values
from ..lowering.passes.scalar_rank import write_scalar_rank
from ..lowering.pipeline import rewrite_in_place
from ..lowering.report import Report, build_report
from ..lowering.targets.tensorrt import tensorrt_target
from ..patterns.analyze import analyze
from .adapters import SPELLINGS
from .registry import Installation
from .versions import tensorrt_support, torch_tensorrt_module

_lock = threading.RLock()
_installed: Installation | None = None
_silent = threading.local()
_warned: set[str] = set()


class Registration:
    """attnlower in front of torch_tensorrt; as a context manager it undoes itself.

    Leaving the context restores what was there on entering it: a registration that was made before stays.
    """

    def __init__(self, made: bool) -> None:
        self._made = made

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._made:
            unregister()


def register() -> Registration:
    """Let every compilation by torch_tensorrt in this process use attnlower.

    That is: proofs, the passes of target "tensorrt", and IAttention for every mask that remains.

    Holds for `torch_tensorrt.compile`, `torch_tensorrt.dynamo.compile` and `torch.compile(backend="torch_tensorrt")`,
    until `unregister()` or, as a context manager, until its end. Calling it again changes nothing. The pass of
    torch_tensorrt that takes every additive mask for causal (`attn_bias_is_causal`) does not run meanwhile. The report
    of the last compilation is `attnlower.last_report()`.

    Raises:
        TensorRTError: if torch_tensorrt or TensorRT is missing or of an unsupported version.
    """
    global _installed
    torch_tensorrt_module()
    tensorrt_support()
    with _lock:
        if _installed is not None:
            return Registration(made=False)
        _installed = Installation(attnlower_lowering, attnlower_closing)
        return Registration(made=True)


def unregister() -> None:
    """Take attnlower out of torch_tensorrt; nothing happens if it is not in."""
    global _installed
    with _lock:
        if _installed is not None:
            _installed.undo()
            _installed = None


def is_registered() -> bool:
    """True while compilations by torch_tensorrt use attnlower."""
    return _installed is not None


@contextmanager
def without_report() -> Iterator[None]:
    """Within it the compilations of this thread leave `attnlower.last_report()` alone."""
    before = getattr(_silent, "on", False)
    _silent.on = True
    try:
        yield
    finally:
        _silent.on = before


def attnlower_lowering(gm: fx.GraphModule, settings: Any) -> fx.GraphModule:
    """torch_tensorrt's first lowering pass: prove, rewrite and legalize the attention of an ATen graph, in place.

    After an internal error the attention is as it was, with one warning. What the program writes is kept from the
    passes that follow; `attnlower_closing` brings it back. Where `torch_executed_ops` names an op of attention, it
    stays as it is: the user wants it in PyTorch.

    Raises:
        TensorRTError: if the program writes into a buffer or an input in a way that torch_tensorrt would forget.
    """
    writes = take_out_writes(gm)
    if _left_to_pytorch(settings):
        return gm
    try:
        target = tensorrt_target(str(tensorrt_support()), decompose=bool(settings.decompose_attention))
        constants = fixed_tensors(gm)
        analysis = analyze(gm, constants=constants, origins=origins_of(gm, constants))
        variant = rewrite_in_place(gm, analysis, target)
        report = build_report(analysis, variant.sites, None, (writes, *variant.results), target.name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        report = Report(target="tensorrt", error=reason)
        if reason not in _warned:
            _warned.add(reason)
            warnings.warn(f"attnlower left a graph untouched after an internal error ({reason})", stacklevel=2)
    if not getattr(_silent, "on", False):
        remember(report)
    log_report(report)
    return gm


def attnlower_closing(gm: fx.GraphModule, settings: Any) -> fx.GraphModule:
    """torch_tensorrt's last lowering pass: what it refuses or gets wrong in what its own passes leave is rewritten.

    What the program writes is written by PyTorch, behind the engines.
    """
    write_embedding_indices(gm)
    write_index_values(gm)
    write_scalar_rank(gm)
    put_back_writes(gm)
    gm.recompile()
    return gm


def _left_to_pytorch(settings: Any) -> bool:
    """True if the settings keep some spelling of attention, or attnlower's own op, out of the engines."""
    named = {str(op).removeprefix("torch.ops.") for op in settings.torch_executed_ops}
    ops = [spelling.op for spelling in SPELLINGS] + [torch.ops.attnlower.attention.default]
    return any(str(op) in named for op in ops)
