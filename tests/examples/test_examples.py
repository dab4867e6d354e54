"""Every script in examples/ runs as a user would run it, and shows what it is there to show."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
REFERENCE = Path(__file__).parent.parent / "tensorrt_reference"

# script: its arguments here, how many differences to eager it prints, what else must be in what it prints
CASES: dict[str, tuple[list[str], int, list[str]]] = {
    "torch_compile.py": (["--target", "eager"], 2, ["guarded", "k <= q & attention_mask[b, k]"]),
    "generate.py": (["--target", "eager"], 0, ["same tokens as eager: True", "2 attention call(s)"]),
    "aot_inductor.py": ([], 2, ["assumed: attention_mask.all()", "given the assumption"]),
    "transformers_exporters.py": ([], 2, ["k <= q & attention_mask[b, k]", "ExecutorchExporter"]),
    "executorch_pte.py": ([], 1, ["target executorch", "proved"]),
    "inductor_hook.py": ([], 1, ["given the assumption attention_mask.all()"]),
    "single_pass.py": ([], 1, ["mask None, alignment upper_left", "alignment none", "mask_to_alignment: 1 changed"]),
    "own_rule.py": ([], 0, ["without the rule: unknown", "with the rule: proved", "['sliding_window']"]),
    "own_mask.py": ([], 0, ["attend: proved, ['dilated']", "ahead: refuted, "]),
    "own_target.py": ([], 1, ["target mine", "the kernel was called with: ['causal']"]),
    "self_check.py": ([], 0, ["self-check: 1 call(s) compared", "no token sees the future", "passed"]),
}
NEEDS = {
    "torch_compile.py": "transformers",
    "generate.py": "transformers",
    "aot_inductor.py": "transformers",
    "transformers_exporters.py": "transformers.exporters executorch",
    "executorch_pte.py": "executorch",
    "self_check.py": "transformers",
}
ELSEWHERE = {"tensorrt_engine.py", "data_parallel.py"}  # below, and tests/distributed


def installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )


def differences(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"largest difference to eager ([\d.e+-]+)", printed)]


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == CASES.keys() | ELSEWHERE


@pytest.mark.slow
@pytest.mark.parametrize("script", CASES)
def test_example(script: str) -> None:
    lacking = [name for name in NEEDS.get(script, "").split() if not installed(name)]
    if lacking:
        pytest.skip(f"{' and '.join(lacking)} is not installed")
    words, count, wanted = CASES[script]
    done = run(str(EXAMPLES / script), *words)
    assert done.returncode == 0, done.stderr[-3000:]
    found = differences(done.stdout)
    assert len(found) == count and all(number <= 1e-5 for number in found), done.stdout
    assert [text for text in wanted if text not in done.stdout] == [], done.stdout
    assert "internal error" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_tensorrt_says_what_it_needs() -> None:
    done = run(str(EXAMPLES / "tensorrt_engine.py"))
    assert done.returncode == 1
    assert "skipped: this example needs a CUDA GPU and TensorRT" in done.stderr


@pytest.mark.slow
def test_tensorrt_on_the_reference() -> None:
    if not installed("torch_tensorrt"):
        pytest.skip("torch_tensorrt is not installed")
    script = "import runpy, sys, tensorrt_reference; tensorrt_reference.install(); runpy.run_path(sys.argv[1])"
    done = run("-c", script, str(EXAMPLES / "tensorrt_engine.py"), PYTHONPATH=str(REFERENCE))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sliding window of 4" in done.stdout
    (found,) = differences(done.stdout)
    assert found <= 1e-5
