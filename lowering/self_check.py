"""`options={"verify": N}`: the untouched graph runs beside the compiled one for the first N calls, and must agree.

The untouched graph runs on copies of everything that a call may write into, without gradients, and the state of the
random generators is put back. What it gives is compared with the compiled outputs, and what it has left in its inputs
with what the compiled graph has left in them. The rewritten graph runs eagerly, too, so that a difference can be put
down to one attention call, or to the target's compiler. A call is not compared if the graph draws random numbers, or if
its inputs are tensor subclasses such as DTensor. Gradients are not compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..errors import VerificationError
from .copying import copy_graph_module
from .differences import Difference, difference, largest, worst
from .guarded import Compiled, GuardedCallable
from .logs import log
from .pipeline import Variant
from .plan import Plan


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the values of some of its nodes."""

    def __init__(self, gm: fx.GraphModule, wanted: Mapping[fx.Node, int]) -> None:
        super().__init__(gm)
        self._wanted = wanted
        self.found: dict[int, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; a copy is kept, as a later one may write into the value."""
        value = super().run_node(n)
        if n in self._wanted and isinstance(value, torch.Tensor):
            self.found[self._wanted[n]] = value.detach().clone()
        return value


@dataclass(frozen=True)
class _Program:
    """A graph that nobody else changes, with its attention calls by number."""

    gm: fx.GraphModule
    sites: Mapping[fx.Node, int]

    def run(self, args: Sequence[Any]) -> tuple[Any, dict[int, torch.Tensor]]:
        recorder = _Recorder(self.gm, self.sites)
        return recorder.run(*args), recorder.found


class SelfCheck:
    """Compares the first calls of a compiled graph with the untouched one.

    Args:
        gm: the untouched graph, before any compiler has seen it. Like the plan's it is copied.
        plan: what was rewritten; its report holds the one `Verification` that is kept up.
        calls: how many calls to compare.
    """

    def __init__(self, gm: fx.GraphModule, plan: Plan, calls: int) -> None:
        self._left = calls
        (self._found,) = plan.report.verifications
        self._names = [s.module or s.node for s in plan.report.sites]
        self._reports = plan.report.sites
        copied, nodes = copy_graph_module(gm)
        sites = {nodes[s.analysis.call.node]: i for i, s in enumerate(plan.general.sites)}
        self._reference = _Program(copied, sites)
        self._general = _copied(plan.general) if plan.general.changed else None
        self._guarded = _copied(plan.guarded) if plan.guarded is not None else None

    def beside(self, compiled: Compiled) -> Compiled:
        """The compiled graph with the check at its side.

        Calling it raises VerificationError where outputs differ by more than rounding.
        """

        def run(*args: Any) -> Any:
            if self._left <= 0:
                return compiled(*args)
            self._left -= 1
            return self._compare(compiled, args)

        return run

    def _compare(self, compiled: Compiled, args: Sequence[Any]) -> Any:
        reason = _obstacle(args)
        if reason:
            self._found.skip(reason)
            return compiled(*args)
        copies = _copies(args)
        with _undisturbed(args) as drawn:
            expected, wanted = self._reference.run(copies)
        if drawn():
            self._found.skip("the graph draws random numbers")
            return compiled(*args)
        holds = not isinstance(compiled, GuardedCallable) or compiled.holds(args)
        rewritten = self._guarded if self._guarded is not None and holds else self._general
        sites = self._site_differences(rewritten, args, wanted) if rewritten is not None else {}
        actual = compiled(*args)
        apart = largest([worst(actual, expected), _written(args, copies)])
        self._note(apart, sites)
        if not apart.allowed:
            raise VerificationError(f"outputs differ from the untouched graph's by {apart}; {self._culprit(sites)}")
        return actual

    def _site_differences(
        self, rewritten: _Program, args: Sequence[Any], wanted: Mapping[int, torch.Tensor]
    ) -> dict[int, Difference]:
        """How far each attention call of the rewritten graph lies from the untouched one's."""
        with _undisturbed(args):
            _, found = rewritten.run(_copies(args))
        return {i: difference(found[i], wanted[i]) for i in sorted(found) if i in wanted}

    def _note(self, apart: Difference, sites: Mapping[int, Difference]) -> None:
        self._found.calls += 1
        self._found.output = largest([apart, self._found.output])
        for position, there in sites.items():
            if not self._found.site or largest([self._found.at_site, there]) is there:
                self._found.site, self._found.at_site = self._names[position], there
        log.info("self-check: %s", self._found)

    def _culprit(self, sites: Mapping[int, Difference]) -> str:
        """The first attention call that is wrong: those behind it inherit its difference."""
        for position, there in sites.items():
            if not there.allowed:
                site = self._reports[position]
                return (
                    f"the first attention call that differs is {self._names[position]} (node '{site.node}', formula "
                    f"{site.formula}, action {site.action}), by {there}. Please report this"
                )
        if sites:
            return "every attention call agrees when the rewritten graph runs eagerly: look at the target's compiler"
        return "no attention call was rewritten: look at the target's compiler"


def _copied(variant: Variant) -> _Program:
    gm, nodes = copy_graph_module(variant.gm)
    return _Program(gm, {nodes[s.node]: i for i, s in enumerate(variant.sites) if s.node in nodes})


def _obstacle(args: Sequence[Any]) -> str:
    """Why a call cannot be run twice; empty if it can."""
    wrapped = [type(value).__name__ for value in args if is_traceable_wrapper_subclass(value)]
    return f"an input is a {wrapped[0]}" if wrapped else ""


def _copies(args: Sequence[Any]) -> list[Any]:
    """The arguments with copies of all tensors but parameters; those that shared memory share it again."""
    storages: dict[int, torch.UntypedStorage] = {}

    def copied(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, torch.nn.Parameter):
            return value
        if value.layout is not torch.strided or value.is_conj() or value.is_neg():
            return value.detach().clone()
        storage = value.untyped_storage()
        memory = storages.setdefault(storage._cdata, storage.clone())
        new = torch.empty(0, dtype=value.dtype, device=value.device)
        return new.set_(memory, value.storage_offset(), value.size(), value.stride())

    return [copied(value) for value in args]


def _written(args: Sequence[Any], copies: Sequence[Any]) -> Difference:
    """How far what a call has left in its inputs lies from what the untouched graph has left in the copies."""
    pairs = zip(args, copies, strict=True)
    return largest([difference(a, c) for a, c in pairs if isinstance(a, torch.Tensor) and a is not c])


@contextmanager
def _undisturbed(args: Sequence[Any]) -> Iterator[Any]:
    """Run something without gradients and put the random generators back; the value says whether any was used."""
    devices = sorted({t.device.index for t in args if isinstance(t, torch.Tensor) and t.device.type == "cuda"})
    used = False
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        before = _generators(devices)
        yield lambda: used
        used = any(not torch.equal(b, a) for b, a in zip(before, _generators(devices), strict=True))


def _generators(devices: Sequence[int]) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(index) for index in devices)]
