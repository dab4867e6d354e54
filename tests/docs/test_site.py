"""The documentation builds without a warning, and its API pages hold what the package offers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest

import attnlower
import attnlower.patterns


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=pages.ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_is_built(site: Path) -> None:
    docs = pages.ROOT / "docs"
    for page in docs.rglob("*.md"):
        assert (site / page.relative_to(docs).with_suffix(".html")).is_file()
    assert not (site / "tools").exists()


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text()
        )
        assert not loaded, page


def test_what_the_package_offers_is_documented(site: Path) -> None:
    text = "".join(p.read_text() for p in (site / "api").glob("*.html"))
    documented = set(re.findall(r'id="(attnlower[\w.]*)"', text))
    missing = []
    for module, folders in ((attnlower, ("", "errors.")), (attnlower.patterns, ("",))):
        for name in set(module.__all__) - {"__version__", "converters"}:
            # a function may have its module's name
            places = [f"{module.__name__}.{folder}{name}" for folder in (*folders, f"{name}.")]
            missing += [] if documented & set(places) else [places[0]]
    assert not missing
