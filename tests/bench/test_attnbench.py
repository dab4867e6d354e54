"""The benchmark runner on tiny rows: what it writes, draws and refuses. Never its speed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from attnbench import __main__ as command_line
from attnbench import results, runner, targets
from attnbench.check import Expected, agreement
from attnbench.comparison import Comparison, measure
from attnbench.limits import Peak, Work, attention_work, limit
from attnbench.page import write_page
from attnbench.settings import Settings
from attnbench.suites import SUITES
from attnbench.suites.base import LengthSuite
from attnbench.suites.packed import positions

pytestmark = pytest.mark.xdist_group("attnbench")

SMALL = Settings(dtypes=("float32",), lengths=(16,), rounds=2, quick=True)
PEAK = Peak(1e9, 1e9)


def comparison_with(wrong: Callable[[torch.Tensor], torch.Tensor]) -> Comparison:
    """A product in three right variants and one that does what it is given."""
    x = torch.arange(256.0).reshape(16, 16) / 256
    return Comparison(
        eager=lambda: x @ x,
        variants={
            "inductor": lambda: x @ x,
            "attnlower": lambda: wrong(x @ x),
            "by hand, slow": lambda: (x @ x, time.sleep(0.002))[0],
            "by hand": lambda: x @ x,
        },
        by_hand=frozenset({"by hand", "by hand, slow"}),
        expected=Expected,
        work=Work(2 * 16**3, 3 * 4 * 16**2),
    )


def suite_with(wrong: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> LengthSuite:
    return LengthSuite("causal", "Tiny.", lambda length, dtype, device: comparison_with(wrong))


@pytest.fixture(autouse=True)
def peak_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "measure_peak", lambda dtype, device: PEAK)


# What is right


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x + 2e-5 * x.abs().max().clamp(1), "differs from eager"),
        (lambda x: x[:, :8], "eager gives"),
        (lambda x: x.double(), "torch.float64"),
        (lambda x: torch.where(torch.arange(16) == 3, float("nan"), x), "differs from eager"),
    ],
    ids=["off", "shape", "dtype", "nan"],
)
def test_a_wrong_variant_is_refused_and_has_no_time(change: Callable[[torch.Tensor], torch.Tensor], says: str) -> None:
    row = measure(comparison_with(change), SMALL, lambda step: None)
    assert says in row["refused"]["attnlower"]
    assert "attnlower" not in row["variants"]
    assert "attnlower" not in row["ratio_to"]
    assert set(row["variants"]) == {"eager", "inductor", "by hand", "by hand, slow"}


def test_a_variant_that_raises_is_refused_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    def raises(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    row = measure(comparison_with(raises), SMALL, lambda step: None)
    assert row["refused"] == {"attnlower": "RuntimeError: no such kernel"}


def test_rounding_is_no_error_and_a_wrong_row_is() -> None:
    torch.manual_seed(0)
    exact = torch.randn(4000, 64, dtype=torch.float64)
    eager = exact.bfloat16()
    expected = Expected(eager, exact)
    assert agreement(eager, expected).problem == ""
    assert "1.2" in agreement((exact * 1.004).bfloat16(), expected).problem
    swapped = eager.clone()
    swapped[7] = eager[8]
    assert agreement(swapped, expected).problem
    slightly = eager.clone()
    slightly[7, 7] += 0.05
    assert "largest error" in agreement(slightly, expected).problem


# Limits


def test_the_limit_is_the_slower_of_operations_and_bytes() -> None:
    work = attention_work(pairs=10, queries=4, keys=4, heads=2, kv_heads=1, width=8, size=4)
    assert work == Work(4 * 8 * 2 * 10, 4 * 8 * (2 * 2 * 4 + 2 * 1 * 4))
    assert limit(Work(5e9, 1e9), PEAK)["seconds"] == 5.0
    assert limit(Work(5e9, 7e9), PEAK)["seconds"] == 7.0


@pytest.mark.parametrize("name", ["causal", "sliding", "chunked", "packed", "padded", "gqa"])
def test_the_work_counts_the_pairs_that_the_mask_allows(name: str) -> None:
    length = 640
    q, k = torch.arange(length)[:, None], torch.arange(length)[None, :]
    causal = k <= q
    documents = (positions(length) == 0).cumsum(-1)
    allowed = {
        "sliding": causal & (k > q - 512),
        "chunked": causal & (k // 512 == q // 512),
        "packed": causal & (documents[0, :, None] == documents[0, None, :]),
    }
    pairs = float(allowed.get(name, causal).sum())
    heads, width = (16 if name == "gqa" else 8), 64
    if name == "padded":
        pairs, heads = pairs + float((causal & (k >= length // 2)).sum()), 4
    suite = SUITES[name]
    assert isinstance(suite, LengthSuite)
    built = suite.build(length, torch.float32, torch.device("cpu"))
    assert built.work.operations == 4 * width * heads * pairs


# What is written


def test_a_run_writes_json_page_plot_and_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner.run(suite_with(), SMALL, tmp_path)
    data = json.loads((tmp_path / "causal.json").read_text())
    assert data["schema"] == results.SCHEMA
    assert data["complete"]
    assert {"cpu", "threads", "torch", "transformers", "date", "device", "commit"} <= set(data["machine"])
    assert data["peaks"] == {"float32": PEAK.to_dict()}
    (row,) = data["rows"]
    assert row["case"] == {"dtype": "float32", "length": 16}
    assert set(row) >= results.COMPARED
    assert row["oracle"] == "by hand"
    assert all(len(v["seconds"]) == row["rounds"] == 2 for v in row["variants"].values())
    assert set(row["ratio_to"]["attnlower"]["oracle"]) == {"median", "lower_quartile", "upper_quartile", "of_medians"}

    write_page(tmp_path, tmp_path / "page" / "README.md")
    page = (tmp_path / "page" / "README.md").read_text()
    assert (tmp_path / "page" / "plots" / "causal.png").stat().st_size > 1000
    assert "![causal](plots/causal.png)" in page
    assert "| float32 | 16 |" in page
    assert not targets.show_verdict(tmp_path)
    assert "attnlower / oracle" in capsys.readouterr().out


def test_a_refused_variant_is_said_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner.run(suite_with(lambda x: x + 1), SMALL, tmp_path)
    write_page(tmp_path, tmp_path / "README.md")
    assert "attnlower: differs from eager" in (tmp_path / "README.md").read_text()
    assert command_line.main(["--report", "--output", str(tmp_path)]) == 1
    assert "refused: causal" in capsys.readouterr().out


def test_missing_goes_on_where_a_run_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = runner.run(suite_with(), SMALL, tmp_path)
    longer = Settings(dtypes=("float32",), lengths=(16, 32), rounds=2, quick=True)
    second = runner.run(suite_with(), longer, tmp_path, missing=True)
    assert [row["case"]["length"] for row in second["rows"]] == [16, 32]
    assert second["rows"][0] == first["rows"][0]
    monkeypatch.setattr(results, "commit", lambda: "another")
    third = runner.run(suite_with(), SMALL, tmp_path, missing=True)
    assert [row["case"]["length"] for row in third["rows"]] == [16]
    assert third["rows"][0] != first["rows"][0]


def test_a_row_that_fails_does_not_end_the_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def build(length: int, dtype: torch.dtype, device: torch.device) -> Comparison:
        if length == 16:
            raise MemoryError("too long")
        return comparison_with(lambda x: x)

    settings = Settings(dtypes=("float32",), lengths=(16, 32), rounds=1, quick=True)
    data = runner.run(LengthSuite("causal", "Tiny.", build), settings, tmp_path)
    assert data["rows"][0]["refused"] == {"all": "MemoryError: too long"}
    assert "variants" in data["rows"][1]
    write_page(tmp_path, tmp_path / "README.md")
    assert "MemoryError: too long" in (tmp_path / "README.md").read_text()


def test_targets_are_judged_by_their_own_bounds() -> None:
    def row(model: str, length: int, value: float) -> dict[str, Any]:
        spread = {"median": value, "lower_quartile": value, "upper_quartile": value, "of_medians": value}
        case = {"dtype": "float32", "model": model, "length": length}
        return {"case": case, "refused": {}, "ratio_to": {"attnlower": {"inductor": spread}}}

    rows = [row("Qwen2.5-0.5B", 4096, 1 / 1.39), row("Qwen2.5-0.5B", 8192, 1 / 1.46)]
    judged = targets.judge({"end_to_end": {"suite": "end_to_end", "rows": rows}})
    speedups = {(j.row, j.holds) for j in judged if j.least}
    assert speedups == {
        ("end_to_end, float32, Qwen2.5-0.5B, length 4096", False),
        ("end_to_end, float32, Qwen2.5-0.5B, length 8192", True),
    }


# The command line


def test_the_command_line_knows_every_suite() -> None:
    assert list(command_line.NAMES) == list(SUITES)


def test_words_for_the_child_processes() -> None:
    words = ["--suite", "causal", "gqa", "--quick", "--page", "x.md", "--rounds=3", "--dtypes", "float32"]
    assert command_line.without(words, "--suite", "--page") == ["--quick", "--rounds=3", "--dtypes", "float32"]


def test_every_suite_has_rows_for_every_setting() -> None:
    for settings in (Settings(), Settings(quick=True), Settings(dtypes=("float32",), lengths=(2048,))):
        for suite in SUITES.values():
            cases = suite.cases(settings)
            assert cases
            assert len({json.dumps(dict(case)) for case in cases}) == len(cases)
            assert all(suite.axis in case for case in cases)


@pytest.mark.slow
def test_a_real_suite_at_a_tiny_length(tmp_path: Path) -> None:
    settings = Settings(dtypes=("float32",), lengths=(32,), variants=("inductor", "attnlower", "is_causal"), rounds=1)
    data = runner.run(SUITES["causal"], settings, tmp_path)
    (row,) = data["rows"]
    assert not row["refused"]
    assert set(row["variants"]) == {"eager", "inductor", "attnlower", "is_causal"}
    assert row["oracle"] == "is_causal"
    assert [site["action"] for site in row["attnlower"]] == ["guarded"]
    assert row["limit"]["seconds"] > 0
