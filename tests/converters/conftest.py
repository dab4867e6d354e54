"""The real torch_tensorrt on the reference TensorRT, with and without attnlower registered."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from tensorrt_reference.fixtures import reference_tensorrt, torch_tensorrt  # noqa: F401

import attnlower


@pytest.fixture
def registered(reference_tensorrt: ModuleType) -> Iterator[Any]:  # noqa: F811
    """attnlower registered; the value is the package `tensorrt_reference`."""
    with attnlower.converters.register():
        yield reference_tensorrt


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `extended` unless it is asked for."""
    if "extended" in (config.option.markexpr or ""):
        return
    left_out = [item for item in items if item.get_closest_marker("extended")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
