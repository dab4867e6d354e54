"""ExecuTorch: each program as a `.pte` file, XNNPACK where it can and portable kernels for the rest.

ExecuTorch 1.4 lowers writes into a program's inputs, but seen through its Python runtime the caller's tensors stay as
they were, and what the program computes from them is wrong, without an error. So the programs are functional here: they
return the new rows of the caches, which are written behind each call. And a `.pte`
knows one layout of its inputs, that of the exported example; every input is handed over contiguous.

Attention is written out by attnlower (target "executorch"). All other ops are decomposed once, with those kept that
XNNPACK takes whole (linear among them): ExecuTorch itself would decompose in two steps, the second of which finds
views that fitted the strides of the first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ....errors import BackendError
from ...api import lower
from ...targets.executorch import EXECUTORCH
from ..functional import FunctionalProgram, functional
from ..runtime import Runtime
from .fingerprint import fingerprint
from .flat import Flat, Interface, flat_runtime
from .inputs import input_forms

if TYPE_CHECKING:
    from ..programs import Seq2SeqPrograms

INSTALL = "pip install 'executorch==1.4.*'"
_META = "executorch.json"


def compile_with_executorch(
    programs: Seq2SeqPrograms, folder: str | Path | None = None, partitioners: Sequence[Any] | None = None
) -> Runtime:
    """Make `.pte` files and run them with the ExecuTorch runtime, on the CPU.

    Args:
        programs: the programs, float32 and on the CPU.
        folder: where `encoder.pte`, `prefill.pte` and `step.pte` are written; made if it is not there. Files in it that
            were made from these very programs are used as they are. Without one nothing is written.
        partitioners: ExecuTorch partitioners in place of XNNPACK's; an empty sequence means portable kernels alone.

    Raises:
        BackendError: if ExecuTorch is missing or incomplete.
    """
    version = _version()
    if partitioners is None:
        partitioners = [_xnnpack()]
    used = " ".join(["executorch", version, *(type(p).__name__ for p in partitioners)])
    path = None if folder is None else Path(folder)
    known = _known(path)
    functions: dict[str, Flat] = {}
    interfaces: dict[str, Interface] = {}
    entries: dict[str, Any] = {}
    for name, program in programs.programs.items():
        mark = fingerprint(program, made_with=used)
        data = _kept(path, name, known, mark)
        if data is None:
            part = executorch_program(program, partitioners)
            data, interfaces[name] = _pte(part, partitioners), Interface.of(part)
        else:
            interfaces[name] = Interface.from_dict(known[name]["interface"])
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)
            (path / f"{name}.pte").write_bytes(data)
            entries[name] = {"fingerprint": mark, "interface": interfaces[name].to_dict()}
        functions[name] = _Loaded(data)
    if path is not None:
        (path / _META).write_text(json.dumps(entries, indent=1), encoding="utf-8")
    forms = {name: input_forms(program) for name, program in programs.programs.items()}
    return flat_runtime("executorch", functions, interfaces, forms)


def executorch_program(program: ExportedProgram, partitioners: Sequence[Any]) -> FunctionalProgram:
    """The program that ExecuTorch is given: attention written out, core ATen, without writes.

    Args:
        program: of an encoder-decoder model.
        partitioners: whose ops are not decomposed.

    Raises:
        BackendError: if an attention call cannot be written out.
    """
    written_out: ExportedProgram = lower(program, target=EXECUTORCH).program
    left = [node.name for node in written_out.graph.nodes if node.target is torch.ops.attnlower.attention.default]
    if left:
        raise BackendError(f"ExecuTorch has no attention op, and these calls cannot be written out: {left}")
    table = torch.export.default_decompositions()
    for partitioner in partitioners:
        for op in partitioner.ops_to_not_decompose(written_out)[0]:
            table.pop(op, None)
    return functional(written_out, table)


def _xnnpack() -> Any:
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    except ImportError as error:
        raise BackendError(f"ExecuTorch cannot be imported ({error}); it comes with {INSTALL}") from error
    return XnnpackPartitioner()


def _version() -> str:
    """The installed version.

    Raises:
        BackendError: if there is none.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("executorch")
    except PackageNotFoundError:
        found = ""
    if not found or find_spec("executorch.exir") is None:
        raise BackendError(f"target 'executorch' needs ExecuTorch: {INSTALL}")
    return found


def _pte(part: FunctionalProgram, partitioners: Sequence[Any]) -> bytes:
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    edge = to_edge_transform_and_lower(part.program, partitioner=list(partitioners))
    # the caches are read where they are
    planning = MemoryPlanningPass(alloc_graph_input=False)
    return bytes(edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning)).buffer)


class _Loaded:
    """A `.pte` in the runtime. The program is held since its method reads what it holds."""

    def __init__(self, data: bytes) -> None:
        from executorch.runtime import Runtime as ExecuTorch

        self._program = ExecuTorch.get().load_program(data)
        self._method: Any = self._program.load_method("forward")

    def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        results: Sequence[Tensor] = self._method.execute([tensor.detach() for tensor in inputs])
        return results


def _known(path: Path | None) -> dict[str, Any]:
    """What is noted about the files of a folder."""
    if path is None or not (path / _META).is_file():
        return {}
    noted: dict[str, Any] = json.loads((path / _META).read_text(encoding="utf-8"))
    return noted


def _kept(path: Path | None, name: str, known: dict[str, Any], mark: str) -> bytes | None:
    """A file made from this program; None if there is none."""
    if path is None or known.get(name, {}).get("fingerprint") != mark or not (path / f"{name}.pte").is_file():
        return None
    return (path / f"{name}.pte").read_bytes()
