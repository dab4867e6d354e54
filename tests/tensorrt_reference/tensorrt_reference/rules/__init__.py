"""Documented rules of TensorRT, one small function each. A breach raises NetworkError, which names the source."""
