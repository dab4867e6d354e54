"""attnlower.lower and explain on captured programs: the same kind back, valid, and the input as it was."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx.experimental.proxy_tensor import make_fx

import attnlower
from attnlower.patterns.metadata import value_of
from attnlower.patterns.sizes import shape_env_of

LENGTHS = (8, 5, 1)


class Rich(torch.nn.Module):
    """Parameters, buffers read and written, a constant, nested outputs, one tensor returned twice."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(16, 16)
        self.tied = self.project
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("shift", torch.ones(16), persistent=False)
        self.constant = torch.tensor([2.0])

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        self.steps.add_(1)
        index = torch.arange(x.shape[2])
        y = self.project(x) + self.shift * self.constant
        out = F.scaled_dot_product_attention(y, y, x, attn_mask=index[None, :] <= index[:, None])
        again = F.scaled_dot_product_attention(out, out, self.tied(x), attn_mask=index[None, :] <= index[:, None])
        return {"attention": out, "both": (again, out), "steps": self.steps + 0}


@pytest.fixture
def program(masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, exported: Any) -> ExportedProgram:
    return exported(models.SelfAttention(masks.causal, layers=2), (inputs(),), True)


@pytest.fixture
def padded(masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, exported: Any) -> ExportedProgram:
    args = (inputs(), torch.ones(2, 8, dtype=torch.long))
    return exported(models.SelfAttention(masks.padded, layers=2), args, True)


@pytest.fixture
def rich(inputs: Any, exported: Any) -> ExportedProgram:
    return exported(Rich(), (inputs(),), True)


def attention_nodes(program: Any) -> list[fx.Node]:
    graph = program.graph_module.graph if isinstance(program, ExportedProgram) else program.graph
    return [n for n in graph.nodes if "scaled_dot_product_attention" in str(n.target)]


def snapshot(program: Any) -> dict[str, Any]:
    """Everything about a program that lowering must not change."""
    gm = program.graph_module if isinstance(program, ExportedProgram) else program
    env = shape_env_of(value_of(n) for n in gm.graph.nodes)
    found = {
        "code": gm.code,
        "nodes": [(n.name, n.op, str(n.target), id(n.meta.get("val")), sorted(n.meta)) for n in gm.graph.nodes],
        "state": {name: id(t) for name, t in gm.state_dict(keep_vars=True).items()},
        "training": [m.training for m in gm.modules()],
        "guards": [str(g.expr) for g in env.guards],
        "replacements": dict(env.replacements),
        "ranges": dict(env.var_to_range),
        "axioms": dict(env.axioms),
        "deferred": dict(env.deferred_runtime_asserts),
    }
    if isinstance(program, ExportedProgram):
        found |= {
            "signature": str(program.graph_signature),
            "constraints": str(program.range_constraints),
            "calls": str(program.module_call_graph),
            "weights": {name: id(t) for name, t in program.state_dict.items()},
            "constants": {name: id(t) for name, t in program.constants.items()},
        }
    return found


