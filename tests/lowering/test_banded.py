"""Attention under masks that leave whole blocks out: which way is taken, and that the outputs stay eager's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnlower
from attnlower.lowering.banded.block_mask import BLOCK, blocks_of
from attnlower.lowering.banded.compute import Scope
from attnlower.lowering.banded.ops import EagerOps
from attnlower.lowering.plan import Plan
from attnlower.patterns import build

S = 1024
Attention = Callable[..., Tensor]


def _grid(q: Tensor) -> tuple[Tensor, Tensor]:
    positions = torch.arange(q.shape[2])
    return positions[:, None], positions[None, :]


def window(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Causal, 100 keys wide, with padding if there is any."""
    row, column = _grid(q)
    mask = ((column <= row) & (column > row - 100))[None, None]
    if attention_mask is not None:
        mask = mask & attention_mask[:, None, None, :].bool()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def chunks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal in chunks of 128."""
    row, column = _grid(q)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(column <= row) & (column // 128 == row // 128))


def packed(q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor) -> Tensor:
    """Causal in documents that start where the positions do."""
    row, column = _grid(q)
    document = (position_ids.diff(prepend=position_ids[:, :1] - 1, dim=1) != 1).cumsum(-1)
    mask = (column <= row)[None, None] & (document[:, None, :, None] == document[:, None, None, :])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def packed_by_positions(q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor) -> Tensor:
    """The same, where the positions that are given are compared, as transformers does: causal by proof alone."""
    document = (position_ids.diff(prepend=position_ids[:, :1] - 1, dim=1) != 1).cumsum(-1)
    order = position_ids[:, None, None, :] <= position_ids[:, None, :, None]
    mask = order & (document[:, None, :, None] == document[:, None, None, :])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def packed_against_order(q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor) -> Tensor:
    """A near miss: inside such a document positions go up and down, so that nothing is known without the data."""
    document = (position_ids.diff(prepend=position_ids[:, :1] - 1, dim=1) == 3).cumsum(-1)
    order = position_ids[:, None, None, :] <= position_ids[:, None, :, None]
    mask = order & (document[:, None, :, None] == document[:, None, None, :])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def sink(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A window and the first key: no band, but few blocks."""
    row, column = _grid(q)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(column <= row) & ((column > row - 100) | (column == 0)))


def moving(q: Tensor, k: Tensor, v: Tensor, width: Tensor) -> Tensor:
    """A window that is as wide as a tensor says."""
    row, column = _grid(q)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(column <= row) & (column > row - width))


