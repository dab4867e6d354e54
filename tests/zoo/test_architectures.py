"""Ten architectures by every road: what attnlower says of each attention call, what it does, and equal outputs.

The table states for each kind of attention call its formula and what becomes of its mask. `attention_mask[b, k]` joins
the formula where the model is called with an attention mask that reaches the call.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import pytest
import torch

import attnlower

CAUSAL = "k <= q"
WINDOW = "k <= q & k > q - 6"
FULL = "true"
PADDING = "attention_mask[b, k]"
TRIANGLE, KEEP, DROP, GUARD = "is_causal", "keep", "drop_mask", "guarded"


@dataclass(frozen=True)
class Expected:
    """One kind of attention call.

    Attributes:
        module: pattern of module paths.
        kinds: words for the mask without padding.
        formula: what the formula without padding is (starts with, if there is a bias).
        compiled: action of torch.compile without attention_mask.
        exported: action of lower(torch.export(...)) without attention_mask.
        padded: action of torch.compile with attention_mask, and of lower(assume="attention_mask.all()").
        is_padded: the model's attention_mask reaches this call.
    """

    module: str
    kinds: str
    formula: str
    compiled: str
    exported: str
    padded: str
    is_padded: bool = True


# When Dynamo traces (not in export), Hugging Face sets is_causal itself for OPT and BART and builds no mask for BERT.
# fmt: off
EXPECTED: dict[str, list[Expected]] = {
    #                     module                              kinds             formula compiled  exported  padded
    "qwen2":   [Expected("model.layers.*.self_attn",        "causal",         CAUSAL, TRIANGLE, TRIANGLE, GUARD)],
    "llama":   [Expected("model.layers.*.self_attn",        "causal",         CAUSAL, TRIANGLE, TRIANGLE, GUARD)],
    "gpt2":    [Expected("transformer.h.*.attn",            "causal",         CAUSAL, TRIANGLE, TRIANGLE, GUARD)],
    "opt":     [Expected("model.decoder.layers.*.self_attn", "causal",         CAUSAL, KEEP,     TRIANGLE, GUARD)],
    "mistral": [Expected("model.layers.*.self_attn",        "sliding_window", WINDOW, KEEP,     KEEP,     KEEP)],
    "gemma2":  [Expected("model.layers.0.self_attn",        "sliding_window", WINDOW, KEEP,     KEEP,     KEEP),
                Expected("model.layers.1.self_attn",        "causal",         CAUSAL, KEEP,     KEEP,     KEEP)],
    "gemma3":  [Expected("model.layers.0.self_attn",        "sliding_window", WINDOW, KEEP,     KEEP,     KEEP),
                Expected("model.layers.1.self_attn",        "causal",         CAUSAL, TRIANGLE, TRIANGLE, GUARD)],
    "bert":    [Expected("encoder.layer.*.attention.self",  "full",           FULL,   KEEP,     DROP,     GUARD)],
    "t5":      [Expected("encoder.block.*.SelfAttention",   "bias",           FULL,   KEEP,     KEEP,     KEEP),
                Expected("decoder.block.*.SelfAttention",   "bias causal",    CAUSAL, KEEP,     KEEP,     KEEP,  False),
                Expected("decoder.block.*.EncDecAttention", "full",           FULL,   DROP,     DROP,     GUARD)],
    "bart":    [Expected("model.encoder.*.self_attn",       "full",           FULL,   KEEP,     DROP,     GUARD),
                Expected("model.decoder.*.self_attn",       "causal",         CAUSAL, KEEP,     TRIANGLE, KEEP,  False),
                Expected("model.decoder.*.encoder_attn",    "full",           FULL,   KEEP,     DROP,     GUARD)],
}
# fmt: on
SITES = {"t5": 6, "bart": 3}
"""Number of attention calls; two for the others."""

SPELLING = {"gemma2": "eager"}
"""Gemma 2 caps its scores, which sdpa cannot; the others run with sdpa."""

CAUSAL_MODELS = ("qwen2", "llama", "gpt2", "opt")


def grouped(*names: str) -> list[Any]:
    """Parameters of which pytest-xdist runs equal names in one process, which then builds and exports a model once."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]


NAMES = grouped(*EXPECTED)
CAUSAL_NAMES = grouped(*CAUSAL_MODELS)
EAGER_NAMES = grouped("qwen2", "bert", "t5")
PADDED = pytest.mark.parametrize("padded", [False, True], ids=["no-mask", "mask"])


