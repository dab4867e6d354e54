"""A fixed sample of the sweep over all architectures, and whether the sweep would notice what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from sweep import scenarios as scenarios_module
from sweep import truth as truth_module
from sweep.architectures import Architecture, architectures
from sweep.configs import WINDOW, small_config
from sweep.inputs import SIZES, padding
from sweep.job import prepared, sweep
from sweep.models import LIMIT, Skip, build
from sweep.scenarios import Eager, compile_scenario, difference
from sweep.table import failures, lines, totals

COMPILE, EXPORT = ("compile, padding",), ("export, no mask",)
PADDED_EXPORT = ("export, padding",)

SAMPLE: dict[str, tuple[str, ...]] = {
    "BartForConditionalGeneration": PADDED_EXPORT,
    "BertForMaskedLM": COMPILE,
    "BloomForCausalLM": COMPILE,
    "Cohere2ForCausalLM": EXPORT,
    "DeepseekV3ForCausalLM": COMPILE,
    "DistilBertForMaskedLM": PADDED_EXPORT,
    "FalconForCausalLM": EXPORT,
    "GPT2LMHeadModel": PADDED_EXPORT,
    "GPTNeoXForCausalLM": EXPORT,
    "Gemma2ForCausalLM": COMPILE,
    "Gemma3ForCausalLM": PADDED_EXPORT,
    "GptOssForCausalLM": EXPORT,
    "Llama4ForCausalLM": COMPILE,
    "LlamaForCausalLM": COMPILE,
    "M2M100ForConditionalGeneration": COMPILE,
    "MistralForCausalLM": COMPILE,
    "MixtralForCausalLM": EXPORT,
    "ModernBertForMaskedLM": PADDED_EXPORT,
    "MptForCausalLM": EXPORT,
    "OPTForCausalLM": COMPILE,
    "Phi3ForCausalLM": EXPORT,
    "Qwen2ForCausalLM": PADDED_EXPORT,
    "RobertaForMaskedLM": EXPORT,
    "T5ForConditionalGeneration": EXPORT,
    "Wav2Vec2Model": COMPILE,
    "WhisperForConditionalGeneration": PADDED_EXPORT,
}
"""One road for each: together they take masks of every kind by every road."""

WINDOWED = {"Cohere2ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"}


def architecture(class_name: str) -> Architecture:
    found = [a for a in architectures() if a.class_name == class_name]
    if not found:
        pytest.skip(f"this transformers maps no {class_name}")
    return found[0]


@pytest.mark.parametrize("class_name", SAMPLE)
def test_sample(class_name: str) -> None:
    result = sweep(architecture(class_name), scenarios=SAMPLE[class_name])
    assert result["status"] == "run", result["reason"]
    assert failures([result]) == []
    for name, found in result["scenarios"].items():
        assert found["status"] == "equal", (name, found.get("reason"))
        assert all(site["ran"] for site in found["sites"])
        if result["attention"] == "sdpa":
            assert found["sites"]
            assert found["notes"] == []
        if class_name in WINDOWED:
            assert any("sliding_window" in site["kinds"] for site in found["sites"])
    assert result["mask_matters"] in (True, None)


def test_every_family_is_listed_once() -> None:
    every = architectures()
    assert len({a.class_name for a in every}) == len(every)
    assert {a.family for a in every} == {"causal LM", "masked LM", "seq2seq LM", "speech seq2seq", "base"}
    assert len([a for a in every if a.family != "base"]) > 200


def test_small_configs_are_small() -> None:
    config = small_config(architecture("MistralForCausalLM").config_class)
    assert config.sliding_window == WINDOW < SIZES[0][1]
    model = build(architecture("MistralForCausalLM"))
    assert model.attention == "sdpa"
    assert model.size < LIMIT // 100


def test_images_are_skipped_with_the_reason() -> None:
    with pytest.raises(Skip, match=r"images|takes no"):
        prepared(architecture("ViTModel"))


# --- what the sweep must notice -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mistral() -> tuple[Any, Any, Eager]:
    return prepared(architecture("MistralForCausalLM"))


def test_notices_a_wrong_output(mistral: tuple[Any, Any, Eager], monkeypatch: pytest.MonkeyPatch) -> None:
    built, inputs, eager = mistral
    original = scenarios_module.attnlower_backend

    def wrong(gm: Any, example_inputs: Any, **kwargs: Any) -> Any:
        lowered = original(gm, example_inputs, **kwargs)
        return lambda *args: tuple(
            t + 1e-3 if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in lowered(*args)
        )

    monkeypatch.setattr(scenarios_module, "attnlower_backend", wrong)
    found = compile_scenario(built.model, inputs, eager, (None,))
    assert found["status"] == "unequal"


def test_notices_a_formula_that_is_not_the_mask(
    mistral: tuple[Any, Any, Eager], monkeypatch: pytest.MonkeyPatch
) -> None:
    built, inputs, eager = mistral
    original = truth_module.real_mask

    def other(*args: Any) -> torch.Tensor:
        mask = original(*args).clone()
        mask[0, 0, -1, 0] = ~mask[0, 0, -1, 0]
        return mask

    monkeypatch.setattr(truth_module, "real_mask", other)
    found = compile_scenario(built.model, inputs, eager, (None,))
    assert all(site["wrong"] for site in found["sites"])
    result = {"class": "x", "status": "run", "scenarios": {"compile, no mask": found}}
    assert any("wrong" in text for text in failures([result]))


@pytest.mark.parametrize("action", ["is_causal", "drop_mask", "keep"])
def test_notices_a_wrong_action(mistral: tuple[Any, Any, Eager], action: str) -> None:
    built, inputs, _ = mistral
    from dataclasses import replace

    import attnlower
    from attnlower.patterns import analyze

    given = inputs.make(0, None)
    program = torch.export.export(built.model, (), given, strict=False)
    report = attnlower.lower(program, target="eager").report
    report = replace(report, sites=tuple(replace(site, action=action) for site in report.sites))
    truth = truth_module.GraphTruth(program.graph_module, analyze(program.graph_module), 0.0, report)
    truth.observe(tuple(program._graph_module_flat_inputs((), given)), "none")
    assert [bool(site.contradictions()) for site in truth.sites] == [action != "keep"] * len(truth.sites)


class Chosen(torch.nn.Module):
    """Attends among the rows that the data choose: their number is known to no input."""

    def forward(self, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        rows = x[:, chosen.nonzero().squeeze(1)].unsqueeze(1)
        torch._check(rows.shape[2] != 0)
        steps = torch.arange(rows.shape[2])
        mask = steps[None, :] <= steps[:, None]
        return torch.nn.functional.scaled_dot_product_attention(rows, rows, rows, attn_mask=mask)


def test_numbers_that_the_graph_computes_are_read_off_it() -> None:
    import attnlower
    from attnlower.patterns import analyze

    given = (torch.randn(2, 7, 4), torch.tensor([1, 0, 1, 1, 0, 1, 1]))
    program = torch.export.export(Chosen(), given, strict=False)
    report = attnlower.lower(program, target="eager").report
    truth = truth_module.GraphTruth(program.graph_module, analyze(program.graph_module), 0.0, report)
    _, (mask,) = truth.observe(tuple(program._graph_module_flat_inputs(given, {})), "none")
    assert mask is not None
    assert torch.equal(mask, torch.ones(2, 1, 5, 5, dtype=torch.bool).tril())
    assert truth.sites[0].contradictions() == []
    assert not truth.sites[0].unchecked


def test_difference_is_relative_and_minds_nan() -> None:
    a = torch.tensor([1.0, float("nan"), 100.0])
    assert difference([a], [a.clone()]) == 0
    assert difference([a], [torch.tensor([1.0, 2.0, 100.0])]) == float("inf")
    assert difference([a + 1.0], [a]) == pytest.approx(0.01)
    assert difference([a], [a[:2]]) == float("inf")


def test_padding_leaves_a_full_row() -> None:
    assert padding("ones", 2, 9).all()
    assert padding("left", 2, 9).sum(1).tolist() == [6, 9]
    assert padding("right", 2, 9).sum(1).tolist() == [9, 6]


def test_table_is_written_from_results() -> None:
    result = sweep(architecture("GPT2LMHeadModel"), scenarios=EXPORT)
    text = "\n".join(lines([result], []))
    assert "| gpt2 | GPT2LMHeadModel | sdpa |" in text or "GPT2LMHeadModel" in text
    assert "2 causal" in text
    assert " 1 run " in totals([result])[0]
    assert "not tried" in totals([result])[0]
