"""Draw and write what the pages show, from the library and the results as they are: `make docs` runs this."""

from __future__ import annotations

from pathlib import Path

import graphs
import masks
import measurements

DOCS = Path(__file__).parent.parent


def drawings() -> dict[str, str]:
    """Every drawn file by its path under docs/."""
    return {**masks.drawings(), **graphs.drawings()}


if __name__ == "__main__":
    for path, content in drawings().items():
        (DOCS / path).write_text(content, encoding="utf-8")
    for page in measurements.PAGES:
        page.write_text(measurements.updated(page.read_text(encoding="utf-8")), encoding="utf-8")
