"""Static key/value caches of transformers through torch_tensorrt on the reference: prefill and steps, equal to eager.

The reference is a stand-in for TensorRT; see tests/tensorrt_reference/README.md.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tensorrt_runtime import quiet
from torch import Tensor

import attnlower
from attnlower.converters import register, unregister

transformers = pytest.importorskip("transformers")
SLOTS, LAYERS, VOCABULARY = 16, 2, 64
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def clean(reference_tensorrt: Any) -> Iterator[None]:
    yield
    unregister()
    torch._dynamo.reset()


def decoder(family: str) -> torch.nn.Module:
    """Two tiny layers, four query heads over two key heads."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    model = getattr(transformers, f"{family}ForCausalLM")._from_config(config, attn_implementation="sdpa")
    model.generation_config = transformers.GenerationConfig(use_cache=True, cache_implementation="static")
    return model.eval()


def with_cache(family: str) -> torch.nn.Module:
    """transformers' own module for export: the cache in buffers, `(input_ids, cache_position)` to logits."""
    from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

    return TorchExportableModuleWithStaticCache(decoder(family), batch_size=1, max_cache_len=SLOTS).eval()


class CacheAsInputs(torch.nn.Module):
    """`(input_ids, position, *caches)` to logits; keys and values of every layer are written in place."""

    def __init__(self, family: str) -> None:
        super().__init__()
        self.model = decoder(family)

    def forward(self, input_ids: Tensor, position: Tensor, *caches: Tensor) -> Tensor:
        cache = transformers.StaticCache(config=self.model.config, max_cache_len=SLOTS)
        for layer, keys, values in zip(cache.layers, caches[::2], caches[1::2], strict=True):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values, layer.cumulative_length = keys, values, position[0].clone()
        out = self.model(input_ids=input_ids, past_key_values=cache, use_cache=True)
        logits: Tensor = out.logits
        return logits


@functools.cache
def exported(family: str, length: int, dynamic: bool) -> torch.export.ExportedProgram:
    """As transformers exports it: strict, for one length or for any."""
    given = {"input_ids": tokens(length), "cache_position": torch.arange(length)}
    tokens_dim = torch.export.Dim("length", min=1, max=SLOTS - 1)
    dims = {"input_ids": {1: tokens_dim}, "cache_position": {0: tokens_dim}} if dynamic else None
    with quiet():
        return torch.export.export(with_cache(family), (), given, dynamic_shapes=dims, strict=True)


def tokens(length: int = SLOTS) -> Tensor:
    return torch.randint(3, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(length))


def compiled(tensorrt: Any, program: torch.export.ExportedProgram, registered: bool = True) -> Callable[..., Any]:
    kwargs = dict(program.example_inputs[1])
    with quiet(), torch.no_grad(), register() if registered else nullcontext():
        done: Callable[..., Any] = tensorrt.dynamo.compile(
            copy.deepcopy(program), kwarg_inputs=kwargs, min_block_size=1
        )
    return done


def differences(run: Callable[..., Any], eager: torch.nn.Module, lengths: tuple[int, ...]) -> list[float]:
    """Largest absolute difference of the logits, call by call."""
    sequence, start, found = tokens(), 0, []
    for length in lengths:
        given = {
            "input_ids": sequence[:, start : start + length],
            "cache_position": torch.arange(start, start + length),
        }
        with torch.no_grad():
            found.append(float((run(**given) - eager(**given)).abs().max()))
        start += length
    return found


@pytest.mark.parametrize("family", ["Qwen2", "Llama"])
@pytest.mark.parametrize(
    "traced, dynamic, lengths",
    [(1, False, (1,) * 8), (4, True, (6, 1, 1, 3, 1, 1))],
    ids=["steps", "prefill and steps, one program"],
)
def test_every_call_is_eagers_on_the_reference(
    family: str,
    traced: int,
    dynamic: bool,
    lengths: tuple[int, ...],
    torch_tensorrt: Any,
    reference_tensorrt: Any,
) -> None:
    run = compiled(torch_tensorrt, exported(family, traced, dynamic))
    assert max(differences(run, with_cache(family), lengths)) <= TOLERANCE
    (compilation,) = reference_tensorrt.compilations()
    assert compilation.engines == 1
    written = {"aten.alias.default", "attnlower.copy_into.default", "attnlower.put_into.default"}
    assert set(compilation.torch_nodes) == written, "PyTorch reads and writes the cache, and does nothing else"
    assert len(reference_tensorrt.attentions()) == LAYERS
    assert {site.action for site in attnlower.last_report().sites} == {"keep"}


