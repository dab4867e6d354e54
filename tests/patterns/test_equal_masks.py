"""Masks that every layer builds anew: read and proved once, and only if they really are equal."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F

import attnlower
from attnlower.patterns import analyze


class OwnMasks(torch.nn.Module):
    """Each layer builds its mask itself; `widths` are the windows."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.widths = widths

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for width in self.widths:
            index = torch.arange(x.shape[2])
            causal = index[None, :] <= index[:, None]
            x = F.scaled_dot_product_attention(x, x, x, attn_mask=causal & (index[None, :] > index[:, None] - width))
        return x


class RandomMasks(torch.nn.Module):
    """Near miss: equal calls, other values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            mask = torch.rand(x.shape[2], x.shape[2]) > 0.5
            x = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
        return x


def exported(model: torch.nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(model, (torch.randn(1, 2, 9, 8),), dynamic_shapes=({2: torch.export.Dim.AUTO},))


def test_equal_masks_are_traced_and_proved_once() -> None:
    few, many = (analyze(exported(OwnMasks([5] * n)).graph_module) for n in (2, 24))
    assert few.captured is not None and many.captured is not None
    assert len(many.captured.graph_module.graph.nodes) == len(few.captured.graph_module.graph.nodes)
    assert many.prover.stats.masks == 1


def test_other_masks_are_told_apart() -> None:
    analysis = analyze(exported(OwnMasks([5, 6, 5])).graph_module)
    formulas = [str(s.classification.predicate) for s in analysis.sites if s.classification is not None]
    assert formulas == ["k <= q & k > q - 5", "k <= q & k > q - 6", "k <= q & k > q - 5"]
    assert analysis.prover.stats.masks == 2


def test_random_masks_are_not_merged() -> None:
    program = exported(RandomMasks())
    report = attnlower.lower(program).report
    assert [s.verdict for s in report.sites] == ["unknown", "unknown"]
    assert not any(p.changed for p in report.passes if p.name == "share_masks")


@pytest.mark.parametrize("widths", [[5, 5], [100, 3]])
def test_a_loaded_program_reads_like_the_one_saved(widths: list[int]) -> None:
    program = exported(OwnMasks(widths))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer)
    before, after = attnlower.lower(program).report, attnlower.lower(loaded)
    assert [s.formula for s in after.report.sites] == [s.formula for s in before.sites]
    x = torch.randn(1, 2, 7, 8)
    torch.testing.assert_close(after.program.module()(x), program.module()(x))


class WriteThroughView(torch.nn.Module):
    """Near miss for in-place operators that nobody can see: the write goes through a view into the mask."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        index = torch.arange(x.shape[2])
        limit = index[:, None] + 0
        view = limit.view(-1, 1)
        view += 1
        return F.scaled_dot_product_attention(x, x, x, attn_mask=index[None, :] <= limit)


@pytest.mark.parametrize("reload", [False, True])
def test_a_write_through_a_view_is_seen(reload: bool) -> None:
    program = exported(WriteThroughView())
    if reload:
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        buffer.seek(0)
        program = torch.export.load(buffer)
    lowered = attnlower.lower(program)
    assert lowered.report.sites[0].action == "keep"
    x = torch.randn(1, 2, 7, 8)
    torch.testing.assert_close(lowered.program.module()(x), WriteThroughView()(x))
