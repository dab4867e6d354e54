"""What no token may see: the future, other documents. And what it must: both sides of a BERT."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attnlower

MODELS = ("qwen2", "llama", "gpt2", "opt", "gemma3", "mistral")
CAUSAL = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in MODELS]
VISIBLE = 1e-3
"""Outputs that depend on a token change by more than this when it changes."""


def with_other_last_token(given: dict[str, Any]) -> dict[str, Any]:
    tokens = given["input_ids"].clone()
    tokens[:, -1] = (tokens[:, -1] - 2) % 61 + 3
    return {**given, "input_ids": tokens}


def check_no_leak(zoo: Any, call: Any, given: dict[str, Any]) -> None:
    before, after = zoo.run(call, given), zoo.run(call, with_other_last_token(given))
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert (before[:, -1] - after[:, -1]).abs().amax(-1).min() > VISIBLE


@pytest.mark.parametrize("padded", [False, True], ids=["no-mask", "mask"])
@pytest.mark.parametrize("name", CAUSAL)
def test_no_token_sees_the_future(zoo: Any, name: str, padded: bool) -> None:
    program = zoo.export(name, padded=padded)
    lowered = attnlower.lower(program, target="eager", assume="attention_mask.all()" if padded else None)
    actions = {site.action for site in lowered.report.sites}
    assert actions & {"is_causal", "guarded"} or name == "mistral"
    for length in (9, 14, 3):
        check_no_leak(zoo, lowered.program.module(), zoo.inputs(name, 2, length, "ones" if padded else None, seed=8))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in ("qwen2", "gemma3")])
def test_no_token_sees_the_future_by_compile(zoo: Any, name: str) -> None:
    compiled = zoo.compile(zoo.model(name), zoo.inputs(name, 2, 9, "ones"), dynamic=True)
    for mask in zoo.mask_kinds:
        given = zoo.inputs(name, 2, 11, mask, seed=9)
        given["attention_mask"][:, -1] = 1
        check_no_leak(zoo, lambda **kwargs: (compiled.call(**kwargs),), given)


@pytest.mark.parametrize("padded", [False, True], ids=["no-mask", "mask"])
@pytest.mark.xdist_group("bert")
def test_bert_sees_both_sides(zoo: Any, padded: bool) -> None:
    program = zoo.export("bert", padded=padded)
    lowered = attnlower.lower(program, target="eager", assume="attention_mask.all()" if padded else None).program
    given = zoo.inputs("bert", 2, 11, "ones" if padded else None, seed=10)
    before, after = zoo.run(lowered.module(), given), zoo.run(lowered.module(), with_other_last_token(given))
    assert (before[:, 0] - after[:, 0]).abs().amax(-1).min() > VISIBLE


@pytest.mark.xdist_group("qwen2")
def test_padding_matters(zoo: Any) -> None:
    """The oracle is sharp: a model without its padding mask would be told apart."""
    for name in ("qwen2", "gpt2", "bert"):
        model = zoo.model(name)
        ones = zoo.run(model, zoo.inputs(name, 2, 9, "ones"))
        for mask in ("left", "right", "holes"):
            padded = zoo.run(model, zoo.inputs(name, 2, 9, mask))
            row = 1 if mask == "right" else 0
            position = 0 if name == "bert" else -1
            if not (mask == "right" and position == -1):
                assert (ones - padded)[row, position].abs().max() > VISIBLE, (name, mask)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in ("qwen2", "gemma3")])
def test_packed_positions_stay_apart(zoo: Any, name: str) -> None:
    """position_ids that start anew mark several documents in a row; Hugging Face reads them in eager mode."""
    model = zoo.model(name)

    def given(*lengths: int) -> dict[str, Any]:
        found = zoo.inputs(name, 1, sum(lengths), seed=11)
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        return {**found, "position_ids": positions}

    packed = zoo.run(model, given(4, 5))
    plain = zoo.run(model, {**given(4, 5), "position_ids": torch.arange(9)[None]})
    assert (packed - plain).abs().max() > VISIBLE
    compiled = zoo.compile(model, given(4, 5), dynamic=True)
    for site in compiled.report.sites:
        assert site.action == "keep"
        assert "position_ids" in site.formula
        assert "packed" in site.kinds or "opaque" in site.kinds
    assert not any(call.is_causal for call in zoo.calls(compiled.general))
    for lengths in [(4, 5), (3, 3, 3), (9,), (2, 6, 4), (12,)]:
        zoo.assert_equal(compiled.call(**given(*lengths)), zoo.run(model, given(*lengths)), str(lengths))


@pytest.mark.xdist_group("qwen2")
def test_packed_positions_stay_apart_in_export(zoo: Any) -> None:
    model = zoo.model("qwen2")
    given = zoo.inputs("qwen2", 2, 9, seed=12)
    given["position_ids"] = torch.cat([torch.arange(4), torch.arange(5)])[None].repeat(2, 1)
    program = zoo.export_model(model, given)
    lowered = attnlower.lower(program, target="eager")
    assert {site.action for site in lowered.report.sites} == {"keep"}
    for split in (4, 2, 9):
        given["position_ids"] = torch.cat([torch.arange(split), torch.arange(9 - split)])[None].repeat(2, 1)
        zoo.assert_equal(zoo.run(lowered.program.module(), given), zoo.run(program.module(), given), str(split))
