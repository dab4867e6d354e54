"""attnlower: prove what an attention mask says, and lower attention by that proof.

torch.compile(model, backend="attnlower")       # no import needed
lowered = attnlower.lower(exported_program)     # ExportedProgram in, ExportedProgram out
print(lowered.report)                           # one line per attention call
"""

from importlib.metadata import version

from . import converters
from .errors import (
    AttnLowerError,
    CaptureError,
    DrawingError,
    LegalizeError,
    LimitError,
    OptionError,
    ProgramError,
    ReadRuleError,
    ReportError,
    TemplateError,
    TensorRTError,
    VerificationError,
)
from .lowering import (
    AttentionSite,
    Lowered,
    Report,
    VerificationReport,
    explain,
    inductor_pass,
    last_report,
    lower,
    verify,
)
from .lowering.seq2seq import Seq2SeqPrograms, export_seq2seq

__version__ = version("attnlower")

__all__ = [
    "AttentionSite",
    "AttnLowerError",
    "CaptureError",
    "DrawingError",
    "LegalizeError",
    "LimitError",
    "Lowered",
    "OptionError",
    "ProgramError",
    "ReadRuleError",
    "Report",
    "ReportError",
    "Seq2SeqPrograms",
    "TemplateError",
    "TensorRTError",
    "VerificationError",
    "VerificationReport",
    "__version__",
    "converters",
    "explain",
    "export_seq2seq",
    "inductor_pass",
    "last_report",
    "lower",
    "verify",
]
