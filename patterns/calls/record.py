"""One attention call, whatever its spelling."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from torch import fx


class TermMode(enum.Enum):
    """How a mask tensor acts on the scores."""

    ATTN_MASK = "attn_mask"  # `attn_mask` of SDPA: boolean True = may attend; a float is added
    ADD = "add"  # added to the scores
    BLOCK = "block"  # boolean: where True the score is replaced by `fill`
    KEEP = "keep"  # boolean: where False the score is replaced by `fill`


@dataclass(frozen=True)
class MaskTerm:
    """One tensor that masks or biases the scores.

    Attributes:
        node: the tensor; broadcasts to the scores (..., Q, K).
        mode: how it acts.
        fill: the score where blocked (BLOCK and KEEP), a number.
        flat: the tensor is (B * H, Q, K), with batch and heads in one axis, the heads inside; the scores are not.
    """

    node: fx.Node
    mode: TermMode
    fill: float | None = None
    flat: bool = False


@dataclass(frozen=True)
class AttentionCall:
    """softmax(scale * query @ key^T + masks) @ value, as found in a graph.

    Attributes:
        node: the node whose value is the attention output, shape (..., Q, Ev).
        query: (..., Q, E). key: (..., K, E). value: (..., K, Ev).
        terms: tensors that mask or bias the scores, innermost first.
        is_causal: PyTorch's flag (upper-left alignment).
        scale: factor on the scores: a number, a node, or None for 1/sqrt(E).
        dropout_p: dropout probability: a number or a node.
        enable_gqa: PyTorch's flag for grouped query heads.
        spelling: how it is written: "sdpa", "flash", "efficient", "cudnn", "flash_for_cpu", "overrideable", "eager".
        empty_rows_are_nan: True where a row without any allowed key gives NaN (plain softmax) and not zeros.
        blockers: reasons why the call must stay as it is (an output besides the first is used, ...).
    """

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    terms: tuple[MaskTerm, ...] = ()
    is_causal: bool = False
    scale: float | fx.Node | None = None
    dropout_p: float | fx.Node = 0.0
    enable_gqa: bool = False
    spelling: str = "sdpa"
    empty_rows_are_nan: bool = False
    blockers: tuple[str, ...] = ()


@dataclass(frozen=True)
class NearMiss:
    """Something that looks like attention but is not matched, and why."""

    node: fx.Node
    reason: str
