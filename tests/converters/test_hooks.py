"""register and unregister, and what torch_tensorrt's entry points do in between (on the reference TensorRT)."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

import attnlower
from attnlower.converters import Registration, is_registered, register, unregister
from attnlower.converters.registry import ASSUMING_PASS
from attnlower.converters.versions import tensorrt_support

NEG = float("-inf")
ONE_ENGINE = {"min_block_size": 1}


class Windowed(torch.nn.Module):
    """A sliding window of 3."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        index = torch.arange(x.shape[2], device=x.device)
        allowed = (index[None, :] <= index[:, None]) & (index[None, :] > index[:, None] - 3)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=allowed)


class Causal(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        index = torch.arange(x.shape[2], device=x.device)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=index[None, :] <= index[:, None])


class Efficient(torch.nn.Module):
    """The op that a mask becomes on a GPU, with a window in its bias."""

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten._scaled_dot_product_efficient_attention(x, x, x, bias, False)[0]


def window_bias(length: int) -> torch.Tensor:
    index = torch.arange(length)
    allowed = (index[None, :] <= index[:, None]) & (index[None, :] > index[:, None] - 3)
    return torch.zeros(length, length).masked_fill(~allowed, NEG).expand(2, 3, length, length).contiguous()


def snapshot() -> tuple[list[Any], dict[Any, list[Any]]]:
    from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_ATEN_CONVERTERS
    from torch_tensorrt.dynamo.lowering.passes._aten_lowering_pass import ATEN_POST_LOWERING_PASSES

    return list(ATEN_POST_LOWERING_PASSES.passes), {op: list(found) for op, found in DYNAMO_ATEN_CONVERTERS.items()}


@pytest.fixture
def untouched(reference_tensorrt: ModuleType) -> Any:
    """Nothing is registered before the test and nothing is after."""
    before = snapshot()
    assert not is_registered()
    yield before
    unregister()
    assert snapshot() == before


class TestRegistration:
    def test_idempotent_and_undone(self, untouched: Any) -> None:
        register()
        once = snapshot()
        register()
        assert snapshot() == once
        assert once != untouched
        assert is_registered()
        unregister()
        assert snapshot() == untouched
        unregister()
        assert snapshot() == untouched
        assert not is_registered()

    def test_a_context_manager(self, untouched: Any) -> None:
        with register() as registration:
            assert isinstance(registration, Registration)
            assert is_registered()
        assert snapshot() == untouched

    def test_after_an_error_too(self, untouched: Any) -> None:
        with pytest.raises(KeyError), register():
            raise KeyError
        assert snapshot() == untouched

    def test_what_was_registered_before_stays(self, untouched: Any) -> None:
        register()
        with register():
            pass
        assert is_registered()
        with register(), register():
            pass
        assert is_registered()

    def test_in_front_and_behind_without_the_assuming_pass(self, untouched: Any) -> None:
        names = [p.__name__ for p in untouched[0]]
        assert ASSUMING_PASS in names
        with register():
            inside = [p.__name__ for p in snapshot()[0]]
        assert inside == ["attnlower_lowering", *(n for n in names if n != ASSUMING_PASS), "attnlower_closing"]

    def test_a_pass_of_the_user_survives(self, untouched: Any) -> None:
        from torch_tensorrt.dynamo.lowering.passes._aten_lowering_pass import ATEN_POST_LOWERING_PASSES

        def own(gm: torch.fx.GraphModule, settings: Any) -> torch.fx.GraphModule:
            return gm

        with register():
            ATEN_POST_LOWERING_PASSES.passes.insert(1, own)
        assert ATEN_POST_LOWERING_PASSES.passes == [own, *untouched[0]]
        ATEN_POST_LOWERING_PASSES.passes.remove(own)


