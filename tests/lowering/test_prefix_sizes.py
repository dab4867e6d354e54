"""prefix_sizes: where numbers say how far a cache is filled, Inductor's code cuts it, by a size that nobody guards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

import attnlower

CAPACITY = 24
OPTIONS = {"strict": True, "padding": "keep"}
Mask = Callable[..., torch.Tensor]


@pytest.fixture(autouse=True)
def _however_short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEAST_WORK", "LEAST_PREFIX_WORK"):
        monkeypatch.setattr(f"attnlower.lowering.passes.prefix_keys.{name}", 0)


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[fx.GraphModule]:
    """What Inductor is given; but for slow tests AOTAutograd alone stands in for it."""
    from torch._dynamo.backends.debugging import aot_eager
    from torch._inductor import compile_fx

    given: list[fx.GraphModule] = []
    compiler = compile_fx.compile_fx if request.node.get_closest_marker("slow") else aot_eager

    def noting(gm: fx.GraphModule, args: Any, config_patches: Any = None) -> Any:
        given.append(gm)
        return compiler(gm, args)

    monkeypatch.setattr(compile_fx, "compile_fx", noting)
    return given


class Step(torch.nn.Module):
    """Queries against a cache under `mask(q, k, position, *more)`, in two layers."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask = mask

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position: torch.Tensor, *more: torch.Tensor
    ) -> torch.Tensor:
        mask = self.mask(torch.arange(q.shape[2]), torch.arange(k.shape[2]), position, *more)
        wide = [t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v)]
        for _ in range(2):
            q = F.scaled_dot_product_attention(q, *wide, attn_mask=mask)[..., : q.shape[-1]]
        return q


