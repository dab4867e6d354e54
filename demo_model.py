"""What the demo runs on: a decoder of a published model's widths, token ids of a real text, the hand-made oracle."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .errors import AttnLowerError

BUILT_IN = "qwen2.5-0.5b"
BUILT_IN_LAYERS = 2
# The published config.json of Qwen2.5-0.5B, but for the number of layers and the dtype.
BUILT_IN_CONFIG: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}
TRAINED_VOCABULARY = 8192
ORACLE = "attnlower_demo_oracle"


class DemoError(AttnLowerError):
    """The demo cannot run with what it was given."""


def build_model(name: str, layers: int | None, dtype: torch.dtype, seed: int) -> torch.nn.Module:
    """The decoder in eval mode, with the attention that Hugging Face chooses for it: SDPA wherever it has that.

    `name` is BUILT_IN, a config.json (both: random weights from `seed`) or a checkpoint folder. `layers` None means as
    many as the configuration says.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    config = configuration(name, layers)
    if getattr(config, "is_encoder_decoder", False):
        raise DemoError(f"{name} is an encoder-decoder ({config.model_type}); the demo takes decoder-only models")
    dtype_key = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    torch.manual_seed(seed)
    try:
        if has_weights(name):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                name, config=config, local_files_only=True, **{dtype_key: dtype}
            )
        else:
            model = transformers.AutoModelForCausalLM.from_config(config, **{dtype_key: dtype})
    except (OSError, ValueError) as error:
        raise DemoError(f"{name}: {error}") from error
    eval_model: torch.nn.Module = model.eval()
    return eval_model


def configuration(name: str, layers: int | None) -> Any:
    """The transformers configuration that `name` stands for, cut to `layers`."""
    from transformers import AutoConfig

    if name == BUILT_IN:
        fields = {**BUILT_IN_CONFIG, "num_hidden_layers": layers or BUILT_IN_LAYERS}
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    if not Path(name).exists():
        raise DemoError(f"{name} is neither {BUILT_IN} nor a local config.json or checkpoint folder")
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DemoError(f"{name}: {error}") from error
    if layers is not None:
        if layers > config.num_hidden_layers:
            raise DemoError(f"--layers {layers}: {name} has {config.num_hidden_layers}")
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    return config


def has_weights(name: str) -> bool:
    """Whether `name` is a folder with a checkpoint's weights in it."""
    folder = Path(name)
    return folder.is_dir() and any(list(folder.glob(end)) for end in ("*.safetensors", "pytorch_model*.bin"))


