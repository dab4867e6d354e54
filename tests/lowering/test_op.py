"""attnlower::attention: a well-behaved custom op that computes what scaled_dot_product_attention computes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import attnlower  # registers the op
from attnlower.lowering.op import reference_attention

assert attnlower
attention = torch.ops.attnlower.attention.default


def qkv(
    queries: int = 5,
    keys: int = 7,
    heads: int = 4,
    key_heads: int = 4,
    width: int = 8,
    value_width: int = 6,
    **how: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shapes = ((2, heads, queries, width), (2, key_heads, keys, width), (2, key_heads, keys, value_width))
    q, k, v = (torch.randn(s, **how) for s in shapes)
    return q, k, v


def triangle(queries: int, keys: int, offset: int = 0) -> torch.Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril(offset)


MASK = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(0)) < 0.6
BIAS = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(1))

SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "mask": ({"mask": MASK}, {"attn_mask": MASK}),
    "mask of one row": ({"mask": MASK[:, :, :1]}, {"attn_mask": MASK[:, :, :1]}),
    "bias": ({"bias": BIAS}, {"attn_mask": BIAS}),
    "mask and bias": (
        {"mask": MASK, "bias": BIAS},
        {"attn_mask": BIAS.expand(2, 4, 5, 7).masked_fill(~MASK, float("-inf"))},
    ),
    "upper left": ({"alignment": "upper_left"}, {"is_causal": True}),
    "lower right": ({"alignment": "lower_right"}, {"attn_mask": triangle(5, 7, 2)}),
    "mask and alignment": (
        {"mask": MASK, "alignment": "upper_left"},
        {"attn_mask": MASK & triangle(5, 7)},
    ),
    "bias and alignment": (
        {"bias": BIAS, "alignment": "lower_right"},
        {"attn_mask": BIAS.masked_fill(~triangle(5, 7, 2), float("-inf"))},
    ),
    "scale": ({"scale": 0.2}, {"scale": 0.2}),
    "scale of one": ({"scale": 1.0}, {"scale": 1.0}),
}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_equals_sdpa(name: str, same: Any) -> None:
    given, expected = SETTINGS[name]
    q, k, v = qkv()
    result = attention(q, k, v, **given)
    assert result.shape == (2, 4, 5, 6)
    same(result, F.scaled_dot_product_attention(q, k, v, **expected))
    same(reference_attention(q, k, v, **given), result)


@pytest.mark.parametrize("name", ["plain", "mask", "upper left", "scale"])
def test_grouped_heads(name: str, same: Any) -> None:
    given, expected = SETTINGS[name]
    for key_heads in (1, 2, 4):
        q, k, v = qkv(key_heads=key_heads)
        result = attention(q, k, v, enable_gqa=True, **given)
        same(result, F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **expected))


@pytest.mark.parametrize("name", ["plain", "upper left", "lower right", "scale"])
def test_rank_3(name: str, same: Any) -> None:
    given, expected = SETTINGS[name]
    q, k, v = (t[:, 0] for t in qkv())
    same(attention(q, k, v, **given), F.scaled_dot_product_attention(q, k, v, **expected))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["plain", "mask", "lower right"])
def test_other_dtypes(name: str, dtype: torch.dtype, same: Any) -> None:
    given, expected = SETTINGS[name]
    q, k, v = qkv(dtype=dtype)
    result = attention(q, k, v, **given)
    assert result.dtype is dtype
    same(result, F.scaled_dot_product_attention(q, k, v, **expected), 1e-9 if dtype is torch.float64 else 3e-2)


class TestRowsWithoutAnyKey:
    """Zeros where nothing is allowed, the mean of the values where everything is finfo.min: as SDPA has it."""

    def test_boolean(self, same: Any) -> None:
        q, k, v = qkv()
        mask = MASK.clone()
        mask[1, :, 2] = False
        result = attention(q, k, v, mask=mask)
        assert bool((result[1, :, 2] == 0).all())
        same(result, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    @pytest.mark.parametrize("value", [float("-inf"), torch.finfo(torch.float32).min])
    def test_additive(self, value: float, same: Any) -> None:
        q, k, v = qkv()
        bias = torch.zeros(5, 7)
        bias[3] = value
        result = attention(q, k, v, bias=bias)
        same(result[:, :, 3], torch.zeros(2, 4, 6) if value == float("-inf") else v.mean(2))
        same(result, F.scaled_dot_product_attention(q, k, v, attn_mask=bias))

    def test_finfo_min_of_a_wider_dtype_is_no_infinity(self, same: Any) -> None:
        """float32's finfo.min would be -inf in bfloat16, and the mean would become zeros."""
        q, k, v = qkv(dtype=torch.bfloat16)
        bias = torch.full((5, 7), torch.finfo(torch.float32).min)
        expected = v.mean(2, keepdim=True).expand(2, 4, 5, 6)
        same(attention(q, k, v, bias=bias), expected, 3e-2)
        same(F.scaled_dot_product_attention(q, k, v, attn_mask=bias), expected, 3e-2)

    def test_more_queries_than_keys(self, same: Any) -> None:
        """lower_right then leaves the first queries without any key."""
        q, k, v = qkv(queries=7, keys=4)
        result = attention(q, k, v, alignment="lower_right")
        assert bool((result[:, :, :3] == 0).all())
        same(result[:, :, 3:], attention(q[:, :, 3:], k, v, alignment="upper_left"))


