"""What reaches attention when a model runs eagerly, element by element: the truth that proofs are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

BLOCKED = -1e30
"""Scores below this leave no weight to a key."""


@dataclass(frozen=True)
class Seen:
    """One attention call of an eager run.

    Attributes:
        module: path of the module that made it.
        allowed: boolean, (..., Q, K) with as many axes as the scores: the keys that keep a weight.
        masked: a mask tensor was given (None if the call is written out, where it cannot be told).
        biased: a number other than zero was added to the score of an allowed key (None if written out).
    """

    module: str
    allowed: torch.Tensor
    masked: bool | None
    biased: bool | None

    @property
    def is_full(self) -> bool:
        """True if every query sees every key."""
        return bool(self.allowed.all())

    @property
    def is_causal(self) -> bool:
        """True if every query sees the keys up to its own place, and there are as many keys as queries."""
        queries, keys = self.allowed.shape[-2:]
        triangle = torch.ones(queries, keys, dtype=torch.bool).tril()
        return queries == keys and bool((self.allowed == triangle).all())


class _Observer(TorchFunctionMode):
    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__()
        self.where = where
        self.seen: list[Seen] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            self.seen.append(_from_sdpa(self.where(), *args, **kwargs))
        elif name == "softmax" and torch.is_tensor(args[0] if args else kwargs.get("input")):
            scores = args[0] if args else kwargs["input"]
            if scores.dim() >= 3:
                self.seen.append(Seen(self.where(), (scores > BLOCKED).detach(), None, None))
        return func(*args, **kwargs)


def _from_sdpa(
    module: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Seen:
    shape = (*query.shape[:-1], key.shape[-2])
    allowed, biased = torch.ones(shape, dtype=torch.bool), False
    if is_causal:
        allowed = allowed.tril()
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        allowed = allowed & attn_mask
    elif attn_mask is not None:
        allowed = allowed & (attn_mask > BLOCKED)
        biased = bool((attn_mask.expand(shape)[allowed] != 0).any())
    return Seen(module, allowed, attn_mask is not None, biased)


@contextmanager
def _module_stack(model: torch.nn.Module) -> Iterator[list[str]]:
    """The paths of the modules that are running, outermost first, while a model runs."""
    stack: list[str] = []
    handles = []

    def leave(module: torch.nn.Module, args: Any, result: Any) -> None:
        stack.pop()

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, a, n=name: stack.append(n)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def observe(model: torch.nn.Module, given: dict[str, Any]) -> tuple[Any, list[Seen]]:
    """Run a model eagerly without gradients; its result and its attention calls, in order."""
    with _module_stack(model) as stack, torch.no_grad(), _Observer(lambda: stack[-1] if stack else "") as observer:
        result = model(**given)
    return result, observer.seen
