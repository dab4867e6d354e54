"""A hook of mkdocs: where the API pages find the package, whose folder is the repository's root whatever its name."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("patterns", "lowering", "converters")


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: Any) -> Any:
    """Link the package, and nothing else of the repository, into a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="attnlower-docs-"))
    package = folder / "attnlower"
    package.mkdir()
    for source in (*ROOT.glob("*.py"), *(ROOT / name for name in FOLDERS)):
        (package / source.name).symlink_to(source)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(folder)]
    return config
