"""Attention calls that stay unknown, each with the op that is missing and why. What is not listed fails the sweep."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownUnknown:
    """A kind of mask that is not read.

    Attributes:
        reason: pattern of the report's reason.
        op: the op that is missing.
        why: what it is about the mask.
        classes: pattern of the model classes.
    """

    reason: str
    op: str
    why: str
    classes: str = ".*"


KNOWN_UNKNOWN: tuple[KnownUnknown, ...] = (
    KnownUnknown(
        r"aten\.(scatter|topk)",
        "aten.topk",
        "the keys of each query are chosen at run time (top-k of an indexer's scores) and written into the mask by "
        "their index: no formula over positions exists",
    ),
    KnownUnknown(
        r"the value of '(mask|conv1d)_\d+' could not be read",
        "aten.conv1d",
        "the padding mask itself goes through two convolutions with kernels of ones, and reading stops at convolutions",
        classes="MoonshineStreaming.*",
    ),
    KnownUnknown(
        r"aten\.max_pool2d_with_indices",
        "aten.max_pool2d_with_indices",
        "the padding mask is pooled by max_pool1d (from characters to molecules, from frames to squeezed frames)",
        classes="CanineModel|SEWModel",
    ),
    KnownUnknown(
        r"aten\.div\.Tensor_mode: division by a number not known to be positive",
        "aten.div",
        "torch.compile(dynamic=True) takes the right context for a number of any sign, and positions are divided by it "
        "plus one: dividing by what may be 0 or negative is not followed (as a constant, in an export, it is)",
        classes="Nemotron.*",
    ),
    KnownUnknown(
        r"'sum_\d+' could not be read: aten\.sum\.dim_IntList: sums in torch\.float32",
        "aten.sum",
        "the bias is scaled by a gate that sums projected hidden states: a sum of floats is not followed, so it might "
        "be infinite for all one knows",
        classes="WavLMModel",
    ),
    KnownUnknown(
        r"nothing is known of sum\(",
        "none",
        "which patch a byte belongs to counts the patches that begin before it, whose lengths come from the entropy of "
        "the data at run time: sums of sums of data",
        classes="BltForCausalLM",
    ),
    KnownUnknown(
        r"the value of 'slice_\d+' could not be read",
        "aten.index",
        "where the patches begin is a selection by a boolean tensor, as long as the data say, and reading stops there",
        classes="BltForCausalLM",
    ),
)


def known(class_name: str, reason: str) -> KnownUnknown | None:
    """The entry that a model class and a report's reason fall under."""
    fitting = (k for k in KNOWN_UNKNOWN if re.fullmatch(k.classes, class_name) and re.search(k.reason, reason))
    return next(fitting, None)
