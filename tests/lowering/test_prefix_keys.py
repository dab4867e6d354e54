"""prefix_keys: caches are read as far as their mask reaches; what is blocked beyond is left out, and only that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import attnlower
from attnlower.lowering.span_attention import key_span, span_attention

EAGER = {"target": "eager", "strict": True}
CAPACITY = 24
Mask = Callable[..., torch.Tensor]


@pytest.fixture(autouse=True)
def _however_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """These caches are shorter than those for which it is worth the trouble."""
    for name in ("LEAST_WORK", "LEAST_PREFIX_WORK"):
        monkeypatch.setattr(f"attnlower.lowering.passes.prefix_keys.{name}", 0)


class Step(torch.nn.Module):
    """Queries against a cache under `mask(position, more)`, in some layers."""

    def __init__(self, mask: Mask, groups: int = 1, layers: int = 2) -> None:
        super().__init__()
        self.mask, self.groups, self.layers = mask, groups, layers

    def forward(self, q: torch.Tensor, kv: torch.Tensor, position: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        batch, heads, capacity, width = kv.shape
        mask = self.mask(torch.arange(q.shape[2]), torch.arange(capacity), position, *more)
        for _ in range(self.layers):
            wide = kv[:, :, None].expand(batch, heads, self.groups, capacity, width)
            wide = wide.reshape(batch, heads * self.groups, capacity, width)
            q = F.scaled_dot_product_attention(q, wide, wide, attn_mask=mask)
        return q


def placed(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return (k[None, :] <= q[:, None] + position)[None, None]


def placed_left_padded(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    return placed(q, k, position) & padding[:, None, None, :].to(torch.bool)


def window(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return placed(q, k, position) & (k[None, :] > q[:, None] + position - 4)[None, None]


def lengths(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return k[None, None, None, :] < position[:, None, None, None]


def additive(blocked: float) -> Mask:
    def mask(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        return torch.where(placed(q, k, position), 0.0, blocked)

    return mask


def given_whole(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return mask


def at(position: int) -> torch.Tensor:
    return torch.tensor(position)


def tensors(queries: int, heads: int = 4, kv: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, heads, queries, 8), torch.randn(2, kv, CAPACITY, 8)


def compiled(model: torch.nn.Module, **more: Any) -> Any:
    return torch.compile(model, backend="attnlower", fullgraph=True, options={**EAGER, **more})


def actions() -> list[str]:
    return [site.action for site in attnlower.last_report().sites]


@pytest.mark.parametrize("mask", [placed, window, additive(float("-inf")), additive(torch.finfo(torch.float32).min)])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_cache_is_read_up_to_its_length(mask: Mask, queries: int, groups: int, same: Any) -> None:
    model = Step(mask, groups)
    q, kv = tensors(queries, heads=2 * groups)
    run = compiled(model)
    torch._dynamo.utils.counters.clear()
    for position in range(CAPACITY - queries + 1):
        same(run(q, kv, at(position)), model(q, kv, at(position)))
    assert actions() == ["banded", "banded"]
    assert "k > " in attnlower.last_report().sites[0].reason
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 1


WORK = 2 * 4 * CAPACITY * 8
"""Elements of keys that the heads of the tests below read."""


@pytest.mark.parametrize(
    ("name", "mask"),
    [("LEAST_PREFIX_WORK", placed), ("LEAST_WORK", window), ("LEAST_WORK", additive(torch.finfo(torch.float32).min))],
)
@pytest.mark.parametrize("more", [0, 1])
def test_a_small_cache_is_left_whole(name: str, mask: Mask, more: int, monkeypatch: Any, same: Any) -> None:
    """Finding out how many keys are needed would take longer; sooner so if the mask has to be searched for them."""
    monkeypatch.setattr(f"attnlower.lowering.passes.prefix_keys.{name}", WORK + more)
    (q, kv), model = tensors(1), Step(mask, 2)
    run = compiled(model)
    for position in (0, 9, CAPACITY - 1):
        same(run(q, kv, at(position)), model(q, kv, at(position)))
    assert actions() == ["keep" if more else "banded"] * 2


def test_keys_beyond_the_length_are_not_read(same: Any) -> None:
    q, kv = tensors(1)
    model, run = Step(placed, 2), compiled(Step(placed, 2))
    dirty = kv.clone()
    dirty[:, :, 6:] = float("nan")
    same(run(q, dirty, at(5)), model(q, kv, at(5)))
    assert run(q, dirty, at(6)).isnan().all()


def test_left_padding(same: Any) -> None:
    model, (q, kv) = Step(placed_left_padded, 2), tensors(1)
    padding = torch.ones(2, CAPACITY, dtype=torch.long)
    padding[1, :3] = 0
    run = compiled(model, padding="keep")
    for position in (0, 2, 3, 11, CAPACITY - 1):  # at 0 and 2 the second row sees no key at all
        same(run(q, kv, at(position), padding), model(q, kv, at(position), padding))
    assert actions() == ["banded", "banded"]


def test_lengths_per_batch_entry(same: Any) -> None:
    model, (q, kv) = Step(lengths, 2), tensors(5)
    run = compiled(model)
    for given in ([3, 7], [CAPACITY, 1], [0, 2], [0, 0], [CAPACITY + 5, CAPACITY]):
        same(run(q, kv, torch.tensor(given)), model(q, kv, torch.tensor(given)))
    assert actions() == ["banded", "banded"]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_that_is_an_input_is_read_for_its_last_key(dtype: torch.dtype, same: Any) -> None:
    model, (q, kv) = Step(given_whole, 2), tensors(1)
    run = compiled(model, padding="keep")
    for seed in range(6):
        keep = torch.rand(2, 1, 1, CAPACITY, generator=torch.Generator().manual_seed(seed)) < 0.3
        keep[..., 4 * seed :] = False
        mask = keep if dtype is torch.bool else torch.where(keep, torch.randn(CAPACITY), float("-inf"))
        same(run(q, kv, at(0), mask), model(q, kv, at(0), mask))
    assert actions() == ["banded", "banded"]


def test_an_additive_mask_of_finite_values_is_an_input(same: Any) -> None:
    model, (q, kv) = Step(given_whole, 2), tensors(1)
    run = compiled(model)
    for value in (torch.finfo(torch.float32).min, -1e4, -3.0):
        mask = torch.where(torch.arange(CAPACITY) < 5, 0.0, value).expand(2, 1, 1, CAPACITY)
        same(run(q, kv, at(0), mask), model(q, kv, at(0), mask))
        everything = torch.full((2, 1, 1, CAPACITY), value)  # a row without a key is a mean over all of them
        same(run(q, kv, at(0), everything), model(q, kv, at(0), everything))


def after(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return (k[None, :] >= q[:, None] + position)[None, None]


def next_of_key(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return (k <= position[k])[None, None, None]


def unless(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return (k <= position)[None, None, None] | (k % 5 == 0)


def lower_right(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return (k[None, :] <= q[:, None] + (k.shape[0] - q.shape[0]))[None, None]


@pytest.mark.parametrize("mask", [after, next_of_key, unless, lower_right])
def test_masks_without_an_upper_bound_stay(mask: Mask, same: Any) -> None:
    """With more queries than are worth a look; see `MOST_QUERIES`."""
    model, (q, kv) = Step(mask), tensors(9, heads=2)
    position = torch.randint(CAPACITY, (CAPACITY,)) if mask is next_of_key else at(3)
    run = compiled(model, padding="keep")
    same(run(q, kv, position), model(q, kv, position))
    assert "banded" not in actions()


def test_a_square_causal_mask_stays_causal(same: Any) -> None:
    model, kv = Step(lambda q, k, position: (k[None, :] <= q[:, None])[None, None]), torch.randn(2, 2, CAPACITY, 8)
    run = compiled(model)
    same(run(kv, kv, at(0)), model(kv, kv, at(0)))
    assert actions() == ["is_causal", "is_causal"]


def test_training_and_exports_are_left_alone(same: Any) -> None:
    model, (q, kv) = Step(placed), tensors(1, heads=2)
    q.requires_grad_()
    compiled(model)(q, kv, at(3)).sum().backward()
    assert actions() == ["keep", "keep"]
    assert "inference" in attnlower.last_report().sites[0].reason
    found, q.grad = q.grad, None
    model(q, kv, at(3)).sum().backward()
    same(found, q.grad)
    program = torch.export.export(model, (q.detach(), kv, at(3)), strict=False)
    lowered = attnlower.lower(program)
    assert {site.action for site in lowered.report.sites} == {"keep"}
    same(lowered.program.module()(q.detach(), kv, at(3)), model(q.detach(), kv, at(3)))


def test_dropout_keeps_its_mask(same: Any) -> None:
    class Dropping(torch.nn.Module):
        def forward(self, q: torch.Tensor, kv: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            mask = placed(torch.arange(q.shape[2]), torch.arange(kv.shape[2]), position)
            return F.scaled_dot_product_attention(q, kv, kv, attn_mask=mask, dropout_p=0.5)

    q, kv = tensors(1, heads=2)
    run = compiled(Dropping())
    torch.manual_seed(3)
    found = run(q, kv, at(5))
    torch.manual_seed(3)
    same(found, Dropping()(q, kv, at(5)))
    assert actions() == ["keep"]


def test_a_length_that_moves_between_two_layers(same: Any) -> None:
    """The mask counts as it was when it was made, not as the position is by the time of the call."""

    class Moving(torch.nn.Module):
        def forward(self, q: torch.Tensor, kv: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            index = torch.arange(kv.shape[2])
            first = (index <= position)[None, None, None]
            position.add_(4)
            out = F.scaled_dot_product_attention(q, kv, kv, attn_mask=first)
            return F.scaled_dot_product_attention(out, kv, kv, attn_mask=(index <= position)[None, None, None])

    q, kv = tensors(1, heads=2)
    position, other = at(2), at(2)
    run = compiled(Moving())
    for _ in range(4):
        same(run(q, kv, position), Moving()(q, kv, other))
        assert position == other


def test_the_span_of_a_mask() -> None:
    def span(*rows: str, **more: Any) -> list[int]:
        mask = torch.tensor([[c == "#" for c in row] for row in rows])
        if more.pop("additive", False):
            mask = torch.where(mask, 0.0, more.get("blocked", float("-inf")))
        return key_span(mask, **more).tolist()

    low = torch.finfo(torch.float32).min
    assert span("..##..", "..###.") == [2, 5, 0]
    assert span("..###.", "..###.") == [2, 5, 1]
    assert span("......") == [0, 0, 1]
    assert span("######") == [0, 6, 1]
    assert span("##.#..") == [0, 4, 0]
    assert span(".##...", additive=True, exact=True) == [1, 3, 1]
    assert span(".##...", additive=True) == [1, 3, 0]
    assert span(".##...", additive=True, exact=True, blocked=low) == [1, 3, 1]
    assert span(".##...", "......", additive=True, exact=True, blocked=low) == [0, 6, 0]
    assert key_span(torch.ones(1, 0, dtype=torch.bool)).tolist() == [0, 0, 1]


@pytest.mark.parametrize("queries", [1, 2, 20])
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_op_against_dense_attention(queries: int, heads: int, dtype: torch.dtype, same: Any) -> None:
    q, k, v = (torch.randn(2, h, n, 8, dtype=dtype) for h, n in ((4, queries), (heads, 10), (heads, 10)))
    for shape in ((1, 1, queries, 10), (2, 1, 1, 10), (2, 4, queries, 10), (queries, 10), (1, 10)):
        mask = torch.rand(shape) < 0.6
        mask[..., 7:] = False
        mask[..., 0] = False
        mask[..., 3] = True
        span = key_span(mask)
        wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        found = span_attention(q, k, v, mask, span, None, heads != 4)
        assert found.dtype is dtype
        same(found.float(), wanted.float(), 1e-5 if dtype is torch.float32 else 2e-2)


def test_the_op_says_what_it_returns() -> None:
    q, k = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 10, 8)
    mask = torch.ones(2, 1, 1, 10, dtype=torch.bool)
    torch.library.opcheck(span_attention, (q, k, k, mask, torch.tensor([2, 7, 0]), None, True))
    torch.library.opcheck(span_attention, (q, k, k, None, torch.tensor([4, 4, 1]), 0.3, True))
    torch.library.opcheck(key_span, (mask, None, False))


def test_a_short_cache_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    q, kv = tensors(1, heads=2)
    with torch.no_grad():
        compiled(Step(placed))(q, kv, at(3))
    assert set(actions()) == {"keep"}
