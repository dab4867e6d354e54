"""Graphs before and after each pass, made by running the passes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import svg
import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from attnlower.lowering.passes.base import Pass
from attnlower.lowering.pipeline import Variant, build_variant, pipeline_for
from attnlower.lowering.targets import TARGETS
from attnlower.patterns import analyze
from attnlower.patterns.aliasing import op_name
from attnlower.patterns.calls.canonical import canonical_arguments, is_canonical
from attnlower.patterns.conditions import parse_conditions
from attnlower.patterns.metadata import value_of

GAP, HEIGHT = 26, 44


@dataclass(frozen=True)
class Example:
    """A program on which a pass shows what it does.

    Attributes:
        function: the program.
        inputs: its inputs by name: shapes of random float32 tensors, or tensors.
        target: the target whose pipeline holds the pass.
        assume: a condition on the inputs.
        dynamic: sizes that the program leaves open, by input: names of axes.
        sizes: integer inputs, by name.
        dynamo: captured as torch.compile does, without gradients.
        settings: of the target, other than its own.
    """

    function: Callable[..., Any]
    inputs: Mapping[str, Any]
    target: str = "eager"
    assume: str = ""
    dynamic: Mapping[str, Mapping[int, Any]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    dynamo: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


def _heads(count: int = 2, length: int = 8, width: int = 4) -> tuple[int, ...]:
    return (1, count, length, width)


QKV = {"q": _heads(), "k": _heads(), "v": _heads()}


def causal(length: int) -> torch.Tensor:
    """A boolean mask (length, length): key <= query."""
    position = torch.arange(length)
    return position[None, :] <= position[:, None]


def window(length: int) -> torch.Tensor:
    """A boolean mask (length, length): the query's own key and the one before."""
    apart = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    return (apart >= 0) & (apart < 2)


def chunks(length: int) -> torch.Tensor:
    """A boolean mask (length, length): causal within chunks of 64."""
    position = torch.arange(length)
    return causal(length) & (position[None, :] // 64 == position[:, None] // 64)


def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention by hand."""
    return torch.softmax(q @ k.transpose(2, 3) * 0.5, -1) @ v


def repeated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Two key heads for four query heads, copied."""
    return F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))


