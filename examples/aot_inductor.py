"""torch.export, attnlower.lower, an AOTInductor package, and back."""

import tempfile
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2Model

import attnlower

torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
)
model = Qwen2Model(config).eval()
given = {
    "input_ids": torch.randint(0, 64, (2, 16)),
    "attention_mask": torch.ones(2, 16, dtype=torch.long),
    "use_cache": False,
}
length = {1: torch.export.Dim("length", min=2, max=64)}
shapes = {"input_ids": length, "attention_mask": length, "use_cache": None}
program = torch.export.export(model, (), given, dynamic_shapes=shapes, strict=False)

# An exported program cannot look at its inputs and choose: that nothing is padded is stated, and in the report.
lowered = attnlower.lower(program, assume="attention_mask.all()")
print(lowered.report)

with tempfile.TemporaryDirectory() as folder:
    path = str(Path(folder) / "model.pt2")
    torch._inductor.aoti_compile_and_package(lowered.program, package_path=path)
    package = torch._inductor.aoti_load_package(path)
    # a package takes its inputs in the layout they had at export: contiguous
    for tokens in (16, 7):
        shorter = {**given, **{name: given[name][:, :tokens].contiguous() for name in ("input_ids", "attention_mask")}}
        with torch.no_grad():
            wanted = model(**shorter).last_hidden_state
        found = package(**shorter).last_hidden_state
        print(f"{tokens} tokens: largest difference to eager {(found - wanted).abs().max():.1e}")
