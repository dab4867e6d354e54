"""What each version of TensorRT's IAttention offers.

Source: the public headers of NVIDIA/TensorRT (include/NvInfer.h), tags v10.13.3 to v11.1. Nothing here was measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import OptionError

OLDEST = (10, 14)


@dataclass(frozen=True)
class IAttentionSupport:
    """The part of IAttention that a version of TensorRT has.

    Attributes:
        version: major and minor version.
        causal_kinds: takes the corner of a causal mask (CausalMaskKind); before it, a flag that means upper left.
        metadata: a layer takes a text for the engine inspector.
        key_value_lengths: takes the number of valid keys per batch entry.
        exact_causal_keys: most keys with which a causal call in half precision is right; None if there is no limit.
            torch_tensorrt 2.13 notes wrong results from 512 keys on below TensorRT 11.0 (NVBug 6047232).
    """

    version: tuple[int, int]
    causal_kinds: bool
    metadata: bool
    key_value_lengths: bool
    exact_causal_keys: int | None

    def __str__(self) -> str:
        return ".".join(map(str, self.version))


def iattention_support(version: str) -> IAttentionSupport:
    """What a version of TensorRT offers.

    Args:
        version: such as "11.0" or "10.14.1.48".

    Raises:
        OptionError: if it is no version, or too old to have IAttention.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        raise OptionError(f"{version!r} is no version of TensorRT; give one such as '11.0'")
    number = (int(found[1]), int(found[2]))
    if number < OLDEST:
        raise OptionError(f"TensorRT {version} has no IAttention; it came with {'.'.join(map(str, OLDEST))}")
    new = number >= (11, 0)
    return IAttentionSupport(
        version=number,
        causal_kinds=new,
        metadata=number >= (10, 15),
        key_value_lengths=new,
        exact_causal_keys=None if new else 511,
    )
