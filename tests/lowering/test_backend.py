"""The torch.compile backend: found without an import, right at every call, and safe when something goes wrong."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

import attnlower
from attnlower.lowering import backend as backend_module
from attnlower.lowering import plan as plan_module
from attnlower.lowering.guarded import GuardedCallable
from attnlower.lowering.options import parse_options
from attnlower.patterns import Condition

EAGER = {"target": "eager", "strict": True}
ONES = torch.ones(2, 8, dtype=torch.long)
HOLES = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1, 1]])


def cut(mask: torch.Tensor, length: int) -> torch.Tensor:
    """The first columns as a tensor of their own; Dynamo compiles anew for a view."""
    return mask[:, :length].clone(memory_format=torch.contiguous_format)


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> list[GuardedCallable]:
    """Every guarded callable that the backend makes."""
    made: list[GuardedCallable] = []

    class Recorded(GuardedCallable):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(backend_module, "GuardedCallable", Recorded)
    return made


@pytest.fixture
def compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """Every call of Inductor, which runs the graph as it is for the test's sake."""
    calls: list[SimpleNamespace] = []

    def compile_fx(gm: fx.GraphModule, example_inputs: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        calls.append(SimpleNamespace(gm=gm, options=kwargs.get("config_patches") or {}))
        return gm.forward

    monkeypatch.setattr(sys.modules["torch._inductor.compile_fx"], "compile_fx", compile_fx)
    return calls


@pytest.fixture(autouse=True, scope="module")
def inductor_is_imported() -> None:
    import torch._inductor.compile_fx  # noqa: F401


@pytest.fixture(autouse=True)
def nothing_warned_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "_warned", set())


