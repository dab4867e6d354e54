"""Whole encoder-decoder models: exported, lowered, compiled, and generating. Needs transformers, when it is used."""

from .export import export_seq2seq
from .limits import Limits
from .programs import Seq2SeqPrograms
from .session import Session

__all__ = ["Limits", "Seq2SeqPrograms", "Session", "export_seq2seq"]
