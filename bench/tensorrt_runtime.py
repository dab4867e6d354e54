"""What the TensorRT benchmarks run on: TensorRT and a GPU where there are both, else the reference of the tests.

The reference is a stand-in for the module `tensorrt` (tests/tensorrt_reference): the real torch_tensorrt builds its
network, torch on the CPU evaluates it. It can show whether results are right. It cannot be timed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

REFERENCE = Path(__file__).parent.parent / "tests" / "tensorrt_reference"


@dataclass(frozen=True)
class Runtime:
    """What compiled programs run on.

    Attributes:
        torch_tensorrt: the module.
        kind: "TensorRT" or "reference".
        version: of TensorRT, or the version whose rules the reference follows.
        device: where inputs and models belong.
    """

    torch_tensorrt: Any
    kind: str
    version: str
    device: torch.device

    def __str__(self) -> str:
        if self.kind == "reference":
            return f"the reference for TensorRT {self.version}: a CPU stand-in, not TensorRT"
        return f"TensorRT {self.version} on {torch.cuda.get_device_name(self.device)}"

    def machine(self) -> dict[str, object]:
        """What the measurement ran on, for a JSON file."""
        from attnlower import timing

        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        return {
            **timing.machine(),
            "torch_tensorrt": timing.version_of("torch-tensorrt"),
            "runtime": self.kind,
            "tensorrt" if self.kind == "TensorRT" else "tensorrt_rules": self.version,
            "gpu": gpu,
        }


def no_tensorrt() -> str:
    """Why nothing can run on TensorRT here; empty if it can. The reference does not count."""
    if not torch.cuda.is_available():
        return "there is no CUDA GPU"
    for name in ("tensorrt", "torch_tensorrt"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    if _is_reference_installed():
        return "this process runs on the reference, not on TensorRT"
    try:
        importlib.import_module("tensorrt")
        importlib.import_module("torch_tensorrt")
    except Exception as error:  # a missing libnvinfer raises whatever the loader raises
        return f"TensorRT cannot be loaded ({error})"
    return ""


def load(reference: bool | None = None) -> Runtime:
    """TensorRT where it can run, else the reference.

    Args:
        reference: True for the reference in any case, False for TensorRT or nothing.

    Raises:
        RuntimeError: if TensorRT is asked for and cannot run.
    """
    why_not = no_tensorrt() if not reference else ""
    if reference is False and why_not:
        raise RuntimeError(f"cannot run on TensorRT: {why_not}")
    if not reference and not why_not:
        tensorrt = importlib.import_module("tensorrt")
        module = importlib.import_module("torch_tensorrt")
        return Runtime(module, "TensorRT", str(tensorrt.__version__), torch.device("cuda"))
    with quiet():
        stand_in = _reference()
        module = stand_in.install()
    return Runtime(module, "reference", stand_in.current(), torch.device("cpu"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it torch_tensorrt keeps its warnings to itself; errors are shown."""
    logger = logging.getLogger("torch_tensorrt")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _reference() -> Any:
    if importlib.util.find_spec("tensorrt_reference") is None:
        sys.path.insert(0, str(REFERENCE))
    return importlib.import_module("tensorrt_reference")


def _is_reference_installed() -> bool:
    module = sys.modules.get("tensorrt_reference")
    return module is not None and bool(module.is_installed())
