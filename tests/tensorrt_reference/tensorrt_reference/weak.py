"""Weak shape inference: sizes that TensorRT's symbolic inference does not find, although every probe agrees.

Seen in torch_tensorrt (pull request 4131): a query that comes from `view(batch, length, -1, head_dim).transpose(1, 2)`
with dynamic dims has the shape (1, -1, -1, 64), and `add_attention` fails on its head count. The model here:

- A size that a reshape computes for a -1 is unknown where the input has an unknown size.
- A size that comes from a shape tensor is known where that element is a constant (an int in a view's shape list), or is
  the size of a known dim; it is unknown where the element was computed from an unknown size.
- Forgotten sizes stay forgotten behind transposes, elementwise layers and the like; a layer whose other input knows
  the size brings it back, since broadcasting must agree on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from . import inference
from .modes import plain

if TYPE_CHECKING:
    from .layer import Producer
    from .tensor import ITensor

Flags = tuple[bool, ...]

# Added to forgotten elements to see which outputs of a shape computation depend on them.
_PERTURBATIONS = (3, 8)


_unknown_is_forgotten = False


@contextlib.contextmanager
def unknown_is_forgotten() -> Iterator[None]:
    """Inside the block every size that the probes disagree on counts as forgotten."""
    global _unknown_is_forgotten
    before, _unknown_is_forgotten = _unknown_is_forgotten, True
    try:
        yield
    finally:
        _unknown_is_forgotten = before


@plain
def forgotten_dims(tensor: ITensor) -> Flags:
    """Which sizes of the tensor are forgotten."""
    if _unknown_is_forgotten:
        return tuple(size == -1 for size in inference.agreed_sizes(tensor))
    layer = tensor._producer
    if layer.forgotten is None:
        pending = [layer]
        while pending:
            top = pending[-1]
            before = [t._producer for t in top.present_inputs() if t._producer.forgotten is None]
            if before:
                pending.extend(before)
                continue
            pending.pop()
            if top.forgotten is None:
                inference.infer(top)
                top.forgotten = _forgotten_by(top)
    return layer.forgotten[tensor._index]


def _forgotten_by(layer: Producer) -> tuple[Flags, ...]:
    assert layer.results is not None
    ranks = [output.ndim for output in layer.results[0]]
    inputs = layer.present_inputs()
    values = [i for i in layer.host_inputs() if i < len(inputs)]
    if not values and not layer.computes_dims() and not any(any(forgotten_dims(t)) for t in inputs):
        return tuple((False,) * rank for rank in ranks)
    return tuple(layer.forget(index, rank) for index, rank in enumerate(ranks))


@plain
def forgotten_elements(tensor: ITensor) -> torch.Tensor:
    """Which elements of a shape tensor depend on forgotten sizes; a bool tensor of its shape."""
    layer = tensor._producer
    results = inference.infer(layer)[0]
    own = layer.forget_elements()
    if own is not None:
        return own
    inputs = layer.present_inputs()
    lost = [forgotten_elements(t) if not inference.probes_of(t)[0].is_meta else None for t in inputs]
    if not any(mask is not None and bool(mask.any()) for mask in lost):
        return torch.zeros(results[tensor._index].shape, dtype=torch.bool)
    plain = results[tensor._index]
    changed = torch.zeros(plain.shape, dtype=torch.bool)
    for amount in _PERTURBATIONS:
        values = []
        for t, mask in zip(inputs, lost, strict=True):
            value = inference.probes_of(t)[0]
            values.append(value if mask is None else torch.where(mask, _perturbed(value, amount), value))
        try:
            other = tuple(layer.evaluate(values))[tensor._index]
        except Exception:  # an index that left its range: everything depends on it
            return torch.ones(plain.shape, dtype=torch.bool)
        if other.shape != plain.shape:
            return torch.ones(plain.shape, dtype=torch.bool)
        changed |= other != plain
    return changed


def _perturbed(value: torch.Tensor, amount: int) -> torch.Tensor:
    return ~value if value.dtype == torch.bool else value + amount


def forget_by_broadcast(layer: Producer, rank: int) -> Flags:
    """A size is forgotten where no input knows it; inputs of size 1 do not count."""
    lost = [False] * rank
    for axis in range(rank):
        candidates = []
        for tensor in layer.present_inputs():
            dims = inference.dims_of(tensor)
            if len(dims) != rank:
                continue
            if dims[axis] != 1:
                candidates.append(forgotten_dims(tensor)[axis])
        lost[axis] = bool(candidates) and all(candidates)
    return tuple(lost)


def forget_sizes_from(tensor: ITensor) -> Flags:
    """Sizes given by a shape tensor: forgotten where the builder does not know the element."""
    values = inference.constant_values(tensor)
    if values is None:
        return tuple(True for _ in range(inference.probes_of(tensor)[0].numel()))
    return tuple(value is None for value in values)