class TestEntryPoints:
    """Each way into torch_tensorrt uses attnlower while it is registered."""

    def compiled(self, torch_tensorrt: Any, way: str, model: torch.nn.Module, x: torch.Tensor) -> Any:
        if way == "dynamo.compile":
            program = torch.export.export(model, (x,), strict=False)
            return torch_tensorrt.dynamo.compile(program, arg_inputs=[x], **ONE_ENGINE)
        if way == "compile":
            return torch_tensorrt.compile(model, ir="dynamo", arg_inputs=[x], **ONE_ENGINE)
        torch._dynamo.reset()
        return torch.compile(model, backend=way, options={**ONE_ENGINE, "pass_through_build_failures": True})

    @pytest.mark.parametrize("way", ["dynamo.compile", "compile", "torch_tensorrt", "tensorrt"])
    @pytest.mark.parametrize("model", [Windowed, Causal])
    def test_reference_all_of_them(self, way: str, model: type, registered: Any, torch_tensorrt: Any) -> None:
        x = torch.randn(2, 3, 7, 8)
        compiled = self.compiled(torch_tensorrt, way, model().eval(), x)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model()(x))
        (layer,) = registered.attentions()
        causal = model is Causal
        assert layer.causal.name == ("UPPER_LEFT" if causal else "NONE")
        assert (layer.mask is None) == causal
        (site,) = attnlower.last_report().sites
        assert site.action == ("is_causal" if causal else "keep")

    def test_reference_the_default_flag_does_no_harm(self, registered: Any, torch_tensorrt: Any) -> None:
        """A window in the bias of the op that torch_tensorrt would take for causal."""
        x, bias = torch.randn(2, 3, 8, 8), window_bias(8)
        program = torch.export.export(Efficient(), (x, bias), strict=False)
        compiled = torch_tensorrt.dynamo.compile(program, arg_inputs=[x, bias], **ONE_ENGINE)
        torch.testing.assert_close(compiled(x, bias), F.scaled_dot_product_attention(x, x, x, attn_mask=bias))

    def test_reference_without_it_the_flag_does(self, untouched: Any, torch_tensorrt: Any) -> None:
        x, bias = torch.randn(2, 3, 8, 8), window_bias(8)
        program = torch.export.export(Efficient(), (x, bias), strict=False)
        compiled = torch_tensorrt.dynamo.compile(program, arg_inputs=[x, bias], **ONE_ENGINE)
        want = F.scaled_dot_product_attention(x, x, x, attn_mask=bias)
        assert float((compiled(x, bias) - want).abs().max()) > 0.1

    def test_reference_decompose_attention_is_heeded(self, registered: Any, torch_tensorrt: Any) -> None:
        x = torch.randn(2, 3, 7, 8)
        program = torch.export.export(Windowed(), (x,), strict=False)
        compiled = torch_tensorrt.dynamo.compile(program, arg_inputs=[x], decompose_attention=True, **ONE_ENGINE)
        torch.testing.assert_close(compiled(x), Windowed()(x))
        assert registered.attentions() == []
        assert registered.compilations() == [registered.Compilation(engines=1, torch_nodes=())]

    @pytest.mark.parametrize("by_name", [False, True])
    def test_reference_torch_executed_ops_are_heeded(self, by_name: bool, registered: Any, torch_tensorrt: Any) -> None:
        class Scaled(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return Windowed()(x * 2) + 1

        op = torch.ops.aten.scaled_dot_product_attention.default
        x = torch.randn(2, 3, 7, 8)
        program = torch.export.export(Scaled(), (x,), strict=False)
        executed = {"torch.ops.aten.scaled_dot_product_attention.default" if by_name else op}
        compiled = torch_tensorrt.dynamo.compile(program, arg_inputs=[x], torch_executed_ops=executed, **ONE_ENGINE)
        torch.testing.assert_close(compiled(x), Scaled()(x))
        (compilation,) = registered.compilations()
        assert compilation.torch_nodes == ("aten.scaled_dot_product_attention.default",)

    def test_reference_independent_lengths_stay_independent(self, registered: Any, torch_tensorrt: Any) -> None:
        """Two dynamic lengths with equal samples are not taken for one."""

        class Cross(torch.nn.Module):
            def forward(self, q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
                return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, k, bias, False)[0]

        q, k, bias = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 6)
        rows, columns = Dim("rows", min=1, max=32), Dim("columns", min=1, max=32)
        shapes = ({2: rows}, {2: columns}, {2: rows, 3: columns})
        program = torch.export.export(Cross(), (q, k, bias), dynamic_shapes=shapes, strict=False)
        inputs = [
            torch_tensorrt.Input(min_shape=low, opt_shape=tuple(t.shape), max_shape=high, dtype=torch.float32)
            for t, low, high in (
                (q, (2, 3, 1, 8), (2, 3, 32, 8)),
                (k, (2, 3, 1, 8), (2, 3, 32, 8)),
                (bias, (2, 3, 1, 1), (2, 3, 32, 32)),
            )
        ]
        compiled = torch_tensorrt.dynamo.compile(program, arg_inputs=inputs, **ONE_ENGINE)
        for length, keys in ((6, 6), (4, 9), (9, 1), (1, 5)):
            given = torch.randn(2, 3, length, 8), torch.randn(2, 3, keys, 8), torch.randn(2, 3, length, keys)
            want = F.scaled_dot_product_attention(given[0], given[1], given[1], attn_mask=given[2])
            torch.testing.assert_close(compiled(*given), want)


