"""Programs as AOTInductor packages: they write into the caller's caches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from seq2seq_recipes import Exported, each
from target_checks import (
    assert_decodes,
    assert_first_results_stay,
    assert_forgotten_writes_are_found,
    assert_generates,
)

from attnlower.errors import BackendError
from attnlower.lowering.seq2seq import Seq2SeqPrograms
from attnlower.lowering.seq2seq.targets import aot_inductor as target
from attnlower.lowering.seq2seq.targets.inputs import input_forms


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("pair", each("t5", "bart"), indirect=True)
def test_packages_generate_the_same(pair: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.programs.save(tmp_path)
    compiled = pair.programs.compile("aot_inductor", folder=tmp_path)
    assert_generates(pair, compiled)
    assert_decodes(pair, compiled)
    assert_first_results_stay(pair, compiled)
    assert_forgotten_writes_are_found(pair, compiled)

    def compiles(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("compiled again")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compiles)
    assert_generates(pair, Seq2SeqPrograms.load(tmp_path).compile("aot_inductor", folder=tmp_path))
    with pytest.raises(BackendError, match="'encoder': compiled again"):
        pair.programs.compile("aot_inductor", folder=tmp_path, max_autotune=True)


@pytest.mark.parametrize("pair", each("t5"), indirect=True)
def test_caches_of_another_layout_are_refused(pair: Exported) -> None:
    """A contiguous copy of them would be written in their place."""
    eager = pair.programs._runtime()
    forms = {name: input_forms(program) for name, program in pair.programs.programs.items()}
    runtime = target._runtime({name: getattr(eager, name) for name in forms}, forms, None)
    session = replace(pair.programs, runtime=runtime).session(*pair.source(2, 5))
    session.decode(torch.full((2, 3), 11))
    assert session._self is not None
    keys, values = session._self
    turned = [k.transpose(3, 4).contiguous().transpose(3, 4) for k in keys]
    ids = torch.full((2, 1, 1), 12)
    with pytest.raises(BackendError, match="contiguous"):
        runtime.step(ids, torch.tensor([3]), session._mask, turned, values, *session._cross)
