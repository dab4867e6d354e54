"""`attnlower.verify` and `attnlower verify`: properties of compiled models, and models that lose them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import attnlower
from attnlower import VerificationReport, cli, verify
from attnlower.lowering import backend as backend_module
from attnlower.lowering import self_check

NAMES = (
    "equal to eager",
    "equal to eager, padded",
    "no token sees the future",
    "padding has no effect",
    "rows do not see each other",
)


class Decoder(torch.nn.Module):
    """One attention over embedded tokens."""

    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(32, 16)
        self.causal = causal

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.embedding(input_ids)
        index = torch.arange(x.shape[1])
        mask = (index[None, :] <= index[:, None]) if self.causal else index[None, :] >= 0
        mask = mask.expand(1, 1, x.shape[1], x.shape[1])
        if attention_mask is not None:
            mask = mask & (attention_mask != 0)[:, None, None, :]
        heads = x.view(*x.shape[:2], 2, 8).transpose(1, 2)
        out: torch.Tensor = F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)
        return x + out.transpose(1, 2).flatten(2)


class WithoutMask(torch.nn.Module):
    """Causal, and takes no attention mask."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = F.one_hot(input_ids, 16).float()[:, None]
        index = torch.arange(x.shape[2])
        return F.scaled_dot_product_attention(x, x, x, attn_mask=index[None, :] <= index[:, None])[:, 0]


@pytest.fixture
def given() -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 32, (3, 9), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones(3, 9, dtype=torch.long)}


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the self-check, so that the properties are on their own."""
    monkeypatch.setattr(self_check.SelfCheck, "beside", lambda self, compiled: compiled)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def statuses(result: VerificationReport) -> dict[str, str]:
    return {check.name: check.status for check in result.checks}


def compile_wrongly(monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Any]) -> None:
    """Let every compiled graph be `wrong(graph, *args)`."""

    def compiled(gm: Any, *args: Any) -> Callable[..., Any]:
        return lambda *given: wrong(gm.forward, *given)

    monkeypatch.setattr(backend_module, "_compile", compiled)


def test_a_decoder_passes(given: dict[str, torch.Tensor]) -> None:
    result = verify(Decoder(), target="eager", **given)
    assert statuses(result) == dict.fromkeys(NAMES, "passed")
    assert result.passed
    assert [s.action for s in result.report.sites] == ["guarded"]
    lines = str(result).splitlines()
    assert len(lines) == 6 and all("passed" in line for line in lines[1:])
    assert json.loads(json.dumps(result.to_dict()))["passed"] is True


def test_an_encoder_is_not_asked_to_be_causal(given: dict[str, torch.Tensor]) -> None:
    result = verify(Decoder(causal=False), target="eager", **given)
    assert statuses(result) == {**dict.fromkeys(NAMES, "passed"), NAMES[2]: "skipped"}
    assert result.passed


def test_what_has_no_place_is_skipped() -> None:
    ids = torch.randint(0, 16, (1, 9))
    result = verify(WithoutMask(), ids, target="eager")
    skipped = dict.fromkeys((NAMES[1], NAMES[3], NAMES[4]), "skipped")
    assert statuses(result) == {NAMES[0]: "passed", NAMES[2]: "passed", **skipped}
    assert {c.note for c in result.checks if c.status == "skipped"} == {
        "the model takes no attention_mask (b, k)",
        "one row only",
    }


def lose_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variant of every graph attends everywhere."""
    original = backend_module.make_plan

    def broken(*args: Any, **kwargs: Any) -> Any:
        plan = original(*args, **kwargs)
        for variant in (plan.general, plan.guarded):
            for node in variant.gm.graph.nodes if variant is not None else ():
                if "scaled_dot_product_attention" in str(node.target):
                    node.kwargs = {k: v for k, v in node.kwargs.items() if k not in ("attn_mask", "is_causal")}
            if variant is not None:
                variant.gm.recompile()
        return plan

    monkeypatch.setattr(backend_module, "make_plan", broken)


def test_a_broken_rewrite_is_caught_and_located(
    given: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_the_mask(monkeypatch)
    result = verify(Decoder(), target="eager", **given)
    assert not result.passed
    assert statuses(result)["equal to eager"] == "failed"
    assert "the first attention call that differs" in result.checks[0].note


def test_a_broken_rewrite_leaks_the_future(
    given: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, unchecked: None
) -> None:
    lose_the_mask(monkeypatch)
    found = statuses(verify(Decoder(), target="eager", **given))
    assert found["equal to eager"] == found["no token sees the future"] == "failed"


def test_padding_that_is_read_is_caught(
    given: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, unchecked: None
) -> None:
    monkeypatch.setattr(backend_module.GuardedCallable, "holds", lambda self, args: True)
    found = statuses(verify(Decoder(), target="eager", **given))
    assert found["equal to eager"] == found["no token sees the future"] == "passed"
    assert found["equal to eager, padded"] == found["padding has no effect"] == "failed"


def test_rows_that_see_each_other_are_caught(
    given: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, unchecked: None
) -> None:
    def mixed(forward: Any, *args: Any) -> Any:
        return tuple(t + 0.1 * t.mean(0, keepdim=True) for t in forward(*args))

    compile_wrongly(monkeypatch, mixed)
    assert statuses(verify(Decoder(), target="eager", **given))[NAMES[4]] == "failed"


def test_the_model_is_left_as_it_was(given: dict[str, torch.Tensor]) -> None:
    model = Decoder().train()
    model.register_buffer("calls", torch.zeros(()))
    model.register_forward_hook(lambda module, args, output: module.calls.add_(1) and None)
    before = {name: tensor.clone() for name, tensor in given.items()}
    verify(model, target="eager", **given)
    assert model.training and model.calls == 0
    assert all(torch.equal(given[name], before[name]) for name in given)


def test_what_is_no_model_is_refused(given: dict[str, torch.Tensor]) -> None:
    with pytest.raises(attnlower.ProgramError, match=r"takes a torch\.nn\.Module"):
        verify(lambda x: x, torch.ones(2, 3))
    with pytest.raises(attnlower.ProgramError, match="does not take these arguments"):
        verify(Decoder(), wrong=3)
    with pytest.raises(attnlower.ProgramError, match="needs a tensor"):
        verify(Decoder(), [1, 2])


class TestCommand:
    """`attnlower verify` on configurations and checkpoints."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        transformers = pytest.importorskip("transformers")
        sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        config = transformers.Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2)
        torch.manual_seed(0)
        transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path)
        return tmp_path

    def run(self, *words: object) -> int:
        return cli.main(["verify", *map(str, words), "--target", "eager", "--length", "8", "--layers", "1"])

    def test_a_checkpoint(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(folder) == 0
        printed = capsys.readouterr().out
        assert printed.count(" passed ") == 5
        assert "k <= q & attention_mask[b, k]" in printed

    def test_a_broken_rewrite_of_a_configuration(
        self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lose_the_mask(monkeypatch)
        assert self.run(folder / "config.json", "--json") == 1
        found = json.loads(capsys.readouterr().out)
        assert not found["passed"]
        assert found["checks"][0]["status"] == "failed"

    @pytest.mark.parametrize("words", [["absent"], ["--layers", "9"]])
    def test_what_cannot_be_built(self, words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        named = words if words[0] == "absent" else [str(folder), *words]
        assert cli.main(["verify", *named]) == 2
        assert "attnlower: " in capsys.readouterr().err

    def test_more_tokens_than_positions(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["verify", str(folder), "--length", "99999999"]) == 2
        assert "positions" in capsys.readouterr().err
