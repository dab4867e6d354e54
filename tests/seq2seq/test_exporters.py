"""Programs of transformers' own exporters go through `attnlower.lower` as they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch.utils._pytree import tree_leaves

import attnlower

exporters = pytest.importorskip("transformers.exporters")


def t5() -> Any:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))


def qwen2() -> Any:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2)
    )


@pytest.mark.parametrize("make", [t5, qwen2], ids=["t5", "qwen2"])
def test_components_are_lowered(make: Any) -> None:
    torch.manual_seed(0)
    model = make().eval()
    ids, mask = torch.randint(3, 60, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    exporter = exporters.DynamoExporter()
    given = {"input_ids": ids, "attention_mask": mask}
    exported = exporter.export_for_generation(model, given, exporters.DynamoConfig(dynamic=True))
    assert {"prefill", "decode"} <= set(exported.components)
    for name, component in exported.components.items():
        program = component.program
        lowered = attnlower.lower(program)
        if name in ("prefill", "decode"):
            assert lowered.report.sites
        assert all(site.verdict != "unknown" for site in lowered.report.sites)
        args, kwargs = program.example_inputs
        results = []
        for variant in (program, lowered.program):
            own_args, own_kwargs = copy.deepcopy((args, kwargs))
            results.append([t for t in tree_leaves(variant.module()(*own_args, **own_kwargs)) if torch.is_tensor(t)])
        for before, after in zip(*results, strict=True):
            torch.testing.assert_close(after, before)
