"""torch.compile with attnlower as its backend: any model, no import needed."""

import argparse

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import attnlower

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--target", default="inductor", choices=("inductor", "eager"), help="the compiler behind attnlower")
target = parser.parse_args().target

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
compiled = torch.compile(model, backend="attnlower", options={"target": target})

ids, mask = torch.randint(0, 64, (2, 16)), torch.ones(2, 16, dtype=torch.long)
padded = mask.clone()
padded[1, :5] = 0
with torch.no_grad():
    for name, attention_mask in (("no padding", mask), ("padding", padded)):
        given = {"input_ids": ids, "attention_mask": attention_mask, "use_cache": False}
        difference = (compiled(**given).logits - model(**given).logits).abs().max()
        print(f"{name}: largest difference to eager {difference:.1e}")
print(attnlower.last_report())
