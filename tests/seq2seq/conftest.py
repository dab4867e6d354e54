"""The programs of an architecture, exported once per process."""

from __future__ import annotations

import functools
import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("transformers")

from seq2seq_recipes import Exported, exported

_exported = functools.cache(exported)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `extended` unless it is asked for."""
    if "extended" in (config.option.markexpr or ""):
        return
    left_out = [item for item in items if item.get_closest_marker("extended")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("extended")]


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Exported:
    """The model and the programs of the recipe that the test is parametrised with."""
    return _exported(request.param)
