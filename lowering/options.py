"""Options of `torch.compile(backend="attnlower", options={...})`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import OptionError
from ..patterns.prover import DEFAULT_TIMEOUT_MS
from .banded.choice import CHOICES
from .target import Target
from .targets import find_target

PADDING_MODES = ("guard", "keep")
OWN_OPTIONS = ("target", "padding", "strict", "timeout_ms", "verify", "banded")


@dataclass(frozen=True)
class BackendOptions:
    """What the backend was asked to do.

    Attributes:
        target: the backend behind attnlower: "inductor" (default), "eager" or "tensorrt"; with its way of computing
            attention under banded masks, from option "banded": "auto" (default), "flex", "local" or "dense".
        padding: "guard" (default) checks padding masks at every call and runs the faster graph when nothing is padded;
            "keep" leaves them as they are.
        strict: raise internal errors and do not fall back to the untouched graph.
        timeout_ms: longest time for one question to the solver, in milliseconds.
        verify: for how many calls of each compiled graph the untouched one runs beside it; where the outputs differ by
            more than rounding, the call raises VerificationError.
        compiler: options handed on to the target's compiler.
    """

    target: Target
    padding: str = "guard"
    strict: bool = False
    timeout_ms: int = DEFAULT_TIMEOUT_MS
    verify: int = 0
    compiler: Mapping[str, Any] = field(default_factory=dict)


def parse_options(options: Mapping[str, Any] | None, mode: str | None = None) -> BackendOptions:
    """Check the options of torch.compile.

    Args:
        options: attnlower's own options and any of the target's compiler (Inductor's, torch_tensorrt's settings).
        mode: torch.compile's `mode`, turned into Inductor's options.

    Raises:
        OptionError: for an unknown name or a value of the wrong kind.
        TensorRTError: if the target is "tensorrt", options are given for it, and it is missing.
    """
    given = dict(options or {})
    target = with_banded(find_target(given.pop("target", "inductor")), given.pop("banded", None))
    padding = given.pop("padding", "guard")
    if padding not in PADDING_MODES:
        raise OptionError(f"option 'padding' is one of {list(PADDING_MODES)}, not {padding!r}")
    strict = given.pop("strict", False)
    if not isinstance(strict, bool):
        raise OptionError(f"option 'strict' is True or False, not {strict!r}")
    timeout = checked_timeout(given.pop("timeout_ms", DEFAULT_TIMEOUT_MS))
    verify = _checked_calls(given.pop("verify", 0))
    compiler = {**_mode_options(mode, target), **_compiler_options(given, target)}
    return BackendOptions(target, padding, strict, timeout, verify=verify, compiler=compiler)


def with_banded(target: Target, banded: object) -> Target:
    """The target with this way of computing attention under banded masks; with its own for None.

    Raises:
        OptionError: for a way that there is not.
    """
    if banded is None:
        return target
    if not isinstance(banded, str) or banded not in CHOICES:
        raise OptionError(f"option 'banded' is one of {list(CHOICES)}, not {banded!r}")
    return replace(target, banded=banded)


def checked_timeout(timeout: object) -> int:
    """The time-out itself.

    Raises:
        OptionError: if it is no positive whole number.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout <= 0:
        raise OptionError(f"option 'timeout_ms' is a positive number of milliseconds, not {timeout!r}")
    return timeout


def _checked_calls(calls: object) -> int:
    if isinstance(calls, bool) or not isinstance(calls, int) or calls < 0:
        raise OptionError(f"option 'verify' is a number of calls, 0 for none, not {calls!r}")
    return calls


def _mode_options(mode: str | None, target: Target) -> dict[str, Any]:
    if mode is None or mode == "default":
        return {}
    if not target.modes:
        raise OptionError(f"target '{target.name}' takes no mode; mode {mode!r} is one of Inductor's")
    from torch._inductor import list_mode_options

    try:
        return dict(list_mode_options(mode))
    except RuntimeError as error:
        raise OptionError(f"unknown mode {mode!r}: {error}") from error


def _compiler_options(given: Mapping[str, Any], target: Target) -> dict[str, Any]:
    if not given:
        return {}
    known = target.options()
    found: dict[str, Any] = {}
    for name, value in given.items():
        attribute = str(name).replace("-", "_")
        if attribute not in known:
            near = difflib.get_close_matches(str(name), [*OWN_OPTIONS, *known], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            whose = "Inductor" if target.modes else f"target '{target.name}'"
            raise OptionError(
                f"unknown option {name!r}{hint} attnlower takes {list(OWN_OPTIONS)} and the options of {whose}"
            )
        found[attribute] = value
    return found
