"""One architecture from config to result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from .architectures import SEQUENCES, Architecture
from .inputs import MASKS, SIZES, Inputs, candidates
from .models import Built, Skip, brief, build
from .scenarios import SCENARIOS, Eager, difference, tensors

Result = dict[str, Any]


def sweep(
    architecture: Architecture,
    report: Callable[[Result], None] = lambda result: None,
    scenarios: Iterable[str] = tuple(SCENARIOS),
) -> Result:
    """Everything there is to say of one architecture, as JSON data; `report` is told after every scenario."""
    started = time.perf_counter()
    result: Result = {
        "model_type": architecture.model_type,
        "class": architecture.class_name,
        "family": architecture.family,
        "status": "running",
        "reason": "",
        "stage": "build",
        "scenarios": {},
    }
    report(result)
    try:
        built, inputs, eager = prepared(architecture)
    except Skip as skip:
        result |= {"status": "skipped", "reason": str(skip), "seconds": time.perf_counter() - started}
        report(result)
        return result
    result |= {"attention": built.attention, "size": built.size, "inputs": inputs.describe()}
    result["masked"] = bool(inputs.masks)
    result["mask_matters"] = mask_matters(eager) if inputs.masks else None
    for name in scenarios:
        run, paddings = SCENARIOS[name]
        if paddings[0] is not None and not inputs.masks:
            continue
        result["stage"] = name
        report(result)
        begun = time.perf_counter()
        result["scenarios"][name] = {**run(built.model, inputs, eager, paddings)}
        result["scenarios"][name]["seconds"] = time.perf_counter() - begun
    result |= {"status": "run", "stage": "done", "seconds": time.perf_counter() - started}
    report(result)
    return result


def prepared(architecture: Architecture) -> tuple[Built, Inputs, Eager]:
    """The model, a way to call it that works in eager mode, and what it then does.

    Raises:
        Skip: if there is none.
    """
    try:
        parameters = architecture.forward_parameters
    except Exception as error:
        raise Skip(f"cannot be imported: {brief(error)}") from error
    if not any(name in parameters for name in SEQUENCES):
        raise Skip(f"takes no sequence ({', '.join(list(parameters)[1:4])})")
    if architecture.family == "base" and "pixel_values" in parameters:
        raise Skip("takes images")
    if architecture.family == "base" and not any("mask" in name for name in parameters):
        raise Skip("takes no attention mask")
    torch.manual_seed(0)
    built = build(architecture)
    problem: Exception | None = None
    for inputs in candidates(architecture, built):
        eager = Eager(built.model, inputs, uses_sdpa=built.attention == "sdpa")
        try:
            check_eager(eager)
        except Skip:
            raise
        except Exception as error:
            problem = problem or error
            continue
        return built, inputs, eager
    raise Skip(f"does not run in eager mode: {brief(problem)}" if problem else "takes no sequence this sweep can make")


def check_eager(eager: Eager) -> None:
    """Run the unchanged model at every size with every mask.

    Raises:
        Skip: if two runs on the same inputs differ.
    """
    for size in range(len(SIZES)):
        for mask in (None, *(MASKS if eager.inputs.masks else ())):
            found, _ = eager.run(size, mask)
            if not found:
                raise ValueError("no floating tensor in its output")
            if all(bool(t.isnan().all()) for t in found):
                raise Skip("its output is NaN throughout")
    with torch.no_grad():
        again = tensors(eager.model(**eager.inputs.make(0, None)))
    if difference(again, eager.run(0, None)[0]) > 0:
        raise Skip("two runs on the same inputs differ")


def mask_matters(eager: Eager) -> bool:
    """True if left padding changes the output where nothing is padded."""
    return difference(eager.run(0, "left")[0], eager.run(0, "ones")[0]) > 1e-4
