"""A small PNG writer: one byte a pixel, an index into a palette with transparency."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import torch

Colour = tuple[int, int, int, int]
"""Red, green, blue and opacity, 0 to 255."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_bytes(pixels: torch.Tensor, palette: Sequence[Colour]) -> bytes:
    """A PNG file.

    Args:
        pixels: uint8 of shape (height, width): indices into the palette.
        palette: at most 256 colours.

    Raises:
        ValueError: if a shape, dtype or index is not so.
    """
    if pixels.dim() != 2 or pixels.dtype is not torch.uint8 or not pixels.numel():
        raise ValueError(f"pixels are uint8 of shape (height, width), not {pixels.dtype} of {tuple(pixels.shape)}")
    if len(palette) > 256 or int(pixels.max()) >= len(palette):
        raise ValueError(f"an index of the picture is outside its palette of {len(palette)} colours")
    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # 8 bits, palette, deflate, no interlacing
    rows = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), pixels], 1)  # each row begins with its filter: none
    data = zlib.compress(bytes(rows.flatten().tolist()), 9)
    colours = bytes(part for colour in palette for part in colour[:3])
    opacities = bytes(colour[3] for colour in palette)
    chunks = ((b"IHDR", header), (b"PLTE", colours), (b"tRNS", opacities), (b"IDAT", data), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(name, content) for name, content in chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
