"""The table of results: read from the files in results/, so that nothing in it is typed by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .architectures import FAMILIES, architectures
from .known import known
from .scenarios import SCENARIOS, TOLERANCE

Result = dict[str, Any]
LIMIT_MS = 500


def load(folder: Path) -> list[Result]:
    """All results, in the order of the families and the names."""
    order = {family: position for position, family in enumerate(FAMILIES)}
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda r: (order[r["family"]], r["model_type"], r["class"]))


def write(folder: Path, path: Path) -> int:
    """Write the table and print its totals; 1 if anything in it must not be, else 0."""
    results = load(folder)
    problems = failures(results)
    path.write_text("\n".join(lines(results, problems)) + "\n")
    print("\n".join(totals(results)))
    for problem in problems:
        print(f"FAILED: {problem}")
    return 1 if problems else 0


def scenarios(result: Result) -> Iterator[tuple[str, dict[str, Any]]]:
    """The scenarios of a result by name."""
    yield from result["scenarios"].items()


def sites(result: Result) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every attention call of every scenario of a result, with the scenario's name."""
    for name, found in scenarios(result):
        for site in found.get("sites", []):
            yield name, site


def complete(result: Result) -> bool:
    """True if no scenario is left out, save those with padding where a model takes no mask."""
    wanted = [name for name in SCENARIOS if result.get("masked", True) or "padding" not in name]
    return all(name in result["scenarios"] for name in wanted)


def failures(results: Iterable[Result]) -> list[str]:
    """Every inequality, wrong verdict, unlisted unknown site and internal error."""
    found: dict[str, None] = {}
    for result in results:
        name = result["class"]
        if result["status"] == "failed":
            found[f"{name}: {result['reason']}"] = None
        for scenario, run in scenarios(result):
            if run["status"] in ("unequal", "error"):
                text = (
                    run.get("reason") or f"differs from eager by {max(run['difference'], run['graph_difference']):.1e}"
                )
                found[f"{name}, {scenario}: {run['status']}: {text}"] = None
        for scenario, site in sites(result):
            place = f"{name}, {scenario}, {site['module']}"
            for text in site["wrong"]:
                found[f"{place}: wrong: {text}"] = None
            if site["verdict"] == "unknown" and known(name, site["reason"]) is None:
                found[f"{place}: unknown: {site['reason']}"] = None
            if site["timeout"]:
                found[f"{place}: the solver ran into its time-out"] = None
    return list(found)


def totals(results: list[Result]) -> list[str]:
    """What the sweep comes to."""
    status = Counter(r["status"] for r in results)
    mapped = len(architectures())
    images = sum(r["reason"] == "takes images" for r in results)
    others = status["skipped"] - images
    ran = [r for r in results if r["status"] == "run"]
    attending = [r for r in ran if any(True for _ in sites(r))]
    every = [s for r in ran for _, s in sites(r)]
    runs = Counter(run["status"] for r in ran for _, run in scenarios(r))
    compared = sum(runs.values()) - runs["unsupported"]
    times = sorted(run["prove_ms"] for r in attending for _, run in scenarios(r) if "prove_ms" in run)
    over = sum(t > LIMIT_MS for t in times)
    actions = Counter(s["action"] for s in every)
    wrong, unknown = sum(bool(s["wrong"]) for s in every), sum(s["verdict"] == "unknown" for s in every)
    unlisted = sum(
        site["verdict"] == "unknown" and known(r["class"], site["reason"]) is None for r in ran for _, site in sites(r)
    )
    lines = [
        f"architectures: {mapped} mapped, {status['run']} run ({len(attending)} with attention calls that were found, "
        f"{len(ran) - len(attending)} without), {images} skipped for taking images, {others} skipped "
        f"for other reasons, {status['timeout']} not done in time, {status['failed']} failed"
        + (f", {mapped - len(results)} not tried" if mapped > len(results) else ""),
        f"of those run, {sum(complete(r) for r in ran)} in all scenarios",
        f"scenarios: {compared} run, {runs['equal']} equal to eager within {TOLERANCE:.0e} of the output's scale, "
        f"{runs['capture differs']} where the capture alone already differs, {runs['unequal']} unequal, "
        f"{runs['error']} with an internal error; {runs['unsupported']} that torch cannot capture",
        f"attention calls: {len(every)}; " + ", ".join(f"{count} {word}" for word, count in sorted(actions.items())),
        f"verdicts against brute force: {wrong} wrong; {sum(s['ran'] and not s['unchecked'] for s in every)} formulas "
        f"equal to the mask at every size; {unknown} unknown ({unlisted} not listed); "
        f"{sum(bool(s['missed']) for s in every)} calls kept although their mask was full or causal whenever seen",
        f"solver time-outs: {sum(s['timeout'] for s in every)}",
    ]
    if times:
        lines.append(
            f"processor time for reading and proving one scenario: median {times[len(times) // 2]:.0f} ms, 95 % below "
            f"{times[int(len(times) * 0.95)]:.0f} ms, longest {times[-1]:.0f} ms; "
            f"{over} of {len(times)} above {LIMIT_MS} ms"
        )
    return lines


