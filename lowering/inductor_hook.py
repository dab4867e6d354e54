"""Inductor's own hook: `torch._inductor.config.pre_grad_custom_pass`, for those who keep `backend="inductor"`.

    torch.compile(model, options={"pre_grad_custom_pass": attnlower.inductor_pass()})

Of Inductor's hooks this is the one that sees attention as the model wrote it, before autograd. A pass is handed one
graph and cannot choose per call: what is known about padding is stated (`assume=`), or the backend `attnlower` is used.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from ..patterns.analyze import analyze
from ..patterns.conditions import Condition
from ..patterns.masks.finders import DEFAULT_TEMPLATES
from ..patterns.metadata import input_label, tensor_of
from ..patterns.prover import Prover
from ..patterns.rules import DEFAULT_RULES
from .history import remember
from .logs import log, log_report, trace_graph, trace_report
from .pipeline import rewrite_in_place
from .report import Report, build_report
from .targets.inductor import INDUCTOR

_warned: set[str] = set()


class InductorPass(CustomGraphPass):
    """Lowers the attention of each graph that Inductor compiles, on proof; the graph is changed in place.

    After an internal error the graph is left as it was, with one warning (unless `strict`). `attnlower.last_report`
    tells what was done.
    """

    def __init__(self, assumed: tuple[Condition, ...], timeout_ms: int, strict: bool) -> None:
        self._assumed = assumed
        self._timeout_ms = timeout_ms
        self._strict = strict

    def __call__(self, graph: fx.Graph) -> None:
        """Rewrite a graph as Dynamo captured it."""
        gm = graph.owning_module
        if gm is None:
            return
        try:
            report = self._lower(gm)
        except Exception as error:
            if self._strict:
                raise
            reason = f"{type(error).__name__}: {error}"
            report = Report(error=reason)
            log.info("left a graph untouched after an internal error (%s)", reason)
            if reason not in _warned:
                _warned.add(reason)
                warnings.warn(f"attnlower left a graph untouched after an internal error ({reason})", stacklevel=2)
        remember(report)

    def _lower(self, gm: fx.GraphModule) -> Report:
        inputs = {input_label(n): n.name for n in gm.graph.nodes if n.op == "placeholder" and tensor_of(n) is not None}
        # with graph breaks an input may be in another piece
        assumed = tuple(replace(c, node=inputs[c.label]) for c in self._assumed if c.label in inputs)
        analysis = analyze(gm, prover=Prover(self._timeout_ms))
        trace_graph("before", gm)
        variant = rewrite_in_place(gm, analysis, INDUCTOR, assumed)
        texts = tuple(str(c) for c in assumed)
        report = build_report(analysis, variant.sites, None, variant.results, INDUCTOR.name, texts)
        log_report(report)
        trace_report(report)
        if variant.changed:
            trace_graph("after", gm)
        return report

    def uuid(self) -> str | None:
        """What Inductor's caches tell rewrites apart by; None if they are not to be looked up before the pass has run.

        A rewrite depends on the graph, which the caches know, on this package, and on the ranges of the sizes. Rules
        and templates of the user's own may depend on anything.
        """
        if _has_foreign_entries():
            return None
        digest = hashlib.sha256(_sources_hash())
        digest.update(repr((self._assumed, self._timeout_ms, self._strict, _size_ranges())).encode())
        return digest.hexdigest()


def _size_ranges() -> list[tuple[str, str]]:
    """The ranges of the size symbols of the compilation that is under way."""
    context = torch._guards.TracingContext.try_get()
    mode = context.fake_mode if context is not None else None
    shape_env = mode.shape_env if mode is not None else None
    ranges = shape_env.var_to_range if shape_env is not None else {}
    return sorted((str(symbol), str(bounds)) for symbol, bounds in ranges.items())


def _has_foreign_entries() -> bool:
    """True if somebody has registered read rules or templates of their own."""
    entries = [*DEFAULT_RULES._rules.values(), *DEFAULT_TEMPLATES._finders.values()]
    return any(not str(getattr(entry, "__module__", "")).startswith("attnlower.") for entry in entries)


@lru_cache(1)
def _sources_hash() -> bytes:
    """A hash of every source file of this package."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for folder in (root, *(root / name for name in ("patterns", "lowering"))):
        paths = folder.glob("*.py") if folder == root else folder.rglob("*.py")
        for path in sorted(paths):
            digest.update(path.read_bytes())
    return digest.digest()
