"""The demo: eager, Inductor, attnlower and a hand-made oracle side by side on a decoder of a published model's widths.

Inductor is handed a mask tensor by the model and reads it in every layer; attnlower proves that the mask says
`k <= q` wherever the padding mask is all ones, and guards on that. The oracle is the same model, weights shared, with
that decision made by hand in the source: attention called with `is_causal=True` and no mask. It is the time to reach.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from . import timing
from .errors import AttnLowerError

if TYPE_CHECKING:
    import torch

    from .demo_model import Call
    from .lowering import Report

Step = Callable[[str], None]

BUILT_IN = "qwen2.5-0.5b"
FULL = {"seq_len": 4096, "rounds": 9}
QUICK = {"seq_len": 1024, "rounds": 3}


@dataclass(frozen=True)
class Settings:
    """What to measure. `layers` None means the configuration's own number; `seq_len` is in tokens."""

    model: str
    layers: int | None
    seq_len: int
    batch: int
    rounds: int
    dtype: str
    text: str | None
    seed: int
    quick: bool


@dataclass(frozen=True)
class FirstCall:
    """A variant's warm-up: its seconds (compilation included), its Dynamo graphs, its distance to eager's output."""

    seconds: float
    graphs: int
    max_abs_diff: float


@dataclass(frozen=True)
class Padding:
    """A left-padded batch through the same compiled callable, against eager; then the unpadded one once more."""

    padded_tokens: tuple[int, ...]
    first_call_seconds: float
    max_abs_diff: float
    max_abs_diff_unpadded_again: float


@dataclass(frozen=True)
class Result:
    """Everything that the demo found out."""

    settings: Settings
    model: str
    input: str
    call: str
    machine: dict[str, object]
    report: Report
    first_calls: dict[str, FirstCall]
    rounds: timing.Rounds
    no_oracle: str | None
    padding: Padding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the demo's options."""
    parser.add_argument(
        "--model",
        default=BUILT_IN,
        help=f"{BUILT_IN} (its widths, random weights; the default), or a local config.json or checkpoint folder",
    )
    parser.add_argument("--layers", type=positive, help="decoder layers (default: 2; with --model, all of them)")
    parser.add_argument("--seq-len", type=positive, help=f"tokens in a row (default: {FULL['seq_len']})")
    parser.add_argument("--batch", type=positive, default=1, help="rows (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, help=f"timed calls of each variant (default: {FULL['rounds']})")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: %(default)s)")
    parser.add_argument("--text", help="UTF-8 file for the token ids (default: Python's own documentation)")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: %(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK['seq_len']} tokens, {QUICK['rounds']} rounds: less than a minute"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else, on stdout")
    parser.set_defaults(run=run)


