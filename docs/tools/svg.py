"""Pieces of SVG: text and boxes with colours that hold on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

FONT = "font-family='ui-monospace, Menlo, Consolas, monospace' font-size='12'"
CHARACTER = 7.3
LINE = 16


def document(width: float, height: float, parts: Sequence[str], title: str) -> str:
    """An SVG file on a white ground, with a title for those who do not see it."""
    size = f"width='{width:.0f}' height='{height:.0f}' viewBox='0 0 {width:.0f} {height:.0f}'"
    head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} role='img' {FONT}>"
    ground = f"<rect width='{width:.0f}' height='{height:.0f}' rx='6' fill='#ffffff'/>"
    return "\n".join([head, f"<title>{escape(title)}</title>", ground, *parts, "</svg>", ""])


def text(
    x: float, y: float, words: str, *, anchor: str = "start", fill: str = "#24303f", weight: str = "normal"
) -> str:
    """A line of text; y is its base line."""
    style = f"text-anchor='{anchor}' fill='{fill}' font-weight='{weight}'"
    return f"<text x='{x:.1f}' y='{y:.1f}' {style} xml:space='preserve'>{escape(words)}</text>"


def box(x: float, y: float, width: float, height: float, *, fill: str, stroke: str = "none", rounding: int = 0) -> str:
    """A rectangle."""
    place = f"x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}'"
    return f"<rect {place} rx='{rounding}' fill='{fill}' stroke='{stroke}'/>"
