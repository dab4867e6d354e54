"""Tiny random-weight models of many architectures and what the tests of this folder do with them, as the fixture `zoo`.

All models are built here from a config: nothing is downloaded. Most tests compile with the target "eager", which runs
the rewritten Dynamo graph as it is: what the passes did is what is measured, and no C++ is compiled.
"""

from __future__ import annotations

import gc
import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

import attnlower
from attnlower.lowering.backend import attnlower_backend
from attnlower.lowering.plan import Plan, make_plan
from attnlower.lowering.targets import find_target
from attnlower.patterns.metadata import tensor_of
from attnlower.patterns.sizes import shape_env_of

VOCABULARY = 64
WINDOW = 6
LIMIT = 64

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LIMIT,
    **SPECIAL,
}
DECODER = {**ENCODER, "num_key_value_heads": 1}
HEAD = {"head_dim": 8}
ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": LIMIT,
    "decoder_start_token_id": 2,
    **SPECIAL,
}
GPT = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": LIMIT, **SPECIAL}
T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
OPT = {"ffn_dim": 32, "word_embed_proj_dim": 16}
FALCON = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, **SPECIAL}
WHISPER = {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": LIMIT}
LLAMA4 = {
    "intermediate_size_mlp": 32,
    "num_local_experts": 2,
    "moe_layers": [],
    "attention_chunk_size": WINDOW,
    "layer_types": ["chunked_attention", "full_attention"],
}
DISTILBERT = {"vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "pad_token_id": 0}
MODERNBERT = {"local_attention": WINDOW, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2}

RECIPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bart": ("BartConfig", "BartForConditionalGeneration", SEQ2SEQ),
    "bert": ("BertConfig", "BertModel", ENCODER),
    "bloom": ("BloomConfig", "BloomForCausalLM", {"vocab_size": VOCABULARY, "n_layer": 2, "n_head": 2, **SPECIAL}),
    "cohere2": ("Cohere2Config", "Cohere2ForCausalLM", {**DECODER, **ALTERNATING}),
    "distilbert": ("DistilBertConfig", "DistilBertModel", {**DISTILBERT, "max_position_embeddings": LIMIT}),
    "falcon": ("FalconConfig", "FalconForCausalLM", FALCON),
    "falcon_alibi": ("FalconConfig", "FalconForCausalLM", {**FALCON, "alibi": True}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**DECODER, **HEAD, **ALTERNATING}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**DECODER, **HEAD, **ALTERNATING}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", ENCODER),
    "llama": ("LlamaConfig", "LlamaForCausalLM", DECODER),
    "llama4": ("Llama4TextConfig", "Llama4ForCausalLM", {**DECODER, **HEAD, **LLAMA4}),
    "mbart": ("MBartConfig", "MBartForConditionalGeneration", SEQ2SEQ),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**DECODER, "sliding_window": WINDOW}),
    "modernbert": ("ModernBertConfig", "ModernBertForMaskedLM", {**ENCODER, **MODERNBERT}),
    "mpt": ("MptConfig", "MptForCausalLM", {"vocab_size": VOCABULARY, "d_model": 16, "n_layers": 2, "n_heads": 2}),
    "opt": ("OPTConfig", "OPTForCausalLM", {**ENCODER, **OPT}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", DECODER),
    "phi3_window": ("Phi3Config", "Phi3ForCausalLM", {**DECODER, "sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", DECODER),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**DECODER, **HEAD}),
    "roberta": ("RobertaConfig", "RobertaModel", ENCODER),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", DECODER),
    "starcoder2_window": ("Starcoder2Config", "Starcoder2ForCausalLM", {**DECODER, "sliding_window": WINDOW}),
    "t5": ("T5Config", "T5ForConditionalGeneration", {**T5, "decoder_start_token_id": 0}),
    "whisper": ("WhisperConfig", "WhisperForConditionalGeneration", WHISPER),
}

SEQ2SEQ_NAMES = ("bart", "mbart", "t5", "whisper")


@dataclass
class Call:
    """An attention call of a lowered graph as its target will run it."""

    node: fx.Node
    mask: Any
    is_causal: bool


@dataclass
class Compiled:
    """A model compiled with attnlower.

    Attributes:
        call: takes the model's keyword arguments, returns its output tensor.
        report: of the first graph.
        plan: the variants of the first graph.
    """

    call: Callable[..., torch.Tensor]
    report: attnlower.Report
    plan: Plan

    @property
    def general(self) -> fx.GraphModule:
        """The lowered graph that is valid for every input."""
        return self.plan.general.gm

    @property
    def fast(self) -> fx.GraphModule | None:
        """The lowered graph that runs while the conditions hold; None if there are none."""
        return self.plan.guarded.gm if self.plan.guarded is not None else None