def row_of(name: str, module: str) -> Expected:
    rows = [row for row in EXPECTED[name] if fnmatch(module, row.module)]
    assert len(rows) == 1, f"{module} fits {len(rows)} rows"
    return rows[0]


def padded_formula(formula: str) -> str:
    return PADDING if formula == FULL else f"{formula} & {PADDING}"


def check_report(report: attnlower.Report, name: str, *, padded: bool, action: str) -> None:
    """Compare a report with the table; `action` is the column to be compared with."""
    assert len(report.sites) == SITES.get(name, 2)
    assert report.near_misses == ()
    for site in report.sites:
        row = row_of(name, site.module)
        with_padding = padded and row.is_padded
        kinds = set(row.kinds.split())
        if with_padding:
            kinds = kinds - {"full"} | {"padding"}
        assert site.kinds == kinds, site
        assert site.verdict == "proved", site
        formula = padded_formula(row.formula) if with_padding else row.formula
        assert site.formula.partition("; bias")[0] == formula, site
        assert ("; bias" in site.formula) == ("bias" in row.kinds), site
        expected = getattr(row, "padded" if with_padding else action)
        assert site.action == expected, site
        assert site.reason
        if expected == "guarded":
            assert site.conditions == ("attention_mask.all()",)


def check_graph(zoo: Any, name: str, gm: Any, *, fast: bool) -> None:
    """No call has become causal that is not, and no mask is left where none is needed."""
    rows = [row_of(name, module) for module in modules_of(zoo, gm)]
    for call, row in zip(zoo.calls(gm), rows, strict=True):
        if row.kinds != "causal":
            assert not call.is_causal, f"{row.module} was made causal"
        if fast and row.padded == "guarded":
            assert call.mask is None
            assert call.is_causal == (row.kinds == "causal")


def modules_of(zoo: Any, gm: Any) -> list[str]:
    from attnlower.patterns.metadata import module_path

    return [module_path(call.node) for call in zoo.calls(gm)]


@PADDED
@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
@pytest.mark.parametrize("name", NAMES)
def test_compile(zoo: Any, name: str, dynamic: bool, padded: bool) -> None:
    model = zoo.model(name, SPELLING.get(name, "sdpa"))
    compiled = zoo.compile(model, zoo.inputs(name, 2, 9, "ones" if padded else None), dynamic=dynamic)
    check_report(compiled.report, name, padded=padded, action="compiled")
    if name not in SPELLING:
        check_graph(zoo, name, compiled.general, fast=False)
        if compiled.fast is not None:
            check_graph(zoo, name, compiled.fast, fast=True)
    if name in CAUSAL_MODELS:
        assert zoo.squares(compiled.fast if padded else compiled.general) == []
        assert not padded or zoo.squares(compiled.general), "the general variant needs its mask"
    # above and below the window of 6; sizes of 1, and all sizes of a static graph, are compiled anew
    sizes = [(2, 9), (3, 12), (2, 5), (2, 1)] if dynamic else [(2, 9), (2, 1)]
    if dynamic and name in ("qwen2", "bert"):
        sizes += [(1, 7), (1, 1)]
    for batch, length in sizes:
        for mask in zoo.mask_kinds if padded else (None,):
            given = zoo.inputs(name, batch, length, mask, seed=1)
            zoo.assert_equal(compiled.call(**given), zoo.run(model, given), f"{batch} x {length}, {mask}")


@PADDED
@pytest.mark.parametrize("name", NAMES)
def test_export(zoo: Any, name: str, padded: bool) -> None:
    program = zoo.export(name, padded=padded, attention=SPELLING.get(name, "sdpa"))
    lowered = attnlower.lower(program, target="eager")
    if padded:
        for site in lowered.report.sites:
            row = row_of(name, site.module)
            if row.padded == "guarded":
                assert site.action == "keep"
                assert "attention_mask.all()" in site.reason
    else:
        check_report(lowered.report, name, padded=False, action="exported")
    if name not in SPELLING:
        check_graph(zoo, name, lowered.program.graph_module, fast=False)
    model, module = zoo.model(name, SPELLING.get(name, "sdpa")), lowered.program.module()
    for batch, length in [(2, 9), (3, 12), (4, 4)]:
        for mask in zoo.mask_kinds if padded else (None,):
            given = zoo.inputs(name, batch, length, mask, seed=2)
            zoo.assert_equal(zoo.run(module, given), zoo.run(model, given), f"{batch} x {length}, {mask}")