def twice(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Two layers, each with a mask of its own making."""
    first = F.scaled_dot_product_attention(q, k, v, attn_mask=window(8))
    return F.scaled_dot_product_attention(first, k, v, attn_mask=window(8))


def padded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Causal, without padded keys."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=causal(8) & attention_mask[:, None, None, :])


def plain(mask: Callable[[int], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Attention under a mask of a length."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask(k.shape[-2]))

    return attend


def unmasked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention without a mask."""
    return F.scaled_dot_product_attention(q, k, v)


def by_length(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Keys up to a length."""
    mask = torch.arange(k.shape[-2])[None, :] < lengths[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])


def cached(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """A step of a decoder: one query over a cache of 1024 places, of which the first ones are filled."""
    mask = torch.arange(1024)[None, :] <= position[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def canonical_lengths(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The canonical op, asked for lengths."""
    return torch.ops.attnlower.attention(q, k, v, key_lengths=lengths)


def sized(x: torch.Tensor, length: int) -> torch.Tensor:
    """A program that is handed a size beside its tensor, as Dynamo makes them."""
    heads = x.view(2, length, 3, 4).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads, heads)


def by_flags(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Keys that are not padded."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask[:, None, None, :])


def projected(x: torch.Tensor) -> torch.Tensor:
    """Heads taken apart with sizes that the program computes."""
    batch, length, _ = x.shape
    heads = x.view(batch, length, -1, 4).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads, heads)


def additive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A mask in a wider dtype than the query's, added to the scores."""
    mask = torch.where(window(8), 0.0, torch.finfo(torch.float32).min)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


FLAGS = torch.ones(1, 8, dtype=torch.bool)
LENGTHS = torch.tensor([5, 8])
PAIR = dict.fromkeys("qkv", (2, 2, 8, 4))
LONG = dict.fromkeys("qkv", _heads(length=512))
CACHED = {"position": torch.tensor([5]), "q": _heads(8, 1, 64), "k": _heads(8, 1024, 64), "v": _heads(8, 1024, 64)}
ANY = torch.export.Dim.AUTO

EXAMPLES: Mapping[str, Example] = {
    "canonicalize": Example(written_out, QKV),
    "drop_mask": Example(plain(lambda n: torch.ones(n, n, dtype=torch.bool)), QKV),
    "mask_to_alignment": Example(plain(causal), QKV),
    "guard_padding": Example(padded, {**QKV, "attention_mask": FLAGS}, assume="attention_mask.all()"),
    "banded": Example(plain(chunks), LONG, settings={"banded": "local"}),
    "fold_repeat_kv": Example(repeated, {**QKV, "q": _heads(4)}),
    "share_masks": Example(twice, QKV),
    "prefix_keys": Example(cached, CACHED, "inductor", dynamo=True),
    "legalize": Example(plain(causal), QKV),
    "explicit_scale": Example(unmasked, QKV, "executorch"),
    "attention_rank": Example(unmasked, dict.fromkeys("qkv", (2, 8, 4)), "executorch"),
    "value_width": Example(unmasked, {**QKV, "v": _heads(width=2)}, "executorch"),
    "single_mask": Example(additive, {n: torch.zeros(_heads(), dtype=torch.bfloat16) for n in "qkv"}, "executorch"),
    "empty_rows": Example(by_flags, {**QKV, "attention_mask": FLAGS}, "tensorrt"),
    "mask_shape": Example(plain(window), QKV, "tensorrt"),
    "decompose_attention": Example(unmasked, QKV, "executorch"),
    "key_lengths": Example(by_length, {**PAIR, "lengths": LENGTHS}, "tensorrt"),
    "lengths_as_masks": Example(canonical_lengths, {**PAIR, "lengths": LENGTHS}, "executorch"),
    "size_inputs": Example(sized, {"x": (2, 8, 12)}, "tensorrt", sizes={"length": 8}),
    "static_dims": Example(projected, {"x": (2, 8, 8)}, "tensorrt", dynamic={"x": {0: ANY, 1: ANY}}),
}


def tensors_of(example: Example) -> dict[str, torch.Tensor]:
    """The inputs of an example."""
    torch.manual_seed(0)
    return {n: v if isinstance(v, torch.Tensor) else torch.randn(v) for n, v in example.inputs.items()}


class Program(torch.nn.Module):
    """A function as a module, for torch.export."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: dict[str, torch.Tensor]) -> Any:
        return self.function(**inputs)


def captured(example: Example) -> fx.GraphModule:
    """An example as an ATen graph."""
    inputs = tensors_of(example)
    if example.dynamo:
        return from_dynamo(example.function, inputs)
    if example.sizes:
        return make_fx(example.function, tracing_mode="symbolic")(*inputs.values(), *example.sizes.values())
    open_sizes = {n: dict(example.dynamic[n]) if n in example.dynamic else None for n in inputs}
    shapes = (open_sizes,) if example.dynamic else None
    return torch.export.export(Program(example.function), (inputs,), dynamic_shapes=shapes).graph_module


def from_dynamo(function: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> fx.GraphModule:
    """The graph that torch.compile hands to its backend, its inputs in the order of `inputs`."""
    found: list[fx.GraphModule] = []

    def keep(gm: fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        found.append(gm)
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(function, backend=keep)(**inputs)
    names = [n.name.strip("_").removeprefix("l_") for n in found[0].graph.nodes if n.op == "placeholder"]
    if names != list(inputs):
        raise ValueError(f"the graph takes {names}; name the example's inputs in this order")
    return found[0]


def before_and_after(name: str) -> tuple[Variant, Variant]:
    """An example's graph after the passes that stand before one, and after that one.

    Raises:
        ValueError: if the pass changed nothing.
    """
    example = EXAMPLES[name]
    target = replace(TARGETS[example.target], **example.settings)
    gm = captured(example)
    placeholders = {n.name.removeprefix("inputs_"): n.name for n in gm.graph.nodes if n.op == "placeholder"}
    assumed = parse_conditions([example.assume], placeholders) if example.assume else ()
    passes: tuple[Pass, ...] = pipeline_for(target)
    position = [p.name for p in passes].index(name)
    analysis = analyze(gm)
    with torch.no_grad():
        earlier = build_variant(gm, analysis, target, assumed, passes[:position])
        later = build_variant(gm, analysis, target, assumed, passes[: position + 1])
    if not later.results[-1].changed:
        raise ValueError(f"{name} changes nothing in its example: {later.results[-1]}")
    return earlier, later


# --- pictures -------------------------------------------------------------------------------------------------

FILL = {"input": "#f2f4f7", "op": "#fff3dd", "attention": "#dbe8ff"}
STROKE = {"input": "#b5bfcc", "op": "#e0a53a", "attention": "#2563c8"}


def kind_of(node: fx.Node) -> str:
    """How a node is coloured."""
    if node.op == "placeholder":
        return "input"
    return "attention" if "attention" in str(node.target) else "op"


def words_of(node: fx.Node) -> list[str]:
    """The lines in a node's box: op, settings, shape and dtype."""
    value = value_of(node)
    kind = (
        "" if not isinstance(value, torch.Tensor) else f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    )
    if node.op == "placeholder":
        return [node.name.removeprefix("inputs_").removeprefix("l_").rstrip("_"), kind]
    own = "attnlower::" if str(node.target).startswith("attnlower.") else ""
    named = canonical_arguments(node) if is_canonical(node) else node.kwargs
    settings = [] if is_canonical(node) else [_shown(a) for a in node.args if a is not None and not _nodes_in(a)]
    settings += [f"{k}={_shown(v)}" for k, v in named.items() if _is_setting(k, v)]
    settings += [f"{k}=..." for k, v in named.items() if isinstance(v, fx.Node) and k not in ("query", "key", "value")]
    return [own + op_name(node), *([", ".join(settings)] if settings else []), *([kind] if kind else [])]


def _nodes_in(value: Any) -> bool:
    return any(isinstance(v, fx.Node) for v in (value if isinstance(value, (list, tuple)) else [value]))


def _is_setting(name: str, value: Any) -> bool:
    defaults = {"alignment": "none", "dropout_p": 0.0, "enable_gqa": False, "empty_rows": "zeros"}
    plumbing = name in ("device", "dtype", "layout", "pin_memory", "implicit", "memory_format")
    return (
        not plumbing and not isinstance(value, fx.Node) and value is not None and value != defaults.get(name, object())
    )


def _shown(value: Any) -> str:
    if value == slice(None):
        return ":"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_shown(v) for v in value)}]"
    return value.name if isinstance(value, fx.Node) else str(round(value, 4) if isinstance(value, float) else value)


