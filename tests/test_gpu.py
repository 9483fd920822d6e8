"""Around the CUDA operators: the compiled kernels' arguments, the search, the explanations.

Passing here is not validation on a GPU.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sparse24
from emulated import EmulatedStream, Emulator, compressed, randn, sparse_weight
from reference import ACTIVATIONS, assert_matches, linear_reference
from sparse24 import SparseConv2d, SparseLinear, masks, ops
from sparse24.choose import gpu
from sparse24.ops.cuda import cusparselt, device_kernels, route, tuned
from sparse24.ops.cuda import operators as cuda_ops
from sparse24.ops.cuda import products as cuda
from sparse24.ops.cuda.cusparselt import GPU

HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32
A100 = GPU(80, 108, 801)


# ---- the compiled CUDA kernels, as far as a machine without a GPU shows them -------------------------


class KernelsOnCpu:
    """The functions of ``_CUDA`` on CPU memory, by the kernels that the CUDA bodies are tested against."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.called.append(name)
        return getattr(self, f"on_{name}")

    @staticmethod
    def on_mask24(weight: int, dtype: int, rows: int, cols: int, mask: int, stream: int) -> None:
        cuda._C.nm_mask(weight, dtype, rows, cols, 1, 2, 4, mask, 1)

    @staticmethod
    def on_prune24(weight: int, dtype: int, rows: int, cols: int, mask: int, stream: int) -> None:
        cuda._C.nm_prune(weight, dtype, rows, cols, 1, 2, 4, mask, 1)

    @staticmethod
    def on_transposable_mask(weight: int, dtype: int, rows: int, cols: int, mask: int, stream: int) -> None:
        cuda._C.transposable_mask(weight, dtype, rows, cols, mask, 1)

    @staticmethod
    def on_compress(
        dense: int, dtype: int, rows: int, cols: int, stride: int, values: int, indices: int, crowded: int,
        stream: int,
    ) -> None:  # fmt: skip
        assert stride == cols
        try:
            cuda._C.compress(dense, dtype, rows, cols, values, indices)
        except ValueError:  # the kernel leaves row * groups + group: here the test's only crowded group
            ctypes.c_int64.from_address(crowded).value = 3

    @staticmethod
    def on_expand(
        values: int, indices: int, dtype: int, rows: int, padded: int, dense: int, dense_rows: int,
        dense_cols: int, stream: int,
    ) -> None:  # fmt: skip
        assert (dense_rows, dense_cols) == (rows, padded)
        cuda._C.expand(values, indices, dtype, rows, padded, dense)

    @staticmethod
    def on_quantize_per_token(
        x: int, dtype: int, n: int, k: int, stride: int, out: int, padded: int, scale: int, stream: int
    ) -> None:
        assert (dtype, padded) == (0, k)
        rows = [(ctypes.c_float * k).from_address(x + 4 * stride * row) for row in range(n)]
        quantized, scales = device_kernels.quantize_per_token(torch.tensor([list(row) for row in rows]), -1)
        ctypes.memmove(out, quantized.data_ptr(), n * k)
        ctypes.memmove(scale, scales.data_ptr(), 4 * n)

    @staticmethod
    def on_im2col(
        x: int, matrix: int, size: int, image: Any, channels: Any, window: Any, k: int, ld: int, tokens: Any,
        stream: int,
    ) -> None:  # fmt: skip
        assert (size, k, tokens[0]) == (2, ld, 0)
        batch, height, width, all_channels = image
        pixels = (ctypes.c_uint16 * (batch * height * width * all_channels)).from_address(x)
        whole = torch.tensor(list(pixels), dtype=torch.int32).to(torch.int16).view(HALF).view(image)
        sizes = tuple(
            (image[1 + i] + 2 * window[4 + i] - window[6 + i] * (window[i] - 1) - 1) // window[2 + i] + 1
            for i in range(2)
        )
        rows = device_kernels.im2col(
            whole, *channels, window[:2], window[2:4], window[4:6], window[6:], sizes, k, -1
        )
        assert rows.shape == (tokens[1], ld)
        ctypes.memmove(matrix, rows.data_ptr(), rows.numel() * 2)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> KernelsOnCpu:
    """``_CUDA`` as if it were built and every stream but -1 on a GPU."""
    found = KernelsOnCpu()
    monkeypatch.setattr(device_kernels, "BUILT", True)
    monkeypatch.setattr(device_kernels, "_CUDA", found, raising=False)
    return found


