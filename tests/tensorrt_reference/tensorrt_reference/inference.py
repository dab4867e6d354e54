"""Shape inference by probes.

Every layer's own evaluation runs at build time at three points: the profile's minimum, optimum and maximum where the
network has one, else three distinct primes for every dynamic dim. A size is -1 where the
points differ. Values that shapes depend on (at most 64 elements, computed from shapes and constants alone) are real;
everything else is a meta tensor, so that probing costs nothing. A size that merely *looks* static at all three points
(`s % 2` at three odd sizes) is taken for static: the reference may be too kind there, never too strict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import versions, weak
from .errors import NetworkError
from .modes import plain

if TYPE_CHECKING:
    from .layer import Producer
    from .tensor import ITensor

POINTS = ("minimum", "optimum", "maximum")
OPTIMUM = 1
DEFAULT_SIZES = (5, 7, 11)  # for a dynamic dim without a profile

# NvInfer.h documents a small limit for the volume of shape tensors (2 * Dims::MAX_DIMS for some layers, 64 for others).
HOST_ELEMENTS = 64

_SHAPE_CONSTRAINTS = "TensorRT's own message: kOPT values for profile 0 violate shape constraints"


def place(value: torch.Tensor) -> torch.Tensor:
    """The probe form of a value: itself where it may feed a shape, else a meta tensor of its shape."""
    if value.is_meta or value.numel() <= HOST_ELEMENTS:
        return value
    return value.to("meta")


def _on_one_device(values: Sequence[torch.Tensor], host: Sequence[int]) -> list[torch.Tensor]:
    """All real, or all meta but for the inputs whose values the layer needs (`host`)."""
    if not any(value.is_meta for index, value in enumerate(values) if index not in host):
        return list(values)
    return [value if index in host or value.is_meta else value.to("meta") for index, value in enumerate(values)]


def infer(layer: Producer) -> list[tuple[torch.Tensor, ...]]:
    """The layer's outputs at each point, cached until the layer or one before it changes."""
    return _infer(layer) if layer.results is None else layer.results


@plain
def _infer(layer: Producer) -> list[tuple[torch.Tensor, ...]]:
    pending = [layer]
    while pending:  # iterative: networks are deeper than Python's recursion limit
        top = pending[-1]
        before = [t._producer for t in top.present_inputs() if t._producer.results is None]
        if before:
            pending.extend(before)
            continue
        pending.pop()
        if top.results is None:
            top.check()
            top.results = _at_all_points(top)
    return layer.results


def _at_all_points(layer: Producer) -> list[tuple[torch.Tensor, ...]]:
    """The outputs at minimum, optimum and maximum; NetworkError where the optimum cannot be computed.

    Minimum and maximum need not be possible shapes (each input has its own, whatever ties the inputs together), and
    TensorRT only warns there (NVIDIA/TensorRT issue 1947): the network goes on with sizes that are merely different.
    """
    inputs = layer.present_inputs()
    optimum = _at_point(layer, OPTIMUM)
    results = []
    for point in range(len(POINTS)):
        try:
            results.append(optimum if point == OPTIMUM else _at_point(layer, point))
        except NetworkError as problem:
            layer._network.profile_warnings.append(str(problem))
            results.append(_different(layer, inputs, optimum, point))
    return results


def _at_point(layer: Producer, point: int) -> tuple[torch.Tensor, ...]:
    if layer.is_input:
        return (layer.probe(point),)
    inputs = [t._producer.results[point][t._index] for t in layer.present_inputs()]
    inputs = _on_one_device(inputs, layer.host_inputs())
    try:
        outputs = layer.evaluate(inputs)
    except (NetworkError, NotImplementedError):
        raise
    except Exception as problem:
        shapes = [f"{t.name}{tuple(v.shape)}" for t, v in zip(layer.present_inputs(), inputs, strict=True)]
        detail = f"the profile's {POINTS[point]} violates shape constraints for {', '.join(shapes)}: {problem}"
        raise NetworkError("shape constraints", layer.describe(), detail, _SHAPE_CONSTRAINTS) from problem
    return tuple(place(output) for output in outputs)


def _different(
    layer: Producer, inputs: Sequence[ITensor], optimum: tuple[torch.Tensor, ...], point: int
) -> tuple[torch.Tensor, ...]:
    """Outputs like those at the optimum whose unknown sizes are other ones: where possible, an input's at the point."""
    outputs = []
    for index, best in enumerate(optimum):
        if not best.is_meta:
            changed = best if best.dtype == torch.bool or best.is_floating_point() else best + point + 1
            outputs.append(changed)
            continue
        with weak.unknown_is_forgotten():
            lost = layer.forget(index, best.ndim)
        sizes = list(best.shape)
        for axis, unknown in enumerate(lost):
            if unknown:
                sizes[axis] = _size_of_an_input(inputs, best, axis, point)
        outputs.append(torch.empty(sizes, dtype=best.dtype, device="meta"))
    return tuple(outputs)


def _size_of_an_input(inputs: Sequence[ITensor], best: torch.Tensor, axis: int, point: int) -> int:
    for tensor in inputs:
        results = [outputs[tensor._index] for outputs in tensor._producer.results]
        if results[OPTIMUM].ndim == best.ndim and results[OPTIMUM].shape[axis] == best.shape[axis]:
            return results[point].shape[axis]
    return best.shape[axis] + point + 1


def probes_of(tensor: ITensor) -> list[torch.Tensor]:
    """The tensor at each point."""
    return [outputs[tensor._index] for outputs in infer(tensor._producer)]


def agreed_sizes(tensor: ITensor) -> tuple[int, ...]:
    """The tensor's sizes, -1 where the probes differ."""
    probes = probes_of(tensor)
    return tuple(p if all(q.shape[i] == p for q in probes) else -1 for i, p in enumerate(probes[0].shape))


def dims_of(tensor: ITensor) -> tuple[int, ...]:
    """The tensor's sizes, -1 where unknown."""
    sizes = agreed_sizes(tensor)
    if versions.weak_shapes():
        forgotten = weak.forgotten_dims(tensor)
        return tuple(-1 if lost else size for size, lost in zip(sizes, forgotten, strict=True))
    return sizes


@plain
def constant_values(tensor: ITensor) -> list[Any] | None:
    """The elements of a shape tensor, None where the builder does not know one; None if it is no shape tensor."""
    probes = probes_of(tensor)
    if any(p.is_meta for p in probes) or any(p.shape != probes[0].shape for p in probes):
        return None
    lost = weak.forgotten_elements(tensor) if versions.weak_shapes() else torch.zeros(probes[0].shape, dtype=torch.bool)
    known = ~lost
    for probe in probes[1:]:
        known &= probe == probes[0]
    flat = zip(probes[0].flatten().tolist(), known.flatten().tolist(), strict=True)
    return [value if is_known else None for value, is_known in flat]
