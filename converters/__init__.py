"""TensorRT: IAttention for canonical attention calls, and the hooks into torch_tensorrt.

Needs torch_tensorrt only when `register` is called; importing this package does not load it.
"""

from .hooks import Registration, is_registered, register, unregister

__all__ = ["Registration", "is_registered", "register", "unregister"]
