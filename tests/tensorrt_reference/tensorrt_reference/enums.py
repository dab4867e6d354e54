"""The enumerations of TensorRT 11.1 (names and values: NvInfer*.h and python/src of NVIDIA/TensorRT, Apache-2.0)."""

from __future__ import annotations

import enum


class _Numbered(enum.Enum):
    """An enumeration whose members turn into their number, as pybind11's do."""

    def __int__(self) -> int:
        return int(self.value)

    def __index__(self) -> int:
        return int(self.value)


def _numbered(name: str, members: str) -> type[_Numbered]:
    """Members numbered from 0; `NAME=n` continues from n."""
    values, following = {}, 0
    for member in members.split():
        label, _, number = member.partition("=")
        following = int(number) if number else following
        values[label] = following
        following += 1
    return _Numbered(name, values, module=__name__)


DataType = _numbered("DataType", "FLOAT HALF INT8 INT32 BOOL UINT8 FP8 BF16 INT64 INT4 FP4 E8M0")
LayerType = _numbered(
    "LayerType",
    "CONVOLUTION CAST ACTIVATION POOLING LRN SCALE SOFTMAX DECONVOLUTION CONCATENATION ELEMENTWISE PLUGIN UNARY "
    "PADDING SHUFFLE REDUCE TOPK GATHER MATRIX_MULTIPLY RAGGED_SOFTMAX CONSTANT IDENTITY PLUGIN_V2 SLICE SHAPE "
    "PARAMETRIC_RELU RESIZE TRIP_LIMIT RECURRENCE ITERATOR LOOP_OUTPUT SELECT FILL QUANTIZE DEQUANTIZE CONDITION "
    "CONDITIONAL_INPUT CONDITIONAL_OUTPUT SCATTER EINSUM ASSERTION ONE_HOT NON_ZERO GRID_SAMPLE NMS REVERSE_SEQUENCE "
    "NORMALIZATION PLUGIN_V3 SQUEEZE UNSQUEEZE CUMULATIVE DYNAMIC_QUANTIZE ATTENTION_INPUT ATTENTION_OUTPUT "
    "ROTARY_EMBEDDING KV_CACHE_UPDATE MOE DIST_COLLECTIVE",
)
ActivationType = _numbered(
    "ActivationType",
    "RELU SIGMOID TANH LEAKY_RELU ELU SELU SOFTSIGN SOFTPLUS CLIP HARD_SIGMOID SCALED_TANH THRESHOLDED_RELU GELU_ERF "
    "GELU_TANH",
)
ElementWiseOperation = _numbered(
    "ElementWiseOperation", "SUM PROD MAX MIN SUB DIV POW FLOOR_DIV AND OR XOR EQUAL GREATER LESS"
)
UnaryOperation = _numbered(
    "UnaryOperation",
    "EXP LOG SQRT RECIP ABS NEG SIN COS TAN SINH COSH ASIN ACOS ATAN ASINH ACOSH ATANH CEIL FLOOR ERF NOT SIGN ROUND "
    "ISINF ISNAN",
)
ReduceOperation = _numbered("ReduceOperation", "SUM PROD MAX MIN AVG NONE")
MatrixOperation = _numbered("MatrixOperation", "NONE TRANSPOSE VECTOR")
GatherMode = _numbered("GatherMode", "DEFAULT ELEMENT ND")
ScatterMode = _numbered("ScatterMode", "ELEMENT ND")
SampleMode = _numbered("SampleMode", "STRICT_BOUNDS WRAP CLAMP FILL REFLECT")
TopKOperation = _numbered("TopKOperation", "MAX MIN")
FillOperation = _numbered("FillOperation", "LINSPACE RANDOM_UNIFORM RANDOM_NORMAL")
CumulativeOperation = _numbered("CumulativeOperation", "SUM")
AttentionNormalizationOp = _numbered("AttentionNormalizationOp", "NONE SOFTMAX")
CausalMaskKind = _numbered("CausalMaskKind", "NONE UPPER_LEFT LOWER_RIGHT")
AttentionIOForm = _numbered("AttentionIOForm", "PADDED_BHND PACKED_NHD")
KVCacheMode = _numbered("KVCacheMode", "LINEAR")
MoEActType = _numbered("MoEActType", "NONE SILU")
CollectiveOperation = _numbered(
    "CollectiveOperation", "ALL_REDUCE ALL_GATHER BROADCAST REDUCE REDUCE_SCATTER ALL_TO_ALL GATHER SCATTER"
)
PaddingMode = _numbered("PaddingMode", "EXPLICIT_ROUND_DOWN EXPLICIT_ROUND_UP SAME_UPPER SAME_LOWER")
PoolingType = _numbered("PoolingType", "MAX AVERAGE MAX_AVERAGE_BLEND")
ScaleMode = _numbered("ScaleMode", "UNIFORM CHANNEL ELEMENTWISE")
InterpolationMode = _numbered("InterpolationMode", "NEAREST LINEAR CUBIC")
ResizeCoordinateTransformation = _numbered("ResizeCoordinateTransformation", "ALIGN_CORNERS ASYMMETRIC HALF_PIXEL")
ResizeSelector = _numbered("ResizeSelector", "FORMULA UPPER")
ResizeRoundMode = _numbered("ResizeRoundMode", "HALF_UP HALF_DOWN FLOOR CEIL")
LoopOutput = _numbered("LoopOutput", "LAST_VALUE CONCATENATE REVERSE")
TripLimit = _numbered("TripLimit", "COUNT WHILE")
BoundingBoxFormat = _numbered("BoundingBoxFormat", "CORNER_PAIRS CENTER_SIZES")

