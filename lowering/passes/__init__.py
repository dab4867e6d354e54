"""Passes, one per file. Each states the law it relies on and what must have run before it."""

from .banded import Banded
from .canonicalize import Canonicalize
from .drop_mask import DropMask
from .fold_repeat_kv import FoldRepeatKV
from .guard_padding import GuardPadding
from .legalize import Legalize
from .mask_to_alignment import MaskToAlignment
from .prefix_keys import PrefixKeys
from .share_masks import ShareMasks

__all__ = [
    "Banded",
    "Canonicalize",
    "DropMask",
    "FoldRepeatKV",
    "GuardPadding",
    "Legalize",
    "MaskToAlignment",
    "PrefixKeys",
    "ShareMasks",
]
