"""Pictures of masks, as attnlower reads them from a model's code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import svg
import torch
import torch.nn.functional as F

import attnlower
from attnlower.patterns.drawing import Cell, make_picture
from attnlower.patterns.drawing.paint import PALETTE

SIZE, CELL, MARGIN = 8, 20, 34
COLOURS = {
    Cell.BLOCKED: "#e8ebf0",
    **{c: "#{:02x}{:02x}{:02x}".format(*PALETTE[c][:3]) for c in (Cell.ALLOWED, Cell.DATA)},
}
RED = "#dc2626"


@dataclass(frozen=True)
class Drawn:
    """A mask to be drawn.

    Attributes:
        mask: gives the mask tensor from positions of queries (Q, 1) and keys (1, K), and other inputs.
        inputs: these, by name.
        words: what its picture is called.
    """

    mask: Callable[..., torch.Tensor]
    words: str
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Model(torch.nn.Module):
    """Attention of x to itself under a mask."""

    def __init__(self, mask: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Attend; x is (B, H, T, E)."""
        position = torch.arange(x.shape[2])
        return F.scaled_dot_product_attention(
            x, x, x, attn_mask=self.mask(position[:, None], position[None, :], **inputs)
        )


ONES = torch.ones(2, SIZE, dtype=torch.long)
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]] * 2)

MASKS = {
    "causal": Drawn(lambda q, k: k <= q, "causal"),
    "sliding-window": Drawn(lambda q, k: (k <= q) & (k > q - 3), "sliding window of 3"),
    "chunked": Drawn(lambda q, k: (k // 3 == q // 3) & (k <= q), "chunks of 3"),
    "prefix": Drawn(lambda q, k: (k <= q) | (k < 3), "prefix of 3"),
    "padding": Drawn(
        lambda q, k, attention_mask: (k <= q) & attention_mask.bool()[:, None, None, :],
        "causal and padding",
        {"attention_mask": ONES},
    ),
    "packed": Drawn(
        lambda q, k, document: document[:, None, :, None] == document[:, None, None, :],
        "packed documents",
        {"document": DOCUMENTS},
    ),
    "refuted": Drawn(lambda q, k: k <= q + 1, "one key of the future"),
}


def site_of(drawn: Drawn) -> attnlower.AttentionSite:
    """What attnlower reads and proves of a mask."""
    (site,) = attnlower.explain(Model(drawn.mask), torch.randn(2, 1, SIZE, 4), **drawn.inputs).sites
    return site


def draw(drawn: Drawn) -> str:
    """The picture of a mask: what it says without data, and the verdict."""
    site = site_of(drawn)
    if site.predicate is None:
        raise ValueError(f"{drawn.words}: {site.reason}")
    picture = make_picture(site.predicate, witness=site.witness)
    parts = [svg.text(MARGIN, 18, site.formula, weight="bold")]
    top = 30 + svg.LINE
    for row, line in enumerate(picture.cells.tolist()):
        parts.append(svg.text(MARGIN - 8, top + (row + 0.7) * CELL, str(row), anchor="end", fill="#6b7687"))
        for column, cell in enumerate(line):
            if row == 0:
                parts.append(
                    svg.text(MARGIN + (column + 0.5) * CELL, top - 5, str(column), anchor="middle", fill="#6b7687")
                )
            x, y = MARGIN + column * CELL, top + row * CELL
            parts.append(svg.box(x, y, CELL - 2, CELL - 2, fill=COLOURS[Cell(cell)], rounding=2))
            if picture.witness == (row, column):
                ends = ((x + 3, y + 3, x + CELL - 5, y + CELL - 5), (x + 3, y + CELL - 5, x + CELL - 5, y + 3))
                lines = (f"x1='{a}' y1='{b}' x2='{c}' y2='{d}'" for a, b, c, d in ends)
                parts += [f"<line {at} stroke='{RED}' stroke-width='3'/>" for at in lines]
    below = top + SIZE * CELL + svg.LINE
    words = f"{site.verdict}: {', '.join(sorted(site.kinds))}"
    parts.append(svg.text(MARGIN, below, words, fill=RED if site.verdict == "refuted" else "#24303f"))
    width = max(MARGIN + SIZE * CELL, MARGIN + svg.CHARACTER * max(len(site.formula), len(words))) + 16
    return svg.document(width, below + 12, parts, f"{drawn.words}: {site.formula}, {words}")


def drawings() -> dict[str, str]:
    """Every picture by its path under docs/."""
    torch._dynamo.reset()
    return {f"pictures/mask-{name}.svg": draw(drawn) for name, drawn in MASKS.items()}
