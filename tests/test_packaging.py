"""What is shipped: the sdist, the wheel that comes of it, and that the wheel works where nothing else is installed."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("patterns", "lowering", "converters")
LEFT_OUT = shutil.ignore_patterns(
    *("build", "dist", "site", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", ".git", ".venv")
)


def packages() -> set[str]:
    """Every folder of the package with an `__init__.py`, as a package name."""
    found = {"attnlower"}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join(("attnlower", *path.relative_to(ROOT).parts[:-1])))
    return found


def test_every_package_is_listed() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == packages()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path} is in no package"


def test_the_version_is_stated_once() -> None:
    import attnlower

    version = PROJECT["project"]["version"]
    assert attnlower.__version__ == version, "install again: pip install --editable ."
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    stated = [p for folder in ("", *FOLDERS) for p in (ROOT / folder).glob("*.py") if f'"{version}"' in p.read_text()]
    assert not stated


def test_every_make_target_has_a_line_of_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {t for line in re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE) for t in line.split()}
    helped = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert targets == helped
    assert {"venv", "lint", "test", "docs", "sdist", "wheel-check", "demo"} <= targets


def test_extras() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(extras) == {"hf", "tensorrt", "executorch", "bench", "docs", "test"}
    core = {Requirement(r).name for r in PROJECT["project"]["dependencies"]}
    assert core == {"torch", "z3-solver"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel built from it, from a copy of the sources."""
    folder = tmp_path_factory.mktemp("built")
    sweeps = (ROOT / "tests" / "zoo" / "results").as_posix()
    shutil.copytree(
        ROOT,
        folder / "source",
        ignore=lambda at, names: LEFT_OUT(at, names) | ({"results"} if sweeps.startswith(f"{at}/") else set()),
        symlinks=True,
    )
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "source")],
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = (done.stdout + done.stderr).splitlines()
    assert not [x for x in lines if "warning" in x.lower() and "no previously-included files" not in x]
    return folder / "dist"


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
    sources = {p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")} | set(ROOT.glob("*.py"))
    expected = {f"attnlower/{p.relative_to(ROOT).as_posix()}" for p in sources}
    assert names == expected | {"attnlower/py.typed", "attnlower/lowering/report.css"}


def test_the_sdist_holds_what_tests_and_documentation_need(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    needed = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml", "mkdocs.yml", "py.typed"}
    assert needed <= names
    for folder in ("tests", "docs", "bench"):
        tracked = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*.py")}
        assert {n for n in tracked if not n.startswith("tests/zoo/results")} <= names
    assert "bench/results/demo-float32.json" in names
    assert not [n for n in names if "__pycache__" in n or n.startswith("tests/zoo/results")]


EXAMPLE = """
import importlib.util, logging, sys

import torch
import attnlower

for name in ("transformers", "torch_tensorrt", "executorch", "numpy", "matplotlib", "pytest"):
    assert importlib.util.find_spec(name) is None, f"{name} is here"

class Decoder(torch.nn.Module):
    def forward(self, x, attention_mask):
        q = torch.arange(x.shape[2])
        mask = (q[None, :] <= q[:, None]) & attention_mask.bool()[:, None, None, :]
        return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)

model, x = Decoder(), torch.randn(2, 3, 8, 16)
ones, padded = torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long)
padded[1, 6:] = 0
compiled = torch.compile(model, backend="attnlower", options={"target": "eager"})
for mask in (ones, padded):
    torch.testing.assert_close(compiled(x, mask), model(x, mask))
print(attnlower.last_report())

program = torch.export.export(model, (x, ones))
lowered = attnlower.lower(program, assume="attention_mask.all()")
torch.testing.assert_close(lowered.program.module()(x, ones), model(x, ones))
(site,) = lowered.report.sites
print(site.formula, site.verdict, site.action)
lowered.report.to_html("masks.html")
print(site.predicate.draw())
torch.export.save(program, "program.pt2")
"""


def requirements_of(name: str, seen: set[str]) -> set[str]:
    """A distribution and all that it requires, extras aside, as installed here."""
    if name in seen:
        return seen
    seen.add(name)
    for text in importlib.metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirements_of(canonicalize_name(requirement.name), seen)
    return seen


def link_distribution(name: str, site: Path) -> None:
    """Put links to an installed distribution's files into another site-packages."""
    distribution = importlib.metadata.distribution(name)
    tops = {f.parts[0] for f in distribution.files or () if f.parts[0] != ".." and f.parts[0] != "__pycache__"}
    for top in tops:
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())


def test_the_wheel_works_with_what_the_core_requires_alone(built: Path, tmp_path: Path) -> None:
    """In an empty environment that sees torch, z3-solver and what they require, and none of the extras."""
    home = tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=60)
    (site,) = home.glob("lib/python*/site-packages")
    names: set[str] = set()
    for requirement in PROJECT["project"]["dependencies"]:
        requirements_of(canonicalize_name(Requirement(requirement).name), names)
    assert not names & {"rich", "transformers", "numpy", "executorch", "torch-tensorrt"}
    for name in sorted(names):
        link_distribution(name, site)
    (wheel,) = built.glob("*.whl")
    python = home / "bin" / "python"
    install = ["--no-index", "--no-deps", "--quiet", "--disable-pip-version-check", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", *install], check=True, timeout=120)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(python), "-W", "ignore", "-c", EXAMPLE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "k <= q & attention_mask[b, k]  proved   guarded" in done.stdout
    assert "k <= q & attention_mask[b, k] proved guarded" in done.stdout
    assert "▒▒" in done.stdout
    assert "<svg" in (tmp_path / "masks.html").read_text() or "<img" in (tmp_path / "masks.html").read_text()
    command = subprocess.run(
        [str(home / "bin" / "attnlower"), "explain", "program.pt2"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert command.returncode == 0, command.stderr[-3000:]
    assert "proved" in command.stdout
