"""INetworkDefinition: adds layers, checks each at once as far as it is complete, and all of them when built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from . import versions
from .dtypes import torch_dtype
from .enums import (
    ActivationType,
    AttentionNormalizationOp,
    CausalMaskKind,
    CumulativeOperation,
    DataType,
    ElementWiseOperation,
    FillOperation,
    GatherMode,
    KVCacheMode,
    MatrixOperation,
    NetworkDefinitionCreationFlag,
    ReduceOperation,
    ScatterMode,
    TopKOperation,
    UnaryOperation,
)
from .errors import NetworkError
from .layer import ILayer, InputLayer, Producer
from .layers import cache, constant, gathering, loop, pointwise, product, quantization, reduction, shuffle, slicing
from .layers.attention import AttentionLayer
from .modes import plain
from .settings import Configurable, Setting
from .tensor import ITensor

if TYPE_CHECKING:
    from .builder import Builder


class INetworkDefinition(Configurable):
    """A strongly typed network with explicit batch dims."""

    name = Setting("", str)
    error_recorder = Setting(None)

    def __init__(self, builder: Builder, flags: int) -> None:
        self._builder = builder
        self._flags = flags
        self._layers: list[Producer] = []
        self._inputs: list[InputLayer] = []
        self._marked: list[ITensor] = []
        self._profile_warnings: list[str] = []

    # -- what the network has ---------------------------------------------------------------------------------------

    @property
    def builder(self) -> Builder:
        return self._builder

    @property
    def profile_warnings(self) -> list[str]:
        """Where the profile's minimum or maximum cannot be computed; TensorRT would log as much and go on."""
        return self._profile_warnings

    @property
    def flags(self) -> int:
        return self._flags

    def get_flag(self, flag: NetworkDefinitionCreationFlag) -> bool:
        """Every network of the reference is strongly typed, whatever it was created with."""
        return flag is NetworkDefinitionCreationFlag.STRONGLY_TYPED or bool(self._flags >> int(flag) & 1)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._marked)

    def get_layer(self, index: int) -> Producer:
        return self._layers[index]

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]._outputs[0]

    def get_output(self, index: int) -> ITensor:
        return self._marked[index]

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, index: int) -> Producer:
        return self._layers[index]

    def __iter__(self) -> Iterator[Producer]:
        return iter(list(self._layers))

    # -- inputs and outputs -----------------------------------------------------------------------------------------

    def add_input(self, name: str, dtype: DataType, shape: Sequence[int]) -> ITensor:
        layer = InputLayer(self, name, torch_dtype(dtype), shape)
        self._inputs.append(layer)
        return layer._outputs[0]

    def mark_output(self, tensor: ITensor) -> None:
        if tensor not in self._marked:
            self._marked.append(tensor)
        tensor._is_output = True

    def unmark_output(self, tensor: ITensor) -> None:
        self._marked.remove(tensor)
        tensor._is_output = False

    def needed_layers(self) -> list[Producer]:
        """The layers that the outputs need, in order; that of their creation is none where inputs were set later."""
        order: dict[Producer, None] = {}
        pending = [tensor._producer for tensor in reversed(self._marked)]
        while pending:
            layer = pending[-1]
            before = [t._producer for t in layer.present_inputs() if t._producer not in order]
            if layer in order or not before:
                order[pending.pop()] = None
            else:
                pending.extend(before)
        return [layer for layer in order if not layer.is_input]

    def validate(self) -> None:
        """Check every layer and its shapes at the profile's points; NetworkError for the first breach."""
        self._check_outputs()
        self._profile_warnings.clear()
        for layer in [*self._inputs, *self._layers]:
            layer.changed("everything")
        for layer in self._layers:
            plain(layer.check)()
            for tensor in layer._outputs:
                _ = tensor.shape

    def _check_outputs(self) -> None:
        if not self._marked:
            raise NetworkError("no output", "network", "no tensor is marked as output", _MARK_OUTPUT)
        if any(tensor.is_network_input for tensor in self._marked):
            raise NetworkError("input as output", "network", "a network input is marked as an output", _MARK_OUTPUT)
        if any(layer.kind in ("RECURRENCE", "ITERATOR") for layer in self.needed_layers()):
            raise NetworkError("output in loop", "network", "a tensor inside a loop is marked as output", _MARK_OUTPUT)
        names = [tensor.name for tensor in (*(layer._outputs[0] for layer in self._inputs), *self._marked)]
        if len(set(names)) < len(names):
            source = "NvInfer.h, addInput(): each input and output tensor must have a unique name"
            raise NetworkError("unique names", "network", f"{sorted(names)}", source)

    # -- layers -----------------------------------------------------------------------------------------------------

    def _name(self, kind: str) -> str:
        return f"(Unnamed Layer* {len(self._layers)}) [{kind}]"

    def _keep(self, layer: Any, complete: bool = True) -> Any:
        self._layers.append(layer)
        if complete:
            plain(layer.check)()
        return layer

    def _add(self, kind: type[ILayer], inputs: Sequence[ITensor | None], complete: bool = True, **settings: Any) -> Any:
        layer = kind(self, inputs, self._name(kind.__name__))
        for name, value in settings.items():
            setattr(layer, name, value)
        return self._keep(layer, complete)

    def add_constant(self, shape: Any, weights: Any) -> constant.IConstantLayer:
        return self._keep(constant.IConstantLayer(self, self._name("Constant"), shape, weights))

    def add_identity(self, input: ITensor) -> pointwise.IIdentityLayer:
        return self._add(pointwise.IIdentityLayer, [input])

    def add_cast(self, input: ITensor, to_type: DataType) -> pointwise.ICastLayer:
        return self._add(pointwise.ICastLayer, [input], to_type=to_type)

    def add_shape(self, input: ITensor) -> constant.IShapeLayer:
        return self._add(constant.IShapeLayer, [input])

    def add_shuffle(self, input: ITensor) -> shuffle.IShuffleLayer:
        return self._add(shuffle.IShuffleLayer, [input], complete=False)

    def add_squeeze(self, input: ITensor, axes: ITensor) -> shuffle.ISqueezeLayer:
        return self._add(shuffle.ISqueezeLayer, [input, axes])

    def add_unsqueeze(self, input: ITensor, axes: ITensor) -> shuffle.IUnsqueezeLayer:
        return self._add(shuffle.IUnsqueezeLayer, [input, axes])

    def add_slice(self, input: ITensor, start: Any, shape: Any, stride: Any) -> slicing.ISliceLayer:
        return self._add(slicing.ISliceLayer, [input], complete=False, start=start, shape=shape, stride=stride)

    def add_concatenation(self, inputs: Sequence[ITensor]) -> slicing.IConcatenationLayer:
        return self._add(slicing.IConcatenationLayer, list(inputs), complete=False)

    def add_elementwise(
        self, input1: ITensor, input2: ITensor, op: ElementWiseOperation
    ) -> pointwise.IElementWiseLayer:
        return self._add(pointwise.IElementWiseLayer, [input1, input2], op=op)

    def add_unary(self, input: ITensor, op: UnaryOperation) -> pointwise.IUnaryLayer:
        return self._add(pointwise.IUnaryLayer, [input], op=op)

    def add_activation(self, input: ITensor, type: ActivationType) -> pointwise.IActivationLayer:
        return self._add(pointwise.IActivationLayer, [input], type=type)

    def add_parametric_relu(self, input: ITensor, slopes: ITensor) -> pointwise.IParametricReLULayer:
        return self._add(pointwise.IParametricReLULayer, [input, slopes])

    def add_select(self, condition: ITensor, then_input: ITensor, else_input: ITensor) -> pointwise.ISelectLayer:
        return self._add(pointwise.ISelectLayer, [condition, then_input, else_input])

    def add_reduce(self, input: ITensor, op: ReduceOperation, axes: int, keep_dims: bool) -> reduction.IReduceLayer:
        return self._add(reduction.IReduceLayer, [input], op=op, axes=axes, keep_dims=keep_dims)

    def add_softmax(self, input: ITensor) -> reduction.ISoftMaxLayer:
        return self._add(reduction.ISoftMaxLayer, [input])

    def add_cumulative(
        self, input: ITensor, axis: ITensor, op: CumulativeOperation, exclusive: bool, reverse: bool
    ) -> reduction.ICumulativeLayer:
        return self._add(reduction.ICumulativeLayer, [input, axis], op=op, exclusive=exclusive, reverse=reverse)

    def add_normalization(
        self,
        input: ITensor,
        scale: ITensor,
        bias: ITensor,
        axesMask: int,
    ) -> reduction.INormalizationLayer:
        return self._add(reduction.INormalizationLayer, [input, scale, bias], complete=False, axes=axesMask)

    @versions.since("10.15")
    def add_normalization_v2(
        self,
        input: ITensor,
        scale: ITensor,
        bias: ITensor,
        axesMask: int,
    ) -> reduction.INormalizationLayer:
        layer = self._add(
            reduction.INormalizationLayer, [input, scale, bias], complete=False, axes=axesMask, _per_channel=True
        )
        return layer

    def add_topk(
        self, input: ITensor, op: TopKOperation, k: int, axes: int, indices_type: DataType = DataType.INT32
    ) -> gathering.ITopKLayer:
        return self._add(gathering.ITopKLayer, [input], op=op, k=k, axes=axes, indices_type=indices_type)

    def add_gather(self, input: ITensor, indices: ITensor, axis: int) -> gathering.IGatherLayer:
        return self._add(gathering.IGatherLayer, [input, indices], axis=axis)

    def add_gather_v2(self, input: ITensor, indices: ITensor, mode: GatherMode) -> gathering.IGatherLayer:
        return self._add(gathering.IGatherLayer, [input, indices], complete=False, mode=mode)

    def add_scatter(
        self, data: ITensor, indices: ITensor, updates: ITensor, mode: ScatterMode
    ) -> gathering.IScatterLayer:
        return self._add(gathering.IScatterLayer, [data, indices, updates], complete=False, mode=mode)

    def add_one_hot(self, indices: ITensor, values: ITensor, depth: ITensor, axis: int) -> gathering.IOneHotLayer:
        return self._add(gathering.IOneHotLayer, [indices, values, depth], axis=axis)

    def add_non_zero(self, input: ITensor, indices_type: DataType = DataType.INT32) -> gathering.INonZeroLayer:
        return self._add(gathering.INonZeroLayer, [input], indices_type=indices_type)

    def add_matrix_multiply(
        self, input0: ITensor, op0: MatrixOperation, input1: ITensor, op1: MatrixOperation
    ) -> product.IMatrixMultiplyLayer:
        return self._add(product.IMatrixMultiplyLayer, [input0, input1], op0=op0, op1=op1)

    def add_einsum(self, inputs: Sequence[ITensor], equation: str) -> product.IEinsumLayer:
        return self._add(product.IEinsumLayer, list(inputs), equation=equation)

    def add_convolution_nd(
        self, input: ITensor, num_output_maps: int, kernel_shape: Any, kernel: Any, bias: Any = None
    ) -> product.IConvolutionLayer:
        name = self._name("Convolution")
        layer = product.IConvolutionLayer(self, [input], name, num_output_maps, kernel_shape, kernel, bias)
        return self._keep(layer, complete=False)

    def add_deconvolution_nd(
        self, input: ITensor, num_output_maps: int, kernel_shape: Any, kernel: Any, bias: Any = None
    ) -> product.IDeconvolutionLayer:
        name = self._name("Deconvolution")
        layer = product.IDeconvolutionLayer(self, [input], name, num_output_maps, kernel_shape, kernel, bias)
        return self._keep(layer, complete=False)

    def add_fill(self, shape: Any, op: FillOperation, output_type: DataType = DataType.FLOAT) -> constant.IFillLayer:
        return self._add(constant.IFillLayer, [], complete=False, shape=shape, operation=op, to_type=output_type)

    def add_quantize(self, input: ITensor, scale: ITensor, output_type: DataType) -> quantization.IQuantizeLayer:
        return self._add(quantization.IQuantizeLayer, [input, scale], complete=False, to_type=output_type)

    def add_dequantize(self, input: ITensor, scale: ITensor, output_type: DataType) -> quantization.IDequantizeLayer:
        return self._add(quantization.IDequantizeLayer, [input, scale], complete=False, to_type=output_type)

    def add_loop(self) -> loop.ILoop:
        return loop.ILoop(self)

    def _loop_layer(self, kind: Any, inputs: Sequence[ITensor], owner: loop.ILoop) -> Any:
        return self._keep(kind(self, inputs, self._name(kind.__name__), owner), complete=False)

    # -- attention --------------------------------------------------------------------------------------------------

    def _attention(self, inputs: Sequence[ITensor], norm_op: Any, causal: CausalMaskKind) -> AttentionLayer:
        layer = AttentionLayer(self, inputs, self._name("Attention"), norm_op, causal)
        self._layers.append(layer)
        if all(len(tensor.shape) == 4 for tensor in inputs) or not versions.at_least("11.0"):
            layer.check_input(0)  # with packed forms, which are set later, the ranks and heads are the build's to check
        return layer

    def add_attention(
        self, query: ITensor, key: ITensor, value: ITensor, norm_op: AttentionNormalizationOp, causal: bool
    ) -> AttentionLayer:
        """Causal True is UPPER_LEFT in every version."""
        if not isinstance(causal, bool):
            raise TypeError(f"add_attention(): causal must be a bool, not {causal!r}")
        kind = CausalMaskKind.UPPER_LEFT if causal else CausalMaskKind.NONE
        return self._attention([query, key, value], norm_op, kind)

    @versions.since("11.0")
    def add_attention_v2(
        self,
        query: ITensor,
        key: ITensor,
        value: ITensor,
        norm_op: AttentionNormalizationOp,
        causal_kind: CausalMaskKind,
    ) -> AttentionLayer:
        return self._attention([query, key, value], norm_op, CausalMaskKind(causal_kind))

    @versions.since("10.15")
    def add_rotary_embedding(
        self, input: ITensor, cos_cache: ITensor, sin_cache: ITensor, interleaved: bool, rotary_embedding_dim: int
    ) -> cache.IRotaryEmbeddingLayer:
        return self._add(
            cache.IRotaryEmbeddingLayer,
            [input, cos_cache, sin_cache],
            complete=False,
            interleaved=interleaved,
            rotary_embedding_dim=rotary_embedding_dim,
        )

    @versions.since("10.15")
    def add_kv_cache_update(
        self, cache: ITensor, update: ITensor, write_indices: ITensor, cache_mode: KVCacheMode
    ) -> Any:
        kind = _KV_CACHE_UPDATE
        return self._add(kind, [cache, update, write_indices], complete=False, cache_mode=cache_mode)

    def __getattr__(self, name: str) -> Any:
        # Only reached for what is not defined above. A kind that TensorRT has and the reference lacks must say so, and
        # not look like a typing error in a converter; what the version lacks stays an AttributeError.
        if name in _NOT_EVALUATED.split():
            raise NotImplementedError(f"the reference TensorRT does not evaluate the layers of {name}")
        raise AttributeError(f"TensorRT {versions.current()}: INetworkDefinition has no attribute {name!r}")


_MARK_OUTPUT = "NvInfer.h, INetworkDefinition::markOutput()"
_KV_CACHE_UPDATE = cache.IKVCacheUpdateLayer

_NOT_EVALUATED = (
    "add_pooling_nd add_lrn add_scale add_scale_nd add_padding_nd add_ragged_softmax add_plugin_v2 add_plugin_v3 "
    "add_plugin add_resize add_assertion add_grid_sample add_nms add_dynamic_quantize "
    "add_dynamic_quantize_v2 add_if_conditional add_reverse_sequence add_moe add_dist_collective"
)
