"""Read rules of views: they move coordinates about, and every move is compared with the real tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnlower.errors import CaptureError

X = torch.arange(3 * 4 * 5).reshape(3, 4, 5) * 7 % 31 - 9
OTHERS = [
    (torch.arange(8).reshape(2, 2, 2),),
    (torch.arange(6 * 3 * 7).reshape(6, 3, 7),),
    (torch.ones(1, 1, 1).long(),),
]
Check = Callable[..., Any]


@pytest.mark.parametrize(
    "fn",
    [
        pytest.param(lambda x: x.unsqueeze(0), id="unsqueeze"),
        pytest.param(lambda x: x.unsqueeze(-1), id="unsqueeze-last"),
        pytest.param(lambda x: x[:, None, :, None], id="none-index"),
        pytest.param(lambda x: x.transpose(0, 2), id="transpose"),
        pytest.param(lambda x: x.mT, id="mT"),
        pytest.param(lambda x: x.permute(2, 0, 1), id="permute"),
        pytest.param(lambda x: x.permute(-1, 0, -2), id="permute-negative"),
        pytest.param(lambda x: x.movedim(0, 2), id="movedim"),
        pytest.param(lambda x: x.swapaxes(0, 1), id="swapaxes"),
        pytest.param(lambda x: x[0].t(), id="t"),
        pytest.param(lambda x: x[0, 0].t(), id="t-of-vector"),
        pytest.param(lambda x: x.select(1, 0), id="select"),
        pytest.param(lambda x: x[:, -1], id="select-negative"),
        pytest.param(lambda x: x[:, 0:1], id="slice"),
        pytest.param(lambda x: x[..., 1:], id="slice-from"),
        pytest.param(lambda x: x[..., :-1], id="slice-negative-end"),
        pytest.param(lambda x: x[..., -1:], id="slice-negative-start"),
        pytest.param(lambda x: x[..., ::2], id="slice-step"),
        pytest.param(lambda x: x[..., 1::2], id="slice-start-step"),
        pytest.param(lambda x: x.narrow(2, 0, 1), id="narrow"),
        pytest.param(lambda x: x[0, :, None].expand(-1, 6, -1), id="expand"),
        pytest.param(lambda x: x[None].expand(4, -1, -1, -1), id="expand-lead"),
        pytest.param(lambda x: x[:, :1].expand_as(x), id="expand-as"),
        pytest.param(lambda x: x[:1].broadcast_to(x.shape), id="broadcast-to"),
        pytest.param(lambda x: x.repeat(2, 1, 3), id="repeat"),
        pytest.param(lambda x: x.repeat(2, 1, 1, 2), id="repeat-lead"),
        pytest.param(lambda x: x.tile(2), id="tile"),
        pytest.param(lambda x: x.repeat_interleave(2, dim=1), id="repeat-interleave"),
        pytest.param(lambda x: x.flip(0), id="flip"),
        pytest.param(lambda x: x.flip(0, -1), id="flip-two"),
        pytest.param(lambda x: x.reshape(-1), id="flatten-all"),
        pytest.param(lambda x: x.flatten(1), id="flatten"),
        pytest.param(lambda x: x.flatten(0, 1), id="flatten-front"),
        pytest.param(lambda x: x.reshape(x.shape[0], 1, -1), id="reshape-with-one"),
        pytest.param(lambda x: x.reshape(x.shape[0] * x.shape[1], x.shape[2]), id="reshape-join"),
        pytest.param(lambda x: x.reshape(-1).view(x.shape), id="reshape-and-back"),
        pytest.param(lambda x: x.reshape(x.shape[2], x.shape[0], x.shape[1]), id="resplit"),
        pytest.param(lambda x: x.transpose(0, 1).reshape(x.shape[0], -1), id="resplit-of-transpose"),
        pytest.param(lambda x: x.view_as(x.new_zeros(x.shape)), id="view-as"),
        pytest.param(lambda x: x.unflatten(0, (1, -1)), id="unflatten"),
        pytest.param(lambda x: x[:, None, 0:1].squeeze(1), id="squeeze"),
        pytest.param(lambda x: x[:, None, 0:1].squeeze(1).squeeze(-2), id="squeeze-twice"),
        pytest.param(lambda x: x[None, :, :, :, None].squeeze((0, 4)), id="squeeze-dims"),
        pytest.param(lambda x: torch.cat([x, x + 100], 0), id="cat"),
        pytest.param(lambda x: torch.cat([x, x + 100, x[..., :1]], -1), id="cat-three"),
        pytest.param(lambda x: torch.stack([x, x + 100, x * 2], 1), id="stack"),
        pytest.param(lambda x: torch.stack([x, -x], -1), id="stack-last"),
        pytest.param(lambda x: F.pad(x, (1, 2)), id="pad"),
        pytest.param(lambda x: F.pad(x, (0, 0, 2, 1), value=-5), id="pad-two-axes"),
        pytest.param(lambda x: F.pad(x, (-1, 3), value=9) if x.shape[2] > 1 else x, id="pad-negative"),
        pytest.param(lambda x: F.pad(x > 0, (1, 0), value=True), id="pad-bool"),
        pytest.param(lambda x: F.pad(x.float(), (1, 0), value=float("-inf")), id="pad-inf"),
        pytest.param(lambda x: x.unbind(1)[0], id="unbind"),
        pytest.param(lambda x: x.split(2, 0)[0], id="split"),
        pytest.param(lambda x: x.clone().contiguous().detach(), id="clone"),
        pytest.param(lambda x: x.float(), id="float"),
        pytest.param(lambda x: x.to(torch.bool), id="bool"),
        pytest.param(lambda x: (x > 0).to(torch.float16), id="bool-to-half"),
    ],
)
def test_views(check_read: Check, fn: Any) -> None:
    check_read(fn, X, dynamic=False)
    check_read(fn, *OTHERS[1], dynamic=True, others=[(X,)])


@pytest.mark.parametrize(
    "fn",
    [
        pytest.param(lambda x: x[:, -3:], id="slice-negative-start"),
        pytest.param(lambda x: x[:, -30:2], id="slice-before-start"),
        pytest.param(lambda x: x[:, 1:100], id="slice-past-end"),
        pytest.param(lambda x: x[:, -3:-1:2], id="slice-all"),
        pytest.param(lambda x: x.narrow(1, -3, 2), id="narrow-negative"),
        pytest.param(lambda x: x.split([1, 2, 1], 1)[1], id="split-sizes"),
        pytest.param(lambda x: x.split(3, 1)[1], id="split-rest"),
        pytest.param(lambda x: x.chunk(2, -1)[1], id="chunk"),
        pytest.param(lambda x: x.tensor_split(3, -1)[2], id="tensor-split"),
        pytest.param(lambda x: x.unbind(-1)[-1], id="unbind-last"),
        pytest.param(lambda x: x.view(3, 2, 10), id="view"),
        pytest.param(lambda x: x.view(2, 6, 5), id="view-across"),
        pytest.param(lambda x: x.view(1, 15, 1, 4, 1), id="view-with-ones"),
        pytest.param(lambda x: x.view(5, 3, 4), id="view-rotated"),
        pytest.param(lambda x: x.unflatten(1, (2, 2)), id="unflatten"),
        pytest.param(lambda x: torch.cat([x[:, :0], x], 1), id="cat-empty"),
        pytest.param(lambda x: torch.cat([torch.zeros(0), x.float()], 0), id="cat-legacy-empty"),
        pytest.param(lambda x: torch.cat([x > 0, x], 0), id="cat-promotes"),
        pytest.param(lambda x: torch.stack([x, x > 3], 0) if False else torch.stack([x, x], 0), id="stack"),
        pytest.param(lambda x: x.squeeze(), id="squeeze-nothing"),
        pytest.param(lambda x: x[:, :1, :1].squeeze(), id="squeeze-all"),
        pytest.param(lambda x: x[0, 0, 0], id="scalar"),
        pytest.param(lambda x: x[0, 0, 0].expand(2, 3), id="scalar-expand"),
        pytest.param(lambda x: F.pad(x, (2, -1, 0, 3, -1, 1), value=4), id="pad-all"),
    ],
)
def test_views_of_static_shapes(check_read: Check, fn: Any) -> None:
    check_read(fn, X, dynamic=False)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float32, torch.bfloat16])
def test_views_keep_every_dtype(check_read: Check, dtype: torch.dtype) -> None:
    x = torch.tensor([[0, 1, 2], [3, 0, 5]]).to(dtype)
    check_read(lambda a: torch.cat([a.t(), a.flip(1).t()], 1).reshape(2, -1)[:, 1:], x)


def test_a_boundary_of_a_cat_moves_with_the_sizes(check_read: Check) -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, y.flip(0)], 0)

    pairs = [(torch.arange(n), torch.arange(m) + 100) for n, m in ((1, 4), (4, 1), (3, 3), (6, 2))]
    check_read(fn, torch.arange(2), torch.arange(5), others=pairs)


def test_a_slice_that_may_end_early_is_not_read(check_opaque: Check, check_read: Check) -> None:
    """At size 1 `x[1:2]` is empty, and what is joined to it stands elsewhere."""
    check_opaque(lambda a: torch.cat([a[1:2], a]) > 0, X[0, 0], reason="ends early", dynamic=True)
    check_read(lambda a: torch.cat([a[:2], a[2:]]), X[0, 0], dynamic=True, others=[(X[0, 0, :1],), (X[0, 0, :4],)])


def test_ops_without_a_rule_are_named(check_opaque: Check) -> None:
    x = X[0]
    check_opaque(lambda a: a.cumprod(0) > 0, x, reason="no read rule for aten.cumprod", node="cumprod")
    check_opaque(lambda a: a.diagonal() > 0, x, reason="no read rule for aten.diagonal")
    check_opaque(lambda a: a.unfold(1, 2, 1) > 0, x, reason="no read rule for aten.unfold")
    check_opaque(lambda a: a.sort().values > 0, x, reason="no read rule")
    check_opaque(lambda a: torch.isin(a, torch.tensor([1, 2])), x, reason="no read rule for aten.isin")
    check_opaque(lambda a: a.view(torch.float64) > 0, x, reason="another dtype")
    check_opaque(lambda a: F.pad(a[None].float(), (1, 1), mode="reflect") > 0, x, reason="")


def test_complex_numbers_are_not_read(check_opaque: Check) -> None:
    check_opaque(lambda a: torch.view_as_real(torch.polar(a, a))[..., 0] > 0, torch.randn(4), reason="")


# --- writes, which tracing turns into values ------------------------------------------------------------------


def written(write: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    def fn(x: torch.Tensor) -> torch.Tensor:
        copy = x.clone()
        write(copy)
        return copy

    return fn


def set_at(index: Any, value: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return written(lambda m: m.__setitem__(index, value))


@pytest.mark.parametrize(
    "fn",
    [
        pytest.param(set_at((slice(None), 2), 77), id="column"),
        pytest.param(set_at((slice(None), -1), 77), id="last-column"),
        pytest.param(set_at(1, 77), id="row"),
        pytest.param(set_at((1, 2), 77), id="element"),
        pytest.param(set_at((-1, -2), 77), id="element-from-end"),
        pytest.param(set_at((slice(None), slice(1, 3)), 77), id="block"),
        pytest.param(set_at((slice(None), slice(1, None)), 77), id="block-to-end"),
        pytest.param(set_at((slice(None), slice(None, -1)), 77), id="block-but-last"),
        pytest.param(set_at((slice(None), slice(-2, None)), 77), id="last-two"),
        pytest.param(set_at((..., None, 0), 77), id="ellipsis"),
        pytest.param(written(lambda m: m[:, 1:3].fill_(5)), id="fill-view"),
        pytest.param(written(lambda m: m.t()[1].zero_() if False else m.t()[1].fill_(0)), id="fill-transposed"),
        pytest.param(written(lambda m: m.masked_fill_(m > 3, -1)), id="masked-fill"),
        pytest.param(written(lambda m: m.add_(3)), id="add"),
        pytest.param(written(lambda m: m[0].copy_(m[1])), id="copy"),
        pytest.param(written(lambda m: m[:, :2].copy_(m[:, 2:4])), id="copy-block"),
        pytest.param(written(lambda m: m.view(-1)[3:6].fill_(8)), id="through-reshape"),
        pytest.param(written(lambda m: m.__setitem__(m > 3, 0)), id="boolean-mask"),
        pytest.param(written(lambda m: m.__setitem__(m[:, 0] > 0, 0)), id="boolean-rows"),
        pytest.param(
            written(lambda m: m.index_put_((torch.tensor(1), torch.tensor(-1)), torch.tensor(9))), id="index-put"
        ),
        pytest.param(written(lambda m: (m[:, 1].fill_(3), m[:, 2].fill_(4), m[1].add_(1))), id="several"),
    ],
)
def test_writes(check_read: Check, fn: Any) -> None:
    check_read(fn, X[1], dynamic=False)
    check_read(fn, X[0], dynamic=True, others=[(torch.arange(35).reshape(5, 7) - 3,)])


@pytest.mark.parametrize("start", [0, 1, -3])
def test_writes_with_a_step(check_read: Check, start: int) -> None:
    check_read(set_at((slice(None), slice(start, None, 2)), 77), X[1], dynamic=False)


def test_a_write_that_asks_for_a_new_guard_is_refused(read: Check) -> None:
    with pytest.raises(CaptureError, match="would add a guard"):
        read(set_at((slice(None), slice(0, None, 2)), 77), X[1], dynamic=True)


# --- random programs ------------------------------------------------------------------------------------------


def step(values: list[torch.Tensor], chosen: tuple[str, int, int, int]) -> torch.Tensor:
    """One view of, or write into, one of the values so far."""
    name, which, a, b = chosen
    x = values[which % len(values)]
    d, e = a % x.dim(), b % x.dim()
    count = 1 + abs(b)
    lead = (slice(None),) * d

    def write(index: Any) -> torch.Tensor:
        copy = x.clone()
        copy[index] = b
        return copy

    table: dict[str, Callable[[], torch.Tensor]] = {
        "unsqueeze": lambda: x.unsqueeze(d),
        "squeeze": lambda: x.squeeze(d),
        "transpose": lambda: x.transpose(d, e),
        "slice": lambda: x[(*lead, slice(a, None, count))],
        "until": lambda: x[(*lead, slice(None, b))],
        "between": lambda: x[(*lead, slice(a, b))],
        "select": lambda: x.select(d, b)[None],
        "flip": lambda: x.flip(d),
        "reshape": lambda: x.reshape(-1, x.shape[d]),
        "split": lambda: x.reshape(x.shape[d], -1),
        "cat": lambda: torch.cat([x, x * 2, values[-1]], d),
        "stack": lambda: torch.stack([x, x + 1], d),
        "pad": lambda: F.pad(x, (a, b), value=a),
        "repeat": lambda: x.repeat(*[count if i == d else 1 for i in range(x.dim())]),
        "interleave": lambda: x.repeat_interleave(count, d),
        "expand": lambda: x.unsqueeze(d).expand(*[count if i == d else -1 for i in range(x.dim() + 1)]),
        "add": lambda: x + values[-1],
        "compare": lambda: (x <= values[-1]).long(),
        "tril": lambda: torch.tril(x, a),
        "triu": lambda: torch.triu(x, b),
        "index": lambda: x[torch.arange(x.shape[0]) - 1],
        "outer": lambda: x[torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])],
        "apart": lambda: x[torch.arange(2)[:, None] - 1, :, torch.arange(2)],
        "diff": lambda: x.diff(dim=d),
        "count": lambda: torch.ones_like(x).cumsum(d),
        "write-one": lambda: write((*lead, b)),
        "write-some": lambda: write((*lead, slice(a, b))),
        "write-steps": lambda: write((*lead, slice(a, None, count))),
        "write-where": lambda: write(x > a),
        "mod": lambda: x % count,
    }
    return table[name]()


STEPS = st.tuples(
    st.sampled_from(
        [
            "unsqueeze",
            "squeeze",
            "transpose",
            "slice",
            "until",
            "between",
            "select",
            "flip",
            "reshape",
            "split",
            "cat",
            "stack",
            "pad",
            "repeat",
            "interleave",
            "expand",
            "add",
            "compare",
            "tril",
            "triu",
            "index",
            "outer",
            "apart",
            "diff",
            "count",
            "write-one",
            "write-some",
            "write-steps",
            "write-where",
            "mod",
        ]
    ),
    st.integers(0, 9),
    st.integers(-3, 3),
    st.integers(-3, 3),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=1, max_size=6), st.booleans())
def test_random_programs(read: Check, steps: list[tuple[str, int, int, int]], dynamic: bool) -> None:
    inputs = (torch.randint(-5, 6, (3, 4)), torch.randint(-5, 6, (4,)))
    possible: list[tuple[str, int, int, int]] = []

    def fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        values = [x, y, torch.arange(x.shape[1]), torch.arange(x.shape[0])[:, None]]
        for chosen in possible:
            values.append(step(values, chosen))
        return values[-1]

    for chosen in steps:
        possible.append(chosen)
        try:
            usable = 0 < fn(*inputs).numel() < 2000
        except (RuntimeError, IndexError):  # no such axis, index or shape
            usable = False
        if not usable:
            possible.pop()
    actual = fn(*inputs)
    try:
        reading = read(fn, *inputs, dynamic=dynamic)
    except CaptureError as error:
        assert "would add a guard" in str(error)
        return
    if not reading.opaque:
        assert torch.equal(reading.evaluate(inputs, actual.shape).long(), actual.long()), reading.expr


class TestSqueezeOfADynamicAxis:
    """At size 1 it drops the axis, whatever tracing took the size for."""

    class Squeezed(torch.nn.Module):
        def __init__(self, dim: int | None) -> None:
            super().__init__()
            self.dim = dim

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            mask = mask.squeeze() if self.dim is None else mask.squeeze(self.dim)
            return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    def program(self, dim: int | None, least: int = 1) -> torch.export.ExportedProgram:
        length = torch.export.Dim("length", min=least, max=64)
        args = (torch.randn(2, 3, 6, 8), torch.rand(6, 6) > 0.3)
        return torch.export.export(
            self.Squeezed(dim), args, dynamic_shapes=({2: length}, {0: length, 1: length}), strict=False
        )

    @pytest.mark.parametrize("dim", [0, -1, None])
    def test_is_not_read(self, dim: int | None) -> None:
        import attnlower

        (site,) = attnlower.explain(self.program(dim)).sites
        assert site.verdict == "unknown"
        assert "its size is 1 at run time" in site.reason

    def test_is_read_where_the_size_cannot_be_one(self) -> None:
        import attnlower

        (site,) = attnlower.explain(self.program(-1, least=3)).sites
        assert "run time" not in site.reason
        assert "mask[q, k]" in site.formula
