"""``backend``: what runs the products of a device, or why nothing does."""

from __future__ import annotations

import pytest
import torch

import sparse24
from sparse24 import ops


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cpu:0"])
def test_backend_of_the_cpu_is_its_isa(device: torch.device | str) -> None:
    assert sparse24.backend(device) == ops.cpu_isa()
    assert sparse24.backend() == ops.cpu_isa()


def test_other_devices_have_no_backend() -> None:
    with pytest.raises(sparse24.Error, match=r"meta has no sparse kernels; .*dense path through torch"):
        sparse24.backend("meta")
    assert issubclass(sparse24.Error, RuntimeError)


def test_backend_refuses_what_is_no_device() -> None:
    with pytest.raises(ValueError, match="'gpu' is not a device"):
        sparse24.backend("gpu")
    with pytest.raises(TypeError, match="not int"):
        sparse24.backend(0)  # type: ignore[arg-type]
