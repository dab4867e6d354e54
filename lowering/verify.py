"""`verify`: what can be told about a compiled model by calling it.

Five properties, each first of the eager model: where it does not have one (an encoder sees the future; a mixture of
experts may depend on its batch), the compiled one is not asked for it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import ProgramError, VerificationError
from .differences import Difference, largest, worst
from .history import last_report
from .report import Report
from .target import Target
from .text_table import text_table

_SEQUENCES = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds", "input_features")
_ALL_CALLS = 10**9


@dataclass(frozen=True)
class Check:
    """One property of a compiled model.

    Attributes:
        name: the property.
        status: "passed", "failed" or "skipped".
        eager: how far the eager model is from having it; None where it was not asked.
        compiled: how far the compiled one is.
        note: why it was skipped, or what failed.
    """

    name: str
    status: str
    eager: Difference | None = None
    compiled: Difference | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON data; differences as fractions of the largest value."""
        numbers = {"eager": self.eager, "compiled": self.compiled}
        found = {name: None if apart is None else apart.relative for name, apart in numbers.items()}
        return {"name": self.name, "status": self.status, **found, "note": self.note}


@dataclass(frozen=True)
class VerificationReport:
    """What `verify` found.

    Attributes:
        checks: one per property.
        report: what was rewritten.
    """

    checks: tuple[Check, ...]
    report: Report = field(default_factory=Report)

    @property
    def passed(self) -> bool:
        """True if no check failed."""
        return all(check.status != "failed" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON data."""
        checks = [check.to_dict() for check in self.checks]
        return {"passed": self.passed, "checks": checks, "report": self.report.to_dict()}

    def __str__(self) -> str:
        rows = []
        for check in self.checks:
            numbers = [f"{d.relative:.1e}" if d is not None else "" for d in (check.eager, check.compiled)]
            allowed = f"{check.compiled.tolerance:.0e}" if check.compiled is not None else ""
            rows.append((check.name, check.status, *numbers, allowed, check.note))
        return "\n".join(text_table(("check", "result", "eager", "compiled", "allowed", "note"), rows, width=160))


def verify(model: Any, *args: Any, target: str | Target = "inductor", **kwargs: Any) -> VerificationReport:
    """Compile a model with attnlower and check that it still does what the eager model does.

    The checks: outputs equal to eager's, with the arguments as they are and with padded rows; earlier outputs that stay
    where later tokens change; outputs of real tokens that stay where the padding's content changes; rows alone like
    rows in a batch. The model is called in eval mode without gradients, on copies of the arguments; its mode and its
    buffers are put back.

    Args:
        model: a module whose sequence is its `input_ids` (or `inputs_embeds`, or the decoder's), of shape (batch,
            length, ...), or else its first tensor, and whose padding is `attention_mask`, (batch, length), 0 = padding.
        args: arguments of the model.
        target: the backend to compile for: "inductor" or "eager", or a `Target`.
        kwargs: arguments of the model.

    Raises:
        ProgramError: if it is no module, or gets no tensor.
    """
    if not isinstance(model, torch.nn.Module):
        raise ProgramError(f"verify takes a torch.nn.Module, not {type(model).__name__}")
    given = _by_name(model, args, kwargs)
    with _eval_mode(model):
        return _Verifier(model, given, target).run()


class _Verifier:
    """The checks of one model with one set of arguments, by name."""

    def __init__(self, model: torch.nn.Module, given: Mapping[str, Any], target: str | Target) -> None:
        self.given = dict(given)
        self.model = model
        self.sequence = _sequence(given)
        self.tokens = given[self.sequence]
        self.batch, self.length = self.tokens.shape[0], self.tokens.shape[1] if self.tokens.dim() > 1 else 1
        self.accepts_mask = "attention_mask" in inspect.signature(model.forward).parameters

        def call(**inner: Any) -> Any:
            return model(**inner)

        call.__code__ = call.__code__.replace()  # Dynamo counts recompilations by code object
        options: dict[str, Any] = {"target": target, "verify": _ALL_CALLS}
        self._compiled = torch.compile(call, backend="attnlower", options=options)

    def run(self) -> VerificationReport:
        checks = [self._equal("equal to eager", self.given)]
        padded = self._padded()
        if padded is None:
            checks.append(Check("equal to eager, padded", "skipped", note="the model takes no attention_mask (b, k)"))
        else:
            checks.append(self._equal("equal to eager, padded", padded))
        report = last_report()
        checks += [self._future(), self._padding(padded), self._rows()]
        return VerificationReport(tuple(checks), report)

    def eager(self, given: Mapping[str, Any]) -> Any:
        """The eager model's output."""
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            return self.model(**_copied(given))

    def compiled(self, given: Mapping[str, Any]) -> Any:
        """The compiled model's output."""
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            return self._compiled(**_copied(given))

    def _equal(self, name: str, given: Mapping[str, Any]) -> Check:
        try:
            apart = worst(_tensors(self.compiled(given)), _tensors(self.eager(given)))
        except VerificationError as error:
            return Check(name, "failed", note=str(error))
        return Check(name, "passed" if apart.allowed else "failed", compiled=apart)

    def _invariant(
        self, name: str, moved: Callable[[Callable[[Mapping[str, Any]], Any]], Difference], why_not: str
    ) -> Check:
        """A property that is measured by calling: of the eager model, and where that has it, of the compiled one."""
        eager = moved(self.eager)
        if not eager.allowed:
            return Check(name, "skipped", eager, note=f"the eager model does not have it: {why_not}")
        try:
            compiled = moved(self.compiled)
        except VerificationError as error:
            return Check(name, "failed", eager, note=str(error))
        return Check(name, "passed" if compiled.allowed else "failed", eager, compiled)

    def _future(self) -> Check:
        name = "no token sees the future"
        kept = self.length // 2
        later = torch.arange(self.length, device=self.tokens.device).expand(self.tokens.shape[:2]) >= kept
        changed = _changed(self.tokens, later) if self.tokens.dim() > 1 else None
        if not kept or changed is None or not self._outputs(self.eager(self.given)):
            return Check(name, "skipped", note="no outputs by position, or no other token to put in")
        after = {**self.given, self.sequence: changed}

        def moved(run: Callable[[Mapping[str, Any]], Any]) -> Difference:
            before, now = self._outputs(run(self.given)), self._outputs(run(after))
            return largest([worst(n[:, :kept], b[:, :kept]) for n, b in zip(now, before, strict=True)])

        return self._invariant(name, moved, "earlier outputs depend on later tokens")

    def _padding(self, padded: Mapping[str, Any] | None) -> Check:
        name = "padding has no effect"
        source = "input_ids" if "input_ids" in self.given else "inputs_embeds"
        tokens = self.given.get(source)
        if padded is None or tokens is None:
            return Check(name, "skipped", note="the model takes no attention_mask (b, k)")
        real = padded["attention_mask"] != 0
        changed = _changed(tokens, ~real)
        if changed is None:
            return Check(name, "skipped", note="no other token to put in")
        after = {**padded, source: changed}

        def moved(run: Callable[[Mapping[str, Any]], Any]) -> Difference:
            before, now = self._outputs(run(padded)), self._outputs(run(after))
            rows = real if source == self.sequence else torch.ones(self.tokens.shape[:2], dtype=torch.bool)
            return largest([worst(n[rows], b[rows]) for n, b in zip(now, before, strict=True)])

        return self._invariant(name, moved, "outputs of real tokens depend on what stands in the padding")

    def _rows(self) -> Check:
        name = "rows do not see each other"
        if self.batch < 2:
            return Check(name, "skipped", note="one row only")

        def first(value: Any) -> Any:
            by_row = isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == self.batch
            return value[:1].clone() if by_row else value

        one = {name: first(value) for name, value in self.given.items()}

        def moved(run: Callable[[Mapping[str, Any]], Any]) -> Difference:
            whole, alone = self._outputs(run(self.given)), self._outputs(run(one), batch=1)
            return largest([worst(a, w[:1]) for a, w in zip(alone, whole, strict=True)])

        return self._invariant(name, moved, "a row alone has other outputs than in its batch")

    def _padded(self) -> dict[str, Any] | None:
        """The arguments with rows padded on the right, on the left, not at all in turn; None if there is no mask."""
        tokens = self.given.get("input_ids", self.given.get("inputs_embeds"))
        mask = self.given.get("attention_mask")
        if not self.accepts_mask or tokens is None or (mask is not None and mask.shape != tokens.shape[:2]):
            return None
        mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device) if mask is None else mask.clone()
        away = max(1, tokens.shape[1] // 3)
        for row in range(mask.shape[0]):
            if row % 3 == 0:
                mask[row, -away:] = 0
            elif row % 3 == 1:
                mask[row, :away] = 0
        return {**self.given, "attention_mask": mask}

    def _outputs(self, output: Any, batch: int | None = None) -> list[torch.Tensor]:
        """The outputs that have a row per position of the sequence; the encoder's are not among a decoder's."""
        if isinstance(output, Mapping) and self.sequence.startswith("decoder_"):
            output = [value for name, value in output.items() if not name.startswith("encoder_")]
        shape = (self.batch if batch is None else batch, self.length)
        return [t for t in _tensors(output) if t.is_floating_point() and t.dim() > 2 and tuple(t.shape[:2]) == shape]


def _changed(tokens: torch.Tensor, where: torch.Tensor) -> torch.Tensor | None:
    """A sequence with others of its tokens at some places (batch, length); None if it has but one token."""
    if tokens.is_floating_point():
        return torch.where(where.view(*where.shape, *[1] * (tokens.dim() - 2)), -tokens, tokens)
    known = tokens.unique()
    if len(known) < 2:
        return None
    return torch.where(where, known[(torch.searchsorted(known, tokens) + 1) % len(known)], tokens)


def _tensors(output: Any) -> list[torch.Tensor]:
    return [t for t in tree_leaves(output) if isinstance(t, torch.Tensor)]


def _copied(given: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of the arguments: a call may write into them."""
    plain = {name: tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, v) for name, v in given.items()}
    return {name: v if isinstance(v, torch.Tensor) else copy.deepcopy(v) for name, v in plain.items()}


def _by_name(model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name."""
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ProgramError(f"the model does not take these arguments: {error}") from error
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            raise ProgramError("verify gives every argument by name; the model takes some by position only")
        given.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return given


def _sequence(given: Mapping[str, Any]) -> str:
    """The name of the argument that is the sequence."""
    names = [*_SEQUENCES, *given]
    found = next((n for n in names if isinstance(given.get(n), torch.Tensor) and given[n].dim()), None)
    if found is None:
        raise ProgramError("verify needs a tensor among the model's arguments")
    return found


@contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """The model in eval mode; mode and buffers are put back."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for buffer, before in buffers:
            buffer.copy_(before)