class TestExportedProgram:
    """ExportedProgram in, ExportedProgram out."""

    def test_the_same_kind_and_valid(self, program: ExportedProgram) -> None:
        done = attnlower.lower(program)
        assert type(done.program) is ExportedProgram
        done.program.validate()
        assert [s.action for s in done.report.sites] == ["is_causal"] * 2

    @pytest.mark.parametrize("which", ["program", "padded", "rich"])
    def test_input_is_untouched(self, which: str, request: pytest.FixtureRequest) -> None:
        program = request.getfixturevalue(which)
        before = snapshot(program)
        attnlower.lower(program)
        assert snapshot(program) == before
        attnlower.explain(program)
        assert snapshot(program) == before
        if which == "padded":
            attnlower.lower(program, assume="attention_mask.all()", check_assumptions=True)
            assert snapshot(program) == before

    def test_runs_at_other_lengths(
        self, program: ExportedProgram, masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, same: Any
    ) -> None:
        module = attnlower.lower(program).program.module()
        for length in (*LENGTHS, 31):
            x = inputs(length, batch=3)
            same(module(x), models.SelfAttention(masks.causal, layers=2)(x))

    def test_static_shapes(self, models: Any, masks: Any, inputs: Any, exported: Any, same: Any) -> None:
        model, x = models.SelfAttention(masks.causal), inputs()
        done = attnlower.lower(exported(model, (x,), False))
        same(done.program.module()(x), model(x))
        assert len(attention_nodes(done.program)) == 1

    def test_an_input_out_of_range_is_still_refused(self, program: ExportedProgram, inputs: Any) -> None:
        for checked in (program, attnlower.lower(program).program):
            with pytest.raises((AssertionError, RuntimeError)):
                checked.module()(inputs(513))

    def test_no_square_mask_is_left(self, program: ExportedProgram, square_nodes: Any) -> None:
        length = next(n for n in program.graph.nodes if n.op == "placeholder").meta["val"].shape[2]
        assert square_nodes(program.graph_module, length)
        lowered = attnlower.lower(program).program
        assert not square_nodes(lowered.graph_module, length)
        assert len(attention_nodes(lowered)) == 2
        assert not [n for n in lowered.graph.nodes if n.op == "call_function" and not n.users]

    @pytest.mark.parametrize("spelling", ["sdpa", "eager"])
    @pytest.mark.parametrize("mask", ["causal_float", "causal_min"])
    def test_no_square_mask_is_left_of_other_spellings(
        self, spelling: str, mask: str, models: Any, masks: Any, inputs: Any, exported: Any, square_nodes: Any
    ) -> None:
        model = models.SelfAttention(getattr(masks, mask), layers=2, spelling=spelling)
        program = exported(model, (inputs(),), True)
        length = next(n for n in program.graph.nodes if n.op == "placeholder").meta["val"].shape[2]
        lowered = attnlower.lower(program).program
        assert not square_nodes(lowered.graph_module, length)
        assert {n.target for n in lowered.graph.nodes if n.op == "call_function"} == {
            torch.ops.aten.scaled_dot_product_attention.default
        }

    def test_padding_assumed_away_leaves_none_either(self, padded: ExportedProgram, square_nodes: Any) -> None:
        length = next(n for n in padded.graph.nodes if n.op == "placeholder").meta["val"].shape[2]
        lowered = attnlower.lower(padded, assume="attention_mask.all()").program
        assert not square_nodes(lowered.graph_module, length)

    def test_lowering_twice_changes_nothing_more(self, program: ExportedProgram, inputs: Any, same: Any) -> None:
        once = attnlower.lower(program).program
        twice = attnlower.lower(once)
        assert [s.action for s in twice.report.sites] == ["keep"] * 2
        x = inputs(6)
        same(twice.program.module()(x), once.module()(x))

    def test_for_every_target(self, program: ExportedProgram, inputs: Any, same: Any) -> None:
        x = inputs(6)
        for target in ("eager", "inductor"):
            same(attnlower.lower(program, target=target).program.module()(x), program.module()(x))


