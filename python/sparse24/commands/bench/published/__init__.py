"""Figures of others, to stand beside a machine's own: never measured here, each with its source."""

from __future__ import annotations

from typing import NamedTuple

#: The talk; its figures of speed are an A100's.
TALK = "Accelerating Sparsity in the NVIDIA Ampere Architecture (2020)"
#: 4,184 products, cuSPARSELt 0.8.1 and cuBLASLt, the best algorithm of a search each.
KERNELS = "slidesparse, benchmark_kernel (github.com/bcacdwk/vllmbench), cuSPARSELt 0.8.1"


class Ratios(NamedTuple):
    """Dense over sparse time of products, over all their shapes."""

    least: float
    median: float
    most: float


TOKENS = (64, 256, 512, 1024, 2048, 4096, 16384)


def _of(*texts: str) -> dict[int, Ratios]:
    parts = (Ratios(*map(float, part.split())) for text in texts for part in text.split(","))
    return dict(zip(TOKENS, parts, strict=True))


#: Least, median and largest ratio over the shapes, by card and dtype, then by tokens.
CARDS = {
    "A100 bf16": _of(
        ".76 1.34 1.85, .83 1.39 1.51, .90 1.37 1.70, 1.19 1.44 1.83",
        "1.18 1.60 1.88, 1.18 1.63 1.81, 1.17 1.60 1.68",
    ),
    "A100 int8": _of(
        ".96 1.14 1.89, 1.05 1.45 2.23, 1.05 1.65 2.30, 1.18 1.84 2.25",
        "1.42 1.93 2.41, 1.67 2.03 2.27, 1.81 2.05 2.18",
    ),
    "H100 PCIe bf16": _of(
        ".43 .93 1.36, .67 1.03 1.57, .60 1.22 1.56, .75 1.39 1.99",
        ".97 1.52 1.71, 1.18 1.60 1.89, 1.36 1.57 1.74",
    ),
    "H100 PCIe fp8": _of(
        ".78 1.09 2.07, .81 .95 1.44, .78 1.14 1.73, .73 1.29 1.75",
        "1.07 1.40 1.97, 1.07 1.48 1.94, 1.32 1.62 1.89",
    ),
    "H100 PCIe int8": _of(
        ".87 1.67 3.36, .93 1.68 3.27, .96 1.51 2.07, 1.17 1.38 1.73",
        "1.20 1.48 2.41, 1.15 1.36 2.78, 1.18 1.35 2.93",
    ),
    "B200 bf16": _of(
        ".77 1.25 2.00, .89 1.24 1.77, .89 1.19 1.69, .83 1.38 1.85",
        "1.08 1.48 1.82, 1.26 1.55 1.83, 1.45 1.70 1.88",
    ),
    "RTX 4090 bf16": _of(
        ".99 1.33 3.98, 1.03 1.63 2.10, 1.14 1.62 2.02, 1.20 1.68 1.94",
        "1.18 1.81 2.01, 1.16 1.86 2.19, 1.16 1.92 2.13",
    ),
    "RTX 5080 bf16": _of(
        ".52 1.56 6.29, .66 1.84 2.29, 1.32 1.86 2.23, 1.58 1.89 2.01",
        "1.58 1.89 1.94, 1.58 1.88 1.93, 1.53 1.88 1.95",
    ),
    "GB10 bf16": _of(
        ".73 2.07 6.34, .85 1.31 3.38, .59 1.21 1.78, .50 1.06 1.53",
        ".50 1.02 1.66, .49 .93 1.68, .47 .80 1.53",
    ),
}


class Network(NamedTuple):
    """A network's speed as the talk has it, on an A100."""

    key: str  #: of the network here
    dtype: str
    gain: str
    scenario: str
    throughput: str


NETWORKS = (
    Network(
        "bert-large", "int8", "1.3 to 1.5", "batch 1 to 256, sequence 128", "6200 sequences/s at batch 256"
    ),
    Network("resnext-101", "fp16", "up to 1.3", "batch 1 to 256", "2700 images/s at batch 256"),
    Network("resnext-101", "int8", "up to 1.3", "batch 1 to 256", "4400 images/s at batch 256"),
)
