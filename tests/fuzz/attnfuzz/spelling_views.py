"""Ways to move a mask's elements about that leave it as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .spelling import Speller


def placed(s: Speller, vector: str, coordinate: str) -> str:
    """A vector along the axis of queries or keys, in one of the shapes that broadcast."""
    n = coordinate.upper()
    if coordinate == "q":
        forms = [f"{vector}[:, None]", f"{vector}.unsqueeze(-1)", f"{vector}.view({n}, 1)", f"{vector}.reshape(-1, 1)"]
        forms += [f"{vector}[None, None, :, None]", f"{vector}.view(1, 1, {n}, 1)", f"{vector}[:, None].expand(Q, K)"]
        forms += [f"{vector}.unsqueeze(0).T", f"{vector}[None, :, None]", f"{vector}.unsqueeze(1).repeat(1, K)"]
    else:
        forms = [vector, f"{vector}[None, :]", f"{vector}.unsqueeze(0)", f"{vector}.view(1, {n})"]
        forms += [f"{vector}[None, None, None, :]", f"{vector}.reshape(1, 1, 1, {n})", f"{vector}[None].expand(Q, K)"]
        forms += [f"{vector}.expand(1, 1, Q, K)", f"{vector}.view({n}, 1).transpose(0, 1)"]
    if s.chance(s.plainness):
        forms = forms[:2]
    return s.new(s.choice(*forms))


def rearranged(s: Speller, name: str) -> str:
    """Zero to two view dances on a mask that broadcasts to (B, H, Q, K)."""
    for _ in range(s.rng.choice((0, 0, 1, 1, 2))):
        full = s.new(f"{name}.expand(B, 1, Q, K)")
        text = s.choice(
            full,
            f"{full}.transpose(-1, -2).transpose(-2, -1)",
            f"{full}.permute(0, 2, 3, 1).permute(0, 3, 1, 2)",
            f"{full}.reshape(B, Q * K).view(B, 1, Q, K)",
            f"{full}.reshape(-1, K).reshape(B, 1, Q, K)",
            f"torch.cat(({full}[:, :, :2], {full}[:, :, 2:]), dim=2)",
            f"torch.cat(({full}[..., :1], {full}[..., 1:]), dim=-1)",
            f"torch.flip(torch.flip({full}, (2,)), (-2,))",
            f"{full}.flip(-1).flip((-1,))",
            f"F.pad({full}, (1, 2))[..., 1:-2]",
            f"F.pad({full}, (0, 0, 2, 0))[:, :, 2:]",
            f"{full}.expand(B, H, Q, K)[:, :1]",
            f"{full}.expand(B, H, Q, K)[:, -1:]",
            f"{full}.repeat(1, 2, 1, 1)[:, 1:]",
            f"{full}.index_select(2, torch.arange(Q))",
            f"{full}[:, :, torch.arange(Q)[:, None], torch.arange(K)]",
            f"{full}[:, :, :, torch.arange(K)]",
            f"torch.gather({full}, 3, torch.arange(K).expand(B, 1, Q, K))",
            f"torch.stack(({full}, ~{full}), dim=1)[:, 0]",
            f"torch.stack(({full}, {full}))[1]",
            f"{full}[:, 0][:, None]",
            f"{full}.squeeze(1).unsqueeze(1)",
            f"{full}.contiguous().clone()",
            f"torch.roll(torch.roll({full}, 1, 2), -1, 2)",
            f"{full}.movedim(2, 3).movedim(3, 2)",
            f"{full}.narrow(3, 0, K)",
            "",
            "",
        )
        name = s.new(text) if text else _slice_written(s, full)
    return name


def _slice_written(s: Speller, full: str) -> str:
    """The mask written into a part of a larger or equal one, or row by row."""
    fill = s.choice("zeros", "ones")
    match s.choice("whole", "larger", "halves", "first row", "copy", "masked"):
        case "whole":
            name = s.new(f"torch.{fill}(B, 1, Q, K, dtype=torch.bool)")
            s.do(f"{name}[:, :, :, :] = {full}")
        case "larger":
            name = s.new(f"torch.{fill}(B, 1, Q + 2, K + 1, dtype=torch.bool)")
            s.do(f"{name}[:, :, 1:-1, :K] = {full}")
            return s.new(f"{name}[:, :, 1:Q + 1, :-1]")
        case "halves":
            name = s.new(f"torch.{fill}(B, 1, Q, K, dtype=torch.bool)")
            s.do(f"{name}[..., :2] = {full}[..., :2]")
            s.do(f"{name}[..., 2:] = {full}[..., 2:]")
        case "first row":
            name = s.new(f"{full}.clone()")
            s.do(f"{name}[:, :, 0] = {full}[:, :, 0]")
        case "copy":
            name = s.new(f"torch.{fill}(B, 1, Q, K, dtype=torch.bool)")
            s.do(f"{name}.copy_({full})")
        case _:
            name = s.new("torch.zeros(B, 1, Q, K, dtype=torch.bool)")
            s.do(f"{name}.masked_fill_({full}, True)")
    return name
