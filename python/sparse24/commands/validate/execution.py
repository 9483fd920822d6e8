"""CUDA graphs, threads, streams, several GPUs, the forms of a weight, torch.compile and torch.export."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import SparseConv2d, SparseLinear, masks
from ...choose import prepare
from ...ops.cuda import operators as cuda_ops
from ...ops.cuda.cusparselt import HostStream
from ..doctor import relative_error
from .ground import Ground
from .products import TOLERANCE, sparse_weight

HALF = torch.float16


def run(ground: Ground) -> None:
    """Run them all; on the emulator those that need no device."""
    with ground.attempt("threads"):
        _threads(ground)
    if ground.emulated:
        return
    checks = (
        _graph, _streams, _forms, _compile, _reduced_overhead, _export, _autocast, _autocast_of_float32,
        _operands_apart, _devices, _refused_in_a_capture,
    )  # fmt: skip
    for check in checks:
        if ground.quick and check in (_compile, _reduced_overhead):
            continue  # a compilation takes longer than this part has then
        with ground.attempt(check.__name__.strip("_")):
            check(ground)


class _Net(nn.Module):
    """A convolution and two linear layers, compressed."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        conv = nn.Conv2d(32, 64, 3, padding=1, dtype=HALF, device=ground.device)
        masks.prune_(conv.weight.data)
        self.conv = SparseConv2d.from_dense(conv)
        self.up = SparseLinear.from_weight(sparse_weight(ground, 256, 64, dtype=HALF))
        self.down = SparseLinear.from_weight(sparse_weight(ground, 64, 256, dtype=HALF))

    def forward(self, x: Tensor) -> Tensor:
        pixels = F.relu(self.conv(x)).permute(0, 2, 3, 1)
        down: Tensor = self.down(F.gelu(self.up(pixels)))
        return down


def _input(ground: Ground) -> Tensor:
    return ground.tensor(4, 32, 16, 16, dtype=HALF).contiguous(memory_format=torch.channels_last)


