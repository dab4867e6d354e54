"""Pictures and heat maps in colours: pixels and palette for the PNG writer."""

from __future__ import annotations

import torch

from .grid import Cell, Marked
from .heat import HeatMap
from .picture import Picture
from .png import Colour, png_bytes

GAP, STRIPE, WITNESS, HALO = 3, 4, 5, 6
PALETTE: tuple[Colour, ...] = (
    (128, 140, 160, 44),  # blocked: a tint of the page's own background, light or dark
    (37, 99, 200, 255),  # allowed
    (240, 160, 30, 255),  # depends on data
    (0, 0, 0, 0),  # between the cells
    (196, 112, 0, 255),  # stripes over what depends on data: told apart without colour, too
    (220, 38, 38, 255),  # the counterexample
    (255, 255, 255, 255),  # around its lines, so that they show on every colour
)
SIDE = 288
"""Longest side of a picture in pixels, as near as whole cells come to it."""

_HEAT_ANCHORS = ((24, 32, 96), (36, 94, 160), (38, 150, 140), (150, 196, 70), (252, 226, 60))
_BLANK = 255


def cell_pixels(rows: int, columns: int) -> int:
    """Pixels along a cell's side."""
    return max(1, SIDE // max(rows, columns))


def picture_png(picture: Picture) -> bytes:
    """A mask's picture as a PNG file, every cell a square of `cell_pixels`."""
    side = cell_pixels(*picture.grid.shape)
    pixels = _enlarged(picture.cells.to(torch.uint8), side)
    height, width = pixels.shape
    stripes = (torch.arange(height).view(-1, 1) + torch.arange(width)) % 6 < 2
    pixels[(pixels == Cell.DATA) & stripes] = STRIPE
    _draw_gaps(pixels, side, GAP)
    if picture.witness is not None:
        _draw_witness(pixels, side, picture.witness)
    return png_bytes(pixels, PALETTE)


def heat_png(heat: HeatMap) -> bytes:
    """A heat map as a PNG file, dark for the smallest number and bright for the largest, clear where blocked."""
    side = cell_pixels(*heat.grid.shape)
    low, high = heat.range
    levels = ((heat.values - low) / ((high - low) or 1.0) * (_BLANK - 1)).round()
    pixels = _enlarged(levels.nan_to_num(nan=_BLANK).to(torch.uint8), side)
    return png_bytes(pixels, heat_palette())


def heat_palette() -> tuple[Colour, ...]:
    """256 colours from dark to bright, the last one clear."""
    steps = torch.linspace(0, len(_HEAT_ANCHORS) - 1, _BLANK, dtype=torch.float64)
    anchors = torch.tensor(_HEAT_ANCHORS, dtype=torch.float64)
    start = steps.floor().long().clamp(max=len(_HEAT_ANCHORS) - 2)
    share = (steps - start).unsqueeze(1)
    mixed = (anchors[start] * (1 - share) + anchors[start + 1] * share).round().long().tolist()
    return (*((r, g, b, 255) for r, g, b in mixed), PALETTE[Cell.BLOCKED])


def _enlarged(cells: torch.Tensor, side: int) -> torch.Tensor:
    return cells.repeat_interleave(side, 0).repeat_interleave(side, 1)


def _draw_gaps(pixels: torch.Tensor, side: int, colour: int) -> None:
    if side >= 6:  # in smaller cells a line would take too much
        pixels[side - 1 :: side] = colour
        pixels[:, side - 1 :: side] = colour


def _draw_witness(pixels: torch.Tensor, side: int, at: Marked) -> None:
    """A frame and a cross; the whole cell where it is too small for them."""
    inside = pixels[at.row * side : (at.row + 1) * side, at.column * side : (at.column + 1) * side]
    step = torch.arange(side)
    edge, across = torch.minimum(step, side - 1 - step), (step.view(-1, 1) - step).abs()
    distance = torch.minimum(torch.minimum(across, across.flip(1)), torch.minimum(edge.view(-1, 1), edge))
    thick = max(1, side // 10)
    if side < 8:
        inside[:] = WITNESS
        return
    inside[distance < 2 * thick] = HALO
    inside[distance < thick] = WITNESS
