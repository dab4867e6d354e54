"""Is torch_tensorrt's attention right? Its own setting at its default, and with attnlower registered.

`attn_bias_is_causal`, on by default, takes every additive mask of as many queries as keys for a causal one. This runs
the cases of tensorrt_cases.py and tensorrt_models.py through torch_tensorrt with and without attnlower and prints the
largest absolute difference to eager, in float32. Without TensorRT and a GPU it runs on the tests' reference, and says
so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tensorrt_cases import CALLS, Case, as_on_cuda
from tensorrt_models import MODELS
from tensorrt_runtime import Runtime, load, quiet
from torch import Tensor

import attnlower
from attnlower.converters import register

TOLERANCE = 1e-5
RESULT = Path(__file__).parent / "results" / "tensorrt-soundness.json"


@dataclass(frozen=True)
class Outcome:
    """What one way of compiling gave.

    Attributes:
        errors: largest absolute difference to eager, for the traced inputs and then for each of the others.
        attentions: IAttention layers in the network; None where that cannot be asked (on TensorRT).
        masked: how many of them take a mask.
        problem: why there is no result; empty if there is.
    """

    errors: tuple[float, ...] = ()
    attentions: int | None = None
    masked: int | None = None
    problem: str = ""

    @property
    def error(self) -> float:
        """The largest; infinite without a result."""
        return max(self.errors) if self.errors else float("inf")

    @property
    def text(self) -> str:
        """As in the table."""
        return self.problem or " / ".join(f"{error:.1e}" for error in self.errors)


@dataclass(frozen=True)
class Row:
    """A case with what upstream and attnlower gave."""

    case: Case
    upstream: Outcome
    attnlower: Outcome
    actions: tuple[str, ...]


def export(case: Case, model: torch.nn.Module, args: Sequence[Tensor]) -> torch.export.ExportedProgram:
    """The case as a program whose attention is what CUDA gives."""
    dims = None if case.dims is None else case.dims()
    with as_on_cuda():
        return torch.export.export(model, tuple(args), dynamic_shapes=dims, strict=False)


def outcome(case: Case, runtime: Runtime, settings: dict[str, Any] | None = None) -> Outcome:
    """Export, compile with torch_tensorrt at its defaults, run, compare with eager."""
    model = case.model().to(runtime.device)
    args = on(runtime, case.inputs())
    try:
        with quiet(), torch.no_grad():
            program = export(case, model, args)
            compiled = runtime.torch_tensorrt.dynamo.compile(
                program, arg_inputs=list(args), min_block_size=1, **(settings or {})
            )
            layers = _attentions(runtime)
            runs = [args, *(on(runtime, make()) for make in case.others)]
            errors = tuple(difference(compiled(*run), model(*run)) for run in runs)
    except Exception as error:
        return Outcome(problem=f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")
    masked = None if layers is None else sum(layer.mask is not None for layer in layers)
    return Outcome(errors, None if layers is None else len(layers), masked)


def on(runtime: Runtime, args: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors on the runtime's device."""
    return tuple(arg.to(runtime.device) for arg in args)


def difference(left: Any, right: Tensor) -> float:
    """Largest absolute difference; infinite where only one of the two is NaN."""
    found = left[0] if isinstance(left, (tuple, list)) else left
    if not torch.equal(found.isnan(), right.isnan()):
        return float("inf")
    return float((found - right).nan_to_num().abs().max())


def _attentions(runtime: Runtime) -> list[Any] | None:
    if runtime.kind != "reference":
        return None
    import tensorrt_reference

    layers: list[Any] = tensorrt_reference.attentions()
    return layers


def measure(case: Case, runtime: Runtime) -> Row:
    """One case, without and with attnlower, every setting at its default."""
    upstream = outcome(case, runtime)
    with register():
        ours = outcome(case, runtime)
    report = attnlower.last_report()
    return Row(case, upstream, ours, tuple(f"{site.formula}: {site.action}" for site in report.sites))


def table(rows: Sequence[Row], runtime: Runtime) -> Any:
    """The rows for a terminal."""
    from rich import box
    from rich.table import Table

    made = Table(
        title=f"largest absolute difference to eager, float32, attn_bias_is_causal at its default; on {runtime}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("case", "torch_tensorrt", "with attnlower", "IAttention (masked)"):
        made.add_column(name)
    for row in rows:
        layers = row.attnlower
        count = "" if layers.attentions is None else f"{layers.attentions} ({layers.masked})"
        wrong = row.upstream.error > TOLERANCE
        made.add_row(
            row.case.name, f"[red]{row.upstream.text}[/]" if wrong else row.upstream.text, row.attnlower.text, count
        )
    return made


def to_dict(rows: Sequence[Row], runtime: Runtime) -> dict[str, Any]:
    """The result as JSON data."""
    return {
        "what": f"largest absolute difference to eager, float32, settings at their defaults; on {runtime}",
        "runtime": runtime.kind,
        "machine": runtime.machine(),
        "cases": [
            {
                "name": row.case.name,
                "harmless_upstream": row.case.harmless,
                "torch_tensorrt": asdict(row.upstream),
                "attnlower": asdict(row.attnlower),
                "calls": row.actions,
            }
            for row in rows
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write JSON; 1 if a result with attnlower is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reference", action="store_true", help="use the reference even where there is TensorRT")
    parser.add_argument("--json", type=Path, default=RESULT, help="where to write (default: %(default)s)")
    args = parser.parse_args(argv)
    runtime = load(True if args.reference else None)
    rows = []
    for case in (*CALLS, *MODELS):
        print(case.name, file=sys.stderr)
        rows.append(measure(case, runtime))
    from rich.console import Console

    Console(width=140, highlight=False).print(table(rows, runtime))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(to_dict(rows, runtime), indent=1) + "\n")
    wrong = [row.case.name for row in rows if not row.attnlower.error <= TOLERANCE]
    if wrong:
        print(f"attnlower: error above {TOLERANCE} in: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
