"""transformers' own `generate` over the programs: its stopping, beams, processors and prompts, with our forward.

The stand-in is of the model's own class, without weights, so that whatever a class adds to generation (Whisper's
prompts, Marian's, ...) is there. Its encoder and its forward run the programs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from ...errors import ProgramError
from .limits import Limits
from .runtime import Runtime
from .session import Session


class ProgramCache(Cache):
    """What `generate` sees of the caches."""

    is_compileable = False

    def __init__(self, session: Session) -> None:
        super().__init__(layers=[])
        self.session = session

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Decoder tokens in the caches."""
        return self.session.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let each row continue from another."""
        self.session.reorder(beam_idx)


class _EncoderStandIn(torch.nn.Module):
    """What `generate` takes for the encoder."""

    def __init__(self, encode: Callable[[Tensor, Tensor | None], Session]) -> None:
        super().__init__()
        self._encode = encode

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> BaseModelOutput:
        if output_attentions or output_hidden_states:
            raise ProgramError("the exported encoder gives neither attentions nor the hidden states of its layers")
        source = input_ids if input_features is None else input_features
        if source is None:
            raise ProgramError("the encoder needs input_ids, or input_features for speech")
        return BaseModelOutput(last_hidden_state=self._encode(source, attention_mask).hidden)


class _StandIn:
    """Mixed in front of a model class: what `generate` calls, answered by the programs."""

    runtime: Runtime
    limits: Limits
    session: Session | None
    running_on: tuple[torch.device, torch.dtype]

    @property
    def device(self) -> torch.device:
        return self.running_on[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.running_on[1]

    def get_encoder(self, *args: Any, **kwargs: Any) -> torch.nn.Module:
        return _EncoderStandIn(self.encode)

    def encode(self, source: Tensor, attention_mask: Tensor | None) -> Session:
        if attention_mask is None:
            attention_mask = torch.ones((source.shape[0], source.shape[-1]), dtype=torch.long, device=source.device)
        self.session = Session(self.runtime, self.limits, source, attention_mask)
        return self.session

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """`generate` looks for unknown arguments in the signatures of parts that are not here."""

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if self.session is None:
            raise ProgramError("generate needs the source itself; encoder_outputs cannot be given to the programs")
        self.limits.check_target(1, generation_config.max_length)
        model_kwargs["past_key_values"] = ProgramCache(self.session)

    def forward(self, decoder_input_ids: Tensor, past_key_values: ProgramCache, **kwargs: Any) -> Seq2SeqLMOutput:
        logits = past_key_values.session.decode(decoder_input_ids)
        cache: Any = past_key_values  # of a class of its own
        return Seq2SeqLMOutput(logits=logits, past_key_values=cache)

    def __call__(self, *args: Any, **kwargs: Any) -> Seq2SeqLMOutput:
        return self.forward(*args, **kwargs)


def stand_in(model_class: str, config: Any, generation_config: Any) -> Any:
    """An object of the model's class, its weights on the meta device, to be `bound` for each call.

    Raises:
        ProgramError: if transformers has no class of this name.
    """
    original = getattr(transformers, model_class, None)
    if original is None:
        raise ProgramError(f"transformers {transformers.__version__} has no model class '{model_class}'")
    combined = type(model_class, (_StandIn, original), {})
    with torch.device("meta"):
        model = combined(copy.deepcopy(config))
    model.generation_config = copy.deepcopy(generation_config)
    return model.eval()


def bound(model: Any, runtime: Runtime, limits: Limits, like: Tensor) -> Any:
    """A stand-in for one call of `generate`, which shares everything with the given one but this call's state."""
    model = copy.copy(model)
    model.runtime, model.limits, model.session = runtime, limits, None
    model.running_on = (like.device, like.dtype)
    return model
