"""What attnlower changes in torch_tensorrt, and how it is undone: its list of lowering passes, its converters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..lowering.op import attention as _attention_op  # registers attnlower::attention
from .adapters import SPELLINGS, adapter, canonical_validator, convert_canonical, validator
from .input_writes import WritesBecomeOutputs
from .select import convert_where, where_validator

ASSUMING_PASS = "force_causal_efficient_attention"
"""torch_tensorrt's pass that takes every additive mask for a causal one, whatever it holds."""


SHAPELESS = (torch.ops.aten.gather.default,)
"""Ops whose converter in torch_tensorrt holds for dynamic shapes, as it reads none, but is not registered for them."""


class Installation:
    """Converters and lowering passes in torch_tensorrt's registries, one before and one after its own, until `undo`."""

    def __init__(self, lowering_pass: Callable[..., Any], closing_pass: Callable[..., Any]) -> None:
        from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_ATEN_CONVERTERS, ConverterSupport
        from torch_tensorrt.dynamo.lowering.passes._aten_lowering_pass import ATEN_POST_LOWERING_PASSES

        self._converters: dict[Any, Any] = DYNAMO_ATEN_CONVERTERS
        self._passes: list[Callable[..., Any]] = ATEN_POST_LOWERING_PASSES.passes
        self._own = (lowering_pass, closing_pass)
        self._input_writes = WritesBecomeOutputs()
        self._replaced: dict[Any, Any] = {}
        # Replaced, not put in front: where a validator says no, torch_tensorrt's own converter would be asked next,
        # and it takes calls that IAttention does not.
        self._replace(
            torch.ops.attnlower.attention.default,
            ConverterSupport(convert_canonical, canonical_validator, supports_dynamic_shapes=True),
        )
        for spelling in SPELLINGS:
            self._replace(
                spelling.op, ConverterSupport(adapter(spelling), validator(spelling), supports_dynamic_shapes=True)
            )
        where = torch.ops.aten.where.self
        own = ConverterSupport(convert_where, where_validator, supports_dynamic_shapes=True)
        self._replace(where, own, *self._converters.get(where, ()))
        for op in SHAPELESS:
            self._replace(op, *(replace(c, supports_dynamic_shapes=True) for c in self._converters.get(op, ())))
        self._before: list[tuple[Callable[..., Any], Callable[..., Any] | None]] = []
        for assuming in [p for p in self._passes if getattr(p, "__name__", "") == ASSUMING_PASS]:
            after = self._passes[self._passes.index(assuming) + 1 :]
            self._before.append((assuming, after[0] if after else None))
            self._passes.remove(assuming)
        self._passes.insert(0, lowering_pass)
        self._passes.append(closing_pass)

    def _replace(self, op: Any, *supports: Any) -> None:
        self._replaced[op] = self._converters.get(op)
        if supports:
            self._converters[op] = list(supports)

    def undo(self) -> None:
        """Put everything back as it was found."""
        self._input_writes.undo()
        for op, before in self._replaced.items():
            if before is None:
                self._converters.pop(op, None)
            else:
                self._converters[op] = before
        for own in self._own:
            if own in self._passes:
                self._passes.remove(own)
        for assuming, follower in reversed(self._before):
            place = self._passes.index(follower) if follower in self._passes else len(self._passes)
            self._passes.insert(place, assuming)


__all__ = ["ASSUMING_PASS", "Installation", "_attention_op"]
