"""What tests ask about the networks that were built."""

from __future__ import annotations

import contextlib
import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .enums import AttentionIOForm, AttentionNormalizationOp, CausalMaskKind, DataType
from .errors import NetworkError
from .layers.attention import KEY_VALUE_LENGTHS, QUERY_LENGTHS, AttentionLayer
from .runtime_module import ReferenceModule

if TYPE_CHECKING:
    from .network import INetworkDefinition
    from .tensor import ITensor

_networks: list[INetworkDefinition] = []
_compilations: list[Compilation] = []


def record(network: INetworkDefinition) -> None:
    """Remember a network."""
    _networks.append(network)


def networks() -> list[INetworkDefinition]:
    """The networks created since `clear_networks()`, oldest first; also those whose build failed."""
    return list(_networks)


def last_network() -> INetworkDefinition:
    """The newest network. LookupError if there is none."""
    if not _networks:
        raise LookupError("no network was created")
    return _networks[-1]


def clear_networks() -> None:
    """Forget the networks and the compilations."""
    _networks.clear()
    _compilations.clear()


@contextlib.contextmanager
def fresh_networks() -> Iterator[None]:
    """Only the networks and compilations of the block count inside it."""
    before = list(_networks), list(_compilations)
    clear_networks()
    try:
        yield
    finally:
        _networks[:], _compilations[:] = before


@dataclass(frozen=True)
class Compilation:
    """How torch_tensorrt split one graph: its engines, and the operators that stay in torch."""

    engines: int
    torch_nodes: tuple[str, ...]


def record_compilation(module: torch.fx.GraphModule) -> None:
    """Remember what became of one graph."""
    _compilations.append(summarize(module))


def compilations() -> list[Compilation]:
    """One entry per graph that torch_tensorrt compiled since `clear_networks()`."""
    return list(_compilations)


def summarize(module: torch.fx.GraphModule) -> Compilation:
    """Count the engines of a compiled graph and name what torch executes, inside its submodules too."""
    engines, torch_nodes = 0, []
    for node in module.graph.nodes:
        if node.op == "call_module":
            inner = module.get_submodule(node.target)
            if isinstance(inner, ReferenceModule):
                engines += 1
            elif isinstance(inner, torch.fx.GraphModule):
                below = summarize(inner)
                engines += below.engines
                torch_nodes.extend(below.torch_nodes)
            else:
                torch_nodes.append(str(node.target))
        elif node.op in ("call_function", "call_method") and node.target is not operator.getitem:
            torch_nodes.append(str(node.target))
    return Compilation(engines, tuple(torch_nodes))


@dataclass(frozen=True)
class AttentionSettings:
    """One attention layer as it was built: shapes with -1 for dynamic sizes."""

    name: str
    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    dtype: DataType
    causal: CausalMaskKind
    mask: tuple[int, ...] | None
    mask_dtype: DataType | None
    norm_op: AttentionNormalizationOp
    decomposable: bool
    forms: tuple[AttentionIOForm, AttentionIOForm]
    query_lengths: bool
    key_value_lengths: bool
    metadata: str


def layer_counts(network: INetworkDefinition | None = None) -> Counter[str]:
    """How many layers of each kind, such as {"ATTENTION": 2, "MATRIX_MULTIPLY": 9}."""
    return Counter(layer.kind for layer in network or last_network())


def attentions(network: INetworkDefinition | None = None) -> list[AttentionSettings]:
    """The attention layers in the order in which they were added."""
    return [_settings(layer) for layer in network or last_network() if isinstance(layer, AttentionLayer)]


def _settings(layer: AttentionLayer) -> AttentionSettings:
    query, key, value = layer._inputs[:3]
    mask = layer.mask
    return AttentionSettings(
        name=layer.name,
        query=tuple(query.shape),
        key=tuple(key.shape),
        value=tuple(value.shape),
        dtype=query.dtype,
        causal=layer.alignment,
        mask=None if mask is None else tuple(mask.shape),
        mask_dtype=None if mask is None else mask.dtype,
        norm_op=layer.norm_op,
        decomposable=layer.decomposable,
        forms=layer.forms,
        query_lengths=layer.get_input(QUERY_LENGTHS) is not None,
        key_value_lengths=layer.get_input(KEY_VALUE_LENGTHS) is not None,
        metadata=layer.__dict__.get("metadata", ""),
    )


def describe(network: INetworkDefinition | None = None) -> str:
    """The network as text: one line per layer."""
    network = network or last_network()
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(layer_counts(network).items()))
    lines = [f"reference network of {len(network)} layers: {counts}"]
    for layer in network._inputs:
        lines.append(f"  input {_tensor(layer._outputs[0])}")
    for layer in network:
        inputs = ", ".join(_tensor(tensor) for tensor in layer.present_inputs())
        outputs = ", ".join(_tensor(tensor) for tensor in layer._outputs)
        lines.append(f"  {layer.kind} {layer.name!r}: {inputs} -> {outputs}{_extra(layer)}")
    lines.append(f"  outputs {', '.join(_tensor(tensor) for tensor in network._marked)}")
    return "\n".join(lines)


def _tensor(tensor: ITensor) -> str:
    try:
        return f"{tensor.name} {tensor.dtype.name}{tuple(tensor.shape)}"
    except (NetworkError, NotImplementedError):
        return f"{tensor.name} (not computable)"


def _extra(layer: object) -> str:
    if not isinstance(layer, AttentionLayer):
        return ""
    mask = "no mask" if layer.mask is None else f"mask {_tensor(layer.mask)}"
    return f" [causal {layer.alignment.name}, {mask}, {layer.norm_op.name}, decomposable {layer.decomposable}]"
