"""IAttention: normalization(query @ key^T, masked) @ value, in the documented math."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..enums import AttentionIOForm, AttentionNormalizationOp, CausalMaskKind, DataType, LayerType
from ..layer import Producer
from ..modes import plain
from ..rules import attention as rules
from ..settings import Setting
from ..tensor import ITensor

if TYPE_CHECKING:
    from ..network import INetworkDefinition

MASK, SCALE, QUERY_LENGTHS, KEY_VALUE_LENGTHS = 3, 4, 5, 6


class _Input:
    """A tensor that is set as an attribute and stands at a fixed input."""

    def __init__(self, index: int, since: str = "10.14", clearable: bool = False) -> None:
        self.index, self.setting, self.clearable = index, Setting(since=since), clearable

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.setting.name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        self.setting._require(owner)
        return self if instance is None else instance.get_input(self.index)

    def __set__(self, instance: Any, tensor: ITensor | None) -> None:
        self.setting._require(type(instance))
        if tensor is None and not self.clearable:
            raise TypeError(f"IAttention.{self.name} takes an ITensor, not None")
        instance._connect(self.index, tensor)
        instance.check_input(self.index)


class AttentionLayer(Producer):
    """The attention of one `add_attention`; no ILayer in TensorRT either.

    The scores are computed in float32 as a fused kernel does, the output has the query's type. A row that may attend to
    nothing is NaN: the header promises nothing else (softmax over -inf).
    """

    layer_type = LayerType.ATTENTION_INPUT
    kind = "ATTENTION"

    name = Setting("", str)
    norm_op = Setting(AttentionNormalizationOp.SOFTMAX)
    decomposable = Setting(False, bool)
    normalization_quantize_to_type = Setting(None)
    metadata = Setting("", str, since="10.15")
    num_ranks = Setting(1, int, since="10.16")
    query_form = Setting(AttentionIOForm.PADDED_BHND, since="11.0")
    key_value_form = Setting(AttentionIOForm.PADDED_BHND, since="11.0")
    causal_kind = Setting(CausalMaskKind.NONE, CausalMaskKind, since="11.0")

    mask = _Input(MASK)
    normalization_quantize_scale = _Input(SCALE)
    query_lengths = _Input(QUERY_LENGTHS, since="11.0", clearable=True)
    key_value_lengths = _Input(KEY_VALUE_LENGTHS, since="11.0", clearable=True)

    def __init__(
        self,
        network: INetworkDefinition,
        inputs: Sequence[ITensor],
        name: str,
        norm_op: AttentionNormalizationOp,
        causal: CausalMaskKind,
    ) -> None:
        super().__init__(network, inputs, name)
        self.__dict__["norm_op"] = AttentionNormalizationOp(norm_op)
        self.__dict__["causal_kind"] = causal

    @property
    def causal(self) -> bool:
        """Whether a causal kind is set; setting True means UPPER_LEFT."""
        return self.alignment is not CausalMaskKind.NONE

    @causal.setter
    def causal(self, causal: bool) -> None:
        self.__dict__["causal_kind"] = CausalMaskKind.UPPER_LEFT if causal else CausalMaskKind.NONE
        self.changed("causal")

    @property
    def alignment(self) -> CausalMaskKind:
        """The causal kind, whatever the version's name for it."""
        return self.__dict__["causal_kind"]

    @property
    def forms(self) -> tuple[AttentionIOForm, AttentionIOForm]:
        """Query's and key/value's form, in versions too that have only the padded one."""
        padded = AttentionIOForm.PADDED_BHND
        return self.__dict__.get("query_form", padded), self.__dict__.get("key_value_form", padded)

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return 1

    def set_input(self, index: int, tensor: ITensor) -> None:
        """Replace query (0), key (1) or value (2)."""
        self._connect(index, tensor)
        self.check_input(index)

    def get_input(self, index: int) -> ITensor | None:
        return self._inputs[index] if index < len(self._inputs) else None

    def get_output(self, index: int) -> ITensor | None:
        return self._outputs[0] if index == 0 else None

    @plain
    def check_input(self, index: int) -> None:
        """The rules for one input; the whole layer is checked when it is built."""
        query, key, value = self._inputs[:3]
        if index == MASK:
            rules.mask_type(self, self._inputs[MASK], query)
            if self.forms == (AttentionIOForm.PADDED_BHND,) * 2:
                rules.mask_shape(self, self._inputs[MASK], query, key)
        elif index < MASK and self.forms == (AttentionIOForm.PADDED_BHND,) * 2:
            rules.input_ranks(self, query, key, value, self.forms)
            rules.input_types(self, query, key, value)
            rules.head_counts(self, query, key, value)
            rules.head_dims(self, query, key, value)
            rules.same_axis(self, "attention batch", 0, [query, key, value])
            rules.same_axis(self, "attention key/value length", 2, [key, value])

    def check(self) -> None:
        query, key, value = self._inputs[:3]
        query_form, other_form = self.forms
        rules.input_ranks(self, query, key, value, self.forms)
        rules.input_types(self, query, key, value)
        rules.head_counts(self, query, key, value)
        rules.head_dims(self, query, key, value)
        mask = self.get_input(MASK)
        rules.mask_or_causal(self, mask, self.alignment)
        if query_form is other_form is AttentionIOForm.PADDED_BHND:
            self.check_input(0)
        if mask is not None:
            self.check_input(MASK)
        rules.normalization(self, self.norm_op, self.decomposable)
        rules.lengths(self, "query_lengths", self.get_input(QUERY_LENGTHS), query_form)
        rules.lengths(self, "key_value_lengths", self.get_input(KEY_VALUE_LENGTHS), other_form)
        rules.quantization(self, self.get_input(SCALE), self.normalization_quantize_to_type)
        rules.metadata(self, self.__dict__.get("metadata", ""))

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        from ..weak import forgotten_dims

        return forgotten_dims(self._inputs[0])

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        query, key, value = inputs[:3]
        mask, scale = self.value(inputs, MASK), self.value(inputs, SCALE)
        lengths = self.value(inputs, KEY_VALUE_LENGTHS)
        if self.forms != (AttentionIOForm.PADDED_BHND,) * 2:
            return (self._packed(inputs),)
        return (self._attend(query, key, value, mask, scale, lengths),)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: torch.Tensor | None,
        lengths: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention of padded tensors [B, Hq, Sq, D], [B, Hkv, Skv, D]."""
        if query.shape[0] != key.shape[0] or key.shape[2] != value.shape[2]:
            raise ValueError(f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}")
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, dim=1).float() for t in (key, value))
        scores = query.float() @ key.transpose(-1, -2)
        if mask is not None and mask.shape[-2:] != scores.shape[-2:]:
            raise ValueError(f"the mask {tuple(mask.shape)} for scores {tuple(scores.shape)}")
        allowed = self._allowed(scores, lengths)
        if mask is not None and mask.dtype == torch.bool:
            allowed = mask if allowed is None else allowed & mask
        elif mask is not None:
            scores = scores + mask.float()
        if allowed is not None:
            scores = scores.masked_fill(~allowed, float("-inf"))
        if self.norm_op is AttentionNormalizationOp.SOFTMAX:
            scores = _softmax(scores)
        if scale is not None:
            scores = _quantize_and_back(scores, scale, self.normalization_quantize_to_type)
        return (scores @ value).to(query.dtype)

    def _allowed(self, scores: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor | None:
        """Where causality and the valid key/value lengths allow a pair; None: everywhere."""
        rows, columns = scores.shape[-2:]
        column = torch.arange(columns, device=scores.device)
        allowed = None
        if self.alignment is not CausalMaskKind.NONE:
            offset = columns - rows if self.alignment is CausalMaskKind.LOWER_RIGHT else 0
            allowed = column <= torch.arange(rows, device=scores.device)[:, None] + offset
        if lengths is not None:
            valid = column < lengths[:, None, None, None]
            allowed = valid if allowed is None else allowed & valid
        return allowed

    def _packed(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Attention where query or key/value are packed [tokens, H, D]: each batch element on its own."""
        query, key, value = inputs[:3]
        if any(tensor.is_meta for tensor in inputs):
            return torch.empty_like(query, device="meta")
        query_packed, other_packed = (form is AttentionIOForm.PACKED_NHD for form in self.forms)
        query_ends, other_lengths = self.value(inputs, QUERY_LENGTHS), self.value(inputs, KEY_VALUE_LENGTHS)
        mask, scale = self.value(inputs, MASK), self.value(inputs, SCALE)
        batch = query_ends.numel() - 1 if query_packed else query.shape[0]
        output = torch.zeros_like(query)
        for b in range(batch):
            q = query[query_ends[b] : query_ends[b + 1]].transpose(0, 1) if query_packed else query[b]
            if other_packed:
                k, v = (t[other_lengths[b] : other_lengths[b + 1]].transpose(0, 1) for t in (key, value))
            else:
                stop = key.shape[2] if other_lengths is None else int(other_lengths[b])
                k, v = key[b, :, :stop], value[b, :, :stop]
            own = None if mask is None else mask[b % mask.shape[0]][None, :, : q.shape[1], : k.shape[1]]
            result = self._attend(q[None], k[None], v[None], own, scale, None)[0]
            if query_packed:
                output[query_ends[b] : query_ends[b + 1]] = result.transpose(0, 1)
            else:
                output[b] = result
        return output


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """exp(x - max) / sum, which is NaN for a row of -inf (torch's softmax is too; SDPA's is not)."""
    return torch.softmax(scores, dim=-1)


def _quantize_and_back(scores: torch.Tensor, scale: torch.Tensor, to_type: DataType) -> torch.Tensor:
    """What is left of normalized scores after FP8 or INT8 quantization."""
    scaled = scores / scale.float()
    if to_type is DataType.FP8:
        return scaled.clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale.float()
    return scaled.round().clamp(-128, 127) * scale.float()


class IAttentionBoundaryLayer:
    """Named for `isinstance`; the reference keeps one layer per attention instead of two boundary layers."""
