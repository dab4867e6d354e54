"""Bad and unusual input: a documented error, or a refusal with node and reason; and the model still runs."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

import attnlower
from attnlower.patterns import solver
from attnlower.patterns.verdict import Unknown

EAGER = {"target": "eager", "strict": True}


@pytest.fixture(scope="module")
def checkerboard() -> Iterator[Any]:
    """A custom op for which attnlower has no read rule."""
    with torch.library._scoped_library("attnlower_test", "FRAGMENT") as library:
        library.define("checkerboard(Tensor x) -> Tensor")

        def checkerboard(x: torch.Tensor) -> torch.Tensor:
            index = torch.arange(x.shape[2])
            return (index[None, :] + index[:, None]) % 2 == 0

        library.impl("checkerboard", checkerboard, "CompositeExplicitAutograd")
        torch.library.register_fake(
            "attnlower_test::checkerboard",
            lambda x: x.new_empty((x.shape[2], x.shape[2]), dtype=torch.bool),
            lib=library,
        )
        yield torch.ops.attnlower_test.checkerboard.default


class TestUnknownOp:
    """Nothing is proved about an op without a read rule, and the report says which one it was."""

    @pytest.mark.parametrize("joined", ["alone", "and causal", "or causal"])
    def test_refused_with_its_name(
        self,
        joined: str,
        checkerboard: Any,
        masks: Any,
        models: Any,
        inputs: Any,
        capture: str,
        lowered: Any,
        same: Any,
    ) -> None:
        def mask(x: torch.Tensor) -> torch.Tensor:
            unknown = checkerboard(x)
            if joined == "alone":
                return unknown
            return unknown & masks.causal(x) if joined == "and causal" else unknown | masks.causal(x)

        model, x = models.SelfAttention(mask), inputs()
        done = lowered(model, (x,), capture)
        (site,) = done.report.sites
        assert (site.action, site.verdict) == ("keep", "unknown")
        assert "checkerboard" in site.reason
        assert "opaque" in site.kinds
        for length in (8, 5):
            same(done.run(x[:, :, :length]), model(x[:, :, :length]))

    def test_that_does_not_matter(
        self, checkerboard: Any, masks: Any, models: Any, inputs: Any, capture: str, lowered: Any, same: Any
    ) -> None:
        """`unknown | true` is true whatever the op does."""

        def mask(x: torch.Tensor) -> torch.Tensor:
            return (checkerboard(x) | masks.full(x)) & masks.causal(x)

        model, x = models.SelfAttention(mask), inputs()
        done = lowered(model, (x,), capture)
        assert done.actions == ["is_causal"]
        same(done.run(x), model(x))


class TestMissingMetadata:
    """A graph whose nodes have no recorded values is refused, node by node."""

    def without_metadata(self, program: Any) -> fx.GraphModule:
        for node in program.graph.nodes:
            node.meta = {}
        return program.graph_module

    def test_refused_with_the_node(self, masks: Any, models: Any, inputs: Any, exported: Any, same: Any) -> None:
        x = inputs()
        gm = self.without_metadata(exported(models.SelfAttention(masks.causal), (x,), False))
        done = attnlower.lower(gm, target="eager")
        (site,) = done.report.sites
        assert (site.action, site.verdict, site.formula) == ("keep", "unknown", "?")
        assert "node 'x' has no meta['val']" in site.reason
        assert "FakeTensorProp" in site.reason  # what to do about it
        same(done.program(x)[0], gm(x)[0])

    def test_symbolic_trace(self, masks: Any, models: Any, inputs: Any, same: Any) -> None:
        class Attends(torch.nn.Module):
            def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

        x = inputs()
        gm = fx.symbolic_trace(Attends())
        done = attnlower.lower(gm)
        assert [s.verdict for s in done.report.sites] == ["unknown"]
        mask = masks.causal(x)
        same(done.program(x, mask), gm(x, mask))

    def test_only_the_mask_lacks_it(self, masks: Any, models: Any, inputs: Any, exported: Any, same: Any) -> None:
        x = inputs()
        program = exported(models.SelfAttention(masks.causal), (x,), False)
        call = next(n for n in program.graph.nodes if "scaled_dot" in n.name)
        call.args[3].meta.pop("val")
        done = attnlower.lower(program.graph_module)
        assert f"node '{call.args[3].name}'" in done.report.sites[0].reason
        same(done.program(x)[0], models.SelfAttention(masks.causal)(x))

    def test_only_the_result_lacks_it(self, masks: Any, models: Any, inputs: Any, exported: Any, same: Any) -> None:
        x = inputs()
        program = exported(models.SelfAttention(masks.causal), (x,), False)
        call = next(n for n in program.graph.nodes if "scaled_dot" in n.name)
        call.meta.pop("val")
        done = attnlower.lower(program.graph_module)
        (site,) = done.report.sites
        assert site.action == "keep"
        assert f"node '{call.name}' has no meta['val']" in site.reason
        same(done.program(x)[0], models.SelfAttention(masks.causal)(x))

    def test_after_shape_propagation_it_is_read(self, masks: Any, models: Any, inputs: Any, exported: Any) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.passes.fake_tensor_prop import FakeTensorProp

        x = inputs()
        gm = self.without_metadata(exported(models.SelfAttention(masks.causal), (x,), False))
        FakeTensorProp(gm, FakeTensorMode()).propagate(x)
        assert [s.action for s in attnlower.lower(gm).report.sites] == ["is_causal"]


class TestSolver:
    """What the solver cannot decide in time is unknown, and kept."""

    def test_time_out(
        self, masks: Any, models: Any, inputs: Any, exported: Any, same: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A formula no solver settles in a millisecond: products of the coordinates modulo a large prime."""

        def hard(x: torch.Tensor) -> torch.Tensor:
            q, k = masks.positions(x)
            return (k <= q) | ((q * q * q + k * k * q + 7 * k) % 8191 == (k * k * k + 5 * q * k) % 8191)

        model, x = models.SelfAttention(hard), inputs()
        done = attnlower.lower(exported(model, (x,), True), timeout_ms=1)
        (site,) = done.report.sites
        assert site.action == "keep"
        assert site.verdict in ("unknown", "refuted")
        same(done.program.module()(x), model(x))

    def test_a_solver_that_gives_up(
        self, capture: str, masks: Any, models: Any, inputs: Any, lowered: Any, same: Any, monkeypatch: Any
    ) -> None:
        from attnlower.patterns.prover import Prover

        def gives_up(self: Any, *args: Any, **kwargs: Any) -> Unknown:
            return Unknown("", "the solver gave up after 1 ms (timeout)")

        monkeypatch.setattr(Prover, "_ask", gives_up)
        model, x = models.SelfAttention(masks.near_misses["one element off"]), inputs()
        done = lowered(model, (x,), capture)
        (site,) = done.report.sites
        assert (site.action, site.verdict) == ("keep", "unknown")
        assert "gave up" in site.reason
        same(done.run(x), model(x))

    def test_a_solver_that_crashes(self, masks: Any, models: Any, inputs: Any, same: Any, monkeypatch: Any) -> None:
        def crashes(self: Any) -> None:
            raise OSError("libz3 is broken")

        monkeypatch.setattr(solver.Translator, "__init__", crashes)
        model, x = models.SelfAttention(masks.near_misses["one element off"]), inputs()
        compiled = torch.compile(model, backend="attnlower", options={"target": "eager"})
        with pytest.warns(UserWarning, match="libz3 is broken"):
            same(compiled(x), model(x))
        assert "libz3" in attnlower.last_report().error

    @pytest.mark.parametrize("wrong", [0, -1, 1.5, "fast", None, True])
    def test_wrong_time_outs(self, wrong: Any, masks: Any, models: Any, inputs: Any, exported: Any) -> None:
        with pytest.raises(attnlower.OptionError, match="timeout_ms"):
            attnlower.lower(exported(models.SelfAttention(masks.causal), (inputs(),), False), timeout_ms=wrong)


