"""DDP, FSDP2 or tensor parallelism, compiled with attnlower.

torchrun --standalone --nproc-per-node 2 examples/data_parallel.py --how fsdp
"""

import argparse
import copy

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from transformers import Qwen2Config, Qwen2ForCausalLM

import attnlower

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--how", default="ddp", choices=("ddp", "fsdp", "tensor"))
parser.add_argument("--target", default="inductor", choices=("inductor", "eager"), help="the compiler behind attnlower")
options = parser.parse_args()

dist.init_process_group("gloo")
rank, mesh = dist.get_rank(), init_device_mesh("cpu", (dist.get_world_size(),))
torch.manual_seed(0)  # the same weights and tokens on every rank
config = Qwen2Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
plain = Qwen2ForCausalLM(config)
model = copy.deepcopy(plain)
if options.how == "ddp":
    model = DistributedDataParallel(model)
elif options.how == "fsdp":
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
else:
    plan = {f"model.layers.*.self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
    plan["model.layers.*.self_attn.o_proj"] = RowwiseParallel()
    parallelize_module(model, mesh, plan)

compiled = torch.compile(model, backend="attnlower", options={"target": options.target})
ids, mask = torch.randint(0, 64, (4, 16)), torch.ones(4, 16, dtype=torch.long)
rows = slice(None) if options.how == "tensor" else slice(2 * rank, 2 * rank + 2)
logits = compiled(input_ids=ids[rows], attention_mask=mask[rows], use_cache=False).logits
wanted = plain(input_ids=ids[rows], attention_mask=mask[rows], use_cache=False).logits
logits.pow(2).mean().backward()
actions = [site.action for site in attnlower.last_report().sites]
print(f"rank {rank}: largest difference to eager {(logits - wanted).abs().max():.1e}, attention calls: {actions}")
dist.destroy_process_group()
