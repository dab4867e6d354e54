"""The report as one page: every distinct mask drawn, with its formula, proof and the calls that use it.

The page holds everything itself (pictures as data URIs, no script, no font, no link), and says so to the browser with
a content policy that forbids loading anything.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING

import torch

from ..errors import DrawingError
from ..patterns.drawing import Cell, HeatMap, Picture, heat_map, make_picture, sizes_for_witness
from ..patterns.drawing.paint import cell_pixels, heat_palette, heat_png, picture_png
from ..patterns.expr import Op, cells, walk
from ..patterns.formula import format_expr
from ..patterns.predicate import Predicate
from ..patterns.witness import describe_witness

if TYPE_CHECKING:
    from .report import AttentionSite, Report

CELLS = 64
"""Most cells along a side of a picture."""
_OPEN_SITES = 6
"""Up to so many calls of a mask are listed unfolded."""
_EXAMPLE = "Example, with made-up inputs:"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def report_page(report: Report, tensors: Mapping[str, torch.Tensor] | None = None) -> str:
    """The report as an HTML document.

    Args:
        report: what was found and done.
        tensors: inputs by label; masks that depend on no others are drawn as they are for these.
    """
    masks = distinct_masks(report.sites)
    unread = [s for s in report.sites if s.predicate is None]
    body = [
        _header(report, len(masks)),
        "<main>",
        _legend() if masks else "",
        *(_card(number, mask, tensors) for number, mask in enumerate(masks, 1)),
        _unread(unread),
        _near_misses(report),
        _passes(report),
        "</main>",
        _footer(report),
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<title>attnlower report</title>",
            f"<style>\n{_style()}</style>",
            "</head>",
            "<body>",
            *(part for part in body if part),
            "</body>",
            "</html>",
            "",
        ]
    )


@dataclass(frozen=True)
class DistinctMask:
    """A mask and the calls that use it."""

    predicate: Predicate
    sites: tuple[AttentionSite, ...]

    @property
    def first(self) -> AttentionSite:
        """The first call; what is proved of the mask is the same for all."""
        return self.sites[0]


def distinct_masks(sites: Iterable[AttentionSite]) -> list[DistinctMask]:
    """The sites whose masks were read, by mask: the same formula over the same extents is one."""
    groups: dict[object, list[AttentionSite]] = {}
    for site in sites:
        if site.predicate is not None:
            found = site.predicate
            groups.setdefault((found.allowed, found.bias, tuple(found.facts.extents.items())), []).append(site)
    return [DistinctMask(g[0].predicate, tuple(g)) for g in groups.values() if g[0].predicate is not None]


def _style() -> str:
    colours = heat_palette()[:-1]
    ramp = ", ".join("#{:02x}{:02x}{:02x}".format(*c[:3]) for c in (*colours[::32], colours[-1]))
    return files(__package__).joinpath("report.css").read_text(encoding="utf-8").replace("RAMP", ramp)


def _header(report: Report, masks: int) -> str:
    verdicts = Counter(s.verdict for s in report.sites)
    actions = Counter(s.action for s in report.sites)
    chips = [f'<li class="{v}">{n} {v}</li>' for v in ("proved", "refuted", "unknown") if (n := verdicts[v])]
    chips += [f"<li>{n} x {escape(a)}</li>" for a, n in sorted(actions.items())]
    calls = f"{len(report.sites)} attention {_plural('call', len(report.sites))}"
    lines = [
        "<header>",
        "<h1>attnlower report</h1>",
        f"<p>{calls}, {masks} distinct {_plural('mask', masks)}, target <code>{escape(report.target)}</code></p>",
        f'<ul class="chips">{"".join(chips)}</ul>' if chips else "",
    ]
    if report.assumptions:
        lines.append(f"<p>Assumed: {' and '.join(_code(a) for a in report.assumptions)}</p>")
    if report.error:
        lines.append(f'<p class="alert">Left untouched after an internal error: {escape(report.error)}</p>')
    return "\n".join([*filter(None, lines), "</header>"])


def _legend() -> str:
    words = {
        "allowed": "the query may see the key",
        "blocked": "it may not",
        "data": "depends on data",
        "witness": "counterexample",
    }
    items = "".join(f'<li><span class="swatch {c}"></span>{w}</li>' for c, w in words.items())
    return f'<h2>Masks</h2>\n<ul class="legend">{items}</ul>'


def _card(number: int, mask: DistinctMask, tensors: Mapping[str, torch.Tensor] | None) -> str:
    site = mask.first
    kinds = "".join(f"<li>{escape(k)}</li>" for k in sorted(site.kinds))
    actions = "".join(f"<li>action: {escape(a)}</li>" for a in dict.fromkeys(s.action for s in mask.sites))
    return "\n".join(
        [
            f'<section class="card" id="mask-{number}">',
            f"<h3>{number}. {_code(format_expr(mask.predicate.allowed))}</h3>",
            f'<ul class="chips"><li class="{escape(site.verdict)}">{escape(site.verdict)}</li>{kinds}{actions}</ul>',
            '<div class="columns">',
            f'<div class="pictures">{"".join(_figures(mask, tensors))}</div>',
            f'<div class="words">{"".join(_words(mask))}</div>',
            "</div>",
            _sites(mask.sites),
            "</section>",
        ]
    )


def _figures(mask: DistinctMask, tensors: Mapping[str, torch.Tensor] | None) -> Iterator[str]:
    predicate, witness = mask.predicate, mask.first.witness
    sizes = sizes_for_witness(predicate, witness)
    needed = {c.payload.label for c in cells(predicate.allowed) if c.payload.is_input}
    given = tensors if tensors is not None and needed and needed <= set(tensors) else None
    try:
        picture = make_picture(predicate, sizes, None, witness=witness, limit=CELLS)
        yield _figure(picture, "mask", ())
        if given is not None:
            exact = make_picture(predicate, {}, given, limit=CELLS)
            yield _figure(exact, "given", ("For the given data.",))
        elif picture.depends_on_data:
            yield from _example(predicate)
    except DrawingError as error:
        yield f'<p class="soft">Not drawn: {escape(str(error))}</p>'
    try:
        heat = heat_map(predicate, None, tensors, limit=CELLS) or heat_map(predicate, example=True, limit=CELLS)
    except DrawingError:
        heat = None  # the words say what it is made of
    if heat is not None:
        yield _heat_figure(heat)


def _example(predicate: Predicate) -> Iterator[str]:
    try:
        picture = make_picture(predicate, example=True, limit=CELLS)
    except DrawingError:
        return  # nothing suggests what the inputs are
    yield _figure(picture, "example", (_EXAMPLE, *picture.notes))


def _figure(picture: Picture, name: str, notes: tuple[str, ...]) -> str:
    counts = [f"{picture.count(c)} {w}" for c, w in _COUNTED if picture.count(c)]
    words = f"{picture.grid.caption}: {', '.join(counts)}"
    if picture.witness is not None:
        row, column = picture.witness
        words += f"; counterexample at query {picture.grid.queries[row]}, key {picture.grid.keys[column]}"
    lines = [*notes, picture.grid.caption]
    return _framed(name, picture_png(picture), picture.grid.queries, picture.grid.keys, words, lines, "")


_COUNTED = ((Cell.ALLOWED, "allowed"), (Cell.BLOCKED, "blocked"), (Cell.DATA, "depending on data"))


def _heat_figure(heat: HeatMap) -> str:
    low, high = heat.range
    words = f"{heat.what}: {low:g} to {high:g}"
    ramp = f'<div class="scale"><span>{low:g}</span><span class="ramp"></span><span>{high:g}</span></div>'
    lines = [f"Bias: {heat.what}", *((_EXAMPLE, *heat.notes) if heat.notes else ()), heat.grid.caption]
    return _framed("bias", heat_png(heat), heat.grid.queries, heat.grid.keys, words, lines, ramp)


def _framed(
    name: str,
    png: bytes,
    queries: tuple[int, ...],
    keys: tuple[int, ...],
    alternative: str,
    lines: Iterable[str],
    extra: str,
) -> str:
    side = cell_pixels(len(queries), len(keys))
    across = f"<span>{keys[0]}</span><span>key k</span><span>{keys[-1]}</span>"
    down = f"<span>{queries[0]}</span><span>query q</span><span>{queries[-1]}</span>"
    if len(queries) * side < 6 * 16:  # no room for three words below one another
        down = ""
    source = base64.b64encode(png).decode()
    return (
        f'<figure class="{name}"><div class="frame"><div class="across">{across}</div><div class="down">{down}</div>'
        f'<img width="{len(keys) * side}" height="{len(queries) * side}" alt="{escape(alternative)}" '
        f'src="data:image/png;base64,{source}"></div>'
        f"<figcaption>{extra}{''.join(f'<p>{escape(line)}</p>' for line in lines)}</figcaption></figure>"
    )


def _words(mask: DistinctMask) -> Iterator[str]:
    reasons = Counter(s.reason for s in mask.sites)
    for reason, count in reasons.items():
        calls = f' <span class="soft">({count} {_plural("call", count)})</span>' if len(reasons) > 1 else ""
        yield f'<p class="reason">{escape(reason)}{calls}</p>'
    if mask.first.witness is not None:
        yield from _witness(mask)
    if mask.predicate.bias is not None:
        yield from _bias_words(mask.predicate)


def _witness(mask: DistinctMask) -> Iterator[str]:
    witness = mask.first.witness or {}
    words = describe_witness(mask.predicate, witness)
    told = "" if any(words in s.reason for s in mask.sites) else f": {words}"
    values = ", ".join(f"{n} = {v}" for n, v in witness.items())
    yield (
        f'<div class="counterexample"><p>Counterexample, marked in the picture{escape(told)}</p>'
        f'<p class="soft mono">{escape(values)}</p></div>'
    )


def _bias_words(predicate: Predicate) -> Iterator[str]:
    bias = predicate.bias
    if bias is None:
        return
    yield f"<p>Added to the scores: {_code(format_expr(bias))}</p>"
    unknown = [c.payload.label for c in cells(bias)]
    unknown += [str(e.payload) for e in walk(bias) if e.op is Op.APPLY and not e.args]
    if unknown:
        names = " and ".join(_code(name) for name in dict.fromkeys(unknown))
        yield f'<p class="soft">Its numbers come from {names}.</p>'


def _sites(sites: tuple[AttentionSite, ...]) -> str:
    rows = [(s.module or "-", s.node, s.spelling, s.action) for s in sites]
    opened = " open" if len(sites) <= _OPEN_SITES else ""
    table = _table(("module", "node", "spelling", "action"), rows)
    summary = f"{len(sites)} attention {_plural('call', len(sites))}"
    return f'<details class="sites"{opened}><summary>{summary}</summary>{table}</details>'


def _unread(sites: list[AttentionSite]) -> str:
    if not sites:
        return ""
    rows = [(s.module or "-", s.node, s.spelling, s.action, s.reason) for s in sites]
    table = _table(("module", "node", "spelling", "action", "reason"), rows)
    return f'<h2>Not read</h2>\n<section class="card" id="unread">{table}</section>'


def _near_misses(report: Report) -> str:
    if not report.near_misses:
        return ""
    table = _table(("node", "reason"), report.near_misses)
    return f'<h2>Looked like attention</h2>\n<section class="card" id="near-misses">{table}</section>'


def _passes(report: Report) -> str:
    if not report.passes:
        return ""
    rows = [(p.name, str(len(p.changes)), str(len(p.refusals))) for p in report.passes]
    parts = [_table(("pass", "changed", "refused"), rows)]
    changes = [(p.name, c.module or "-", c.node, c.what) for p in report.passes for c in p.changes]
    refusals = [(p.name, r.module or "-", r.node, r.reason) for p in report.passes for r in p.refusals]
    for word, heading, entries in (("changed", "what", changes), ("refused", "reason", refusals)):
        if entries:
            table = _table(("pass", "module", "node", heading), entries)
            parts.append(f"<details><summary>{len(entries)} {word}</summary>{table}</details>")
    return f'<h2>Passes</h2>\n<section class="card" id="passes">{"".join(parts)}</section>'


def _footer(report: Report) -> str:
    stats = [f"{name.replace('_', ' ')}: {value:.4g}" for name, value in report.stats.items()]
    made = f"attnlower {version('attnlower')}, torch {torch.__version__}"
    lines = [*([", ".join(stats)] if stats else []), made]
    return "<footer>" + "".join(f"<p>{escape(line)}</p>" for line in lines) + "</footer>"


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
