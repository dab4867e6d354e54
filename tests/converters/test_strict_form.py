"""Calls far from what IAttention takes, through torch_tensorrt on the reference TensorRT.

Every op that the passes of the strict form put into a graph is taken by torch_tensorrt's converters: one engine,
nothing left to PyTorch, as an attention layer or written out.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.export import Dim

import attnlower

assert attnlower
Axes = tuple[str | int, ...]
TRACED = {"b": 2, "q": 5, "k": 7}
OTHERS = ({"b": 1, "q": 1, "k": 4}, {"b": 3, "q": 6, "k": 3}, {"b": 1, "q": 8, "k": 8})
NEG = float("-inf")

SELF: dict[str, Axes] = {"query": ("b", 4, "q", 8), "key": ("b", 4, "k", 8), "value": ("b", 4, "k", 8)}


def operands(*lead: str | int, width: int = 8, value_width: int = 8, key_heads: int | None = None) -> dict[str, Axes]:
    own = lead if key_heads is None else (*lead[:-1], key_heads)
    return {"query": (*lead, "q", width), "key": (*own, "k", width), "value": (*own, "k", value_width)}


CALLS: dict[str, tuple[dict[str, Axes], dict[str, Any]]] = {
    "mask and bias": ({**SELF, "mask": ("b", 1, 1, "k"), "bias": (4, "q", "k")}, {}),
    "mask and upper left": ({**SELF, "mask": ("b", 1, 1, "k")}, {"alignment": "upper_left"}),
    "mask and lower right": ({**SELF, "mask": ("b", 1, 1, "k")}, {"alignment": "lower_right"}),
    "bias and lower right": ({**SELF, "bias": (4, "q", "k")}, {"alignment": "lower_right", "scale": 0.5}),
    "all three": ({**SELF, "mask": ("k",), "bias": ("b", 1, "q", 1)}, {"alignment": "upper_left"}),
    "lower right": (SELF, {"alignment": "lower_right"}),
    "upper left": (SELF, {"alignment": "upper_left"}),
    "NaN rows": ({**SELF, "mask": ("b", 1, "q", "k")}, {"empty_rows": "nan"}),
    "rank 2": ({**operands(), "mask": ("q", "k")}, {}),
    "rank 3": ({**operands("b"), "mask": ("b", 1, "k")}, {}),
    "rank 3 grouped": ({**operands(6, key_heads=2), "bias": (6, "q", "k")}, {"enable_gqa": True}),
    "rank 5": ({**operands("b", 2, 3), "mask": ("b", 1, 1, 1, "k")}, {}),
    "rank 5, a mask for all": ({**operands("b", 2, 3), "mask": ("q", "k")}, {"alignment": "upper_left"}),
    "wide values": ({**operands("b", 4, value_width=12), "mask": ("b", 1, 1, "k")}, {}),
    "narrow values": ({**operands("b", 4, value_width=4), "bias": ("b", 1, 1, "k")}, {}),
    "grouped": ({**operands("b", 6, key_heads=2), "mask": ("b", 1, 1, "k")}, {"enable_gqa": True}),
    "one head for all": ({**SELF, "key": ("b", 1, "k", 8), "value": ("b", 1, "k", 8), "bias": (4, "q", "k")}, {}),
    "keys without a batch": ({**SELF, "key": (4, "k", 8), "value": (1, 4, "k", 8), "mask": ("b", 1, 1, "k")}, {}),
}


class Attend(torch.nn.Module):
    def __init__(self, names: tuple[str, ...], settings: dict[str, Any]) -> None:
        super().__init__()
        self.names, self.settings = names, settings

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        args = dict(zip(self.names, tensors, strict=True))
        return torch.ops.attnlower.attention(**args, **self.settings) + 1


def tensors(shapes: dict[str, Axes], sizes: dict[str, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Random inputs; masks have rows without any key."""
    made = []
    for name, axes in shapes.items():
        shape = [sizes[a] if isinstance(a, str) else a for a in axes]
        value = torch.randn(shape)
        if name == "mask":
            made.append(value > 0.2)
        elif name == "bias":
            made.append(value.masked_fill(torch.rand(shape) < 0.4, NEG).to(dtype))
        else:
            made.append(value.to(dtype))
    return tuple(made)


