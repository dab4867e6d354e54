"""Peak memory of a call at 8192 tokens, each variant in a process of its own.

In the child: build, compile and call once; then reset the kernel's high-water mark, call again, read it. `peak_bytes`
is the whole process's at that call, `call_bytes` what the call added to what was there before. On CUDA the allocator's
peak is taken instead. The limit is what must be in memory at once: weights and the layers' widest activations.

    bytes = bytes of an element * (parameters + tokens * (intermediate size + 2 * hidden size))
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import models
from ..comparison import Tell
from ..limits import Peak
from ..settings import Settings
from .base import Case

VARIANTS = ("eager", "inductor", "attnlower", "oracle")
MODELS = {"causal": models.QWEN, "sliding": models.GEMMA}


@dataclass(frozen=True)
class Memory:
    """The suite of peak memory."""

    name: str = "memory"
    title: str = "Peak memory of one call, two layers of Qwen2.5-0.5B's (causal) and of Gemma3-1B's widths (sliding)."
    axis: str = "length"

    def cases(self, settings: Settings) -> list[Case]:
        """Both models at 8192 tokens."""
        lengths = settings.lengths or ((1024,) if settings.quick else (8192,))
        kinds = ("causal",) if settings.quick else tuple(MODELS)
        return [{"dtype": "float32", "model": kind, "length": n} for kind in kinds for n in lengths]

    def run(self, case: Case, settings: Settings, peak: Peak, tell: Tell) -> dict[str, Any]:
        """Measure one model, one child process after the other."""
        found: dict[str, Any] = {}
        refused: dict[str, str] = {}
        for variant in VARIANTS:
            if not settings.wants(variant):
                continue
            tell(f"{case['model']}: {variant}")
            try:
                found[variant] = in_child(case, variant, settings)
            except subprocess.CalledProcessError as error:
                refused[variant] = (error.stderr or "").strip().splitlines()[-1][:300] or str(error)
        ratios = {
            name: {
                base: {key: values[key] / found[base][key] for key in ("peak_bytes", "call_bytes") if found[base][key]}
                for base in ("inductor", "oracle")
                if base in found
            }
            for name, values in found.items()
        }
        widths, length = MODELS[str(case["model"])], int(case["length"])
        least = 4 * length * (widths.fields["intermediate_size"] + 2 * widths.fields["hidden_size"])
        weights = next((v["weight_bytes"] for v in found.values()), 0)
        return {
            "variants": found,
            "refused": refused,
            "ratio_to": ratios,
            "limit": {"bytes": weights + least},
            "score_matrix_bytes": length * length,
        }


def in_child(case: Case, variant: str, settings: Settings) -> dict[str, float]:
    """One variant's peak, measured in a new process."""
    command = [sys.executable, "-m", "attnbench.memory_child", json.dumps(dict(case)), variant, str(settings.device)]
    folder = str(Path(__file__).parents[2])
    path = os.pathsep.join(p for p in (folder, os.environ.get("PYTHONPATH")) if p)
    # every tensor of a megabyte and more in pages of its own, which go back when it is freed
    environment = {**os.environ, "PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


MEMORY = Memory()
