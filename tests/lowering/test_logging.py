"""Logging: the `attnlower` tree of Python's logging, torch's TORCH_LOGS, and torch's structured trace."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import attnlower

SCRIPT = """
import torch, torch.nn.functional as F

def attend(x, attention_mask):
    index = torch.arange(x.shape[2])
    mask = (index[None, :] <= index[:, None]) & (attention_mask != 0)[:, None, None, :]
    return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

compiled = torch.compile(attend, backend="attnlower", options={"target": "eager", "strict": True})
compiled(torch.randn(2, 3, 8, 16), torch.ones(2, 8, dtype=torch.long))
"""


class Kept(logging.Handler):
    """Keeps the records it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def lines(self) -> list[str]:
        return [f"{r.levelname} {r.name}: {r.getMessage()}" for r in self.records]


@pytest.fixture
def kept() -> Iterator[Kept]:
    logger, handler = logging.getLogger("attnlower"), Kept()
    before = logger.level
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


class Causal(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        index = torch.arange(x.shape[2])
        return F.scaled_dot_product_attention(x, x, x, attn_mask=index[None, :] <= index[:, None])


class Padded(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        index = torch.arange(x.shape[2])
        allowed = (index[None, :] <= index[:, None]) & (mask != 0)[:, None, None, :]
        return F.scaled_dot_product_attention(x, x, x, attn_mask=allowed)


def run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done


def lower(module: torch.nn.Module, *masks: torch.Tensor) -> Any:
    return attnlower.lower(torch.export.export(module, (torch.randn(1, 2, 8, 4), *masks)), target="eager")


def test_one_line_per_graph_call_and_pass(kept: Kept) -> None:
    logging.getLogger("attnlower").setLevel(logging.INFO)
    report = lower(Causal()).report
    lines = kept.lines()
    assert lines[0] == "INFO attnlower: 1 attention call(s), target eager: 1 is_causal"
    assert lines[1].startswith(
        "INFO attnlower: scaled_dot_product_attention: k <= q: proved, is_causal: proved: causal"
    )
    assert lines[2:] == [f"INFO attnlower.passes.{p.name}: {p}" for p in report.passes]
    assert "INFO attnlower.passes.mask_to_alignment: mask_to_alignment: 1 changed, 0 refused" in lines


def test_debug_adds_each_change_and_refusal(kept: Kept) -> None:
    logging.getLogger("attnlower").setLevel(logging.DEBUG)
    report = lower(Causal()).report
    debug = [line for line in kept.lines() if line.startswith("DEBUG")]
    assert len(debug) == sum(len(p.changes) + len(p.refusals) for p in report.passes)
    wanted = "mask_to_alignment: scaled_dot_product_attention: changed: is_causal"
    assert any(wanted in line for line in debug)
    kept.records.clear()
    report = lower(Padded(), torch.ones(1, 8, dtype=torch.long)).report
    assert not any("changed: is_causal" in line for line in kept.lines())
    refused = "guard_padding: scaled_dot_product_attention: refused: needs mask.all(), which is not assumed"
    assert any(refused in line for line in kept.lines())


def test_a_single_pass_can_be_listened_to(kept: Kept) -> None:
    logger = logging.getLogger("attnlower.passes.mask_to_alignment")
    logging.getLogger("attnlower").setLevel(logging.INFO)
    logger.setLevel(logging.ERROR)
    try:
        lower(Causal())
    finally:
        logger.setLevel(logging.NOTSET)
    assert not any("passes.mask_to_alignment" in line for line in kept.lines())
    assert any("passes.drop_mask" in line for line in kept.lines())


def test_silent_unless_asked(kept: Kept) -> None:
    lower(Causal())
    assert kept.records == []


def traced(folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Every artifact of a structured trace by name: its record and its text."""
    (file,) = folder.glob("*.log")
    found: dict[str, tuple[dict[str, Any], str]] = {}
    record: dict[str, Any] | None = None
    for line in file.read_text().splitlines():
        if line.startswith("\t"):
            if record is not None:
                name = record["artifact"]["name"]
                found[name] = (record, found[name][1] + line[1:] + "\n")
            continue
        record = None
        parsed = json.loads(line[line.index("{") :])
        if "artifact" in parsed:
            record = parsed
            found[parsed["artifact"]["name"]] = (parsed, "")
    return found


def test_torchs_own_switches(tmp_path: Path) -> None:
    printed = run({"TORCH_LOGS": "+attnlower", "TORCH_TRACE": str(tmp_path)}).stderr
    assert "1 attention call(s), target eager: 1 guarded" in printed
    assert "guard_padding: 1 changed, 0 refused" in printed
    assert "guard_padding: scaled_dot_product_attention: changed: is_causal under" in printed
    artifacts = traced(tmp_path)
    record, text = artifacts["attnlower_report"]
    assert record["artifact"]["encoding"] == "json"
    assert record["frame_id"] == 0  # so that tlparse shows it with the compilation it belongs to
    (site,) = json.loads(text)["sites"]
    assert (site["formula"], site["action"]) == ("k <= q & attention_mask[b, k]", "guarded")
    before, guarded = artifacts["attnlower_graph_before"][1], artifacts["attnlower_graph_guarded"][1]
    assert "attn_mask =" in before and "is_causal = True" not in before
    assert "is_causal = True" in guarded and "attn_mask =" not in guarded
    assert "attnlower_graph_after" not in artifacts  # nothing holds for every input