def positive(word: str) -> int:
    """An argument that is a whole number of at least 1."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is less than 1")
    return number


def run(args: argparse.Namespace) -> int:
    """Measure what `args` ask for and print it; returns the exit code."""
    settings = settings_from(args)
    with contextlib.redirect_stdout(sys.stderr):  # libraries may print: stdout is for the result
        result = measure(settings)
    if args.json:
        print(json.dumps(to_dict(result), indent=1))
    else:
        show(result)
    return 0


def settings_from(args: argparse.Namespace) -> Settings:
    """The options with their defaults filled in; what is given explicitly wins over --quick."""
    defaults = QUICK if args.quick else FULL
    return Settings(
        model=args.model,
        layers=args.layers,
        seq_len=args.seq_len or defaults["seq_len"],
        batch=args.batch,
        rounds=args.rounds or defaults["rounds"],
        dtype=args.dtype,
        text=args.text,
        seed=args.seed,
        quick=args.quick,
    )


def measure(settings: Settings) -> Result:
    """Build the model and its variants, warm each up, time them alternating, then try a padded batch."""
    missing = [name for name in ("transformers", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        raise AttnLowerError(f'the demo needs {" and ".join(missing)}: pip install "attnlower[hf]"')
    import torch

    from . import demo_model, last_report

    torch._dynamo.reset()
    with progress(total=8 + settings.rounds) as step, torch.no_grad():
        step("building the model")
        model = demo_model.build_model(settings.model, settings.layers, getattr(torch, settings.dtype), settings.seed)
        step("making token ids of the text")
        ids, source = demo_model.token_ids(model, settings.model, settings.text, settings.batch, settings.seq_len)
        call = demo_model.Call(model, ids)
        step("eager")
        bench = Bench(call, demo_model.reference_logits(model, call))
        bench.add("eager", model)
        step("the oracle's output against eager's")
        oracle, no_oracle = demo_model.hand_made_oracle(model, call, bench.reference)
        step("inductor: compiling")
        bench.add("inductor", torch.compile(model))
        step("attnlower: compiling")
        bench.add("attnlower", torch.compile(model, backend="attnlower"))
        report = last_report()
        step("oracle: compiling" if oracle is not None else "no oracle")
        if oracle is not None:
            bench.add("oracle", torch.compile(oracle))
        rounds = bench.time(settings.rounds, step)
        step("a left-padded batch through attnlower's callable")
        padding = bench.padding("attnlower")
    return Result(
        settings=settings,
        model=demo_model.describe(model, settings.model),
        input=source,
        call=str(call),
        machine=timing.machine(),
        report=report,
        first_calls=bench.first_calls,
        rounds=rounds,
        no_oracle=no_oracle,
        padding=padding,
    )


@dataclass
class Bench:
    """The variants, called alike; `reference` is eager's output for an attention mask of all ones."""

    call: Call
    reference: torch.Tensor
    modules: dict[str, Any] = field(default_factory=dict)
    first_calls: dict[str, FirstCall] = field(default_factory=dict)

    def add(self, name: str, module: Any) -> None:
        """Warm `module` up (which compiles it) and note its time, its graphs and its distance to eager."""
        before = dynamo_graphs()
        outputs: list[torch.Tensor] = []
        seconds = timing.seconds_of(lambda: outputs.append(self.call(module)))
        self.modules[name] = module
        self.first_calls[name] = FirstCall(seconds, dynamo_graphs() - before, self.distance(outputs[0]))

    def time(self, rounds: int, step: Step) -> timing.Rounds:
        """Every variant once per round, `rounds` times."""
        variants = {name: (lambda module=module: self.call(module)) for name, module in self.modules.items()}
        return timing.alternate(variants, rounds, on_round=lambda index: step(f"round {index + 1} of {rounds}"))

    def padding(self, name: str) -> Padding:
        """A batch whose row i starts with more padding than row i-1, through variant `name` and through eager."""
        mask = self.call.ones.clone()
        batch, length = mask.shape
        counts = tuple(length * (row + 1) // (2 * batch) for row in range(batch))
        for row, count in enumerate(counts):
            mask[row, :count] = 0
        expected = self.call(self.modules["eager"], mask)
        outputs: list[torch.Tensor] = []
        seconds = timing.seconds_of(lambda: outputs.append(self.call(self.modules[name], mask)))
        again = self.distance(self.call(self.modules[name]))
        return Padding(counts, seconds, self.distance(outputs[0], expected), again)

    def distance(self, output: torch.Tensor, expected: torch.Tensor | None = None) -> float:
        """The largest absolute difference to `expected`, by default eager's output for all ones."""
        from .demo_model import max_abs_diff

        return max_abs_diff(output, self.reference if expected is None else expected)


def dynamo_graphs() -> int:
    """How many graphs Dynamo has handed to backends in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


@contextlib.contextmanager
def progress(total: int) -> Iterator[Step]:
    """Yields a function that tells, on stderr, which of `total` steps begins: a bar in a terminal, else lines."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    what = TextColumn("{task.description}")
    columns = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), what)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        begun = 0

        def step(what: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, description=what)
            begun += 1
            if not console.is_terminal:
                print(f"[{begun}/{total}] {what}", file=sys.stderr, flush=True)

        yield step


