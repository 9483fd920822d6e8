"""Which way a product on a GPU goes: through cuSPARSELt, or dense, and why.

Rules come first (what the library cannot run), then figures: those measured by ``sparse24.tune`` for this
GPU and library, else :data:`DECODE_TOKENS` and :data:`FEW_TOKENS`. A dense product needs the weight expanded
at every call, unless a dense copy is kept; expanding costs more than a slow sparse product does, so without a
copy only decoding goes dense.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from ... import _C
from ..registry import ACTIVATION_CODES, round_up
from .cusparselt import CODES, GPU, Algorithm, Product, multiples

#: Fewer tokens than this run dense even where the weight has to be expanded for the call. One token was
#: measured nine times slower than dense (pytorch#111339, A100); this is the smallest legal count in 16 bits.
DECODE_TOKENS = 8
#: Fewer tokens than this run dense where a dense copy is kept: published figures are losses up to 512 tokens
#: (0.59x at 64, 0.68x at 512) and gains from 1280 on (1.35x, ao#1460); Ampere gains earlier (pytorch#90119).
FEW_TOKENS = {80: 256, 86: 256}
FEW_TOKENS_ELSEWHERE = 1024
#: Weights with a side below this gain nothing either (pytorch#90119: 768 still gains on Ampere).
SMALL_SIDE = {80: 512, 86: 512}
SMALL_SIDE_ELSEWHERE = 1024

NO_BOUNDS = (0.0, float("inf"))


class Call(NamedTuple):
    """A product y [n, m] = activation(scale * (x [n, k] W^T) + bias), as far as its way depends on it."""

    dtype: torch.dtype
    out_dtype: torch.dtype
    m: int
    n: int
    k: int
    activation: str = "none"
    has_bias: bool = False
    scale_per_row: bool = False
    relu_bounds: tuple[float, float] = NO_BOUNDS  #: ReLU: 0 where v <= first, else min(v, second)


class Route(NamedTuple):
    """How a call runs."""

    sparse: bool
    reason: str  #: why it is dense; empty: it is sparse
    m: int  #: rows of the blob: m rounded up to what is legal
    k: int  #: columns of the blob
    multiple: int  #: legal token counts are its multiples
    epilogue: str  #: the activation that is left to torch; "none": it is fused
    algorithm: Algorithm
    notes: tuple[str, ...]  #: what a sparse call does besides the product


def fused_activation(call: Call, gpu: GPU) -> str:
    """The activation if the product takes it in, else "none"."""
    of = multiples(call.dtype, call.out_dtype)
    probe = product(call._replace(m=of[0], n=of[1], k=of[2]), call.activation, Algorithm())
    return "none" if _C.cusparselt_why_illegal(probe, gpu.sm, gpu.version) else call.activation


def product(
    call: Call, activation: str, algorithm: Algorithm, *, x_stride: int | None = None,
    y_stride: int | None = None, batches: tuple[int, int, int] = (1, 0, 0),
) -> Product:  # fmt: skip
    """The C++ form of a call whose sizes are legal; strides default to contiguous."""
    return _C.Product(
        CODES[call.dtype], CODES[call.out_dtype], call.m, call.n, call.k, x_stride or call.k,
        y_stride or call.m, batches, ACTIVATION_CODES[activation], call.relu_bounds, call.has_bias,
        call.scale_per_row, algorithm,
    )  # fmt: skip


class Measured(NamedTuple):
    """Figures of one tuned call, in microseconds; 0: not measured."""

    algorithm: Algorithm
    sparse: float
    dense: float
    expanded: float  #: dense, the weight expanded at the call


#: What ``sparse24.tune`` measured, by (GPU, dtypes, m, k, bucket of tokens). Filled by ``tuning``.
measured: dict[tuple[Any, ...], Measured] = {}


def bucket(tokens: int) -> int:
    """Token counts share figures up to the next power of two."""
    return 1 << max(tokens - 1, 0).bit_length()


def measured_key(call: Call, gpu: GPU) -> tuple[Any, ...]:
    """Where figures of a call are kept: what they depend on, tokens in buckets."""
    return (gpu, call.dtype, call.out_dtype, call.m, call.k, bucket(call.n))


def _why_losing(call: Call, gpu: GPU, dense_kept: bool) -> str:
    figures = measured.get(measured_key(call, gpu))
    if figures is not None and figures.sparse > 0:
        rival = figures.dense if dense_kept else figures.expanded
        loses = 0 < rival < figures.sparse
        return f"measured: sparse takes {figures.sparse:.1f} us, dense {rival:.1f} us" if loses else ""
    if call.dtype.itemsize == 1:
        return ""  # nothing dense in torch takes 8-bit operands and this epilogue
    if call.n < DECODE_TOKENS:
        return f"{call.n} tokens are fewer than {DECODE_TOKENS}: a sparse product was seen to lose"
    return _why_losing_to_a_copy(call, gpu) if dense_kept else ""


def _why_losing_to_a_copy(call: Call, gpu: GPU) -> str:
    few = FEW_TOKENS.get(gpu.sm, FEW_TOKENS_ELSEWHERE)
    if call.n < few:
        return f"{call.n} tokens are fewer than {few}, from where on sm_{gpu.sm} was seen to gain"
    side = SMALL_SIDE.get(gpu.sm, SMALL_SIDE_ELSEWHERE)
    if min(call.m, call.k) < side:
        return f"a side of {min(call.m, call.k)} is below {side}, from where on sm_{gpu.sm} was seen to gain"
    return ""


def legal_sizes(call: Call) -> tuple[int, int, int]:
    """m and k as the blob has them, and what token counts have to be multiples of."""
    m_multiple, n_multiple, k_multiple, _, _ = multiples(call.dtype, call.out_dtype)
    return round_up(call.m, m_multiple), round_up(call.k, k_multiple), n_multiple


def why_illegal(call: Call, gpu: GPU) -> str:
    """The rule of the library that forbids a call even with its sizes rounded up; empty: none does."""
    m, k, multiple = legal_sizes(call)
    legal = call._replace(m=m, n=round_up(max(call.n, 1), multiple), k=k)
    return _C.cusparselt_why_illegal(
        product(legal, fused_activation(call, gpu), Algorithm()), gpu.sm, gpu.version
    )


@functools.lru_cache(maxsize=4096)
def choose(call: Call, gpu: GPU, dense_kept: bool) -> Route:
    """The route of a call. Cached: :func:`forget` after the measured figures change."""
    m, k, n_multiple = legal_sizes(call)
    fused = fused_activation(call, gpu)
    reason = why_illegal(call, gpu) or _why_losing(call, gpu, dense_kept)
    notes = []
    if fused != call.activation:
        notes.append(f"{call.activation} after the product, in torch: cuSPARSELt does not fuse it here")
    if m != call.m:
        notes.append(f"output of {call.m} rows computed as {m}, and copied")
    if k != call.k:
        notes.append(f"input of {call.k} columns padded to {k}: a copy")
    if call.n % n_multiple and call.n > n_multiple:
        notes.append(
            f"{call.n} tokens are no multiple of {n_multiple}: the last {n_multiple} in a second launch"
        )
    figures = measured.get(measured_key(call, gpu))
    algorithm = figures.algorithm if figures is not None else Algorithm()
    epilogue = "none" if fused == call.activation else call.activation
    return Route(not reason, reason, m, k, n_multiple, epilogue, algorithm, tuple(notes))


def forget() -> None:
    """Choose again: the measured figures have changed."""
    choose.cache_clear()
