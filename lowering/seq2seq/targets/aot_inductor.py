"""AOTInductor: each program compiled ahead of time into a package, a shared library in a `.pt2` archive.

A package writes into the caller's caches, in place. It takes types and layouts of its inputs from the exported example
and does not look at theirs, so every input is checked and handed over contiguous; the caches must be so themselves.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_structure, tree_unflatten

from ....errors import BackendError
from ..runtime import Runtime
from .fingerprint import fingerprint
from .inputs import InputForm, fitted, input_forms
from .packing import inductor_options

if TYPE_CHECKING:
    from ..programs import Seq2SeqPrograms

_META = "aot_inductor.json"
_CACHES = slice(3, 5)
"""Where a decoder's arguments are the caches that it writes."""


def compile_with_aot_inductor(programs: Seq2SeqPrograms, folder: str | Path | None = None, **options: Any) -> Runtime:
    """Compile each program into a package, and run the packages.

    Args:
        programs: the programs.
        folder: where `encoder.aoti.pt2`, `prefill.aoti.pt2` and `step.aoti.pt2` are written; made if it is not there.
            Packages in it that were made from these very programs, on this kind of device and with these options, are
            used as they are. Without one they are kept as long as the runtime.
        options: Inductor's. On the CPU `freezing` is True by default, which packs the weights.

    Raises:
        OptionError: for an option that Inductor does not have.
        BackendError: if something in them cannot be compiled; the cause is attached.
    """
    options = inductor_options(programs, options)
    kept = tempfile.TemporaryDirectory(prefix="attnlower-") if folder is None else None
    path = Path(kept.name if kept is not None else str(folder))
    path.mkdir(parents=True, exist_ok=True)
    meta = path / _META
    known: dict[str, str] = json.loads(meta.read_text(encoding="utf-8")) if meta.is_file() else {}
    marks: dict[str, str] = {}
    functions: dict[str, Callable[..., Any]] = {}
    for name, program in programs.programs.items():
        package = path / f"{name}.aoti.pt2"
        marks[name] = fingerprint(program, made_with=f"aot_inductor {torch.__version__} {sorted(options.items())}")
        if known.get(name) != marks[name] or not package.is_file():
            try:
                # a copy, as Inductor adds options of its own
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(package), inductor_configs=dict(options) or None
                )
            except Exception as error:
                raise BackendError(f"AOTInductor could not compile program '{name}': {error}") from error
        functions[name] = torch._inductor.aoti_load_package(str(package))
    meta.write_text(json.dumps(marks, indent=1), encoding="utf-8")
    forms = {name: input_forms(program) for name, program in programs.programs.items()}
    return _runtime(functions, forms, kept)


def _runtime(
    functions: Mapping[str, Callable[..., Any]], forms: Mapping[str, Sequence[InputForm]], kept: object
) -> Runtime:
    """The packages as functions; `kept` lives as long as they do."""

    def run(part: str, arguments: tuple[Any, ...]) -> Any:
        given = tree_unflatten(fitted(arguments, forms[part]), tree_structure(arguments))
        with torch.no_grad():
            return functions[part](*given)

    def encoder(*arguments: Tensor) -> Any:
        return run("encoder", arguments)

    def decoder(part: str) -> Callable[..., Tensor]:
        def decode(*arguments: Any, _kept: object = kept) -> Tensor:
            _check_caches(arguments)
            logits: Tensor = run(part, arguments)
            return logits

        return decode

    return Runtime("aot_inductor", encoder, decoder("prefill"), decoder("step"))


def _check_caches(arguments: Sequence[Any]) -> None:
    """A copy of a cache would be written in its place.

    Raises:
        BackendError: if a self-attention cache is not contiguous.
    """
    if not all(tensor.is_contiguous() for part in arguments[_CACHES] for tensor in part):
        raise BackendError("target 'aot_inductor' writes into contiguous self-attention caches only")
