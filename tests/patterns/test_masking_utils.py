"""Every function of transformers' `masking_utils`, called for real: with and without vmap, static and dynamic shapes.

Each case makes a mask by the real functions inside an exported program. Its formula must equal the tensor that the same
functions return, at the traced sizes and at others, and its kinds and proof must be the expected ones.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from attnlower.patterns import Analysis, Proved, analyze, mask_tensor
from attnlower.patterns.metadata import value_of

mu = pytest.importorskip("transformers.masking_utils")
from transformers import DynamicCache, LlamaConfig, StaticCache  # noqa: E402

if not hasattr(mu, "blockwise_overlay"):
    pytest.skip("written for the masking_utils of transformers 5.23", allow_module_level=True)

B, S = 2, 9
LEFT = torch.ones(B, S, dtype=torch.bool).index_fill_(1, torch.arange(3), False)
LEFT[1] = True
RESTARTS = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [4, 4, 4, 4, 4, 1, 1, 1, 1]])
BLOCKS = torch.tensor([[-1, -1, 0, 0, 0, -1, 1, 1, -1], [0, 0, 0, -1, -1, -1, -1, 1, 1]])


def causal(x: torch.Tensor) -> Callable[..., Any]:
    return mu.causal_mask_function


def zeros(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(x.shape[0], dtype=torch.long)


def left_padding(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) == 0).sum(-1)


def documents_by(function: Callable[..., Any], positions: torch.Tensor) -> Callable[..., Any]:
    """A mask function within documents, as `create_causal_mask` makes it; before 5.24 by a function of its own."""
    documents = mu.find_packed_sequence_indices(positions)
    if hasattr(mu, "packed_sequence_compatibility_function"):
        return mu.packed_sequence_compatibility_function(function, positions, documents)
    moved = mu.remap_positions_for_packed_sequence(function, positions)
    return mu.and_masks(moved, mu.packed_sequence_mask_function(documents))


GONE = {"packed_sequence_compatibility_function"} - set(dir(mu))
"""What 5.23 had and the installed release has not."""


@dataclass(frozen=True)
class Case:
    """A mask function and what the mask must be.

    Attributes:
        make: `make(x, *data)` returns a function (batch, head, query, key) -> bool.
        kinds: the expected kinds.
        data: example inputs of shape (B, S).
        covers: names of masking_utils that the case calls.
    """

    make: Callable[..., Callable[..., Any]]
    kinds: set[str]
    data: tuple[torch.Tensor, ...] = ()
    covers: tuple[str, ...] = ()


FUNCTIONS: dict[str, Case] = {
    "causal": Case(causal, {"causal"}, covers=("causal_mask_function",)),
    "bidirectional": Case(lambda x: mu.bidirectional_mask_function, {"full"}, covers=("bidirectional_mask_function",)),
    "window": Case(
        lambda x: mu.sliding_window_causal_mask_function(4),
        {"sliding_window"},
        covers=("sliding_window_causal_mask_function", "sliding_window_overlay"),
    ),
    "window-both-ways": Case(
        lambda x: mu.sliding_window_bidirectional_mask_function(3),
        {"sliding_window"},
        covers=("sliding_window_bidirectional_mask_function", "sliding_window_bidirectional_overlay"),
    ),
    "overlay-alone": Case(lambda x: mu.sliding_window_overlay(4), {"sliding_window"}),
    "chunks": Case(
        lambda x: mu.chunked_causal_mask_function(4, zeros(x)),
        {"chunked"},
        covers=("chunked_causal_mask_function", "chunked_overlay"),
    ),
    "chunks-left-padded": Case(
        lambda x, m: mu.and_masks(mu.chunked_causal_mask_function(4, left_padding(m)), mu.padding_mask_function(m)),
        {"chunked", "padding"},
        (LEFT,),
    ),
    "padding": Case(
        lambda x, m: mu.and_masks(mu.causal_mask_function, mu.padding_mask_function(m)),
        {"causal", "padding"},
        (LEFT,),
        ("and_masks", "padding_mask_function"),
    ),
    "padding-alone": Case(lambda x, m: mu.padding_mask_function(m), {"padding"}, (LEFT,)),
    "window-padded": Case(
        lambda x, m: mu.and_masks(mu.sliding_window_causal_mask_function(3), mu.padding_mask_function(m)),
        {"sliding_window", "padding"},
        (LEFT,),
    ),
    "blocks": Case(
        lambda x, i: mu.or_masks(mu.causal_mask_function, mu.blockwise_overlay(i)),
        {"prefix"},
        (BLOCKS,),
        ("or_masks", "blockwise_overlay"),
    ),
    "blocks-over-a-window": Case(
        lambda x, i: mu.or_masks(mu.sliding_window_causal_mask_function(4), mu.blockwise_overlay(i)),
        {"prefix", "sliding_window"},
        (BLOCKS,),
    ),
    "blocks-padded": Case(
        lambda x, i, m: mu.and_masks(
            mu.or_masks(mu.causal_mask_function, mu.blockwise_overlay(i)), mu.padding_mask_function(m)
        ),
        {"prefix", "padding"},
        (BLOCKS, LEFT),
    ),
    "documents": Case(
        lambda x, d: mu.and_masks(mu.causal_mask_function, mu.packed_sequence_mask_function(d)),
        {"causal", "packed"},
        (DOCUMENTS,),
        ("packed_sequence_mask_function",),
    ),
    "restarts": Case(
        lambda x, p: documents_by(mu.causal_mask_function, p),
        {"causal", "packed"},
        (RESTARTS,),
        ("packed_sequence_compatibility_function", "find_packed_sequence_indices"),
    ),
    "restarts-window": Case(
        lambda x, p: documents_by(mu.sliding_window_causal_mask_function(3), p),
        {"sliding_window", "packed"},
        (RESTARTS,),
    ),
    "restarts-chunks": Case(
        lambda x, p: documents_by(mu.chunked_causal_mask_function(2, zeros(x)), p),
        {"chunked", "packed"},
        (RESTARTS,),
    ),
    "positions": Case(
        lambda x, p: mu.remap_positions_for_packed_sequence(mu.causal_mask_function, p),
        {"packed"},
        (RESTARTS,),
        ("remap_positions_for_packed_sequence",),
    ),
    "moved-both": Case(
        lambda x: mu.add_offsets_to_mask_function(mu.causal_mask_function, 3, 3),
        {"causal"},
        covers=("add_offsets_to_mask_function",),
    ),
    "moved-chunks": Case(lambda x: mu.add_offsets_to_mask_function(mu.chunked_overlay(4, zeros(x)), 2, 2), {"chunked"}),
    "own-function": Case(
        lambda x: mu.and_masks(mu.causal_mask_function, lambda b, h, q, k: (k < 2) | (q - k < 3)),
        {"prefix", "sliding_window"},
    ),
    "own-or": Case(
        lambda x, m: mu.or_masks(
            mu.and_masks(mu.causal_mask_function, mu.padding_mask_function(m)), lambda b, h, q, k: q == k
        ),
        {"padding", "sliding_window"},
        (LEFT,),
    ),
}

NEAR: dict[str, Case] = {
    "sees-three-ahead": Case(lambda x: mu.add_offsets_to_mask_function(mu.causal_mask_function, 3, 0), {"opaque"}),
    "own-parity": Case(
        lambda x: mu.and_masks(mu.causal_mask_function, lambda b, h, q, k: (q + k) % 2 == 0), {"opaque"}
    ),
    "other-documents": Case(
        lambda x, d: mu.and_masks(mu.causal_mask_function, lambda b, h, q, k: d[b, q] != d[b, k]),
        {"causal", "opaque"},
        (DOCUMENTS,),
    ),
}


def config(attention: str = "sdpa", **more: Any) -> Any:
    made = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, **more)
    made._attn_implementation = attention
    return made


def embeds(x: torch.Tensor) -> torch.Tensor:
    return x.new_zeros(x.shape[0], x.shape[2], 8)


Made = Callable[..., torch.Tensor]

CREATED: dict[str, tuple[Made, set[str], tuple[torch.Tensor, ...]]] = {
    "create_causal_mask": (
        lambda x: mu.create_causal_mask(config(), embeds(x), None, None, allow_is_causal_skip=False),
        {"causal"},
        (),
    ),
    "create_causal_mask padded": (
        lambda x, m: mu.create_causal_mask(config(), embeds(x), m, None),
        {"causal", "padding"},
        (LEFT.long(),),
    ),
    "create_causal_mask eager": (
        lambda x, m: mu.create_causal_mask(config("eager"), embeds(x), m, None),
        {"causal", "padding"},
        (LEFT.long(),),
    ),
    "create_causal_mask packed": (
        lambda x, p: mu.create_causal_mask(config(), embeds(x), None, None, position_ids=p),
        {"causal", "packed"},
        (RESTARTS,),
    ),
    "create_causal_mask blocks": (
        lambda x, i: mu.create_causal_mask(config(), embeds(x), None, None, block_sequence_ids=i),
        {"prefix"},
        (BLOCKS,),
    ),
    "create_causal_mask own": (
        lambda x, m: mu.create_causal_mask(
            config(), embeds(x), m, None, and_mask_function=lambda b, h, q, k: k > q - 3
        ),
        {"sliding_window", "padding"},
        (LEFT.long(),),
    ),
    "create_sliding_window_causal_mask": (
        lambda x, m: mu.create_sliding_window_causal_mask(config(sliding_window=3), embeds(x), m, None),
        {"sliding_window", "padding"},
        (LEFT.long(),),
    ),
    "create_chunked_causal_mask": (
        lambda x, m: mu.create_chunked_causal_mask(config(attention_chunk_size=4), embeds(x), m, None),
        {"chunked", "padding"},
        (LEFT.long(),),
    ),
    "create_bidirectional_mask": (
        lambda x, m: mu.create_bidirectional_mask(config(), embeds(x), m),
        {"padding"},
        (LEFT.long(),),
    ),
    "create_bidirectional_sliding_window_mask": (
        lambda x, m: mu.create_bidirectional_sliding_window_mask(config(sliding_window=3), embeds(x), m),
        {"sliding_window", "padding"},
        (LEFT.long(),),
    ),
    "create_masks_for_generate": (
        lambda x, m: mu.create_masks_for_generate(config(), embeds(x), m, None),
        {"causal", "padding"},
        (LEFT.long(),),
    ),
    "create_masks_for_generate chunked": (
        lambda x, m: mu.create_masks_for_generate(config(attention_chunk_size=4), embeds(x), m, None),
        {"chunked", "padding"},
        (LEFT.long(),),
    ),
    "create_recurrent_attention_mask": (
        lambda x, m: mu.create_recurrent_attention_mask(config(), embeds(x), m)[:, None, None] != 0,
        {"padding"},
        (LEFT.long(),),
    ),
    "flash_attention_mask": (
        # longer keys than the mask: else it asks the data whether there is padding at all
        lambda x, m: mu.flash_attention_mask(x.shape[0], x.shape[2], x.shape[2] + 1, attention_mask=m)[:, None, None],
        {"padding"},
        (LEFT,),
    ),
    "prepare_padding_mask": (
        lambda x, m: mu.prepare_padding_mask(m, x.shape[2], 0)[:, None, None].expand(-1, 1, x.shape[2], -1),
        {"padding"},
        (LEFT,),
    ),
    "maybe_pad_block_sequence_ids": (
        lambda x, i: mu.sdpa_mask(
            x.shape[0],
            x.shape[2],
            x.shape[2],
            mask_function=mu.or_masks(
                mu.causal_mask_function,
                mu.blockwise_overlay(mu.maybe_pad_block_sequence_ids(i[:, :-1], None, x.shape[2], 0)),
            ),
            allow_is_causal_skip=False,
        ),
        {"prefix"},
        (BLOCKS,),
    ),
    "fast_all": (
        lambda x, m: mu.sdpa_mask(x.shape[0], x.shape[2], x.shape[2], allow_is_causal_skip=False) & mu.fast_all(m >= 0),
        {"causal", "opaque"},
        (LEFT.long(),),
    ),
}

NO_MASK = {
    "flex_attention_mask": "returns a BlockMask for flex_attention, which is no tensor",
    "find_first_full_attention_index": "returns the number of a layer",
}
"""Public functions that make no mask tensor, and why."""


class Attend(torch.nn.Module):
    def __init__(self, mask: Made) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor, data: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x, attn_mask=self.mask(x, *data))


def exported(mask: Made, data: tuple[torch.Tensor, ...], dynamic: bool) -> tuple[torch.fx.GraphModule, Analysis]:
    b, s = Dim("b", min=1, max=64), Dim("s", min=3, max=4096)
    shapes = ({0: b, 2: s}, tuple({0: b, 1: s} for _ in data)) if dynamic else None
    x = torch.randn(B, 2, S, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            Attend(mask), (x, tuple(d.clone() for d in data)), dynamic_shapes=shapes, strict=False
        )
    return program.graph_module, analyze(program.graph_module)


def check(mask: Made, kinds: set[str], data: tuple[torch.Tensor, ...], dynamic: bool) -> Analysis:
    gm, analysis = exported(mask, data, dynamic)
    (site,) = analysis.sites
    found = site.classification
    assert found is not None, site.problem
    assert set(found.kinds) == kinds, f"{found.predicate}: {found.reason}"
    for b, s in ((B, S), (1, 5), (3, 14)) if dynamic else ((B, S),):
        x = torch.randn(b, 2, s, 4)
        inputs = tuple(resized(d, b, s) for d in data)
        actual = mask(x, *inputs)
        actual = torch.ones(b, 1, s, s, dtype=torch.bool) if actual is None else actual
        actual = actual if actual.dtype is torch.bool else actual == 0
        placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
        sizes: dict[str, int] = {}
        for node, value in zip(placeholders, (x, *inputs), strict=True):
            for symbol, number in zip(value_of(node).shape, value.shape, strict=True):
                if isinstance(symbol, torch.SymInt):
                    sizes[str(symbol.node.expr)] = number
        tensors = {n.name: v for n, v in zip(placeholders, (x, *inputs), strict=True)}
        allowed = mask_tensor(found.predicate, sizes, tensors)
        assert torch.equal(allowed, actual.expand(allowed.shape)), f"{found.predicate} is not the mask at {b}, {s}"
    return analysis


def resized(data: torch.Tensor, batch: int, length: int) -> torch.Tensor:
    """Data of another shape, with the same flavour: padding on the left, ids that repeat, positions that restart."""
    if (batch, length) == tuple(data.shape):
        return data
    repeated = data.repeat(-(-batch // data.shape[0]), -(-length // data.shape[1]))[:batch, :length]
    return repeated.clone()


@pytest.mark.parametrize("vmap", [False, True], ids=["plain", "vmap"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_mask_functions(name: str, dynamic: bool, vmap: bool) -> None:
    case = FUNCTIONS[name]

    def mask(x: torch.Tensor, *data: torch.Tensor) -> torch.Tensor:
        size = x.shape[2]
        function = case.make(x, *data)
        return mu.sdpa_mask(x.shape[0], size, size, mask_function=function, allow_is_causal_skip=False, use_vmap=vmap)

    (site,) = check(mask, case.kinds, case.data, dynamic).sites
    assert isinstance(site.classification.verdict, Proved), site.classification.reason


@pytest.mark.parametrize("vmap", [False, True], ids=["plain", "vmap"])
@pytest.mark.parametrize("name", NEAR)
def test_near_misses(name: str, vmap: bool) -> None:
    case = NEAR[name]

    def mask(x: torch.Tensor, *data: torch.Tensor) -> torch.Tensor:
        size = x.shape[2]
        function = case.make(x, *data)
        return mu.eager_mask(x.shape[0], size, size, mask_function=function, use_vmap=vmap)

    (site,) = check(mask, case.kinds, case.data, dynamic=True).sites
    assert not isinstance(site.classification.verdict, Proved)
    assert not site.classification.exact


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", CREATED)
def test_created_masks(name: str, dynamic: bool) -> None:
    mask, kinds, data = CREATED[name]
    check(mask, kinds, data, dynamic)


def test_every_public_function_is_called() -> None:
    """A function that a later release adds fails here until a case calls it."""
    public = {
        n
        for n, f in inspect.getmembers(mu, inspect.isfunction)
        if f.__module__ == mu.__name__ and not n.startswith("_")
    }
    covered = {c for case in FUNCTIONS.values() for c in case.covers} | {n.split()[0] for n in CREATED}
    covered |= {"sdpa_mask", "eager_mask"} | set(NO_MASK)
    assert public == covered - GONE


# --- caches -------------------------------------------------------------------------------------------------------


class CachedAttend(torch.nn.Module):
    """The mask of a decoder whose keys lie in a cache of fixed capacity."""

    def __init__(self, made: Callable[..., torch.Tensor], capacity: int) -> None:
        super().__init__()
        self.made, self.capacity = made, capacity

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        keys = x.new_zeros(x.shape[0], x.shape[1], self.capacity, x.shape[3])
        return F.scaled_dot_product_attention(x, keys, keys, attn_mask=self.made(x, seen, self.capacity))


CACHED: dict[str, tuple[Callable[..., torch.Tensor], set[str]]] = {
    "causal": (
        lambda x, seen, n: mu.sdpa_mask(x.shape[0], x.shape[2], n, q_offset=seen, allow_is_causal_skip=False),
        {"causal"},
    ),
    "window": (
        lambda x, seen, n: mu.sdpa_mask(
            x.shape[0],
            x.shape[2],
            n,
            q_offset=seen,
            allow_is_causal_skip=False,
            mask_function=mu.sliding_window_causal_mask_function(4),
        ),
        {"sliding_window"},
    ),
    "chunks": (
        lambda x, seen, n: mu.sdpa_mask(
            x.shape[0],
            x.shape[2],
            n,
            q_offset=seen,
            allow_is_causal_skip=False,
            mask_function=mu.chunked_causal_mask_function(4, torch.zeros(x.shape[0], dtype=torch.long)),
        ),
        {"chunked"},
    ),
    "positions": (
        lambda x, seen, n: torch.arange(n)[None] <= (torch.arange(x.shape[2]) + seen)[:, None],
        {"causal"},
    ),
    "sees-beyond": (
        lambda x, seen, n: torch.arange(n)[None] * 2 <= (torch.arange(x.shape[2]) + seen)[:, None],
        {"opaque"},
    ),
    "one-sided": (
        lambda x, seen, n: (
            (torch.arange(n)[None] <= (torch.arange(x.shape[2]) + seen)[:, None])
            & (torch.arange(n)[None] > torch.arange(x.shape[2])[:, None] - 4)
        ),
        {"sliding_window"},
    ),
}


@pytest.mark.parametrize("name", CACHED)
def test_static_caches(name: str) -> None:
    made, kinds = CACHED[name]
    x, seen = torch.randn(B, 2, 3, 4), torch.tensor(5)
    program = torch.export.export(
        CachedAttend(made, 12), (x, seen), dynamic_shapes=({2: Dim("q", min=2, max=8)}, None), strict=False
    )
    (site,) = analyze(program.graph_module).sites
    found = site.classification
    assert found is not None
    assert set(found.kinds) == kinds, f"{found.predicate}: {found.reason}"
    assert not found.exact
    assert found.guard is None
    for length, start in ((3, 5), (2, 0), (8, 4)):
        x = torch.randn(B, 2, length, 4)
        symbol = next(
            iter(str(s.node.expr) for s in value_of(next(iter(program.graph.nodes))).shape if not isinstance(s, int))
        )
        allowed = mask_tensor(found.predicate, {symbol: length}, {"seen": torch.tensor(start)})
        assert torch.equal(allowed, made(x, torch.tensor(start), 12).expand(allowed.shape))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_cache_objects(cache: str) -> None:
    """A real cache object hands over its own offsets and lengths."""
    made = config(max_position_embeddings=32)

    def mask(x: torch.Tensor) -> torch.Tensor:
        past: Any = DynamicCache(config=made)
        if cache == "static":
            past = StaticCache(config=made, max_cache_len=S)
            past.early_initialization(x.shape[0], 2, 4, torch.float32, x.device)
        else:
            past.update(x[:, :, :0], x[:, :, :0], 0)
        return mu.create_causal_mask(made, embeds(x), None, past, allow_is_causal_skip=False)

    _, analysis = exported(mask, (), dynamic=False)
    (site,) = analysis.sites
    assert site.classification is not None
    assert set(site.classification.kinds) == {"causal"}
