"""The pictures show what the library does now, and each pass's two graphs compute the same."""

from __future__ import annotations

import draw
import graphs
import measurements
import pages
import pytest
import torch

from attnlower.lowering.pipeline import PIPELINE, pipeline_for
from attnlower.lowering.targets import TARGETS

DOCS = pages.ROOT / "docs"
PASSES = {p.name for p in PIPELINE} | {p.name for t in TARGETS.values() for p in pipeline_for(t)}


def test_pictures_are_up_to_date() -> None:
    made = draw.drawings()
    stale = [p for p, content in made.items() if not (DOCS / p).is_file() or (DOCS / p).read_text("utf-8") != content]
    assert not stale, "make docs"
    assert {p.relative_to(DOCS).as_posix() for p in (DOCS / "pictures").iterdir()} == set(made)


@pytest.mark.parametrize("name", graphs.EXAMPLES)
def test_both_graphs_compute_the_same(name: str) -> None:
    example = graphs.EXAMPLES[name]
    earlier, later = graphs.before_and_after(name)
    inputs = [*graphs.tensors_of(example).values(), *example.sizes.values()]
    first, second = (variant.gm(*inputs) for variant in (earlier, later))
    torch.testing.assert_close(second, first)


def test_every_pass_has_its_section_and_its_picture() -> None:
    text = "".join(p.read_text(encoding="utf-8") for p in (DOCS / "passes").glob("*.md"))
    assert set(graphs.EXAMPLES) == PASSES
    for name in PASSES:
        assert f"\n## {name}\n" in text
        assert f"(../pictures/pass-{name}.svg)" in text


def test_tables_come_from_the_results() -> None:
    for page in measurements.PAGES:
        text = page.read_text(encoding="utf-8")
        assert measurements.updated(text) == text, "make docs"
        assert "\n| attnlower |" in text or "| with attnlower |" in text