class TestSignature:
    """Names, buffers, mutations and outputs of a lowered program."""

    def test_attention_as_the_output(self, program: ExportedProgram) -> None:
        lowered = attnlower.lower(program).program
        (spec,) = lowered.graph_signature.output_specs
        output = next(n for n in lowered.graph.nodes if n.op == "output")
        assert spec.kind is OutputKind.USER_OUTPUT
        assert spec.arg.name == output.args[0][0].name
        assert lowered.graph_signature.user_outputs == (spec.arg.name,)
        (before,) = program.graph_signature.output_specs
        assert before.arg.name in {n.name for n in program.graph.nodes}

    def test_everything_else_is_kept(self, rich: ExportedProgram) -> None:
        lowered = attnlower.lower(rich).program
        old, new = rich.graph_signature, lowered.graph_signature
        assert new.input_specs == old.input_specs
        assert [(s.kind, s.target) for s in new.output_specs] == [(s.kind, s.target) for s in old.output_specs]
        assert new.non_persistent_buffers == old.non_persistent_buffers
        assert lowered.state_dict.keys() == rich.state_dict.keys()
        assert all(lowered.state_dict[name] is rich.state_dict[name] for name in rich.state_dict)
        assert str(lowered.range_constraints) == str(rich.range_constraints)
        assert lowered.call_spec.out_spec == rich.call_spec.out_spec

    def test_outputs_and_mutated_buffers(self, inputs: Any, exported: Any, same: Any) -> None:
        torch.manual_seed(5)
        model = Rich().eval()
        program = exported(model, (inputs(),), True)
        lowered, original = attnlower.lower(program).program.module(), program.module()
        for length in LENGTHS:
            x = inputs(length)
            result, expected = lowered(x), original(x)
            assert result.keys() == expected.keys()
            same((result["attention"], result["both"]), (expected["attention"], expected["both"]))
            assert int(expected["steps"]) == int(result["steps"]) + 1  # one buffer, which both programs count up
        assert sorted(lowered.state_dict()) == sorted(original.state_dict())

    def test_a_functional_program_with_buffer_mutation(self, rich: ExportedProgram, inputs: Any, same: Any) -> None:
        table = torch.export.default_decompositions()
        table.pop(torch.ops.aten.scaled_dot_product_attention.default, None)
        functional = rich.run_decompositions(table)
        assert list(functional.graph_signature.buffers_to_mutate.values()) == ["steps"]
        lowered = attnlower.lower(functional).program
        assert str(lowered.graph_signature) == str(functional.graph_signature)
        x = inputs(6)
        same(lowered.module()(x)["both"], functional.module()(x)["both"])

    def test_names_that_fx_would_change(self, inputs: Any, masks: Any, same: Any) -> None:
        """`input` is a builtin, which fx gives to no node it makes; export gives it to inputs all the same."""

        class Named(torch.nn.Module):
            def forward(self, input: torch.Tensor, type: torch.Tensor) -> torch.Tensor:
                return F.scaled_dot_product_attention(input, input, input, attn_mask=masks.causal(input)) + type

        x = inputs()
        program = torch.export.export(Named(), (x, x), strict=False)
        lowered = attnlower.lower(program)
        assert [s.action for s in lowered.report.sites] == ["is_causal"]
        assert lowered.program.graph_signature == program.graph_signature
        same(lowered.program.module()(x, x), Named()(x, x))

    def test_one_tensor_returned_twice(self, inputs: Any, exported: Any, masks: Any, same: Any) -> None:
        class Twice(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
                y = F.scaled_dot_product_attention(x, x, x, attn_mask=masks.causal(x))
                return y, x, y

        x = inputs()
        lowered = attnlower.lower(exported(Twice(), (x,), True)).program
        names = [s.arg.name for s in lowered.graph_signature.output_specs]
        assert names[0] == names[2] != names[1]
        same(lowered.module()(x), Twice()(x))

    def test_submodule_signatures(self, inputs: Any, masks: Any, models: Any, same: Any) -> None:
        """A submodule whose call is preserved can be swapped in the lowered program, as in the original."""

        class Outer(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = models.SelfAttention(masks.causal)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.inner(x) + 1

        x = inputs()
        program = torch.export.export(Outer(), (x,), preserve_module_call_signature=("inner",), strict=False)
        lowered = attnlower.lower(program).program
        names = {n.name for n in lowered.graph.nodes}
        for entry in lowered.module_call_graph:
            if entry.signature is not None:
                assert {a.name for a in (*entry.signature.inputs, *entry.signature.outputs)} <= names
        same(torch.export.unflatten(lowered)(x), Outer()(x))


class TestRoundTrips:
    """What users do with an ExportedProgram works on a lowered one."""

    def test_save_and_load(self, rich: ExportedProgram, inputs: Any, same: Any) -> None:
        lowered = attnlower.lower(rich).program
        file = io.BytesIO()
        torch.export.save(lowered, file)
        file.seek(0)
        loaded = torch.export.load(file)
        for length in LENGTHS:
            x = inputs(length)
            same(loaded.module()(x)["attention"], rich.module()(x)["attention"])

    def test_lowering_a_loaded_program(self, rich: ExportedProgram, inputs: Any, same: Any) -> None:
        file = io.BytesIO()
        torch.export.save(rich, file)
        file.seek(0)
        loaded = torch.export.load(file)
        before = snapshot(loaded)
        done = attnlower.lower(loaded)
        assert [s.action for s in done.report.sites] == ["is_causal"] * 2
        assert snapshot(loaded) == before
        for length in LENGTHS:
            x = inputs(length)
            same(done.program.module()(x)["both"], rich.module()(x)["both"])

    def test_lowering_a_loaded_program_is_harmless(self, rich: ExportedProgram, inputs: Any, same: Any) -> None:
        file = io.BytesIO()
        torch.export.save(rich, file)
        file.seek(0)
        loaded = torch.export.load(file)
        before = snapshot(loaded)
        done = attnlower.lower(loaded)
        assert snapshot(loaded) == before
        for length in LENGTHS:
            x = inputs(length)
            same(done.program.module()(x)["both"], rich.module()(x)["both"])

    def test_decompositions(self, rich: ExportedProgram, inputs: Any, same: Any) -> None:
        decomposed = attnlower.lower(rich).program.run_decompositions()
        for length in LENGTHS:
            x = inputs(length)
            same(decomposed.module()(x)["both"], rich.module()(x)["both"])

    def test_lowering_a_decomposed_program_is_harmless(self, program: ExportedProgram, inputs: Any, same: Any) -> None:
        decomposed = program.run_decompositions({})
        done = attnlower.lower(decomposed)
        for length in LENGTHS:
            x = inputs(length)
            same(done.program.module()(x), program.module()(x))

    def test_training_through_the_module(self, rich: ExportedProgram, inputs: Any, same: Any) -> None:
        x = inputs(6).requires_grad_()
        results = []
        for module in (rich.module(), attnlower.lower(rich).program.module()):
            out = module(x)["both"][0]
            results.append(torch.autograd.grad(out.square().sum(), (x, module.project.weight)))
        same(*results, 1e-4)

    @pytest.mark.slow
    def test_aot_inductor_package(self, padded: ExportedProgram, inputs: Any, tmp_path: Path, same: Any) -> None:
        lowered = attnlower.lower(padded, assume="attention_mask.all()").program
        path = torch._inductor.aoti_compile_and_package(lowered, package_path=str(tmp_path / "model.pt2"))
        runner = torch._inductor.aoti_load_package(path)
        for length in LENGTHS:
            args = (inputs(length), torch.ones(2, length, dtype=torch.long))
            same(runner(*args), padded.module()(*args))


class TestAssumptions:
    """`assume=`: vouched for by the caller, recorded, and checked on request."""

    @pytest.mark.parametrize(
        "text",
        [
            "attention_mask.all()",
            "(attention_mask == 1).all()",
            "( attention_mask != 0 ).all()",
            "  attention_mask.all()  ",
            ["attention_mask.all()"],
            ("attention_mask.all()", "(attention_mask == 1).all()"),
            "attention_mask.all() and (attention_mask == 1).all()",
        ],
    )
    def test_forms(self, text: Any, padded: ExportedProgram, inputs: Any, same: Any) -> None:
        done = attnlower.lower(padded, assume=text)
        assert [s.action for s in done.report.sites] == ["guarded"] * 2
        assert "attention_mask" in done.report.assumptions[0]
        assert done.report.sites[0].conditions == ("attention_mask.all()",)
        assert "assumed: " in str(done.report)
        args = (inputs(6), torch.ones(2, 6, dtype=torch.long))
        same(done.program.module()(*args), padded.module()(*args))

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("mask.all()", "names no input.*attention_mask"),
            ("p_weight.all()", "names no input"),
            ("attention_mask.any()", "cannot read"),
            ("attention_mask", "cannot read"),
            ("attention_mask.all() or x.all()", "cannot read"),
            ("__import__('os').system('true')", "cannot read"),
            ("", "cannot read"),
            (3, "assume takes text"),
            ([None], "assume takes text"),
        ],
    )
    def test_what_cannot_be_read(self, text: Any, says: str, padded: ExportedProgram) -> None:
        with pytest.raises(attnlower.OptionError, match=says):
            attnlower.lower(padded, assume=text)

    def test_unused_assumptions_change_nothing(self, program: ExportedProgram, inputs: Any, same: Any) -> None:
        done = attnlower.lower(program, assume="(x != 0).all()")
        assert done.report.assumptions == ("(x != 0).all()",) or done.report.assumptions == ("x.all()",)
        assert [s.action for s in done.report.sites] == ["is_causal"] * 2

    @pytest.mark.parametrize("form", ["attention_mask.all()", "(attention_mask == 1).all()"])
    def test_checked_at_run_time(self, form: str, padded: ExportedProgram, inputs: Any, same: Any) -> None:
        done = attnlower.lower(padded, assume=form, check_assumptions=True)
        done.program.validate()
        module = done.program.module()
        for length in LENGTHS:
            x, ones = inputs(length), torch.ones(2, length, dtype=torch.long)
            same(module(x, ones), padded.module()(x, ones))
            ones[1, -1] = 0
            with pytest.raises(RuntimeError, match=r"attention_mask.*does not hold"):
                module(x, ones)

    def test_two_assumptions_checked(self, inputs: Any, exported: Any, masks: Any) -> None:
        class Two(torch.nn.Module):
            def forward(self, x: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
                mask = masks.padded(x, one) & (two != 0)[:, None, None, :]
                return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

        ones, holes = torch.ones(2, 8, dtype=torch.long), torch.tensor([[1] * 8, [1, 0] * 4])
        program = exported(Two(), (inputs(), ones, ones.bool()), True)
        module = attnlower.lower(program, assume="one.all() and two.all()", check_assumptions=True).program.module()
        module(inputs(), ones, ones.bool())
        with pytest.raises(RuntimeError, match="one"):
            module(inputs(), holes, ones.bool())
        with pytest.raises(RuntimeError, match="two"):
            module(inputs(), ones, holes.bool())

    def test_checks_survive_saving_and_decomposition(self, padded: ExportedProgram, inputs: Any) -> None:
        checked = attnlower.lower(padded, assume="attention_mask.all()", check_assumptions=True).program
        file = io.BytesIO()
        torch.export.save(checked, file)
        file.seek(0)
        zeros = torch.zeros(2, 8, dtype=torch.long)
        for program in (torch.export.load(file), checked.run_decompositions()):
            with pytest.raises(RuntimeError, match="does not hold"):
                program.module()(inputs(), zeros)

    def test_without_the_check_the_caller_is_believed(self, padded: ExportedProgram, inputs: Any, same: Any) -> None:
        module = attnlower.lower(padded, assume="attention_mask.all()").program.module()
        x, holes = inputs(), torch.tensor([[1] * 8, [0, 1] * 4])
        same(module(x, holes), padded.module()(x, torch.ones(2, 8, dtype=torch.long)))


class TestGraphModule:
    """GraphModule in, GraphModule out."""

    def test_the_module_of_an_exported_program(self, rich: ExportedProgram, inputs: Any, same: Any) -> None:
        module = rich.module()
        before = snapshot(module)
        done = attnlower.lower(module, target="eager")
        assert isinstance(done.program, fx.GraphModule)
        assert snapshot(module) == before
        assert [s.action for s in done.report.sites] == ["is_causal"] * 2
        assert all(done.program.state_dict()[n] is t for n, t in module.state_dict(keep_vars=True).items()) or all(
            done.program.state_dict()[n].data_ptr() == t.data_ptr() for n, t in module.state_dict().items()
        )
        assert sorted(done.program.state_dict()) == sorted(module.state_dict())
        for length in LENGTHS:
            x = inputs(length)
            same(done.program(x)["both"], rich.module()(x)["both"])

    def test_its_input_checks_are_kept(self, program: ExportedProgram, inputs: Any) -> None:
        lowered = attnlower.lower(program.module()).program
        with pytest.raises((AssertionError, RuntimeError)):
            lowered(inputs(513))
        with pytest.raises(Exception, match=r"(?i)expected|treespec|structure|mismatch"):
            lowered(inputs(), inputs())

    def test_assumptions_about_it(self, padded: ExportedProgram, inputs: Any, same: Any) -> None:
        done = attnlower.lower(padded.module(), assume="attention_mask.all()", check_assumptions=True)
        assert [s.action for s in done.report.sites] == ["guarded"] * 2
        args = (inputs(5), torch.ones(2, 5, dtype=torch.long))
        same(done.program(*args), padded.module()(*args))
        with pytest.raises(RuntimeError, match="does not hold"):
            done.program(inputs(5), torch.zeros(2, 5, dtype=torch.long))

    @pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
    @pytest.mark.parametrize("spelling", ["sdpa", "eager"])
    def test_make_fx(self, mode: str, spelling: str, masks: Any, models: Any, inputs: Any, ops: Any, same: Any) -> None:
        model, x = models.SelfAttention(masks.causal_float, spelling=spelling), inputs()
        gm = make_fx(model, tracing_mode=mode, pre_dispatch=True)(x)
        code = gm.code
        done = attnlower.lower(gm, target="eager")
        assert gm.code == code
        assert [s.action for s in done.report.sites] == ["is_causal"]
        assert ops(done.program)["scaled_dot_product_attention"] == 1
        for length in LENGTHS if mode == "symbolic" else (8,):
            y = inputs(length)
            same(done.program(y), model(y))

    def test_submodules_are_the_users_own(self, inputs: Any, same: Any) -> None:
        """A graph that calls modules: they are shared, and their training flags stay as they are."""

        class Calls(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.drop, self.norm = torch.nn.Dropout(), torch.nn.LayerNorm(16)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.norm(self.drop(x))

        gm = fx.symbolic_trace(Calls())
        gm.train()
        gm.drop.eval()
        done = attnlower.lower(gm)
        assert (gm.training, gm.drop.training, gm.norm.training) == (True, False, True)
        assert (done.program.training, done.program.drop.training) == (True, False)
        assert done.program.norm is gm.norm
        x = inputs()
        same(done.program(x), gm(x))

    def test_its_hooks_are_kept(self, program: ExportedProgram, inputs: Any) -> None:
        seen: list[str] = []
        module = program.module()
        module.register_forward_hook(lambda *_: seen.append("after"))
        module.register_forward_pre_hook(lambda *_: seen.append("before"))
        lowered = attnlower.lower(module).program
        lowered(inputs())
        assert seen == ["before", "after"]

    def test_constants_stay_constants(self, inputs: Any, same: Any) -> None:
        """A tensor attribute that is no buffer does not become one in the lowered module's state."""

        class Constant(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = torch.tensor(2.0)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return F.scaled_dot_product_attention(x * self.scale, x, x)

        module = torch.export.export(Constant(), (inputs(),), strict=False).module()
        lowered = attnlower.lower(module).program
        assert dict(lowered.named_buffers()).keys() == dict(module.named_buffers()).keys()
        x = inputs()
        same(lowered(x), Constant()(x))


class TestExplain:
    """Looks, and changes nothing."""

    def test_a_program(self, program: ExportedProgram) -> None:
        before = snapshot(program)
        report = attnlower.explain(program)
        assert snapshot(program) == before
        assert [s.formula for s in report.sites] == ["k <= q"] * 2
        assert attnlower.explain(program.module()).sites[0].formula == "k <= q"

    def test_a_model(self, models: Any, masks: Any, inputs: Any) -> None:
        model = models.Decoder().train()
        report = attnlower.explain(model, torch.randn(2, 8, 32), attention_mask=torch.ones(2, 8, dtype=torch.long))
        assert [s.module for s in report.sites] == ["layers.0", "layers.1"]
        assert {s.action for s in report.sites} == {"guarded"}
        assert model.training

    def test_a_function(self, masks: Any, inputs: Any) -> None:
        def attend(x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=masks.causal(x))

        assert attnlower.explain(attend, inputs()).sites[0].action == "is_causal"

    def test_leaves_state_as_it_was(self, inputs: Any) -> None:
        class Stateful(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = torch.nn.BatchNorm2d(3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x.add_(torch.rand_like(x))
                return F.scaled_dot_product_attention(self.norm(x), x, x)

        model, x = Stateful().train(), inputs()
        state = {n: t.clone() for n, t in model.state_dict().items()}
        given, random = x.clone(), torch.random.get_rng_state()
        attnlower.explain(model, x)
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
        assert torch.equal(x, given)
        assert torch.equal(torch.random.get_rng_state(), random)

    def test_arguments_that_other_operations_made(self, models: Any, masks: Any, inputs: Any) -> None:
        """Such as hidden states from an embedding; a plain deepcopy refuses them."""
        made = inputs().requires_grad_() * 2
        cache = {"past": [made + 1]}

        def attend(x: torch.Tensor, cache: dict[str, list[torch.Tensor]]) -> torch.Tensor:
            cache["past"].append(x)
            return F.scaled_dot_product_attention(x, *cache["past"][:1], x, attn_mask=masks.causal(x))

        assert attnlower.explain(attend, made, cache=cache).sites[0].action == "is_causal"
        assert len(cache["past"]) == 1

    def test_buffers_are_restored_when_the_model_fails(self, inputs: Any) -> None:
        class Fails(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("count", torch.zeros(()))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.count.add_(1)
                torch._dynamo.graph_break()
                raise ValueError("no")

        model = Fails()
        with pytest.raises(ValueError, match="no"):
            attnlower.explain(model, inputs())
        assert float(model.count) == 0

    def test_as_often_as_one_likes(self, models: Any, masks: Any, inputs: Any) -> None:
        """Dynamo gives up on code that it has recompiled eight times; explaining does not count."""
        for _ in range(12):
            assert len(attnlower.explain(models.SelfAttention(masks.causal), inputs()).sites) == 1

    def test_graph_breaks(self, masks: Any, inputs: Any) -> None:
        class Breaks(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = F.scaled_dot_product_attention(x, x, x, attn_mask=masks.causal(x))
                torch._dynamo.graph_break()
                return F.scaled_dot_product_attention(x, x, x, attn_mask=masks.full(x))

        class Outer(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = Breaks()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.inner(x) + 1

        model, x = Outer(), inputs()
        for _ in range(12):
            assert [s.action for s in attnlower.explain(model, x).sites] == ["is_causal", "drop_mask"]
        # A later torch.compile of the same code is none the worse for it.
        compiled = torch.compile(model, backend="attnlower", options={"target": "eager", "strict": True})
        compiled(x)
        assert len(attnlower.last_report().sites) == 2

    def test_does_not_count_as_the_last_compile(self, models: Any, masks: Any, inputs: Any, lowered: Any) -> None:
        lowered(models.SelfAttention(masks.causal, layers=3), (inputs(),), "dynamo")
        attnlower.explain(models.SelfAttention(masks.causal), inputs())
        assert len(attnlower.last_report().sites) == 3


def test_dynamic_dim_that_includes_one(models: Any, masks: Any, inputs: Any, same: Any) -> None:
    """A range from 1 on: the causal rewrite is right for a single query too."""
    model = models.SelfAttention(masks.causal)
    dims = ({2: Dim("length", min=1, max=64)},)
    program = torch.export.export(model, (inputs(),), dynamic_shapes=dims, strict=False)
    module = attnlower.lower(program).program.module()
    for length in (1, 2, 64):
        x = inputs(length)
        same(module(x), model(x))