def biased(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A window with a slope."""
    row, column = _grid(q)
    bias = torch.where((column <= row) & (column > row - 100), (column - row) * 0.1, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _qkv(length: int = S, batch: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(batch, 2, length, 16, dtype=dtype) for _ in range(3)]


def _padding(batch: int = 2, length: int = S) -> Tensor:
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, : length // 3] = 0  # rows without any key, too
    mask[1, -length // 4 :] = 0
    return mask


def _compiled(attention: Attention, **options: object) -> Attention:
    torch._dynamo.reset()
    compiled: Attention = torch.compile(attention, backend="attnlower", options={"strict": True, **options})
    return compiled


def _site() -> attnlower.AttentionSite:
    (site,) = attnlower.last_report().sites
    return site


def _documents() -> Tensor:
    return torch.cat([torch.arange(n) for n in (300, 200, 524)])[None].repeat(2, 1)


CASES = {
    "window": (window, list, "blocks of 64 queries"),
    "padding": (window, lambda: [_padding()], "flex_attention"),
    "chunks": (chunks, list, "blocks of 128 queries"),
    "packed": (packed, lambda: [_documents()], "flex_attention"),
    "packed by positions": (packed_by_positions, lambda: [_documents()], "flex_attention"),
    "sink": (sink, list, "flex_attention"),
}


@pytest.mark.parametrize("name", CASES)
def test_banded_masks_are_computed_by_blocks(name: str) -> None:
    attention, data, way = CASES[name]
    inputs = [*_qkv(), *data()]
    with torch.no_grad():
        found = _compiled(attention, padding="keep")(*inputs)
        torch.testing.assert_close(found, attention(*inputs), atol=1e-5, rtol=1e-5)
    assert _site().action == "banded"
    assert way in _site().reason


def test_packed_by_positions_for_other_documents() -> None:
    compiled = _compiled(packed_by_positions)
    with torch.no_grad():
        for lengths in ((300, 200, 524), (1024,), (1, 1, 1022), (512, 512)):
            rows = torch.cat([torch.arange(n) for n in lengths])
            inputs = [*_qkv(), torch.stack([rows, rows.flip(0)])]  # in the second row the positions go down
            torch.testing.assert_close(compiled(*inputs), packed_by_positions(*inputs), atol=1e-5, rtol=1e-5)
    assert _site().action == "banded"


def test_positions_of_which_nothing_is_proved_keep_their_mask() -> None:
    inputs = [*_qkv(), _documents()]
    with torch.no_grad():
        found = _compiled(packed_against_order)(*inputs)
        torch.testing.assert_close(found, packed_against_order(*inputs), atol=1e-5, rtol=1e-5)
    assert _site().action == "keep"


@pytest.mark.parametrize("way", ["flex", "local", "dense"])
def test_the_way_can_be_chosen(way: str) -> None:
    inputs = _qkv(300)
    with torch.no_grad():
        found = _compiled(window, banded=way)(*inputs)
        torch.testing.assert_close(found, window(*inputs), atol=1e-5, rtol=1e-5)
    assert _site().action == ("keep" if way == "dense" else "banded")


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(attnlower.OptionError, match="banded"):
        attnlower.lower(torch.fx.symbolic_trace(torch.nn.Identity()), banded="sparse")
    with pytest.raises(Exception, match="option 'banded'"):
        _compiled(window, banded="sparse")(*_qkv(8))


def test_one_program_for_every_length() -> None:
    compiled = _compiled(window, banded="flex", padding="keep")
    torch._dynamo.utils.counters.clear()
    inputs = [*_qkv(), _padding()]
    for tensor, axis in zip(inputs, (2, 2, 2, 1), strict=True):
        torch._dynamo.mark_dynamic(tensor, axis)
    with torch.no_grad():
        compiled(*inputs)
        for length in (129, 640, 7):
            short = [*_qkv(length), _padding(length=length)]
            torch.testing.assert_close(compiled(*short), window(*short), atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_grouped_heads_of_every_length() -> None:
    """The copies of key heads go, and with them the tensor whose size the block mask was read from."""

    def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return window(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))

    q, k, v = _qkv()
    inputs = [q, k[:, :1].contiguous(), v[:, :1].contiguous()]
    compiled = _compiled(grouped, banded="flex")
    for tensor in inputs:
        torch._dynamo.mark_dynamic(tensor, 2)
    with torch.no_grad():
        for length in (S, 300):
            cut = inputs if length == S else [t[:, :, :length].contiguous() for t in inputs]
            torch.testing.assert_close(compiled(*cut), grouped(*cut), atol=1e-5, rtol=1e-5)
    assert _site().action == "banded"


def test_training_takes_windows() -> None:
    inputs = [t.requires_grad_() for t in _qkv()]
    out = _compiled(window)(*inputs)
    reference = window(*inputs)
    for found, expected in zip(
        torch.autograd.grad(out.pow(2).sum(), inputs), torch.autograd.grad(reference.pow(2).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert "queries with" in _site().reason


def test_short_sequences_keep_their_mask() -> None:
    with torch.no_grad():
        _compiled(window)(*_qkv(160))
    assert _site().action == "keep"


@pytest.mark.parametrize(("attention", "data"), [(moving, [torch.tensor(100)]), (biased, [])], ids=["moving", "bias"])
def test_near_misses_of_flex(attention: Attention, data: list[Tensor]) -> None:
    """A window of which nobody knows how wide it is may be any; flex_attention gets it as data or not at all."""
    inputs = [*_qkv(), *data]
    with torch.no_grad():
        found = _compiled(attention, banded="flex")(*inputs)
        torch.testing.assert_close(found, attention(*inputs), atol=1e-5, rtol=1e-5)
    if attention is biased:
        assert _site().action == "keep"
        assert "bias" in _site().reason


def test_an_input_that_is_written_to_keeps_the_mask() -> None:
    def written(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
        row, column = _grid(q)
        mask = ((column <= row) & (column > row - 100))[None, None] & attention_mask[:, None, None, :].bool()
        attention_mask.zero_()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    inputs, mask = _qkv(), _padding()
    with torch.no_grad():
        found = _compiled(written, banded="flex", padding="keep")(*inputs, mask.clone())
        torch.testing.assert_close(found, written(*inputs, mask.clone()), atol=1e-5, rtol=1e-5)
    assert _site().action == "keep"


def test_the_general_variant_is_banded_too() -> None:
    """Of two masks one rests on a guard: after a call with padding the other graph is compiled, blocks and all."""

    def both(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
        row, column = _grid(q)
        causal = (column <= row)[None, None] & attention_mask[:, None, None, :].bool()
        return window(F.scaled_dot_product_attention(q, k, v, attn_mask=causal), k, v, attention_mask)

    compiled = _compiled(both)
    with torch.no_grad():
        for mask in (torch.ones(2, S, dtype=torch.int64), _padding()):
            inputs = [*_qkv(), mask]
            torch.testing.assert_close(compiled(*inputs), both(*inputs), atol=1e-5, rtol=1e-5)
    assert [s.action for s in attnlower.last_report().sites] == ["guarded", "banded"]


@pytest.mark.parametrize("length", [1, 127, 128, 300, 1000])
@pytest.mark.parametrize("width", [1, 100, 128, 500])
def test_blocks_by_intervals_are_those_of_the_mask(length: int, width: int) -> None:
    """No allowed pair outside of the listed blocks, no blocked one inside a full block."""
    q, k = build.coord("q"), build.coord("k")
    near = build.le(build.sub(q, build.const_int(width - 1)), k)
    chunk = build.eq(build.floordiv(q, build.const_int(96)), build.floordiv(k, build.const_int(96)))
    remainder = build.le(build.mod(k, build.const_int(7)), build.const_int(3))
    row, column = torch.arange(length)[:, None], torch.arange(length)[None, :]
    masks = {
        build.and_(build.le(k, q), near): (column <= row) & (column > row - width),
        build.or_(chunk, build.not_(near)): (row // 96 == column // 96) | (column <= row - width),
        build.and_(remainder, build.le(q, k)): (column % 7 <= 3) & (row <= column),
    }
    for formula, mask in masks.items():
        scope = Scope(EagerOps(), {}, {"b": 1, "h": 1, "q": length, "k": length}, {})
        blocks = blocks_of(formula, {}, scope)
        for i in range(0, length, BLOCK):
            for j in range(0, length, BLOCK):
                block = mask[i : i + BLOCK, j : j + BLOCK]
                full, partial = (t[0, 0, i // BLOCK, j // BLOCK].item() for t in (blocks.full, blocks.partial))
                assert not full or bool(block.all())
                assert full or partial or not bool(block.any())


def padded_chunks(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
    """Causal in chunks of 128 that are counted from the first real token."""
    row, column = _grid(q)
    first = (attention_mask.cumsum(-1) == 0).sum(-1)[:, None, None, None]
    chunk = (column - first) // 128 == (row - first) // 128
    mask = (column <= row) & chunk & attention_mask[:, None, None, :].bool()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def test_chunks_need_no_mask_while_nothing_is_padded() -> None:
    compiled = _compiled(padded_chunks)
    with torch.no_grad():
        for mask in (torch.ones(2, S, dtype=torch.int64), _padding()):
            inputs = [*_qkv(), mask]
            torch.testing.assert_close(compiled(*inputs), padded_chunks(*inputs), atol=1e-5, rtol=1e-5)
            assert _site().action == "banded"
            assert "blocks of 128 queries with 128 keys each, causal, whenever (attention_mask == 1)" in _site().reason


def test_chunks_that_move_are_blocks_of_flex_attention() -> None:
    inputs = [*_qkv(), _padding()]
    with torch.no_grad():
        found = _compiled(padded_chunks, padding="keep")(*inputs)
        torch.testing.assert_close(found, padded_chunks(*inputs), atol=1e-5, rtol=1e-5)
    assert _site().action == "banded"
    assert "flex_attention" in _site().reason


def test_a_call_without_a_mask_is_left_to_its_kernel() -> None:
    def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    with torch.no_grad():
        _compiled(causal)(*_qkv())
    assert _site().action == "keep"


@pytest.mark.parametrize("half_first", [True, False])
def test_what_blocks_in_one_dtype_is_a_bias_in_another(half_first: bool) -> None:
    """-65504 is float16's least number, which blocks; beside large float32 scores it is a bias that can be overcome."""

    def both(narrow: list[Tensor], wide: list[Tensor]) -> tuple[Tensor, Tensor]:
        row, column = _grid(wide[0])
        far = torch.where(column > row - 100, 0.0, -65504.0)
        mask = torch.where(column <= row, far, float("-inf"))  # which blocks in both: neither is without a mask
        calls = [(narrow, mask.half()), (wide, mask)]
        results = [F.scaled_dot_product_attention(*qkv, attn_mask=m) for qkv, m in calls[:: 1 if half_first else -1]]
        first, second = results[:: 1 if half_first else -1]
        return first, second

    narrow, wide = _qkv(dtype=torch.float16), _qkv()
    wide = [wide[0] * 1000, wide[1] * 1000, wide[2]]
    with torch.no_grad():
        found, expected = _compiled(both, banded="local")(narrow, wide), both(narrow, wide)
    sites = attnlower.last_report().sites
    assert [s.action for s in sites] == (["banded", "keep"] if half_first else ["keep", "banded"])
    torch.testing.assert_close(found[0], expected[0], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("layers", "action"), [(2, "banded"), (6, "keep")])
def test_many_kernels_must_be_worth_their_compilation(layers: int, action: str, planned: Callable[..., Plan]) -> None:
    """Causal with padding leaves out half: a gain in a few layers, and minutes of compilation in many."""

    def model(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
        row, column = _grid(q)
        mask = (column <= row)[None, None] & attention_mask[:, None, None, :].bool()
        for _ in range(layers):
            q = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return q

    with torch.no_grad():
        report = planned(model, [*_qkv(), _padding()], padding="keep").report
    assert {s.action for s in report.sites} == {action}


@pytest.mark.parametrize("vectors_of", ["AVX512", "AVX2", "DEFAULT"])
def test_flex_attention_must_leave_out_more_where_it_is_slow(
    vectors_of: str, vectors: Callable[..., None], planned: Callable[..., Plan]
) -> None:
    """Half is enough with AVX512, three quarters elsewhere; what data leave out is taken to be that much."""
    vectors(vectors_of)

    def causal(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
        row, column = _grid(q)
        mask = (column <= row)[None, None] & attention_mask[:, None, None, :].bool()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    ways = {}
    for name, model, data in (
        ("half", causal, [_padding()]),
        ("sink", sink, []),
        ("documents", packed, [_documents()]),
        ("chunks by data", padded_chunks, [_padding()]),
        ("narrow", window, [_padding()]),
    ):
        with torch.no_grad():
            (site,) = planned(model, [*_qkv(), *data], padding="keep").report.sites
        ways[name] = "flex" if "flex_attention" in site.reason else "local" if "queries" in site.reason else "dense"
    fast = vectors_of == "AVX512"
    assert ways == {
        "half": "flex" if fast else "dense",
        "sink": "flex" if fast else "dense",  # a third is left
        "documents": "flex",
        "chunks by data": "flex",
        "narrow": "flex" if fast else "local",
    }