def test_alone_torch_tensorrt_forgets_the_cache(torch_tensorrt: Any) -> None:
    """The baseline, and after `unregister()` it is back: right at the first call, wrong at the second, no error."""
    program = exported("Qwen2", 1, False)
    before = differences(compiled(torch_tensorrt, program, registered=False), with_cache("Qwen2"), (1, 1, 1))
    assert before[0] <= TOLERANCE < 0.01 < min(before[1:])
    with register():
        pass
    after = differences(compiled(torch_tensorrt, program, registered=False), with_cache("Qwen2"), (1, 1, 1))
    assert after == before


def test_a_second_sequence_starts_over(torch_tensorrt: Any) -> None:
    """What the first sequence left in the cache lies behind the mask."""
    run, eager = compiled(torch_tensorrt, exported("Llama", 4, True)), with_cache("Llama")
    assert max(differences(run, eager, (8, 1, 1))) <= TOLERANCE
    assert max(differences(run, eager, (3, 1, 1))) <= TOLERANCE


def caches_of(module: Any) -> dict[str, Tensor]:
    """The key and value caches among a module's buffers, by their own name."""
    named = {name.rsplit(".", 1)[-1]: buffer for name, buffer in module.named_buffers()}
    return {name: buffer for name, buffer in named.items() if name.startswith(("key_cache", "value_cache"))}


@pytest.mark.parametrize("lengths", [(5, 1, 1)], ids=str)
def test_slots_not_yet_written_are_not_attended_to(lengths: tuple[int, ...], torch_tensorrt: Any) -> None:
    """Poisoned with 1e4, they change nothing: eager's caches are clean."""
    run, eager = compiled(torch_tensorrt, exported("Qwen2", 4, True)), with_cache("Qwen2")
    poisoned = caches_of(run)
    assert len(poisoned) == 2 * LAYERS
    for cache in poisoned.values():
        cache.fill_(1e4)
    assert max(differences(run, eager, lengths)) <= TOLERANCE
    written = sum(lengths)
    for cache in poisoned.values():
        assert (cache[:, :, written:] == 1e4).all() and (cache[:, :, :written] != 1e4).all()


