"""The best dense that can be had: what it computes, and where it stays what it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reference import assert_matches
from sparse24.commands.bench import rivals

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_prepacked_rival_computes_the_same(dtype: torch.dtype) -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, 2, 1, groups=2), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=False), nn.Flatten(),
        nn.Linear(8 * 4 * 4, 32), nn.Linear(32, 8, bias=False),
    ).to(dtype).eval()  # fmt: skip
    x = torch.randn(2, 8, 8, 8).to(dtype)
    packed = rivals.prepacked(model, ((x,), {}))
    kinds = [type(layer) for layer in packed]
    assert type(model[0]) is nn.Conv2d
    with torch.no_grad():
        assert_matches(packed(x), model(x).double())
    if dtype == torch.float32:
        assert kinds[0] is rivals.PackedConv2d
        assert kinds[4] is rivals.PackedLinear


def test_a_layer_that_is_called_with_several_shapes_is_not_packed() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + self.layer(x[:1])

    packed = rivals.prepacked(Twice(), ((torch.ones(3, 8),), {}))
    assert type(packed.layer) is nn.Linear


def test_openvino_where_it_is_installed() -> None:
    if not rivals.has_openvino():
        pytest.skip("openvino is not installed: it is an optional rival of the benchmark")
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    inputs = (torch.randn(4, 64),)
    with torch.no_grad():
        (found,) = rivals.openvino_call(model, inputs, 1, torch.float32)().values()  # type: ignore[attr-defined]
        assert_matches(torch.from_numpy(found), model(*inputs).double())
