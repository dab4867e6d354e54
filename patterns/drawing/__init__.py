"""Pictures of masks: who may attend to whom, cell by cell. For the terminal as text, for a page as PNG."""

from .examples import Example, example_inputs
from .grid import Cell, Marked
from .heat import HeatMap, heat_map
from .picture import Picture, make_picture, sizes_for_witness
from .terminal import picture_text

__all__ = [
    "Cell",
    "Example",
    "HeatMap",
    "Marked",
    "Picture",
    "example_inputs",
    "heat_map",
    "make_picture",
    "picture_text",
    "sizes_for_witness",
]
