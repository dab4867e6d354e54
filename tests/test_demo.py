"""The demo on tiny models: its measurement, its oracle's limits, its output; never its speed."""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from attnlower import cli, demo, demo_model, timing

transformers = pytest.importorskip("transformers")

TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def config_folder(folder: Path, model_type: str = "qwen2", **changes: Any) -> str:
    """A folder with a tiny config.json in it, and no weights."""
    config = transformers.AutoConfig.for_model(model_type, **{**TINY, **changes})
    config.save_pretrained(folder)
    return str(folder)


def built(folder: Path, seq_len: int, model_type: str = "qwen2", **changes: Any) -> tuple[Any, demo_model.Call]:
    """A tiny model and the call of it on `seq_len` tokens."""
    model = demo_model.build_model(config_folder(folder, model_type, **changes), None, torch.float32, seed=0)
    return model, demo_model.Call(model, torch.arange(2 * seq_len).reshape(2, seq_len) % 512)


# Measurement


def test_every_variant_is_called_once_a_round() -> None:
    called: list[str] = []
    rounds = timing.alternate({name: lambda name=name: called.append(name) for name in "abcd"}, 5)
    assert "".join(called) == "abdc" + "bcad" + "cdba" + "dacb" + "abdc"
    assert {name: len(times) for name, times in rounds.seconds.items()} == dict.fromkeys("abcd", 5)


@pytest.mark.parametrize("count", range(1, 9))
def test_orders_favour_no_variant(count: int) -> None:
    names = [str(i) for i in range(count)]
    orders = timing.balanced_orders(names)
    assert all(sorted(order) == names for order in orders)
    places = Counter((place, name) for order in orders for place, name in enumerate(order))
    after = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert len(places) == count * count and len(set(places.values())) == 1
    assert len(after) == count * (count - 1) and len(set(after.values())) <= 1


@pytest.mark.parametrize("count", range(2, 9))
def test_neither_do_rounds_one_after_the_other(count: int) -> None:
    """No variant stands behind one and the same, the slowest perhaps, more often than the others do."""
    names = [str(i) for i in range(count)]
    rounds = list(itertools.islice(timing.balanced_rounds(names), 60 * count))
    after = Counter(itertools.pairwise(itertools.chain(*rounds)))
    behind = {pair: times for pair, times in after.items() if pair[0] != pair[1]}
    assert len(behind) == count * (count - 1)
    assert max(behind.values()) <= 1.2 * min(behind.values())
    orders = timing.balanced_orders(names)
    for start in range(0, len(rounds) - len(orders) + 1, len(orders)):
        assert sorted(rounds[start : start + len(orders)]) == sorted(orders)


def test_a_ratio_is_taken_within_its_round() -> None:
    rounds = timing.Rounds({"fast": (1.0, 10.0, 100.0), "slow": (2.0, 20.0, 200.0)})
    assert rounds.ratio("slow", "fast") == timing.Spread(2.0, 2.0, 2.0)
    assert rounds.ratio("fast", "slow").median == 0.5


def test_spread_of_few_and_many_samples() -> None:
    assert timing.Spread.of([3.0]) == timing.Spread(3.0, 3.0, 3.0)
    assert timing.Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == timing.Spread(3.0, 2.0, 4.0)
    with pytest.raises(ValueError, match="no samples"):
        timing.Spread.of([])


def test_garbage_collection_is_as_it_was_after_a_variant_fails() -> None:
    import gc

    def fails() -> None:
        raise RuntimeError("variant")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="variant"):
        timing.alternate({"fails": fails}, 1)
    assert gc.isenabled()


def test_machine_names_what_a_result_needs() -> None:
    machine = timing.machine()
    assert machine["torch"] == torch.__version__
    assert machine["cores"]
    assert machine["cpu"]
    json.dumps(machine)


def test_difference_does_not_hide_nan() -> None:
    clean, spoilt = torch.zeros(3), torch.tensor([0.0, float("nan"), 0.0])
    assert demo_model.max_abs_diff(clean, spoilt) == float("inf")
    assert demo_model.max_abs_diff(spoilt, spoilt) == 0.0
    assert demo_model.max_abs_diff(clean, clean + 0.5) == 0.5


# Model, text and oracle


