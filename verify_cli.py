"""`attnlower verify`: build a transformers model from a checkpoint or configuration, and check it compiled."""

from __future__ import annotations

import argparse
import inspect
import json
from typing import Any

import torch

from .demo_model import configuration, has_weights
from .errors import AttnLowerError

DTYPES = ("float32", "float16", "bfloat16", "float64")


class VerifyError(AttnLowerError):
    """The model named on the command line cannot be built or called."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `attnlower verify`."""
    parser.add_argument("model", help="a checkpoint folder, or a config.json (random weights)")
    parser.add_argument("--layers", type=_positive, help="layers to keep (default: all)")
    parser.add_argument("--batch", type=_positive, default=3, help="rows (default %(default)s)")
    parser.add_argument("--length", type=_positive, default=32, help="tokens in a row (default %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(default %(default)s)")
    parser.add_argument("--target", choices=("inductor", "eager"), default="inductor", help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check the model `args.model`; returns 0 if every check passes or does not apply, else 1."""
    from .lowering.verify import verify

    model = build(args.model, args.layers, getattr(torch, args.dtype), args.seed)
    result = verify(model, target=args.target, **inputs(model, args.batch, args.length, args.seed))
    print(json.dumps(result.to_dict(), indent=1) if args.json else f"{result}\n\n{result.report}")
    return 0 if result.passed else 1


def build(name: str, layers: int | None, dtype: torch.dtype, seed: int) -> Any:
    """The model of a checkpoint folder, or of a configuration with random weights, in eval mode.

    Raises:
        AttnLowerError: if there is none, or it cannot be built.
    """
    try:
        import transformers
    except ImportError as error:
        raise VerifyError("attnlower verify builds models with transformers: pip install 'attnlower[hf]'") from error
    transformers.logging.set_verbosity_error()
    config = configuration(name, layers)
    torch.manual_seed(seed)
    kind = _model_class(transformers, config)
    try:
        if has_weights(name):
            model = kind.from_pretrained(name, config=config, local_files_only=True)
        else:
            model = kind._from_config(config) if hasattr(kind, "_from_config") else kind.from_config(config)
    except (OSError, ValueError) as error:
        raise VerifyError(f"{name}: {error}") from error
    if model.main_input_name != "input_ids":
        raise VerifyError(f"{name}: takes {model.main_input_name}; this command has token ids only (attnlower.verify)")
    return model.to(dtype).eval()


def _model_class(transformers: Any, config: Any) -> Any:
    """The class that the configuration names, else the first of the auto classes that knows it."""
    for name in getattr(config, "architectures", None) or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    for name in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM"):
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping:
            return auto
    return transformers.AutoModel


def inputs(model: Any, batch: int, length: int, seed: int) -> dict[str, Any]:
    """Random token ids, and an attention mask without padding, for what the model's forward takes.

    Raises:
        VerifyError: if the model has no vocabulary, or fewer positions than `length`.
    """
    config = model.config.get_text_config()
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary is None:
        raise VerifyError(f"{type(model).__name__} has no vocab_size: its inputs are not token ids")
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and length > longest:
        raise VerifyError(f"--length {length}: the model has {longest} positions")
    generator = torch.Generator().manual_seed(seed)
    lowest = min(vocabulary - 1, 5)  # the first few are special tokens in most vocabularies

    def tokens() -> torch.Tensor:
        return torch.randint(lowest, vocabulary, (batch, length), generator=generator)

    takes = inspect.signature(model.forward).parameters
    found: dict[str, Any] = {"input_ids": tokens()}
    if "attention_mask" in takes:
        found["attention_mask"] = torch.ones(batch, length, dtype=torch.long)
    if getattr(model.config, "is_encoder_decoder", False):
        found["decoder_input_ids"] = tokens()
    if "use_cache" in takes:
        found["use_cache"] = False
    return found


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value
