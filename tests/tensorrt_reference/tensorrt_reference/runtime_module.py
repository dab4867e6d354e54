"""The module that stands for an engine in a compiled graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .engine import Runtime


class ReferenceModule(torch.nn.Module):
    """Calls an engine of the reference: tensors in the order of its inputs to one tensor or a tuple."""

    def __init__(self, serialized: bytes, inputs: Sequence[str], outputs: Sequence[str], name: str) -> None:
        super().__init__()
        engine = Runtime(None).deserialize_cuda_engine(serialized)
        if engine is None:
            raise ValueError("no engine of this process")
        self.engine = engine
        self.input_names, self.output_names, self.name = list(inputs), list(outputs), name

    def forward(self, *inputs: Any) -> Any:
        given = {
            name: value if isinstance(value, torch.Tensor) else torch.tensor([value])
            for name, value in zip(self.input_names, inputs, strict=True)
        }
        outputs = self.engine.evaluate(given)
        results = tuple(outputs[name] for name in self.output_names)
        return results[0] if len(results) == 1 else results

    def setup_engine(self) -> None:
        """Nothing to set up."""

    def set_output_tensors_as_unowned(self, enabled: bool) -> None:
        """Every output is a new tensor."""
