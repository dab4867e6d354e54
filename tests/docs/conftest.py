"""The pages, and the reference TensorRT for the blocks that need it."""

from tensorrt_reference.fixtures import reference_tensorrt, torch_tensorrt  # noqa: F401