class TestNothingToDo:
    """Programs without attention come back as they are."""

    def test_a_model_without_attention(self, capture: str, lowered: Any, exported: Any, same: Any) -> None:
        model, x = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), torch.randn(2, 4)
        done = lowered(model, (x,), capture, dynamic=False)
        assert done.report.sites == () and not done.report.error
        same(done.run(x), model(x))

    def test_what_only_looks_like_attention(self, capture: str, lowered: Any, inputs: Any, same: Any) -> None:
        class Gates(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.matmul(torch.softmax(torch.matmul(x, x.transpose(2, 3)).relu(), -1), x)

        x = inputs()
        done = lowered(Gates(), (x,), capture)
        assert done.report.sites == ()
        assert "relu" in done.report.near_misses[0][1]
        same(done.run(x), Gates()(x))

    def test_an_empty_graph(self) -> None:
        empty = fx.GraphModule({}, fx.Graph())
        assert attnlower.lower(empty).report.sites == ()
        graph = fx.Graph()
        graph.output(())
        assert attnlower.lower(fx.GraphModule({}, graph)).program() == ()
        assert attnlower.explain(fx.GraphModule({}, graph)).sites == ()

    def test_an_export_of_the_identity(self) -> None:
        class Identity(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x

        x = torch.randn(3)
        done = attnlower.lower(torch.export.export(Identity(), (x,)))
        assert torch.equal(done.program.module()(x), x)

    def test_a_function_that_computes_nothing(self) -> None:
        assert attnlower.explain(lambda x: x, torch.randn(3)).sites == ()


class TestWrongTypes:
    """lower and explain say what they take."""

    @pytest.mark.parametrize("wrong", [None, 3, "program.pt2", torch.nn.Linear(2, 2), torch.randn(2), object()])
    def test_lower(self, wrong: Any) -> None:
        with pytest.raises(attnlower.ProgramError, match=f"not {type(wrong).__name__}"):
            attnlower.lower(wrong)

    @pytest.mark.parametrize("wrong", [None, 3, "program.pt2", torch.randn(2)])
    def test_explain(self, wrong: Any) -> None:
        with pytest.raises(attnlower.ProgramError, match=f"not {type(wrong).__name__}"):
            attnlower.explain(wrong)

    def test_explain_a_program_with_arguments(self, masks: Any, models: Any, inputs: Any, exported: Any) -> None:
        with pytest.raises(attnlower.ProgramError, match="without arguments"):
            attnlower.explain(exported(models.SelfAttention(masks.causal), (inputs(),), False), inputs())

    @pytest.mark.parametrize("wrong", ["tensorrt!", "", None, 3, ["inductor"]])
    def test_targets(self, wrong: Any, masks: Any, models: Any, inputs: Any, exported: Any) -> None:
        with pytest.raises(
            attnlower.OptionError, match=r"unknown target.*\['eager', 'executorch', 'inductor', 'tensorrt'\]"
        ):
            attnlower.lower(exported(models.SelfAttention(masks.causal), (inputs(),), False), target=wrong)

    def test_every_error_is_an_attnlower_error(self) -> None:
        names = ("OptionError", "ProgramError", "CaptureError", "LegalizeError", "ReadRuleError")
        assert all(issubclass(getattr(attnlower, name), attnlower.AttnLowerError) for name in names)


class TestUnusualShapes:
    """Masks and inputs that broadcast in ways seldom seen."""

    def test_a_query_that_the_key_broadcasts(
        self, capture: str, masks: Any, models: Any, inputs: Any, lowered: Any, same: Any
    ) -> None:
        """One query for two keys, and a mask that is full for the first batch row only."""

        def mask(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return (torch.arange(k.shape[0])[:, None, None, None] == 0) | masks.causal(k)

        model, q, k = models.CrossAttention(mask), inputs(batch=1), inputs(batch=2)
        done = lowered(model, (q, k), capture, dynamic=False)
        assert done.actions == ["keep"]
        same(done.run(q, k), model(q, k))

    def test_a_mask_that_broadcasts_the_scores(
        self, capture: str, masks: Any, models: Any, inputs: Any, lowered: Any, same: Any
    ) -> None:
        def attend(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return models.written_out(x, x, x, masks.causal_float(x).expand(y.shape[0], 1, -1, -1))

        class Broadcasts(torch.nn.Module):
            def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                return attend(x, y)

        args = (inputs(batch=1), torch.zeros(2))
        done = lowered(Broadcasts(), args, capture, dynamic=False)
        assert done.actions == ["keep"]
        assert done.run(*args).shape == (2, 3, 8, 16)
        same(done.run(*args), Broadcasts()(*args))

    def test_a_mask_of_higher_rank_than_the_scores(
        self, capture: str, masks: Any, lowered: Any, exported: Any, same: Any
    ) -> None:
        class Raises(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                mask = torch.zeros(2, 1, 8, 8).masked_fill(~masks.causal(x), float("-inf"))
                return torch.matmul(torch.softmax(torch.matmul(x, x.transpose(1, 2)) + mask, -1), x)

        x = torch.randn(3, 8, 16)
        done = lowered(Raises(), (x,), capture, dynamic=False)
        assert done.actions in ([], ["keep"])
        same(done.run(x), Raises()(x))

    @pytest.mark.parametrize("lead", [(), (2,), (2, 3), (2, 2, 3)], ids=["rank 2", "rank 3", "rank 4", "rank 5"])
    def test_ranks(self, lead: tuple[int, ...], capture: str, lowered: Any, same: Any) -> None:
        class Attends(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                index = torch.arange(x.shape[-2])
                return F.scaled_dot_product_attention(x, x, x, attn_mask=index[None, :] <= index[:, None])

        x = torch.randn(*lead, 8, 16)
        done = lowered(Attends(), (x,), capture, dynamic=False)
        assert len(done.report.sites) == 1
        same(done.run(x), Attends()(x))

    def test_no_queries_or_keys_at_all(self, masks: Any, models: Any, inputs: Any, lowered: Any, same: Any) -> None:
        model = models.SelfAttention(masks.causal)
        done = lowered(model, (inputs(),), "dynamo")
        assert done.run(inputs(0)).shape == (2, 3, 0, 16)

    def test_a_nested_mask_of_ones_row(self, capture: str, models: Any, inputs: Any, lowered: Any, same: Any) -> None:
        """A mask of shape (1, K) hides the last key from every query."""

        def mask(x: torch.Tensor) -> torch.Tensor:
            return torch.arange(x.shape[2])[None, :] < x.shape[2] - 1

        model, x = models.SelfAttention(mask), inputs()
        done = lowered(model, (x,), capture)
        assert done.actions == ["keep"]
        same(done.run(x), model(x))


def test_an_unknown_mask_does_not_spoil_its_neighbours(
    masks: SimpleNamespace, checkerboard: Any, inputs: Any, capture: str, lowered: Any, same: Any
) -> None:
    class Mixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for mask in (masks.causal(x), checkerboard(x), masks.full(x)):
                x = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
            return x

    x = inputs()
    done = lowered(Mixed(), (x,), capture)
    assert done.actions == ["is_causal", "keep", "drop_mask"]
    same(done.run(x), Mixed()(x))
