"""Templates: the masks attnlower knows by name, one per file, each with its formula."""

from .causal import Causal
from .chunked import Chunked
from .conjunction import AllOf, AnyOf
from .finders import BUILTIN_TEMPLATES, DEFAULT_TEMPLATES
from .full import Full
from .packed import Packed
from .padding import Padding, is_padding
from .placed import Placed
from .prefix import Prefix
from .sliding_window import SlidingWindow
from .table import TemplateTable
from .template import Alignment, MaskTemplate

__all__ = [
    "BUILTIN_TEMPLATES",
    "DEFAULT_TEMPLATES",
    "Alignment",
    "AllOf",
    "AnyOf",
    "Causal",
    "Chunked",
    "Full",
    "MaskTemplate",
    "Packed",
    "Padding",
    "Placed",
    "Prefix",
    "SlidingWindow",
    "TemplateTable",
    "is_padding",
]
