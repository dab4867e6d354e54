"""Every spelling of attention under every kind of mask, through torch_tensorrt on the reference TensorRT.

Correct or refused with a reason, and never a network that breaks a documented rule (the reference raises for those).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

import attnlower

NEG = float("-inf")
ATEN = torch.ops.aten
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
SHAPES = ((1, 1, 4), (3, 6, 3))
TRACED = (2, 5, 7)

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def canonical(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    boolean = mask is not None and mask.dtype is torch.bool
    masks = (mask, None) if boolean else (None, mask)
    return torch.ops.attnlower.attention(q, k, v, *masks, enable_gqa=q.shape[1] != k.shape[1])


def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (
            t[:, :, None].expand(t.shape[0], t.shape[1], groups, *t.shape[2:]).reshape(t.shape[0], -1, *t.shape[2:])
            for t in (k, v)
        )
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, NEG) if mask.dtype is torch.bool else scores + mask
    return torch.softmax(scores, -1) @ v


def efficient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return ATEN._scaled_dot_product_efficient_attention(q, k, v, mask, False)[0]


def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return ATEN._scaled_dot_product_flash_attention(q, k, v)[0]


def cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return ATEN._scaled_dot_product_cudnn_attention(q, k, v, mask, False)[0]


def flash_for_cpu(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return ATEN._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask)[0]


@dataclass(frozen=True)
class Mask:
    """A mask to make from the sizes of the scores."""

    axes: str  # of b, h, q, k; 1 for an axis of size one
    boolean: bool = False
    empty: bool = False  # the first row of the last batch is blocked throughout

    def make(self, sizes: dict[str, int], dtype: torch.dtype) -> torch.Tensor:
        shape = [sizes.get(a, 1) for a in self.axes]
        if not self.boolean:
            return torch.randn(shape, dtype=dtype)
        mask = torch.rand(shape) > 0.4
        mask[..., 0] = True
        if self.empty:
            mask[(-1,) * (mask.dim() - 2)][0] = False
        return mask


MASKS = {
    "none": None,
    "float": Mask("bhqk"),
    "float one head": Mask("b1qk"),
    "float rank 2": Mask("qk"),
    "float rank 3": Mask("hqk"),
    "float keys": Mask("b11k"),
    "bool": Mask("bhqk", True),
    "bool one batch": Mask("1hqk", True),
    "bool rank 2": Mask("qk", True),
    "bool rank 3": Mask("1qk", True),
    "bool keys": Mask("b11k", True),
    "bool queries": Mask("b1q1", True),
    "bool empty row": Mask("bhqk", True, empty=True),
    "bool empty keys": Mask("b11k", True, empty=True),
}
HEADS = {"self": (4, 4, True), "cross": (4, 4, False), "grouped": (4, 2, False), "one key head": (4, 1, False)}
FLOATS = tuple(n for n, m in MASKS.items() if m is None or not m.boolean)
WIDE = ("none", "float")
SPELLINGS: dict[str, tuple[Attend, tuple[str, ...], tuple[str, ...]]] = {
    "sdpa": (sdpa, tuple(MASKS), tuple(HEADS)),
    "canonical": (canonical, tuple(MASKS), tuple(HEADS)),
    "written out": (written_out, tuple(n for n in MASKS if "empty" not in n), tuple(HEADS)),
    "efficient": (efficient, WIDE, ("self", "cross")),
    "cudnn": (cudnn, WIDE, ("self", "cross")),
    "flash": (flash, ("none",), ("self", "cross")),
    "flash_for_cpu": (flash_for_cpu, FLOATS, ("self", "cross")),
}
"""The function, and the masks and heads that the op takes."""


def usual(mask: str, heads: str, dtype: torch.dtype) -> bool:
    """True for what every test run tries; `pytest -m extended` tries the rest of the product."""
    return dtype is torch.float32 or (mask in ("none", "float", "bool") and heads in ("cross", "grouped"))


RUNS = [
    pytest.param(
        spelling,
        mask,
        heads,
        dtype,
        id=f"{spelling}-{mask}-{heads}-{str(dtype)[6:]}",
        marks=() if usual(mask, heads, dtype) else pytest.mark.extended,
    )
    for spelling, (_, masks, kinds) in SPELLINGS.items()
    for mask in masks
    for heads in kinds
    for dtype in TOLERANCE
]


class Model(torch.nn.Module):
    def __init__(self, attend: Attend, self_attention: bool) -> None:
        super().__init__()
        self.attend, self.self_attention = attend, self_attention

    def forward(self, q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.attend(q, q if self.self_attention else k, q if self.self_attention else k.flip(-1), mask)


def arguments(mask: Mask | None, heads: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> tuple[Any, ...]:
    query_heads, key_heads, same = HEADS[heads]
    batch, rows, columns = shape
    columns = rows if same else columns
    sizes = {"b": batch, "h": query_heads, "q": rows, "k": columns}
    tensors = (
        torch.randn(batch, query_heads, rows, 8, dtype=dtype),
        torch.randn(batch, key_heads, columns, 8, dtype=dtype),
    )
    return tensors if mask is None else (*tensors, mask.make(sizes, dtype))


def compiled(torch_tensorrt: Any, model: torch.nn.Module, mask: Mask | None, args: tuple[Any, ...], same: bool) -> Any:
    dims = {"b": Dim("batch", min=1, max=8), "q": Dim("rows", min=1, max=16)}
    dims["k"] = dims["q"] if same else Dim("columns", min=1, max=16)
    axes = ["bhqe", "bgke", *([mask.axes] if mask is not None else [])]
    shapes = tuple({i: dims[a] for i, a in enumerate(names) if a in dims} for names in axes)
    program = torch.export.export(model, args, dynamic_shapes=shapes[: len(args)], strict=False)
    inputs = []
    for tensor, names in zip(args, axes, strict=True):
        limits = [(dims[a].min, dims[a].max) if a in dims else (s, s) for a, s in zip(names, tensor.shape, strict=True)]
        low, high = tuple(a for a, _ in limits), tuple(b for _, b in limits)
        inputs.append(
            torch_tensorrt.Input(min_shape=low, opt_shape=tuple(tensor.shape), max_shape=high, dtype=tensor.dtype)
        )
    return torch_tensorrt.dynamo.compile(program, arg_inputs=inputs, min_block_size=1)


def expected(spelling: str, model: Model, args: tuple[Any, ...]) -> torch.Tensor:
    """Eager in float32, by SDPA where the op has no kernel for CPUs."""
    wide = tuple(a.float() if a.is_floating_point() else a for a in args)
    attend = written_out if spelling == "written out" else sdpa
    return Model(attend, model.self_attention)(*wide)


@pytest.mark.parametrize(("spelling", "mask", "heads", "dtype"), RUNS)
def test_reference_correct(
    spelling: str, mask: str, heads: str, dtype: torch.dtype, registered: Any, torch_tensorrt: Any
) -> None:
    attend, given, same = SPELLINGS[spelling][0], MASKS[mask], HEADS[heads][2]
    model, args = Model(attend, same), arguments(given, heads, dtype, TRACED)
    module = compiled(torch_tensorrt, model, given, args, same)
    (layer,) = registered.attentions()
    assert registered.compilations() == [registered.Compilation(engines=1, torch_nodes=())]
    assert layer.key[1] == HEADS[heads][1]
    for shape in SHAPES:
        args = arguments(given, heads, dtype, shape)
        torch.testing.assert_close(
            module(*args).float(), expected(spelling, model, args), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
        )


class TestRefused:
    """What no IAttention layer can be had for: written out in the engine, or left to PyTorch, with the reason."""

    def compile(self, torch_tensorrt: Any, model: torch.nn.Module, *args: torch.Tensor) -> Any:
        program = torch.export.export(model, args, strict=False)
        return torch_tensorrt.dynamo.compile(program, arg_inputs=list(args), min_block_size=1)

    def test_reference_float64(self, registered: Any, torch_tensorrt: Any) -> None:
        x = torch.randn(2, 4, 5, 8, dtype=torch.float64)
        program = torch.export.export(Model(sdpa, True), (x, x), strict=False)
        lowered = attnlower.lower(program, target="tensorrt")
        assert "the dtype is torch.float64" in lowered.report.sites[0].reason
        torch.testing.assert_close(lowered.program.module()(x, x), sdpa(x, x, x, None))

    @pytest.mark.parametrize("width", [4, 12])
    def test_reference_values_of_another_width(self, width: int, registered: Any, torch_tensorrt: Any) -> None:
        class Model(torch.nn.Module):
            def forward(self, q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
                return F.scaled_dot_product_attention(q, q, v)

        q, v = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, width)
        module = self.compile(torch_tensorrt, Model(), q, v)
        torch.testing.assert_close(module(q, v), Model()(q, v))
        (layer,) = registered.attentions()
        assert layer.query[3] == layer.value[3] == max(8, width)

    def test_reference_rank_3(self, registered: Any, torch_tensorrt: Any) -> None:
        x = torch.randn(4, 5, 8)
        module = self.compile(
            torch_tensorrt, Model(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v), True), x, x
        )
        torch.testing.assert_close(module(x, x), F.scaled_dot_product_attention(x, x, x))
        assert len(registered.attentions()) == 1

    def test_reference_log_sum_exp_is_used(self, registered: Any, torch_tensorrt: Any) -> None:
        class Model(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                out, log_sum_exp = ATEN._scaled_dot_product_flash_attention_for_cpu(x + 1, x, x)[:2]
                return out * 2, log_sum_exp

        x = torch.randn(2, 4, 5, 8)
        module = self.compile(torch_tensorrt, Model(), x)
        for got, want in zip(module(x), Model()(x), strict=True):
            torch.testing.assert_close(got, want)
        assert registered.attentions() == []
        assert "log-sum-exp" in attnlower.last_report().sites[0].reason

    @pytest.mark.parametrize(("version", "keys", "layers"), [("10.14", 511, 1), ("10.14", 512, 0), ("11.0", 512, 1)])
    def test_reference_causal_half_precision_before_11(
        self, version: str, keys: int, layers: int, registered: Any, torch_tensorrt: Any
    ) -> None:
        class Model(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return F.scaled_dot_product_attention(x, x, x, is_causal=True)

        x = torch.randn(1, 2, keys, 8, dtype=torch.float16)
        with registered.version(version):
            module = self.compile(torch_tensorrt, Model(), x)
            assert len(registered.attentions()) == layers
            want = F.scaled_dot_product_attention(x.float(), x.float(), x.float(), is_causal=True)
            torch.testing.assert_close(module(x).float(), want, atol=5e-3, rtol=5e-3)
        reason = attnlower.last_report().sites[0].reason
        assert ("wrong before TensorRT 11.0" in reason) == (not layers)

    @pytest.mark.parametrize("version", ["10.14", "10.16", "11.0", "11.1"])
    def test_reference_lower_right(self, version: str, registered: Any, torch_tensorrt: Any) -> None:
        """By the layer's own alignment where there is one, by a mask before."""

        class Model(torch.nn.Module):
            def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
                rows = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
                return F.scaled_dot_product_attention(q, k, k, attn_mask=torch.arange(k.shape[2])[None, :] <= rows)

        q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 4, 7, 8)
        with registered.version(version):
            module = self.compile(torch_tensorrt, Model(), q, k)
            torch.testing.assert_close(module(q, k), Model()(q, k))
            (layer,) = registered.attentions()
        assert (layer.mask is None) == (version in ("11.0", "11.1"))


class TestRawSpellings:
    """The converters alone, for calls that some later pass makes anew: strict ones are taken, the others are not."""

    def test_reference_taken_only_when_strict(self, registered: Any, torch_tensorrt: Any) -> None:
        from attnlower.converters.adapters import SPELLINGS as adapted
        from attnlower.converters.adapters import validator

        by_name = {s.op: validator(s) for s in adapted}
        x = torch.randn(2, 4, 5, 8)

        def node_of(attend: Attend, *args: Any) -> torch.fx.Node:
            program = torch.export.export(Model(attend, True), (x, x, *args), strict=False)
            return next(n for n in program.graph.nodes if n.target in by_name)

        for attend in (sdpa, efficient, flash, flash_for_cpu, cudnn):
            node = node_of(attend)
            assert by_name[node.target](node), attend.__name__
        masked = node_of(sdpa, torch.ones(2, 4, 5, 5, dtype=torch.bool))
        assert not by_name[masked.target](masked)
