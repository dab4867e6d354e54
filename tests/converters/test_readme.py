"""README's TensorRT example, on the reference TensorRT."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import torch

import attnlower

README = Path(attnlower.__file__).parent / "README.md"
BLOCK = re.compile(r"```python tensorrt\n(.*?)```", re.DOTALL)


def test_reference_the_example_runs(reference_tensorrt: Any) -> None:
    from transformers import AutoModelForCausalLM, Qwen2Config

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    config = Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids, mask = torch.randint(0, 64, (2, 8)), torch.ones(2, 8, dtype=torch.long)
    given = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    with torch.no_grad():
        program = torch.export.export(model, (), given, strict=False)
    (code,) = BLOCK.findall(README.read_text())
    names: dict[str, Any] = {"program": program, "ids": ids, "mask": mask}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    assert "target tensorrt" in printed.getvalue()
    want = model(**given).logits
    got = names["compiled"](**given)
    torch.testing.assert_close(got["logits"] if isinstance(got, dict) else got[0], want, atol=1e-5, rtol=1e-5)
    assert len(reference_tensorrt.attentions()) == 2
