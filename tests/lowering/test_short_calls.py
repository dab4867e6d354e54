"""Few queries in float32 on a CPU with AVX512: flex_attention instead of PyTorch's kernels, outputs still eager's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnlower
from attnlower.lowering.banded import processor
from attnlower.lowering.plan import Plan

Model = Callable[..., Tensor]


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    positions = torch.arange(q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=positions[None, :] <= positions[:, None])


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal, with several heads of the query for one of key and value."""
    positions = torch.arange(q.shape[2])
    mask = positions[None, :] <= positions[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same, written as transformers' models do."""
    return causal(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))


def padded(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
    positions = torch.arange(q.shape[2])
    mask = (positions[None, :] <= positions[:, None])[None, None] & attention_mask[:, None, None, :].bool()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def below(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A near miss of causal: queries do not see themselves, the first sees nothing."""
    positions = torch.arange(q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=positions[None, :] < positions[:, None])


def _qkv(length: int = 300, *, kv_heads: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(2, heads, length, 16, dtype=dtype) for heads in (4, kv_heads, kv_heads)]


def _ones(length: int = 300) -> Tensor:
    return torch.ones(2, length, dtype=torch.int64)


def _padding(length: int = 300) -> Tensor:
    mask = _ones(length)
    mask[0, :40] = 0  # rows without any key
    mask[1, -length // 2 :] = 0
    return mask


def _compiled(model: Model, **options: object) -> Model:
    compiled: Model = torch.compile(model, backend="attnlower", dynamic=False, options={"strict": True, **options})
    return compiled


def _site() -> attnlower.AttentionSite:
    return attnlower.last_report().sites[0]


@pytest.fixture
def takes_flex(planned: Callable[..., Plan]) -> Callable[..., bool]:
    """Whether every call of a model would be flex_attention."""

    def ask(model: Model, inputs: list[Tensor], *, dynamic: bool = False) -> bool:
        with torch.no_grad():
            sites = planned(model, inputs, dynamic=dynamic, padding="keep").report.sites
        return all("flex_attention" in s.reason for s in sites)

    return ask


@pytest.mark.parametrize(("model", "kv_heads"), [(causal, 4), (grouped, 2), (grouped, 1), (repeated, 2)])
@pytest.mark.parametrize("length", [192, 300, 767])
def test_causal(length: int, model: Model, kv_heads: int) -> None:
    inputs = _qkv(length, kv_heads=kv_heads)
    with torch.no_grad():
        torch.testing.assert_close(_compiled(model)(*inputs), model(*inputs), atol=1e-5, rtol=1e-5)
    assert _site().action == "is_causal"
    assert "flex_attention" in _site().reason


def test_a_query_that_sees_nothing() -> None:
    inputs = _qkv()
    with torch.no_grad():
        torch.testing.assert_close(_compiled(below)(*inputs), below(*inputs), atol=1e-5, rtol=1e-5)
    assert _site().action == "banded"


@pytest.mark.parametrize("padding", ["keep", "guard"])
def test_padding(padding: str) -> None:
    compiled = _compiled(padded, padding=padding)
    with torch.no_grad():
        for mask in (_ones(), _padding(), _ones()):
            inputs = [*_qkv(), mask]
            torch.testing.assert_close(compiled(*inputs), padded(*inputs), atol=1e-5, rtol=1e-5)
    assert _site().action == ("banded" if padding == "keep" else "guarded")
    assert "flex_attention" in _site().reason


@pytest.mark.parametrize("length", [191, 768])
def test_other_lengths_have_faster_kernels(length: int, takes_flex: Callable[..., bool]) -> None:
    assert not takes_flex(causal, _qkv(length))


def test_neither_other_dtypes(takes_flex: Callable[..., bool]) -> None:
    assert takes_flex(causal, _qkv())
    assert not takes_flex(causal, _qkv(dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("vectors_of", "vendor"), [("AVX2", "AuthenticAMD"), ("DEFAULT", ""), ("AVX512", "GenuineIntel")]
)
def test_nor_other_processors(
    vectors_of: str, vendor: str, vectors: Callable[..., None], takes_flex: Callable[..., bool]
) -> None:
    vectors(vectors_of, family=26, vendor=vendor)
    assert not takes_flex(causal, _qkv())
    assert not takes_flex(padded, [*_qkv(), _padding()])


def test_nor_lengths_that_are_not_known(takes_flex: Callable[..., bool]) -> None:
    assert not takes_flex(causal, _qkv(), dynamic=True)
    assert not takes_flex(padded, [*_qkv(), _padding()], dynamic=True)


@pytest.mark.parametrize(
    ("dtype", "length", "expected"),
    [
        (torch.float32, 191, (False, False)),
        (torch.float32, 2048, (True, True)),  # with a mask by what it leaves out
        (torch.float32, 3072, (False, True)),
        (torch.bfloat16, 447, (False, False)),
        (torch.bfloat16, 512, (True, True)),
        (torch.bfloat16, 513, (False, True)),
    ],
)
def test_where_it_is_fast(
    dtype: torch.dtype,
    length: int,
    expected: tuple[bool, bool],
    vectors: Callable[..., None],
    takes_flex: Callable[..., bool],
) -> None:
    vectors("AVX512", family=26)
    inputs = _qkv(length, dtype=dtype)
    assert (takes_flex(causal, inputs), takes_flex(padded, [*inputs, _padding(length)])) == expected


@pytest.mark.parametrize(("family", "width", "expected"), [(25, 512, False), (26, 512, True), (26, 511, False)])
def test_windows_or_flex_attention(
    family: int, width: int, expected: bool, vectors: Callable[..., None], takes_flex: Callable[..., bool]
) -> None:
    vectors("AVX512", family=family)

    def window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        row, column = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])[None, :]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=(column <= row) & (column > row - width))

    assert takes_flex(window, _qkv(2048)) is expected


def test_the_family_is_read_from_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()  # the fixture that stands for any processor
    told = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "_CPUINFO", told)
    for text, expected in (
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\n\nvendor_id\t: Other\n", ("AuthenticAMD", 26)),
        ("CPU implementer\t: 0x41\nCPU architecture: 8\n", ("", 0)),
        (None, ("", 0)),
    ):
        told.unlink(missing_ok=True) if text is None else told.write_text(text)
        processor.vendor_and_family.cache_clear()
        assert processor.vendor_and_family() == expected
    processor.vendor_and_family.cache_clear()


@pytest.mark.parametrize(("calls", "expected"), [(4, True), (5, False)])
def test_every_call_is_a_kernel_to_compile(calls: int, expected: bool, takes_flex: Callable[..., bool]) -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for _ in range(calls):
            q = causal(q, k, v)
        return q

    assert takes_flex(model, _qkv()) is expected


def test_training() -> None:
    inputs = [t.requires_grad_() for t in _qkv()]
    found, expected = _compiled(causal)(*inputs), causal(*inputs)
    assert "flex_attention" not in _site().reason
    wanted = torch.autograd.grad(expected.pow(2).sum(), inputs)
    for gradient, reference in zip(torch.autograd.grad(found.pow(2).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-4, rtol=1e-4)


def test_a_way_that_is_chosen_is_kept() -> None:
    inputs = [*_qkv(), _padding()]
    with torch.no_grad():
        found = _compiled(padded, padding="keep", banded="dense")(*inputs)
        torch.testing.assert_close(found, padded(*inputs), atol=1e-5, rtol=1e-5)
    assert _site().action == "keep"
    with torch.no_grad():
        torch.testing.assert_close(_compiled(causal, banded="dense")(*inputs[:3]), causal(*inputs[:3]))
    assert _site().action == "is_causal"
    assert "flex_attention" not in _site().reason


@pytest.mark.parametrize(("length", "written"), [(300, True), (2048, False)])
def test_few_blocks_are_written_as_numbers(length: int, written: bool, planned: Callable[..., Plan]) -> None:
    """What only positions decide is not computed anew in every call where it is a handful of numbers."""
    with torch.no_grad():
        targets = {n.target for n in planned(below, _qkv(length)).general.gm.graph.nodes}
    assert (torch.tensor in targets) is written
    assert (torch.argsort in targets) is not written
