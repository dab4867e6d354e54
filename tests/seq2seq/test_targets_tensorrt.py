"""Programs through torch_tensorrt on the reference TensorRT, a stand-in: one engine per program, equal tokens.

See tests/tensorrt_reference/README.md. Nothing here has run on TensorRT.
"""

from __future__ import annotations

from typing import Any

import pytest
from seq2seq_recipes import Exported, each
from target_checks import (
    assert_decodes,
    assert_first_results_stay,
    assert_forgotten_writes_are_found,
    assert_generates,
)
from tensorrt_reference import hidden
from tensorrt_reference.fixtures import reference_tensorrt, torch_tensorrt  # noqa: F401

from attnlower.converters import is_registered
from attnlower.errors import OptionError, TensorRTError

ENCODER, DECODER = 2, 4
"""Attention calls of two layers."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("pair", each("t5", "bart"), indirect=True)
def test_engines_generate_the_same_on_the_reference(pair: Exported, reference_tensorrt: Any) -> None:  # noqa: F811
    compiled = pair.programs.compile("tensorrt")
    assert not is_registered()
    whole = reference_tensorrt.Compilation(engines=1, torch_nodes=())
    assert reference_tensorrt.compilations() == [whole] * 3
    found = [len(reference_tensorrt.attentions(network)) for network in reference_tensorrt.networks()]
    assert found == [ENCODER, DECODER, DECODER]
    assert_generates(pair, compiled)
    assert_decodes(pair, compiled)
    assert_first_results_stay(pair, compiled)
    assert_forgotten_writes_are_found(pair, compiled)


@pytest.mark.parametrize("pair", each("t5"), indirect=True)
def test_settings_that_torch_tensorrt_does_not_have(pair: Exported, reference_tensorrt: Any) -> None:  # noqa: F811
    with pytest.raises(OptionError, match="no_such_setting"):
        pair.programs.compile("tensorrt", no_such_setting=1)


@pytest.mark.parametrize("pair", each("t5"), indirect=True)
def test_without_torch_tensorrt(pair: Exported) -> None:
    with hidden(), pytest.raises(TensorRTError):
        pair.programs.compile("tensorrt")
