"""Masks that are buffers or were folded to constants: proved by their values, which under torch.compile are checked."""

from __future__ import annotations

import copy
import io
import random
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import attnlower
from attnlower.lowering.exported import fixed_buffers
from attnlower.patterns import analyze

SIZE = 16
NEG = float("-inf")
LOW = torch.finfo(torch.float32).min
LENGTH = {2: Dim("T", max=SIZE - 1)}
"""torch.export bounds a slice of the buffer by its size, itself excluded."""

ROW, COLUMN = torch.arange(SIZE)[:, None], torch.arange(SIZE)[None]
TRIL = COLUMN <= ROW


def flipped(mask: torch.Tensor, row: int, column: int) -> torch.Tensor:
    changed = mask.clone()
    changed[row, column] = ~changed[row, column]
    return changed


def additive(allowed: torch.Tensor, blocked: float = NEG) -> torch.Tensor:
    return torch.zeros(allowed.shape).masked_fill(~allowed, blocked)


Use = Callable[[torch.Tensor, int], torch.Tensor]


class Buffered(torch.nn.Module):
    """Attention of x to itself under a mask made of one buffer per layer."""

    def __init__(self, value: torch.Tensor, use: Use | None = None, layers: int = 1, persistent: bool = True) -> None:
        super().__init__()
        self.use = use or (lambda mask, length: mask[..., :length, :length])
        self.layers = torch.nn.ModuleList(torch.nn.Module() for _ in range(layers))
        for layer in self.layers:
            layer.register_buffer("bias", value.clone(), persistent=persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = F.scaled_dot_product_attention(x, x, x, attn_mask=self.use(layer.bias, x.shape[2]))
        return x


class NanoGPT(torch.nn.Module):
    """Attention written out, with a tril buffer of ones and zeros."""

    def __init__(self, value: torch.Tensor | None = None) -> None:
        super().__init__()
        ones = torch.ones(SIZE, SIZE).tril() if value is None else value.float()
        self.register_buffer("bias", ones.view(1, 1, SIZE, SIZE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[2]
        scores = (x @ x.transpose(-2, -1)) * 0.5
        scores = scores.masked_fill(self.bias[:, :, :length, :length] == 0, NEG)
        return F.softmax(scores, dim=-1) @ x


class Padded(Buffered):
    """A buffer and an attention_mask together."""

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        length = x.shape[2]
        mask = self.layers[0].bias[:length, :length] & attention_mask[:, None, None, :].bool()
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def batch(length: int = 8) -> torch.Tensor:
    return torch.randn(2, 3, length, 4)


def export(model: torch.nn.Module, dynamic: bool = True) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, (batch(),), dynamic_shapes=(LENGTH,) if dynamic else None, strict=False)


def compile_(model: torch.nn.Module, dynamic: bool = True, *, whole: bool = True, **options: Any) -> Any:
    return torch.compile(
        model,
        backend="attnlower",
        dynamic=dynamic,
        fullgraph=whole,
        options={"target": "eager", "strict": True, **options},
    )


def same(run: Any, model: torch.nn.Module, lengths: tuple[int, ...] = (1, 3, 8, 15)) -> None:
    for length in lengths:
        x = batch(length)
        torch.testing.assert_close(run(x), model(x))


# --- torch.export ---------------------------------------------------------------------------------------------

CAUSAL: dict[str, tuple[torch.Tensor, Use | None]] = {
    "bool, rank 2": (TRIL, None),
    "bool, rank 3": (TRIL[None], None),
    "bool, rank 4": (TRIL[None, None], None),
    "-inf": (additive(TRIL), None),
    "finfo.min": (additive(TRIL, LOW)[None, None], None),
    "ones": (TRIL.float(), lambda m, t: m[:t, :t] != 0),
    "bytes": (TRIL.to(torch.uint8), lambda m, t: m[:t, :t].bool()),
    "blocked": (~TRIL, lambda m, t: ~m[:t, :t]),
    "ones to finfo.min": (TRIL.float(), lambda m, t: (1.0 - m[:t, :t]) * LOW),
    "square_subsequent_mask": (torch.nn.Transformer.generate_square_subsequent_mask(SIZE), None),
    "triu of -inf": (torch.full((SIZE, SIZE), NEG).triu(1), None),
    "transposed": (TRIL.t().contiguous(), lambda m, t: m[:t, :t].t()),
    "gathered": (TRIL, lambda m, t: m[torch.arange(t)][:, torch.arange(t)]),
    "positions": (torch.arange(SIZE), lambda m, t: m[None, :t] <= m[:t, None]),
    "float positions": (torch.arange(SIZE).float(), lambda m, t: m[None, :t] <= m[:t, None]),
    "bfloat16": (TRIL.bfloat16(), lambda m, t: m[:t, :t] > 0),
}


@pytest.mark.parametrize("name", list(CAUSAL))
@pytest.mark.parametrize("persistent", [True, False])
def test_a_buffer_is_proved_by_its_value(name: str, persistent: bool) -> None:
    value, use = CAUSAL[name]
    model = Buffered(value, use, persistent=persistent)
    done = attnlower.lower(export(model), target="eager")
    site = done.report.sites[0]
    assert site.action == "is_causal", site
    assert site.reason == "proved: causal (upper_left), by the values of buffer 'layers.0.bias'"
    same(done.program.module(), model)


NEAR: dict[str, torch.Tensor] = {
    "one element off": flipped(TRIL, 5, 3),
    "one element on": flipped(TRIL, 2, 7),
    "the last element on": flipped(TRIL, 13, 14),
    "one diagonal too many": COLUMN <= ROW + 1,
    "one diagonal too few": COLUMN < ROW,
    "window": TRIL & (COLUMN > ROW - 4),
    "prefix": TRIL | (COLUMN < 3),
    "chunks": TRIL & (COLUMN // 4 == ROW // 4),
    "transposed": TRIL.t(),
    "per head": torch.stack([TRIL, TRIL, flipped(TRIL, 4, 2)]),
    "NaN": additive(TRIL).masked_fill((ROW == 6) & (COLUMN == 2), float("nan")),
    "inf": additive(TRIL).masked_fill((ROW == 6) & (COLUMN == 2), float("inf")),
    "a bias": additive(TRIL) + 0.5 * (ROW == 9) * (COLUMN == 1),
    "-10": additive(TRIL, -10.0),
}


@pytest.mark.parametrize("name", list(NEAR))
@pytest.mark.parametrize("how", ["export", "dynamo"])
def test_a_near_miss_is_kept(name: str, how: str) -> None:
    model = Buffered(NEAR[name])
    if how == "export":
        done = attnlower.lower(export(model), target="eager")
        run, report = done.program.module(), done.report
    else:
        run = compile_(model)
        run(batch())
        report = attnlower.last_report()
    assert [s.action for s in report.sites] == ["keep"]
    for length in (1, 3, 8, 15):
        x = batch(length)
        torch.testing.assert_close(run(x), model(x), equal_nan=True)


def test_random_masks_are_rewritten_exactly_where_they_are_causal_or_full() -> None:
    rng = random.Random(0)
    actions = set()
    for round_ in range(12):
        mask = TRIL | (torch.rand(SIZE, SIZE) > 0.97) if round_ % 3 else TRIL.clone()
        if round_ % 4 == 3:
            mask |= ROW < COLUMN
        if round_ % 2:
            mask.view(-1)[rng.randrange(SIZE * SIZE)].logical_not_()
        model = Buffered(additive(mask) if round_ % 5 else mask)
        done = attnlower.lower(export(model), target="eager")
        reached = mask[: SIZE - 1, : SIZE - 1]
        wanted = "drop_mask" if reached.all() else "is_causal" if reached.equal(TRIL[1:, 1:]) else "keep"
        assert done.report.sites[0].action == wanted, mask
        actions.add(wanted)
        same(done.program.module(), model)
    assert {"is_causal", "keep"} <= actions


def test_the_witness_is_the_element_that_differs() -> None:
    for row, column in ((5, 3), (2, 7), (13, 14)):
        site = attnlower.lower(export(Buffered(flipped(TRIL, row, column)))).report.sites[0]
        assert site.verdict == "refuted"
        assert site.witness is not None
        assert (site.witness["q"], site.witness["k"]) == (row, column)


def test_a_difference_outside_the_slice_does_not_matter() -> None:
    model = Buffered(flipped(TRIL, 13, 14))
    program = torch.export.export(model, (batch(8),), strict=False)
    assert attnlower.lower(program).report.sites[0].action == "is_causal"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("window", "sliding_window"), ("chunks", "chunked"), ("prefix", "prefix")],
)
def test_known_masks_are_named(name: str, kind: str) -> None:
    site = attnlower.lower(export(Buffered(NEAR[name]))).report.sites[0]
    assert site.verdict == "proved"
    assert kind in site.kinds


def test_full_masks_are_dropped() -> None:
    for value in (torch.ones(SIZE, SIZE, dtype=torch.bool), torch.zeros(1, 1, SIZE, SIZE)):
        done = attnlower.lower(export(Buffered(value)), target="eager")
        assert done.report.sites[0].action == "drop_mask"
        same(done.program.module(), Buffered(value))


def test_attention_written_out_with_a_tril_buffer() -> None:
    model = NanoGPT()
    done = attnlower.lower(export(model), target="eager")
    assert [s.action for s in done.report.sites] == ["is_causal"]
    same(done.program.module(), model)
    assert attnlower.lower(export(NanoGPT(flipped(TRIL, 5, 3)))).report.sites[0].action == "keep"


def test_gpt_neo() -> None:
    """Its mask is a buffer of bytes, causal or a window, and its attention is written out."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoConfig(
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=32,
        intermediate_size=32,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.GPTNeoForCausalLM(config).eval()
    ids = torch.randint(0, 64, (2, 8))
    given = {"input_ids": ids, "use_cache": False}
    dims = {"input_ids": {1: Dim("T", max=31)}, "use_cache": None}
    program = torch.export.export(model, (), given, dynamic_shapes=dims, strict=False)
    done = attnlower.lower(program, target="eager")
    assert [s.action for s in done.report.sites] == ["is_causal", "keep"]
    assert [sorted(s.kinds) for s in done.report.sites] == [["causal"], ["sliding_window"]]
    run = compile_(model)
    with torch.no_grad():
        for length in (8, 3, 30):
            ids = torch.randint(0, 64, (2, length))
            expected = model(ids, use_cache=False).logits
            torch.testing.assert_close(done.program.module()(input_ids=ids, use_cache=False).logits, expected)
            torch.testing.assert_close(run(input_ids=ids, use_cache=False).logits, expected)
    assert [s.action for s in attnlower.last_report().sites] == ["guarded", "keep"]


def test_one_proof_for_the_equal_buffers_of_all_layers() -> None:
    model = Buffered(TRIL, layers=12)
    report = attnlower.lower(export(model)).report
    assert [s.action for s in report.sites] == ["is_causal"] * 12
    assert report.stats["masks_proved"] == 1
    assert "buffer 'layers.7.bias'" in report.sites[7].reason


def test_equal_buffers_are_traced_once() -> None:
    model = Buffered(TRIL, layers=4)
    model.layers[1].bias = TRIL.t().contiguous().t()  # the same elements in another layout
    model.layers[2].bias = flipped(TRIL, 5, 3)
    program = export(model)
    analysis = analyze(program.graph_module, constants=fixed_buffers(program))
    assert analysis.captured is not None
    assert len(analysis.captured.constants) == 3
    assert [len(site.by_value) for site in analysis.sites] == [1, 1, 1, 1]
    assert len({site.by_value for site in analysis.sites}) == 4
    done = attnlower.lower(program, target="eager")
    assert [s.action for s in done.report.sites] == ["is_causal", "is_causal", "keep", "is_causal"]
    same(done.program.module(), model)


def test_the_buffer_of_one_layer_differs() -> None:
    model = Buffered(TRIL, layers=3)
    model.layers[1].bias[5, 3] = False
    done = attnlower.lower(export(model), target="eager")
    assert [s.action for s in done.report.sites] == ["is_causal", "keep", "is_causal"]
    same(done.program.module(), model)


def test_a_saved_program_brings_its_buffers_along() -> None:
    model = Buffered(TRIL, persistent=False)
    file = io.BytesIO()
    torch.export.save(export(model), file)
    file.seek(0)
    done = attnlower.lower(torch.export.load(file), target="eager")
    assert [s.action for s in done.report.sites] == ["is_causal"]
    same(done.program.module(), model)


class Writing(torch.nn.Module):
    """Writes into its mask buffer, in one way or another."""

    def __init__(self, write: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.write = write
        self.register_buffer("bias", TRIL[:8, :8].clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.scaled_dot_product_attention(x, x, x, attn_mask=self.bias)
        self.write(self.bias)
        return y


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize(
    "write",
    [
        lambda b: b.logical_not_(),
        lambda b: b[2:4].fill_(True),
        lambda b: b.t()[0].copy_(b[0]),
        lambda b: b.view(-1)[3:4].zero_(),
    ],
)
def test_a_buffer_that_the_program_writes_into_has_no_fixed_value(write: Any, functional: bool) -> None:
    program = export(Writing(write), dynamic=False)
    if functional:
        program = program.run_decompositions({})
        assert program.graph_signature.buffers_to_mutate
    assert fixed_buffers(program) == {}
    done = attnlower.lower(program, target="eager")
    assert [s.action for s in done.report.sites] == ["keep"]
    assert "the value of buffer 'bias' is not fixed" in done.report.sites[0].reason
    run, model = done.program.module(), Writing(write)
    for _ in range(3):
        x = batch()
        torch.testing.assert_close(run(x), model(x))


def test_a_parameter_is_never_trusted() -> None:
    class Learned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(additive(TRIL[:8, :8]))
            self.register_buffer("shared", self.bias.data)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=self.bias) + F.scaled_dot_product_attention(
                x, x, x, attn_mask=self.shared
            )

    program = export(Learned(), dynamic=False)
    assert fixed_buffers(program) == {}
    assert [s.action for s in attnlower.lower(program).report.sites] == ["keep", "keep"]
    run = compile_(Learned())
    run(batch())
    assert attnlower.last_report().sites[0].action == "keep"


# --- constants that code makes --------------------------------------------------------------------------------

GLOBAL = TRIL[:8, :8].clone()
NUMPY = np.tril(np.ones((8, 8), dtype=bool))
FOLDED: Mapping[str, Callable[[], torch.Tensor]] = {
    "literal": lambda: torch.tensor([[j <= i for j in range(8)] for i in range(8)]),
    "float literal": lambda: torch.tensor([[0.0 if j <= i else NEG for j in range(8)] for i in range(8)]),
    "numpy": lambda: torch.from_numpy(np.tril(np.ones((8, 8), dtype=bool))),
    "numpy of the module": lambda: torch.from_numpy(NUMPY),
    "a global": lambda: GLOBAL,
    "square_subsequent_mask": lambda: torch.nn.Transformer.generate_square_subsequent_mask(8),
}


class Folded(torch.nn.Module):
    def __init__(self, make: Callable[[], torch.Tensor]) -> None:
        super().__init__()
        self.make = make
        self.attribute = GLOBAL.clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x, attn_mask=self.make())


@pytest.mark.parametrize("name", list(FOLDED))
def test_constants_of_exported_programs(name: str) -> None:
    model = Folded(FOLDED[name])
    done = attnlower.lower(export(model, dynamic=False), target="eager")
    assert [s.action for s in done.report.sites] == ["is_causal"]
    same(done.program.module(), model, (8,))


@pytest.mark.parametrize("name", ["literal", "float literal", "numpy", "square_subsequent_mask"])
def test_constants_of_dynamo_graphs(name: str) -> None:
    model = Folded(FOLDED[name])
    run = compile_(model)
    same(run, model, (8,))
    assert [s.action for s in attnlower.last_report().sites] == ["is_causal"]


def test_a_write_into_a_literal() -> None:
    class Written(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = torch.tensor([[j <= i + (i == 2) for j in range(8)] for i in range(8)])
            mask[2, 3] = False
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    done = attnlower.lower(export(Written(), dynamic=False), target="eager")
    assert [s.action for s in done.report.sites] == ["is_causal"]
    same(done.program.module(), Written(), (8,))


def test_a_literal_with_another_element_is_kept() -> None:
    model = Folded(lambda: torch.tensor([[j <= i and (i, j) != (6, 1) for j in range(8)] for i in range(8)]))
    done = attnlower.lower(export(model, dynamic=False), target="eager")
    run = compile_(model)
    same(run, model, (8,))
    for report in (done.report, attnlower.last_report()):
        assert report.sites[0].verdict == "refuted"
        assert report.sites[0].witness is not None
        assert (report.sites[0].witness["q"], report.sites[0].witness["k"]) == (6, 1)


def test_a_global_may_change_under_torch_compile() -> None:
    model = Folded(lambda: GLOBAL)
    run = compile_(model)
    same(run, model, (8,))
    assert [s.action for s in attnlower.last_report().sites] == ["keep"]


def test_an_attribute_of_the_module() -> None:
    model = Folded(lambda: GLOBAL)
    model.make = lambda: model.attribute  # type: ignore[method-assign]
    site = attnlower.lower(export(model, dynamic=False)).report.sites[0]
    assert site.action == "is_causal"


@pytest.mark.parametrize("make", [causal_upper_left, causal_lower_right])
@pytest.mark.parametrize("queries", [4, 8])
def test_causal_bias_objects(make: Any, queries: int) -> None:
    """torch.compile leaves the graph to make one and turns the square ones into is_causal; torch.export makes none."""

    class Biased(torch.nn.Module):
        def __init__(self, stored: Any) -> None:
            super().__init__()
            self.stored = stored

        def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            mask = self.stored if self.stored is not None else make(q.shape[2], k.shape[2])
            return F.scaled_dot_product_attention(q, k, k, attn_mask=mask)

    q, k = batch(queries), batch(8)
    expected = Biased(None)(q, k)
    run = compile_(Biased(None), dynamic=False, whole=False)
    torch.testing.assert_close(run(q, k), expected)
    assert attnlower.last_report().sites[0].verdict == "proved"
    done = attnlower.lower(torch.export.export(Biased(make(queries, 8)), (q, k)), target="eager")
    torch.testing.assert_close(done.program.module()(q, k), expected)
    assert done.report.sites[0].verdict == "proved"


def test_the_name_of_a_numpy_global() -> None:
    run = compile_(Folded(lambda: torch.from_numpy(NUMPY)))
    run(batch())
    site = attnlower.last_report().sites[0]
    assert (site.action, site.formula) == ("keep", "NUMPY[q, k]")


def test_a_constant_that_shares_memory_with_a_written_buffer() -> None:
    class Alias(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("whole", TRIL[:8, :8].clone())
            self.part = self.whole.view(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.scaled_dot_product_attention(x, x, x, attn_mask=self.part)
            self.whole.logical_not_()
            return y

    assert [s.action for s in attnlower.lower(export(Alias(), dynamic=False)).report.sites] == ["keep"]


def test_a_tensor_that_make_fx_closed_over_may_change() -> None:
    """make_fx names a module's buffer like a literal; it is the module's own tensor."""
    model = Buffered(TRIL[:8, :8])
    gm = make_fx(model, tracing_mode="fake", _allow_non_fake_inputs=True)(batch())
    assert [s.action for s in attnlower.lower(gm).report.sites] == ["keep"]
    assert [s.action for s in attnlower.lower(export(model, dynamic=False).module()).report.sites] == ["keep"]


# --- biases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["export", "dynamo"])
@pytest.mark.parametrize("heads", [3, 20])
def test_alibi_slopes_hide_no_blocked_keys(how: str, heads: int) -> None:
    class ALiBi(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("slopes", torch.rand(heads)[:, None, None], persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            position = torch.arange(x.shape[2])
            distance = position[None] - position[:, None]
            mask = (self.slopes * distance).masked_fill(distance > 0, NEG)
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    model, x = ALiBi(), torch.randn(2, heads, 8, 4)
    if how == "export":
        done = attnlower.lower(torch.export.export(model, (x,), strict=False), target="eager")
        run, report = done.program.module(), done.report
    else:
        run = compile_(model)
        run(x)
        report = attnlower.last_report()
    torch.testing.assert_close(run(x), model(x))
    site = report.sites[0]
    assert (site.verdict, site.action) == ("proved", "keep")
    assert site.kinds == {"causal", "bias"}


def test_a_bias_with_a_blocked_element_is_not_proved() -> None:
    bias = torch.rand(SIZE, SIZE)
    assert attnlower.lower(export(Buffered(bias))).report.sites[0].verdict == "proved"
    for value in (float("nan"), float("inf")):
        bias[4, 2] = value
        site = attnlower.lower(export(Buffered(bias))).report.sites[0]
        assert site.verdict == "unknown"
        assert "constant of shape 16x16 follows no known pattern" in site.reason


def test_alibi_in_one_buffer_with_the_causal_mask() -> None:
    distance = (COLUMN - ROW) * torch.rand(20)[:, None, None]
    model = Buffered(distance.masked_fill(COLUMN > ROW, NEG))
    x = torch.randn(1, 20, 8, 4)
    done = attnlower.lower(torch.export.export(model, (x,), dynamic_shapes=(LENGTH,), strict=False), target="eager")
    assert done.report.sites[0].kinds == {"causal", "bias"}
    assert (done.report.sites[0].verdict, done.report.sites[0].action) == ("proved", "keep")
    torch.testing.assert_close(done.program.module()(x), model(x))


def test_a_constant_without_a_pattern_says_so() -> None:
    torch.manual_seed(0)
    site = attnlower.lower(export(Buffered(torch.rand(SIZE * 2, SIZE * 2) > 0.5))).report.sites[0]
    assert (site.verdict, site.action) == ("unknown", "keep")
    assert "constant of shape 32x32 follows no known pattern" in site.reason


# --- torch.compile: values are checked at every call ----------------------------------------------------------


@pytest.mark.parametrize("name", ["bool, rank 2", "finfo.min", "ones", "blocked", "gathered", "positions"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_buffer_under_torch_compile(name: str, dynamic: bool) -> None:
    value, use = CAUSAL[name]
    model = Buffered(value, use)
    run = compile_(model, dynamic)
    same(run, model, (8,))
    site = attnlower.last_report().sites[0]
    assert site.action == "guarded"
    (condition,) = site.conditions
    assert condition == "buffer 'layers.0.bias' keeps its value"
    assert "which every call checks" in site.reason
    same(run, model, (5, 1, 15, 16, 8))


def _copy(model: Buffered, value: torch.Tensor) -> None:
    model.layers[0].bias.copy_(value)


def _data(model: Buffered, value: torch.Tensor) -> None:
    model.layers[0].bias.data.copy_(value)


def _detached_view(model: Buffered, value: torch.Tensor) -> None:
    model.layers[0].bias.detach().view(-1).numpy()[:] = value.reshape(-1).numpy()


def _load(model: Buffered, value: torch.Tensor) -> None:
    state = copy.deepcopy(model.state_dict())
    state["layers.0.bias"] = value
    model.load_state_dict(state)


def _assign(model: Buffered, value: torch.Tensor) -> None:
    model.load_state_dict({**model.state_dict(), "layers.0.bias": value}, assign=True)


def _replace(model: Buffered, value: torch.Tensor) -> None:
    model.layers[0].bias = value.clone()


def _set(model: Buffered, value: torch.Tensor) -> None:
    with torch.no_grad():
        model.layers[0].bias.set_(value.clone())


def _swap(model: Buffered, value: torch.Tensor) -> None:
    model.layers[0].bias.data = value.clone()


CHANGES = [(c, "eager") for c in (_copy, _data, _detached_view, _load, _assign, _replace, _set, _swap)]
CHANGES += [(c, "inductor") for c in (_copy, _data, _replace)]


@pytest.mark.parametrize(("change", "target"), CHANGES)
def test_a_buffer_that_changes_after_compiling(change: Callable[[Buffered, torch.Tensor], None], target: str) -> None:
    model = Buffered(TRIL, layers=2)
    run = compile_(model, target=target)
    same(run, model, (8, 5))
    assert [s.action for s in attnlower.last_report().sites] == ["guarded", "guarded"]
    for changed in (flipped(TRIL, 4, 2), TRIL.t().contiguous(), TRIL):
        change(model, changed)
        same(run, model, (8, 5))


def test_each_layer_is_checked() -> None:
    model = Buffered(TRIL, layers=3)
    run = compile_(model)
    same(run, model, (8,))
    for layer in range(3):
        model.layers[layer].bias[4, 2] = False
        same(run, model, (8,))
        model.layers[layer].bias[4, 2] = True
        same(run, model, (8,))


def test_only_what_is_relied_on_is_checked() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("causal", TRIL.clone())
            self.register_buffer("noise", torch.rand(40, 40) > 0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            length = x.shape[2]
            x = F.scaled_dot_product_attention(x, x, x, attn_mask=self.causal[:length, :length])
            return F.scaled_dot_product_attention(x, x, x, attn_mask=self.noise[:length, :length])

    model = Two()
    run = compile_(model)
    same(run, model, (8, 3))
    first, second = attnlower.last_report().sites
    assert first.conditions == ("buffer 'causal' keeps its value",)
    assert (second.action, second.conditions) == ("keep", ())
    model.noise.logical_not_()
    same(run, model, (8, 3))


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_long_buffer_is_not_compared_for_short_inputs(dynamic: bool) -> None:
    model = Buffered(torch.ones(256, 256, dtype=torch.bool).tril())
    run = compile_(model, dynamic)
    same(run, model, (8,))
    site = attnlower.last_report().sites[0]
    assert (site.verdict, site.action, site.conditions) == ("proved", "keep", ())
    assert "checking that at every call would cost more" in site.reason
    model.layers[0].bias[4, 2] = False
    same(run, model, (8,))
    torch._dynamo.reset()
    model.layers[0].bias[4, 2] = True
    run = compile_(model, dynamic)
    same(run, model, (100, 30))
    assert attnlower.last_report().sites[0].action == ("guarded" if dynamic else "keep")


@pytest.mark.parametrize("padding", ["guard", "keep"])
def test_a_buffer_and_padding(padding: str) -> None:
    model = Padded(TRIL)
    run = compile_(model, padding=padding)
    padded = torch.ones(2, 8, dtype=torch.long)
    padded[0, 6:] = 0
    for mask in (torch.ones(2, 8, dtype=torch.long), padded):
        x = batch()
        torch.testing.assert_close(run(x, mask), model(x, mask))
    site = attnlower.last_report().sites[0]
    assert site.action == ("guarded" if padding == "guard" else "keep")
    model.layers[0].bias[4, 2] = False
    for mask in (torch.ones(2, 8, dtype=torch.long), padded):
        x = batch()
        torch.testing.assert_close(run(x, mask), model(x, mask))


def test_attention_written_out_under_torch_compile() -> None:
    model = NanoGPT()
    run = compile_(model)
    same(run, model, (8, 5, 1))
    assert attnlower.last_report().sites[0].action == "guarded"
    model.bias.data[0, 0, 4, 2] = 0
    same(run, model, (8, 5, 1))


def test_a_mask_that_the_caller_passes_in_is_no_buffer() -> None:
    class Given(torch.nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    mask = TRIL[:8, :8].clone()
    torch._dynamo.mark_static_address(mask)
    run = compile_(Given())
    for _ in range(2):
        x = batch()
        torch.testing.assert_close(run(x, mask), Given()(x, mask))
        assert attnlower.last_report().sites[0].action == "keep"
        mask.logical_not_()
        mask[:, 0] = True


def test_a_graph_that_writes_into_the_buffer() -> None:
    model, plain = Writing(lambda b: b.logical_or_(b.t().clone())), Writing(lambda b: b.logical_or_(b.t().clone()))
    run = compile_(model)
    for _ in range(3):
        x = batch()
        torch.testing.assert_close(run(x), plain(x))


def test_a_buffer_with_another_mask_is_reported_without_a_check() -> None:
    model = Buffered(NEAR["window"])
    run = compile_(model)
    same(run, model, (8,))
    site = attnlower.last_report().sites[0]
    assert (site.verdict, site.action, site.conditions) == ("proved", "keep", ())
    assert "sliding_window" in site.kinds
    model.layers[0].bias.fill_(True)
    same(run, model, (8,))


def test_explain_reads_buffers_too() -> None:
    model = Buffered(TRIL)
    site = attnlower.explain(model, batch()).sites[0]
    assert (site.verdict, site.action) == ("proved", "guarded")
    assert torch.equal(model.layers[0].bias, TRIL)


def test_gradients_under_the_check() -> None:
    model = Buffered(TRIL)
    run = compile_(model)
    for value in (TRIL, flipped(TRIL, 4, 2)):
        model.layers[0].bias.copy_(value)
        x = batch().requires_grad_()
        y = x.detach().clone().requires_grad_()
        run(x).square().sum().backward()
        model(y).square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
