"""Counted loops: recurrences, iterators and outputs (torch_tensorrt's cumsum is one)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .. import weak
from ..enums import LayerType, LoopOutput, TripLimit
from ..errors import NetworkError
from ..layer import ILayer, Producer
from ..rules import shape
from ..settings import Configurable, Setting
from ..tensor import ITensor

if TYPE_CHECKING:
    from ..network import INetworkDefinition

_SOURCE = "NvInfer.h, ILoop and its boundary layers"


class ILoop(Configurable):
    """The parts of one loop."""

    name = Setting("", str)

    def __init__(self, network: INetworkDefinition) -> None:
        self._network = network
        self._recurrences: list[IRecurrenceLayer] = []
        self._iterators: list[IIteratorLayer] = []
        self._count: ITripLimitLayer | None = None

    def add_recurrence(self, initial_value: ITensor) -> IRecurrenceLayer:
        layer = self._network._loop_layer(IRecurrenceLayer, [initial_value], self)
        self._recurrences.append(layer)
        return layer

    def add_trip_limit(self, tensor: ITensor, kind: TripLimit) -> ITripLimitLayer:
        if kind is not TripLimit.COUNT:
            raise NotImplementedError(f"the reference TensorRT does not evaluate loops with {kind}")
        self._count = self._network._loop_layer(ITripLimitLayer, [tensor], self)
        return self._count

    def add_iterator(self, tensor: ITensor, axis: int = 0, reverse: bool = False) -> IIteratorLayer:
        layer = self._network._loop_layer(IIteratorLayer, [tensor], self)
        layer.axis, layer.reverse = axis, reverse
        self._iterators.append(layer)
        return layer

    def add_loop_output(self, tensor: ITensor, kind: LoopOutput, axis: int = 0) -> ILoopOutputLayer:
        layer = self._network._loop_layer(ILoopOutputLayer, [tensor], self)
        layer._kind = kind
        layer.axis = axis
        return layer

    def body(self, tensor: ITensor) -> tuple[list[Producer], list[ITensor]]:
        """The layers of an iteration that `tensor` and the recurrences need, in order, and the tensors from outside."""
        inside: dict[Producer, bool] = dict.fromkeys((*self._recurrences, *self._iterators), True)
        order: list[Producer] = []
        roots = [tensor, *(layer.get_input(1) for layer in self._recurrences)]
        pending = [root._producer for root in roots if root is not None]
        while pending:
            layer = pending[-1]
            unknown = [t._producer for t in layer.present_inputs() if t._producer not in inside]
            if layer in inside:
                pending.pop()
            elif unknown:
                pending.extend(unknown)
            else:
                pending.pop()
                inside[layer] = any(inside[t._producer] for t in layer.present_inputs())
                if inside[layer]:
                    order.append(layer)
        outer = [t for layer in (*self._iterators, *self._recurrences) if (t := layer.get_input(0)) is not None]
        candidates = [*(t for layer in order for t in layer.present_inputs()), *(root for root in roots if root)]
        outer.extend(t for t in candidates if not inside[t._producer])
        return order, list(dict.fromkeys(outer))


class _LoopLayer(ILayer):
    def __init__(self, network: INetworkDefinition, inputs: Sequence[ITensor], name: str, loop: ILoop) -> None:
        self._loop = loop
        super().__init__(network, inputs, name)

    @property
    def loop(self) -> ILoop:
        return self._loop


class ITripLimitLayer(_LoopLayer):
    """The number of iterations."""

    layer_type = LayerType.TRIP_LIMIT
    num_results = 0
    kind = "TRIP_LIMIT"

    def check(self) -> None:
        shape.shape_tensor(self, self._inputs[0], "the trip count")
        if len(self._inputs[0].shape) != 0:
            raise NetworkError("trip count", self.describe(), "must be a scalar", _SOURCE)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return ()


class IRecurrenceLayer(_LoopLayer):
    """A value from the iteration before; input 0 is the first one, input 1 the next."""

    layer_type = LayerType.RECURRENCE

    def present_inputs(self) -> list[ITensor]:
        return [tensor for tensor in self._inputs[:1] if tensor is not None]  # input 1 closes the cycle

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0].to("meta"),)  # while the network is built; the loop's output runs the iterations


class IIteratorLayer(_LoopLayer):
    """The slice of a tensor that belongs to the iteration."""

    layer_type = LayerType.ITERATOR
    axis = Setting(0, int)
    reverse = Setting(False, bool)

    def check(self) -> None:
        shape.axis_in_range(self, self.axis, len(self._inputs[0].shape), _SOURCE)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        sizes = [size for axis, size in enumerate(inputs[0].shape) if axis != self.axis]
        return (torch.empty(sizes, dtype=inputs[0].dtype, device="meta"),)

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        lost = weak.forgotten_dims(self._inputs[0])
        return tuple(flag for axis, flag in enumerate(lost) if axis != self.axis)


class ILoopOutputLayer(_LoopLayer):
    """What leaves the loop; evaluating it runs the loop."""

    layer_type = LayerType.LOOP_OUTPUT
    axis = Setting(0, int)

    def __init__(self, network: INetworkDefinition, inputs: Sequence[ITensor], name: str, loop: ILoop) -> None:
        self._kind = LoopOutput.LAST_VALUE
        super().__init__(network, inputs, name, loop)

    def check(self) -> None:
        if self._loop._count is None:
            raise NetworkError("trip count", self.describe(), "the loop has no trip limit", _SOURCE)
        if any(layer.get_input(1) is None for layer in self._loop._recurrences):
            raise NetworkError("unset input", self.describe(), "a recurrence has no next value", _SOURCE)
        if self._kind is not LoopOutput.LAST_VALUE and self.get_input(1) is None:
            raise NetworkError("unset input", self.describe(), "a concatenation needs its length", _SOURCE)

    def present_inputs(self) -> list[ITensor]:
        """The trip count first, then everything that the loop reads from outside."""
        count = [] if self._loop._count is None else self._loop._count.present_inputs()
        return [*count, *self._loop.body(self._inputs[0])[1]]

    def host_inputs(self) -> Sequence[int]:
        return (0,)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        count, outer = int(inputs[0]), inputs[1:]
        order, names = self._loop.body(self._inputs[0])
        values = dict(zip(names, outer, strict=True))
        meta = any(value.is_meta for value in outer)
        for recurrence in self._loop._recurrences:
            values[recurrence._outputs[0]] = values[recurrence._inputs[0]]
        collected = []
        for iteration in range(min(count, 1) if meta else count):  # on meta tensors every iteration looks the same
            for iterator in self._loop._iterators:
                source = values[iterator._inputs[0]]
                place = count - 1 - iteration if iterator.reverse else iteration
                values[iterator._outputs[0]] = source.select(iterator.axis, place)
            for layer in order:
                results = layer.evaluate([values[tensor] for tensor in layer.present_inputs()])
                values.update(zip(layer._outputs, results, strict=True))
            collected.append(values[self._inputs[0]])
            following = [values[layer._inputs[1]] for layer in self._loop._recurrences]
            for recurrence, value in zip(self._loop._recurrences, following, strict=True):
                values[recurrence._outputs[0]] = value
        if self._kind is LoopOutput.LAST_VALUE:
            return (values[self._inputs[0]],)
        if not collected:
            raise NotImplementedError("the reference TensorRT does not evaluate loops without iterations")
        collected = collected * count if meta else collected
        return (torch.stack(collected[:: -1 if self._kind is LoopOutput.REVERSE else 1], dim=self.axis),)

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        lost = list(weak.forgotten_dims(self._inputs[0]))
        if len(lost) < rank:
            lost.insert(self.axis, False)
        return tuple(lost)
