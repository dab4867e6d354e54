"""transformers' generate: the compiled forward over a static cache goes through attnlower."""

import argparse

import torch
from transformers import CompileConfig, Qwen2Config, Qwen2ForCausalLM

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
    eos_token_id=None,
)
model = Qwen2ForCausalLM(config).eval()
ids, mask = torch.randint(0, 64, (2, 9)), torch.ones(2, 9, dtype=torch.long)
mask[1, :3] = 0

compile_config = CompileConfig(backend="attnlower", mode=None, options={"target": target})
compile_config._compile_all_devices = True  # transformers compiles on accelerators only, unless told otherwise
given = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
wanted = model.generate(ids, **given)
found = model.generate(ids, **given, cache_implementation="static", compile_config=compile_config)
print(f"same tokens as eager: {torch.equal(found, wanted)}")
print(attnlower.last_report())
