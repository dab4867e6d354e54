"""Exceptions of attnlower. Every one says what was wrong, at which node, and what to do about it."""

from __future__ import annotations


class AttnLowerError(Exception):
    """Base class of every error that attnlower raises on purpose."""


class OptionError(AttnLowerError, ValueError):
    """An option, target or assumption that attnlower does not know."""


class ProgramError(AttnLowerError, TypeError):
    """The object handed to `lower` or `explain` is not a program attnlower can read."""


class CaptureError(AttnLowerError):
    """The subgraph that computes a mask could not be brought into functional ATen form."""


class LegalizeError(AttnLowerError):
    """A canonical attention call asks for something its target has not declared."""


class TemplateError(AttnLowerError):
    """A mask template was registered wrongly, or a finder suggested something that is no template."""


class ReadRuleError(AttnLowerError):
    """A read rule was registered wrongly or returned no expression, or a mask's expression cannot be understood."""


class DrawingError(AttnLowerError, ValueError):
    """A mask cannot be drawn as asked: a tensor is missing, or sizes do not fit."""


class ReportError(AttnLowerError, OSError):
    """A report cannot be written where it was asked for."""


class TensorRTError(AttnLowerError, RuntimeError):
    """torch_tensorrt or TensorRT is missing or of a version that attnlower does not support."""


class BackendError(AttnLowerError, RuntimeError):
    """A backend is not installed, or what it has compiled cannot be run."""


class LimitError(AttnLowerError, ValueError):
    """A call is larger than the programs were exported for."""


class VerificationError(AttnLowerError, RuntimeError):
    """A compiled model gave another output than the untouched one, by more than rounding explains."""
