"""Write README's tables from the JSON files in bench/results/ (`make readme-tables`)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
SOUNDNESS = re.compile(r"(<!-- soundness:start -->\n).*?(<!-- soundness:end -->)", re.DOTALL)
STEPS = re.compile(r"(<!-- steps:start -->\n).*?(<!-- steps:end -->)", re.DOTALL)
BLOCK = re.compile(r"(<!-- bench:start -->\n).*?(<!-- bench:end -->)", re.DOTALL)


def section(results: list[dict[str, Any]]) -> str:
    """A Markdown table of the demo's runs: median seconds with quartiles, ratios, and the difference to eager."""
    lines: list[str] = []
    for result in results:
        machine, settings = result["machine"], result["settings"]
        lines += [
            f"{result['model']}; {settings['seq_len']} tokens, batch {settings['batch']}, {settings['rounds']} rounds; "
            f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, transformers "
            f"{machine['transformers']}, {machine['date'][:10]}:",
            "",
            "| variant | median s (quartiles) | x oracle | x attnlower | max abs. difference to eager |",
            "|---|---|---|---|---|",
        ]
        for name, row in result["variants"].items():
            spread = row["seconds_spread"]
            seconds = f"{spread['median']:.3f} ({spread['lower_quartile']:.3f} to {spread['upper_quartile']:.3f})"
            ratios = [f"{row['ratio_to'][base]['median']:.3f}" for base in ("oracle", "attnlower")]
            lines.append(f"| {name} | {seconds} | {' | '.join(ratios)} | {row['max_abs_diff_to_eager']:.1e} |")
        lines.append("")
    return "\n".join(lines)


def soundness(result: dict[str, Any]) -> str:
    """A Markdown table of the largest differences to eager, torch_tensorrt alone and with attnlower."""
    machine = result["machine"]
    lines = [
        f"{result['what']}; torch_tensorrt {machine['torch_tensorrt']}, torch {machine['torch']}, transformers "
        f"{machine['transformers']}, {machine['cpu']}, {machine['date'][:10]}:",
        "",
        "| attention | torch_tensorrt | with attnlower |",
        "|---|---|---|",
    ]
    for case in result["cases"]:
        cells = [_worst(case[who]) for who in ("torch_tensorrt", "attnlower")]
        lines.append(f"| {case['name']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _worst(measured: dict[str, Any]) -> str:
    if measured["problem"]:
        return f"fails: {measured['problem'].split(':')[0]}"
    return f"{max(measured['errors']):.1e}"


def steps(result: dict[str, Any]) -> str:
    """Markdown tables of the time per decoding step: of every case measured with Inductor, then with ExecuTorch."""
    machine = result["machine"]
    heading = (
        f"Milliseconds per step, float32, medians; {machine['cpu']}, {machine['threads']} threads, torch "
        f"{machine['torch']}, transformers {machine['transformers']}, {machine['date'][:10]}:"
    )
    torch_names = ("eager", "static cache, torch.compile", "attnlower, Inductor")
    ratios = {"x eager": "ratio_to_eager", "x static cache": "ratio_to_static"}
    executorch_names = ("eager", "transformers' export, ExecuTorch", "attnlower, ExecuTorch")
    tables = [
        _steps_table(result["models"], torch_names, ratios),
        _steps_table(result["models"], executorch_names, {"x eager": "ratio_to_eager"}),
    ]
    return "\n".join([heading, "", *(line for table in tables if len(table) > 2 for line in (*table, ""))])


def _steps_table(models: dict[str, Any], names: tuple[str, ...], ratios: dict[str, str]) -> list[str]:
    """The lines of one table; the last name is ours, and cases without it are left out."""
    lines = [
        f"| model | source | sources x beams | cache | {' | '.join((*names, *ratios))} |",
        "|---" * (4 + len(names) + len(ratios)) + "|",
    ]
    for model, rows in models.items():
        for row in rows:
            times = row["milliseconds"]
            if row["part"] != "step" or names[-1] not in times:
                continue
            cells = [f"{times[n]['median']:.1f}" if n in times else "" for n in names]
            found = [row[key].get(names[-1]) for key in ratios.values()]
            cells += [f"{r['median']:.2f}" if r else "" for r in found]
            what = f"{model} | {row['source']} | {row['batch']} x {row['beams']} | {row['capacity']}"
            lines.append(f"| {what} | {' | '.join(cells)} |")
    return lines


def updated(readme: str) -> str:
    """README's text with the tables made anew."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("demo-*.json"), reverse=True)]
    readme = BLOCK.sub(lambda m: f"{m[1]}{section(results)}{m[2]}", readme)
    latency = json.loads((RESULTS / "seq2seq-latency.json").read_text())
    readme = STEPS.sub(lambda m: f"{m[1]}{steps(latency)}{m[2]}", readme)
    found = json.loads((RESULTS / "tensorrt-soundness.json").read_text())
    return SOUNDNESS.sub(lambda m: f"{m[1]}{soundness(found)}{m[2]}", readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text()))
