"""Programs as `.pte` files, run by the real ExecuTorch runtime."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from seq2seq_recipes import RECIPES as RECIPES_BY_NAME
from seq2seq_recipes import Exported, build, each
from target_checks import (
    CASES,
    MORE_CASES,
    assert_decodes,
    assert_first_results_stay,
    assert_forgotten_writes_are_found,
    assert_generates,
)

from attnlower.errors import BackendError
from attnlower.lowering.seq2seq import Seq2SeqPrograms, export_seq2seq
from attnlower.lowering.seq2seq.targets import executorch as target


@pytest.fixture
def executorch() -> Iterator[Any]:
    yield pytest.importorskip("executorch.exir")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The programs that are compiled from now on."""
    found: list[Any] = []
    real = target._pte

    def watched(part: Any, partitioners: Any) -> bytes:
        found.append(part)
        return real(part, partitioners)

    monkeypatch.setattr(target, "_pte", watched)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("pair", each("t5", "bart", "marian", "whisper"), indirect=True)
def test_the_runtime_generates_the_same(pair: Exported, executorch: Any, made: list[Any], tmp_path: Path) -> None:
    pair.programs.save(tmp_path)
    compiled = pair.programs.compile("executorch", folder=tmp_path)
    assert len(made) == 3
    assert_generates(pair, compiled, MORE_CASES)
    assert_decodes(pair, compiled)
    assert_first_results_stay_for_text(pair, compiled)
    assert_forgotten_writes_are_found(pair, compiled)
    again = Seq2SeqPrograms.load(tmp_path).compile("executorch", folder=tmp_path)
    assert len(made) == 3, "the files are there"
    assert_generates(pair, again, CASES[4:6])


def assert_first_results_stay_for_text(pair: Exported, compiled: Seq2SeqPrograms) -> None:
    if not pair.speech:
        assert_first_results_stay(pair, compiled)


@pytest.fixture(scope="module")
def small() -> Exported:
    """T5 with one layer on each side, for few sizes: soon compiled, with portable kernels alone sooner."""
    recipe = RECIPES_BY_NAME["t5"]
    options = {**recipe.options, "num_layers": 1, "num_decoder_layers": 1}
    model = build(type(recipe)(recipe.class_name, options, recipe.start, recipe.generation))
    programs = export_seq2seq(model, batch_size=4, max_source_len=24, max_target_len=16, max_beams=4)
    return Exported("t5", model, programs)


def test_one_layer_on_portable_kernels(
    small: Exported, executorch: Any, made: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = small.programs.compile("executorch", folder=tmp_path, partitioners=())
    assert_generates(small, compiled)
    assert_decodes(small, compiled, tokens=16)
    assert_first_results_stay(small, compiled)
    assert_forgotten_writes_are_found_in(small, compiled)
    assert len(made) == 3
    ops = {str(node.target) for part in made for node in part.program.graph.nodes if node.op == "call_function"}
    assert not any("scaled_dot_product" in op or "attnlower" in op for op in ops)
    small.programs.compile("executorch", folder=tmp_path, partitioners=())
    assert len(made) == 3, "the files are there"
    noted = tmp_path / "executorch.json"
    entries = json.loads(noted.read_text())
    entries["step"]["fingerprint"] = entries["prefill"]["fingerprint"]
    noted.write_text(json.dumps(entries))
    (tmp_path / "prefill.pte").rename(tmp_path / "other.pte")
    data = (tmp_path / "other.pte").read_bytes()
    monkeypatch.setattr(target, "_pte", lambda part, partitioners: made.append(part) or data)
    small.programs.compile("executorch", folder=tmp_path, partitioners=())
    assert len(made) == 5, "one file is of another program, one is gone"


def assert_forgotten_writes_are_found_in(pair: Exported, compiled: Seq2SeqPrograms) -> None:
    runtime = compiled._runtime()
    source, mask = pair.source(2, 9, "right")
    with torch.no_grad():
        session = compiled.session(source, mask)
        session.decode(torch.full((4, 3), 11))
        assert session._self is not None
        filled = [k.clone() for k in session._self[0]]
        runtime.step(torch.full((2, 2, 1), 12), torch.tensor([3]), session._mask, *session._self, *session._cross)
        for before, now in zip(filled, session._self[0], strict=True):
            changed = (before != now).flatten(0, 2).any(-1).any(0).tolist()
            assert changed == [slot == 3 for slot in range(len(changed))], "the step's slot and no other"


def test_without_executorch(small: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(BackendError, match="pip install 'executorch"):
        small.programs.compile("executorch", folder=tmp_path / "none")
    assert not (tmp_path / "none").exists()