def compiled(torch_tensorrt: Any, model: Attend, shapes: dict[str, Axes], dtype: torch.dtype, **options: Any) -> Any:
    letters = {a for axes in shapes.values() for a in axes if isinstance(a, str)}
    dims = {letter: Dim(letter, min=1, max=16) for letter in letters}
    spec = tuple({i: dims[a] for i, a in enumerate(axes) if isinstance(a, str)} for axes in shapes.values())
    args = tensors(shapes, TRACED, dtype)
    program = torch.export.export(model, args, dynamic_shapes=(spec,), strict=False)
    inputs = []
    for tensor, axes in zip(args, shapes.values(), strict=True):
        low = tuple(1 if isinstance(a, str) else a for a in axes)
        high = tuple(16 if isinstance(a, str) else a for a in axes)
        inputs.append(
            torch_tensorrt.Input(min_shape=low, opt_shape=tuple(tensor.shape), max_shape=high, dtype=tensor.dtype)
        )
    return torch_tensorrt.dynamo.compile(program, arg_inputs=inputs, min_block_size=1, **options)


@pytest.mark.parametrize(
    ("dtype", "decompose"), [(torch.float32, False), (torch.float16, True)], ids=["layer", "written out in half"]
)
@pytest.mark.parametrize("name", CALLS)
def test_reference_one_engine(
    name: str, dtype: torch.dtype, decompose: bool, registered: Any, torch_tensorrt: Any
) -> None:
    shapes, settings = CALLS[name]
    model = Attend(tuple(shapes), settings)
    module = compiled(torch_tensorrt, model, shapes, dtype, decompose_attention=decompose)
    assert registered.compilations() == [registered.Compilation(engines=1, torch_nodes=())]
    assert len(registered.attentions()) == (0 if decompose else 1)
    close = 1e-5 if dtype is torch.float32 else 5e-3
    for seed, sizes in enumerate(OTHERS):
        torch.manual_seed(seed)
        args = tensors(shapes, sizes, dtype)
        torch.testing.assert_close(module(*args), model(*args), atol=close, rtol=close, equal_nan=True)


class WideBias(torch.nn.Module):
    def forward(self, query: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=bias)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_reference_a_wider_bias_is_added_as_it_is(half: torch.dtype, registered: Any, torch_tensorrt: Any) -> None:
    query, bias = torch.randn(2, 4, 5, 8, dtype=half), torch.randn(2, 1, 5, 5) * 3 + 1000
    program = torch.export.export(WideBias(), (query, bias), strict=False)
    module = torch_tensorrt.dynamo.compile(program, arg_inputs=[query, bias], min_block_size=1)
    assert registered.compilations() == [registered.Compilation(engines=1, torch_nodes=())]
    assert registered.attentions() == []
    torch.testing.assert_close(module(query, bias), WideBias()(query, bias), atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("name", ["rank 5", "rank 3 grouped", "one head for all", "wide values"])
def test_reference_with_weak_shape_inference(name: str, registered: Any, torch_tensorrt: Any) -> None:
    """The static sizes that a layer needs are said wherever a shape is made."""
    shapes, settings = CALLS[name]
    model = Attend(tuple(shapes), settings)
    with registered.weak_shape_inference():
        module = compiled(torch_tensorrt, model, shapes, torch.float32)
        assert len(registered.attentions()) == 1
        args = tensors(shapes, OTHERS[1], torch.float32)
        torch.testing.assert_close(module(*args), model(*args), atol=1e-5, rtol=1e-5)
