"""A fuzzer of mask reading: random mask programs, checked against the tensors they make.

`python -m attnfuzz` (with tests/fuzz on PYTHONPATH; `make fuzz`) runs it at length, tests/fuzz/test_*.py a sample.
"""