def test_one_key_gives_no_view_of_the_value() -> None:
    q, k, v = qkv(queries=1, keys=1)
    result = attention(q, k, v)
    assert result.untyped_storage().data_ptr() != v.untyped_storage().data_ptr()
    torch.testing.assert_close(result, v)


def test_dropout_draws_as_sdpa_does() -> None:
    """Not the same numbers on every device, but the same distribution: some weights gone, the others scaled up."""
    q, k, v = qkv(keys=64)
    torch.manual_seed(0)
    dropped = attention(q, k, torch.ones_like(v), dropout_p=0.5)
    assert not torch.allclose(dropped, torch.ones_like(dropped))
    assert abs(float(dropped.mean()) - 1.0) < 0.1


def test_unknown_alignment() -> None:
    with pytest.raises(attnlower.LegalizeError, match=r"'sideways'.*upper_left"):
        attention(*qkv(), alignment="sideways")


@pytest.mark.parametrize("name", ["plain", "mask", "bias", "lower right"])
def test_opcheck(name: str) -> None:
    given, _ = SETTINGS[name]
    q, k, v = (t.requires_grad_() for t in qkv())
    torch.library.opcheck(attention, (q, k, v), given)


def test_opcheck_of_a_learned_bias_and_grouped_heads() -> None:
    q, k, v = (t.requires_grad_() for t in qkv(key_heads=2))
    given = {"bias": BIAS.clone().requires_grad_(), "mask": MASK, "enable_gqa": True, "scale": 0.3}
    torch.library.opcheck(attention, (q, k, v), given)


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("key_heads", [4, 2])
def test_gradients_equal_sdpa(name: str, key_heads: int, same: Any) -> None:
    given, expected = SETTINGS[name]
    tensors = [t.requires_grad_() for t in qkv(key_heads=key_heads)]
    weight = torch.randn(2, 4, 5, 6)
    grouped = key_heads != 4
    ours = torch.autograd.grad((attention(*tensors, enable_gqa=grouped, **given) * weight).sum(), tensors)
    theirs = F.scaled_dot_product_attention(*tensors, enable_gqa=grouped, **expected)
    same(ours, torch.autograd.grad((theirs * weight).sum(), tensors))


@pytest.mark.parametrize("shape", [(4, 5, 7), (5, 7), (1, 4, 1, 7), (2, 1, 5, 7)])
def test_gradient_of_a_bias_that_broadcasts(shape: tuple[int, ...], same: Any) -> None:
    q, k, v = qkv()
    bias = torch.randn(shape, requires_grad=True)
    (ours,) = torch.autograd.grad(attention(q, k, v, bias=bias, mask=MASK).sum(), bias)
    blocked = torch.where(MASK, bias, float("-inf"))
    (theirs,) = torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, attn_mask=blocked).sum(), bias)
    same(ours, theirs)


def test_gradients_of_rows_without_any_key_are_finite(same: Any) -> None:
    tensors = [t.requires_grad_() for t in qkv()]
    mask = MASK.clone()
    mask[0, :, 1] = False
    ours = torch.autograd.grad(attention(*tensors, mask=mask).sum(), tensors)
    assert all(bool(g.isfinite().all()) for g in ours)
    same(ours, torch.autograd.grad(F.scaled_dot_product_attention(*tensors, attn_mask=mask).sum(), tensors))


def test_no_gradient_through_dropout() -> None:
    q, k, v = (t.requires_grad_() for t in qkv())
    with pytest.raises(attnlower.LegalizeError, match="dropout"):
        attention(q, k, v, dropout_p=0.5).sum().backward()


def test_fake_kernel_says_what_the_real_one_gives() -> None:
    for (given, _), dtype in itertools.product(SETTINGS.values(), (torch.float32, torch.bfloat16)):
        tensors = qkv(dtype=dtype)
        real = attention(*tensors, **given)
        mode = FakeTensorMode()
        fake_given = {n: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for n, v in given.items()}
        fake = attention(*(mode.from_tensor(t) for t in tensors), **fake_given)
        assert (fake.shape, fake.dtype, fake.stride(), fake.device) == (
            real.shape,
            real.dtype,
            real.stride(),
            real.device,
        )


def test_fake_kernel_with_symbolic_shapes_adds_no_guard() -> None:
    gm = make_fx(lambda q, k, v: attention(q, k, v, alignment="lower_right"), tracing_mode="symbolic")(*qkv())
    (call,) = (n for n in gm.graph.nodes if n.target is attention)
    q, _, v = (n.meta["val"] for n in gm.graph.nodes if n.op == "placeholder")
    shape = call.meta["val"].shape
    assert [str(s) for s in shape] == [str(s) for s in (*q.shape[:-1], v.shape[-1])]
    env: ShapeEnv = q.fake_mode.shape_env
    assert not env.guards


def test_compiles_with_gradients(same: Any) -> None:
    """Through AOTAutograd, as the op of a graph that was never legalised."""
    tensors = [t.requires_grad_() for t in qkv()]

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention(q, k, v, mask=MASK, scale=0.3)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    same(compiled(*tensors), run(*tensors))
    ours = torch.autograd.grad(compiled(*tensors).sum(), tensors)
    same(ours, torch.autograd.grad(run(*tensors).sum(), tensors))
