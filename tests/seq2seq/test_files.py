"""Programs written into a folder are the same when they are read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from seq2seq_recipes import Exported, assert_same, each

from attnlower.errors import ProgramError
from attnlower.lowering.seq2seq import Seq2SeqPrograms


@pytest.mark.parametrize("pair", each("t5", "mbart", "whisper"), indirect=True)
def test_saved_programs_generate_the_same(pair: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    pair.programs.save(folder)
    loaded = Seq2SeqPrograms.load(folder)
    assert loaded.limits == pair.programs.limits
    assert loaded.model_class == type(pair.model).__name__
    assert type(loaded.config) is type(pair.model.config)
    assert loaded.config.to_diff_dict().keys() >= {"vocab_size", "pad_token_id"}
    for name in ("vocab_size", "pad_token_id", "eos_token_id", "decoder_start_token_id", "scale_embedding"):
        assert getattr(loaded.config, name, None) == getattr(pair.model.config, name, None)
    for name, value in pair.model.generation_config.to_dict().items():
        assert name == "_from_model_config" or getattr(loaded.generation_config, name, None) == value, name
    for name, program in pair.programs.programs.items():
        assert set(loaded.programs[name].state_dict) == set(program.state_dict)
        assert not loaded.reports
        for key, weight in program.state_dict.items():
            assert torch.equal(loaded.programs[name].state_dict[key], weight)
    assert_each_weight_once(pair, loaded, folder)
    source, mask = pair.source(3, 12, "right", seed=1)
    for beams in (1, 4):
        options = {"num_beams": beams, "max_new_tokens": 8, "do_sample": False}
        assert_same(pair.programs.generate(source, mask, **options), loaded.generate(source, mask, **options))
    assert len(loaded.report.sites) == 0


def assert_each_weight_once(pair: Exported, loaded: Seq2SeqPrograms, folder: Path) -> None:
    """On the disk, and in memory when they are read again."""
    for programs in (pair.programs, loaded):
        one, other = (programs.programs[name].state_dict for name in ("prefill", "step"))
        assert one and all(one[key].data_ptr() == other[key].data_ptr() for key in one)
    weights = {t.data_ptr(): t.nbytes for p in pair.programs.programs.values() for t in p.state_dict.values()}
    together = sum(weights.values())
    twice = sum(t.nbytes for p in pair.programs.programs.values() for t in p.state_dict.values())
    assert together <= (folder / "weights.pt").stat().st_size < twice


@pytest.mark.parametrize("pair", each("t5"), indirect=True)
def test_a_folder_is_written_over(pair: Exported, tmp_path: Path) -> None:
    pair.programs.save(tmp_path)
    pair.programs.save(tmp_path)
    assert Seq2SeqPrograms.load(tmp_path).limits == pair.programs.limits


def test_folders_without_programs(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ProgramError, match="no encoder-decoder programs"):
            Seq2SeqPrograms.load(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(ProgramError, match="no encoder-decoder programs"):
        Seq2SeqPrograms.load(tmp_path / "file")


@pytest.mark.parametrize("pair", each("t5"), indirect=True)
def test_folders_with_half_of_it(pair: Exported, tmp_path: Path) -> None:
    pair.programs.save(tmp_path)
    meta = tmp_path / "seq2seq.json"
    for wrong in ("{", "{}", json.dumps({"model_class": "T5ForConditionalGeneration", "limits": {"beams": 1}})):
        kept = meta.read_text()
        meta.write_text(wrong)
        with pytest.raises(ProgramError):
            Seq2SeqPrograms.load(tmp_path)
        meta.write_text(kept)
    for file in ("step.pt2", "weights.pt"):
        (tmp_path / file).rename(tmp_path / "other")
        with pytest.raises(ProgramError, match=file):
            Seq2SeqPrograms.load(tmp_path)
        (tmp_path / "other").rename(tmp_path / file)
