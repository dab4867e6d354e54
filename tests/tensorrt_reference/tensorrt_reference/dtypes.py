"""TensorRT data types as torch dtypes."""

from __future__ import annotations

import torch

from .enums import DataType

_TORCH = {
    DataType.FLOAT: torch.float32,
    DataType.HALF: torch.float16,
    DataType.BF16: torch.bfloat16,
    DataType.INT8: torch.int8,
    DataType.INT32: torch.int32,
    DataType.INT64: torch.int64,
    DataType.BOOL: torch.bool,
    DataType.UINT8: torch.uint8,
    DataType.FP8: torch.float8_e4m3fn,
}
_DATATYPE = {torch_type: datatype for datatype, torch_type in _TORCH.items()}

FLOATING = (DataType.FLOAT, DataType.HALF, DataType.BF16)
INTEGER = (DataType.INT32, DataType.INT64)


def torch_dtype(datatype: DataType) -> torch.dtype:
    """The torch dtype that evaluates `datatype`; NotImplementedError for FP4, INT4 and E8M0."""
    if datatype not in _TORCH:
        raise NotImplementedError(f"the reference TensorRT does not evaluate {datatype}")
    return _TORCH[datatype]


def datatype_of_torch(dtype: torch.dtype) -> DataType:
    """The TensorRT data type of a torch dtype; NotImplementedError for float64 and the like."""
    if dtype not in _DATATYPE:
        raise NotImplementedError(f"TensorRT has no data type for {dtype}")
    return _DATATYPE[dtype]
