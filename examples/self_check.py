"""The untouched graph beside the compiled one, and the properties a compiled model must keep."""

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import attnlower

torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
model = Qwen2ForCausalLM(config).eval()
given = {
    "input_ids": torch.randint(0, 64, (3, 16)),
    "attention_mask": torch.ones(3, 16, dtype=torch.long),
    "use_cache": False,
}

# The first call of each graph is compared; one that differs by more than rounding raises VerificationError.
compiled = torch.compile(model, backend="attnlower", options={"target": "eager", "verify": 1})
with torch.no_grad():
    compiled(**given)
print(attnlower.last_report())

# The same from the shell, for a checkpoint or a config.json: attnlower verify FOLDER
print(attnlower.verify(model, target="eager", **given))
