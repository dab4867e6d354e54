"""What is imported when, which folder may use which, and how long files are."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import attnlower

ROOT = Path(attnlower.__file__).parent
FOLDERS = ("patterns", "lowering", "converters")
FORBIDDEN = {
    "patterns": ("attnlower.lowering", "attnlower.converters"),
    "lowering": ("attnlower.converters",),
    "converters": ("attnlower.lowering.passes",),
}
EXCEPTIONS: Mapping[str, tuple[str, ...]] = {
    # torch_tensorrt's lowering pass also runs rewrites of plain ATen graphs, which stand beside the passes
    "attnlower.converters.hooks": tuple(
        f"attnlower.lowering.passes.{name}"
        for name in ("cache_writes", "embedding_indices", "index_values", "scalar_rank")
    ),
}
EXTRAS = {"transformers", "tokenizers", "torch_tensorrt", "tensorrt", "executorch", "matplotlib"}
USERS_OF_EXTRAS = ("attnlower.lowering.seq2seq", "attnlower.converters", "attnlower.demo", "attnlower.verify_cli")


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


def package_files() -> list[Path]:
    """Every module of the installed package."""
    found = [p for p in ROOT.glob("*.py") if p.name != "setup.py"]
    for folder in FOLDERS:
        found += (ROOT / folder).rglob("*.py")
    return sorted(found)


def module_name(path: Path) -> str:
    """A file's module, e.g. ``attnlower.patterns.build``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("attnlower", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_name(path): path for path in package_files()}


def statements(tree: ast.AST, *, late: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """A module's imports. Unless `late`, only those made while it is imported: no function bodies, no TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif late or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not late:
                continue
            yield from statements(node, late=late)


def imports_of(path: Path, *, late: bool = True) -> set[str]:
    """Absolute names of the modules that a module imports; of a name from a module of ours, that module."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    found: set[str] = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")), late=late):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        source = ".".join((*base, *filter(None, [node.module])))
        for alias in node.names:
            whole = f"{source}.{alias.name}"
            found.add(whole if whole in MODULES else source)
    return found


def cycle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """A cycle of a graph, its first module repeated at the end; empty if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_cycle() -> None:
    graph = {name: imports_of(path, late=False) & set(MODULES) - {name} for name, path in MODULES.items()}
    assert len(graph) > 150
    assert cycle_in(graph) == []


def test_the_search_for_cycles_finds_one() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert not cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()})


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_uses_those_below_it_only(folder: str) -> None:
    """patterns/ stands alone; converters/ uses what lowering/ offers, but none of its passes; see `EXCEPTIONS`."""
    for name, path in MODULES.items():
        if not name.startswith(f"attnlower.{folder}"):
            continue
        allowed = EXCEPTIONS.get(name, ())
        wrong = [i for i in imports_of(path) if i.startswith(FORBIDDEN[folder]) and not i.startswith(tuple(allowed))]
        assert not wrong, f"{name} imports {wrong}"


def test_transformers_and_the_runtimes_are_imported_where_they_are_used_only() -> None:
    """Encoder-decoder models are transformers'; that part may use it, and the backends that run them."""
    for name, path in MODULES.items():
        used = {i.partition(".")[0] for i in imports_of(path)} & EXTRAS
        assert not used or name.startswith(USERS_OF_EXTRAS), f"{name} imports {sorted(used)}"


def test_the_check_sees_relative_imports() -> None:
    base = imports_of(ROOT / "lowering" / "passes" / "base.py")
    assert {"attnlower.patterns.conditions", "attnlower.lowering.op"} <= base
    assert "attnlower.patterns.build" in imports_of(ROOT / "patterns" / "__init__.py")
    assert "attnlower.lowering.html" in imports_of(ROOT / "lowering" / "report.py")
    assert "attnlower.lowering.html" not in imports_of(ROOT / "lowering" / "report.py", late=False)


LONG_FILES: Mapping[str, str] = {
    "attnlower.patterns.build": "constructors that call one another: parts would be an import cycle",
    "attnlower.patterns.floats": "one rule per operation on floats: a list, each entry a few lines",
    "attnlower.patterns.rules.pointwise": "one rule per pointwise operator: a list, each entry a few lines",
}


def test_long_files_have_a_reason() -> None:
    long = {name for name, path in MODULES.items() if len(path.read_text(encoding="utf-8").splitlines()) > 400}
    assert not long - set(LONG_FILES), "split by concept, or name the file in LONG_FILES with the reason"
    assert not set(LONG_FILES) - long, "no longer long"


def test_one_facade() -> None:
    assert all(hasattr(attnlower, name) for name in attnlower.__all__)
    assert attnlower.__version__