TensorFormat = _numbered(
    "TensorFormat", "LINEAR CHW2 HWC8 CHW4 CHW16 CHW32 DHWC8 CDHW32 HWC DLA_LINEAR DLA_HWC4 HWC16 DHWC"
)
TensorLocation = _numbered("TensorLocation", "DEVICE HOST")
TensorIOMode = _numbered("TensorIOMode", "NONE INPUT OUTPUT")
DeviceType = _numbered("DeviceType", "GPU DLA")
WeightsRole = _numbered("WeightsRole", "KERNEL BIAS SHIFT SCALE CONSTANT ANY")
EngineCapability = _numbered("EngineCapability", "STANDARD SAFETY DLA_STANDALONE")
NetworkDefinitionCreationFlag = _numbered(
    "NetworkDefinitionCreationFlag", "STRONGLY_TYPED PREFER_JIT_PYTHON_PLUGINS PREFER_AOT_PYTHON_PLUGINS"
)
BuilderFlag = _numbered(
    "BuilderFlag",
    "DEBUG=2 GPU_FALLBACK REFIT DISABLE_TIMING_CACHE TF32 SPARSE_WEIGHTS VERSION_COMPATIBLE=12 EXCLUDE_LEAN_RUNTIME "
    "ERROR_ON_TIMING_CACHE_MISS=15 DISABLE_COMPILATION_CACHE=17 STRIP_PLAN REFIT_IDENTICAL WEIGHT_STREAMING "
    "REFIT_INDIVIDUAL=22 STRICT_NANS MONITOR_MEMORY EDITABLE_TIMING_CACHE=26 DISTRIBUTIVE_INDEPENDENCE",
)
MemoryPoolType = _numbered(
    "MemoryPoolType", "WORKSPACE DLA_MANAGED_SRAM DLA_LOCAL_DRAM DLA_GLOBAL_DRAM TACTIC_DRAM TACTIC_SHARED_MEMORY"
)
PreviewFeature = _numbered("PreviewFeature", "ALIASED_PLUGIN_IO_10_03 RUNTIME_ACTIVATION_RESIZE_10_10")
HardwareCompatibilityLevel = _numbered("HardwareCompatibilityLevel", "NONE AMPERE_PLUS SAME_COMPUTE_CAPABILITY")
TilingOptimizationLevel = _numbered("TilingOptimizationLevel", "NONE FAST MODERATE FULL")
RuntimePlatform = _numbered("RuntimePlatform", "SAME_AS_BUILD WINDOWS_AMD64")
ProfilingVerbosity = _numbered("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")
SerializationFlag = _numbered("SerializationFlag", "EXCLUDE_WEIGHTS EXCLUDE_LEAN_RUNTIME INCLUDE_REFIT")
ExecutionContextAllocationStrategy = _numbered(
    "ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED"
)
LayerInformationFormat = _numbered("LayerInformationFormat", "ONELINE JSON")
EngineStat = _numbered("EngineStat", "TOTAL_WEIGHTS_SIZE STRIPPED_WEIGHTS_SIZE")
TacticSource = _numbered("TacticSource", "EDGE_MASK_CONVOLUTIONS JIT_CONVOLUTIONS")
Severity = _numbered("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
ErrorCode = _numbered(
    "ErrorCode",
    "SUCCESS UNSPECIFIED_ERROR INTERNAL_ERROR INVALID_ARGUMENT INVALID_CONFIG FAILED_ALLOCATION FAILED_INITIALIZATION "
    "FAILED_EXECUTION FAILED_COMPUTATION INVALID_STATE UNSUPPORTED_STATE",
)
PluginFieldType = _numbered(
    "PluginFieldType", "FLOAT16 FLOAT32 FLOAT64 INT8 INT16 INT32 CHAR DIMS UNKNOWN BF16 INT64 FP8 INT4 FP4"
)
TensorRTPhase = _numbered("TensorRTPhase", "BUILD RUNTIME")
