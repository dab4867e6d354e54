"""The report as a page: complete, escaped, self-contained, and its pictures show what the masks are."""

from __future__ import annotations

import base64
import copy
import io
import json
import pickle
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import attnlower
from attnlower.errors import AttnLowerError, ReportError
from attnlower.lowering.html import distinct_masks, report_page
from attnlower.patterns import CellRef, Facts, Predicate, build
from attnlower.patterns.drawing import heat_map
from attnlower.patterns.drawing.paint import PALETTE
from attnlower.patterns.expr import cells

LENGTH = 12
ALLOWED, BLOCKED, DATA, WITNESS = "#", ".", "?", "x"
COLOURS = {ALLOWED: PALETTE[1], BLOCKED: PALETTE[0], DATA: PALETTE[2], "stripe": PALETTE[4], WITNESS: PALETTE[5]}


# --- reading a page -------------------------------------------------------------------------------------------


@dataclass
class Figure:
    """A picture of a page: its class, the section it is in, its image and what is written below it."""

    name: str
    section: str
    image: dict[str, str] = field(default_factory=dict)
    caption: str = ""

    @property
    def png(self) -> Image.Image:
        data = self.image["src"].removeprefix("data:image/png;base64,")
        return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))

    def cells(self, rows: int, columns: int) -> list[str]:
        """One row of signs for each row of cells, told by the colour in the middle of each."""
        image = self.png.convert("RGBA")
        assert image.size == (int(self.image["width"]), int(self.image["height"]))
        side = image.width // columns
        assert (image.width, image.height) == (columns * side, rows * side)
        signs = {colour: DATA if name == "stripe" else name for name, colour in COLOURS.items()}
        middle = side // 2
        return [
            "".join(signs[image.getpixel((x * side + middle, y * side + middle))] for x in range(columns))
            for y in range(rows)
        ]


