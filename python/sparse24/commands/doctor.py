"""What runs on this machine, with what, and does it compute right: ``sparse24 doctor``."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..masks import prune_
from ..ops import Error, machine
from ..ops.backend import backend, why_no_cuda
from ..ops.cuda import cusparselt, device_kernels
from ..report import format_table

#: Largest error of the self-test over the largest magnitude of the float64 result: float32 sums of
#: some thousand products, as in the tests' table of tolerances.
TOLERANCE = 2e-6

_SELF_TEST_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class SelfTest:
    """One product against float64."""

    name: str
    error: float  #: largest difference over the largest magnitude of the reference
    passed: bool


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found; ``str()`` of it is what ``sparse24 doctor`` prints."""

    sparse24: str
    python: str
    torch: str
    machine: str  #: operating system and architecture
    cpu: str
    microarchitecture: str  #: with its caches
    isa: str | None  #: the kernels in use; None: SPARSE24_CPU_ISA names some that cannot run
    isa_problem: str
    isas_that_run: tuple[str, ...]  #: best first
    isas_that_do_not: tuple[str, ...]  #: with the reason
    amx: str  #: whether AMX can be used, or why not
    tuning: str  #: the kernels' constants, and where they are from
    isa_wish: str | None  #: SPARSE24_CPU_ISA
    cores: int  #: that this process may use
    threads: int  #: of torch, which the kernels use too
    openmp: tuple[str, ...]  #: OpenMP runtimes in this process; more than one: two pools of threads
    cuda_available: bool  #: to torch
    cuda: str  #: what becomes of CUDA tensors, and why
    cusparselt: str  #: version and place of the library, or what was tried
    cuda_kernels: str  #: whether the small kernels of csrc/cuda are built in
    self_tests: tuple[SelfTest, ...]

    @property
    def healthy(self) -> bool:
        """Whether the kernels run and every self-test passed."""
        return self.isa is not None and all(test.passed for test in self.self_tests)

    def __str__(self) -> str:
        wish = "not set" if self.isa_wish is None else f"SPARSE24_CPU_ISA={self.isa_wish}"
        if len(self.openmp) == 1:
            openmp = f"one runtime, shared with torch: {self.openmp[0]}"
        else:
            openmp = f"{len(self.openmp)} runtimes, which compete for the cores: {', '.join(self.openmp)}"
        facts = [
            ("what", "found"),
            ("sparse24", self.sparse24),
            ("python", self.python),
            ("torch", self.torch),
            ("machine", self.machine),
            ("cpu", self.cpu),
            ("", self.microarchitecture),
            ("kernels", self.isa or f"NONE: {self.isa_problem}"),
            ("could run", f"{', '.join(self.isas_that_run)} (SPARSE24_CPU_ISA chooses: {wish})"),
            *(("could not", each) for each in self.isas_that_do_not),
            ("amx", self.amx),
            ("constants", self.tuning),
            ("threads", f"{self.threads} of torch, {self.cores} cores; torch.set_num_threads sets them"),
            ("openmp", openmp),
            ("cuda", self.cuda),
            ("cusparselt", self.cusparselt),
            ("cuda kernels", self.cuda_kernels),
        ]
        facts += [
            (test.name, f"{'ok' if test.passed else 'FAILED'}, error {test.error:.1e} of {TOLERANCE:.0e}")
            for test in self.self_tests
        ]
        verdict = "all is well" if self.healthy else "NOT HEALTHY: do not trust the results of sparse layers"
        return f"{format_table(facts)}\n{verdict}"


def diagnose(seconds: float = _SELF_TEST_SECONDS) -> Diagnosis:
    """Look at versions, kernels, threads and CUDA, and test the products for ``seconds`` (at least once).

    Changes nothing: no flags, no random state.
    """
    from .. import __version__  # noqa: PLC0415  the package imports this module

    isa, isa_problem = _chosen_isa()
    return Diagnosis(
        sparse24=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        machine=f"{platform.system()} {platform.machine()}",
        cpu=machine.cpu_name(),
        microarchitecture=_about_cpu(),
        isa=isa,
        isa_problem=isa_problem,
        isas_that_run=tuple(name for name, problem in machine.isas() if not problem),
        isas_that_do_not=tuple(f"{name}: {problem}" for name, problem in machine.isas() if problem),
        amx=machine.amx_problem() or "permitted; no kernels for it in this version",
        tuning=_about_tuning() if isa is not None else "none",
        isa_wish=os.environ.get("SPARSE24_CPU_ISA"),
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        openmp=openmp_runtimes(Path("/proc/self/maps").read_text()),
        cuda_available=torch.cuda.is_available(),
        cuda=_about_cuda(),
        cusparselt=_about_cusparselt(),
        cuda_kernels=_about_cuda_kernels(),
        self_tests=_self_tests(seconds) if isa is not None else (),
    )