def describe(model: Any, name: str) -> str:
    """One line about the model: name, layers, widths, weights, dtype, attention implementation."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    widths = (
        f"{config.num_hidden_layers} layers, hidden {config.hidden_size}, {heads} heads "
        f"({getattr(config, 'num_key_value_heads', None) or heads} key/value), vocabulary {config.vocab_size}"
    )
    weights = "its own weights" if has_weights(name) else "random weights"
    dtype = str(model.dtype).removeprefix("torch.")
    return f"{name} ({config.model_type}): {widths}; {weights}, {dtype}, {config._attn_implementation} attention"


def token_ids(model: Any, name: str, text_file: str | None, batch: int, seq_len: int) -> tuple[torch.Tensor, str]:
    """`batch` rows of `seq_len` consecutive tokens of a real text, and one line that says where they come from."""
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and seq_len > longest:
        raise DemoError(f"--seq-len {seq_len}: the model has {longest} positions")
    source, text = real_text(text_file)
    tokenizer, ids = encode(text, name, config.vocab_size)
    if len(ids) < batch * seq_len:
        raise DemoError(f"{source} gives {len(ids)} tokens; {batch} x {seq_len} = {batch * seq_len} are needed")
    rows = torch.tensor(ids[: batch * seq_len]).reshape(batch, seq_len)
    return rows, f"{batch} x {seq_len} token ids of {source}, by {tokenizer}"


def real_text(text_file: str | None) -> tuple[str, str]:
    """Where the text is from, and the text: the file's, else the documentation that comes with every CPython."""
    if text_file is None:
        from pydoc_data import topics

        return "Python's documentation (pydoc_data.topics)", "\n".join(topics.topics.values())
    try:
        return text_file, Path(text_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DemoError(f"--text {text_file}: {error}") from error


def encode(text: str, name: str, vocab_size: int) -> tuple[str, list[int]]:
    """The text's token ids: by the checkpoint's own tokenizer, else by a byte-level BPE trained on the text itself."""
    if Path(name).is_dir() and any(Path(name).glob("tokenizer*.json")):
        from transformers import AutoTokenizer

        own = AutoTokenizer.from_pretrained(name, local_files_only=True)
        return "the checkpoint's own tokenizer", own(text).input_ids
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if vocab_size < 256:
        raise DemoError(f"a byte-level tokenizer needs 256 ids; the model's vocabulary has {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=min(TRAINED_VOCABULARY, vocab_size),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return f"a byte-level BPE of {tokenizer.get_vocab_size()} tokens trained on it", tokenizer.encode(text).ids


class Call:
    """Calls a model as users do, with an explicit attention mask and no cache, and returns its logits.

    Where the model knows `logits_to_keep`, only the last position's logits are asked for, as generate() does in its
    prefill: with a 151936-wide head the logits of 4096 positions would take most of the time and say little.
    """

    def __init__(self, model: torch.nn.Module, ids: torch.Tensor):
        self.ids = ids
        self.ones = torch.ones_like(ids)
        self.last_only = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.options: dict[str, Any] = {"use_cache": False, **({"logits_to_keep": 1} if self.last_only else {})}

    def __call__(self, model: Any, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """The logits of `model`; `attention_mask` is all ones unless given."""
        mask = self.ones if attention_mask is None else attention_mask
        logits: torch.Tensor = model(input_ids=self.ids, attention_mask=mask, **self.options).logits
        return logits

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"model(input_ids=..., attention_mask=all ones, {options}) under torch.no_grad()"


def reference_logits(model: torch.nn.Module, call: Call) -> torch.Tensor:
    """What the model itself gives for an attention mask of all ones: the measure of every variant's output."""
    try:
        return call(model)
    except (TypeError, ValueError) as error:
        raise DemoError(f"the model does not run on token ids and an attention mask: {error}") from error


def hand_made_oracle(model: Any, call: Call, reference: torch.Tensor) -> tuple[torch.nn.Module | None, str | None]:
    """The model with its mask decision made by hand, weights shared; or None and why there is none.

    It is right only where every layer is plainly causal: the configuration must say so, every layer's attention must go
    through the hand-made function, and the outputs must equal the model's own.
    """
    reason = not_plainly_causal(model.config.get_text_config(), call.ids.shape[1])
    if reason is not None:
        return None, reason
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    try:
        register_oracle()
        twin.set_attn_implementation(ORACLE)
        with counted_attention() as calls:
            difference = max_abs_diff(call(twin), reference)
    except (ImportError, AttributeError, ValueError) as error:
        return None, f"the hand-made attention cannot be put in: {error}"
    layers = model.config.get_text_config().num_hidden_layers
    if len(calls) != layers:
        return None, f"the model called the hand-made attention {len(calls)} times for {layers} layers"
    if difference > 1e-3 * reference.abs().max().item():
        return None, f"the output with the hand-made attention differs by {difference:.2g}: not plainly causal"
    return twin, None


def not_plainly_causal(config: Any, seq_len: int) -> str | None:
    """What in the configuration speaks against a plain causal mask in every layer at this length; None if nothing."""
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if others == {"sliding_attention"} or (not others and window is not None):
        return None if window is not None and seq_len <= window else f"sliding window of {window} tokens"
    return f"layers of type {', '.join(sorted(others))}" if others else None


def register_oracle() -> None:
    """Tell transformers about the hand-made attention and that it wants no mask."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ORACLE, causal_attention)
    AttentionMaskInterface.register(ORACLE, no_mask)


def no_mask(*args: object, **kwargs: object) -> None:
    """The mask of the hand-made attention: none."""


def causal_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention over [batch, heads, seq, width], whatever mask comes; refuses what else changes the scores."""
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"attention with {name}")
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
    )
    return output.transpose(1, 2).contiguous(), None


@contextlib.contextmanager
def counted_attention() -> Iterator[list[torch.Size]]:
    """While open, every call of the hand-made attention adds its query's shape to the list."""
    from transformers import AttentionInterface

    calls: list[torch.Size] = []

    def counting(module: torch.nn.Module, query: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        calls.append(query.shape)
        return causal_attention(module, query, *args, **kwargs)

    AttentionInterface.register(ORACLE, counting)
    try:
        yield calls
    finally:
        AttentionInterface.register(ORACLE, causal_attention)


def max_abs_diff(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest absolute difference between two outputs; infinite where one is NaN and the other is not."""
    difference = (one.float() - other.float()).abs()
    return float(torch.where(one.isnan() & other.isnan(), 0.0, difference).nan_to_num(float("inf")).max())