def lines(results: list[Result], problems: list[str]) -> Iterator[str]:
    """The table as Markdown."""
    yield "# Coverage of transformers' architectures"
    yield ""
    yield (
        "Written by `make zoo` from what it ran; do not edit. "
        f"torch {version('torch')}, transformers {version('transformers')}, z3 {version('z3-solver')}."
    )
    yield ""
    for line in totals(results):
        yield f"- {line}"
    yield ""
    yield (
        "Every model class that the auto classes for causal LM, masked LM, seq2seq LM and speech seq2seq map, and base "
        "models of the other model types that take a sequence and a mask. Each is built tiny from its config, with "
        "random weights, windows of a few positions, and sdpa attention where it has it, and run four ways: by "
        "torch.compile (backend attnlower, target eager, strict) and by torch.export with attnlower.lower, each "
        "without a mask and with masks of ones, padded on the left and on the right, at two sizes. Outputs are "
        "compared with eager mode; each formula with the mask tensor that the unchanged graph hands to attention; each "
        "action with "
        "what those masks are."
    )
    yield ""
    yield (
        "The cells say what became of the attention calls: `causal` (mask replaced by `is_causal`), `full` (mask "
        "dropped), `guarded` (either of them whenever nothing is padded), `assumed` (the same in an exported program, "
        "given the assumption), `none` (no mask, or `is_causal` set by the model), `kept` (with the mask's kinds)."
    )
    yield ""
    yield from _ran(results)
    yield from _unknown(results)
    yield from _kept(results)
    yield from _notes(results)
    yield from _skipped(results)
    if problems:
        yield "## Failures"
        yield ""
        yield from (f"- {_cell(problem)}" for problem in problems)


def _ran(results: list[Result]) -> Iterator[str]:
    yield "## Run"
    yield ""
    headings = ["model type", "class", "attention", *SCENARIOS, "proving, ms", "remarks"]
    for family in FAMILIES:
        chosen = [r for r in results if r["family"] == family and r["status"] in ("run", "timeout", "failed")]
        if not chosen:
            continue
        yield f"### {family}: {len(chosen)}"
        yield ""
        yield f"| {' | '.join(headings)} |"
        yield f"|{'---|' * len(headings)}"
        for result in chosen:
            times = [run["prove_ms"] for _, run in scenarios(result) if "prove_ms" in run]
            cells = [
                result["model_type"],
                result["class"],
                result.get("attention", ""),
                *(_actions(result["scenarios"].get(name)) for name in SCENARIOS),
                f"{max(times):.0f}" if times else "",
                _cell(result["reason"]),
            ]
            yield f"| {' | '.join(cells)} |"
        yield ""


