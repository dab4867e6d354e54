"""`attnlower export-seq2seq` and `attnlower generate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, T5Config

from attnlower import cli
from attnlower.lowering.seq2seq.cli import load_model

SOURCE, TARGET = 12, 24
ROWS = ([13, 5, 17, 22, 40, 8, 31], [7, 50, 9])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 64}
    folder = tmp_path_factory.mktemp("config")
    T5Config(**sizes, decoder_start_token_id=0).save_pretrained(folder)
    return folder / "config.json"


@pytest.fixture(scope="module")
def folder(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of the config, written by the command."""
    out = tmp_path_factory.mktemp("programs") / "t5"
    limits = ["--batch-size", "2", "--max-source-len", str(SOURCE), "--max-target-len", str(TARGET)]
    assert cli.main(["export-seq2seq", str(config), str(out), *limits, "--seed", "3"]) == 0
    return out


def arguments(folder: Path, *more: str) -> list[str]:
    ids = [word for row in ROWS for word in ("--ids", " ".join(map(str, row)))]
    return ["generate", str(folder), *ids, "--max-new-tokens", "9", *more]


def said_by_the_model(config: Path, beams: int) -> list[list[int]]:
    model = load_model(str(config), seed=3)
    width = max(map(len, ROWS))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in ROWS])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ROWS])
    return model.generate(ids, attention_mask=mask, num_beams=beams, max_new_tokens=9, do_sample=False).tolist()


@pytest.mark.parametrize("beams", (1, 4))
def test_the_ids_are_those_of_the_model(
    config: Path, folder: Path, beams: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(folder, "--num-beams", str(beams), "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == said_by_the_model(config, beams)
    assert cli.main(arguments(folder, "--num-beams", str(beams))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [[int(word) for word in line.split()] for line in lines] == found


def test_another_seed_gives_another_model(config: Path) -> None:
    one, other = (load_model(str(config), seed).state_dict()["shared.weight"] for seed in (3, 4))
    assert not torch.equal(one, other)


def test_a_checkpoint_is_its_own_weights(config: Path, tmp_path: Path) -> None:
    model = load_model(str(config), seed=5)
    model.save_pretrained(tmp_path)
    assert isinstance(model, AutoModelForSeq2SeqLM._model_mapping[type(model.config)])
    again = load_model(str(tmp_path), seed=6)
    assert torch.equal(again.state_dict()["shared.weight"], model.state_dict()["shared.weight"])


@pytest.mark.parametrize(
    ("more", "words"),
    (
        (["--target", "none"], "unknown target 'none'"),
        (["--ids", "1 " * (SOURCE + 1)], f"max_source_len={SOURCE}"),
        (["--ids", "13 5 1"], "batch_size=2"),
        (["--ids", "13 x"], "token ids"),
        (["--ids", " "], "token ids"),
        (["--num-beams", "5"], "max_beams=4"),
        (["--max-new-tokens", str(TARGET)], f"max_target_len={TARGET}"),
    ),
)
def test_what_generate_refuses(folder: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["generate", str(folder), "--ids", "13 5", *(["--ids", "7"] if "batch_size" in words else []), *more]
    assert cli.main(given) != 0
    found = capsys.readouterr()
    assert words in " ".join(found.err.split()) and not found.out


def test_folders_and_models_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (
        ["generate", str(tmp_path / "none"), "--ids", "1 2"],
        ["export-seq2seq", str(tmp_path / "none"), str(tmp_path / "out")],
    ):
        assert cli.main(given) != 0
        assert "none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_targets_are_refused_before_anything_is_exported(config: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export-seq2seq", str(config), str(tmp_path / "out"), "--target", "none"])
    assert not (tmp_path / "out").exists()
