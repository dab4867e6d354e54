"""README's measurements come from the results in bench/; its examples are run by tests/docs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_measurements_come_from_the_results() -> None:
    spec = importlib.util.spec_from_file_location("tables", README.parent / "bench" / "tables.py")
    assert spec is not None and spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = README.read_text()
    assert tables.updated(text) == text
    assert "| attnlower |" in text
