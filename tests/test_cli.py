"""The command line: what it prints, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import attnlower
from attnlower import cli


class CausalByMask(torch.nn.Module):
    """Attention with a mask tensor that says `k <= q`, and with padding where asked for."""

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        length = x.shape[-2]
        positions = torch.arange(length)
        allowed = positions[None, :] <= positions[:, None]
        if attention_mask is not None:
            allowed = allowed[None, None] & (attention_mask[:, None, None, :] != 0)
        return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=allowed)


def saved(folder: Path, *, padding: bool = False) -> Path:
    """The path of a saved ExportedProgram of `CausalByMask`."""
    args: tuple[torch.Tensor, ...] = (torch.randn(2, 3, 8, 16),)
    if padding:
        args += (torch.ones(2, 8, dtype=torch.long),)
    path = folder / "program.pt2"
    torch.export.save(torch.export.export(CausalByMask(), args), path)
    return path


def test_explain_prints_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path)
    assert cli.main(["explain", str(path)]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == str(attnlower.explain(torch.export.load(path))).strip()
    assert "k <= q" in printed


def test_explain_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "--json", str(saved(tmp_path))]) == 0
    report = json.loads(capsys.readouterr().out)
    (site,) = report["sites"]
    assert site["verdict"] == "proved"
    assert "causal" in site["kinds"]


def test_explain_with_an_assumption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, padding=True)
    assert cli.main(["explain", "--json", "--assume", "attention_mask.all()", str(path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["assumptions"] == ["attention_mask.all()"]
    assert [site["action"] for site in report["sites"]] != ["keep"]
    assert cli.main(["explain", "--json", str(path)]) == 0
    assert [site["action"] for site in json.loads(capsys.readouterr().out)["sites"]] == ["keep"]


def test_explain_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, page = saved(tmp_path), tmp_path / "masks.html"
    assert cli.main(["explain", str(path), "--html", str(page)]) == 0
    assert "k <= q" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert "<code>k &lt;= q</code>" in text


def test_a_page_in_a_folder_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "absent" / "masks.html"
    assert cli.main(["explain", str(saved(tmp_path)), "--html", str(page)]) == 2
    printed = capsys.readouterr()
    assert str(page) in printed.err and "no folder" in printed.err
    assert printed.out == ""


def test_explain_leaves_the_file_alone(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    cli.main(["explain", str(path)])
    assert path.read_bytes() == before


def test_an_unknown_assumption_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "--assume", "no_such_input.all()", str(saved(tmp_path, padding=True))]) == 2
    assert "no_such_input" in capsys.readouterr().err


def missing(folder: Path) -> Path:
    return folder / "absent.pt2"


def a_folder(folder: Path) -> Path:
    return folder


def not_a_zip(folder: Path) -> Path:
    path = folder / "text.pt2"
    path.write_text("a line of text\n")
    return path


def another_zip(folder: Path) -> Path:
    path = folder / "other.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (missing, "no such file"),
        (a_folder, "is a folder"),
        (not_a_zip, "not a .pt2 file"),
        (another_zip, "torch.export.load failed"),
    ],
)
def test_what_is_no_program_is_refused(
    make: Callable[[Path], Path], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path)
    assert cli.main(["explain", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert str(path) in printed.err
    assert says in printed.err


@pytest.mark.parametrize("words", ["", "unknown", "explain", "demo --rounds 0", "demo --dtype int8"])
def test_wrong_usage_exits_with_2(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(words.split())
    assert exit_info.value.code == 2
    assert "usage: attnlower" in capsys.readouterr().err


def test_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    with pytest.raises(SystemExit) as exit_info:
        cli.main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"attnlower {version('attnlower')}\n"


@pytest.mark.parametrize("command", [["-m", "attnlower.cli"], [str(Path(sys.executable).with_name("attnlower"))]])
def test_both_ways_to_start_it(command: list[str]) -> None:
    words = [sys.executable, *command] if command[0] == "-m" else command
    done = subprocess.run([*words, "--help"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "explain" in done.stdout
    assert "demo" in done.stdout
