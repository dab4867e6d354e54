"""What a mask becomes under conditions on the inputs.

Chunks that are counted from the first real token are plain ones while nothing is padded, and need no mask then.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...errors import ReadRuleError
from ...patterns.analyze import SiteAnalysis
from ...patterns.calls import TermMode
from ...patterns.classify import Classification, classify
from ...patterns.conditions import Condition, truth_candidates
from ...patterns.expr import Sort, cells
from ...patterns.metadata import tensor_of
from ...patterns.predicate import predicate_of
from ...patterns.prover import Prover


def without_data(
    site: SiteAnalysis, prover: Prover, usable: Callable[[Condition], bool]
) -> tuple[Classification, tuple[Condition, ...]] | None:
    """The mask under the weakest conditions that leave no data in it, and these; None if there are none.

    Args:
        site: an attention call.
        prover: asks the solver.
        usable: says which conditions may be relied on.
    """
    found, dtype = site.classification, _mask_dtype(site)
    if found is None or dtype is None or (not found.data and not found.open):
        return None
    for conditions, value in truth_candidates(found.predicate.value):
        if cells(value) or not all(usable(c) for c in conditions):
            continue
        try:
            simpler = predicate_of(value, dtype, found.predicate.facts)
        except ReadRuleError:
            continue
        if simpler.bias is None:
            return classify(simpler, dtype, prover), conditions
    return None


def _mask_dtype(site: SiteAnalysis) -> torch.dtype | None:
    """The dtype of the mask's elements; None where they are made of several tensors."""
    terms, found = site.call.terms, site.classification
    if found is None or len(terms) != 1 or terms[0].mode is not TermMode.ATTN_MASK:
        return None
    if found.predicate.value.sort is Sort.BOOL:
        return torch.bool
    recorded = tensor_of(terms[0].node)
    return recorded.dtype if recorded is not None else None
