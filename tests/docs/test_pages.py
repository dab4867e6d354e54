"""Every code block of README and of the documentation runs, and prints what stands below it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pages
import pytest
import torch

from attnlower.patterns import DEFAULT_RULES, DEFAULT_TEMPLATES

DOCS = sorted((pages.ROOT / "docs").rglob("*.md"))
PAGES = [pages.ROOT / "README.md", pages.ROOT / "CONTRIBUTING.md", *DOCS]
NEEDS_TRANSFORMERS = {"README.md", "tutorial.md"}


def title(page: Path) -> str:
    return page.relative_to(pages.ROOT).as_posix() if page.is_relative_to(pages.ROOT) else page.name


def kinds(page: Path) -> set[str]:
    return {block.kind for block in pages.blocks_of(page.read_text(encoding="utf-8"))}


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty folder, and the rules and templates that a page registers are gone again afterwards."""
    monkeypatch.setattr(DEFAULT_RULES, "_rules", dict(DEFAULT_RULES._rules))
    monkeypatch.setattr(DEFAULT_TEMPLATES, "_finders", dict(DEFAULT_TEMPLATES._finders))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check(page: Path, blocks: list[pages.Block], folder: Path) -> None:
    """Run blocks and compare what they print."""
    for block, printed in pages.run(page, blocks, folder):
        if block.output is not None:
            assert printed.strip() == block.output.strip(), f"{title(page)}, line {block.line}"


@pytest.mark.timeout(900)  # README and the tutorial compile with Inductor: a minute on a machine that is idle
@pytest.mark.parametrize("page", [p for p in PAGES if kinds(p) & {"python", "sh"}], ids=title)
def test_blocks(page: Path, tmp_path: Path) -> None:
    if page.name in NEEDS_TRANSFORMERS:
        pytest.importorskip("transformers")
    check(page, [b for b in pages.blocks_of(page.read_text(encoding="utf-8")) if b.kind != "python tensorrt"], tmp_path)


# README's is tests/converters/test_readme.py
@pytest.mark.parametrize("page", [p for p in DOCS if "python tensorrt" in kinds(p)], ids=title)
@pytest.mark.usefixtures("reference_tensorrt")
def test_reference_blocks_that_need_tensorrt(page: Path, tmp_path: Path) -> None:
    from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_ATEN_CONVERTERS

    before = dict(DYNAMO_ATEN_CONVERTERS)
    try:
        check(page, pages.blocks_of(page.read_text(encoding="utf-8")), tmp_path)
    finally:
        DYNAMO_ATEN_CONVERTERS.clear()
        DYNAMO_ATEN_CONVERTERS.update(before)


def test_a_block_that_nothing_runs_is_an_error() -> None:
    with pytest.raises(ValueError, match="run by nothing"):
        pages.blocks_of("```cpp\nint x;\n```\n")
    with pytest.raises(ValueError, match="output of what"):
        pages.blocks_of("Some words.\n\n```text\nk <= q\n```\n")
    with pytest.raises(ValueError, match="output of what"):
        pages.blocks_of("```python\n1\n```\n\nwords\n\n```text\n1\n```\n")


def test_what_is_printed_is_compared(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\nprint(x)\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match="line 2"):
        check(page, pages.blocks_of(page.read_text()), tmp_path)


def test_shell_lines_are_checked(tmp_path: Path) -> None:
    assert pages.run_shell("attnlower --version", tmp_path).startswith("attnlower ")
    pages.run_shell("make test\npip install '.[hf,test]'", tmp_path)
    pages.run_shell("python tests/releases/run.py\nattnlower explain PROGRAM --json", tmp_path)
    for wrong in ("make tests", "pip install '.[transformers]'", "pip install 'torch>=2'", "torchrun examples/no.py"):
        with pytest.raises(ValueError, match=r"no target|no extra|not what|no script"):
            pages.run_shell(wrong, tmp_path)
    with pytest.raises(SystemExit):
        pages.run_shell("attnlower explain PROGRAM --xml", tmp_path)
    with pytest.raises(RuntimeError, match="exit code 2"):
        pages.run_shell("attnlower explain nothing.pt2", tmp_path)
