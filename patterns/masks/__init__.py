"""Templates: the masks attnlower knows by name, one per file, each with its formula."""

from .causal import Causal
from .full import Full
from .padding import is_padding
from .sliding_window import SlidingWindow
from .template import Alignment, MaskTemplate

__all__ = ["Alignment", "Causal", "Full", "MaskTemplate", "SlidingWindow", "is_padding"]