def test_the_built_in_model_has_the_published_widths() -> None:
    config = demo_model.configuration(demo_model.BUILT_IN, None)
    assert (config.hidden_size, config.intermediate_size, config.vocab_size) == (896, 4864, 151936)
    assert (config.num_attention_heads, config.num_key_value_heads, config.num_hidden_layers) == (14, 2, 2)
    assert config.tie_word_embeddings
    assert "1000000.0" in str(config.to_dict())
    assert demo_model.configuration(demo_model.BUILT_IN, 5).num_hidden_layers == 5


def test_layers_cut_a_configuration(tmp_path: Path) -> None:
    folder = config_folder(tmp_path)
    config = demo_model.configuration(folder, 1)
    assert config.num_hidden_layers == 1
    assert config.layer_types == ["full_attention"]
    with pytest.raises(demo_model.DemoError, match="has 2"):
        demo_model.configuration(folder, 3)


def test_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    folder = config_folder(tmp_path)
    one, same, other = (demo_model.build_model(folder, None, torch.float32, seed) for seed in (1, 1, 2))
    first = [next(model.parameters()) for model in (one, same, other)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_a_checkpoint_keeps_its_weights(tmp_path: Path) -> None:
    model = demo_model.build_model(config_folder(tmp_path), None, torch.float32, seed=5)
    model.save_pretrained(tmp_path)
    again = demo_model.build_model(str(tmp_path), None, torch.float32, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert "its own weights" in demo_model.describe(again, str(tmp_path))


def test_token_ids_are_consecutive_and_known_to_the_model(tmp_path: Path) -> None:
    model, _ = built(tmp_path, 8)
    rows, about = demo_model.token_ids(model, str(tmp_path), None, 3, 100)
    assert rows.shape == (3, 100)
    assert 0 <= int(rows.min()) < int(rows.max()) < 512
    whole, _ = demo_model.token_ids(model, str(tmp_path), None, 1, 200)
    assert torch.equal(rows.flatten()[:200], whole.flatten())
    assert "pydoc_data" in about


def test_own_text(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question. " * 40, encoding="utf-8")
    model, _ = built(tmp_path, 8)
    rows, about = demo_model.token_ids(model, str(tmp_path), str(text), 1, 32)
    assert rows.shape == (1, 32)
    assert str(text) in about
    with pytest.raises(demo_model.DemoError, match="tokens; 100 x 250 = 25000 are needed"):
        demo_model.token_ids(model, str(tmp_path), str(text), 100, 250)
    with pytest.raises(demo_model.DemoError, match="256 positions"):
        demo_model.token_ids(model, str(tmp_path), str(text), 1, 257)
    with pytest.raises(demo_model.DemoError, match="absent"):
        demo_model.token_ids(model, str(tmp_path), str(tmp_path / "absent"), 1, 32)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("qwen2", {}),
        ("llama", {}),
        ("mistral", {"sliding_window": 16}),
    ],
)
def test_oracle_of_a_plainly_causal_model(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model, call = built(tmp_path, 16, model_type, **changes)
    with torch.no_grad():
        oracle, reason = demo_model.hand_made_oracle(model, call, call(model))
        assert reason is None
        assert oracle is not None
        assert demo_model.max_abs_diff(call(oracle), call(model)) < 1e-5
    assert {id(p) for p in oracle.parameters()} == {id(p) for p in model.parameters()}
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("model_type", "changes", "says"),
    [
        ("mistral", {"sliding_window": 15}, "sliding window of 15"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding window of 8"),
        ("bloom", {}, "called the hand-made attention 0 times for 2 layers"),
    ],
)
def test_no_oracle_where_it_would_be_wrong(model_type: str, changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    model, call = built(tmp_path, 16, model_type, **changes)
    with torch.no_grad():
        oracle, reason = demo_model.hand_made_oracle(model, call, call(model))
    assert oracle is None
    assert says in str(reason)


def test_no_oracle_where_not_every_layer_calls_the_hand_made_attention(tmp_path: Path) -> None:
    model, call = built(tmp_path, 16)
    with torch.no_grad():
        reference = call(model)
        model.config.num_hidden_layers = 3
        model.model.config.layer_types = ["full_attention"] * 2
        oracle, reason = demo_model.hand_made_oracle(model, call, reference)
    assert oracle is None
    assert "2 times for 3 layers" in str(reason)


def test_no_oracle_where_the_output_differs(tmp_path: Path) -> None:
    model, call = built(tmp_path, 16)
    with torch.no_grad():
        oracle, reason = demo_model.hand_made_oracle(model, call, call(model) + 1.0)
    assert oracle is None
    assert "not plainly causal" in str(reason)


# The command


def parsed(*words: str) -> argparse.Namespace:
    return cli.build_parser().parse_args(["demo", *words])


def test_quick_gives_way_to_what_is_asked_for() -> None:
    assert demo.settings_from(parsed()).seq_len == 4096
    quick = demo.settings_from(parsed("--quick", "--rounds", "7"))
    assert quick.rounds == 7
    assert quick.seq_len < 4096


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "/no/such/folder"], "neither qwen2.5-0.5b nor a local"),
        (["--model", "."], "config.json"),
    ],
)
def test_what_the_demo_cannot_use(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert says in printed.err


def test_without_transformers_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["demo"]) == 2
    assert "attnlower[hf]" in capsys.readouterr().err


