"""What is in the lowered programs: masks as proved, and every projection where it belongs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from seq2seq_recipes import RELATIVE, Exported, each
from torch import Tensor
from torch.export import ExportedProgram

from attnlower.lowering.report import AttentionSite
from attnlower.lowering.seq2seq.modules import decoder_layers

LAYERS = 2
_PRODUCTS = frozenset((torch.ops.aten.linear.default, torch.ops.aten.mm.default, torch.ops.aten.addmm.default))


def is_cross(site: AttentionSite) -> bool:
    return "encoder_attn" in site.module or "EncDecAttention" in site.module


def products(program: ExportedProgram) -> Counter[str]:
    """How often each weight is multiplied with."""
    names = program.graph_signature.inputs_to_parameters
    found: Counter[str] = Counter()
    for node in program.graph.nodes:
        if node.target in _PRODUCTS:
            weights = [names[x.name] for x in node.all_input_nodes if names.get(x.name, "").endswith("weight")]
            found.update(weights or [node.name])
    return found


def in_encoder(name: str) -> bool:
    return ".encoder." in f".{name}"


def projects_the_source(name: str) -> bool:
    parts = name.split(".")
    return ("encoder_attn" in parts or "EncDecAttention" in parts) and parts[-2] in ("k", "v", "k_proj", "v_proj")


@pytest.mark.parametrize("pair", each(), indirect=True)
def test_every_site_is_known(pair: Exported) -> None:
    reports = pair.programs.reports
    assert {name: len(r.sites) for name, r in reports.items()} == {"encoder": 2, "prefill": 4, "step": 4}
    for report in reports.values():
        assert not report.error
        assert not report.near_misses
        for site in report.sites:
            assert site.verdict in ("proved", "refuted"), site
            assert "opaque" not in site.kinds, site


@pytest.mark.parametrize("pair", each(), indirect=True)
def test_encoder_and_cross_attention_are_never_causal(pair: Exported) -> None:
    for name, report in pair.programs.reports.items():
        for site in report.sites:
            if name == "encoder" or is_cross(site):
                assert "causal" not in site.kinds and site.action != "is_causal", site
    for program in (pair.programs.programs[name] for name in ("encoder", "step")):
        for node in program.graph.nodes:
            assert "scaled_dot_product" not in str(node.target) or not (len(node.args) > 5 and node.args[5])
            assert not node.kwargs.get("is_causal")


@pytest.mark.parametrize("pair", each(), indirect=True)
def test_self_attention_of_a_prompt_is_causal_by_proof(pair: Exported) -> None:
    sites = [s for s in pair.programs.reports["prefill"].sites if not is_cross(s)]
    assert len(sites) == LAYERS
    for site in sites:
        assert site.verdict == "proved", site
        assert "causal" in site.kinds, site
        if pair.name in RELATIVE:
            assert "bias" in site.kinds, site
        else:
            assert site.kinds == {"causal"} and site.action == "is_causal", site


@pytest.mark.parametrize("pair", each(), indirect=True)
def test_no_program_projects_what_another_one_has(pair: Exported) -> None:
    counts = {name: products(program) for name, program in pair.programs.programs.items()}
    assert decoder_layers(pair.model.config) == LAYERS
    for name in ("prefill", "step"):
        assert not [w for w in counts[name] if in_encoder(w) or projects_the_source(w)]
        # per layer: four of self-attention, query and output of cross-attention, two or three of the feed-forward part
        feed_forward = 3 if pair.name in ("mt5", "umt5") else 2
        assert sum(counts[name].values()) == LAYERS * (6 + feed_forward) + 1, counts[name]
    projected = [w for w in counts["encoder"] if projects_the_source(w)]
    assert len(projected) == 2 * LAYERS
    assert not [w for w in counts["encoder"] if not in_encoder(w) and not projects_the_source(w)]
    for count in counts.values():
        assert set(count.values()) == {1}


@pytest.mark.parametrize("pair", each(), indirect=True)
def test_programs_hold_only_the_weights_they_use(pair: Exported) -> None:
    for name in ("prefill", "step"):
        weights = pair.programs.programs[name].state_dict
        assert not [w for w in weights if in_encoder(w) or projects_the_source(w)]


@pytest.mark.parametrize("pair", each(), indirect=True)
def test_weights_are_those_of_the_model(pair: Exported) -> None:
    """Nothing is copied, so that two programs take no more memory than the model."""
    own = {t.data_ptr() for t in (*pair.model.parameters(), *pair.model.buffers())}
    for program in pair.programs.programs.values():
        assert {t.data_ptr() for t in program.state_dict.values()} <= own


@pytest.mark.parametrize("pair", each(), indirect=True)
def test_the_encoder_runs_once(pair: Exported) -> None:
    runtime = pair.programs.runtime
    assert runtime is not None
    calls: Counter[str] = Counter()
    caches: set[tuple[int, ...]] = set()

    def encoder(source: Tensor, mask: Tensor) -> object:
        calls["encoder"] += 1
        return runtime.encoder(source, mask)

    def prefill(*args: object) -> Tensor:
        calls["prefill"] += 1
        return runtime.prefill(*args)  # type: ignore[arg-type]

    def step(*args: object) -> Tensor:
        calls["step"] += 1
        caches.add(tuple(t.data_ptr() for part in args[5:] for t in part))  # type: ignore[attr-defined]
        assert all(t.shape[0] == 3 for part in args[5:] for t in part)  # type: ignore[attr-defined]
        return runtime.step(*args)  # type: ignore[arg-type]

    counting = replace(runtime, encoder=encoder, prefill=prefill, step=step)  # type: ignore[arg-type]
    source, mask = pair.source(3, 12, "right", seed=1)
    more = {"language": "de"} if pair.speech else {}
    got = replace(pair.programs, runtime=counting).generate(
        source, mask, num_beams=4, max_new_tokens=8, min_new_tokens=8, do_sample=False, **more
    )
    assert got.shape[0] == 3
    assert calls == {"encoder": 1, "prefill": 1, "step": 7}
    assert len(caches) == 1, "one cross cache, of the sources and not of their beams, for all steps"


@pytest.mark.parametrize("pair", each("t5", "bart", "whisper"), indirect=True)
def test_generating_leaves_the_programs_as_they_are(pair: Exported) -> None:
    before = {name: str(p.graph) for name, p in pair.programs.programs.items()}
    weights = {n: t.clone() for p in pair.programs.programs.values() for n, t in p.state_dict.items()}
    report = str(pair.programs.report)
    config, defaults = pair.programs.config.to_dict(), pair.programs.generation_config.to_dict()
    source, mask = pair.source(3, 12, "right", seed=1)
    pair.programs.generate(source, mask, num_beams=4, max_new_tokens=6, repetition_penalty=1.3)
    assert {name: str(p.graph) for name, p in pair.programs.programs.items()} == before
    for program in pair.programs.programs.values():
        for name, tensor in program.state_dict.items():
            assert torch.equal(tensor, weights[name]), name
    assert str(pair.programs.report) == report
    assert len(pair.programs.report.sites) == 10
    assert (pair.programs.config.to_dict(), pair.programs.generation_config.to_dict()) == (config, defaults)
