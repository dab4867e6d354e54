"""The command line: `attnlower explain`, `verify`, `export-seq2seq`, `generate` and `demo`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import AttnLowerError

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class UsageError(AttnLowerError):
    """A file named on the command line cannot be used."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's). Returns the exit code.

    0; 1 where a check of `verify` fails; 2 where a command cannot be carried out.
    """
    args = build_parser().parse_args(argv)
    try:
        code: int = args.run(args)
    except AttnLowerError as error:
        print(f"attnlower: {error}", file=sys.stderr)
        return 2
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; each sets `run`, a function of the parsed arguments."""
    from . import demo, timing, verify_cli
    from .lowering.seq2seq import cli as seq2seq

    parser = argparse.ArgumentParser(
        prog="attnlower", description="Proves what an attention mask says, and lowers attention by that proof."
    )
    version = f"attnlower {timing.version_of('attnlower') or '(not installed)'}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    explain = commands.add_parser("explain", help="print what the masks of a saved ExportedProgram say")
    explain.add_argument("program", type=Path, help="file written by torch.export.save (.pt2)")
    explain.add_argument("--json", action="store_true", help="print the report as JSON")
    explain.add_argument(
        "--assume", metavar="CONDITION", help='a fact about the inputs to rely on, such as "attention_mask.all()"'
    )
    explain.add_argument("--html", type=Path, metavar="PATH", help="write the report with pictures of the masks, too")
    explain.set_defaults(run=run_explain)

    check = "check that a model compiled with attnlower does what the eager model does"
    verify_cli.add_arguments(commands.add_parser("verify", help=check))

    export = "export an encoder-decoder model as programs that generate"
    seq2seq.add_export_arguments(commands.add_parser("export-seq2seq", help=export))
    seq2seq.add_generate_arguments(commands.add_parser("generate", help="generate from exported programs"))

    demo.add_arguments(commands.add_parser("demo", help="eager, Inductor, attnlower and a hand-made oracle, timed"))
    return parser


def run_explain(args: argparse.Namespace) -> int:
    """Print the report of the program in the file `args.program`, which stays as it is; write a page where asked."""
    from . import explain, lower

    program = load_program(args.program)
    if args.assume is None:
        report = explain(program)
    else:
        report = lower(program, assume=args.assume).report
    if args.html is not None:
        report.to_html(args.html)
    print(json.dumps(report.to_dict(), indent=1) if args.json else report)
    return 0


def load_program(path: Path) -> ExportedProgram:
    """The ExportedProgram saved at `path`; a UsageError says why there is none."""
    if not path.is_file():
        raise UsageError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path}: not a .pt2 file, which torch.export.save writes")
    import torch

    register_output_types(path)
    try:
        return torch.export.load(path)
    except Exception as error:  # torch.export.load names no set of errors that it raises
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"{path}: torch.export.load failed: {type(error).__name__}: {reason}") from error


def register_output_types(path: Path) -> None:
    """Import the transformers modules that define the program's input and output types, where transformers is there.

    torch.export.load knows a type such as `CausalLMOutputWithPast` only once its module has been imported.
    """
    named: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            if entry.endswith(".json"):
                text = archive.read(entry).decode(errors="replace")
                named.update(re.findall(r'\\"type\\": \\"(transformers[\w.]*)\.\w+\\"', text))
    for module in sorted(named):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


if __name__ == "__main__":
    sys.exit(main())
