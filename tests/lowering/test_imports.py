"""What is imported when, and which folder may use which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import attnlower

ROOT = Path(attnlower.__file__).parent


def imported_by(statement: str) -> set[str]:
    """Names of the modules that a fresh interpreter imports for a statement."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", statement], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize("statement", ["import attnlower", "import attnlower.lowering.backend"])
def test_importing_loads_neither_transformers_nor_the_solver(statement: str) -> None:
    modules = imported_by(statement)
    assert "attnlower" in modules
    heavy = {"transformers", "z3", "torch_tensorrt", "executorch", "rich", "matplotlib", "torch._inductor.compile_fx"}
    assert not heavy & modules


def test_the_solver_loads_at_the_first_proof_only() -> None:
    script = (
        "import sys, torch, torch.nn.functional as F, attnlower\n"
        "from torch.fx.experimental.proxy_tensor import make_fx\n"
        "class Plain(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return F.scaled_dot_product_attention(x, x, x)\n"
        "gm = make_fx(Plain(), pre_dispatch=True)(torch.randn(2, 3, 8, 16))\n"
        "sys.modules['z3'] = None\n"  # torch imports it too where it is there
        "assert len(attnlower.lower(gm).report.sites) == 1\n"
        "assert 'transformers' not in sys.modules\n"
    )
    imported_by(script)


def modules_of(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


def imports_of(path: Path) -> set[str]:
    """Absolute names of what a module imports, relative imports resolved; `import` inside functions included."""
    package = ("attnlower", *path.relative_to(ROOT).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join((*base, *filter(None, [node.module])))
            found.update({name, *(f"{name}.{alias.name}" for alias in node.names)})
    return found


@pytest.mark.parametrize("path", modules_of("patterns"), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_patterns_never_uses_lowering(path: Path) -> None:
    assert not [name for name in imports_of(path) if name.startswith(("attnlower.lowering", "attnlower.converters"))]


@pytest.mark.parametrize("path", modules_of("lowering"), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_core_never_uses_its_extras(path: Path) -> None:
    """Encoder-decoder models are transformers'; that part may use it, and the backends that run them."""
    extras = {"transformers", "torch_tensorrt", "executorch", "matplotlib"}
    if "seq2seq" in path.parts:
        extras = {"matplotlib"}
    assert not {name.partition(".")[0] for name in imports_of(path)} & extras
    users = "seq2seq" in path.parts and "targets" in path.parts
    assert users or not [name for name in imports_of(path) if name.startswith("attnlower.converters")]


def test_the_check_sees_relative_imports() -> None:
    assert "attnlower.patterns.conditions" in imports_of(ROOT / "lowering" / "passes" / "base.py")
    assert "attnlower.lowering.op" in imports_of(ROOT / "lowering" / "passes" / "base.py")


def test_one_facade() -> None:
    assert all(hasattr(attnlower, name) for name in attnlower.__all__)
    assert attnlower.__version__
