"""What the reference TensorRT raises."""

from __future__ import annotations


class NetworkError(Exception):
    """A network breaks a documented rule of TensorRT.

    Deliberately no `RuntimeError`: torch_tensorrt's `torch.compile` backend swallows those and falls back to eager,
    and a test bench must not lose the finding.

    Attributes: `rule` (the rule's name), `layer` (name of the offending layer), `source` (where NVIDIA states it).
    """

    def __init__(self, rule: str, layer: str, detail: str, source: str) -> None:
        super().__init__(f"[{rule}] {layer}: {detail} (source: {source})")
        self.rule = rule
        self.layer = layer
        self.detail = detail
        self.source = source


class EngineError(RuntimeError):
    """An engine was fed what it was not built for: a binding's dtype, rank, static size or profile range."""
