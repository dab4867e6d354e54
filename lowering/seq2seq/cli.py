"""`attnlower export-seq2seq` and `attnlower generate`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from ...errors import ProgramError

PACKAGED = ("executorch", "aot_inductor")
"""Targets whose compiled programs are files beside the exported ones."""


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `attnlower export-seq2seq`."""
    parser.add_argument("model", help="a checkpoint (folder or name), or a config.json, which gives random weights")
    parser.add_argument("out", type=Path, help="folder to write the programs into")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="most sources at once (default 1)")
    parser.add_argument("--max-source-len", type=int, default=256, metavar="N", help="longest source (default 256)")
    parser.add_argument("--max-target-len", type=int, default=128, metavar="N", help="most target tokens (default 128)")
    parser.add_argument("--max-beams", type=int, default=4, metavar="N", help="most rows per source (default 4)")
    parser.add_argument("--target", choices=PACKAGED, help="compile for it, too, into files of the same folder")
    parser.add_argument("--seed", type=int, default=0, help="for the random weights of a config (default 0)")
    parser.set_defaults(run=run_export)


def add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `attnlower generate`."""
    parser.add_argument("programs", type=Path, help="folder written by export-seq2seq")
    parser.add_argument(
        "--ids", action="append", required=True, metavar="IDS", help='token ids of a source: "13 5 1"; once per source'
    )
    parser.add_argument("--num-beams", type=int, default=1, metavar="N")
    parser.add_argument("--max-new-tokens", type=int, default=20, metavar="N")
    parser.add_argument("--target", default="eager", help="eager, inductor, executorch, ... (default eager)")
    parser.add_argument("--json", action="store_true", help="print the token ids as JSON")
    parser.set_defaults(run=run_generate)


def run_export(args: argparse.Namespace) -> int:
    """Export a model into a folder, showing the steps."""
    if importlib.util.find_spec("rich") is None:
        raise ProgramError("export-seq2seq shows its steps with rich: pip install 'attnlower[hf]'")
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from .export import export_seq2seq

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("model", total=None)

        def show(step: str) -> None:
            progress.update(task, description=step)

        model = load_model(args.model, args.seed)
        programs = export_seq2seq(
            model,
            batch_size=args.batch_size,
            max_source_len=args.max_source_len,
            max_target_len=args.max_target_len,
            max_beams=args.max_beams,
            progress=show,
        )
        show(f"writing {args.out}")
        programs.save(args.out)
        if args.target is not None:
            show(f"compiling for {args.target}")
            programs.compile(args.target, folder=args.out)
        show("done")
    print(programs.report)
    return 0


def run_generate(args: argparse.Namespace) -> int:
    """Generate from the programs in a folder and print the token ids, one line per source."""
    import torch

    from .programs import Seq2SeqPrograms

    programs = Seq2SeqPrograms.load(args.programs)
    if args.target != "eager":
        options: dict[str, Any] = {"folder": args.programs} if args.target in PACKAGED else {}
        programs = programs.compile(args.target, **options)
    rows = [parse_ids(text) for text in args.ids]
    longest = max(map(len, rows))
    pad = programs.config.pad_token_id or 0
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    out = programs.generate(ids, mask, num_beams=args.num_beams, max_new_tokens=args.max_new_tokens).tolist()
    print(json.dumps(out) if args.json else "\n".join(" ".join(map(str, row)) for row in out))
    return 0


def load_model(name: str, seed: int) -> Any:
    """A model in evaluation mode, from a checkpoint, or with random weights from a config.

    Raises:
        ProgramError: if there is none, or it cannot be loaded.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

    path = Path(name)
    try:
        config = AutoConfig.from_pretrained(path)
        # the configs that the text class does not know are those of speech models
        text = type(config) in AutoModelForSeq2SeqLM._model_mapping
        auto: Any = AutoModelForSeq2SeqLM if text else AutoModelForSpeechSeq2Seq
        if path.is_file():
            torch.manual_seed(seed)
            return auto.from_config(config).eval()
        return auto.from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ProgramError(f"{name}: no encoder-decoder model can be loaded: {reason}") from error


def parse_ids(text: str) -> list[int]:
    """Token ids out of "13 5 1" or "13,5,1".

    Raises:
        ProgramError: if there are none, or something else is among them.
    """
    words = [w for w in re.split(r"[\s,]+", text) if w]
    if not words or not all(w.isdigit() for w in words):
        raise ProgramError(f"--ids takes token ids such as '13 5 1', not {text!r}")
    return [int(w) for w in words]