@pytest.mark.parametrize("name", NAMES)
def test_export_with_an_assumption(zoo: Any, name: str) -> None:
    program = zoo.export(name, padded=True, attention=SPELLING.get(name, "sdpa"))
    lowered = attnlower.lower(program, target="eager", assume="attention_mask.all()")
    check_report(lowered.report, name, padded=True, action="exported")
    assert lowered.report.assumptions == ("attention_mask.all()",)
    if name not in SPELLING:
        check_graph(zoo, name, lowered.program.graph_module, fast=True)
    model, module = zoo.model(name, SPELLING.get(name, "sdpa")), lowered.program.module()
    for batch, length in [(2, 9), (3, 12), (4, 4)]:
        given = zoo.inputs(name, batch, length, "ones", seed=3)
        zoo.assert_equal(zoo.run(module, given), zoo.run(model, given), f"{batch} x {length}")


@pytest.mark.parametrize("padded", [False, True], ids=["no-mask", "mask"])
@pytest.mark.parametrize("name", NAMES)
def test_the_program_and_its_guards_stay_as_they_are(zoo: Any, name: str, padded: bool) -> None:
    program = zoo.export(name, padded=padded, attention=SPELLING.get(name, "sdpa"))

    def state() -> tuple[Any, ...]:
        signature, ranges = str(program.graph_signature), str(program.range_constraints)
        weights = {k: (v.data_ptr(), v._version) for k, v in program.state_dict.items()}
        return (*zoo.snapshot(program.graph_module), program.graph_module.code, signature, ranges, weights)

    before = state()
    attnlower.explain(program)
    assert state() == before
    attnlower.lower(program, target="eager", assume="attention_mask.all()" if padded else None)
    assert state() == before


@PADDED
@pytest.mark.parametrize("name", CAUSAL_NAMES)
def test_no_square_tensor_is_left_in_an_exported_causal_model(zoo: Any, name: str, padded: bool) -> None:
    program = zoo.export(name, padded=padded)
    assert zoo.squares(program.graph_module)
    lowered = attnlower.lower(program, target="eager", assume="attention_mask.all()" if padded else None).program
    calls = zoo.calls(lowered.graph_module)
    assert [(call.mask, call.is_causal) for call in calls] == [(None, True)] * 2
    assert zoo.squares(lowered.graph_module) == []


@pytest.mark.parametrize("name", EAGER_NAMES)
def test_attention_written_out_reads_the_same(zoo: Any, name: str) -> None:
    model = zoo.model(name, "eager")
    for padded in (False, True):
        compiled = zoo.compile(model, zoo.inputs(name, 2, 9, "ones" if padded else None), dynamic=True)
        assert [s.spelling for s in compiled.report.sites] == ["eager"] * SITES.get(name, 2)
        for site in compiled.report.sites:
            row = row_of(name, site.module)
            assert site.verdict == "proved"
            formula = padded_formula(row.formula) if padded and row.is_padded else row.formula
            assert site.formula.partition("; bias")[0] == formula
            if row.kinds == "causal":
                assert site.action == ("guarded" if padded else "is_causal")
            if row.kinds in ("bias", "bias causal", "sliding_window"):
                assert site.action == "keep"
        for batch, length in [(2, 9), (3, 12), (2, 5)]:
            for mask in zoo.mask_kinds if padded else (None,):
                given = zoo.inputs(name, batch, length, mask, seed=4)
                zoo.assert_equal(compiled.call(**given), zoo.run(model, given), f"{batch} x {length}, {mask}")


@pytest.mark.parametrize("length", [5, 6, 7])
@pytest.mark.xdist_group("mistral")
def test_mistral_is_causal_only_below_its_window(zoo: Any, length: int) -> None:
    model = zoo.model("mistral")
    for padded in (False, True):
        given = zoo.inputs("mistral", 2, length, "ones" if padded else None)
        compiled = zoo.compile(model, given, dynamic=False)
        below = length <= zoo.window
        for site in compiled.report.sites:
            assert ("causal" in site.kinds) == below
            assert ("sliding_window" in site.kinds) == (not below)
            assert site.action == (("guarded" if padded else "is_causal") if below else "keep")
        for mask in zoo.mask_kinds if padded else (None,):
            given = zoo.inputs("mistral", 2, length, mask, seed=5)
            zoo.assert_equal(compiled.call(**given), zoo.run(model, given), f"{length}, {mask}")


