"""Reading: what attention and masks look like in a graph. Nothing here changes a graph."""

from . import build
from .analyze import Analysis, SiteAnalysis, analyze
from .calls import AttentionCall, MaskTerm, NearMiss, find_attention
from .classify import Classification, Guard, classify
from .conditions import Condition
from .evaluate import evaluate, mask_tensor
from .expr import CellRef, Expr, Sort
from .facts import Facts
from .masks import (
    BUILTIN_TEMPLATES,
    DEFAULT_TEMPLATES,
    Alignment,
    AllOf,
    AnyOf,
    Causal,
    Chunked,
    Full,
    MaskTemplate,
    Packed,
    Padding,
    Placed,
    Prefix,
    SlidingWindow,
    TemplateTable,
)
from .predicate import Predicate, predicate_of
from .prover import Prover
from .reader import Reader, RuleTable
from .rules import DEFAULT_RULES
from .verdict import Proved, Refuted, Unknown, Verdict

__all__ = [
    "BUILTIN_TEMPLATES",
    "DEFAULT_RULES",
    "DEFAULT_TEMPLATES",
    "Alignment",
    "AllOf",
    "Analysis",
    "AnyOf",
    "AttentionCall",
    "Causal",
    "CellRef",
    "Chunked",
    "Classification",
    "Condition",
    "Expr",
    "Facts",
    "Full",
    "Guard",
    "MaskTemplate",
    "MaskTerm",
    "NearMiss",
    "Packed",
    "Padding",
    "Placed",
    "Predicate",
    "Prefix",
    "Proved",
    "Prover",
    "Reader",
    "Refuted",
    "RuleTable",
    "SiteAnalysis",
    "SlidingWindow",
    "Sort",
    "TemplateTable",
    "Unknown",
    "Verdict",
    "analyze",
    "build",
    "classify",
    "evaluate",
    "find_attention",
    "mask_tensor",
    "predicate_of",
]
