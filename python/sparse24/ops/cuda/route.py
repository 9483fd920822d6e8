"""Which way a product on a GPU goes: through cuSPARSELt, or dense, and why.

Rules come first (what the library cannot run), then figures: those measured by ``sparse24.tune`` for this
GPU and library, else those that others published (``published``), else :data:`FEW_TOKENS`. A dense product
needs the weight expanded at every call, unless a dense copy is kept; expanding costs more than a slow sparse
product does, so without a copy only decoding goes dense.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, NamedTuple

import torch

from ... import _C
from ..registry import ACTIVATION_CODES, round_up
from . import device_kernels, published
from .cusparselt import CODES, GPU, Algorithm, Product, multiples

#: Fewer tokens than this run dense even where the weight has to be expanded for the call. One token was
#: measured nine times slower than dense (pytorch#111339, A100); this is the smallest legal count in 16 bits.
DECODE_TOKENS = 8
#: Fewer tokens than this run dense where a dense copy is kept and ``published`` has no figures: others saw
#: losses up to 512 tokens (0.59x at 64, 0.68x at 512) and gains from 1280 on (1.35x, ao#1460); Ampere gains
#: earlier (pytorch#90119).
FEW_TOKENS = {80: 256, 86: 256}
FEW_TOKENS_ELSEWHERE = 1024
#: Weights with a side below this gain nothing either (pytorch#90119: 768 still gains on Ampere).
SMALL_SIDE = {80: 512, 86: 512}
SMALL_SIDE_ELSEWHERE = 1024

#: Tokens up to which the kernel for few is taken although a dense copy is there. By counting instructions it
#: is bound by memory to about seven tokens, and reads .56 of the copy's bytes; beyond that arithmetic counts.
FEW_AGAINST_A_COPY = 8

#: Whether convolutions larger than 1 x 1 are taken to gain untuned. They write their patches to memory first,
#: R x S times the input, where a dense convolution reads it in place; nobody has published a gain.
PATCHES_GAIN = False

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
    #: Of a convolution whose patches have to be copied: kernel, stride, padding, dilation, groups.
    window: tuple[int, ...] = ()


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
    few: bool = False  #: by the kernel for few tokens, on the canonical form
    epoch: int = 0  #: of the figures that it was chosen by: grows with :func:`forget`


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
    others: tuple[tuple[Algorithm, float], ...] = ()  #: kernels alone, of the algorithms that did best

    def times(self) -> dict[Algorithm, float]:
        """Microseconds by algorithm, for comparisons among them."""
        return dict(self.others) or {self.algorithm: self.sparse}


#: What ``sparse24.tune`` measured, by (GPU, dtypes, m, k, bucket of tokens, window). Filled by ``tuning``.
measured: dict[tuple[Any, ...], Measured] = {}


def bucket(tokens: int) -> int:
    """Token counts share figures up to the next power of two."""
    return 1 << max(tokens - 1, 0).bit_length()


def measured_key(call: Call, gpu: GPU) -> tuple[Any, ...]:
    """Where figures of a call are kept: what they depend on, tokens in buckets."""
    return (gpu, call.dtype, call.out_dtype, call.m, call.k, bucket(call.n), call.window)


#: (GPU, dtype, out_dtype, numbers of an algorithm): why it must not run. Filled by ``denied``.
denied: dict[tuple[GPU, torch.dtype, torch.dtype, tuple[int, ...]], str] = {}
#: (GPU, dtype, out_dtype, m, k, algorithm): what the library said when it was to run.
refused: dict[tuple[Any, ...], str] = {}


def why_denied(call: Call, gpu: GPU, algorithm: Algorithm) -> str:
    """Why an algorithm must not run here; empty: it may. An id denied without a split is so with one."""
    for split_k in {algorithm.split_k, 0}:
        for key, reason in denied.items():
            if key[:3] == (gpu, call.dtype, call.out_dtype) and key[3][:2] == (algorithm.id, split_k):
                return f"algorithm {algorithm.id} is denied: {reason}"
    return ""


def is_search_denied(call: Call, gpu: GPU) -> bool:
    """Whether the library's own search has ended a process here."""
    return any(key[:3] == (gpu, call.dtype, call.out_dtype) and key[3][0] < 0 for key in denied)


def _weight_key(call: Call, gpu: GPU) -> tuple[Any, ...]:
    return (gpu, call.dtype, call.out_dtype, call.m, call.k)


def algorithm_of(call: Call, gpu: GPU) -> Algorithm:
    """The algorithm of a weight, one for all counts of tokens, so that one blob serves them.

    Of those that tuning has timed, the one whose times, over the best of each tuned count, have the smallest
    product; one that was not among the best of a count is taken to be twice as slow there.
    """
    tuned = [found.times() for key, found in measured.items() if key[:5] == _weight_key(call, gpu)]
    candidates = {Algorithm(): None, **dict.fromkeys(algorithm for times in tuned for algorithm in times)}

    def cost(algorithm: Algorithm) -> float:
        return sum(
            math.log(times.get(algorithm, 2 * max(times.values())) / min(times.values())) for times in tuned
        )

    usable = [
        algorithm
        for algorithm in candidates
        if (*_weight_key(call, gpu), algorithm) not in refused and not why_denied(call, gpu, algorithm)
    ]
    return min(usable, key=cost, default=Algorithm())


def refuse(call: Call, gpu: GPU, algorithm: Algorithm, problem: str) -> None:
    """Run another algorithm from now on, and say so once."""
    key = (*_weight_key(call, gpu), algorithm)
    if key not in refused:
        refused[key] = problem
        warnings.warn(f"{_note_of(key)}; sparse24.tune(model, again=True) measures anew", stacklevel=2)
    forget()


