"""Block-local attention: only on a proved band, equal to eager for every length, and no S x S tensor is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from attnlower.lowering.banded.local import LocalCalls
from attnlower.lowering.passes import Canonicalize
from attnlower.lowering.passes.base import PassContext, Site, for_each_site, refuse
from attnlower.lowering.result import PassResult, Refusal
from attnlower.lowering.targets import TARGETS
from attnlower.patterns.bands import find_band
from attnlower.patterns.metadata import value_of

Mask = Callable[..., torch.Tensor]
LENGTHS = (150, 64, 128, 129, 3, 1)


class Local:
    """Every call whose mask has a band, over windows."""

    name = "local"
    requires = ("canonicalize",)

    def run(self, context: PassContext) -> PassResult:
        calls = LocalCalls(context)
        return for_each_site(context, self.name, lambda context, site: self._rewrite(context, site, calls))

    def _rewrite(self, context: PassContext, site: Site, calls: LocalCalls) -> str | Refusal | None:
        found = site.analysis.classification
        band = None if found is None else find_band(found, context.prover)
        if band is None:
            return None
        obstacle = calls.obstacle(site, band)
        if obstacle:
            return refuse(site, obstacle)
        site.action = "banded"
        return calls.rewrite(site, band)


ALONE = (Canonicalize(), Local())


def _qk(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.arange(x.shape[2])
    return index[:, None], index[None, :]


def window(x: torch.Tensor, behind: int = 4, ahead: int = 0) -> torch.Tensor:
    q, k = _qk(x)
    return (k <= q + ahead) & (k >= q - behind)


def chunked(x: torch.Tensor, chunk: int = 16, causal: bool = True) -> torch.Tensor:
    q, k = _qk(x)
    same = q // chunk == k // chunk
    return same & (k <= q) if causal else same


def _slopes(x: torch.Tensor) -> torch.Tensor:
    q, k = _qk(x)
    slopes = 2.0 ** -torch.arange(1, x.shape[1] + 1)
    bias = slopes[:, None, None] * (k - q).to(torch.float32)
    return bias.masked_fill(~window(x), float("-inf"))


MASKS: dict[str, Mask] = {
    "window of 5": window,
    "window, q - k <= 5": lambda x: window(x, 5),
    "window wider than a block": lambda x: window(x, 70),
    "both ways": lambda x: window(x, 3, 3),
    "ahead alone": lambda x: window(x, 0, 2),
    "additive": lambda x: torch.where(window(x), 0.0, float("-inf")),
    "finfo.min": lambda x: torch.where(window(x), 0.0, torch.finfo(torch.float32).min),
    "chunks of 16": chunked,
    "chunks both ways": lambda x: chunked(x, causal=False),
    "chunks and a window": lambda x: chunked(x) & window(x),
    "chunks not from 0": lambda x: ((_qk(x)[0] + 5) // 16 == (_qk(x)[1] + 5) // 16) & (_qk(x)[1] <= _qk(x)[0]),
    "ALiBi on a window": _slopes,
    "expanded": lambda x: window(x)[None, None].expand(x.shape[0], 1, -1, -1),
}


class SelfAttention(torch.nn.Module):
    """Some layers under one mask."""

    def __init__(self, mask: Mask, layers: int = 1) -> None:
        super().__init__()
        self.mask, self.layers = mask, layers

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        mask = self.mask(x)
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None, :].to(torch.bool)
        for _ in range(self.layers):
            x = F.scaled_dot_product_attention(x, x * 0.5, x, attn_mask=mask)
        return x


def _inputs(length: int = 150, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, length, 16)


def _padding(length: int) -> torch.Tensor:
    """A row without padding, and one padded on both sides: some of its queries see no key at all."""
    padding = torch.ones(2, length, dtype=torch.long)
    padding[1, : length // 3] = 0
    padding[1, length - length // 5 :] = 0
    return padding


@pytest.mark.parametrize("name", MASKS)
def test_bands(name: str, capture: str, dynamic: bool, run_passes: Any, same: Any, square_nodes: Any) -> None:
    model, x = SelfAttention(MASKS[name], layers=2), _inputs()
    done = run_passes(model, (x,), ALONE, capture, dynamic)
    assert len(done.result("local").changes) == 2, done.result("local").refusals
    assert not square_nodes(done.variant.gm, 150)
    for length in LENGTHS if dynamic else (150,):
        x = _inputs(length)
        same(done.run(x), model(x))


@pytest.mark.parametrize("name", ["window of 5", "window wider than a block", "both ways", "chunks of 16"])
def test_padding(name: str, capture: str, dynamic: bool, run_passes: Any, same: Any, square_nodes: Any) -> None:
    model, x = SelfAttention(MASKS[name], layers=2), _inputs()
    done = run_passes(model, (x, _padding(150)), ALONE, capture, dynamic)
    assert len(done.result("local").changes) == 2, done.result("local").refusals
    assert not square_nodes(done.variant.gm, 150)
    for length in LENGTHS if dynamic else (150,):
        x, padding = _inputs(length), _padding(length)
        same(done.run(x, padding), model(x, padding))


# --- what must stay as it is ----------------------------------------------------------------------------------


def _sinks(x: torch.Tensor) -> torch.Tensor:
    q, k = _qk(x)
    return (window(x) | (k == 0)) & (k <= q)


def _one_more(x: torch.Tensor) -> torch.Tensor:
    q, k = _qk(x)
    return window(x) | ((q == 100) & (k == 7))


def _growing(x: torch.Tensor) -> torch.Tensor:
    q, k = _qk(x)
    return (k <= q) & (2 * k >= q)


def _half(x: torch.Tensor) -> torch.Tensor:
    q, k = _qk(x)
    return (k <= q) & (k >= q - x.shape[2] // 2)


NO_BAND: dict[str, Mask] = {
    "causal": lambda x: _qk(x)[1] <= _qk(x)[0],
    "behind alone": lambda x: _qk(x)[1] >= _qk(x)[0] - 4,
    "attention sinks": _sinks,
    "one element more": _one_more,
    "a window that grows": _growing,
    "half of the sequence": _half,
    "a head without": lambda x: window(x) | (torch.arange(x.shape[1])[:, None, None] == 1),
}


@pytest.mark.parametrize("name", NO_BAND)
def test_no_band_no_rewrite(name: str, run_passes: Any, same: Any) -> None:
    model, x = SelfAttention(NO_BAND[name]), _inputs()
    done = run_passes(model, (x,), ALONE, "export", True)
    result = done.result("local")
    assert not result.changes and not result.refusals
    same(done.run(x), model(x))


class Moving(torch.nn.Module):
    """A window whose width is an input."""

    def forward(self, x: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
        q, k = _qk(x)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=(k <= q) & (k > q - width[0]))


def test_a_window_that_moves_with_data_stays(run_passes: Any) -> None:
    done = run_passes(Moving(), (_inputs(), torch.tensor([3, 4])), ALONE, "export", True)
    assert not done.result("local").changes


class LeftPadded(torch.nn.Module):
    """Chunks counted from the first real token, as Llama 4 counts them."""

    def forward(self, x: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        q, k = _qk(x)
        start = left[:, None, None, None]
        return F.scaled_dot_product_attention(x, x, x, attn_mask=((q - start) // 16 == (k - start) // 16) & (k <= q))


def test_chunks_counted_from_data_are_a_window(capture: str, run_passes: Any, same: Any) -> None:
    x, left = _inputs(), torch.tensor([0, 7])
    done = run_passes(LeftPadded(), (x, left), ALONE, capture, False)
    (change,) = done.result("local").changes
    assert "80 keys" in change.what  # 15 behind, rounded up to 16, and a block of 64: no chunks of 16
    for start in (left, torch.tensor([20, 149])):
        same(done.run(x, start), LeftPadded()(x, start))


class Cross(torch.nn.Module):
    """Fewer queries than keys."""

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        row, column = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])[None]
        return F.scaled_dot_product_attention(q, k, k, attn_mask=(column <= row) & (column > row - 5))


def test_other_numbers_of_queries_and_keys_stay(run_passes: Any, same: Any) -> None:
    q, k = _inputs(100), _inputs(150)
    done = run_passes(Cross(), (q, k), ALONE, "export", False)
    assert not done.result("local").changes
    same(done.run(q, k), Cross()(q, k))


def test_a_mean_over_blocked_keys_stays(run_passes: Any, same: Any) -> None:
    """finfo.min and padding: a query without any key gives the mean over all of them."""

    class Padded(torch.nn.Module):
        def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
            allowed = window(x) & padding[:, None, None, :].to(torch.bool)
            mask = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    x, padding = _inputs(), _padding(150)
    done = run_passes(Padded(), (x, padding), ALONE, "export", True)
    (refusal,) = done.result("local").refusals
    assert "no key at all" in refusal.reason
    same(done.run(x, padding), Padded()(x, padding))


def test_dropout_stays(run_passes: Any) -> None:
    class Dropping(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=window(x), dropout_p=0.1)

    (refusal,) = run_passes(Dropping(), (_inputs(),), ALONE, "export", True).result("local").refusals
    assert "dropout" in refusal.reason


def test_a_mask_that_is_written_to_stays(run_passes: Any) -> None:
    class Written(torch.nn.Module):
        def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
            mask = window(x) & padding[:, None, None, :].to(torch.bool)
            padding.fill_(1)
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    done = run_passes(Written(), (_inputs(), _padding(150)), ALONE, "dynamo", False)
    assert not done.result("local").changes


# --- grouped heads, gradients ---------------------------------------------------------------------------------


class Grouped(torch.nn.Module):
    """Four query heads to two key heads, by the flag or by repeat_kv."""

    def __init__(self, mask: Mask, flag: bool) -> None:
        super().__init__()
        self.mask, self.flag = mask, flag

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        mask = self.mask(q)
        if self.flag:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
        batch, heads, length, _ = k.shape
        k, v = (
            t[:, :, None].expand(batch, heads, 2, length, t.shape[-1]).reshape(batch, heads * 2, length, t.shape[-1])
            for t in (k, v)
        )
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("name", ["window of 5", "chunks of 16"])
def test_grouped_heads(name: str, flag: bool, capture: str, dynamic: bool, run_passes: Any, same: Any) -> None:
    model = Grouped(MASKS[name], flag)
    given = [torch.randn(2, 4, 150, 16), torch.randn(2, 2, 150, 16), torch.randn(2, 2, 150, 8)]
    done = run_passes(model, given, ALONE, capture, dynamic)
    assert done.result("local").changes, done.result("local").refusals
    calls = [n for n in done.variant.gm.graph.nodes if n.target is torch.ops.attnlower.attention.default]
    assert calls
    assert dynamic or all(n.kwargs["enable_gqa"] for n in calls)  # of a dynamic number of heads nothing is folded
    same(done.run(*given), model(*given))


@pytest.mark.parametrize("name", ["window of 5", "both ways", "chunks both ways", "ALiBi on a window"])
def test_gradients(name: str, dynamic: bool, run_passes: Any, same: Any) -> None:
    model = SelfAttention(MASKS[name], layers=2)
    x = _inputs().requires_grad_()
    done = run_passes(model, (x,), ALONE, "dynamo", dynamic)
    assert done.result("local").changes
    weights = torch.randn(150, 16)
    found, wanted = (torch.autograd.grad((run(x) * weights).sum(), x)[0] for run in (done.run, model))
    same(found, wanted, 1e-4)


def test_gradients_of_rows_without_any_key(run_passes: Any, same: Any) -> None:
    model = SelfAttention(window, layers=1)
    x, padding = _inputs().requires_grad_(), _padding(150)
    done = run_passes(model, (x, padding), ALONE, "dynamo", False)
    assert done.result("local").changes
    found, wanted = (torch.autograd.grad(run(x, padding).square().sum(), x)[0] for run in (done.run, model))
    assert found.isfinite().all()
    same(found, wanted, 1e-4)


def copies_and_views(gm: Any) -> tuple[int, int]:
    """How many tensors are gathered into windows, and how many are views that share memory."""
    targets = [n.target for n in gm.graph.nodes]
    return targets.count(torch.ops.aten.index.Tensor), targets.count(torch.ops.aten.as_strided.default)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("length", [150, 128, 100])
def test_windows_are_views_that_share_memory(batch: int, length: int, capture: str, run_passes: Any, same: Any) -> None:
    model = SelfAttention(MASKS["window wider than a block"])
    x = torch.randn(length, batch, 16, 3).permute(1, 3, 0, 2)  # of no ordinary strides
    done = run_passes(model, (x,), ALONE, capture, False)
    assert copies_and_views(done.variant.gm) == (0, 2)
    same(done.run(x), model(x))


def test_windows_are_views_of_memory_of_their_own(run_passes: Any, same: Any) -> None:
    """Inductor takes a mere copy away, and views of what starts inside other memory were wrong in torch 2.11."""

    class Part(SelfAttention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x[1:])

    model, x = Part(lambda x: window(x, 127)), torch.randn(2, 3, 512, 16)
    done = run_passes(model, (x,), ALONE, "dynamo", False)
    views = [n for n in done.variant.gm.graph.nodes if n.target is torch.ops.aten.as_strided.default]
    assert [value_of(n.args[0]).shape[2] for n in views] == [513, 513]
    same(done.run(x), model(x))
    inductor = torch.compile(model, backend="attnlower", dynamic=False, options={"strict": True, "banded": "local"})
    with torch.no_grad():
        same(inductor(x), model(x))


def test_windows_that_start_in_front_of_the_sequence_are_a_call_of_their_own(
    capture: str, run_passes: Any, same: Any, square_nodes: Any
) -> None:
    """The first queries see less than a window: causal attention without a mask; all others share one small mask."""
    model, x = SelfAttention(lambda x: window(x, 127)), torch.randn(2, 3, 512, 16)
    done = run_passes(model, (x,), ALONE, capture, False)
    rest, head = (n for n in done.variant.gm.graph.nodes if n.target is torch.ops.attnlower.attention.default)
    assert head.kwargs["alignment"] == "upper_left"
    assert head.kwargs["mask"] is None
    assert tuple(value_of(head).shape) == (2, 3, 128, 16)
    assert tuple(value_of(rest).shape) == (6, 6, 64, 16)
    assert tuple(value_of(rest.kwargs["mask"]).shape) == (1, 1, 64, 192)
    assert not square_nodes(done.variant.gm, 512)
    same(done.run(x), model(x))


@pytest.mark.parametrize("length", [256, 255, 257, 320, 450])
@pytest.mark.parametrize(("behind", "ahead"), [(127, 0), (100, 30), (64, 64), (70, 128), (0, 5)])
def test_both_ends_of_a_sequence(behind: int, ahead: int, length: int, run_passes: Any, same: Any) -> None:
    model, x = SelfAttention(lambda x: window(x, behind, ahead)), torch.randn(1, 2, length, 8)
    done = run_passes(model, (x,), ALONE, "dynamo", False)
    assert done.result("local").changes
    same(done.run(x), model(x))


def test_padding_of_one_row_is_read_beside_views(capture: str, run_passes: Any, same: Any) -> None:
    model, x, padding = SelfAttention(window), _inputs(batch=1), _padding(150)[1:]
    done = run_passes(model, (x, padding), ALONE, capture, False)
    assert copies_and_views(done.variant.gm)[1] == 2
    same(done.run(x, padding), model(x, padding))


VIEWS_ARE_NOT_FOR = {
    "several padded rows": lambda: (_inputs(), _padding(150)),
    "training": lambda: (_inputs().requires_grad_(),),
}


@pytest.mark.parametrize("given", VIEWS_ARE_NOT_FOR.values(), ids=VIEWS_ARE_NOT_FOR)
def test_where_windows_are_copied(given: Callable[[], tuple[Any, ...]], run_passes: Any, same: Any) -> None:
    model, inputs = SelfAttention(window), given()
    done = run_passes(model, inputs, ALONE, "dynamo", False)
    assert done.result("local").changes
    assert copies_and_views(done.variant.gm)[1] == 0
    same(done.run(*inputs), model(*inputs))


def test_backends_without_such_views_get_copies(run_passes: Any, same: Any) -> None:
    model, x = SelfAttention(window), _inputs()
    target = replace(TARGETS["eager"], overlapping_keys=False)
    done = run_passes(model, (x,), ALONE, "export", False, target=target)
    assert copies_and_views(done.variant.gm)[1] == 0
    same(done.run(x), model(x))
