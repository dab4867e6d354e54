"""The reference TensorRT: a pure-Python stand-in for the module `tensorrt`, on which the real torch_tensorrt runs.

It checks a network against TensorRT's documented rules and evaluates it with torch on a CPU. It is a test bench: it
knows nothing of kernels, tactics, precision or speed, and what passes here has not run on TensorRT.
"""

from .errors import EngineError, NetworkError
from .install import hidden, install, is_installed, reset
from .report import (
    AttentionSettings,
    Compilation,
    attentions,
    clear_networks,
    compilations,
    describe,
    fresh_networks,
    last_network,
    layer_counts,
    networks,
    summarize,
)
from .versions import current, version, weak_shape_inference

__all__ = [
    "AttentionSettings",
    "Compilation",
    "EngineError",
    "NetworkError",
    "attentions",
    "clear_networks",
    "compilations",
    "current",
    "describe",
    "fresh_networks",
    "hidden",
    "install",
    "is_installed",
    "last_network",
    "layer_counts",
    "networks",
    "reset",
    "summarize",
    "version",
    "weak_shape_inference",
]
