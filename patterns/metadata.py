"""What a graph records about its values: fake tensors in `meta["val"]` (export) or `meta["example_value"]` (Dynamo)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx

_MISSING = object()


def value_of(node: fx.Node) -> Any:
    """The (fake) value of a node, or None if the graph does not record it."""
    for key in ("val", "example_value"):
        found = node.meta.get(key, _MISSING)
        if found is not _MISSING:
            return found
    return None


def tensor_of(node: object) -> torch.Tensor | None:
    """The (fake) tensor of a node, or None if it is no tensor or not recorded."""
    value = value_of(node) if isinstance(node, fx.Node) else None
    return value if isinstance(value, torch.Tensor) else None


def module_path(node: fx.Node) -> str:
    """The path of the module that issued a node, e.g. ``model.layers.0.self_attn``; empty if not recorded."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if isinstance(entry, tuple) and entry and isinstance(entry[0], str)]
    return _clean_path(paths[-1]) if paths else ""


def _clean_path(path: str) -> str:
    path = re.sub(r"^([LG]\['[^']*'\]|L__self__)\.?", "", path)
    path = re.sub(r"_modules\['([^']*)'\]", r"\1", path)
    path = re.sub(r"\[['\"]?([^\]'\"]*)['\"]?\]", r".\1", path)
    return path.strip(".").removeprefix("_orig_mod.")


def input_label(node: fx.Node) -> str:
    """The user's name of a graph input: ``attention_mask`` for Dynamo's ``L_kwargs_attention_mask_``."""
    grapharg = node.meta.get("grapharg")
    source = getattr(grapharg, "source", None)
    if source is not None:
        try:
            name = source.name if isinstance(source.name, str) else source.name()
        except (AttributeError, NotImplementedError):
            name = ""
        quoted = re.findall(r"\['([^']+)'\]", name)
        if quoted:
            tail = name.rpartition("]")[2].strip(".()")
            return f"{quoted[-1]}.{tail}" if tail and "." not in quoted[-1] else quoted[-1]
    label = str(node.target) if node.op in ("placeholder", "get_attr") else node.name
    label = re.sub(
        r"^[Ll]_(args|kwargs)_", "", re.sub(r"^[Ll]_(self_)?", "", label) if label[:2] in ("L_", "l_") else label
    )
    return label.strip("_") or node.name