@pytest.mark.parametrize("dtype", [HALF, BF16, FLOAT])
def test_masks_of_cuda_weights_come_from_the_kernels(dtype: torch.dtype, kernels: KernelsOnCpu) -> None:
    stream = EmulatedStream()
    weight = randn(3, 8, 40, dtype=dtype)
    expected = torch.ops.sparse24.nm_mask(weight, 2, 4, -1)
    assert torch.equal(cuda_ops.KERNELS["nm_mask"](weight, 2, 4, 2, stream=stream), expected)
    pruned = weight.clone()
    version = pruned._version
    assert torch.equal(cuda_ops.KERNELS["prune_"](pruned, 2, 4, -1, stream=stream), expected)
    assert torch.equal(pruned, weight.masked_fill(~expected, 0))
    assert pruned._version > version
    tiles = torch.ops.sparse24.transposable_mask(weight[0])
    assert torch.equal(cuda_ops.KERNELS["transposable_mask"](weight[0], stream=stream), tiles)
    assert kernels.called == ["mask24", "prune24", "transposable_mask"]


def test_other_patterns_and_layouts_are_left_to_torch(kernels: KernelsOnCpu) -> None:
    stream, weight = EmulatedStream(), randn(8, 40)
    run = cuda_ops.KERNELS["nm_mask"]
    for n, m, dim in ((1, 4, -1), (2, 4, 0)):
        assert torch.equal(run(weight, n, m, dim, stream=stream), ops.nm_mask_torch(weight, n, m, dim))
    turned = weight.t()
    assert torch.equal(run(turned, 2, 4, 1, stream=stream), ops.nm_mask_torch(turned, 2, 4, 1))
    pruned = turned.clone(memory_format=torch.preserve_format)
    mask = cuda_ops.KERNELS["prune_"](pruned, 2, 4, 1, stream=stream)
    assert torch.equal(pruned != 0, mask)
    double = weight[:, :8].double()
    tiles = cuda_ops.KERNELS["transposable_mask"](double, stream=stream)
    assert torch.equal(tiles, ops.transposable_mask_torch(double))
    assert kernels.called == []


def test_cuda_weights_are_compressed_by_the_kernel(kernels: KernelsOnCpu) -> None:
    stream, weight = EmulatedStream(), sparse_weight(6, 20, HALF).view(2, 3, 20)
    values, indices = cuda_ops.KERNELS["compress"](weight, stream=stream)
    expected = torch.ops.sparse24.compress(weight)
    assert torch.equal(values, expected[0])
    assert torch.equal(indices, expected[1])
    crowded = torch.zeros(2, 8, dtype=HALF)
    crowded[1, 4:7] = 1
    with pytest.raises(ValueError, match=r"not 2:4: row 1, group 1 \(columns 4 to 7\) holds more than two"):
        cuda_ops.KERNELS["compress"](crowded, stream=stream)
    assert set(kernels.called) == {"compress"}


