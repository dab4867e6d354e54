"""What attnlower adds to compilation, for models of 2 to 80 layers, beside Inductor's own time on the same graph.

A narrow Llama (causal) and Mistral (sliding), captured once per number of layers; Inductor compiles attnlower's result
cold, with empty caches, and for few layers the graph as it was, too. Where the time goes is told by cProfile in a run
of its own: it gives shares only, since profiling slows Python down.
There is no physical limit here: Inductor's time is the yardstick.
"""

from __future__ import annotations

import cProfile
import functools
import gc
import pstats
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

import attnlower
from attnlower import timing
from attnlower.lowering.copying import copy_graph_module
from attnlower.lowering.plan import make_plan
from attnlower.lowering.targets import find_target
from attnlower.patterns.analyze import analyze
from attnlower.patterns.prover import Prover

from .. import models
from ..comparison import Tell
from ..limits import Peak
from ..settings import Settings
from .base import Case

LAYERS = {"causal": (2, 8, 24, 48, 80), "sliding": (2, 8)}
QUICK = {"causal": 2, "sliding": 1}
FEW = 8
LENGTH = 2048
FIELDS = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "sliding_window": 256,
}
TYPES = {"causal": "llama", "sliding": "mistral"}
ROOT = Path(attnlower.__file__).parent
STAGES = {
    "find and read": ("patterns/analyze.py", "analyze"),
    "trace the masks": ("capture/masks.py", "capture_masks"),
    "classify": ("patterns/classify.py", "classify"),
    "copy graphs": ("lowering/copying.py", "copy_graph_module"),
    "build variants": ("lowering/pipeline.py", "build_variant"),
    "write code": ("graph_module.py", "recompile"),
    "report": ("lowering/report.py", "build_report"),
}
"""Functions whose cumulative share is told, by the end of their file's name; some contain others."""


@dataclass(frozen=True)
class CompileTime:
    """The suite of what compilation costs."""

    name: str = "compile_time"
    title: str = "attnlower's passes beside Inductor's cold compilation of the result; narrow models of 2 to 80 layers."
    axis: str = "layers"

    def cases(self, settings: Settings) -> list[Case]:
        """Numbers of layers; `--lengths` are numbers of layers here."""
        return [
            {"model": model, "layers": n}
            for model, layers in LAYERS.items()
            for n in settings.lengths or (layers[: QUICK[model]] if settings.quick else layers)
        ]

    def run(self, case: Case, settings: Settings, peak: Peak, tell: Tell) -> dict[str, Any]:
        """Measure one number of layers."""
        layers = int(case["layers"])
        tell(f"capturing {layers} layers")
        graph, inputs = captured(str(case["model"]), layers, settings.device)
        target = find_target("inductor")

        def passes() -> Any:
            return make_plan(graph, target, prover=Prover())

        plan = passes()  # the first call imports z3 and traces torch's own decompositions
        tell(f"{layers} layers: attnlower's passes")
        rounds = settings.rounds or (3 if settings.quick else 7)
        both = timing.alternate({"passes": passes, "analysis": lambda: analyze(graph, prover=Prover())}, rounds)
        tell(f"{layers} layers: profile")
        stages = profile(passes)
        tell(f"{layers} layers: Inductor")
        seconds = inductor_seconds((plan.guarded or plan.general).gm, inputs)
        tell(f"{layers} layers: Inductor on the graph as it was")
        plain = inductor_seconds(graph, inputs) if layers <= FEW else None
        return {
            "rounds": rounds,
            "passes": {"seconds": list(both.seconds["passes"]), "spread": both.spread("passes").to_dict()},
            "analysis": {"seconds": list(both.seconds["analysis"]), "spread": both.spread("analysis").to_dict()},
            "inductor_seconds": seconds,
            "inductor_alone_seconds": plain,
            "share_of_inductor": both.spread("passes").median / seconds,
            "nodes": len(graph.graph.nodes),
            "sites": len(plan.report.sites),
            "actions": sorted({site.action for site in plan.report.sites}),
            "stages": stages,
            "refused": {},
        }


def captured(kind: str, layers: int, device: torch.device) -> tuple[fx.GraphModule, list[Any]]:
    """The Dynamo graph of a narrow decoder called with an attention mask of all ones, and its example inputs."""
    model = models.build(models.Widths("narrow", TYPES[kind], layers, FIELDS), torch.float32, device)
    found: list[tuple[fx.GraphModule, list[Any]]] = []

    def backend(gm: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        found.append((gm, example_inputs))
        return gm.forward

    ids = torch.randint(3, models.VOCABULARY, (1, LENGTH), device=device)
    torch._dynamo.reset()
    torch.compile(model, backend=backend, dynamic=False)(input_ids=ids, attention_mask=ids > 0, use_cache=False)
    ((graph, inputs),) = found
    return graph, inputs


def inductor_seconds(program: fx.GraphModule, inputs: list[Any]) -> float:
    """The seconds that Inductor takes to compile a graph, with empty caches."""
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.utils import fresh_cache

    program, _ = copy_graph_module(program)
    modes = (t.fake_mode for t in inputs if hasattr(t, "fake_mode"))
    context = TracingContext(next(modes, None))
    start_inductor()
    gc.collect()
    with fresh_cache(), tracing(context):
        start = time.perf_counter()
        compile_fx(program, inputs)
        return time.perf_counter() - start


@functools.cache
def start_inductor() -> None:
    """Compile something small once: what Inductor does at its first compilation only is not a model's cost."""
    torch.compile(lambda x: (x @ x).softmax(-1), dynamic=False)(torch.ones(8, 8))


def profile(passes: Callable[[], Any]) -> list[dict[str, Any]]:
    """The stages' shares of the passes' time, and the functions of attnlower and torch that take most themselves."""
    profiler = cProfile.Profile()
    profiler.runcall(passes)
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    total = sum(entry[2] for entry in stats.values())
    rows = [
        {"stage": stage, "share": entry[3] / total, "calls": entry[0]}
        for stage, (end, function) in STAGES.items()
        for (path, _, name), entry in stats.items()
        if name == function and path.endswith(end)
    ]
    own = sorted(stats.items(), key=lambda item: -item[1][2])[:8]
    rows += [
        {"stage": f"itself: {Path(path).name}:{name}", "share": entry[2] / total, "calls": entry[0]}
        for (path, _, name), entry in own
    ]
    return rows


COMPILE_TIME = CompileTime()
