"""Layer kinds and interfaces that torch_tensorrt names and the reference does not evaluate."""

from __future__ import annotations

from typing import Any


class _Unavailable:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"the reference TensorRT has no {type(self).__name__}")


_NAMES = (
    "IPoolingLayer ILRNLayer IScaleLayer IPluginV2Layer IPluginV3Layer IPaddingLayer IRaggedSoftMaxLayer IResizeLayer "
    "ILoopBoundaryLayer IAssertionLayer "
    "IGridSampleLayer INMSLayer IIfConditional IReverseSequenceLayer IDistCollectiveLayer IMoELayer "
    "IDynamicQuantizeLayer"
)

CLASSES = {name: type(name, (_Unavailable,), {"__doc__": f"Not evaluated: {name}."}) for name in _NAMES.split()}
