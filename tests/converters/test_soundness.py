"""With `attn_bias_is_causal` at its default: torch_tensorrt on the reference, alone and with attnlower.

The reference is a stand-in for TensorRT; see tests/tensorrt_reference/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorrt_soundness
import torch
from tensorrt_cases import CALLS, Case, as_on_cuda
from tensorrt_models import MODELS
from tensorrt_runtime import Runtime, load, no_tensorrt, quiet
from tensorrt_soundness import TOLERANCE, difference, measure, outcome

from attnlower.converters import is_registered, register, unregister


@pytest.fixture
def runtime(reference_tensorrt: Any) -> Iterator[Runtime]:
    yield load(reference=True)
    unregister()


def _case(name: str) -> Case:
    return next(case for case in (*CALLS, *MODELS) if case.name == name)


def _names(cases: tuple[Case, ...]) -> list[str]:
    return [case.name for case in cases]


@pytest.mark.parametrize("case", (*CALLS, *MODELS), ids=_names((*CALLS, *MODELS)))
def test_results_are_eagers_on_the_reference(case: Case, runtime: Runtime) -> None:
    if case in MODELS:
        pytest.importorskip("transformers")
    row = measure(case, runtime)
    assert row.attnlower.error <= TOLERANCE, row.attnlower
    assert len(row.attnlower.errors) == 1 + len(case.others)
    assert row.attnlower.attentions, "no IAttention was built"
    if case.harmless:
        assert row.upstream.problem or row.upstream.error <= TOLERANCE, row.upstream
    else:
        assert 0.1 < row.upstream.error < float("inf"), row.upstream


def test_a_mask_that_is_causal_is_dropped(runtime: Runtime) -> None:
    assert measure(_case("causal"), runtime).attnlower.masked == 0


@pytest.mark.parametrize("case", [c for c in CALLS if not c.harmless], ids=[c.name for c in CALLS if not c.harmless])
def test_the_setting_changes_nothing_with_attnlower(case: Case, runtime: Runtime) -> None:
    with register():
        off = outcome(case, runtime, {"attn_bias_is_causal": False})
        on = outcome(case, runtime, {"attn_bias_is_causal": True})
    assert off == on and on.error <= TOLERANCE


def test_without_attnlower_torch_tensorrt_is_as_it_was(runtime: Runtime) -> None:
    case = _case("sliding window 3")
    before = outcome(case, runtime)
    with register():
        assert outcome(case, runtime).error <= TOLERANCE
    assert not is_registered()
    assert outcome(case, runtime) == before and before.error > 0.1


def test_equal_samples_unify_no_lengths(runtime: Runtime) -> None:
    """The lengths are two symbols before and after; torch_tensorrt's own pass makes them one."""
    case = _case("cross-attention, lengths independent, equal when traced")
    model, args = case.model(), case.inputs()
    program = tensorrt_soundness.export(case, model, args)
    with register(), quiet():
        compiled = runtime.torch_tensorrt.dynamo.compile(program, arg_inputs=list(args), min_block_size=1)
    for queries, keys in ((2, 64), (64, 2), (31, 30), (8, 8)):
        query, key, value = (torch.randn(2, 4, n, 16) for n in (queries, keys, keys))
        mask = torch.ones(2, keys, dtype=torch.long)
        mask[1, keys // 2 :] = 0
        assert difference(compiled(query, key, value, mask), model(query, key, value, mask)) <= TOLERANCE


@pytest.mark.parametrize("name", ["BERT: padding", "sliding window 3", "T5 decoder: causal and relative bias"])
def test_torch_compile_is_right_too(name: str, runtime: Runtime) -> None:
    case = _case(name)
    model, args = case.model(), case.inputs()
    expected = model(*args)
    settings = {"min_block_size": 1, "pass_through_build_failures": True}

    def compiled_error() -> float:
        torch._dynamo.reset()
        with as_on_cuda(), quiet(), torch.no_grad():
            compiled = torch.compile(model, backend="torch_tensorrt", dynamic=False, options=settings)
            return difference(compiled(*args), expected)

    assert compiled_error() > 0.1
    with register():
        assert compiled_error() <= TOLERANCE
    assert compiled_error() > 0.1


def test_the_script_prints_both_and_says_reference(
    runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_soundness, "CALLS", (_case("BERT: padding"), _case("causal")))
    monkeypatch.setattr(tensorrt_soundness, "MODELS", ())
    path = tmp_path / "soundness.json"
    assert tensorrt_soundness.main(["--reference", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "BERT: padding" in printed and "not TensorRT" in " ".join(printed.split())
    result = json.loads(path.read_text())
    assert result["runtime"] == "reference" and "tensorrt" not in result["machine"]
    assert result["machine"]["torch_tensorrt"] and result["machine"]["torch"]
    bert, causal = result["cases"]
    assert bert["torch_tensorrt"]["errors"][0] > 0.1 >= bert["attnlower"]["errors"][0]
    assert causal["harmless_upstream"]


def test_a_wrong_result_is_an_exit_code(
    runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near miss: with attnlower out of the way the script says which case is wrong."""
    from contextlib import nullcontext

    monkeypatch.setattr(tensorrt_soundness, "CALLS", (_case("BERT: padding"),))
    monkeypatch.setattr(tensorrt_soundness, "MODELS", ())
    monkeypatch.setattr(tensorrt_soundness, "register", nullcontext)
    assert tensorrt_soundness.main(["--reference", "--json", str(tmp_path / "x.json")]) == 1
    assert "BERT: padding" in capsys.readouterr().err


def test_the_reference_does_not_count_as_tensorrt(runtime: Runtime) -> None:
    assert no_tensorrt()
    with pytest.raises(RuntimeError, match="cannot run on TensorRT"):
        load(reference=False)
