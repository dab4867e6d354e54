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
from .naming import cache_name
from .runtime import Runtime
from .session import Session

_TAKEN = frozenset(("attention_mask", "decoder_input_ids", "decoder_attention_mask"))
"""What `generate` may be given for the model itself, of which the programs make something."""
_MODES = frozenset(("greedy_search", "sample", "beam_search", "beam_sample"))


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
    prompt_length: int
    cache_name: str
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
        self.session = Session(self.runtime, self.limits, source, attention_mask)
        return self.session

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """`generate` asks before anything runs; its own answer looks at the signatures of parts that are not here."""
        unknown = sorted(name for name, value in model_kwargs.items() if value is not None and name not in _TAKEN)
        if unknown:
            raise ProgramError(f"the exported programs take no {', '.join(unknown)}")
        mask = model_kwargs.get("decoder_attention_mask")
        if mask is not None and not bool(mask.all()):
            raise ProgramError(
                "the exported decoder takes no mask over its own tokens: decoder_attention_mask has zeros"
            )
        prompt = model_kwargs.get("decoder_input_ids")
        self.prompt_length = 1 if prompt is None else prompt.shape[1]

    def _validate_generation_mode(self, mode: Any, generation_config: Any, more: dict[str, Any]) -> None:
        """Likewise, with the defaults and the arguments of the call as one config."""
        if mode.value not in _MODES:
            raise ProgramError(f"the exported programs generate by {', '.join(sorted(_MODES))}, not by {mode.value}")
        config = generation_config
        new = config.max_new_tokens
        length = max(self.prompt_length, config.max_length or 1) if new is None else self.prompt_length + new
        self.limits.check_target(max(config.num_beams or 1, config.num_return_sequences or 1), length)
        super()._validate_generation_mode(mode, generation_config, more)  # type: ignore[misc]

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if self.session is None:
            raise ProgramError("generate needs the source itself; encoder_outputs cannot be given to the programs")
        self.limits.check_target(1, generation_config.max_length)
        generation_config.use_cache = True  # without it every step would be given all tokens; it is the call's own copy
        model_kwargs[self.cache_name] = ProgramCache(self.session)

    def forward(
        self,
        decoder_input_ids: Tensor,
        cache: Any = None,
        past_key_values: Any = None,
        input_features: Tensor | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        cache = past_key_values if cache is None else cache
        if cache is None:  # Whisper asks for the language before it generates
            if input_features is None:
                raise ProgramError("the exported programs are called with a source, or with the cache of one")
            cache = ProgramCache(self.encode(input_features, None))
        logits = cache.session.decode(decoder_input_ids)
        return Seq2SeqLMOutput(logits=logits, **{cache_name(Seq2SeqLMOutput): cache})

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
    model.cache_name = cache_name(original.forward)
    return model.eval()


def bound(model: Any, runtime: Runtime, limits: Limits, like: Tensor) -> Any:
    """A stand-in for one call of `generate`, which shares everything with the given one but this call's state."""
    model = copy.copy(model)
    model.runtime, model.limits, model.session = runtime, limits, None
    model.running_on = (like.device, like.dtype)
    return model
