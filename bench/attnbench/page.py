"""bench/README.md from the JSON files: every number in it was measured, none is typed in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import targets
from .plots import draw
from .results import device_words, load_all

HEAD = """# Benchmarks

Made by `make bench-page` from the JSON files in `results/`; no number here is typed by hand.

```
make bench                           # every suite, its JSON, then this page (each suite says how long it took)
make bench BENCH='--missing'         # go on where it was stopped
make bench-quick                     # a few small rows of every suite, into .venv/bench-quick
cd bench && python -m attnbench --suite sliding --lengths 4096 --dtypes float32 --rounds 9
```

All variants of a row run in one process, each once per round, in orders in which every variant comes equally often
first and directly after each other one, from round to round, too (it finds in the caches what that one left). Times
are medians with quartiles.
Ratios are taken within a round, then their median. Each variant's output is checked first
(float32: at most 1e-5 from eager; narrower: error to float64 at most 1.2 times eager's, root mean square); a variant
that is wrong is refused and has no time. The mask of every attention call is made inside the compiled call by
transformers' own `masking_utils`.

| variant | what it is |
|---|---|
| eager | the source as it is, not compiled; transformers leaves masks out there where it can look at them |
| inductor | `torch.compile(model)` |
| attnlower | `torch.compile(model, backend="attnlower")` |
| is_causal, flex, block-local, cut keys | a person decided about the mask; Inductor; a row's fastest is its *oracle* |
| limit | least time for the necessary work: operations and bytes over the machine's peaks |

The peaks are measured in the same run, by a matrix product and a copy; `attnbench/limits.py` has the formulas.

`bench/README.md` has a CPU with AVX512, `bench/avx2/README.md` one without (float32 alone: in bfloat16 such a CPU takes
minutes for one matrix product). Each suite says of which state of the library it is.

The code for CUDA (synchronisation, events, the allocator's peak) has never been run.
"""


def write_page(folder: Path, page: Path) -> None:
    """Write the page and its pictures.

    Args:
        folder: where the JSON files are.
        page: the Markdown file; pictures go into `plots/` beside it.
    """
    results = load_all(folder)
    parts = [HEAD, verdict(results)]
    for name, data in results.items():
        picture = page.parent / "plots" / f"{name}.png"
        draw(data, picture)
        parts.append(section(name, data, picture.relative_to(page.parent)))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(parts), encoding="utf-8")


def verdict(results: targets.Results) -> str:
    """The targets as a Markdown table, and what was missed or refused."""
    judged = targets.judge(results)
    lines = ["## Targets", "", "| target | bound | rows | hold | worst | at |", "|---|---|---|---|---|---|"]
    for target in dict.fromkeys(j.target for j in judged):
        lines.append(f"| {' | '.join(targets.summary([j for j in judged if j.target == target]))} |")
    missed = [f"- {j.target}: {j.row}: {j.value:.3f}" for j in judged if not j.holds]
    if missed:
        lines += ["", "Missed:", "", *missed]
    refused = targets.refusals(results)
    if refused:
        lines += ["", "Refused:", "", *(f"- {one}" for one in refused)]
    return "\n".join([*lines, ""])


def section(name: str, data: dict[str, Any], picture: Path) -> str:
    """One suite: its sentence, the machine, the picture, the table."""
    machine = data["machine"]
    where = (
        f"{device_words(machine)}, {machine['threads']} threads, torch {machine['torch']}, transformers "
        f"{machine['transformers']}, commit {machine['commit']}, {machine['date'][:10]}"
    )
    minutes = sum(row["seconds_for_all"] for row in data["rows"]) / 60
    peaks = (
        f"{dtype}: {peak['operations_per_second'] / 1e9:.0f} Gop/s, {peak['bytes_per_second'] / 1e9:.1f} GB/s"
        for dtype, peak in data["peaks"].items()
    )
    state = "" if data["complete"] else " Not finished."
    table = {"compile_time": _compile_time, "memory": _memory}.get(data["suite"], _times)
    rows = [row for row in data["rows"] if "all" not in row.get("refused", {})]
    lines = [
        f"## {name}",
        "",
        f"{data['title']}{state}",
        "",
        f"{where}; {minutes:.0f} minutes; peaks: {'; '.join(peaks)}.",
    ]
    return "\n".join([*lines, "", f"![{name}]({picture})", "", *table(rows), ""])


def _cases(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row["case"]))


def _table(headings: list[str], body: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield "|" + "---|" * len(headings)
    for cells in body:
        yield f"| {' | '.join(cells)} |"


def _times(rows: list[dict[str, Any]]) -> Iterator[str]:
    keys = _cases(rows)
    names = list(dict.fromkeys(name for row in rows for name in row["variants"]))

    def body() -> Iterator[list[str]]:
        for row in rows:
            cells = [str(row["case"].get(key, "")) for key in keys]
            cells += [_milliseconds(row, name) for name in names]
            cells += [f"{row['limit']['seconds'] * 1e3:.3g}"]
            for base in ("oracle", "inductor"):
                value = row.get("ratio_to", {}).get("attnlower", {}).get(base)
                cells.append(_ratio(value))
            cells.append(row.get("oracle") or "")
            cells.append(", ".join(sorted({site["action"] for site in row.get("attnlower", [])})))
            yield cells

    headings = [
        *keys,
        *(f"{n}, ms" for n in names),
        "limit, ms",
        "attnlower / oracle",
        "attnlower / inductor",
        "oracle",
    ]
    yield from _table([*headings, "action"], body())


def _milliseconds(row: dict[str, Any], name: str) -> str:
    if name in row["variants"]:
        spread = row["variants"][name]["spread"]
        half = (spread["upper_quartile"] - spread["lower_quartile"]) / 2
        return f"{spread['median'] * 1e3:.4g} ± {half * 1e3:.2g}"
    return "refused" if name in row.get("refused", {}) else ""


def _ratio(value: dict[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{value['median']:.3f} ({value['lower_quartile']:.3f} to {value['upper_quartile']:.3f})"


def _compile_time(rows: list[dict[str, Any]]) -> Iterator[str]:
    def body() -> Iterator[list[str]]:
        for row in rows:
            passes, analysis = (row[key]["spread"]["median"] * 1e3 for key in ("passes", "analysis"))
            numbers = [f"{passes:.1f}", f"{analysis:.1f}"]
            both = (row["inductor_seconds"], row["inductor_alone_seconds"])
            numbers += ["" if seconds is None else f"{seconds:.1f}" for seconds in both]
            yield [
                str(row["case"]["model"]),
                str(row["case"]["layers"]),
                ", ".join(row["actions"]),
                *numbers,
                f"{row['share_of_inductor'] * 100:.2f} %",
                f"{passes / row['case']['layers']:.2f}",
            ]

    headings = ["model", "layers", "action", "passes, ms", "of it analysis, ms", "Inductor, s", "Inductor alone, s"]
    yield from _table([*headings, "passes / Inductor", "ms per layer"], body())
    if rows:
        last = max(rows, key=lambda row: int(row["case"]["layers"]))
        yield ""
        yield f"Where it goes at {last['case']['layers']} layers, by cProfile (a stage may contain others):"
        yield ""
        stages = (
            [f"`{re.sub(r'[|`]', '', s['stage'])}`", f"{s['share'] * 100:.0f} %", str(s["calls"])]
            for s in last["stages"]
        )
        yield from _table(["stage", "share", "calls"], stages)


def _memory(rows: list[dict[str, Any]]) -> Iterator[str]:
    def body() -> Iterator[list[str]]:
        for row in rows:
            for name, found in row["variants"].items():
                ratios = row["ratio_to"][name].get("oracle", {})
                yield [
                    *(str(value) for value in row["case"].values()),
                    name,
                    f"{found['peak_bytes'] / 2**20:.0f}",
                    f"{found['call_bytes'] / 2**20:.0f}",
                    *(f"{ratios[key]:.3f}" if key in ratios else "" for key in ("peak_bytes", "call_bytes")),
                    f"{row['limit']['bytes'] / 2**20:.0f}",
                    f"{row['score_matrix_bytes'] / 2**20:.0f}",
                ]

    headings = ["variant", "peak, MiB", "of it the call, MiB", "peak / oracle", "call / oracle", "limit, MiB"]
    yield from _table([*_cases(rows), *headings, "S x S booleans, MiB"], body())