class TestEntryPoint:
    """Found by name, without an import."""

    def test_is_registered(self) -> None:
        assert "attnlower" in torch._dynamo.list_backends()

    def test_works_in_a_process_that_never_imported_it(self) -> None:
        script = """
            import sys, torch, torch.nn.functional as F

            def attend(x):
                index = torch.arange(x.shape[2])
                return F.scaled_dot_product_attention(x, x, x, attn_mask=index[None, :] <= index[:, None])

            assert "attnlower" not in sys.modules
            x = torch.randn(2, 3, 8, 16)
            compiled = torch.compile(attend, backend="attnlower", options={"target": "eager", "strict": True})
            torch.testing.assert_close(compiled(x), attend(x))
            import attnlower
            print([(s.formula, s.action) for s in attnlower.last_report().sites])
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "[('k <= q', 'is_causal')]"


class TestGuardedPadding:
    """The fast variant while nothing is padded, the general one otherwise, in one callable."""

    @pytest.mark.slow
    def test_through_inductor(self, models: Any, guarded: list[GuardedCallable], same: Any, monkeypatch: Any) -> None:
        from torch._inductor import compile_fx as module

        graphs: list[int] = []
        original = module.compile_fx

        def counted(gm: Any, *args: Any, **kwargs: Any) -> Any:
            graphs.append(len(gm.graph.nodes))
            return original(gm, *args, **kwargs)

        monkeypatch.setattr(module, "compile_fx", counted)
        model = models.Decoder(layers=1).eval()
        compiled = torch.compile(model, backend="attnlower", dynamic=True, options={"strict": True})
        with torch.no_grad():
            for length in (8, 5):
                hidden, ones = torch.randn(2, length, 32), torch.ones(2, length, dtype=torch.long)
                same(compiled(hidden, ones), model(hidden, ones))
            assert len(guarded) == len(graphs) == 1
            assert not guarded[0].general_is_compiled
            for length in (8, 5, 12):
                hidden, holes = torch.randn(2, length, 32), torch.ones(2, length, dtype=torch.long)
                holes[0, :3] = 0
                same(compiled(hidden, holes), model(hidden, holes))
                ones = torch.ones_like(holes)
                same(compiled(hidden, ones), model(hidden, ones))
        assert guarded[0].general_is_compiled
        assert len(guarded) == 1
        assert len(graphs) == 2

    def test_one_callable_two_variants(
        self, dynamic: bool, models: Any, guarded: list[GuardedCallable], compiled_graphs: Any, ops: Any, same: Any
    ) -> None:
        model = models.Decoder(layers=2).eval()
        compiled = torch.compile(model, backend="attnlower", dynamic=dynamic, options={"strict": True})
        hidden = torch.randn(2, 8, 32)
        same(compiled(hidden, ONES), model(hidden, ONES))
        (only,) = guarded
        assert len(compiled_graphs) == 1
        assert ops(compiled_graphs[0].gm)["le"] == 0  # the mask is gone
        assert not only.general_is_compiled
        same(compiled(hidden, HOLES), model(hidden, HOLES))
        assert only.general_is_compiled
        assert len(compiled_graphs) == 2
        assert ops(compiled_graphs[1].gm)["le"] == 1
        for mask in (ONES, HOLES, ONES):
            same(compiled(hidden, mask), model(hidden, mask))
        assert len(compiled_graphs) == 2
        assert len(guarded) == 1

    def test_the_general_variant_is_made_when_needed(self, models: Any, monkeypatch: Any, same: Any) -> None:
        made: list[Any] = []
        build = plan_module.build_variant
        monkeypatch.setattr(plan_module, "build_variant", lambda *a, **k: made.append(a) or build(*a, **k))
        model, hidden = models.Decoder().eval(), torch.randn(2, 8, 32)
        compiled = torch.compile(model, backend="attnlower", options=EAGER)
        for mask, variants in ((ONES, 1), (ONES, 1), (HOLES, 2), (HOLES, 2), (ONES, 2)):
            same(compiled(hidden, mask), model(hidden, mask))
            assert len(made) == variants

    def test_a_general_variant_that_cannot_be_made(self, models: Any, monkeypatch: Any, same: Any) -> None:
        """The untouched graph takes its place; `strict` raises."""
        build = plan_module.build_variant

        def fails(gm: Any, analysis: Any, target: Any, *conditions: Any) -> Any:
            if not conditions:
                raise ValueError("a bug of ours")
            return build(gm, analysis, target, *conditions)

        monkeypatch.setattr(plan_module, "build_variant", fails)
        model, hidden = models.Decoder().eval(), torch.randn(2, 8, 32)
        compiled = torch.compile(model, backend="attnlower", options={"target": "eager"})
        for mask in (ONES, HOLES):
            same(compiled(hidden, mask), model(hidden, mask))
        torch._dynamo.reset()
        strict = torch.compile(model, backend="attnlower", options={"target": "eager", "strict": True})
        strict(hidden, ONES)
        with pytest.raises(ValueError, match="a bug of ours"):
            strict(hidden, HOLES)

    def test_other_lengths(
        self, dynamic: bool, models: Any, guarded: list[GuardedCallable], compiled_graphs: Any, same: Any
    ) -> None:
        """Dynamic shapes need no second compilation but for length 1; static ones get a pair of variants each."""
        model = models.Decoder(layers=1).eval()
        compiled = torch.compile(model, backend="attnlower", dynamic=dynamic, options={"strict": True})
        for length in (8, 5, 1, 8):
            hidden = torch.randn(2, length, 32)
            for mask in (ONES, HOLES, 0 * ONES):
                seen = cut(mask, length)
                same(compiled(hidden, seen), model(hidden, seen))
        assert len(guarded) <= (2 if dynamic else 3)

    def test_first_call_padded(self, models: Any, guarded: list[GuardedCallable], same: Any) -> None:
        model = models.Decoder().eval()
        compiled = torch.compile(model, backend="attnlower", options=EAGER)
        hidden = torch.randn(2, 8, 32)
        same(compiled(hidden, HOLES), model(hidden, HOLES))
        assert guarded[0].general_is_compiled
        same(compiled(hidden, ONES), model(hidden, ONES))

    def test_no_mask_needs_no_guard(self, models: Any, guarded: list[GuardedCallable], same: Any) -> None:
        model = models.Decoder().eval()
        compiled = torch.compile(model, backend="attnlower", options=EAGER)
        hidden = torch.randn(2, 8, 32)
        same(compiled(hidden), model(hidden))
        assert not guarded
        assert {s.action for s in attnlower.last_report().sites} == {"is_causal"}

    def test_keep(self, dynamic: bool, models: Any, guarded: list[GuardedCallable], same: Any) -> None:
        model = models.Decoder().eval()
        compiled = torch.compile(model, backend="attnlower", dynamic=dynamic, options={**EAGER, "padding": "keep"})
        hidden = torch.randn(2, 8, 32)
        for mask in (ONES, HOLES):
            same(compiled(hidden, mask), model(hidden, mask))
        assert not guarded
        assert {s.action for s in attnlower.last_report().sites} == {"keep"}

    def test_a_buffer_that_changes(self, masks: Any, inputs: Any, same: Any) -> None:
        class Buffered(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("seen", ONES.clone())

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return F.scaled_dot_product_attention(x, x, x, attn_mask=masks.padded(x, self.seen))

        model, x = Buffered(), inputs()
        compiled = torch.compile(model, backend="attnlower", options=EAGER)
        for seen in (ONES, HOLES, ONES):
            model.seen.copy_(seen)
            same(compiled(x), model(x))

    def test_two_masks_must_both_be_full(self, masks: Any, inputs: Any, guarded: Any, same: Any) -> None:
        def attend(x: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
            x = F.scaled_dot_product_attention(x, x, x, attn_mask=masks.padded(x, one))
            return F.scaled_dot_product_attention(x, x, x, attn_mask=masks.padded(x, two))

        compiled, x = torch.compile(attend, backend="attnlower", options=EAGER), inputs()
        for one, two in ((ONES, ONES), (ONES, HOLES), (HOLES, ONES), (HOLES, HOLES)):
            same(compiled(x, one, two), attend(x, one, two))
        assert [s.conditions for s in attnlower.last_report().sites] == [("one.all()",), ("two.all()",)]

    @pytest.mark.parametrize("context", ["autocast", "no_grad", "inference_mode"])
    def test_contexts(self, context: str, models: Any, same: Any) -> None:
        model = models.Decoder().eval()
        compiled = torch.compile(model, backend="attnlower", options=EAGER)
        enter: dict[str, Callable[[], Any]] = {
            "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
            "no_grad": torch.no_grad,
            "inference_mode": torch.inference_mode,
        }
        hidden = torch.randn(2, 8, 32)
        for mask in (ONES, HOLES):
            with enter[context]():
                result, expected = compiled(hidden, mask), model(hidden, mask)
            same(result, expected, 2e-2 if context == "autocast" else 1e-5)

    @pytest.mark.slow
    def test_a_float_argument_reaches_the_general_variant(self, masks: Any, inputs: Any, same: Any) -> None:
        """Dynamo hands floats over as tensors; the general variant is compiled from outside, with the float."""

        def attend(x: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=masks.padded(x, mask), scale=scale)

        compiled, x = torch.compile(attend, backend="attnlower", dynamic=True, options={"strict": True}), inputs()
        for scale in (0.3, 0.7):
            for mask in (ONES, HOLES):
                same(compiled(x, mask, scale), attend(x, mask, scale))


class TestGuardedCallable:
    """The check itself."""

    CHECKS = ((1, Condition("mask", "mask", "!=", 0)),)

    def test_picks_per_call(self) -> None:
        both = GuardedCallable(lambda *_: "fast", lambda _: lambda *_: "general", self.CHECKS)
        assert both(None, ONES) == "fast"
        assert not both.general_is_compiled
        assert both(None, HOLES) == "general"
        assert both.general_is_compiled
        assert both(None, ONES.bool()) == "fast"
        assert both(None, ONES.float()) == "fast"
        assert both(None, torch.tensor([1.0, float("nan")])) == "fast"  # not zero, and the general one agrees
        assert both(None, torch.ones(2, 0)) == "fast"

    def test_equality(self) -> None:
        both = GuardedCallable(
            lambda *_: "fast", lambda _: lambda *_: "general", ((0, Condition("mask", "mask", "==", 1)),)
        )
        assert both(ONES) == "fast"
        assert both(2 * ONES) == "general"

    def test_every_condition(self) -> None:
        checks = ((0, Condition("a", "a", "!=", 0)), (1, Condition("b", "b", "!=", 7)))
        both = GuardedCallable(lambda *_: "fast", lambda _: lambda *_: "general", checks)
        assert both(ONES, ONES) == "fast"
        assert both(ONES, 7 * ONES) == "general"
        assert both(0 * ONES, ONES) == "general"

    def test_the_general_variant_is_made_once_by_many_threads(self) -> None:
        made: list[int] = []
        gate = threading.Barrier(4)

        def make(args: Sequence[Any]) -> Callable[..., str]:
            made.append(len(args))
            return lambda *_: "general"

        both = GuardedCallable(lambda *_: "fast", make, self.CHECKS)
        results: list[str] = []

        def call() -> None:
            gate.wait()
            results.append(both(None, HOLES))

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == ["general"] * 4
        assert made == [2]


class TestOptions:
    """Ours, Inductor's, and neither's."""

    @pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune-no-cudagraphs", None])
    def test_modes_are_handed_on(self, mode: str | None, models: Any, compiled_graphs: Any, same: Any) -> None:
        model, hidden = models.Decoder(layers=1).eval(), torch.randn(2, 8, 32)
        compiled = torch.compile(model, backend="attnlower", mode=mode)
        for mask in (ONES, HOLES):
            same(compiled(hidden, mask), model(hidden, mask))
        expected = torch._inductor.list_mode_options(mode) if mode not in (None, "default") else {}
        assert [call.options for call in compiled_graphs] == [expected, expected]

    def test_inductors_options_are_handed_on(self, models: Any, compiled_graphs: Any) -> None:
        options = {"epilogue_fusion": False, "max-autotune": False, "padding": "guard"}
        compiled = torch.compile(models.Decoder(layers=1).eval(), backend="attnlower", options=options)
        for mask in (ONES, HOLES):
            compiled(torch.randn(2, 8, 32), mask)
        assert [call.options for call in compiled_graphs] == [{"epilogue_fusion": False, "max_autotune": False}] * 2

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"paddin": "keep"}, "unknown option 'paddin'; did you mean 'padding'"),
            ({"max_autotun": True}, "unknown option 'max_autotun'; did you mean 'max_autotune'"),
            ({"zzz": 1}, "unknown option 'zzz'.*strict"),
            ({"padding": "maybe"}, "'padding' is one of"),
            ({"strict": "yes"}, "'strict' is True or False"),
            ({"timeout_ms": 0}, "'timeout_ms' is a positive number"),
            ({"timeout_ms": True}, "'timeout_ms' is a positive number"),
            ({"target": "tensort"}, "unknown target 'tensort'.*inductor"),
        ],
    )
    def test_wrong_options(self, options: dict[str, Any], says: str, models: Any) -> None:
        with pytest.raises(attnlower.OptionError, match=says):
            parse_options(options)
        compiled = torch.compile(models.Decoder().eval(), backend="attnlower", options=options)
        with pytest.raises(Exception, match=says):
            compiled(torch.randn(2, 8, 32), ONES)

    def test_wrong_mode(self) -> None:
        with pytest.raises(attnlower.OptionError, match="unknown mode 'fastest'"):
            parse_options(None, "fastest")

    def test_a_target_object(self, models: Any, same: Any) -> None:
        from attnlower.lowering.targets import TARGETS

        model, hidden = models.Decoder().eval(), torch.randn(2, 8, 32)
        compiled = torch.compile(model, backend="attnlower", options={"target": TARGETS["eager"]})
        same(compiled(hidden, ONES), model(hidden, ONES))

    def test_nothing_found_hands_on_the_very_graph(self, compiled_graphs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        given: list[fx.GraphModule] = []
        original = backend_module.make_plan

        def make_plan(gm: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
            given.append(gm)
            return original(gm, *args, **kwargs)

        monkeypatch.setattr(backend_module, "make_plan", make_plan)
        torch.compile(torch.nn.Linear(4, 4), backend="attnlower")(torch.randn(2, 4))
        assert [call.gm for call in compiled_graphs] == given
        assert attnlower.last_report().sites == ()


class TestFailSafe:
    """An internal error leaves the graph as it was, says so once, and is raised if asked for."""

    @pytest.fixture
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def make_plan(*args: Any, **kwargs: Any) -> Any:
            raise ValueError("a bug of ours")

        monkeypatch.setattr(backend_module, "make_plan", make_plan)

    @pytest.mark.parametrize("target", ["eager", "inductor"])
    def test_right_result_and_one_warning(
        self, target: str, broken: None, models: Any, compiled_graphs: Any, same: Any
    ) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for layers in (1, 2):
                model, hidden = models.Decoder(layers).eval(), torch.randn(2, 8, 32)
                compiled = torch.compile(model, backend="attnlower", options={"target": target})
                for mask in (ONES, HOLES):
                    same(compiled(hidden, mask), model(hidden, mask))
        ours = [str(w.message) for w in caught if "attnlower" in str(w.message)]
        assert len(ours) == 1
        assert "ValueError: a bug of ours" in ours[0] and "strict" in ours[0]
        report = attnlower.last_report()
        assert report.error == "ValueError: a bug of ours"
        assert report.sites == ()
        assert "left untouched after an internal error" in str(report)

    def test_strict_raises(self, broken: None, models: Any) -> None:
        compiled = torch.compile(models.Decoder().eval(), backend="attnlower", options=EAGER)
        with pytest.raises(Exception, match="a bug of ours"):
            compiled(torch.randn(2, 8, 32), ONES)

    @pytest.mark.parametrize("padded", [False, True])
    def test_a_rewritten_graph_that_does_not_compile(
        self, padded: bool, models: Any, compiled_graphs: Any, monkeypatch: pytest.MonkeyPatch, same: Any
    ) -> None:
        from torch._inductor import compile_fx as module

        working = module.compile_fx
        failures = iter([RuntimeError("no kernel for this")])

        def fails_once(*args: Any, **kwargs: Any) -> Any:
            for error in failures:
                raise error
            return working(*args, **kwargs)

        monkeypatch.setattr(module, "compile_fx", fails_once)
        model, hidden = models.Decoder().eval(), torch.randn(2, 8, 32)
        args = (hidden, ONES) if padded else (hidden,)
        compiled = torch.compile(model, backend="attnlower")
        with pytest.warns(UserWarning, match="no kernel for this"):
            same(compiled(*args), model(*args))
        assert "no kernel" in attnlower.last_report().error
        assert {s.action for s in attnlower.last_report().sites} == {"keep"}
        if padded:
            same(compiled(hidden, HOLES), model(hidden, HOLES))

    def test_dynamos_own_signals_pass(self, models: Any, monkeypatch: pytest.MonkeyPatch, same: Any) -> None:
        """Dynamo restarts its analysis by an exception, which is no failure."""
        from torch._dynamo.exc import SkipFrame
        from torch._inductor import compile_fx as module

        def skips(*args: Any, **kwargs: Any) -> Any:
            raise SkipFrame("not now")

        monkeypatch.setattr(module, "compile_fx", skips)
        plan = backend_module.make_plan
        seen: list[Any] = []
        monkeypatch.setattr(backend_module, "make_plan", lambda *a, **k: seen.append(plan(*a, **k)) or seen[-1])
        model = models.Decoder().eval()
        gm = torch.export.export(model, (torch.randn(2, 8, 32), ONES), strict=False).module()
        with pytest.raises(SkipFrame):
            backend_module.attnlower_backend(gm, [])

    def test_the_warning_comes_once_per_reason(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for reason in ("one", "one", "two"):
                backend_module._give_up(attnlower.Report(), ValueError(reason))
        assert len(caught) == 2


class TestLastReport:
    """The report of the last torch.compile, whatever Dynamo made of it."""

    @pytest.fixture
    def breaking(self, masks: Any) -> Iterator[type[torch.nn.Module]]:
        class Breaks(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = F.scaled_dot_product_attention(x, x, x, attn_mask=masks.causal(x))
                torch._dynamo.graph_break()
                return F.scaled_dot_product_attention(x, x, x, attn_mask=masks.full(x))

        return Breaks

    def test_graph_breaks_make_one_report(self, breaking: Any, inputs: Any, same: Any) -> None:
        model, x = breaking(), inputs()
        compiled = torch.compile(model, backend="attnlower", options=EAGER)
        same(compiled(x), model(x))
        report = attnlower.last_report()
        assert [s.action for s in report.sites] == ["is_causal", "drop_mask"]
        assert report.stats["masks_proved"] == 2

    def test_recompiled_pieces_count_once(self, breaking: Any, inputs: Any, same: Any) -> None:
        model = breaking()
        compiled = torch.compile(model, backend="attnlower", dynamic=False, options=EAGER)
        for x in (inputs(8), inputs(5), inputs(5).double()):
            same(compiled(x), model(x))
            assert [s.action for s in attnlower.last_report().sites] == ["is_causal", "drop_mask"]

    def test_a_break_inside_a_module(self, breaking: Any, inputs: Any, same: Any) -> None:
        class Outer(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = breaking()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = F.scaled_dot_product_attention(x, x, x)
                return self.inner(x) * 2

        model, x = Outer(), inputs()
        compiled = torch.compile(model, backend="attnlower", options=EAGER)
        same(compiled(x), model(x))
        assert [s.action for s in attnlower.last_report().sites] == ["keep", "is_causal", "drop_mask"]

    def test_another_compile_starts_anew(self, breaking: Any, masks: Any, inputs: Any) -> None:
        def breaks_first(x: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return F.scaled_dot_product_attention(x, x, x, attn_mask=masks.causal(x))

        torch.compile(breaking(), backend="attnlower", options=EAGER)(inputs())
        torch.compile(breaks_first, backend="attnlower", options=EAGER)(inputs())
        assert [s.action for s in attnlower.last_report().sites] == ["is_causal"]

    def test_a_recompile_replaces_it(self, models: Any, masks: Any, inputs: Any) -> None:
        compiled = torch.compile(
            models.SelfAttention(masks.near_misses["window"]), backend="attnlower", dynamic=False, options=EAGER
        )
        compiled(inputs(8))
        assert attnlower.last_report().sites[0].kinds == {"sliding_window"}
        compiled(inputs(3))  # not wider than the window
        assert attnlower.last_report().sites[0].kinds == {"causal"}

    def test_empty_before_any(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", "import attnlower; r = attnlower.last_report(); print(len(r.sites), r.error == '')"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout.strip() == "0 True", done.stderr