def _actions(run: dict[str, Any] | None) -> str:
    """What became of the calls of one scenario, in a few words."""
    if run is None:
        return ""
    if run["status"] in ("unsupported", "error"):
        return {"unsupported": "not captured", "error": "**error**"}[run["status"]]
    words: Counter[str] = Counter()
    assumed = run.get("assumed_actions") or []
    for position, site in enumerate(run["sites"]):
        action = site["action"]
        if action == "keep" and position < len(assumed) and assumed[position] == "guarded":
            action = "assumed"
        if action == "keep":
            action = "none" if site["plain"] else f"kept ({' '.join(site['kinds'])})"
        if site["verdict"] == "unknown":
            action = "unknown"
        words[{"is_causal": "causal", "drop_mask": "full"}.get(action, action)] += 1
    text = ", ".join(f"{count} {word}" for word, count in sorted(words.items())) or "no calls"
    return text if run["status"] == "equal" else f"{text}; **{run['status']}**"


def _grouped(entries: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text, place in entries:
        places = found.setdefault(text, [])
        if place not in places:
            places.append(place)
    return found


def _section(title: str, about: str, entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    grouped = _grouped(entries)
    if not grouped:
        return
    yield f"## {title}"
    yield ""
    if about:
        yield about
        yield ""
    for text, places in sorted(grouped.items(), key=lambda item: (-len(item[1]), item[0])):
        yield f"- {_cell(text)}: {', '.join(places)}"
    yield ""


def _unknown(results: list[Result]) -> Iterator[str]:
    def entries() -> Iterator[tuple[str, str]]:
        for result in results:
            for _, site in sites(result):
                if site["verdict"] == "unknown":
                    entry = known(result["class"], site["reason"])
                    text = f"`{entry.op}`: {entry.why}" if entry else f"NOT LISTED: {site['reason']}"
                    yield text, result["class"]

    yield from _section("Unknown", "Masks that are not read, with the op that is missing.", entries())


def _kept(results: list[Result]) -> Iterator[str]:
    def entries() -> Iterator[tuple[str, str]]:
        for result in results:
            for _, site in sites(result):
                if site["missed"] and site["verdict"] != "unknown":
                    yield (
                        f"mask {site['missed']}; kept: {'; '.join(site['blockers']) or site['reason']}",
                        result["class"],
                    )

    about = "Masks that were full or causal at every size tried, yet keep their tensor, and why."
    yield from _section("Kept all the same", about, entries())


def _notes(results: list[Result]) -> Iterator[str]:
    def notes() -> Iterator[tuple[str, str]]:
        for result in results:
            for name, run in scenarios(result):
                if run["status"] == "unsupported":
                    yield f"not captured ({name.split(',')[0]}): {run['reason']}", result["class"]
                yield from ((note, result["class"]) for note in run.get("notes", []))

    def misses() -> Iterator[tuple[str, str]]:
        for result in results:
            for _, run in scenarios(result):
                for miss in run.get("near_misses", []):
                    reason = miss.partition(": ")[2]
                    yield reason, result["class"]

    def softmaxes() -> Iterator[tuple[str, str]]:
        for result in results:
            for name, run in scenarios(result):
                if run.get("unnoticed"):
                    yield f"{run['unnoticed']} of rank 3 or more ({name})", result["class"]

    yield from _section("Attention that is not matched", "What looks like attention and is left alone.", misses())
    about = "Attention with sinks, weights that are masked once more, routers of experts and the like."
    yield from _section("Softmaxes that are part of no attention call and no near miss", about, softmaxes())
    yield from _section("Notes on the captures", "", notes())


def _skipped(results: list[Result]) -> Iterator[str]:
    skipped = [r for r in results if r["status"] == "skipped"]
    yield f"## Skipped: {len(skipped)}"
    yield ""
    images = [r["class"] for r in skipped if r["reason"] == "takes images"]
    yield f"Take images, which this sweep does not make ({len(images)}): {', '.join(images)}."
    yield ""
    yield "| model type | class | why |"
    yield "|---|---|---|"
    for result in skipped:
        if result["reason"] != "takes images":
            yield f"| {result['model_type']} | {result['class']} | {_cell(result['reason'])} |"
    yield ""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