@pytest.mark.parametrize("name", grouped("qwen2", "mistral"))
def test_automatic_dynamic_shapes(zoo: Any, name: str) -> None:
    """torch.compile's default: the first graph is static (and below the window), the next one dynamic."""
    model = zoo.model(name)
    compiled = torch.compile(model, backend="attnlower", options={"target": "eager", "strict": True})
    actions = []
    for length in (5, 9, 12, 4, 1):
        for mask in ("ones", "left"):
            given = zoo.inputs(name, 2, length, mask, seed=17)
            zoo.assert_equal(zoo.run(compiled, given), zoo.run(model, given), f"{length}, {mask}")
        actions.append({site.action for site in attnlower.last_report().sites})
    assert actions[:2] == [{"guarded"}, {"guarded"} if name == "qwen2" else {"keep"}]


@pytest.mark.parametrize("longest", [6, 7])
@pytest.mark.xdist_group("mistral")
def test_mistral_exported_with_a_bounded_length(zoo: Any, longest: int) -> None:
    """A length that never exceeds the window: the range is a fact, and the mask is plain causal."""
    model, given = zoo.model("mistral"), zoo.inputs("mistral", 2, 5)
    length = torch.export.Dim("length", min=2, max=longest)
    shapes = {"input_ids": {1: length}, "use_cache": None}
    program = torch.export.export(model, (), given, dynamic_shapes=shapes, strict=False)
    lowered = attnlower.lower(program, target="eager")
    assert [site.action for site in lowered.report.sites] == ["is_causal" if longest == 6 else "keep"] * 2
    for size in range(2, longest + 1):
        given = zoo.inputs("mistral", 2, size, seed=18)
        zoo.assert_equal(zoo.run(lowered.program.module(), given), zoo.run(model, given), str(size))


@pytest.mark.xdist_group("bart")
def test_masks_of_encoder_and_decoder(zoo: Any) -> None:
    """Two inputs decide: the fast variant runs only when both are all ones."""
    model = zoo.model("bart")

    def given(encoder: str, decoder: str) -> dict[str, Any]:
        found = zoo.inputs("bart", 2, 9, encoder, seed=19)
        return {**found, "decoder_attention_mask": zoo.mask(decoder, 2, 7)}

    compiled = zoo.compile(model, given("ones", "ones"), dynamic=True)
    for site in compiled.report.sites:
        in_decoder = site.module.startswith("model.decoder") and site.module.endswith("self_attn")
        assert site.formula == ("k <= q & decoder_attention_mask[b, k]" if in_decoder else PADDING)
        assert site.action == "guarded"
        assert site.conditions == ("decoder_attention_mask.all()" if in_decoder else "attention_mask.all()",)
    for encoder in zoo.mask_kinds:
        for decoder in zoo.mask_kinds:
            now = given(encoder, decoder)
            zoo.assert_equal(compiled.call(**now), zoo.run(model, now), f"{encoder}, {decoder}")


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
@pytest.mark.xdist_group("qwen2")
def test_masks_of_other_types(zoo: Any, dtype: str) -> None:
    model = zoo.model("qwen2")
    kind = getattr(torch, dtype)

    def given(length: int, mask: str) -> dict[str, Any]:
        found = zoo.inputs("qwen2", 2, length, mask, seed=6)
        return {**found, "attention_mask": found["attention_mask"].to(kind)}

    compiled = zoo.compile(model, given(9, "ones"), dynamic=True)
    assert [s.formula for s in compiled.report.sites] == ["k <= q & attention_mask[b, k]"] * 2
    assert [s.action for s in compiled.report.sites] == ["guarded"] * 2
    for length in (9, 5):
        for mask in zoo.mask_kinds:
            zoo.assert_equal(compiled.call(**given(length, mask)), zoo.run(model, given(length, mask)), mask)


@pytest.mark.xdist_group("qwen2")
def test_inductor(zoo: Any) -> None:
    """The real backend by its name, its compiler included."""
    model = zoo.model("qwen2")
    compiled = torch.compile(model, backend="attnlower", dynamic=True, options={"strict": True})
    for batch, length in [(2, 9), (3, 12)]:
        for mask in zoo.mask_kinds:
            given = zoo.inputs("qwen2", batch, length, mask, seed=7)
            zoo.assert_equal(zoo.run(compiled, given), zoo.run(model, given), f"{batch} x {length}, {mask}")
    assert [site.action for site in attnlower.last_report().sites] == ["guarded"] * 2
