"""What a graph records about its values: fake tensors in `meta["val"]` (export) or `meta["example_value"]` (Dynamo)."""

from __future__ import annotations

import functools
import re
from typing import Any

import torch
from torch import fx


def value_of(node: fx.Node) -> Any:
    """The (fake) value of a node, or None if the graph does not record it."""
    meta = node.meta
    return meta["val"] if "val" in meta else meta.get("example_value")


def tensor_of(node: object) -> torch.Tensor | None:
    """The (fake) tensor of a node, or None if it is no tensor or not recorded."""
    value = value_of(node) if isinstance(node, fx.Node) else None
    return value if isinstance(value, torch.Tensor) else None


def module_path(node: fx.Node) -> str:
    """The path of the module that issued a node, e.g. ``model.layers.0.self_attn``; empty if not recorded."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if isinstance(entry, tuple) and entry and isinstance(entry[0], str)]
    return _clean_path(paths[-1]) if paths else ""


@functools.lru_cache(maxsize=1024)
def _clean_path(path: str) -> str:
    # in front of a decorated forward, as transformers has them, stands `*args` with the module itself
    path = re.sub(r"^(L\['args'\]\[0\]|[LG]\['[^']*'\]|L__self__)\.?", "", path)
    path = re.sub(r"_modules\['([^']*)'\]", r"\1", path)
    path = re.sub(r"\[['\"]?([^\]'\"]*)['\"]?\]", r".\1", path)
    return path.strip(".").removeprefix("_orig_mod.")


def buffer_label(node: fx.Node) -> str:
    """The path of a buffer among a graph's inputs, e.g. ``layers.0.bias``; its label where the path is not recorded."""
    path = re.findall(r"_(?:modules|buffers)\['([^']+)'\]", _source_name(node))
    return ".".join(path) or input_label(node)


def _source_name(node: fx.Node) -> str:
    """Dynamo's name of where an input came from; empty if there is none."""
    source = getattr(node.meta.get("grapharg"), "source", None)
    try:
        name = getattr(source, "name", "")
        return str(name() if callable(name) else name)
    except NotImplementedError:
        return ""


def input_label(node: fx.Node) -> str:
    """The user's name of a graph input: ``attention_mask`` for Dynamo's ``L_kwargs_attention_mask_``."""
    name = _source_name(node)
    if name:
        quoted = re.findall(r"\['([^']+)'\]", name)
        if quoted:
            tail = name.rpartition("]")[2].strip(".()")
            # L['data'][0] is an element of a tuple
            place = "".join(re.findall(r"\[\d+\]", name.rpartition("']")[2]))
            return f"{quoted[-1]}.{tail}" if tail and "." not in quoted[-1] else quoted[-1] + place
    label = str(node.target) if node.op in ("placeholder", "get_attr") else node.name
    label = re.sub(
        r"^[Ll]_(args|kwargs)_", "", re.sub(r"^[Ll]_(self_)?", "", label) if label[:2] in ("L_", "l_") else label
    )
    return label.strip("_") or node.name
