"""What two ranks do, started by torchrun: each case compares a parallel, compiled model with one rank's eager model.

    torchrun --standalone --nproc-per-node 2 worker.py FOLDER

writes FOLDER/RANK.json: for each case the largest differences of outputs and gradients, the actions of the attention
calls, and the collectives in the graphs before and after.
"""

from __future__ import annotations

import copy
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import fx
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import attnlower
from attnlower.lowering import backend

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
LENGTH = 9
COMMUNICATING = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "wait_tensor", "redistribute", "local")


def llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **HEADS)).eval()


def data_parallel(model: Any, mesh: DeviceMesh) -> Any:
    return DistributedDataParallel(model)


def data_parallel_in_buckets(model: Any, mesh: DeviceMesh) -> Any:
    """Gradients are reduced in several pieces: Dynamo's DDPOptimizer splits the graph accordingly."""
    dist._DEFAULT_FIRST_BUCKET_BYTES = 1024  # else the first bucket holds all of this model
    return DistributedDataParallel(model, bucket_cap_mb=0.01)


def fsdp_whole(model: Any, mesh: DeviceMesh) -> Any:
    return fully_shard(model, mesh=mesh)


def fsdp_by_layer(model: Any, mesh: DeviceMesh) -> Any:
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(model: Any, mesh: DeviceMesh) -> Any:
    plan: dict[str, Any] = {}
    for index in range(SIZES["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
        plan.update({layer + name: ColwiseParallel() for name in columns})
        plan.update({layer + name: RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")})
    return parallelize_module(model, mesh, plan)


def hugging_face_plan(model: Any, mesh: DeviceMesh) -> Any:
    """transformers' own tensor parallelism, from a checkpoint."""
    folder = Path(sys.argv[1]) / "checkpoint"
    if dist.get_rank() == 0:
        model.save_pretrained(folder)
    dist.barrier()
    from transformers.distributed import DistributedConfig  # transformers 5 and newer

    plan, kind = DistributedConfig(tp_plan="auto"), transformers.AutoModelForCausalLM
    return kind.from_pretrained(folder, distributed_config=plan, local_files_only=True).eval()


CASES: dict[str, tuple[Callable[[Any, DeviceMesh], Any], bool, str]] = {
    # how it is made parallel, whether each rank has rows of its own, target
    "ddp": (data_parallel, True, "eager"),
    "ddp in buckets": (data_parallel_in_buckets, True, "eager"),
    "ddp inductor": (data_parallel, True, "inductor"),
    "fsdp whole": (fsdp_whole, True, "eager"),
    "fsdp by layer": (fsdp_by_layer, True, "eager"),
    "tensor parallel": (tensor_parallel, False, "eager"),
    "tensor parallel inductor": (tensor_parallel, False, "inductor"),
    "hugging face tp_plan": (hugging_face_plan, False, "eager"),
}


def collectives(gm: fx.GraphModule) -> Counter[str]:
    names = (str(getattr(n.target, "__name__", n.target)) for n in gm.graph.nodes if n.op.startswith("call"))
    return Counter(name for name in names if any(word in name for word in COMMUNICATING))


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def run_case(name: str, mesh: DeviceMesh) -> dict[str, Any]:
    make, own_rows, target = CASES[name]
    torch._dynamo.reset()
    started = time.perf_counter()
    plain = llama()
    model = make(copy.deepcopy(plain), mesh)
    plans: list[Any] = []
    original = backend.make_plan

    def recorded(gm: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        plans.append((gm, original(gm, *args, **kwargs)))
        return plans[-1][1]

    backend.make_plan = recorded
    try:
        compiled = torch.compile(model, backend="attnlower", dynamic=False, options={"target": target, "strict": True})
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(0, SIZES["vocab_size"], (4, LENGTH), generator=generator)
        ones, holes = torch.ones_like(ids), torch.ones_like(ids)
        holes[::2, :3] = 0  # rows of either rank
        rows = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2) if own_rows else slice(None)
        outputs, gradients = [], []
        actions: list[str] = []
        for mask in (ones, holes, ones):
            model.zero_grad()
            plain.zero_grad()
            out = compiled(input_ids=ids[rows], attention_mask=mask[rows], use_cache=False).logits
            if not actions:
                actions = [s.action for s in attnlower.last_report().sites if s.formula != "?"]
            wanted = plain(input_ids=ids, attention_mask=mask, use_cache=False).logits
            outputs.append(float((full(out) - wanted[rows]).detach().abs().max()))
            full(out).pow(2).mean().backward()
            wanted.pow(2).mean().backward()
            found = dict((model.module if hasattr(model, "module") else model).named_parameters())
            apart = [full(found[n].grad) - p.grad for n, p in plain.named_parameters() if p.grad is not None]
            gradients.append(max(float(a.abs().max()) for a in apart))
    finally:
        backend.make_plan = original
    graphs = []
    for gm, plan in plans:
        variants = [v.gm for v in (plan.general, plan.guarded) if v is not None]
        graphs.append({"before": collectives(gm), "after": [collectives(v) for v in variants]})
    return {
        "outputs": outputs,
        "gradients": gradients,
        "actions": actions,
        "graphs": graphs,
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found: dict[str, Any] = {}
    for name in sys.argv[2:] or CASES:
        try:
            found[name] = run_case(name, mesh)
        except Exception:
            found[name] = {"error": traceback.format_exc()}
        Path(sys.argv[1], f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