class Page(HTMLParser):
    """What a page holds; refuses tags that do not nest."""

    VOID = frozenset({"meta", "img", "br", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.figures: list[Figure] = []
        self.sections: dict[str, str] = {}
        self.text = ""
        self._open: list[str] = []
        self._section = ""
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {k: v or "" for k, v in attrs}
        self.tags.append(tag)
        self.attributes += [(tag, k, v) for k, v in named.items()]
        if tag == "section":
            assert named["id"] not in self.sections
            self._section = named["id"]
            self.sections[self._section] = ""
        if tag == "figure":
            self.figures.append(Figure(named["class"], self._section))
        if tag == "img":
            self.figures[-1].image = named
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += f"{data} "
        if self._section:
            self.sections[self._section] += f"{data} "
        if "figcaption" in self._open:
            self.figures[-1].caption += f"{data} "

    def figures_of(self, number: int) -> dict[str, Figure]:
        found = [f for f in self.figures if f.section == f"mask-{number}"]
        assert len({f.name for f in found}) == len(found)
        return {f.name: f for f in found}


# --- a program with masks of every kind -----------------------------------------------------------------------

Mask = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _positions(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    p = torch.arange(x.shape[2])
    return p[:, None], p[None, :]


def causal(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    q, k = _positions(x)
    return k <= q


def window(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    q, k = _positions(x)
    return (k <= q) & (k > q - 4)


def chunks(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    q, k = _positions(x)
    return (k <= q) & (k // 5 == q // 5)


def padded(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return causal(x, m) & (m[:, None, None, :] != 0)


def packed(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return causal(x, m) & (m[:, None, :, None] == m[:, None, None, :])


def one_off(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    q, k = _positions(x)
    return (k <= q) & ((q != 5) | (k != 2))


def alibi(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    q, k = _positions(x)
    return torch.where(k <= q, (k - q).float(), float("-inf"))


def whole(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return (m[:, None, None, :] * m[:, None, :, None]).sort(-1)[0] > 0


MASKS: dict[str, Mask] = {f.__name__: f for f in (causal, window, chunks, padded, packed, one_off, alibi, whole)}
NUMBER = {name: number for number, name in enumerate(MASKS, 1)}


class Every(torch.nn.Module):
    """Two calls under each mask."""

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        for mask in MASKS.values():
            made = mask(x, attention_mask)
            for _ in range(2):
                x = F.scaled_dot_product_attention(x, x, x, attn_mask=made)
        return torch.matmul(torch.softmax(torch.matmul(x, x.transpose(2, 3)).relu(), -1), x)


def arguments() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 2, LENGTH, 8), torch.ones(2, LENGTH, dtype=torch.long)


@pytest.fixture(scope="module")
def report() -> attnlower.Report:
    return attnlower.explain(torch.export.export(Every(), arguments(), strict=False))


@pytest.fixture(scope="module")
def page(report: attnlower.Report, tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("page") / "report.html"
    report.to_html(path)
    return Page(path.read_text(encoding="utf-8"))


def truth(name: str, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """The mask itself at batch 0, head 0; by default for an attention_mask of ones."""
    x, ones = arguments()
    made = MASKS[name](x, ones if attention_mask is None else attention_mask)
    made = made if made.dtype is torch.bool else made > float("-inf")
    return made.expand(2, 2, LENGTH, LENGTH)[0, 0]


def signs(mask: torch.Tensor, allowed: str = ALLOWED, blocked: str = BLOCKED) -> list[str]:
    return ["".join(allowed if cell else blocked for cell in row) for row in mask.tolist()]


def right_padded() -> torch.Tensor:
    return torch.tensor([[1] * 9 + [0] * 3, [1] * 12])


def three_documents() -> torch.Tensor:
    return torch.tensor([[0] * 4 + [1] * 4 + [2] * 4, [0] * 12])


EXPECTED: dict[tuple[str, str], Callable[[], list[str]]] = {
    **{(name, "mask"): (lambda name=name: signs(truth(name))) for name in ("causal", "window", "chunks", "alibi")},  # type: ignore[misc]
    ("padded", "mask"): lambda: signs(truth("causal"), DATA),
    ("padded", "example"): lambda: signs(truth("padded", right_padded())),
    ("packed", "mask"): lambda: [
        "".join(ALLOWED if q == k else DATA if k < q else BLOCKED for k in range(LENGTH)) for q in range(LENGTH)
    ],
    ("packed", "example"): lambda: signs(truth("packed", three_documents())),
    ("one_off", "mask"): lambda: [
        row[:2] + WITNESS + row[3:] if q == 5 else row for q, row in enumerate(signs(truth("one_off")))
    ],
    ("whole", "mask"): lambda: [DATA * LENGTH] * LENGTH,
}
"""What each picture of the page must show, from the masks themselves."""


# --- what the page says ---------------------------------------------------------------------------------------


def test_every_picture_shows_the_mask(page: Page) -> None:
    drawn = {
        (name, kind): figure
        for name, number in NUMBER.items()
        for kind, figure in page.figures_of(number).items()
        if kind != "bias"
    }
    assert drawn.keys() == EXPECTED.keys()
    for key, figure in drawn.items():
        assert figure.cells(LENGTH, LENGTH) == EXPECTED[key](), key
        assert "12 queries by 12 keys, batch 0 of 2, head 0 of 2" in figure.caption
        counts = "".join(EXPECTED[key]())
        if key != ("one_off", "mask"):
            assert f"{counts.count(ALLOWED)} allowed" in figure.image["alt"] or ALLOWED not in counts


def test_examples_are_called_so(page: Page) -> None:
    assert "Example, with made-up inputs" in page.figures_of(NUMBER["padded"])["example"].caption
    assert "the last 3 of 12 keys are padding" in page.figures_of(NUMBER["padded"])["example"].caption
    assert "3 documents, beginning at 0, 4 and 8" in page.figures_of(NUMBER["packed"])["example"].caption
    for figure in page.figures:
        assert ("made-up" in figure.caption) == (figure.name == "example")


def test_a_bias_is_a_heat_map(page: Page) -> None:
    figure = page.figures_of(NUMBER["alibi"])["bias"]
    image = figure.png.convert("RGBA")
    side = image.width // LENGTH
    brightness = [sum(image.getpixel((side // 2, y * side + side // 2))[:3]) for y in range(LENGTH)]
    assert brightness == sorted(brightness, reverse=True) and len(set(brightness)) == LENGTH
    assert image.getpixel((image.width - 1, 0))[3] < 60  # blocked
    assert "-11" in figure.caption and "Bias: added to the scores" in figure.caption
    assert [f.section for f in page.figures if f.name == "bias"] == [f"mask-{NUMBER['alibi']}"]


def test_each_distinct_mask_is_drawn_once(page: Page, report: attnlower.Report) -> None:
    assert len(report.sites) == 2 * len(MASKS)
    assert [len(m.sites) for m in distinct_masks(report.sites)] == [2] * len(MASKS)
    assert [s for s in page.sections if s.startswith("mask-")] == [f"mask-{n}" for n in NUMBER.values()]
    assert f"16 attention calls, {len(MASKS)} distinct masks" in " ".join(page.text.split())
    for number, (one, other) in enumerate(zip(report.sites[::2], report.sites[1::2], strict=True), 1):
        words = page.sections[f"mask-{number}"].split()
        assert {one.node, other.node, one.spelling, one.verdict, *one.kinds} <= set(words)


def test_formula_verdict_action_and_reason(page: Page, report: attnlower.Report) -> None:
    for number, site in enumerate(report.sites[::2], 1):
        text = page.sections[f"mask-{number}"]
        assert str(site.predicate).partition("; bias")[0] in text
        assert site.reason in text
        assert f"action: {site.action}" in text
    chips = [v for tag, k, v in page.attributes if tag == "li" and k == "class"]
    assert {"proved", "refuted"} <= set(chips)


def test_the_counterexample_is_marked_and_said(page: Page) -> None:
    text = page.sections[f"mask-{NUMBER['one_off']}"]
    assert "Counterexample" in text
    assert "query 5 may not see key 2" in text
    assert "q = 5, k = 2" in text
    assert "counterexample at query 5, key 2" in page.figures_of(NUMBER["one_off"])["mask"].image["alt"]


def test_passes_near_misses_numbers_and_versions(page: Page, report: attnlower.Report) -> None:
    for result in report.passes:
        assert f"{result.name} {len(result.changes)} {len(result.refusals)}" in " ".join(
            page.sections["passes"].split()
        )
    assert "relu" in page.sections["near-misses"]
    assert "masks proved: 8" in page.text
    assert f"attnlower {version('attnlower')}, torch {torch.__version__}" in page.text


def test_the_legend_has_the_colours_of_the_pictures(report: attnlower.Report) -> None:
    style = report_page(report)
    for name, colour in (("allowed", ALLOWED), ("data", DATA), ("stripe", "stripe"), ("witness", WITNESS)):
        red, green, blue, opacity = COLOURS[colour]
        assert f"--{name}: #{red:02x}{green:02x}{blue:02x};" in style and opacity == 255
    red, green, blue, opacity = COLOURS[BLOCKED]
    found = re.search(r"--blocked: rgba\((\d+), (\d+), (\d+), ([.\d]+)\);", style)
    assert found is not None and [int(found[i]) for i in (1, 2, 3)] == [red, green, blue]
    assert round(float(found[4]) * 255) == opacity


def test_nothing_is_loaded_from_elsewhere(page: Page, report: attnlower.Report) -> None:
    assert not {"script", "link", "iframe", "object", "base", "form", "a"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "srcset", "data", "action"):
            assert (tag, name) == ("img", "src") and value.startswith("data:image/png;base64,")
        assert not name.startswith("on")
    text = report_page(report)
    assert "url(" not in text and "@import" not in text and "http:" not in text and "https:" not in text
    assert "default-src 'none'" in text
    assert "@media (prefers-color-scheme: dark)" in text
    assert 'name="viewport"' in text


# --- hostile, odd and empty reports ---------------------------------------------------------------------------

HOSTILE = "<script>alert('&\"1')</script>"


def test_everything_is_escaped() -> None:
    cell = build.cell(CellRef(HOSTILE, HOSTILE, torch.int64, True), (build.coord("b"), build.coord("k")))
    allowed = build.and_(build.le(build.coord("k"), build.coord("q")), build.not_(build.eq0(cell)))
    extents = {n: build.const_int(4) for n in "bhqk"}
    mask = Predicate(allowed, None, allowed, Facts({}, extents))
    witness = {"b": 0, "h": 0, "q": 1, "k": 1, f"{HOSTILE}[0, 1]": 0}
    named = attnlower.AttentionSite(
        *[HOSTILE] * 3, frozenset({HOSTILE}), HOSTILE, HOSTILE, HOSTILE, witness, HOSTILE, predicate=mask
    )
    unread = attnlower.AttentionSite(*[HOSTILE] * 3, frozenset({HOSTILE}), HOSTILE, HOSTILE, HOSTILE, None, HOSTILE)
    report = attnlower.Report(
        (named, unread),
        target=HOSTILE,
        assumptions=(HOSTILE,),
        near_misses=((HOSTILE, HOSTILE),),
        stats={HOSTILE: 1.0},
        error=HOSTILE,
    )
    page = Page(report_page(report))
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) >= 20
    assert page.figures[0].cells(4, 4)[1] == DATA + WITNESS + BLOCKED * 2


def test_calls_that_were_not_read_are_listed_with_their_reason() -> None:
    class Plain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=causal(x, x))

    gm = torch.export.export(Plain(), (torch.randn(1, 2, 8, 4),)).graph_module
    for node in gm.graph.nodes:
        node.meta.pop("val", None)
    report = attnlower.explain(gm)
    assert [s.predicate for s in report.sites] == [None]
    page = Page(report_page(report))
    assert report.sites[0].reason in page.sections["unread"]
    assert not page.figures


def test_an_empty_report_and_an_error(tmp_path: Path) -> None:
    attnlower.Report().to_html(tmp_path / "empty.html")
    page = Page((tmp_path / "empty.html").read_text())
    assert "0 attention calls, 0 distinct masks" in page.text
    page = Page(report_page(attnlower.Report(error="ValueError: oops")))
    assert "Left untouched after an internal error: ValueError: oops" in page.text


def test_a_mask_that_cannot_be_drawn_is_no_error() -> None:
    k = build.coord("k")
    odd = Predicate(build.le(k, build.ONE), None, build.TRUE, Facts({}, {"k": build.const_int(4)}))
    site = attnlower.AttentionSite("m", "n", "f", frozenset(), "proved", "keep", "r", predicate=odd)
    page = Page(report_page(attnlower.Report((site,))))
    assert not page.figures
    assert "Not drawn: a picture needs the axes q and k" in page.sections["mask-1"]


def test_reasons_of_one_mask_that_differ_are_all_told() -> None:
    mask = Predicate(build.TRUE, None, build.TRUE, Facts({}, {n: build.const_int(2) for n in "qk"}))
    sites = tuple(
        attnlower.AttentionSite(f"layer.{i}", f"n{i}", "true", frozenset({"full"}), "proved", a, r, predicate=mask)
        for i, (a, r) in enumerate([("drop_mask", "first"), ("keep", "second"), ("keep", "second")])
    )
    text = Page(report_page(attnlower.Report(sites))).sections["mask-1"]
    assert "first" in text and "second" in text and "(2 calls)" in text
    assert "action: drop_mask" in text and "action: keep" in text
    assert text.count("layer.") == 3


def test_the_formula_of_a_site_survives_copying(report: attnlower.Report) -> None:
    for again in (copy.deepcopy(report), pickle.loads(pickle.dumps(report))):
        assert again == report
        assert again.sites[0].predicate is not None
        assert again.sites[0].predicate.allowed is report.sites[0].predicate.allowed  # type: ignore[union-attr]
        assert report_page(again) == report_page(report)


def test_the_predicate_is_no_part_of_the_data(report: attnlower.Report) -> None:
    site = report.sites[0]
    assert site.predicate is not None
    assert "predicate" not in site.to_dict() and "predicate" not in repr(site)
    json.dumps(report.to_dict())
    assert attnlower.AttentionSite(**{**vars(site), "predicate": None}) == site


def test_given_data_are_drawn_exactly(report: attnlower.Report) -> None:
    mask = torch.tensor([[1, 0, 1, 1, 2, 0, 0, 1, 1, 2, 2, 1], [0] * 12])
    page = Page(report_page(report, {"attention_mask": mask}))
    for name in ("padded", "packed"):
        figures = page.figures_of(NUMBER[name])
        assert figures["given"].cells(LENGTH, LENGTH) == signs(truth(name, mask))
        assert "For the given data" in figures["given"].caption and "example" not in figures
    page = Page(report_page(report, {"attention_mask": mask[:, :5]}))
    assert "axis 'k'" in page.sections[f"mask-{NUMBER['padded']}"]
    page = Page(report_page(report, {"other": mask}))
    assert "example" in page.figures_of(NUMBER["padded"])


def test_masks_of_dynamic_sizes_are_drawn_at_sizes_that_show_them() -> None:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=40)
    shapes = {"x": {0: batch, 2: length}, "attention_mask": {0: batch, 1: length}}
    report = attnlower.explain(torch.export.export(Every(), arguments(), dynamic_shapes=shapes, strict=False))
    page = Page(report_page(report))
    q, k = torch.arange(16)[:, None], torch.arange(16)
    cells = page.figures_of(NUMBER["window"])["mask"].cells(16, 16)
    assert cells == signs((k <= q) & (k > q - 4))
    assert "16 queries by 16 keys" in page.figures_of(NUMBER["window"])["mask"].caption


def test_reports_of_torch_compile_have_pictures(tmp_path: Path) -> None:
    compiled = torch.compile(Every(), backend="attnlower", options={"target": "eager"})
    compiled(*arguments())
    attnlower.last_report().to_html(tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.figures_of(1)["mask"].cells(LENGTH, LENGTH) == signs(truth("causal"))


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    report = attnlower.Report()
    with pytest.raises(ReportError, match="there is no folder"):
        report.to_html(tmp_path / "absent" / "page.html")
    with pytest.raises(ReportError, match="cannot be written"):
        report.to_html(tmp_path)
    assert issubclass(ReportError, AttnLowerError) and issubclass(ReportError, OSError)
    assert not list(tmp_path.iterdir())


# --- models of Hugging Face -----------------------------------------------------------------------------------

TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GEMMA = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
LLAMA4 = {
    "intermediate_size_mlp": 32,
    "num_local_experts": 2,
    "moe_layers": [],
    "attention_chunk_size": 6,
    "layer_types": ["chunked_attention", "full_attention"],
}
T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
TOKENS = 16
PADDED = torch.tensor([[1] * 12 + [0] * 4, [1] * 16])
"""What the example pictures say of themselves: the last 4 of 16 keys are padding."""
RESTARTING = torch.tensor([[*range(5), *range(6), *range(5)]] * 2)
"""Likewise: restarts at 0, 5 and 11."""


def built(config: str, model: str, **settings: Any) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, config):
        pytest.skip(f"this transformers has no {config}")
    torch.manual_seed(0)
    made: torch.nn.Module = getattr(transformers, model)._from_config(
        getattr(transformers, config)(**settings), attn_implementation="sdpa"
    )
    return made.eval()


def report_of(model: torch.nn.Module, **inputs: Any) -> attnlower.Report:
    with torch.no_grad():
        return attnlower.explain(torch.export.export(model, (), inputs, strict=False))


def masks_in_use(monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module, **inputs: Any) -> list[torch.Tensor]:
    """The masks that the eager model hands to attention, in order, at batch 0 and head 0."""
    found: list[torch.Tensor] = []
    original = F.scaled_dot_product_attention

    def spy(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        mask = kwargs.get("attn_mask")
        if mask is None:
            mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool)
            mask = mask.tril() if kwargs.get("is_causal") else mask
        found.append(mask.expand(*query.shape[:2], query.shape[-2], key.shape[-2])[0, 0])
        return original(query, key, value, *args, **kwargs)

    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(F, "scaled_dot_product_attention", spy)
        model(**inputs)
    return found


def allowed_in(mask: torch.Tensor) -> torch.Tensor:
    return mask if mask.dtype is torch.bool else mask > torch.finfo(mask.dtype).min


def tokens() -> torch.Tensor:
    return torch.randint(3, 64, (2, TOKENS))


@pytest.mark.parametrize(
    ("config", "model", "settings"),
    [
        ("Gemma3TextConfig", "Gemma3ForCausalLM", {**TINY, **GEMMA}),
        ("Llama4TextConfig", "Llama4ForCausalLM", {**TINY, **LLAMA4}),
        ("BertConfig", "BertModel", {k: v for k, v in TINY.items() if k not in ("head_dim", "num_key_value_heads")}),
    ],
    ids=["sliding and full", "chunked and full", "encoder"],
)
def test_examples_are_what_a_padded_batch_does(
    config: str, model: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = built(config, model, **settings)
    inputs = {"input_ids": tokens()} if model == "BertModel" else {"input_ids": tokens(), "use_cache": False}
    report = report_of(made, **inputs, attention_mask=torch.ones(2, TOKENS, dtype=torch.long))
    page = Page(report_page(report))
    actual = masks_in_use(monkeypatch, made, **inputs, attention_mask=PADDED)
    groups = distinct_masks(report.sites)
    assert len(groups) == (1 if model == "BertModel" else 2)
    for number, group in enumerate(groups, 1):
        figures = page.figures_of(number)
        assert "the last 4 of 16 keys are padding" in figures["example"].caption
        real = allowed_in(actual[report.sites.index(group.first)])
        assert figures["example"].cells(TOKENS, TOKENS) == signs(real)
        for row, exact in zip(figures["mask"].cells(TOKENS, TOKENS), signs(real), strict=True):
            assert all(drawn in (DATA, true) for drawn, true in zip(row, exact, strict=True))


def test_a_packed_batch_shows_its_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    made = built("Qwen2Config", "Qwen2ForCausalLM", **{k: v for k, v in TINY.items() if k != "head_dim"})
    inputs = {"input_ids": tokens(), "position_ids": RESTARTING, "attention_mask": None, "use_cache": False}
    report = report_of(made, **inputs)
    page = Page(report_page(report))
    actual = masks_in_use(monkeypatch, made, **inputs)
    assert len(distinct_masks(report.sites)) == 1
    figures = page.figures_of(1)
    assert "restarts at 0, 5 and 11" in figures["example"].caption
    assert figures["example"].cells(TOKENS, TOKENS) == signs(allowed_in(actual[0]))
    other = torch.tensor([[*range(9), *range(7)], [*range(16)]])
    figures = Page(report_page(report, {"position_ids": other})).figures_of(1)
    actual = masks_in_use(monkeypatch, made, **{**inputs, "position_ids": other})
    assert figures["given"].cells(TOKENS, TOKENS) == signs(allowed_in(actual[0]))


def test_a_bias_of_t5_is_drawn_by_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    made = built("T5Config", "T5ForConditionalGeneration", **T5, decoder_start_token_id=0)
    inputs = {"input_ids": tokens(), "decoder_input_ids": tokens(), "use_cache": False}
    report = report_of(made, **inputs, attention_mask=torch.ones(2, TOKENS, dtype=torch.long))
    page = Page(report_page(report))
    actual = masks_in_use(monkeypatch, made, **inputs, attention_mask=PADDED)
    kinds = [set(group.first.kinds) for group in distinct_masks(report.sites)]
    assert kinds == [{"bias", "padding"}, {"bias", "causal"}, {"padding"}]
    for number, group in enumerate(distinct_masks(report.sites), 1):
        figures = page.figures_of(number)
        real = actual[report.sites.index(group.first)]
        shown = figures.get("example", figures["mask"])
        assert shown.cells(TOKENS, TOKENS) == signs(allowed_in(real))
        assert ("bias" in figures) == (number < 3)
        if number < 3:
            assert "index into axis 0 of" in figures["bias"].caption
            stack = made.encoder if number == 1 else made.decoder
            weight = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight
            predicate = group.first.predicate
            assert predicate is not None and predicate.bias is not None
            (label,) = {c.payload.label for c in cells(predicate.bias)}
            heat = heat_map(predicate, tensors={label: weight.detach()})
            assert heat is not None and heat.what == "added to the scores"
            known = allowed_in(real) & ~heat.values.isnan()
            assert known.any() and torch.equal(heat.values[known].float(), real[known].float())


# --- in a browser ---------------------------------------------------------------------------------------------

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
)
WINDOW = (1300, 9000)
WHERE = """<script>parent.document.title = JSON.stringify([...document.querySelectorAll("figure img")].map(
    image => { const r = image.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; }));</script></body>"""


def run_browser(folder: Path, text: str, width: int, *words: str) -> str:
    """Show a page in a frame of the given width: a window of its own cannot be as narrow as a phone."""
    style = f"border: 0; position: absolute; left: 0; top: 0; width: {width}px; height: {WINDOW[1]}px"
    folder.mkdir()
    (folder / "outer.html").write_text(f'<!DOCTYPE html><iframe style="{style}" srcdoc="{escape(text)}"></iframe>')
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size={},{}".format(*WINDOW)]
    done = subprocess.run(
        [*command, *words, f"file://{folder / 'outer.html'}"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def rectangles(folder: Path, text: str, width: int) -> list[list[float]]:
    """Where the browser puts each picture: (x, y, width, height) in pixels. Asked of a copy that may run a script."""
    marked = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace("</body>", WHERE)
    dom = run_browser(folder, marked, width, "--dump-dom")
    found = re.search(r"<title>(\[.*?\])</title>", dom)
    assert found is not None
    places: list[list[float]] = json.loads(found[1])
    return places


def screenshot(folder: Path, text: str, width: int, *words: str) -> Image.Image:
    run_browser(folder, text, width, f"--screenshot={folder / 'shot.png'}", *words)
    return Image.open(folder / "shot.png").convert("RGB")


def seen(shot: Image.Image, at: list[float], paper: tuple[int, int, int]) -> Iterator[str]:
    """The rows of a picture as signs, by the colour nearest to that in the middle of each cell."""
    x, y, width, height = at
    colours = {
        name: tuple(round(p * (1 - a / 255) + c * a / 255) for c, p in zip(rgb, paper, strict=True))
        for name, (*rgb, a) in COLOURS.items()
    }
    for row in range(LENGTH):
        signs = ""
        for column in range(LENGTH):
            point = (int(x + (column + 0.5) * width / LENGTH), int(y + (row + 0.5) * height / LENGTH))
            pixel = shot.getpixel(point)
            distances = {n: sum(abs(a - b) for a, b in zip(pixel, c, strict=True)) for n, c in colours.items()}
            nearest = min(distances, key=distances.__getitem__)
            signs += " " if distances[nearest] > 12 else DATA if nearest == "stripe" else nearest
        yield signs


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize(
    ("width", "scheme", "paper"), [(1280, 1, (255, 255, 255)), (390, 1, (255, 255, 255)), (1280, 0, (27, 33, 41))]
)
def test_a_browser_shows_the_masks(
    report: attnlower.Report, page: Page, tmp_path: Path, width: int, scheme: int, paper: tuple[int, int, int]
) -> None:
    """On a laptop and on a phone, light and dark: every cell of every picture has its colour on the screen."""
    text = report_page(report)
    places = rectangles(tmp_path / "places", text, width)
    assert len(places) == len(page.figures)
    for x, y, shown_width, shown_height in places:
        assert x >= 0 and x + shown_width <= width and 0 <= y < y + shown_height < WINDOW[1]
    shot = screenshot(tmp_path / "shot", text, width, f"--blink-settings=preferredColorScheme={scheme}")
    checked = 0
    for figure, place in zip(page.figures, places, strict=True):
        if figure.name == "bias":
            continue
        name = list(MASKS)[int(figure.section.removeprefix("mask-")) - 1]
        expected = EXPECTED[name, figure.name]()
        assert list(seen(shot, place, paper)) == expected, (name, figure.name)
        checked += 1
    assert checked == len(EXPECTED)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
def test_an_empty_page_would_be_noticed(report: attnlower.Report, page: Page, tmp_path: Path) -> None:
    """The check above is not blind: pictures that do not load look different to it."""
    text = re.sub(r'src="data:image/png;base64,[^"]*"', 'src="data:image/png;base64,"', report_page(report))
    places = rectangles(tmp_path / "places", text, 1280)
    shot = screenshot(tmp_path / "shot", text, 1280)
    for figure, place in zip(page.figures, places, strict=True):
        if figure.name != "bias":
            rows = "".join(seen(shot, place, (255, 255, 255)))
            assert ALLOWED not in rows and DATA not in rows