class Zoo:
    """Builds models and inputs, captures and lowers them."""

    window = WINDOW
    mask_kinds = ("ones", "left", "right", "holes")

    def __init__(self, transformers: ModuleType) -> None:
        self._transformers = transformers
        self._models: dict[tuple[str, str], torch.nn.Module] = {}
        self._programs: dict[tuple[str, bool, str], torch.export.ExportedProgram] = {}

    def model(self, name: str, attention: str = "sdpa") -> torch.nn.Module:
        """A model in evaluation mode, the same for every call, with weights so large that every mask matters."""
        key = name, attention
        if key not in self._models:
            config_name, model_name, options = RECIPES[name]
            config_class = getattr(self._transformers, config_name, None)
            model_class = getattr(self._transformers, model_name, None)
            if config_class is None or model_class is None:
                pytest.skip(f"transformers {self._transformers.__version__} has no {model_name}")
            torch.manual_seed(0)
            model = model_class._from_config(config_class(**options), attn_implementation=attention).eval()
            self.sharpen(model)
            self._models[key] = model
        return self._models[key]

    @staticmethod
    def sharpen(model: torch.nn.Module) -> None:
        """Scale up weights that were initialised with the usual deviation of 0.02."""
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() >= 2 and parameter.std() < 0.05:
                    parameter.mul_(4.0)

    def mask(self, kind: str, batch: int, length: int) -> torch.Tensor:
        """An attention mask; the last row of the batch is never padded on the left, the first never on the right."""
        mask = torch.ones(batch, length, dtype=torch.long)
        padded = max(1, length // 3)
        if length > 1 and kind == "left":
            mask[0, :padded] = 0
        if length > 1 and kind == "right":
            mask[-1, -padded:] = 0
        if length > 1 and kind == "holes":
            mask[0, 1::3] = 0
            mask[-1, 0] = 0
        return mask

    def inputs(self, name: str, batch: int, length: int, mask: str | None = None, seed: int = 0) -> dict[str, Any]:
        """Keyword arguments for a model; with `mask` one of `mask_kinds`, an attention mask of that kind."""
        generator = torch.Generator().manual_seed(1000 * batch + length + 100000 * seed)
        tokens = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
        given: dict[str, Any] = {"input_ids": tokens}
        if name == "whisper":
            given = {"input_features": torch.randn(batch, 8, 40, generator=generator), "decoder_input_ids": tokens}
        elif name in SEQ2SEQ_NAMES:
            target = max(1, length - 2)
            given["decoder_input_ids"] = torch.randint(3, VOCABULARY, (batch, target), generator=generator)
        if mask is not None:
            key = "decoder_attention_mask" if name == "whisper" else "attention_mask"
            given[key] = self.mask(mask, batch, length)
        if "use_cache" in inspect.signature(self._class_forward(name)).parameters and name not in ("bert", "roberta"):
            given["use_cache"] = False
        return given

    def _class_forward(self, name: str) -> Any:
        return getattr(self._transformers, RECIPES[name][1]).forward

    @staticmethod
    def output(result: Any) -> torch.Tensor:
        """The tensor that a model's call is about: the logits, or the last hidden state."""
        for key in ("logits", "last_hidden_state"):
            found = getattr(result, key, None)
            if found is not None:
                return found
        return result[0] if isinstance(result, (tuple, list)) else result

    def run(self, model: Callable[..., Any], given: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            return self.output(model(**given))

    def compile(self, model: torch.nn.Module, given: dict[str, Any], *, dynamic: bool, **options: Any) -> Compiled:
        """Compile a model with attnlower and call it once.

        The first graph is planned once more for the test to look at; on the way it is checked that planning adds no
        guard and changes no graph.
        """
        chosen = {"target": "eager", "strict": True, **options}
        plans: list[Plan] = []

        def backend(gm: fx.GraphModule, example_inputs: list[Any]) -> Any:
            if not plans:
                plans.append(self.plan(gm))
            return attnlower_backend(gm, example_inputs, options=chosen)

        torch._dynamo.reset()
        program = torch.compile(model, backend=backend, dynamic=dynamic)
        self.run(program, given)
        report = attnlower.last_report()
        assert report.error == ""
        return Compiled(lambda **kwargs: self.run(program, kwargs), report, plans[0])

    def plan(self, gm: fx.GraphModule) -> Plan:
        before = self.snapshot(gm)
        plan = make_plan(gm, find_target("eager"))
        assert self.snapshot(gm) == before
        return plan

    @staticmethod
    def snapshot(gm: fx.GraphModule) -> tuple[Any, ...]:
        """Everything that lowering must leave alone: the graph, its metadata, and what the ShapeEnv knows."""
        nodes = [(n.name, n.op, str(n.target), str(n.args), str(n.kwargs), sorted(n.meta)) for n in gm.graph.nodes]
        values = [n.meta.get("val", n.meta.get("example_value")) for n in gm.graph.nodes]
        env = shape_env_of(values)
        if env is None:
            return (nodes,)
        guards = [str(g.expr) for g in env.guards]
        asserts = {str(k): [str(a.expr) for a in v] for k, v in env.deferred_runtime_asserts.items()}
        ranges = {str(k): str(v) for k, v in env.var_to_range.items()}
        replaced = {str(k): str(v) for k, v in env.replacements.items()}
        return nodes, guards, asserts, ranges, replaced, str(sorted(map(str, env.axioms)))

    def export(self, name: str, *, padded: bool, attention: str = "sdpa") -> torch.export.ExportedProgram:
        """The model exported with dynamic batch and length at (2, 9), once per session."""
        key = name, padded, attention
        if key not in self._programs:
            given = self.inputs(name, 2, 9, "ones" if padded else None)
            self._programs[key] = self.export_model(self.model(name, attention), given)
        return self._programs[key]

    @staticmethod
    def export_model(model: torch.nn.Module, given: dict[str, Any]) -> torch.export.ExportedProgram:
        auto = torch.export.Dim.AUTO
        shapes = {k: {0: auto, 1: auto} if torch.is_tensor(v) and v.dim() == 2 else None for k, v in given.items()}
        if "input_features" in given:
            shapes["input_features"] = {0: auto}
        with torch.no_grad():
            return torch.export.export(model, (), given, dynamic_shapes=shapes, strict=False)

    @staticmethod
    def calls(gm: fx.GraphModule) -> list[Call]:
        """The scaled_dot_product_attention calls of a graph, read straight from its nodes."""
        found = []
        for node in gm.graph.nodes:
            if node.op == "call_function" and "scaled_dot_product_attention" in str(node.target):
                args = dict(zip(("attn_mask", "dropout_p", "is_causal"), node.args[3:], strict=False))
                args.update(node.kwargs)
                found.append(Call(node, args.get("attn_mask"), bool(args.get("is_causal", False))))
        return found

    def squares(self, gm: fx.GraphModule) -> list[str]:
        """Names of the tensors of a graph that have the length of the first attention call's queries twice or more."""
        query = tensor_of(self.calls(gm)[0].node.args[0])
        assert query is not None
        length = str(query.shape[-2])
        shapes = {n.name: [str(s) for s in t.shape] for n in gm.graph.nodes if (t := tensor_of(n)) is not None}
        return [name for name, shape in shapes.items() if shape.count(length) > 1]

    @staticmethod
    def assert_equal(actual: torch.Tensor, expected: torch.Tensor, what: str = "") -> None:
        """Equal at every position, also in padded query rows."""
        torch.testing.assert_close(
            actual, expected, rtol=0, atol=1e-5, equal_nan=True, msg=lambda text: f"{what}: {text}" if what else text
        )


@pytest.fixture(scope="session")
def zoo() -> Zoo:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.set_verbosity_error()
    return Zoo(transformers)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Models this small lose more by waking threads than by computing, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def no_structured_trace() -> Iterator[None]:
    """Keep pytest from recording Dynamo's structured trace: megabytes, and a quarter of the time of these tests."""
    trace = logging.getLogger("torch.__trace")
    handlers = list(trace.handlers)
    trace.handlers.clear()
    trace.addHandler = lambda handler: None  # type: ignore[method-assign]
    yield
    del trace.addHandler
    trace.handlers.extend(handlers)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """Start every test with no compiled code.

    What survives a test (torch keeps a good deal of every trace) is taken out of the garbage collector's sight, whose
    rounds would otherwise come to cost as much as the tests. The cache of fake tensors slows down as it grows.
    """
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    FakeTensorMode.cache_clear()
    gc.collect()
    gc.freeze()
