"""Networks built by hand, for tests of single layers and of converters' builders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .builder import Builder
from .dims import Weights
from .dtypes import datatype_of_torch
from .engine import ICudaEngine
from .network import INetworkDefinition
from .tensor import ITensor

Shape = Sequence[int]


def engine(
    body: Callable[..., ITensor | Sequence[ITensor]],
    inputs: Mapping[str, torch.Tensor],
    dynamic: Mapping[str, tuple[Shape, Shape]] | None = None,
) -> ICudaEngine:
    """Build `body(network, *input tensors)`, whose result is marked as output, for inputs like the given ones.

    `dynamic` has the minimum and maximum shape of inputs with dynamic dims; the given tensor's shape is the optimum.
    """
    builder = Builder(None)
    network = builder.create_network()
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    tensors = [_add_input(network, profile, name, value, (dynamic or {}).get(name)) for name, value in inputs.items()]
    config.add_optimization_profile(profile)
    results = body(network, *tensors)
    for index, tensor in enumerate([results] if isinstance(results, ITensor) else results):
        tensor.name = f"output{index}"
        network.mark_output(tensor)
    return builder.build_engine_with_config(network, config)


def run(
    body: Callable[..., ITensor | Sequence[ITensor]],
    inputs: Mapping[str, torch.Tensor],
    dynamic: Mapping[str, tuple[Shape, Shape]] | None = None,
) -> Any:
    """Build and evaluate: one tensor, or a tuple where the body returns several."""
    built = engine(body, inputs, dynamic)
    outputs = tuple(built.evaluate(inputs).values())
    return outputs[0] if len(outputs) == 1 else outputs


def _add_input(
    network: INetworkDefinition, profile: Any, name: str, value: torch.Tensor, bounds: tuple[Shape, Shape] | None
) -> ITensor:
    shape = tuple(value.shape)
    if bounds is not None:
        low, high = bounds
        profile.set_shape(name, tuple(low), shape, tuple(high))
        shape = tuple(size if a == b else -1 for size, a, b in zip(shape, low, high, strict=True))
    return network.add_input(name, datatype_of_torch(value.dtype), shape)


def constant(network: INetworkDefinition, value: torch.Tensor) -> ITensor:
    """A constant of the tensor's type and shape."""
    value = value.contiguous()
    weights = Weights(datatype_of_torch(value.dtype), value.data_ptr(), value.numel())
    return network.add_constant(tuple(value.shape), weights).get_output(0)
