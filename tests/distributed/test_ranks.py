"""Two gloo ranks: DDP, FSDP2 and tensor parallelism compiled with attnlower give what one rank's eager model gives."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

HERE = Path(__file__).parent
EXAMPLE = HERE.parent.parent / "examples" / "data_parallel.py"
CASES = ("ddp", "ddp in buckets", "fsdp whole", "fsdp by layer", "tensor parallel")
PLAN = "hugging face tp_plan"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("ranks"),
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()), reason="torch.distributed has no gloo here"
    ),
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed"),
]


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*launcher, *words], capture_output=True, text=True, timeout=280, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def ranks(folder: Path, *cases: str) -> list[dict[str, Any]]:
    torchrun(str(HERE / "worker.py"), str(folder), *cases)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw in every case, one pair of processes for all."""
    return ranks(tmp_path_factory.mktemp("ranks"), *CASES)


def check(case: dict[str, Any]) -> None:
    assert "error" not in case, case["error"]
    assert max(case["outputs"]) <= 1e-5  # without padding, with it, and without again
    assert max(case["gradients"]) <= 1e-6
    # every layer on every rank; a layer that FSDP compiles by itself is one graph for all of them
    assert set(case["actions"]) == {"guarded"}
    for graph in case["graphs"]:
        assert all(after == graph["before"] for after in graph["after"])


@pytest.mark.parametrize("case", CASES)
def test_equals_one_rank(found: list[dict[str, Any]], case: str) -> None:
    for rank in found:
        check(rank[case])
    assert found[0][case]["graphs"] == found[1][case]["graphs"]


def test_the_collectives_are_in_the_graphs(found: list[dict[str, Any]]) -> None:
    (graph,) = found[0]["tensor parallel"]["graphs"]
    assert graph["before"] == {"from_local": 14, "redistribute": 14, "to_local": 14}  # 7 projections a layer


def test_the_whole_graph_or_one_layer(found: list[dict[str, Any]]) -> None:
    assert len(found[0]["fsdp whole"]["graphs"]) == 1
    assert len(found[0]["fsdp by layer"]["graphs"]) > 1
    assert len(found[0]["ddp in buckets"]["graphs"]) > 1
    assert len(found[0]["ddp in buckets"]["actions"]) == 2  # the report has the sites of all pieces


@pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="accelerate, which tp_plan needs, is missing"
)
def test_hugging_face_tensor_parallel_plan(tmp_path: Path) -> None:
    for rank in ranks(tmp_path, PLAN):
        check(rank[PLAN])


@pytest.mark.extended
@pytest.mark.parametrize("case", ["ddp inductor", "tensor parallel inductor"])
def test_through_inductor(tmp_path: Path, case: str) -> None:
    for rank in ranks(tmp_path, case):
        check(rank[case])


def test_the_example() -> None:
    printed = torchrun(str(EXAMPLE), "--how", "fsdp", "--target", "eager").stdout
    assert sorted(re.findall(r"rank (\d): largest difference", printed)) == ["0", "1"]
    assert all(float(number) <= 1e-5 for number in re.findall(r"to eager ([\d.e+-]+),", printed))
    assert printed.count("attention calls: ['guarded']") == 2
