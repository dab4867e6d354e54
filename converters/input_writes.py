"""Programs that write into their inputs, such as a model with a static cache, through torch_tensorrt's backend.

Its backend for torch.compile copies every input before it traces, so what a program writes goes into the copies and is
lost, without an error. It has another way, through AOTAutograd, where writes become outputs that are copied back behind
the compiled graph; it takes it for graphs with higher-order operators. With attnlower it takes it for these too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..errors import TensorRTError
from ..patterns.aliasing import writes_into, written_tensors

_DECIDES = "_graph_has_higher_order_ops"
_TRACES = "aot_autograd"


def writes_into_inputs(gm: fx.GraphModule) -> bool:
    """True if a Dynamo graph writes into an input or a buffer, or may."""
    inputs = {n for n in gm.graph.nodes if n.op in ("placeholder", "get_attr")}
    return any(writes_into(n, set(), inputs) for n in gm.graph.nodes if written_tensors(n))


class WritesBecomeOutputs:
    """torch_tensorrt's choice of the way, changed as above, until `undo`.

    Raises:
        TensorRTError: if this torch_tensorrt makes no such choice.
    """

    def __init__(self) -> None:
        from torch_tensorrt.dynamo.backend import backends

        self._backends: Any = backends
        before: Callable[[fx.GraphModule], bool] | None = getattr(backends, _DECIDES, None)
        if before is None or not hasattr(backends, _TRACES):
            raise TensorRTError(f"torch_tensorrt has no '{_DECIDES}': it is of a version attnlower does not know")

        def decides(gm: fx.GraphModule) -> bool:
            return before(gm) or writes_into_inputs(gm)

        trace: Callable[..., Callable[..., Any]] = backends.aot_autograd

        def traces(**settings: Any) -> Callable[..., Any]:
            return lambda gm, inputs: _traced(trace(**settings), gm, inputs)

        self._before: dict[str, Any] = {_DECIDES: before, _TRACES: trace}
        self._own: dict[str, Any] = {_DECIDES: decides, _TRACES: traces}
        for name, own in self._own.items():
            setattr(backends, name, own)

    def undo(self) -> None:
        """Put torch_tensorrt's own functions back, unless somebody else replaced them meanwhile."""
        for name, own in self._own.items():
            if getattr(self._backends, name) is own:
                setattr(self._backends, name, self._before[name])


def _traced(trace: Callable[..., Any], gm: fx.GraphModule, inputs: Any) -> Any:
    """Without gradients, as torch_tensorrt's other way traces: an engine gives none."""
    if not writes_into_inputs(gm):
        return trace(gm, inputs)
    with torch.no_grad():
        return trace(gm, inputs)