def test_expanding_quantizing_and_patches_by_the_kernels(
    kernels: KernelsOnCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = sparse_weight(6, 24, HALF)
    values, indices = compressed(weight)
    x, image = randn(5, 33, dtype=FLOAT), randn(2, 7, 6, 8)
    patches = (image, 2, 5, (3, 2), (2, 1), (1, 0), (1, 2), (4, 4), 48)
    without = (
        device_kernels.expand(values, indices, 6, 24, 0),
        *device_kernels.quantize_per_token(x, 0),
        device_kernels.im2col(*patches, 0),
    )
    inside = []

    def usable(tensor: Tensor) -> bool:  # the stand-ins call the torch versions in their turn
        inside.append(tensor)
        return len(inside) in (1, 2, 4)

    monkeypatch.setattr(device_kernels, "_usable", usable)
    by_kernels = (
        device_kernels.expand(values, indices, 6, 24, 0),
        *device_kernels.quantize_per_token(x, 0),
        device_kernels.im2col(*patches, 0),
    )
    for one, other in zip(by_kernels, without, strict=True):
        assert torch.equal(one, other)
    assert kernels.called == ["expand", "quantize_per_token", "im2col"]


# ---- the library, in processes of their own: it is opened once in each --------------------------------


def opening(prelude: str = "", **environment: str) -> str:
    code = f"""
from sparse24.ops.cuda import cusparselt
{prelude}
print(cusparselt.library(), cusparselt.why_unavailable(0))"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout + ran.stderr


def test_which_libraries_are_opened_and_which_refused(library: Emulator, tmp_path: Path) -> None:
    here = str(library.library)
    emulated = {"SPARSE24_CUSPARSELT": here, "SPARSE24_CUDART": here}
    assert f"Library(version=801, path={here!r}, cudart_path={here!r}, caveat='')" in opening(**emulated)
    old = opening(**emulated, SPARSE24_EMULATOR_VERSION="701")
    assert "version=701" in old
    assert "0.8.1 or newer is recommended: 0.7.1 leaks algorithm selections" in old
    assert "0.4.0" in opening(**emulated, SPARSE24_EMULATOR_VERSION="400")
    assert "is too old: sparse24 needs 0.6.3" in opening(**emulated, SPARSE24_EMULATOR_VERSION="400")
    assert "no NVIDIA driver is loaded" in opening(**emulated, SPARSE24_EMULATOR_DRIVER="0")
    assert "is sm_75: sparse tensor cores begin" in opening(**emulated, SPARSE24_EMULATOR_SM="75")
    missing = opening(SPARSE24_CUSPARSELT=str(tmp_path / "none.so"), SPARSE24_CUDART=here)
    assert f"cuSPARSELt cannot be opened: SPARSE24_CUSPARSELT={tmp_path}/none.so" in missing
    foreign = str(next(path for path in _loaded_libraries() if "libstdc++" in path))
    assert "has no function cusparseLtInit" in opening(SPARSE24_CUSPARSELT=foreign, SPARSE24_CUDART=here)
    assert "has no function cudaGetErrorString" in opening(SPARSE24_CUSPARSELT=here, SPARSE24_CUDART=foreign)


def _loaded_libraries() -> list[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6]


def test_wheels_are_found_without_a_variable(library: Emulator, tmp_path: Path) -> None:
    """In the folders where NVIDIA's wheels put them; what fails is listed with its reason."""
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcudart.so.13").symlink_to(library.library)
    none = {"SPARSE24_CUSPARSELT": "", "SPARSE24_CUDART": ""}
    alone = f"import site, sys; site.getsitepackages = list; sys.path[:] = [{str(tmp_path)!r}]"
    lost = opening(alone, **none)
    assert "cuSPARSELt was not found; install a wheel" in lost
    assert "libcusparseLt.so.0: cannot open shared object file" in lost
    (folder / "libcusparseLt.so.0").symlink_to(library.library)
    assert f"path={str(folder / 'libcusparseLt.so.0')!r}" in opening(alone, **none)


# ---- search -----------------------------------------------------------------------------------------


def run_tuning(layer: torch.nn.Module, tokens: tuple[int, ...] = (16, 100), **options: Any) -> gpu.Tuning:
    given = {"launches": 2, "by_library": False, "again": False, **options}
    seconds, progress = given.pop("seconds", 60.0), given.pop("progress", lambda line: None)
    run = gpu.TuningRun(EmulatedStream(), **given)
    return run.run([layer for _, layer in gpu._layers(layer)], tokens, seconds, progress)


def model_to_tune() -> torch.nn.Sequential:
    conv = torch.nn.Conv2d(16, 32, 3, dtype=HALF)
    masks.prune_(conv.weight.data)
    return torch.nn.Sequential(
        SparseLinear.from_weight(sparse_weight(288, 64, HALF)),
        SparseLinear.from_weight(sparse_weight(288, 64, HALF, seed=9)),  # the same product
        SparseConv2d.from_dense(conv),
    )


def test_tuning_measures_every_product_and_remembers(emulator: Emulator, stream: EmulatedStream) -> None:
    model, lines = model_to_tune(), []
    before = torch.get_rng_state()
    rows = run_tuning(model, progress=lines.append)
    assert [(row.m, row.k, row.tokens) for row in rows] == [
        (288, 64, 16), (288, 64, 100), (32, 144, 16), (32, 144, 100)
    ]  # fmt: skip
    assert all(row.measured is not None and row.trials == 20 and row.wrong == 0 for row in rows)
    assert len(lines) == 4
    assert "288 x 64" in str(rows)
    assert torch.equal(torch.get_rng_state(), before)
    stored = json.loads(tuned.path().read_text())
    (figures,) = stored["gpus"].values()
    assert sorted(figures) == [
        "float16 float16 288 64 128", "float16 float16 288 64 16",
        "float16 float16 32 144 128", "float16 float16 32 144 16",
    ]  # fmt: skip
    # Another process reads the figures at its first call.
    route.measured.clear()
    cuda.forget()
    weight = sparse_weight(288, 64, HALF)
    output = cuda.linear(randn(100, 64), *compressed(weight), None, "none", stream)
    assert_matches(output, linear_reference(randn(100, 64), weight))
    assert len(route.measured) == 4


def test_tuning_goes_on_where_it_was_interrupted(emulator: Emulator) -> None:
    model = model_to_tune()

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tuning(model, progress=interrupt)
    assert len(route.measured) == 1
    rows = run_tuning(model)
    assert [row.remark for row in rows] == ["measured before", "", "", ""]
    assert [row.remark for row in run_tuning(model, seconds=0)] == ["measured before"] * 4
    assert [row.remark for row in run_tuning(model, seconds=0, again=True)] == ["the budget is spent"] * 4


def test_the_librarys_own_search(emulator: Emulator) -> None:
    emulator.set_search_winner(3)
    (row,) = run_tuning(model_to_tune()[0], tokens=(16,), by_library=True)
    assert row.trials == 2  # the default and the library's choice
    assert row.measured is not None
    assert row.measured.algorithm.id in (0, 3)
    emulator.set_search_winner(-1)


def test_tuning_says_what_cannot_run(emulator: Emulator) -> None:
    (row,) = run_tuning(SparseLinear.from_weight(sparse_weight(32, 64, FLOAT)), tokens=(16,))
    assert row.measured is None
    assert "float32 runs as TF32" in row.remark


@pytest.mark.parametrize("text", ["{", '{"format": 7, "gpus": {}}', "[]", '{"format": 1, "gpus": 3}'])
def test_a_damaged_file_of_figures_is_told_and_not_used(text: str, emulator: Emulator) -> None:
    tuned.path().parent.mkdir()
    tuned.path().write_text(text)
    with pytest.warns(UserWarning, match="delete it and tune again"):
        assert tuned.load(0, cusparselt.gpu(0)) == 0


def test_figures_of_another_library_are_not_used(emulator: Emulator) -> None:
    run_tuning(model_to_tune()[0], tokens=(16,))
    assert tuned.load(0, cusparselt.gpu(0)) == 1
    assert tuned.load(0, cusparselt.gpu(0)._replace(version=1000)) == 0


def test_tune_refuses() -> None:
    with pytest.raises(ValueError, match="has no SparseLinear or SparseConv2d"):
        sparse24.tune(torch.nn.Linear(4, 4))
    layer = SparseLinear(8, 8)
    with pytest.raises(ValueError, match="must be positive"):
        sparse24.tune(layer, tokens=(0,))
    with pytest.raises(ValueError, match="must be positive"):
        sparse24.tune(layer, launches=0)
    with pytest.raises(sparse24.Error, match="the model is on cpu"):
        sparse24.tune(layer)


# ---- explanations -----------------------------------------------------------------------------------


def test_explain_on_a_cpu() -> None:
    assert sparse24.explain(SparseLinear(8, 8), (3, 8)) == f"sparse: CPU kernels for {ops.cpu_isa()}"
    assert "meta has no sparse kernels" in sparse24.explain(SparseLinear(8, 8, device="meta"), (3, 8))
    with pytest.raises(TypeError, match="not Linear"):
        sparse24.explain(torch.nn.Linear(8, 8), (3, 8))  # type: ignore[arg-type]


def test_explanations_name_what_a_call_does_besides_the_product() -> None:
    layer = SparseLinear(50, 40, dtype=HALF, activation="gelu")
    said = gpu.describe_route(layer, (3, 43, 50), A100, True)
    assert said.startswith("sparse: cuSPARSELt 0.8.1, algorithm 0; ")
    for part in (
        "gelu after the product, in torch",
        "output of 40 rows computed as 48",
        "input of 50 columns padded to 64",
        "129 tokens are no multiple of 8: the last 8 in a second launch",
    ):
        assert part in said
    assert "through a weight expanded for the call: 1 tokens" in gpu.describe_route(layer, (50,), A100, True)
    sparse24.keep_dense(layer)
    said = gpu.describe_route(layer, (2, 50), A100, True)
    assert said == "dense, through a kept copy: 2 tokens are fewer than 8: a sparse product was seen to lose"
    sparse24.keep_dense(layer, keep=False)
    with pytest.raises(ValueError, match=r"input must be \[..., 50\], not \(3, 51\)"):
        gpu.describe_route(layer, (3, 51), A100, True)


def test_explanations_of_convolutions() -> None:
    layer = SparseConv2d(16, 32, 3, padding=1, dtype=HALF)
    assert gpu.describe_route(layer, (2, 16, 8, 8), A100, True) == "sparse: cuSPARSELt 0.8.1, algorithm 0"
    assert "input and output are copied" in gpu.describe_route(layer, (2, 16, 8, 8), A100, False)
    grouped = SparseConv2d(16, 24, 3, groups=2, dtype=HALF)
    assert "no legal size; nearest: 16" in gpu.describe_route(grouped, (2, 16, 8, 8), A100, True)
    with pytest.raises(ValueError, match=r"input must be \[N, 16, H, W\]"):
        gpu.describe_route(layer, (2, 15, 8, 8), A100, True)


def test_activations_of_the_reference_are_those_of_the_operators() -> None:
    assert tuple(ACTIVATIONS) == ops.ACTIVATIONS