def _threads(ground: Ground) -> None:
    weight, x = sparse_weight(ground, 64, 128, dtype=HALF), ground.tensor(32, 128, dtype=HALF)
    values, indices = torch.ops.sparse24.compress(weight)
    expected = F.linear(x.double(), weight.double())
    errors = [float("inf")] * 4

    def work(i: int) -> None:
        if ground.emulated:
            run_one = cuda_ops.KERNELS["linear"]
            outputs = [run_one(x, values, indices, None, "none", stream=HostStream()) for _ in range(10)]
        else:
            with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
                outputs = [torch.ops.sparse24.linear(x, values, indices) for _ in range(10)]
                torch.cuda.current_stream().synchronize()
        errors[i] = max(relative_error(output, expected) for output in outputs)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(errors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ground.check("four threads, each on its stream", max(errors) <= TOLERANCE[HALF], errors=errors)


def _graph(ground: Ground) -> None:
    net, x = _Net(ground), _input(ground)
    with torch.no_grad():
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            net(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = net(x)
        x.copy_(ground.tensor(*x.shape, dtype=HALF, seed=9))
        graph.replay()
        error = relative_error(output, net(x))
    ground.check("a CUDA graph replays on a new input", error == 0, error=error)


def _refused_in_a_capture(ground: Ground) -> None:
    """The last question: a capture that fails may leave the stream or its pool in a state of its own."""
    unseen = SparseLinear.from_weight(sparse_weight(ground, 128, 64, dtype=HALF))
    x = ground.tensor(16, 64, dtype=HALF)  # before the capture, which may not copy from the host
    refused = ""
    try:
        with torch.no_grad(), torch.cuda.graph(torch.cuda.CUDAGraph()):
            unseen(x)
    except RuntimeError as error:
        refused = str(error)
    ground.check(
        "what is not ready is refused while capturing", "before the capture" in refused, text=refused
    )


def _streams(ground: Ground) -> None:
    """Memory that one stream frees is not given to another that still reads it."""
    weight = sparse_weight(ground, 2048, 2048, dtype=HALF)
    x = ground.tensor(2048, 2048, dtype=HALF)
    expected = F.linear(x.double(), weight.double())
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    worst = 0.0
    for _ in range(5):
        layer = SparseLinear.from_weight(weight)
        layer(x)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            output = layer(x)
        del layer
        torch.randn(4096, 4096, device=ground.device)  # would take the blob's memory
        side.synchronize()
        worst = max(worst, relative_error(output, expected))
    ground.check("a weight that goes while another stream reads it", worst <= TOLERANCE[HALF], error=worst)


def _forms(ground: Ground) -> None:
    """One form of a weight for each way of running, and no old weight: on real memory and real streams."""
    weight, few = sparse_weight(ground, 1024, 2048, dtype=HALF), ground.tensor(1, 2048, dtype=HALF)
    many, layer = ground.tensor(512, 2048, dtype=HALF), SparseLinear.from_weight(weight)
    values, indices = (tensor.clone() for tensor in (layer.values, layer.indices))
    shares = {}
    with torch.no_grad():
        for name, tokens in (("blob", 512), ("canonical form", 1), ("both", (1, 512))):
            (row,) = prepare(layer, tokens=tokens)
            shares[name] = sum(row.bytes or ()) / row.dense_bytes
            allocated = torch.cuda.memory_allocated()
            errors = [relative_error(layer(x), F.linear(x.double(), weight.double())) for x in (many, few)]
            ground.check(f"with the {name} prepared", max(errors) <= TOLERANCE[HALF], errors=errors,
                         allocated=allocated)  # fmt: skip
        small = 0 < shares["blob"] <= 0.65 and 0 < shares["canonical form"] <= 0.65
        ground.check("memory of one form over dense", small, **shares)
        prepare(layer, tokens=512)
        same = torch.equal(layer.values, values) and torch.equal(layer.indices, indices)
        ground.check("what comes back from the host is what was compressed, bit for bit", same)
        worst = 0.0
        for factor in (2, 4):
            layer(many)
            layer.values.data.mul_(2)
            worst = max(worst, relative_error(layer(many), F.linear(many.double(), factor * weight.double())))
        ground.check("a write through .data takes effect", worst <= TOLERANCE[HALF], error=worst)
        prepare(layer, tokens=(1, 512))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = [layer(x) for x in (many, few)]
        layer.values.data.div_(4)
        prepare(layer, tokens=(1, 512))  # into the memory that the graph reads
        graph.replay()
        pairs = zip((many, few), outputs, strict=True)
        worst = max(relative_error(y, F.linear(x.double(), weight.double())) for x, y in pairs)
        ground.check("a graph of prepared layers follows the weight", worst <= TOLERANCE[HALF], error=worst)


def _compile(ground: Ground) -> None:
    net, x = _Net(ground), _input(ground)
    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True)
        error = relative_error(compiled(x), net(x))
    ground.check("torch.compile(fullgraph=True)", error <= 2 * TOLERANCE[HALF], error=error)


def _reduced_overhead(ground: Ground) -> None:
    """torch's own CUDA graphs, which allow nothing to be kept of what is allocated while they warm up."""
    net, x = _Net(ground), _input(ground)
    with torch.no_grad():
        expected = net(x)
        compiled = torch.compile(_Net.forward, mode="reduce-overhead")
        errors = [relative_error(compiled(net, x), expected) for _ in range(4)]
    worst = max(errors)
    ground.check('torch.compile(mode="reduce-overhead")', worst <= 2 * TOLERANCE[HALF], errors=errors)


def _export(ground: Ground) -> None:
    net, x = _Net(ground), _input(ground)
    with torch.no_grad():
        exported = torch.export.export(net, (x,))
        error = relative_error(exported.module()(x), net(x))
    ground.check("torch.export", error == 0, error=error)


def _autocast(ground: Ground) -> None:
    layer = SparseLinear.from_weight(sparse_weight(ground, 64, 128, dtype=HALF))
    x = ground.tensor(32, 128, dtype=torch.float32)
    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        output = layer(x)
    error = relative_error(output, F.linear(x.half().double(), layer.weight.double()))
    good = output.dtype is torch.bfloat16 and error <= TOLERANCE[torch.bfloat16]
    ground.check("autocast to bfloat16", good, error=error)


def _autocast_of_float32(ground: Ground) -> None:
    """A float32 weight is cast once, and runs sparse."""
    weight = sparse_weight(ground, 256, 512, dtype=torch.float32)
    masks.prune_(weight)
    layer, x = SparseLinear.from_weight(weight), ground.tensor(512, 512, dtype=torch.float32)
    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        errors = [relative_error(layer(x), F.linear(x.double(), weight.double())) for _ in range(2)]
    (row,) = prepare(layer, tokens=512)
    ground.check("autocast of a float32 weight", max(errors) <= 2 * TOLERANCE[torch.bfloat16], errors=errors,
                 bytes=row.bytes)  # fmt: skip


def _operands_apart(ground: Ground) -> None:
    """An input on the CPU is refused in torch's words, before an address is used."""
    layer = SparseLinear.from_weight(sparse_weight(ground, 64, 128, dtype=HALF))
    said = ""
    try:
        layer(torch.zeros(16, 128, dtype=HALF))
    except RuntimeError as error:
        said = str(error)
    ground.check("tensors on two devices", "Expected all tensors to be on the same device" in said, text=said)


def _devices(ground: Ground) -> None:
    count = torch.cuda.device_count()
    for index in range(1, count):
        device = torch.device("cuda", index)
        layer = SparseLinear.from_weight(sparse_weight(ground, 64, 128, dtype=HALF)).to(device)
        x = ground.tensor(32, 128, dtype=HALF).to(device)
        error = relative_error(layer(x), F.linear(x.double(), layer.weight.double()))
        ground.check(f"device {index} while device 0 is current", error <= TOLERANCE[HALF], error=error)
    ground.check("devices", True, count=count)
