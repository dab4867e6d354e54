"""Export an encoder-decoder model as three programs, and lower them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.export import Dim, ExportedProgram, export

from ...errors import LimitError, ProgramError
from ..api import lower
from ..target import Target
from .limits import Limits
from .programs import Seq2SeqPrograms
from .pruning import pruned


def export_seq2seq(
    model: Any,
    *,
    batch_size: int,
    max_source_len: int,
    max_target_len: int,
    max_beams: int = 4,
    target: str | Target = "inductor",
    progress: Callable[[str], None] | None = None,
) -> Seq2SeqPrograms:
    """Export a Hugging Face encoder-decoder model and lower the attention of its programs.

    The programs are good for every batch, source length, number of tokens and of beams from 1 up to the limits:

    - encoder: source, its attention mask -> hidden states, and each decoder layer's cross-attention keys and values;
    - prefill: the decoder's prompt, written into the self-attention caches;
    - step: one token at a position, over the caches.

    Args:
        model: a `PreTrainedModel` with an encoder and a decoder, such as T5, BART, Marian or Whisper; in evaluation
            mode. It is left as it is, and shares its weights with the programs.
        batch_size: most sources in one call.
        max_source_len: most positions of the encoder's output; for speech that of the model, e.g. Whisper's 1500.
        max_target_len: most decoder tokens, start token and prompt included.
        max_beams: most decoder rows per source.
        target: the backend whose attention the programs are lowered to.
        progress: told what is being done, one call per step.

    Raises:
        ProgramError: if the model is no encoder-decoder model.
        LimitError: for limits below 1, or beyond the positions that the model has.
    """
    from .attention import shared_sources
    from .modules import Decoder, Encoder

    config = getattr(model, "config", None)
    if config is None or not getattr(config, "is_encoder_decoder", False):
        raise ProgramError(f"export_seq2seq takes an encoder-decoder model of transformers, not {type(model).__name__}")
    if model.training:
        raise ProgramError("export_seq2seq takes a model in evaluation mode: call model.eval()")
    limits = Limits(batch_size, max_source_len, max_target_len, max_beams)
    _check_positions(config, limits, speech=model.main_input_name != "input_ids")
    tell = progress or _nobody
    with torch.no_grad(), shared_sources(model):
        tell("exporting the encoder")
        encoder_inputs, encoder_shapes = _encoder_inputs(model, limits)
        encoder = _exported(Encoder(model), encoder_inputs, encoder_shapes)
        hidden, keys, values = Encoder(model)(*encoder_inputs)
        decoders = {}
        for step in (False, True):
            tell(f"exporting the {'step' if step else 'prefill'}")
            inputs, shapes = _decoder_inputs(limits, [keys, values], hidden.shape[1], model, step=step)
            decoders[step] = _exported(Decoder(model, step=step), inputs, shapes)
    tell("proving and lowering")
    lowered = {
        "encoder": lower(encoder, target=target),
        "prefill": lower(decoders[False], target=target),
        "step": lower(decoders[True], target=target),
    }
    return Seq2SeqPrograms(
        programs={name: result.program for name, result in lowered.items()},
        reports={name: result.report for name, result in lowered.items()},
        limits=limits,
        model_class=type(model).__name__,
        config=config,
        generation_config=model.generation_config,
    )


def _nobody(step: str) -> None:
    """Progress that nobody asked for."""


def _exported(module: torch.nn.Module, args: tuple[Any, ...], shapes: Any) -> ExportedProgram:
    return pruned(export(module.eval(), args, dynamic_shapes=shapes, strict=False))


def _check_positions(config: Any, limits: Limits, *, speech: bool) -> None:
    """Check the limits against the positions that the model's embeddings have; relative positions have no end."""
    if getattr(config, "relative_attention_num_buckets", None) is not None:
        return
    target = getattr(config, "max_target_positions", None) or getattr(config, "max_position_embeddings", None)
    if target is not None and limits.max_target_len > target:
        raise LimitError(f"max_target_len={limits.max_target_len}, but the model has {target} decoder positions")
    source = getattr(config, "max_source_positions", None) or getattr(config, "max_position_embeddings", None)
    if source is None:
        return
    if speech and limits.max_source_len < source:
        raise LimitError(f"max_source_len={limits.max_source_len}, but the model's encoder gives {source} positions")
    if not speech and limits.max_source_len > source:
        raise LimitError(f"max_source_len={limits.max_source_len}, but the model has {source} encoder positions")


def _dim(name: str, most: int) -> Any:
    """A dynamic size from 1 up; a size that can only be 1 is static."""
    return Dim(name, min=1, max=most) if most > 1 else None


def _sample(most: int, wanted: int) -> int:
    return min(most, wanted)


def _shape(**axes: Any) -> dict[int, Any] | None:
    found = {int(name[1:]): dim for name, dim in axes.items() if dim is not None}
    return found or None


def _encoder_inputs(model: Any, limits: Limits) -> tuple[tuple[torch.Tensor, ...], tuple[Any, ...]]:
    batch, device = _sample(limits.batch_size, 2), model.device
    b = _dim("batch", limits.batch_size)
    if model.main_input_name == "input_ids":
        length = _sample(limits.max_source_len, 7)
        s = _dim("source", limits.max_source_len)
        ids = torch.full((batch, length), 1, dtype=torch.long, device=device)
        return (ids, torch.ones_like(ids)), (_shape(_0=b, _1=s), _shape(_0=b, _1=s))
    config = model.config
    frames = config.max_source_positions * model.get_encoder().conv1.stride[0] * model.get_encoder().conv2.stride[0]
    features = torch.zeros(batch, config.num_mel_bins, frames, dtype=model.dtype, device=device)
    mask = torch.ones(batch, frames, dtype=torch.long, device=device)
    return (features, mask), (_shape(_0=b), _shape(_0=b))


def _decoder_inputs(
    limits: Limits, cross: Sequence[Sequence[torch.Tensor]], source: int, model: Any, *, step: bool
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    batch, beams = cross[0][0].shape[0], _sample(limits.max_beams, 3)
    length = 1 if step else _sample(limits.max_target_len, 5)
    b, g = _dim("batch", limits.batch_size), _dim("beams", limits.max_beams)
    t = None if step else _dim("tokens", limits.max_target_len)
    s = _dim("source", limits.max_source_len) if model.main_input_name == "input_ids" else None
    device = cross[0][0].device
    caches: list[list[torch.Tensor]] = []
    for part in cross:
        caches.append([k.new_zeros((batch, beams, k.shape[1], limits.max_target_len, k.shape[3])) for k in part])
    args = (
        torch.ones((batch, beams, length), dtype=torch.long, device=device),
        torch.zeros(1, dtype=torch.long, device=device),
        torch.ones((batch, source), dtype=torch.long, device=device),
        *caches,
        *(list(part) for part in cross),
    )
    layers = len(cross[0])
    shapes = (
        _shape(_0=b, _1=g, _2=t),
        None,
        _shape(_0=b, _1=s),
        *([_shape(_0=b, _1=g)] * layers for _ in range(2)),
        *([_shape(_0=b, _2=s)] * layers for _ in range(2)),
    )
    return args, shapes
