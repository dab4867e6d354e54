"""README's examples run as they stand, and print what README says they print."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import sys
import types
from pathlib import Path

import pytest

from attnlower.patterns import DEFAULT_RULES, DEFAULT_TEMPLATES

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.compile(r"```python\n(?P<code>.*?)```(?:\s*```text\n(?P<output>.*?)```)?", re.DOTALL)


def run_blocks(text: str) -> list[tuple[str, str | None]]:
    """Run the Python blocks of a text one after the other in one namespace: (printed, promised or None) for each."""
    module = types.ModuleType("readme_examples")
    sys.modules[module.__name__] = module  # Dynamo looks a function's module up by name
    results: list[tuple[str, str | None]] = []
    for match in BLOCKS.finditer(text):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(match["code"], str(README), "exec"), vars(module))
        results.append((printed.getvalue(), match["output"]))
    return results


def test_readme_examples_print_what_they_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    # the rules and templates that README registers are gone again afterwards
    monkeypatch.setattr(DEFAULT_RULES, "_rules", dict(DEFAULT_RULES._rules))
    monkeypatch.setattr(DEFAULT_TEMPLATES, "_finders", dict(DEFAULT_TEMPLATES._finders))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    results = run_blocks(README.read_text())
    assert len(results) >= 5
    promised = [(printed, output) for printed, output in results if output is not None]
    assert len(promised) >= 5
    for printed, output in promised:
        assert printed.strip() == (output or "").strip()


def test_measurements_come_from_the_results() -> None:
    spec = importlib.util.spec_from_file_location("tables", README.parent / "bench" / "tables.py")
    assert spec is not None and spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = README.read_text()
    assert tables.updated(text) == text
    assert "| attnlower |" in text
