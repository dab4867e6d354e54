"""Read rules by kind of op. `DEFAULT_RULES` is the table that everything uses unless told otherwise."""

from __future__ import annotations

from ..reader import RuleTable
from .creation import RULES as CREATION
from .gathers import RULES as GATHERS
from .pointwise import RULES as POINTWISE
from .scans import RULES as SCANS
from .views import RULES as VIEWS

DEFAULT_RULES: RuleTable = CREATION.merged(VIEWS).merged(POINTWISE).merged(GATHERS).merged(SCANS)

__all__ = ["DEFAULT_RULES"]
