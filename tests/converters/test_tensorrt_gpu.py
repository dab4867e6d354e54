"""Checks for a machine with TensorRT and a CUDA GPU: `pytest -m tensorrt_gpu`.

Every check is written once and runs on TensorRT, where that is asked for and possible, and on the reference, which
shows that the check itself works. The ids say which it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tensorrt_cases import CALLS, Case, as_on_cuda, valid
from tensorrt_models import MODELS
from tensorrt_runtime import Runtime, load, no_tensorrt, quiet
from tensorrt_soundness import difference, on, outcome
from torch import Tensor

import attnlower
from attnlower.converters import register, unregister

TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}
SETTINGS = {"min_block_size": 1, "disable_tf32": True}


@pytest.fixture(params=[pytest.param("TensorRT", marks=pytest.mark.tensorrt_gpu), "reference"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    if request.param == "TensorRT":
        if "tensorrt_gpu" not in request.config.getoption("-m"):
            pytest.skip("a process runs on TensorRT or on the reference; ask for TensorRT with -m tensorrt_gpu")
        if why_not := no_tensorrt():
            pytest.skip(f"no TensorRT: {why_not}")
        yield load(reference=False)
    else:
        request.getfixturevalue("reference_tensorrt")
        yield load(reference=True)
    unregister()
    torch._dynamo.reset()


class Sdpa(torch.nn.Module):
    """`F.scaled_dot_product_attention` with these settings; a mask made from query and key where one is given."""

    def __init__(self, mask: Callable[[Tensor, Tensor], Tensor] | None = None, **settings: Any) -> None:
        super().__init__()
        self.mask, self.settings = mask, settings

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mask = None if self.mask is None else self.mask(query, key)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **self.settings)


def tensors(
    runtime: Runtime, queries: int, keys: int, heads: int = 4, groups: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Random (2, heads, queries, 32) and twice (2, heads / groups, keys, 32)."""
    torch.manual_seed(queries * 100 + keys)
    sizes = ((heads, queries), (heads // groups, keys), (heads // groups, keys))
    query, key, value = (torch.randn(2, h, n, 32).to(dtype).to(runtime.device) for h, n in sizes)
    return query, key, value


def compiled(
    runtime: Runtime, model: torch.nn.Module, args: tuple[Tensor, ...], dims: Any = None
) -> Callable[..., Any]:
    """Through torch.export and torch_tensorrt, attnlower registered meanwhile."""
    with quiet(), torch.no_grad(), register():
        program = torch.export.export(model.eval(), args, dynamic_shapes=dims, strict=False)
        done: Callable[..., Any] = runtime.torch_tensorrt.dynamo.compile(program, arg_inputs=list(args), **SETTINGS)
    return done


def assert_like_eager(run: Callable[..., Any], model: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        expected = model(*args)
        assert difference(run(*args), expected) <= TOLERANCES[expected.dtype]


def lower_right(query: Tensor, key: Tensor) -> Tensor:
    rows = torch.arange(query.shape[-2], device=query.device)[:, None]
    columns = torch.arange(key.shape[-2], device=key.device)[None, :]
    return columns <= rows + (key.shape[-2] - query.shape[-2])


def third_row_empty(query: Tensor, key: Tensor) -> Tensor:
    rows = torch.arange(query.shape[-2], device=query.device)[:, None]
    columns = torch.arange(key.shape[-2], device=key.device)[None, :]
    return (columns <= rows) & (rows != 2)


CASES = (*CALLS, *MODELS)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_masks_that_torch_tensorrt_takes_for_causal(case: Case, runtime: Runtime) -> None:
    if runtime.kind == "reference":
        pytest.skip("test_soundness.py has run it on the reference")
    with register():
        found = outcome(case, runtime, {"disable_tf32": True})
    assert found.error <= TOLERANCES[torch.float32], found


@pytest.mark.parametrize("queries, keys", [(6, 6), (6, 9), (9, 6), (1, 9)])
def test_is_causal_starts_in_the_upper_left_corner(queries: int, keys: int, runtime: Runtime) -> None:
    model, args = Sdpa(is_causal=True), tensors(runtime, queries, keys)
    assert_like_eager(compiled(runtime, model, args), model, args)


@pytest.mark.parametrize("queries, keys", [(6, 6), (6, 9), (1, 9), (9, 6)])
def test_a_mask_may_be_causal_from_the_lower_right_corner(queries: int, keys: int, runtime: Runtime) -> None:
    """With more queries than keys the first rows are empty, which gives zeros."""
    model, args = Sdpa(lower_right), tensors(runtime, queries, keys)
    assert_like_eager(compiled(runtime, model, args), model, args)


@pytest.mark.parametrize("additive", [False, True])
def test_a_query_without_a_key_gives_zeros(additive: bool, runtime: Runtime) -> None:
    def mask(query: Tensor, key: Tensor) -> Tensor:
        allowed = third_row_empty(query, key)
        return torch.where(allowed, 0.0, float("-inf")) if additive else allowed

    model, args = Sdpa(mask), tensors(runtime, 6, 6)
    run = compiled(runtime, model, args)
    assert_like_eager(run, model, args)


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_heads_in_every_dtype(groups: int, dtype: torch.dtype, runtime: Runtime) -> None:
    model = Sdpa(lower_right, enable_gqa=groups > 1)
    args = tensors(runtime, 7, 7, groups=groups, dtype=dtype)
    assert_like_eager(compiled(runtime, model, args), model, args)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_long_causal_attention_in_half_precision(dtype: torch.dtype, runtime: Runtime) -> None:
    """512 keys and more: NVBug 6047232 in TensorRT 10."""
    model, args = Sdpa(lower_right), tensors(runtime, 640, 640, dtype=dtype)
    assert_like_eager(compiled(runtime, model, args), model, args)


@pytest.mark.parametrize("mask", [None, lower_right, third_row_empty], ids=["none", "causal", "empty row"])
def test_batch_and_both_lengths_dynamic(mask: Any, runtime: Runtime) -> None:
    batch, queries, keys = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "queries", "keys"))
    dims = ({0: batch, 2: queries}, {0: batch, 2: keys}, {0: batch, 2: keys})
    model = Projected(Sdpa(mask))
    run = compiled(runtime, model, tensors(runtime, 8, 8), dims)
    for lengths in ((8, 8), (3, 9), (9, 3), (1, 17), (33, 33)):
        assert_like_eager(run, model, tensors(runtime, *lengths))


class Projected(torch.nn.Module):
    """Attention with something in front, so that no placeholder is its operand."""

    def __init__(self, attention: torch.nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.attention(query * 1.5, key + 0.25, value)


class RepeatedHeads(torch.nn.Module):
    """Projections, `view(b, s, -1, width)` and repeated key heads, as in transformers' decoders."""

    def __init__(self, heads: int = 4, groups: int = 2, width: int = 32) -> None:
        super().__init__()
        self.groups, self.width = groups, width
        torch.manual_seed(0)
        self.query = torch.nn.Linear(64, heads * width)
        self.key_value = torch.nn.Linear(64, 2 * heads // groups * width)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length = hidden.shape[:2]
        query = self.query(hidden).view(batch, length, -1, self.width).transpose(1, 2)
        key, value = self.key_value(hidden).view(batch, length, 2, -1, self.width).transpose(1, 3).unbind(2)
        key, value = (
            t[:, :, None].expand(-1, -1, self.groups, -1, -1).reshape(batch, -1, length, self.width)
            for t in (key, value)
        )
        return F.scaled_dot_product_attention(query, key, value, attn_mask=lower_right(query, key))


def test_the_head_count_of_a_view_is_static(runtime: Runtime) -> None:
    """`view(b, s, -1, width)` leaves TensorRT a dynamic head count, which add_attention refuses."""
    length = torch.export.Dim("length", min=2, max=64)
    model = RepeatedHeads().to(runtime.device)
    args = (torch.randn(2, 8, 64, device=runtime.device),)
    run = compiled(runtime, model, args, ({1: length},))
    for size in (8, 5, 31):
        assert_like_eager(run, model, (torch.randn(2, size, 64, device=runtime.device),))


def _model(name: str) -> Case:
    return next(case for case in MODELS if case.name.startswith(name))


@pytest.mark.parametrize("name", ["BertModel", "T5Model", "MistralModel", "LlamaModel, left"])
@pytest.mark.parametrize("backend", ["torch_tensorrt", "attnlower"])
def test_models_through_torch_compile(name: str, backend: str, runtime: Runtime) -> None:
    pytest.importorskip("transformers")
    case = _model(name)
    model = case.model().to(runtime.device)
    args = on(runtime, case.inputs())
    options: dict[str, Any] = {**SETTINGS, "pass_through_build_failures": True}
    if backend == "attnlower":
        options = {**options, "target": "tensorrt", "padding": "keep", "strict": True}
    with quiet(), torch.no_grad(), register():
        run = torch.compile(model, backend=backend, dynamic=False, fullgraph=True, options=options)
        with as_on_cuda() if runtime.kind == "reference" and backend == "torch_tensorrt" else quiet():
            first = run(*args)
        assert difference(first, model(*args)) <= TOLERANCES[torch.float32]
    assert attnlower.last_report().sites


def test_padding_changes_from_call_to_call(runtime: Runtime) -> None:
    """A mask is an input: what was compiled with one padding is right for another."""
    pytest.importorskip("transformers")
    case = _model("BertModel")
    model = case.model().to(runtime.device)
    tokens, _ = case.inputs()
    run = compiled(runtime, model, on(runtime, (tokens, valid(12, 12))))
    for lengths in ((12, 12), (12, 1), (5, 9)):
        assert_like_eager(run, model, on(runtime, (tokens, valid(*lengths))))


class Remembers(torch.nn.Module):
    """Projections, a cache of 16 slots and a counter, as in a decoder's layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("cache", torch.zeros(2, 4, 16, 32))
        self.register_buffer("count", torch.tensor(0))
        self.project = torch.nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        position = torch.arange(x.shape[2], device=x.device) + self.count
        self.cache.index_copy_(2, position, self.project(x))
        self.count.add_(x.shape[2])
        allowed = torch.arange(16, device=x.device)[None, :] <= position[:, None]
        return F.scaled_dot_product_attention(self.project(x), self.cache, self.cache, attn_mask=allowed)


@pytest.mark.parametrize("way", ["export", "torch.compile"])
def test_a_static_cache_is_written(way: str, runtime: Runtime) -> None:
    model, eager = (Remembers().eval().to(runtime.device) for _ in range(2))
    calls = torch.randn(6, 2, 4, 1, 32, device=runtime.device)
    if way == "export":
        run = compiled(runtime, model, (calls[0].clone(),))
    else:
        options = {**SETTINGS, "pass_through_build_failures": True}
        run = torch.compile(model, backend="torch_tensorrt", dynamic=False, fullgraph=True, options=options)
    with quiet(), torch.no_grad(), register():
        for x in calls:
            assert difference(run(x), eager(x)) <= TOLERANCES[torch.float32]
