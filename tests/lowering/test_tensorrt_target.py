"""Target "tensorrt": every call becomes canonical, with the meaning it had; run by the op's own reference kernel."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

import attnlower
from attnlower.lowering.targets.iattention import iattention_support
from attnlower.lowering.targets.tensorrt import tensorrt_target
from attnlower.patterns import Alignment
from attnlower.patterns.calls.canonical import canonical_arguments, is_canonical

NEG = float("-inf")
MIN = torch.finfo(torch.float32).min


def export(model: torch.nn.Module, *args: torch.Tensor, dynamic: bool = True) -> torch.export.ExportedProgram:
    batch, length = Dim("batch"), Dim("length")
    shapes = tuple({0: batch, 2 if a.dim() == 4 else 1: length} for a in args) if dynamic else None
    return torch.export.export(model, args, dynamic_shapes=shapes, strict=False)


def canonical(gm: fx.GraphModule) -> list[dict[str, Any]]:
    return [canonical_arguments(n) for n in gm.graph.nodes if is_canonical(n)]


def written_out(x: torch.Tensor, act: Any) -> torch.Tensor:
    return torch.softmax(act(x @ x.transpose(-2, -1) * 0.25), -1) @ x


def shifted(x: torch.Tensor, width: int) -> torch.Tensor:
    """Blocked where the key is at least `width` before the query; rows 0.. are never empty."""
    index = torch.arange(x.shape[2], device=x.device)
    return index[None, :] <= index[:, None] - width


class TestWrittenOut:
    """Masks of attention written out act as they do there, rows without any key included."""

    @pytest.mark.parametrize("dynamic", [False, True])
    @pytest.mark.parametrize(
        "act",
        [
            lambda s, m: s + torch.where(m, MIN, 0.0),
            lambda s, m: s + torch.where(m, NEG, 0.0),
            lambda s, m: s.masked_fill(m, NEG),
            lambda s, m: s.masked_fill(m, MIN),
            lambda s, m: torch.where(~m, s, NEG),
            lambda s, m: torch.where(m, MIN, s),
            lambda s, m: (s + 0.5 * m).masked_fill(m, MIN),
            lambda s, m: s.masked_fill(m, NEG) + 2.0 * m,
            lambda s, m: s.masked_fill(m, NEG).masked_fill(m.transpose(-2, -1), NEG),
            lambda s, m: s.masked_fill(m, NEG).masked_fill(m.transpose(-2, -1), MIN),
            lambda s, m: s + torch.where(m, MIN, 0.0) + torch.where(m.transpose(-2, -1), MIN, 0.0),
        ],
    )
    def test_equal_to_eager(self, act: Any, dynamic: bool) -> None:
        class Model(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return written_out(x, lambda scores: act(scores, shifted(x, 3)))

        x = torch.randn(2, 3, 7, 8)
        lowered = attnlower.lower(export(Model(), x, dynamic=dynamic), target="tensorrt")
        assert len(canonical(lowered.program.graph_module)) == 1
        for length in (7, 5, 1) if dynamic else (7,):
            given = torch.randn(2, 3, length, 8)
            torch.testing.assert_close(lowered.program.module()(given), Model()(given), equal_nan=True)

    @pytest.mark.parametrize("fill", [NEG, MIN])
    def test_an_empty_row(self, fill: float) -> None:
        """-inf everywhere gives NaN, finfo.min everywhere the plain mean; both as in eager."""

        class Model(torch.nn.Module):
            def forward(self, x: torch.Tensor, blocked: torch.Tensor) -> torch.Tensor:
                return written_out(x, lambda scores: scores.masked_fill(blocked[:, None, None, :], fill))

        x, blocked = torch.randn(2, 3, 7, 8), torch.zeros(2, 7, dtype=torch.bool)
        blocked[1] = True
        lowered = attnlower.lower(export(Model(), x, blocked), target="tensorrt")
        (call,) = canonical(lowered.program.graph_module)
        want = Model()(x, blocked)
        assert bool(want[1].isnan().all()) == (fill == NEG)
        torch.testing.assert_close(lowered.program.module()(x, blocked), want, equal_nan=True)
        assert (call.get("mask") is None) == (fill == MIN)

    def test_zeros_stay_zeros_in_sdpa(self) -> None:
        class Model(torch.nn.Module):
            def forward(self, x: torch.Tensor, blocked: torch.Tensor) -> torch.Tensor:
                return F.scaled_dot_product_attention(x, x, x, attn_mask=~blocked[:, None, None, :])

        x, blocked = torch.randn(2, 3, 7, 8), torch.zeros(2, 7, dtype=torch.bool)
        blocked[1] = True
        lowered = attnlower.lower(export(Model(), x, blocked), target="tensorrt")
        result = lowered.program.module()(x, blocked)
        assert (result[1] == 0).all()
        torch.testing.assert_close(result, Model()(x, blocked))

    def test_float16_fills_are_refused(self) -> None:
        class Model(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return written_out(x, lambda s: s.masked_fill(shifted(x, 1), torch.finfo(torch.float16).min))

        x = torch.randn(2, 2, 5, 8, dtype=torch.float16)
        lowered = attnlower.lower(export(Model(), x), target="tensorrt")
        assert not canonical(lowered.program.graph_module)
        assert "not negligible" in lowered.report.sites[0].reason
        torch.testing.assert_close(lowered.program.module()(x), Model()(x), equal_nan=True)

    def test_other_targets_leave_it(self) -> None:
        class Model(torch.nn.Module):
            def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
                return written_out(x, lambda scores: scores + bias[:, None])

        x, bias = torch.randn(2, 3, 7, 8), torch.randn(2, 7, 7)
        program = torch.export.export(Model(), (x, bias), strict=False)
        kept = attnlower.lower(program, target="eager")
        assert "NaN" in kept.report.sites[0].reason
        assert not canonical(kept.program.graph_module)
        lowered = attnlower.lower(program, target="tensorrt")
        (call,) = canonical(lowered.program.graph_module)
        assert call["empty_rows"] == "nan"
        bias[1, 2] = NEG
        torch.testing.assert_close(lowered.program.module()(x, bias), Model()(x, bias), equal_nan=True)


class TestAlignment:
    """The corner of a causal mask is explicit."""

    class LowerRight(torch.nn.Module):
        def __init__(self, slack: int = 0) -> None:
            super().__init__()
            self.slack = slack

        def forward(self, q: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
            keys = torch.cat([cache, q], dim=2)
            rows = torch.arange(q.shape[2])[:, None] + cache.shape[2] + self.slack
            mask = torch.arange(keys.shape[2])[None, :] <= rows
            return F.scaled_dot_product_attention(q, keys, keys, attn_mask=mask)

    @staticmethod
    def program(model: torch.nn.Module) -> torch.export.ExportedProgram:
        args = (torch.randn(2, 3, 4, 8), torch.randn(2, 3, 6, 8))
        return torch.export.export(
            model, args, dynamic_shapes=({2: Dim("new", max=64)}, {2: Dim("old", max=64)}), strict=False
        )

    def test_lower_right(self) -> None:
        lowered = attnlower.lower(self.program(self.LowerRight()), target="tensorrt")
        (call,) = canonical(lowered.program.graph_module)
        assert (call["alignment"], call.get("mask"), call.get("bias")) == ("lower_right", None, None)
        assert lowered.report.sites[0].action == "is_causal"
        for new, old in ((4, 6), (1, 9), (5, 1), (7, 0)):
            args = (torch.randn(2, 3, new, 8), torch.randn(2, 3, old, 8))
            torch.testing.assert_close(lowered.program.module()(*args), self.LowerRight()(*args))

    @pytest.mark.parametrize("slack", [-1, 1])
    def test_off_by_one_keeps_its_mask(self, slack: int) -> None:
        lowered = attnlower.lower(self.program(self.LowerRight(slack)), target="tensorrt")
        (call,) = canonical(lowered.program.graph_module)
        assert call["alignment"] == "none"
        assert call.get("mask") is not None
        args = (torch.randn(2, 3, 5, 8), torch.randn(2, 3, 3, 8))
        torch.testing.assert_close(lowered.program.module()(*args), self.LowerRight(slack)(*args))

    def test_no_lower_right_before_11(self) -> None:
        target = tensorrt_target("10.14")
        assert Alignment.LOWER_RIGHT not in target.alignments
        lowered = attnlower.lower(self.program(self.LowerRight()), target=target)
        (call,) = canonical(lowered.program.graph_module)
        assert call["alignment"] == "none"
        assert "lower-right" in lowered.report.sites[0].reason

    def test_lower_right_of_more_queries_than_keys(self) -> None:
        """The first queries see nothing: zeros for this mask, and no proof that there are none of them."""

        class Model(torch.nn.Module):
            def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
                rows = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
                return F.scaled_dot_product_attention(q, k, k, attn_mask=torch.arange(k.shape[2])[None, :] <= rows)

        lowered = attnlower.lower(self.program(Model()), target="tensorrt")
        assert canonical(lowered.program.graph_module)[0]["alignment"] == "none"
        assert "more queries than keys" in lowered.report.sites[0].reason
        args = (torch.randn(2, 3, 6, 8), torch.randn(2, 3, 4, 8))
        torch.testing.assert_close(lowered.program.module()(*args), Model()(*args))

    def test_upper_left_of_other_lengths(self) -> None:
        class Model(torch.nn.Module):
            def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
                mask = torch.arange(k.shape[2])[None, :] <= torch.arange(q.shape[2])[:, None]
                return F.scaled_dot_product_attention(q, k, k, attn_mask=mask)

        program = self.program(Model())
        lowered = attnlower.lower(program, target="tensorrt")
        assert canonical(lowered.program.graph_module)[0]["alignment"] == "upper_left"
        assert attnlower.lower(program, target="eager").report.sites[0].action == "keep"
        args = (torch.randn(2, 3, 4, 8), torch.randn(2, 3, 9, 8))
        torch.testing.assert_close(lowered.program.module()(*args), Model()(*args))

    @pytest.mark.parametrize("lengths", [(6, 6), (4, 9)])
    def test_efficient_with_bias_and_causal(self, lengths: tuple[int, int]) -> None:
        """The efficient kernel's is_causal is upper left, also beside a bias."""
        q, k = (torch.randn(2, 3, n, 8) for n in lengths)
        bias = torch.randn(2, 3, lengths[0], lengths[1])

        def attend(q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            op = torch.ops.aten._scaled_dot_product_efficient_attention.default
            return op(q, k, k, bias, False, 0.0, True)[0]

        gm = make_fx(attend, tracing_mode="fake")(q, k, bias)
        lowered = attnlower.lower(gm, target="tensorrt")
        assert len(canonical(lowered.program)) == 1
        rows, columns = torch.arange(lengths[0])[:, None], torch.arange(lengths[1])[None, :]
        mask = bias.masked_fill(columns > rows, NEG)
        want = F.scaled_dot_product_attention(q, k, k, attn_mask=mask)
        torch.testing.assert_close(lowered.program(q, k, bias), want)


class TestVersions:
    """What each version of TensorRT has."""

    def test_facts(self) -> None:
        assert not iattention_support("10.14.1.48").metadata
        assert iattention_support("10.15").metadata
        assert iattention_support("10.16").exact_causal_keys == 511
        new = iattention_support("11.0.0.114")
        assert new.causal_kinds
        assert new.key_value_lengths
        assert new.exact_causal_keys is None
        assert str(new) == "11.0"

    @pytest.mark.parametrize("version", ["10.13.3", "8.6"])
    def test_too_old(self, version: str) -> None:
        with pytest.raises(attnlower.OptionError, match="has no IAttention"):
            tensorrt_target(version)

    def test_no_version(self) -> None:
        with pytest.raises(attnlower.OptionError, match="no version of TensorRT"):
            tensorrt_target("new")


def test_the_program_is_untouched() -> None:
    program = TestAlignment.program(TestAlignment.LowerRight())
    code = copy.copy(program.graph_module.code)
    attnlower.lower(program, target="tensorrt")
    assert program.graph_module.code == code


def test_repeated_heads_fold_under_a_mask() -> None:
    """Grouped heads are native: the copies go even where a mask tensor stays."""

    class Model(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
            batch, heads, length, width = k.shape
            wide = k[:, :, None].expand(batch, heads, 2, length, width).reshape(batch, heads * 2, length, width)
            return F.scaled_dot_product_attention(q, wide, wide, attn_mask=allowed[:, None, None, :])

    args = (torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.rand(2, 6) > 0.3)
    program = torch.export.export(Model(), args, strict=False)
    (call,) = canonical(attnlower.lower(program, target="tensorrt").program.graph_module)
    assert call["enable_gqa"] is True
    lowered = attnlower.lower(program, target="tensorrt").program
    torch.testing.assert_close(lowered.module()(*args), Model()(*args))
    assert not canonical(attnlower.lower(program, target="eager").program.graph_module)
