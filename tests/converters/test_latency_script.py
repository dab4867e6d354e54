"""bench/tensorrt_latency.py itself, dry-run on the reference: what it compares, and that it claims no times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorrt_latency
import torch
from tensorrt_decoders import generate
from tensorrt_latency import DEFAULT, DRY, EAGER, MASK, OURS

from attnlower.converters import unregister

pytest.importorskip("transformers")
ONE = ["--dry-run", "--models", "Qwen2.5-0.5B"]


@pytest.fixture(autouse=True)
def on_the_reference(reference_tensorrt: Any) -> Iterator[None]:
    yield
    unregister()


def test_a_dry_run_compares_the_variants_and_times_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "latency.json"
    assert tensorrt_latency.main([*ONE, "--json", str(path)]) == 0
    captured = capsys.readouterr()
    assert "nothing was measured" in captured.err and "not TensorRT" in captured.err
    result = json.loads(path.read_text())
    assert result["runtime"] == "reference" and result["dry_run"] and "tensorrt" not in result["machine"]
    (model,) = result["models"]
    assert list(model["variants"]) == [EAGER, DEFAULT, MASK, OURS]
    for row in model["variants"].values():
        assert row["problem"] == "" and row["milliseconds"] is None and row["speedup_to_pytorch"] is None
        assert row["logits_max_abs_diff"] <= 1e-5 and row["equal_tokens"] == DRY.tokens_out
    assert model["variants"][OURS]["actions"] == {"is_causal": model["layers"]}


def test_without_a_gpu_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "latency.json"
    assert tensorrt_latency.main(["--json", str(path)]) == 2
    assert not path.exists()
    assert "nothing was measured: there is no CUDA GPU" in capsys.readouterr().err


def test_a_dry_run_leaves_the_results_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "results" / "latency.json"
    monkeypatch.setattr(tensorrt_latency, "RESULT", path)
    monkeypatch.setattr(tensorrt_latency, "measure", lambda name, runtime, settings: {"model": name, "variants": {}})
    assert tensorrt_latency.main(ONE) == 0
    assert not path.exists()


def test_a_wrong_variant_is_seen_and_a_failing_one_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near misses: a variant that answers with other tokens, and one that does not compile."""

    def compile_with(runtime: Any, model: Any, ids: Any, settings: Any, **options: Any) -> Any:
        if options:
            raise RuntimeError("no engine")
        return lambda given: -model(given)

    monkeypatch.setattr(tensorrt_latency, "compile_with", compile_with)
    path = tmp_path / "latency.json"
    assert tensorrt_latency.main([*ONE, "--json", str(path)]) == 1
    rows = json.loads(path.read_text())["models"][0]["variants"]
    assert rows[DEFAULT]["logits_max_abs_diff"] > 1e-3 and rows[DEFAULT]["equal_tokens"] < DRY.tokens_out
    assert rows[MASK]["problem"] == "RuntimeError: no engine" and rows[MASK]["equal_tokens"] is None
    assert "no engine" in capsys.readouterr().out


def test_generation_is_greedy() -> None:
    def model(ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot((ids + 1) % 5, 5).float()

    assert generate(model, torch.tensor([[0, 3]]), 4).tolist() == [[0, 3, 4, 0, 1, 2]]
