"""What every test is held to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def modes_left_as_found() -> Iterator[None]:
    """Names the test that leaves a mode of the process set, which would fail others later, in another file."""
    yield
    left = {
        "no gradients": not torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        f"{torch.get_default_dtype()} as the default dtype": torch.get_default_dtype() is not torch.float32,
    }
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)
    if found := [name for name, is_set in left.items() if is_set]:
        pytest.fail(f"left for the tests after it: {', '.join(found)}")