def _note_of(key: tuple[Any, ...]) -> str:
    *_, m, k, algorithm = key
    return f"algorithm {algorithm.id}, tuned for {m} x {k}, was refused: {refused[key]}; another one runs"


def _why_few(call: Call, gpu: GPU, dense_kept: bool) -> str:
    """Why the kernel for few tokens runs; empty: it does not. Bytes decide, .56 of dense: not times."""
    if not gpu.kernels or not device_kernels.takes_few(call.n, call.dtype, call.dtype) or call.scale_per_row:
        return ""
    if dense_kept and call.n > FEW_AGAINST_A_COPY:
        return ""
    figures = measured.get(measured_key(call, gpu))
    if figures is not None and 0 < figures.sparse < figures.expanded:
        return ""
    return f"{call.n} tokens are few: a kernel reads the compressed weight as it lies"


def _why_losing(call: Call, gpu: GPU, dense_kept: bool) -> str:
    figures = measured.get(measured_key(call, gpu))
    if figures is not None and figures.sparse > 0:
        rival = figures.dense if dense_kept else figures.expanded
        loses = 0 < rival < figures.sparse
        return f"measured: sparse takes {figures.sparse:.1f} us, dense {rival:.1f} us" if loses else ""
    if call.window and call.dtype.itemsize > 1 and not PATCHES_GAIN:
        r, s = call.window[:2]
        return f"a {r} x {s} convolution copies its patches: dense until sparse24.tune(model) has timed both"
    if call.dtype.itemsize == 1:
        return ""  # nothing dense in torch takes 8-bit operands and this epilogue
    if call.n < DECODE_TOKENS:
        return f"{call.n} tokens are fewer than {DECODE_TOKENS}: a sparse product was seen to lose"
    return _why_losing_to_a_copy(call, gpu) if dense_kept else ""


def _why_losing_to_a_copy(call: Call, gpu: GPU) -> str:
    gain = published.gain(gpu.sm, call.dtype, call.n, call.m, call.k)
    if gain is not None:
        return "" if gain >= 1 else f"published times on sm_{gpu.sm} expect {gain:.2f} of the dense speed"
    few = FEW_TOKENS.get(gpu.sm, FEW_TOKENS_ELSEWHERE)
    if call.n < few:
        return f"{_no_figures(call, gpu)}, and {call.n} tokens are fewer than {few}, where others lost"
    side = SMALL_SIDE.get(gpu.sm, SMALL_SIDE_ELSEWHERE)
    if min(call.m, call.k) < side:
        smaller = min(call.m, call.k)
        return f"{_no_figures(call, gpu)}, and a side of {smaller} is below {side}, where others lost"
    return ""


def _no_figures(call: Call, gpu: GPU) -> str:
    return f"no figures of {call.dtype} on sm_{gpu.sm}".replace("torch.", "")


def legal_sizes(call: Call) -> tuple[int, int, int]:
    """m and k as the blob has them, and what token counts have to be multiples of."""
    m_multiple, n_multiple, k_multiple, _, _ = multiples(call.dtype, call.out_dtype)
    return round_up(call.m, m_multiple), round_up(call.k, k_multiple), n_multiple


def launched_tokens(call: Call, m: int, k: int, multiple: int) -> list[int]:
    """The token counts of the launches for a call whose blob has m rows and k columns.

    A count that is no legal multiple is rounded up, which copies the input, or is covered by two launches of
    which the second overlaps the first and reads the whole weight again: whichever moves fewer bytes.
    """
    whole = call.n // multiple * multiple
    if whole == call.n:
        return [call.n]
    size = call.dtype.itemsize
    copied = 2 * call.n * call.k * size
    again = m * k * (size / 2 + 0.125) + multiple * (k * size + m * call.out_dtype.itemsize)
    return [whole, multiple] if whole and again < copied else [whole + multiple]


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
    epoch = _C.launches_epoch()
    m, k, n_multiple = legal_sizes(call)
    fused = fused_activation(call, gpu)
    algorithm = algorithm_of(call, gpu)
    why_few = _why_few(call, gpu, dense_kept)
    reason = why_illegal(call, gpu) or why_denied(call, gpu, algorithm) or why_few
    reason = reason or _why_losing(call, gpu, dense_kept)
    notes = []
    if fused != call.activation:
        notes.append(f"{call.activation} after the product, in torch: cuSPARSELt does not fuse it here")
    if m != call.m:
        notes.append(f"output of {call.m} rows computed as {m}, and copied")
    if k != call.k:
        notes.append(f"input of {call.k} columns padded to {k}: a copy")
    if call.n % n_multiple:
        counts = launched_tokens(call, m, k, n_multiple)
        how = f"the last {n_multiple} in a second launch" if counts[1:] else f"padded to {counts[0]}, a copy"
        notes.append(f"{call.n} tokens are no multiple of {n_multiple}: {how}")
    untuned = measured_key(call, gpu) not in measured and call.dtype.itemsize > 1
    if (
        not reason
        and dense_kept
        and untuned
        and not published.WEIGHTS.get(published.name(gpu.sm, call.dtype))
    ):
        notes.append(f"{_no_figures(call, gpu)}: sparse24.tune(model) takes some")
    notes += [_note_of(key) for key in refused if key[:5] == _weight_key(call, gpu)]
    epilogue = "none" if fused == call.activation else call.activation
    return Route(
        not reason, reason, m, k, n_multiple, epilogue, algorithm, tuple(notes), bool(why_few), epoch
    )


def forget() -> None:
    """Choose again: the measured figures have changed."""
    _C.forget_launches()
    choose.cache_clear()
