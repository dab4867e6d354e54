"""One picture per suite, drawn from its JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLORS = {
    "eager": "#999999",
    "inductor": "#d1495b",
    "attnlower": "#00629b",
    "is_causal": "#66a182",
    "flex": "#e9a03b",
    "cut keys": "#66a182",
    "oracle": "#66a182",
}
HAND = ("#2e4057", "#8d6a9f", "#66a182")


def draw(data: dict[str, Any], path: Path) -> None:
    """Draw a suite's rows into a PNG file.

    Args:
        data: the suite's results.
        path: the file; its folder is made.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing = {"compile_time": _compile_time, "memory": _memory}.get(data["suite"], _times)
    rows = [row for row in data["rows"] if "all" not in row.get("refused", {})]
    groups = list(_groups(rows))
    figure, axes = pyplot.subplots(1, max(len(groups), 1), figsize=(max(4.2 * len(groups), 6), 3.6), squeeze=False)
    for axis, (title, members) in zip(axes[0], groups, strict=False):
        drawing(axis, members, data["axis"])
        axis.set_title(title, fontsize=9)
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Software": None})
    pyplot.close(figure)


def _groups(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Rows that share a panel: of one dtype, one model, one capacity."""

    def title(row: dict[str, Any]) -> str:
        case = row["case"]
        words = [str(case[key]) for key in ("model", "dtype") if key in case]
        return ", ".join([*words, *([f"capacity {case['capacity']}"] if "capacity" in case else [])])

    for name in dict.fromkeys(title(row) for row in rows):
        yield name, [row for row in rows if title(row) == name]


def _times(axis: Any, rows: list[dict[str, Any]], along: str) -> None:
    """Median milliseconds with quartiles along the length, and the limit."""
    names = list(dict.fromkeys(name for row in rows for name in row["variants"]))
    spare = iter(HAND * len(names))
    for name in names:
        having = [row for row in rows if name in row["variants"]]
        x = [row["case"][along] for row in having]
        spreads = [row["variants"][name]["spread"] for row in having]
        y = [s["median"] * 1e3 for s in spreads]
        error = [
            [(s["median"] - s["lower_quartile"]) * 1e3 for s in spreads],
            [(s["upper_quartile"] - s["median"]) * 1e3 for s in spreads],
        ]
        color = COLORS.get(name) or next(spare)
        width = 2.2 if name == "attnlower" else 1.2
        axis.errorbar(x, y, yerr=error, label=name, color=color, linewidth=width, marker="o", markersize=3, capsize=2)
    x = [row["case"][along] for row in rows]
    axis.plot(x, [row["limit"]["seconds"] * 1e3 for row in rows], "k--", linewidth=1, label="limit")
    _logarithmic(axis, x, along)
    axis.set_yscale("log")
    axis.set_ylabel("ms")


def _logarithmic(axis: Any, x: list[int], along: str) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(set(x)), [str(n) for n in sorted(set(x))], fontsize=7)
    axis.minorticks_off()
    axis.set_xlabel(along)
    axis.grid(alpha=0.3)


def _compile_time(axis: Any, rows: list[dict[str, Any]], along: str) -> None:
    """attnlower's passes and Inductor's compilation along the number of layers."""
    lines = {
        "Inductor, cold, the graph as it was": ("eager", lambda row: row["inductor_alone_seconds"]),
        "Inductor, cold, attnlower's result": ("inductor", lambda row: row["inductor_seconds"]),
        "attnlower's passes": ("attnlower", lambda row: row["passes"]["spread"]["median"]),
    }
    for label, (color, value) in lines.items():
        points = [(row["case"][along], value(row)) for row in rows if value(row) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), color=COLORS[color], marker="o", label=label)
    axis.set_yscale("log")
    axis.set_xlabel(along)
    axis.set_ylabel("seconds")
    axis.grid(alpha=0.3)


def _memory(axis: Any, rows: list[dict[str, Any]], along: str) -> None:
    """What a call adds to the memory that is held before it, and the whole process's peak, as bars."""
    for row in rows:
        names = list(row["variants"])
        for key, alpha in (("peak_bytes", 0.35), ("call_bytes", 1.0)):
            heights = [row["variants"][name][key] / 2**20 for name in names]
            axis.bar(names, heights, color=[COLORS.get(n, HAND[0]) for n in names], alpha=alpha, label=key)
    axis.set_ylabel("MiB")