def placed(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return (k[None, :] <= q[:, None] + position)[None, None]


def left_padded(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    return placed(q, k, position) & padding[:, None, None, :].to(torch.bool)


def by_head(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    return placed(q, k, position) & padding[:, :, None, :].to(torch.bool)


def first(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return (k < position)[None, None, None]


def additive(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return torch.where(placed(q, k, position), 0.0, float("-inf"))


def biased(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.where(placed(q, k, position), bias[:, None, None, :], float("-inf"))


def tensors(queries: int, heads: int = 4, groups: int = 4, batch: int = 2, width: int = 8) -> list[torch.Tensor]:
    shapes = ((heads, queries, 8), (groups, CAPACITY, 8), (groups, CAPACITY, width))
    return [torch.randn(batch, *shape) for shape in shapes]


def called(graph: fx.GraphModule) -> dict[str, int]:
    """How often a graph calls the op in Python, PyTorch's kernel, and how many sizes it reads from tensors."""
    names = [str(n.target) for n in graph.graph.nodes]
    words = {"op": "attnlower.span_attention", "kernel": "flash_attention_for_cpu", "sizes": "item"}
    return {what: sum(word == name or f"{word}.default" in name for name in names) for what, word in words.items()}


AS_SIZE, AS_OP = {"op": 0, "kernel": 2, "sizes": 1}, {"op": 2, "kernel": 0, "sizes": 0}


@pytest.mark.parametrize("mask", [placed, left_padded, additive, first])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("heads", [2, 4])
def test_a_cache_is_cut_by_a_size(mask: Mask, queries: int, heads: int, graphs: Any, same: Any) -> None:
    model = Step(mask)
    given = tensors(queries, heads, 2)
    padding = (torch.arange(CAPACITY) >= torch.tensor([[0], [4]])).long()
    more = (padding,) if mask is left_padded else ()
    run = torch.compile(model, backend="attnlower", options=OPTIONS)
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        # nobody sees a key; some see none; ...; everybody sees all, and there is room behind the cache for more
        for position in (-9, -1, 0, 1, 2, 5, CAPACITY - queries, CAPACITY, CAPACITY + 7):
            args = (*given, torch.tensor(position), *more)
            same(run(*args), model(*args))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    (graph,) = graphs
    assert called(graph) == (AS_OP if heads == 4 and queries == 3 and mask is not first else AS_SIZE)
    assert {s.action for s in attnlower.last_report().sites} == {"banded"}


def test_what_lies_behind_is_not_read(same: Any, graphs: Any) -> None:
    q, k, v = tensors(1)
    model = Step(placed)
    dirty = [t.clone() for t in (k, v)]
    for t in dirty:
        t[:, :, 6:] = float("nan")
    run = torch.compile(model, backend="attnlower", options=OPTIONS)
    with torch.no_grad():
        same(run(q, *dirty, torch.tensor(5)), model(q, k, v, torch.tensor(5)))
        dirty[0][:] = dirty[1][:] = float("nan")
        assert not run(q, *dirty, torch.tensor(-1)).any()  # no key at all: zeros, and not what the first one holds
    assert called(graphs[0]) == AS_SIZE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("groups", [1, 4])
def test_dtypes(dtype: torch.dtype, queries: int, groups: int, graphs: Any, same: Any) -> None:
    model, given = Step(first), [t.to(dtype) for t in tensors(queries, 4, groups)]
    run = torch.compile(model, backend="attnlower", options=OPTIONS)
    with torch.no_grad():
        for position in (0, 1, 7, CAPACITY):
            found, wanted = run(*given, torch.tensor(position)), model(*given, torch.tensor(position))
            assert found.dtype is dtype
            same(found.double(), wanted.double(), 1e-12 if dtype is torch.float64 else 3e-2)
    assert called(graphs[0]) == AS_SIZE


def test_the_batch_may_be_a_symbol(graphs: Any, same: Any) -> None:
    model = Step(placed)
    run = torch.compile(model, backend="attnlower", options=OPTIONS)
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        for batch in (2, 5, 3, 4, 7):
            for position in (0, 9):
                given = (*tensors(1, 4, 2, batch), torch.tensor(position))
                for t in given[:3]:
                    torch._dynamo.maybe_mark_dynamic(t, 0)
                same(run(*given), model(*given))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert called(graphs[0]) == AS_SIZE


@pytest.mark.parametrize(
    "case", ["a width of their own", "a mask per head", "a bias", "many rows", "no room known", "a window"]
)
def test_near_misses_stay_an_op(case: str, graphs: Any, same: Any) -> None:
    given, more, mask, dynamic = tensors(1, 4, 2), (), placed, False
    if case == "a width of their own":
        given = tensors(1, 4, 4, width=9)
    elif case == "a mask per head":
        mask, more = by_head, ((torch.rand(2, 4, CAPACITY) < 0.7).long(),)
    elif case == "a bias":
        mask, more = biased, (torch.randn(2, CAPACITY),)
    elif case == "many rows":
        given = tensors(20, 4, 2)
    elif case == "no room known":
        dynamic = True
        for t in given[1:]:
            torch._dynamo.mark_dynamic(t, 2)
    elif case == "a window":

        def mask(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            return placed(q, k, position) & (k > q[:, None] + position - 5)[None, None]

    model = Step(mask)
    run = torch.compile(model, backend="attnlower", options=OPTIONS, dynamic=dynamic or None)
    with torch.no_grad():
        for position in (0, 3, 11):
            args = (*given, torch.tensor(position), *more)
            same(run(*args), model(*args))
    assert called(graphs[0]) == AS_OP


def test_a_mask_that_broadcasts_over_queries(graphs: Any, same: Any) -> None:
    def mask(q: torch.Tensor, k: torch.Tensor, position: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        return first(q, k, position) & padding[:, None, None, :].to(torch.bool)

    padding = (torch.arange(CAPACITY) >= torch.tensor([[0], [4]])).long()
    given, model = tensors(3), Step(mask)
    run = torch.compile(model, backend="attnlower", options=OPTIONS)
    with torch.no_grad():
        for position in (0, 3, 9, CAPACITY):
            same(run(*given, torch.tensor(position), padding), model(*given, torch.tensor(position), padding))
    assert called(graphs[0]) == AS_SIZE


@pytest.mark.parametrize(
    ("key", "value"), [((1, 4), (1, 4)), ((3, 4), (1, 4)), ((1, 4), (3, 4)), ((3, 1), (3, 1)), ((3, 4), (3, 1))]
)
def test_what_broadcasts_stays_an_op(key: tuple[int, int], value: tuple[int, int], graphs: Any, same: Any) -> None:
    """The kernel would read beyond the memory of a key or value of one batch entry or head."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        mask = placed(torch.arange(q.shape[2]), torch.arange(k.shape[2]), position)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    q, (k, v) = torch.randn(3, 4, 1, 8), (torch.randn(*shape, CAPACITY, 8) for shape in (key, value))
    run = torch.compile(attend, backend="attnlower", options=OPTIONS)
    with torch.no_grad():
        for position in (0, 5, CAPACITY - 1):
            same(run(q, k, v, torch.tensor(position)), attend(q, k, v, torch.tensor(position)))
    assert called(graphs[0])["kernel"] == 0


def test_a_general_variant_cuts_them_too(graphs: Any, same: Any) -> None:
    """Compiled outside of Dynamo for static sizes, and by a second torch.compile for others."""
    for dynamic in (False, True):
        torch._dynamo.reset()
        graphs.clear()
        model = Step(left_padded)
        run = torch.compile(model, backend="attnlower", options={"strict": True}, dynamic=dynamic)
        ones = torch.ones(2, CAPACITY, dtype=torch.long)
        holes = ones.clone()
        holes[1, :4] = 0
        given = tensors(1, 4, 2)
        with torch.no_grad():
            for padding in (ones, holes, ones):
                for position in (0, 6, CAPACITY - 1):
                    args = (*given, torch.tensor(position), padding)
                    same(run(*args), model(*args))
        assert {s.action for s in attnlower.last_report().sites} <= {"banded", "guarded"}
        if not dynamic:
            assert [called(g) for g in graphs] == [AS_SIZE] * len(graphs)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [placed, left_padded])
def test_through_inductor(mask: Mask, graphs: Any, same: Any) -> None:
    """A cache that is written to in the step, as in a model."""

    class Writing(Step):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            for cache in (k, v):
                cache.index_copy_(2, rest[0].view(1), q[:, : cache.shape[1]] + 1)
            out = super().forward(q, k, v, *rest)
            rest[0].add_(1)
            return out

    padding = (torch.arange(CAPACITY) >= torch.tensor([[0], [4]])).long()
    run = torch.compile(Writing(mask), backend="attnlower", options=OPTIONS)
    mine, theirs = ([t.clone() for t in given] for given in [tensors(1, 4, 2)] * 2)
    places = torch.tensor(0), torch.tensor(0)
    with torch.no_grad():
        for _ in range(CAPACITY):
            more = (padding,) if mask is left_padded else ()
            same(run(*mine, places[0], *more), Writing(mask)(*theirs, places[1], *more))
            assert places[0] == places[1]
            same(mine[1], theirs[1])
    assert called(graphs[0]) == AS_SIZE