def to_dict(result: Result) -> dict[str, Any]:
    """The result as JSON data; times in seconds."""
    bases = [base for base in ("oracle", "attnlower") if base in result.first_calls]
    variants = {
        name: {
            "seconds": list(result.rounds.seconds[name]),
            "seconds_spread": result.rounds.spread(name).to_dict(),
            "fastest_seconds": result.rounds.fastest(name),
            "ratio_to": {base: result.rounds.ratio(name, base).to_dict() for base in bases},
            "first_call_seconds": first.seconds,
            "dynamo_graphs": first.graphs,
            "max_abs_diff_to_eager": first.max_abs_diff,
        }
        for name, first in result.first_calls.items()
    }
    return {
        "machine": result.machine,
        "settings": asdict(result.settings),
        "model": result.model,
        "input": result.input,
        "call": result.call,
        "variants": variants,
        "oracle": {"valid": result.no_oracle is None, "reason": result.no_oracle},
        "padding": asdict(result.padding),
        "report": result.report.to_dict(),
    }


def show(result: Result) -> None:
    """Print the result for a person, on stdout."""
    from rich.console import Console

    console = Console(highlight=False, width=max(Console().width, 120))
    machine = result.machine
    console.print(f"\n[bold]Model[/]   {result.model}")
    console.print(f"[bold]Input[/]   {result.input}")
    console.print(f"[bold]Call[/]    {result.call}")
    console.print(
        f"[bold]Machine[/] {machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"transformers {machine['transformers']}, Python {machine['python']}\n"
    )
    print(result.report)
    console.print(times_table(result))
    for note in notes(result):
        console.print(note)


def times_table(result: Result) -> Any:
    """The variants' times and ratios, as a rich table."""
    from rich import box
    from rich.table import Table

    bases = [base for base in ("oracle", "attnlower") if base in result.first_calls]
    title = f"Rounds: {result.settings.rounds}, variants alternating; median \\[quartiles]"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("variant", no_wrap=True)
    for heading in ("seconds", *(f"x {base}" for base in bases), "max |diff| to eager", "first call, s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, first in result.first_calls.items():
        spreads = [result.rounds.spread(name), *(result.rounds.ratio(name, base) for base in bases)]
        numbers = (f"{s.median:.3f} \\[{s.lower:.3f} {s.upper:.3f}]" for s in spreads)
        table.add_row(name, *numbers, f"{first.max_abs_diff:.1e}", f"{first.seconds:.1f}")
    return table


def notes(result: Result) -> Iterator[str]:
    """What a reader of the table should know besides."""
    if result.no_oracle is None:
        yield "oracle: the same weights with is_causal=True and no mask written by hand, compiled by Inductor."
    else:
        yield f"No oracle: {result.no_oracle}."
    padding, guarded = result.padding, any(site.action == "guarded" for site in result.report.sites)
    yield (
        f"Padding: {', '.join(map(str, padding.padded_tokens))} tokens on the left masked out, same compiled callable: "
        f"max |diff| to eager {padding.max_abs_diff:.1e}, {padding.first_call_seconds:.1f} s"
        f"{' with compiling the general variant' if guarded else ''}; "
        f"all ones again: {padding.max_abs_diff_unpadded_again:.1e}."
    )
    yield (
        "First calls compile one after the other: the earliest carries Inductor's own start-up, and kernels that "
        "variants share are compiled for the first of them only."
    )
    for name, first in result.first_calls.items():
        if name != "eager" and first.graphs != 1:
            yield f"Note: {name} was compiled as {first.graphs} graphs, not 1."
    settings = result.settings
    if settings.quick:
        yield (
            f"--quick cut: {settings.seq_len} tokens (without it {FULL['seq_len']}), {settings.rounds} rounds (without "
            f"it {FULL['rounds']}). The mask costs the less, the shorter the sequence."
        )
