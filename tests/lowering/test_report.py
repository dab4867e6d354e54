"""The report: one line per attention call, as text and as JSON."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import attnlower

FIELDS = {"module", "node", "formula", "kinds", "verdict", "action", "reason", "witness"}
KINDS = {"full", "causal", "sliding_window", "chunked", "prefix", "packed", "padding", "bias", "opaque"}
ACTIONS = {"drop_mask", "is_causal", "guarded", "banded", "keep"}


@pytest.fixture
def mixed(masks: Any, models: Any, inputs: Any, lowered: Any) -> attnlower.Report:
    """A report of calls of every kind."""

    class Mixed(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            near = masks.near_misses
            every = (masks.causal(x), masks.full(x), masks.padded(x, attention_mask), near["window"](x))
            for mask in (*every, near["ALiBi"](x), near["one element off"](x), None):
                x = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
            return torch.matmul(torch.softmax(torch.matmul(x, x.transpose(2, 3)).relu(), -1), x)

    args = (inputs(), torch.ones(2, 8, dtype=torch.long))
    return lowered(Mixed(), args, "dynamo").report


def test_fields(mixed: attnlower.Report) -> None:
    assert {f.name for f in dataclasses.fields(attnlower.AttentionSite)} >= FIELDS
    assert [s.action for s in mixed.sites] == ["is_causal", "drop_mask", "guarded", "keep", "keep", "keep", "keep"]
    verdicts = [s.verdict for s in mixed.sites]
    assert (verdicts[:4], verdicts[5:]) == (["proved"] * 4, ["refuted", "proved"])
    for site in mixed.sites:
        assert site.kinds <= KINDS and isinstance(site.kinds, frozenset)
        assert site.action in ACTIONS
        assert site.verdict in {"proved", "refuted", "unknown"}
        assert site.reason and "\n" not in site.reason
        assert site.node
        assert (site.witness is not None) == (site.verdict == "refuted")
    assert isinstance(mixed.sites, tuple)


def test_formulas(mixed: attnlower.Report) -> None:
    formulas = [s.formula for s in mixed.sites]
    assert formulas[0] == "k <= q"
    assert formulas[1] == "true"
    assert formulas[2] == "k <= q & attention_mask[b, k]"
    assert formulas[3] == "k <= q & k > q - 3"
    assert "bias" in formulas[4]
    assert mixed.sites[2].conditions == ("attention_mask.all()",)
    assert mixed.sites[2].kinds == {"causal", "padding"}
    assert "attention_mask.all()" in mixed.sites[2].reason


def test_witness_is_a_counterexample(mixed: attnlower.Report) -> None:
    (site,) = (s for s in mixed.sites if s.verdict == "refuted")
    assert site.witness is not None
    assert (site.witness["q"], site.witness["k"]) == (3, 1)
    assert "query 3 may not see key 1" in site.reason


def test_to_dict_is_json(mixed: attnlower.Report) -> None:
    data = mixed.to_dict()
    again = json.loads(json.dumps(data, allow_nan=False))
    assert again == data
    assert len(data["sites"]) == 7
    assert data["sites"][0].keys() >= FIELDS
    assert data["sites"][2]["kinds"] == ["causal", "padding"]
    assert data["passes"][0]["name"] == "canonicalize"
    assert data["passes"][0]["changes"][0].keys() == {"node", "module", "what"}
    assert {"node", "reason"} == data["near_misses"][0].keys()
    assert data["target"] == "eager"
    assert data["error"] == ""
    assert data["stats"]["masks_proved"] >= 6


def test_str_is_a_table_with_a_line_per_site(mixed: attnlower.Report) -> None:
    lines = str(mixed).splitlines()
    assert lines[0] == "attnlower: 7 attention call(s), target eager"
    assert lines[1].split() == ["module", "formula", "verdict", "action", "reason"]
    rows = [line for line in lines if any(f"  {a}  " in line for a in ACTIONS)]
    assert len(rows) == 7
    for site, row in zip(mixed.sites, rows, strict=True):
        assert row.startswith(site.module or site.node)
        assert site.verdict in row
    assert any(line.startswith("not matched: node") and "relu" in line for line in lines)
    assert all(len(line) <= 160 and line == line.rstrip() for line in lines)


def test_no_markup_is_lost() -> None:
    """Brackets in names and formulas are no style tags."""
    site = attnlower.AttentionSite(
        "layers[0].[bold]", "n", "mask[b, k] & [red]", frozenset({"padding"}), "proved", "keep", "see [/red] here"
    )
    text = str(attnlower.Report((site,), error="[oops]", assumptions=("x[0].all()",)))
    for part in ("layers[0].[bold]", "mask[b, k] & [red]", "see [/red] here", "[oops]", "x[0].all()"):
        assert part in text


def test_long_formulas_are_cut_in_the_table_only() -> None:
    site = attnlower.AttentionSite("m", "n", "k <= q & " * 40, frozenset(), "proved", "keep", "r")
    report = attnlower.Report((site,))
    assert "..." in str(report)
    assert report.to_dict()["sites"][0]["formula"] == site.formula


def test_an_empty_report() -> None:
    report = attnlower.Report()
    assert str(report) == "attnlower: nothing has been compiled with it in this process"
    assert json.dumps(report.to_dict())


def test_module_paths(models: Any, capture: str, lowered: Any) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = models.Decoder(layers=2)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.model(hidden)

    done = lowered(Model(), (torch.randn(2, 8, 32),), capture, dynamic=False)
    assert [s.module for s in done.report.sites] == ["model.layers.0", "model.layers.1"]


def test_module_paths_behind_a_decorated_forward(models: Any) -> None:
    """transformers decorates the forward of its models: Dynamo finds the module in the decorator's `*args`."""

    def decorated(forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs)

        return inner

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = models.Decoder(layers=2)

        @decorated
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.model(hidden)

    model, hidden = Model(), torch.randn(2, 8, 32)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="attnlower", options={"target": "eager"})
    torch.testing.assert_close(compiled(hidden), model(hidden))
    assert [s.module for s in attnlower.last_report().sites] == ["model.layers.0", "model.layers.1"]


def test_spellings(models: Any, masks: Any, inputs: Any, capture: str, lowered: Any) -> None:
    done = lowered(models.SelfAttention(masks.causal_float, spelling="eager"), (inputs(),), capture)
    assert [s.spelling for s in done.report.sites] == ["eager"]


def test_refusals_reach_the_reason(masks: Any, models: Any, inputs: Any, lowered: Any) -> None:
    """A site that is kept says why in one sentence, whichever pass refused it."""

    class Weights(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            weights = torch.softmax(torch.matmul(x, x.transpose(2, 3)) + masks.causal_float(x), -1)
            return torch.matmul(weights, x), weights

    (site,) = lowered(Weights(), (inputs(),)).report.sites
    assert site.verdict == "proved"
    assert site.action == "keep"
    assert "weights are used elsewhere" in site.reason
