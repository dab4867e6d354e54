from tensorrt_reference.fixtures import reference_tensorrt, torch_tensorrt  # noqa: F401
