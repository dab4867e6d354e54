"""Installing the reference changes torch_tensorrt and nothing else."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
import warnings
from types import ModuleType

import pytest
import torch

# What a process can see of the reference, before and after it is installed.
_WITNESS = """
import logging, sys, warnings
import torch, torch._decomp, torch._dynamo, torch._inductor.config

def witness():
    def asked(question):
        try:
            return repr(question())
        except Exception as problem:
            return type(problem).__name__
    return {
        "is_available": torch.cuda.is_available(),
        "device_count": torch.cuda.device_count(),
        "current_device": asked(torch.cuda.current_device),
        "capability": asked(torch.cuda.get_device_capability),
        "properties": asked(lambda: torch.cuda.get_device_properties(0)),
        "memory": asked(torch.cuda.mem_get_info),
        "_CudaDeviceProperties": hasattr(torch._C, "_CudaDeviceProperties"),
        "showwarning": warnings.showwarning is original,
        "filters": list(warnings.filters),
        "handlers": list(logging.getLogger().handlers),
        "level": logging.getLogger().level,
        "decompositions": len(torch._decomp.decomposition_table),
        "dynamo": torch._dynamo.config.save_config(),
        "default_dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }

original = warnings.showwarning
before = witness()
import tensorrt_reference
tensorrt_reference.install()
after = witness()
different = [name for name in before if before[name] != after[name]]
assert not different, {name: (before[name], after[name]) for name in different}
print("untouched")
"""


def test_reference_leaves_the_process_as_it_was() -> None:
    if importlib.util.find_spec("torch_tensorrt") is None:
        pytest.skip("torch_tensorrt is not installed")
    path = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
    done = subprocess.run([sys.executable, "-c", path + _WITNESS], capture_output=True, text=True, timeout=120)
    assert "untouched" in done.stdout, done.stderr


def test_install_is_idempotent(reference_tensorrt: ModuleType, torch_tensorrt: ModuleType) -> None:
    import tensorrt as trt

    questions = torch.cuda.current_device, trt.INetworkDefinition, torch_tensorrt.dynamo._compiler.convert_module
    assert reference_tensorrt.install("10.15", weak_shapes=True) is torch_tensorrt
    assert reference_tensorrt.current() == "10.15"
    after = torch.cuda.current_device, trt.INetworkDefinition, torch_tensorrt.dynamo._compiler.convert_module
    assert after == questions
    reference_tensorrt.reset()
    assert reference_tensorrt.current() == "11.0"


def test_the_module_says_what_it_is(reference_tensorrt: ModuleType) -> None:
    import tensorrt as trt

    assert "reference" in trt._target_module.__doc__
    assert "tensorrt_reference" in trt.__file__


def test_hidden_means_missing(reference_tensorrt: ModuleType) -> None:
    with reference_tensorrt.hidden():
        assert importlib.util.find_spec("tensorrt") is None
        assert importlib.util.find_spec("torch_tensorrt") is None
        with pytest.raises(ImportError):
            import tensorrt
        with pytest.raises(ImportError):
            import torch_tensorrt.dynamo
    import tensorrt
    import torch_tensorrt.dynamo  # noqa: F401

    assert tensorrt.__version__.startswith("11.0")


def test_warnings_are_not_redirected(torch_tensorrt: ModuleType) -> None:
    with pytest.warns(UserWarning, match="still a warning"):
        warnings.warn("still a warning", UserWarning, stacklevel=1)
    assert logging._warnings_showwarning is None


def test_only_torch_tensorrt_gets_gpu_answers(torch_tensorrt: ModuleType) -> None:
    assert not torch.cuda.is_available()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.cuda.current_device()
    assert torch_tensorrt.dynamo._defaults.default_device().gpu_id == 0


def test_serialized_engines_are_tickets(reference_tensorrt: ModuleType) -> None:
    import tensorrt as trt
    from tensorrt_reference.by_hand import engine

    built = engine(lambda network, x: network.add_identity(x).get_output(0), {"x": torch.ones(3)})
    runtime = trt.Runtime(trt.Logger())
    assert runtime.deserialize_cuda_engine(built.serialize()) is built
    assert runtime.deserialize_cuda_engine(b"something else") is None
