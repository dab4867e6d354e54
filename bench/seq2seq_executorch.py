"""The two ways to an encoder-decoder model on ExecuTorch: attnlower's programs, and transformers' own export.

Both end in `.pte` files with XNNPACK, run by the real runtime on the CPU. transformers' is `Seq2SeqLMExportableModule`:
one source of any length without a mask, a decoder with a static self-attention cache inside, whose cross-attention keys
and values are projected anew at every step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import attnlower

OURS, THEIRS = "attnlower, ExecuTorch", "transformers' export, ExecuTorch"
Method = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def ours(model: Any, source: int, capacity: int) -> Any:
    """attnlower's programs for one source without beams, as `.pte` files in memory."""
    limits = {"batch_size": 1, "max_beams": 1, "max_source_len": source, "max_target_len": capacity}
    return attnlower.export_seq2seq(model, **limits).compile("executorch")


def theirs(model: Any, source: int, capacity: int) -> tuple[Method, Method]:
    """Encoder (ids -> hidden states) and decoder (token, hidden states, position -> logits) of transformers' export.

    Raises:
        Exception: whatever the export, the lowering or the runtime finds.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from transformers.integrations.executorch import Seq2SeqLMExportableModule

    # the export writes into the model's configs; its own example has ten tokens
    module = Seq2SeqLMExportableModule(
        copy.deepcopy(model), batch_size=1, max_hidden_seq_length=max(source, 16), max_cache_length=capacity
    ).export()
    parts = (module.exported_encoder, module.exported_decoder)
    encoder, decoder = (
        _loaded(to_edge_transform_and_lower(part, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)
        for part in parts
    )
    ids = torch.full((1, source), 3)
    with torch.no_grad():
        (hidden,) = encoder([ids])
        decoder([torch.zeros(1, 1, dtype=torch.long), hidden.clone(), torch.zeros(1, dtype=torch.long)])
    return encoder, decoder


def _loaded(data: bytes) -> Method:
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(bytes(data))
    method: Any = program.load_method("forward")

    def run(inputs: Sequence[Tensor], program: Any = program) -> Sequence[Tensor]:
        results: Sequence[Tensor] = method.execute([tensor.detach() for tensor in inputs])
        return results

    return run
