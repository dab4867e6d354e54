"""Windows and chunks while nothing is padded: their masks read no input then, and outputs are eager's either way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnlower
from attnlower.lowering.plan import Plan

S = 1024
LEAST = torch.finfo(torch.float32).min
Model = Callable[..., Tensor]
Planned = Callable[..., Plan]


def _grid(q: Tensor) -> tuple[Tensor, Tensor]:
    positions = torch.arange(q.shape[2])
    return positions[:, None], positions[None, :]


def _window(q: Tensor) -> Tensor:
    row, column = _grid(q)
    return ((column <= row) & (column > row - 100))[None, None]


def window(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
    """Causal, 100 keys wide, with padding."""
    mask = _window(q) & attention_mask[:, None, None, :].bool()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def of_one(x: Tensor, attention_mask: Tensor) -> Tensor:
    """The same of one tensor, so that there is one length."""
    return window(x, x, x, attention_mask)


def both_ways(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
    """As encoders have it: 50 keys on either side, with padding."""
    row, column = _grid(q)
    mask = ((column - row).abs() <= 50)[None, None] & attention_mask[:, None, None, :].bool()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def least_values(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
    """Blocked by the least number: a query whose keys are all padded takes the mean of all values."""
    mask = torch.where(_window(q) & attention_mask[:, None, None, :].bool(), 0.0, LEAST)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def by_ids(q: Tensor, k: Tensor, v: Tensor, input_ids: Tensor) -> Tensor:
    """Padding is what has the id 7."""
    mask = _window(q) & (input_ids != 7)[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def packed(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    """A window in documents: that there is only one is nothing to ask at every call."""
    mask = _window(q) & (documents[:, None, :, None] == documents[:, None, None, :])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def either(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
    """A window, and all that is not padded besides: everything, while nothing is."""
    mask = _window(q) | attention_mask[:, None, None, :].bool()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def of_queries(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
    """A window as wide as a number in the mask says, beside its padding."""
    row, column = _grid(q)
    near = (column <= row)[None, None] & (column[None, None] > row - attention_mask[:, None, :, None])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=near & attention_mask[:, None, None, :].bool())


def _qkv(length: int = S) -> list[Tensor]:
    return [torch.randn(2, 2, length, 16) for _ in range(3)]


def _ones(length: int = S) -> Tensor:
    return torch.ones(2, length, dtype=torch.int64)


def _padding(length: int = S) -> Tensor:
    mask = _ones(length)
    mask[0, : length // 3] = 0  # rows without any key
    mask[1, -length // 4 :] = 0
    return mask


def _of_any_length(inputs: list[Tensor]) -> list[Tensor]:
    for tensor in inputs:
        torch._dynamo.mark_dynamic(tensor, 2 if tensor.dim() == 4 else 1)
    return inputs


def _compiled(model: Model, **options: object) -> Model:
    compiled: Model = torch.compile(model, backend="attnlower", options={"strict": True, **options})
    return compiled


def _reads(program: torch.fx.GraphModule, name: str) -> bool:
    """True if a graph uses an input, for more than its size."""
    return any(name in n.name and any(u.target != "size" for u in n.users) for n in program.graph.nodes)


def _conditions(plan: Plan) -> list[str]:
    return [str(c) for c in plan.conditions]


@pytest.mark.parametrize("first", ["unpadded", "padded"])
@pytest.mark.parametrize("way", ["auto", "flex", "local"])
@pytest.mark.parametrize("model", [window, both_ways])
def test_outputs(model: Model, way: str, first: str) -> None:
    masks = [_ones(), _padding(), _ones(), _padding()]
    compiled = _compiled(model, banded=way)
    with torch.no_grad():
        for mask in masks if first == "unpadded" else masks[1:]:
            inputs = [*_qkv(), mask]
            torch.testing.assert_close(compiled(*inputs), model(*inputs), atol=1e-5, rtol=1e-5)
    (site,) = attnlower.last_report().sites
    assert (site.action, site.conditions) == ("banded", ("attention_mask.all()",))
    assert "whenever attention_mask.all()" in site.reason


@pytest.mark.parametrize("way", ["flex", "local"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_nothing_is_read_while_nothing_is_padded(way: str, dynamic: bool, planned: Planned) -> None:
    inputs = [_qkv()[0], _padding()]
    with torch.no_grad():
        plan = planned(of_one, _of_any_length(inputs) if dynamic else inputs, banded=way, dynamic=None)
    assert plan.guarded is not None
    assert not _reads(plan.guarded.gm, "attention_mask")
    assert _reads(plan.general.gm, "attention_mask")


@pytest.mark.parametrize("way", ["flex", "local"])
def test_lengths_that_are_not_known(way: str) -> None:
    compiled = _compiled(of_one, banded=way)
    with torch.no_grad():
        for length in (S, 700, 130):
            for mask in (_ones(length), _padding(length)):
                inputs = _of_any_length([_qkv(length)[0], mask])
                torch.testing.assert_close(compiled(*inputs), of_one(*inputs), atol=1e-5, rtol=1e-5)
    (site,) = attnlower.last_report().sites
    assert (site.action, site.conditions) == ("banded", ("attention_mask.all()",))


def test_the_condition_is_the_masks_own(planned: Planned) -> None:
    ids = torch.arange(S)[None].repeat(2, 1) + 8
    compiled = _compiled(by_ids)
    with torch.no_grad():
        assert _conditions(planned(by_ids, [*_qkv(), ids])) == ["(input_ids != 7).all()"]
        for mask in (ids, ids - 8, ids * 0):
            inputs = [*_qkv(), mask]
            torch.testing.assert_close(compiled(*inputs), by_ids(*inputs), atol=1e-5, rtol=1e-5)


def test_a_mask_with_finite_values_is_computed_by_blocks_where_no_query_is_without_keys() -> None:
    """With padding the mean of all values is due somewhere, which blocks do not give."""
    compiled = _compiled(least_values)
    with torch.no_grad():
        for mask in (_ones(), _padding()):
            inputs = [*_qkv(), mask]
            torch.testing.assert_close(compiled(*inputs), least_values(*inputs), atol=1e-5, rtol=1e-5)
            (site,) = attnlower.last_report().sites
            assert site.conditions == ("attention_mask.all()",)
    with torch.no_grad():
        _compiled(least_values, padding="keep")(*inputs)
    (site,) = attnlower.last_report().sites
    assert (site.action, site.conditions) == ("keep", ())
    assert "a query may have no key at all" in site.reason


@pytest.mark.parametrize(
    ("model", "data", "conditions"),
    [
        (packed, _ones(), []),
        (either, _ones(), ["attention_mask.all()"]),  # full then, which is found elsewhere
        (of_queries, _ones(), []),
        (of_queries, _ones() * 100, []),
    ],
    ids=["documents", "or", "width of ones", "width of hundreds"],
)
def test_near_misses(model: Model, data: Tensor, conditions: list[str], planned: Planned) -> None:
    """Masks that are no window with padding beside it: nothing is checked on that account."""
    with torch.no_grad():
        plan = planned(model, [*_qkv(), data])
        assert _conditions(plan) == conditions
        assert not any(s.action == "banded" and s.conditions for s in plan.report.sites)
        compiled = _compiled(model)
        for other in (data, _padding(), data * 3):
            inputs = [*_qkv(), other]
            torch.testing.assert_close(compiled(*inputs), model(*inputs), atol=1e-5, rtol=1e-5)


def test_no_check_where_padding_is_kept(planned: Planned) -> None:
    with torch.no_grad():
        plan = planned(window, [*_qkv(), _ones()], padding="keep")
    assert (plan.guarded, plan.conditions) == (None, ())
    assert plan.report.sites[0].action == "banded"


def test_no_check_where_nothing_comes_of_it(planned: Planned) -> None:
    """Short calls, masks that stay, and calls with an obstacle that shows when they are rewritten."""

    def dropping(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
        mask = _window(q) & attention_mask[:, None, None, :].bool()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.5)

    with torch.no_grad():
        for model, length, way in (
            (window, 180, "auto"),
            (window, S, "dense"),
            (dropping, S, "auto"),
            (dropping, S, "flex"),
            (dropping, S, "local"),
        ):
            plan = planned(model, [*_qkv(length), _ones(length)], banded=way)
            assert (plan.guarded, plan.conditions) == (None, ())


@pytest.mark.parametrize("way", ["auto", "flex", "local"])
@pytest.mark.parametrize("before", [True, False])
def test_an_input_that_is_written_to(before: bool, way: str) -> None:
    """Checked is what the call is given: no word about a mask that is made after a write."""

    def written(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
        if before:
            attention_mask[:, :100] = 0
        mask = _window(q) & attention_mask[:, None, None, :].bool()
        if not before:
            attention_mask[:, :100] = 0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    compiled = _compiled(written, banded=way)
    with torch.no_grad():
        for mask in (_ones(), _padding()):
            inputs = _qkv()
            found = compiled(*inputs, mask.clone())
            torch.testing.assert_close(found, written(*inputs, mask.clone()), atol=1e-5, rtol=1e-5)
            (site,) = attnlower.last_report().sites
            assert site.conditions == (() if before else ("attention_mask.all()",))


@pytest.mark.parametrize("family", [25, 26])
def test_all_layers_are_computed_in_one_way(family: int, planned: Planned, vectors: Callable[..., None]) -> None:
    """flex_attention is a kernel of its own for each call: it is for models of few layers, not for the first few."""
    vectors("AVX512", family=family)

    def layers(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor, count: int) -> Tensor:
        row, column = _grid(q)
        mask = ((column <= row) & (column // 256 == row // 256))[None, None] & attention_mask[:, None, None, :].bool()
        for _ in range(count):
            q = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return q

    with torch.no_grad():
        for count, flex in ((2, family == 26), (6, False)):
            plan = planned(layers, [*_qkv(2048), _ones(2048), count])
            assert _conditions(plan) == ["attention_mask.all()"]
            assert {"flex_attention" in s.reason for s in plan.report.sites} == {flex}


@pytest.mark.parametrize("target", ["eager", "inductor", "tensorrt", "executorch"])
def test_exported_programs_are_told(target: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
            return window(q, k, v, attention_mask)

    inputs = (*_qkv(), _ones())
    program = torch.export.export(Model(), inputs, strict=False)
    told = attnlower.lower(program, target=target, assume="attention_mask.all()")
    (site,), (before,) = told.report.sites, attnlower.lower(program, target=target).report.sites
    assert site.action == before.action
    assert site.conditions == (("attention_mask.all()",) if site.action == "banded" else ())
    assert _reads(told.program.graph_module, "attention_mask") is (site.action != "banded")
    with torch.no_grad():
        torch.testing.assert_close(told.program.module()(*inputs), window(*inputs), atol=1e-5, rtol=1e-5)