def test_a_mask_over_all_slots_is_no_static_cache(torch_tensorrt: Any) -> None:
    """Near miss: a module that does attend to unwritten slots still gives what eager gives."""

    class Everything(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("keys", torch.ones(1, 2, 8, 4))

        def forward(self, x: Tensor, position: Tensor) -> Tensor:
            self.keys.index_copy_(2, position, x)
            allowed = torch.arange(8)[None, :] <= position[:, None] + 1
            return F.scaled_dot_product_attention(x, self.keys, self.keys, attn_mask=allowed)

    assert_like_eager(torch_tensorrt, Everything(), [(torch.randn(1, 2, 1, 4), torch.tensor([i])) for i in range(4)])


def assert_like_eager(
    tensorrt: Any, model: torch.nn.Module, calls: list[tuple[Tensor, ...]], **settings: Any
) -> Callable[..., Any]:
    """Export with the first call's inputs, compile, and run every call on both; buffers and inputs are compared too."""
    program = torch.export.export(copy.deepcopy(model), copy.deepcopy(calls[0]), strict=False)
    with quiet(), torch.no_grad(), register():
        run: Callable[..., Any] = tensorrt.dynamo.compile(
            program, arg_inputs=list(calls[0]), min_block_size=1, **settings
        )
    for call in calls:
        ours, eagers = copy.deepcopy(call), copy.deepcopy(call)
        with torch.no_grad():
            torch.testing.assert_close(run(*ours), model(*eagers), atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(ours, eagers, atol=TOLERANCE, rtol=0)
    return run


def test_caches_as_inputs_are_written(torch_tensorrt: Any, reference_tensorrt: Any) -> None:
    model = CacheAsInputs("Qwen2").eval()
    eagers = [torch.zeros(1, 2, SLOTS, 8) for _ in range(2 * LAYERS)]
    program = torch.export.export(model, (tokens(1), torch.tensor([0]), *copy.deepcopy(eagers)), strict=False)
    with quiet(), torch.no_grad(), register():
        run = torch_tensorrt.dynamo.compile(
            program, arg_inputs=[tokens(1), torch.tensor([0]), *copy.deepcopy(eagers)], min_block_size=1
        )
    ours = copy.deepcopy(eagers)
    for position in range(5):
        given = (tokens()[:, position : position + 1], torch.tensor([position]))
        with torch.no_grad():
            torch.testing.assert_close(run(*given, *ours), model(*given, *eagers), atol=TOLERANCE, rtol=0)
        for mine, theirs in zip(ours, eagers, strict=True):
            torch.testing.assert_close(mine, theirs, atol=TOLERANCE, rtol=0)
            assert mine[:, :, position].any() and not mine[:, :, position + 1 :].any()
    assert reference_tensorrt.compilations()[-1].engines == 1


class Rolling(torch.nn.Module):
    """A cache of the last 6 keys: the oldest falls out, all others move."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("keys", torch.zeros(1, 2, 6, 4))
        self.register_buffer("seen", torch.tensor(0))
        self.out = torch.nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.keys.copy_(torch.cat([self.keys[:, :, 1:], x], 2))
        self.seen.add_(1)
        allowed = torch.arange(6) >= 6 - self.seen
        return self.out(F.scaled_dot_product_attention(x, self.keys, self.keys, attn_mask=allowed[None]))


def test_a_cache_that_rolls(torch_tensorrt: Any) -> None:
    """Near miss of a row that is written: everything moves, and past the window too."""
    assert_like_eager(torch_tensorrt, Rolling(), [(torch.randn(1, 2, 1, 4),) for _ in range(9)])


class Sliced(torch.nn.Module):
    """Writes at places that are fixed (slice_scatter, select_scatter)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(1, 2, 6, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.keys[:, :, 1:3] = x
        self.keys[:, :, 5] = x[:, :, 0]
        return F.scaled_dot_product_attention(x, self.keys, self.keys) + 1


class WindowOfTransformers(torch.nn.Module):
    """A full window as transformers rolls it: `new[:, :, [-1]] = row`, written back whole."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.randn(1, 2, 6, 4))

    def forward(self, x: Tensor) -> Tensor:
        new = self.keys.roll(-1, dims=-2)
        new[:, :, torch.tensor([-1])] = x
        self.keys.copy_(new)
        return F.scaled_dot_product_attention(x, self.keys, self.keys) + 1


def test_a_window_as_transformers_rolls_it(torch_tensorrt: Any) -> None:
    assert_like_eager(torch_tensorrt, WindowOfTransformers(), [(torch.randn(1, 2, 1, 4),) for _ in range(3)])


class SetItem(torch.nn.Module):
    """`cache[:, :, position] = rows`, which drops the leading axis of size 1."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(1, 2, 6, 4))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        self.keys[:, :, position] = x
        allowed = torch.arange(6)[None, :] <= position[:, None]
        return F.scaled_dot_product_attention(x, self.keys, self.keys, attn_mask=allowed)


def test_rows_set_by_item(torch_tensorrt: Any) -> None:
    assert_like_eager(torch_tensorrt, SetItem(), [(torch.randn(1, 2, 1, 4), torch.tensor([i])) for i in range(4)])


def test_a_slice_that_is_written(torch_tensorrt: Any, reference_tensorrt: Any) -> None:
    run = assert_like_eager(torch_tensorrt, Sliced(), [(torch.randn(1, 2, 2, 4),) for _ in range(3)])
    assert "scatter_" in " ".join(str(n.target) for m in run.modules() for n in getattr(m, "graph", fx_none).nodes)


class fx_none:
    """Stands for the graph of a module that has none."""

    nodes: tuple[Any, ...] = ()


class Written(torch.nn.Module):
    """Writes at a position that is data."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(1, 2, 8, 4))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        self.keys.index_copy_(2, position, x)
        allowed = torch.arange(8)[None, :] <= position[:, None]
        return F.scaled_dot_product_attention(x, self.keys, self.keys, attn_mask=allowed)


def test_a_position_out_of_range_is_an_error_as_in_eager(torch_tensorrt: Any) -> None:
    """TensorRT ignores such a place; PyTorch, which does the writing, does not."""
    calls = [(torch.randn(1, 2, 1, 4), torch.tensor([i])) for i in (0, 7)]
    run = assert_like_eager(torch_tensorrt, Written(), calls)
    outside = (torch.randn(1, 2, 1, 4), torch.tensor([8]))
    with pytest.raises((IndexError, RuntimeError)):
        Written()(*outside)
    with pytest.raises((IndexError, RuntimeError)):
        run(*outside)


def test_where_pytorch_has_no_part_it_is_an_error(torch_tensorrt: Any) -> None:
    """An engine alone cannot keep a cache: it is told, where torch_tensorrt alone freezes the cache as a weight."""
    call = (torch.randn(1, 2, 1, 4), torch.tensor([0]))
    program = torch.export.export(Written(), call, strict=False)
    to_engine = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine
    with quiet(), torch.no_grad():
        assert to_engine(copy.deepcopy(program), arg_inputs=list(call))
        with register():
            with pytest.raises(Exception, match="not currently fully supported"):
                to_engine(copy.deepcopy(program), arg_inputs=list(call))
            with pytest.raises(AssertionError, match="require_full_compilation"):
                torch_tensorrt.dynamo.compile(program, arg_inputs=list(call), require_full_compilation=True)


def test_not_a_number_in_an_unwritten_value_spreads_as_in_eager(torch_tensorrt: Any) -> None:
    """A weight of 0 times NaN is NaN, by the definition of attention: a cache must be finite, as a new one is."""
    model = Written()
    model.keys.fill_(float("nan"))
    call = (torch.randn(1, 2, 1, 4), torch.tensor([0]))
    program = torch.export.export(copy.deepcopy(model), call, strict=False)
    with quiet(), torch.no_grad(), register():
        run = torch_tensorrt.dynamo.compile(program, arg_inputs=list(call), min_block_size=1)
    assert model(*call).isnan().all() and run(*call).isnan().all()


class Remembers(torch.nn.Module):
    """Projections, a cache and a counter, as in a decoder's layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("cache", torch.zeros(1, 2, 8, 4))
        self.register_buffer("count", torch.tensor(0))
        self.project = torch.nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        position = torch.arange(x.shape[2], device=x.device) + self.count
        self.cache.index_copy_(2, position, self.project(x))
        self.count.add_(x.shape[2])
        allowed = torch.arange(8, device=x.device)[None, :] <= position[:, None]
        return F.scaled_dot_product_attention(self.project(x), self.cache, self.cache, attn_mask=allowed)


@pytest.mark.parametrize("fast", [True, False], ids=["adjacency", "global"])
@pytest.mark.parametrize("apart", [(), ("sin",), ("linear", "sin")], ids=["one engine", "two engines", "more"])
def test_writes_wait_for_every_engine(fast: bool, apart: tuple[str, ...], torch_tensorrt: Any) -> None:
    """With parts in PyTorch there are several engines, which both partitioners put where operands allow."""

    class Counts(Remembers):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            late = torch.sin(out) + self.cache.sum((0, 1, 2)) + self.count
            self.cache.mul_(0.5)
            return self.project(late)

    executed = {getattr(torch.ops.aten, name).default for name in apart}
    calls = [(x,) for x in torch.randn(4, 1, 2, 1, 4)]
    settings = {"torch_executed_ops": executed, "use_fast_partitioner": fast}
    assert_like_eager(torch_tensorrt, Counts().eval(), calls, **settings)


@pytest.mark.parametrize("gradients", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("backend", ["torch_tensorrt", "attnlower"])
def test_torch_compile_keeps_what_is_written(
    backend: str, gradients: bool, torch_tensorrt: Any, reference_tensorrt: Any
) -> None:
    model, eager = Remembers().eval(), Remembers().eval()
    options: dict[str, Any] = {"min_block_size": 1, "pass_through_build_failures": True}
    if backend == "attnlower":
        options |= {"target": "tensorrt", "strict": True}
    model.requires_grad_(gradients)
    eager.requires_grad_(False)
    with quiet(), torch.set_grad_enabled(gradients), register():
        run = torch.compile(model, backend=backend, dynamic=False, fullgraph=True, options=options)
        for x in torch.randn(5, 1, 2, 1, 4):
            torch.testing.assert_close(run(x), eager(x), atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(model.cache, eager.cache, atol=TOLERANCE, rtol=0)
            assert model.count.shape == () and int(model.count) == int(eager.count)
    assert [c.engines for c in reference_tensorrt.compilations()] == [1]


def test_alone_torch_compile_forgets(torch_tensorrt: Any) -> None:
    """The baseline: torch_tensorrt's backend copies every input before it traces."""
    model, eager = Remembers().eval(), Remembers().eval()
    with quiet(), torch.no_grad():
        run = torch.compile(model, backend="torch_tensorrt", dynamic=False, options={"min_block_size": 1})
        found = [float((run(x) - eager(x)).abs().max()) for x in torch.randn(3, 1, 2, 1, 4)]
    assert found[0] <= TOLERANCE < 0.01 < max(found[1:])
    assert not model.cache.any() and eager.cache.any()


def test_generation_of_transformers_with_a_static_cache(torch_tensorrt: Any) -> None:
    """`generate` token by token through torch.compile: the cache is the caller's, the engine reads and writes it."""
    model = decoder("Qwen2")
    prompt = tokens(5)
    expected = model.generate(prompt, max_new_tokens=6, do_sample=False, cache_implementation="static")
    cache = transformers.StaticCache(config=model.config, max_cache_len=SLOTS)
    cache.early_initialization(1, 2, 8, torch.float32, torch.device("cpu"))

    def forward(input_ids: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=input_ids, past_key_values=cache, use_cache=True).logits
        return logits

    options = {"min_block_size": 1, "pass_through_build_failures": True}
    with quiet(), torch.no_grad(), register():
        step = torch.compile(forward, backend="torch_tensorrt", dynamic=False, fullgraph=True, options=options)
        found, given = prompt, prompt
        for _ in range(expected.shape[1] - prompt.shape[1]):
            given = step(given)[:, -1].argmax(-1, keepdim=True)
            found = torch.cat([found, given], 1)
    assert torch.equal(found, expected)


class CountsCalls(torch.nn.Module):
    """Writes what it computes from nothing but its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x * self.calls + 1


@pytest.mark.parametrize("registered", [False, True], ids=["torch_tensorrt alone", "attnlower"])
def test_compiling_runs_nothing(registered: bool, torch_tensorrt: Any) -> None:
    """The baseline: constant folding in torch_tensorrt runs the write once, on the caller's buffer, and drops it."""
    model = CountsCalls().eval()
    program = torch.export.export(model, (torch.ones(3),))
    with quiet(), torch.no_grad(), register() if registered else nullcontext():
        run = torch_tensorrt.dynamo.compile(program, arg_inputs=[torch.ones(3)], min_block_size=1)
    assert float(model.calls[0]) == (0.0 if registered else 1.0)
    answers = [float(run(torch.ones(3))[0]) for _ in range(3)]
    assert answers == ([2.0, 3.0, 4.0] if registered else [2.0, 2.0, 2.0])