def _about_cpu() -> str:
    found = machine.machine()
    caches = [f"L{n} {found[f'l{n}_bytes'] >> 10:,} KB" for n in (1, 2, 3) if found[f"l{n}_bytes"]]
    name = f"{found['vendor']} {found['microarchitecture'] or 'unknown'}"
    return f"{name}, family {found['family']}, model {found['model']}; {', '.join(caches)}"


def _about_tuning() -> str:
    constants = machine.tuning()
    row = constants.pop("row")
    return f"{row}: {', '.join(f'{name} {value}' for name, value in constants.items())}"


def _chosen_isa() -> tuple[str | None, str]:
    try:
        return ops.cpu_isa(), ""
    except ValueError as error:
        return None, str(error)


def openmp_runtimes(maps: str) -> tuple[str, ...]:
    """The distinct OpenMP libraries (GNU, LLVM, Intel) in the text of ``/proc/<pid>/maps``."""
    names = ("libgomp", "libomp", "libiomp5")
    paths = (line.split(maxsplit=5)[5] for line in maps.splitlines() if len(line.split(maxsplit=5)) == 6)
    return tuple(sorted({path for path in paths if Path(path).name.split("-")[0].split(".")[0] in names}))


def _about_cuda() -> str:
    """What becomes of tensors on each CUDA device, and why."""
    if not torch.cuda.is_available():
        return f"dense path through torch: {why_no_cuda(torch.device('cuda'))}"
    devices = []
    for index in range(torch.cuda.device_count()):
        problem = _on_one_line(why_no_cuda(torch.device("cuda", index)))
        how = f"dense path through torch: {problem}" if problem else backend(f"cuda:{index}")
        devices.append(f"{index}: {torch.cuda.get_device_name(index)}: {how}")
    return "; ".join(devices)


def _about_cusparselt() -> str:
    """The library that CUDA products would use, whether or not there is a device."""
    try:
        found, driver = cusparselt.library(), cusparselt.driver()
    except Error as error:
        return _on_one_line(str(error))
    facts = [f"{cusparselt.version_text(found.version)} ({found.path})", f"runtime {found.cudart_path}"]
    facts += [text for text in (found.caveat, driver.problem) if text]
    return "; ".join(facts)


def _about_cuda_kernels() -> str:
    """Whether they are built, and on which devices they run."""
    if not device_kernels.BUILT:
        return "not built (no nvcc was found): torch does their work"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    problems = {index: device_kernels.why_unusable(index) for index in range(count)}
    told = [f"torch does their work on device {index}: {why}" for index, why in problems.items() if why]
    return _on_one_line("; ".join(["built", *told]))


def _on_one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines())


# ---- self-test --------------------------------------------------------------------------------------


def _self_tests(seconds: float) -> tuple[SelfTest, ...]:
    """Both products on odd and even shapes in turn; of each the largest error seen."""
    generator = torch.Generator().manual_seed(24)
    worst = {"linear": 0.0, "conv2d": 0.0}
    end = time.perf_counter() + seconds
    done = False
    while not done:
        for tokens, rows, columns in ((1, 512, 1024), (5, 67, 93), (130, 256, 512)):
            worst["linear"] = max(worst["linear"], _linear_error(tokens, rows, columns, generator))
        for channels, size, layout in ((64, 14, torch.contiguous_format), (30, 9, torch.channels_last)):
            worst["conv2d"] = max(worst["conv2d"], _conv2d_error(channels, size, layout, generator))
        done = time.perf_counter() >= end
    return tuple(SelfTest(name, error, error <= TOLERANCE) for name, error in worst.items())


def _linear_error(tokens: int, rows: int, columns: int, generator: torch.Generator) -> float:
    input = torch.randn(tokens, columns, generator=generator)
    weight = torch.randn(rows, columns, generator=generator)
    bias = torch.randn(rows, generator=generator)
    prune_(weight)
    values, indices = torch.ops.sparse24.compress(weight)
    output = torch.ops.sparse24.linear(input, values, indices, bias)
    return relative_error(output, F.linear(input.double(), weight.double(), bias.double()))


def _conv2d_error(channels: int, size: int, layout: torch.memory_format, generator: torch.Generator) -> float:
    input = torch.randn(2, channels, size, size, generator=generator).contiguous(memory_format=layout)
    weight = torch.randn(40, channels, 3, 3, generator=generator)
    prune_(weight)
    values, indices = torch.ops.sparse24.compress(ops.conv_weight_to_matrix(weight))
    output = torch.ops.sparse24.conv2d(input, values, indices, None, (3, 3), (2, 1), (1, 0))
    return relative_error(output, F.conv2d(input.double(), weight.double(), None, (2, 1), (1, 0)))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude of ``expected``; infinity where one is not finite."""
    actual, expected = actual.double().cpu(), expected.double().cpu()
    error = float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    return error if error == error else float("inf")  # noqa: PLR0124
