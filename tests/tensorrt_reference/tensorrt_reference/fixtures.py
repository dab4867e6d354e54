"""Pytest fixtures; a folder's conftest.py imports those that its tests use."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import ModuleType

import pytest

import tensorrt_reference as reference


@pytest.fixture
def torch_tensorrt() -> Iterator[ModuleType]:
    """The real torch_tensorrt on the reference TensorRT 11.0 with strong shape inference and no networks yet."""
    if importlib.util.find_spec("torch_tensorrt") is None:
        pytest.skip("torch_tensorrt is not installed")
    module = reference.install()
    reference.clear_networks()
    yield module
    reference.reset()


@pytest.fixture
def reference_tensorrt(torch_tensorrt: ModuleType) -> ModuleType:
    """The package `tensorrt_reference`, installed: versions, networks and settings of this test alone."""
    return reference