def layers_of(graph: fx.Graph) -> list[list[fx.Node]]:
    """The nodes in rows, each as near to its users as can be; what nothing reads is left out."""
    rank: dict[fx.Node, int] = {}
    for node in reversed(list(graph.nodes)):
        if node.op == "output":
            continue
        below = [-1 if u.op == "output" else rank[u] for u in node.users if u.op == "output" or u in rank]
        if below:
            rank[node] = max(below) + 1
    rows: list[list[fx.Node]] = [[] for _ in range(max(rank.values()) + 1)]
    for node in graph.nodes:
        if node in rank:
            rows[len(rows) - 1 - rank[node]].append(node)
    return rows


def draw_graph(gm: fx.GraphModule, left: float, top: float) -> tuple[list[str], float, float]:
    """The parts of a picture of a graph, its width and its height."""
    rows = layers_of(gm.graph)
    words = {n: words_of(n) for row in rows for n in row}
    widths = {n: svg.CHARACTER * max(len(w) for w in lines) + 18 for n, lines in words.items()}
    whole = max(sum(widths[n] for n in row) + GAP * (len(row) - 1) for row in rows)
    centre: dict[fx.Node, float] = {}
    boxes: list[str] = []
    edges: list[str] = []
    y = top
    bottoms: dict[fx.Node, float] = {}
    for row in rows:
        order = sorted(row, key=lambda n: _mean([centre[i] for i in n.all_input_nodes if i in centre], left))
        x = left + (whole - sum(widths[n] for n in order) - GAP * (len(order) - 1)) / 2
        height = max(len(words[n]) for n in order) * svg.LINE + 10
        for node in order:
            centre[node] = x + widths[node] / 2
            kind = kind_of(node)
            boxes.append(svg.box(x, y, widths[node], height, fill=FILL[kind], stroke=STROKE[kind], rounding=5))
            for number, line in enumerate(words[node]):
                style = {"weight": "bold"} if number == 0 else {"fill": "#5b6675"}
                boxes.append(svg.text(centre[node], y + svg.LINE * (number + 1), line, anchor="middle", **style))
            for source in node.all_input_nodes:
                if source in bottoms:
                    ends = f"M{centre[source]:.1f} {bottoms[source]:.1f} L{centre[node]:.1f} {y:.1f}"
                    edges.append(f"<path d='{ends}' stroke='#8a95a5' fill='none'/>")
            bottoms[node] = y + height
            x += widths[node] + GAP
        y += height + GAP
    return [*edges, *boxes], whole, y - top - GAP


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def draw(name: str) -> str:
    """The two graphs of a pass beside each other."""
    earlier, later = before_and_after(name)
    first, width, height = draw_graph(earlier.gm, 16, 40)
    second, second_width, second_height = draw_graph(later.gm, 16 + width + 60, 40)
    middle = 16 + width + 30
    parts = [
        svg.text(16, 22, "before", weight="bold", fill="#5b6675"),
        svg.text(16 + width + 60, 22, f"after {name}", weight="bold", fill="#5b6675"),
        f"<path d='M{middle:.1f} 12 V{max(height, second_height) + 44:.1f}' stroke='#d5dbe3' stroke-dasharray='4 4'/>",
        *first,
        *second,
    ]
    total = 16 + width + 60 + max(second_width, svg.CHARACTER * (len(name) + 6)) + 16
    whole = svg.document(total, max(height, second_height) + 56, parts, f"A graph before and after the pass {name}")
    # symbols are numbered by hashes, which differ between releases of torch
    symbols = list(dict.fromkeys(re.findall(r"\bs\d+\b", whole)))
    return re.sub(r"\bs\d+\b", lambda m: f"s{symbols.index(m[0])}", whole)


def drawings() -> dict[str, str]:
    """Every picture by its path under docs/."""
    return {f"pictures/pass-{name}.svg": draw(name) for name in EXAMPLES}


__all__ = ["EXAMPLES", "before_and_after", "drawings", "tensors_of"]
