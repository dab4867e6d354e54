"""The programs of an architecture, exported once per process."""

from __future__ import annotations

import functools
import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("transformers")

from seq2seq_recipes import Exported, exported

_exported = functools.cache(exported)


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Exported:
    """The model and the programs of the recipe that the test is parametrised with."""
    return _exported(request.param)
