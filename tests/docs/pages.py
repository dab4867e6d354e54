"""The code blocks of a Markdown page, and how they are run.

A block's kind is what stands behind its fence:

- `python`: run, in the order of the page, in one namespace and one empty folder;
- `python tensorrt`: likewise, on the reference TensorRT (`tests/tensorrt_reference`);
- `sh`: run in that folder. Lines for `make` and `pip` are held against Makefile and pyproject.toml, scripts (`python`,
  `torchrun`) must be there, and of `attnlower` with placeholders such as CHECKPOINT the arguments are parsed;
- `text`: what the block before it prints.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attnlower.cli import build_parser

ROOT = Path(__file__).parent.parent.parent
FENCE = re.compile(r"^```(?P<kind>[^\n`]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]+")
KINDS = {"python", "python tensorrt", "sh", "text"}


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        kind: the words behind its fence.
        code: its lines.
        line: the number of its first line.
        output: what the page says it prints; None if it says nothing.
    """

    kind: str
    code: str
    line: int
    output: str | None = None


def blocks_of(text: str) -> list[Block]:
    """The blocks of a page, `text` blocks as the output of those before them.

    Raises:
        ValueError: for a block that could not be run: of another kind, or an output of nothing.
    """
    found: list[Block] = []
    end = 0
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        kind = match["kind"].strip()
        if kind not in KINDS:
            raise ValueError(f"line {line}: a block of kind '{kind}' is run by nothing; known are {sorted(KINDS)}")
        if kind != "text":
            found.append(Block(kind, match["code"], line))
        elif not found or found[-1].output is not None or text[end : match.start()].strip():
            raise ValueError(f"line {line}: a text block that follows no code: output of what?")
        else:
            found[-1] = Block(found[-1].kind, found[-1].code, found[-1].line, match["code"])
        end = match.end()
    return found


def run(page: Path, blocks: list[Block], folder: Path) -> Iterator[tuple[Block, str]]:
    """Run the blocks of a page in a folder, the current one: each with what it printed."""
    module = types.ModuleType(f"page_{re.sub(r'[^a-z]', '_', page.stem.lower())}")
    sys.modules[module.__name__] = module  # Dynamo looks a function's module up by name
    for block in blocks:
        if block.kind == "sh":
            yield block, run_shell(block.code, folder)
            continue
        printed = io.StringIO()
        padded = "\n" * (block.line - 1) + block.code  # errors name the page's own lines
        with contextlib.redirect_stdout(printed):
            exec(compile(padded, str(page), "exec"), vars(module))
        yield block, printed.getvalue()


def run_shell(code: str, folder: Path) -> str:
    """Run the lines that can be run here; check the others."""
    printed = ""
    for line in filter(None, (x.strip() for x in code.splitlines())):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            check_target(words[1])
        elif words[:2] == ["pip", "install"]:
            check_extras(line)
        elif words[0] in ("python", "torchrun"):
            check_scripts(words)
        elif words[0] == "attnlower" and any(PLACEHOLDER.fullmatch(w) for w in words):
            build_parser().parse_args(words[1:])
        else:
            environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
            done = subprocess.run(
                words, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
            )
            if done.returncode:
                raise RuntimeError(f"{line}: exit code {done.returncode}\n{done.stderr[-2000:]}")
            printed += done.stdout
    return printed


def check_scripts(words: list[str]) -> None:
    """Raise a ValueError if a command names a script that is not there."""
    for word in words:
        if word.endswith(".py") and not (ROOT / word).is_file():
            raise ValueError(f"no script '{word}'")


def check_target(name: str) -> None:
    """Raise a ValueError if the Makefile has no such target."""
    if not re.search(rf"^{re.escape(name)}:", (ROOT / "Makefile").read_text(), re.MULTILINE):
        raise ValueError(f"no target '{name}' in the Makefile")


def check_extras(line: str) -> None:
    """Raise a ValueError if pyproject.toml has not the extras that a `pip install '.[...]'` names, nor its torch."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"\.\[([\w,]+)\]", line):
        for extra in extras.split(","):
            if extra not in project["optional-dependencies"]:
                raise ValueError(f"no extra '{extra}' in pyproject.toml")
    for wanted in re.findall(r"'(torch[^']*)'", line):
        if wanted not in project["dependencies"]:
            raise ValueError(f"'{wanted}' is not what pyproject.toml asks for")