class TestOwnBackend:
    """`torch.compile(backend="attnlower", options={"target": "tensorrt"})`."""

    @pytest.fixture(autouse=True)
    def fresh(self) -> None:
        torch._dynamo.reset()

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_reference_in_one_go(self, dynamic: bool, untouched: Any, reference_tensorrt: Any) -> None:
        options = {"target": "tensorrt", "strict": True, "pass_through_build_failures": True, **ONE_ENGINE}
        compiled = torch.compile(Windowed(), backend="attnlower", options=options)
        for length in (7, 5) if dynamic else (7,):
            x = torch.randn(2, 3, length, 8)
            if dynamic:
                torch._dynamo.mark_dynamic(x, 2)
            torch.testing.assert_close(compiled(x), Windowed()(x))
        assert len(reference_tensorrt.networks()) == 1
        assert len(reference_tensorrt.attentions()) == 1
        assert not is_registered()

    def test_reference_a_dynamic_head_width_is_written_out(self, untouched: Any, reference_tensorrt: Any) -> None:
        options = {"target": "tensorrt", "strict": True, "pass_through_build_failures": True, **ONE_ENGINE}
        compiled = torch.compile(Windowed(), backend="attnlower", dynamic=True, options=options)
        for length in (7, 5):
            x = torch.randn(2, 3, length, 8)
            torch.testing.assert_close(compiled(x), Windowed()(x))
        assert reference_tensorrt.attentions() == []

    def test_reference_padding_is_guarded(self, untouched: Any, reference_tensorrt: Any) -> None:
        class Padded(torch.nn.Module):
            def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
                index = torch.arange(x.shape[2], device=x.device)
                allowed = (index[None, :] <= index[:, None]) & attention_mask[:, None, None, :].bool()
                return F.scaled_dot_product_attention(x, x, x, attn_mask=allowed)

        compiled = torch.compile(
            Padded(),
            backend="attnlower",
            options={"target": "tensorrt", "pass_through_build_failures": True, **ONE_ENGINE},
        )
        x, ones = torch.randn(2, 3, 7, 8), torch.ones(2, 7, dtype=torch.long)
        torch.testing.assert_close(compiled(x, ones), Padded()(x, ones))
        (fast,) = reference_tensorrt.attentions()
        assert (fast.causal.name, fast.mask) == ("UPPER_LEFT", None)
        assert attnlower.last_report().sites[0].action == "guarded"
        padded = ones.clone()
        padded[1, :3] = 0
        torch.testing.assert_close(compiled(x, padded), Padded()(x, padded))
        (general,) = reference_tensorrt.attentions()
        assert (general.causal.name, general.mask is None) == ("NONE", False)

    def test_reference_an_unknown_setting(self, untouched: Any) -> None:
        compiled = torch.compile(Causal(), backend="attnlower", options={"target": "tensorrt", "min_block_sise": 1})
        with pytest.raises(Exception, match="did you mean 'min_block_size'"):
            compiled(torch.randn(2, 3, 7, 8))

    def test_no_mode(self) -> None:
        with pytest.raises(Exception, match="takes no mode"):
            from attnlower.lowering.options import parse_options

            parse_options({"target": "tensorrt"}, mode="max-autotune")


class TestMissing:
    """Clear errors where something is missing or of an unsupported version."""

    def test_nothing_of_it_is_needed_by_import(self) -> None:
        script = (
            "import sys; sys.modules['torch_tensorrt'] = sys.modules['tensorrt'] = None; import attnlower.converters"
        )
        subprocess.run([sys.executable, "-c", script], check=True, timeout=300)

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import importlib.metadata

        def missing(name: str) -> str:
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "version", missing)
        with pytest.raises(attnlower.TensorRTError, match=r"not installed.*pip install"):
            register()

    def test_another_release(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import importlib.metadata

        monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.9.0")
        with pytest.raises(attnlower.TensorRTError, match=r"2\.9\.0 is not supported; attnlower knows 2\.13"):
            register()

    def test_reference_hidden_tensorrt(self, reference_tensorrt: Any) -> None:
        with reference_tensorrt.hidden(), pytest.raises(attnlower.TensorRTError, match="is TensorRT there"):
            register()

    def test_reference_too_old(self, untouched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        import tensorrt

        monkeypatch.setattr(tensorrt, "__version__", "10.13.3")
        with pytest.raises(attnlower.TensorRTError, match="has no IAttention"):
            register()

    def test_reference_versions(self, reference_tensorrt: Any) -> None:
        for version in ("10.14", "10.15", "10.16", "11.0", "11.1"):
            with reference_tensorrt.version(version):
                assert str(tensorrt_support()) == version


class TestFailure:
    """After an internal error the graph is as it was, with one warning, and no assumption is made."""

    def test_reference_the_graph_is_restored(
        self, registered: Any, torch_tensorrt: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from attnlower.lowering.passes.legalize import Legalize

        def fail(self: Any, context: Any) -> Any:
            raise RuntimeError("broken on purpose")

        monkeypatch.setattr(Legalize, "run", fail)
        x = torch.randn(2, 3, 7, 8)
        program = torch.export.export(Windowed(), (x,), strict=False)
        with pytest.warns(UserWarning, match="broken on purpose"):
            compiled = torch_tensorrt.dynamo.compile(program, arg_inputs=[x], **ONE_ENGINE)
        torch.testing.assert_close(compiled(x), Windowed()(x))
        assert "broken on purpose" in attnlower.last_report().error
