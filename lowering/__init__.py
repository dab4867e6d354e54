"""Rewriting: one pass per file, the pipeline, and the entry points. Uses `patterns`."""

from .api import Lowered, explain, inductor_pass, lower
from .backend import attnlower_backend
from .history import last_report
from .pipeline import PIPELINE, build_variant
from .report import AttentionSite, Report
from .result import Change, PassResult, Refusal
from .targets import TARGETS, Target
from .verify import VerificationReport, verify

__all__ = [
    "PIPELINE",
    "TARGETS",
    "AttentionSite",
    "Change",
    "Lowered",
    "PassResult",
    "Refusal",
    "Report",
    "Target",
    "VerificationReport",
    "attnlower_backend",
    "build_variant",
    "explain",
    "inductor_pass",
    "last_report",
    "lower",
    "verify",
]