@pytest.mark.xdist_group("demo_run")
class TestRun:
    """One real run on a tiny configuration, looked at from several sides."""

    @pytest.fixture(scope="class")
    @staticmethod
    def result(tmp_path_factory: pytest.TempPathFactory) -> demo.Result:
        folder = config_folder(tmp_path_factory.mktemp("tiny"))
        words = ("--model", folder, "--seq-len", "48", "--batch", "2", "--rounds", "2")
        return demo.measure(demo.settings_from(parsed(*words)))

    def test_every_variant_is_compiled_once_and_agrees_with_eager(self, result: demo.Result) -> None:
        assert list(result.first_calls) == ["eager", "inductor", "attnlower", "oracle"]
        assert {name: first.graphs for name, first in result.first_calls.items()} == {
            "eager": 0,
            "inductor": 1,
            "attnlower": 1,
            "oracle": 1,
        }
        assert all(first.max_abs_diff < 1e-5 for first in result.first_calls.values())

    def test_padding_is_right_in_the_same_callable(self, result: demo.Result) -> None:
        assert result.padding.padded_tokens == (12, 24)
        assert result.padding.max_abs_diff < 1e-5
        assert result.padding.max_abs_diff_unpadded_again < 1e-5

    def test_report_has_every_attention_guarded(self, result: demo.Result) -> None:
        sites = result.report.sites
        assert [site.module for site in sites] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
        assert {(site.verdict, site.action) for site in sites} == {("proved", "guarded")}

    def test_json_has_times_machine_and_report(self, result: demo.Result) -> None:
        data = json.loads(json.dumps(demo.to_dict(result)))
        assert data["settings"]["seq_len"] == 48
        assert data["machine"]["torch"] == torch.__version__
        assert len(data["report"]["sites"]) == 2
        assert all(len(variant["seconds"]) == 2 for variant in data["variants"].values())
        assert data["variants"]["oracle"]["ratio_to"]["oracle"]["median"] == 1.0
        assert data["oracle"] == {"valid": True, "reason": None}

    def test_shown_for_a_person(self, result: demo.Result, capsys: pytest.CaptureFixture[str]) -> None:
        demo.show(result)
        printed = capsys.readouterr().out
        for word in ("eager", "inductor", "attnlower", "oracle", "x oracle", "Padding: 12, 24 tokens"):
            assert word in printed
        assert "k <= q" in printed


@pytest.mark.xdist_group("demo_run")
def test_only_json_on_stdout_and_no_oracle_for_a_sliding_window(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = config_folder(tmp_path, "mistral", sliding_window=8)
    assert cli.main(["demo", "--model", folder, "--layers", "1", "--seq-len", "32", "--rounds", "1", "--json"]) == 0
    printed = capsys.readouterr()
    data = json.loads(printed.out)
    assert "oracle" not in data["variants"]
    assert "sliding window of 8" in data["oracle"]["reason"]
    assert data["variants"]["attnlower"]["max_abs_diff_to_eager"] < 1e-5
    assert "round 1 of 1" in printed.err
