"""The reports' table: plain text, within its width, nothing lost."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlower.lowering.text_table import text_table


def test_a_table_that_fits() -> None:
    assert text_table(("a", "long heading"), [("one", "x"), ("", "y z")], 40) == [
        "a    long heading",
        "one  x",
        "     y z",
    ]


def test_the_widest_column_gives_way_and_goes_on_between_words() -> None:
    lines = text_table(("name", "reason"), [("short", "causal and padding, or so it seems")], 24)
    assert lines == ["name   reason", "short  causal and", "       padding, or so it", "       seems"]


def test_a_word_without_a_break_is_folded() -> None:
    assert text_table(("n",), [("k<=q&" * 3,)], 6) == ["n", "k<=q&k", "<=q&k<", "=q&"]


def test_markup_is_text() -> None:
    assert text_table(("layers[0]",), [("[bold]x[/]",)], 40)[1] == "[bold]x[/]"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*(st.text("ab [", max_size=30) for _ in range(3))), min_size=1, max_size=4),
    st.integers(20, 60),
)
def test_no_line_is_too_long_and_no_letter_is_lost(rows: list[tuple[str, ...]], width: int) -> None:
    lines = text_table(("first", "second", "third"), rows, width)
    assert all(len(line) <= width for line in lines)
    shown, given_ = "".join(lines), "".join(("firstsecondthird", *(cell for row in rows for cell in row)))
    assert sorted(shown.replace(" ", "")) == sorted(given_.replace(" ", ""))


def test_reports_are_printed_without_rich() -> None:
    """The core has no dependency but torch and z3."""
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "import torch, attnlower\n"
        "class M(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        mask = torch.ones(8, 8, dtype=torch.bool).tril()\n"
        "        return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)\n"
        "print(attnlower.explain(M(), torch.randn(1, 2, 8, 4)))\n"
        "print(attnlower.verify(M(), torch.randn(1, 2, 8, 4), target='eager'))\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "proved" in done.stdout


def test_export_says_that_it_wants_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from attnlower import cli

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["export-seq2seq", "config.json", "out"]) == 2
    assert "pip install 'attnlower[hf]'" in capsys.readouterr().err
