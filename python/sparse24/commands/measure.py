"""Which constants of the CPU kernels are fastest on this very machine: ``sparse24 doctor --measure``."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..masks import prune_
from ..ops import machine
from ..ops.registry import cpu_isa
from ..timing import interleaved_medians

Progress = Callable[[str], None]

#: A constant has to be this much faster than the machine's row to replace it: timings here are noisy.
WORTH = 0.97
#: Weights that decoding takes in turn, so that they come from memory.
_COLD_BYTES = 64 << 20
#: Up to how many tokens are dot products: the dtype and the most tokens of each constant.
_FEW = {"few_tokens": (torch.float32, 8), "few_halves": (torch.bfloat16, 16)}
_FIELDS = (
    "few_tokens", "streams", "prefetch_wide", "prefetch_narrow", "vectors", "tile_cols", "tile_prefetch",
    "few_halves", "pair_vectors", "pair_cols",
)  # fmt: skip


def measure(
    progress: Progress, *, rows: int = 4096, columns: int = 1024, seconds: float = 6.0
) -> dict[str, int]:
    """Constants for this machine: those of its row, but where another measured faster.

    One thread; takes half a minute. The constants in use are as they were when it returns.

    Args:
        progress: told of every choice.
        rows, columns: of the weight.
        seconds: for each of the choices, five to seven.
    """
    machine.set_tuning()
    row = machine.tuning()
    best = {field: int(row[field]) for field in _FIELDS}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for fields, tokens, dtype, candidates in _questions():
            product = _product(rows, columns, tokens, dtype)
            best |= _fastest(best, fields, candidates, product, seconds=seconds, progress=progress)
        for field, (dtype, limit) in _FEW.items():
            if dtype == torch.float32 or _has_pairs():
                products = [_product(rows, columns, tokens, dtype) for tokens in range(1, limit + 1)]
                best[field] = _crossover(best, field, products, seconds / 8)
                progress(f"{field}: {best[field]}")
    finally:
        torch.set_num_threads(threads)
        machine.set_tuning()
    return best


def _questions() -> Iterable[tuple[tuple[str, ...], int, torch.dtype, list[tuple[int, ...]]]]:
    """Constants that are chosen together, the tokens and dtype that they matter for, and candidates."""
    ahead = (0, 512, 2048)
    yield ("streams", "prefetch_wide"), 1, torch.float32, [(s, a) for s in (1, 2, 4) for a in ahead]
    yield ("prefetch_narrow",), 1, torch.bfloat16, [(a,) for a in ahead]
    yield ("vectors", "tile_cols"), 256, torch.float32, [(v, c) for v in (6, 8, 9, 12, 13) for c in (32, 64)]
    yield ("tile_prefetch",), 64, torch.float32, [(a,) for a in (2, 4, 8, 16)]
    if _has_pairs():
        pairs: list[tuple[int, ...]] = [(v, c) for v in (4, 6, 8, 10) for c in (32, 64)]
        yield ("pair_vectors", "pair_cols"), 256, torch.bfloat16, pairs


def _has_pairs() -> bool:
    """Whether the kernels in use multiply pairs of bfloat16 in vectors, so that their constants matter."""
    return cpu_isa() == "avx512_vnni"


def _product(rows: int, columns: int, tokens: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(24)).to(dtype)
    prune_(weight)
    values, indices = torch.ops.sparse24.compress(weight)
    copies = _COLD_BYTES // (values.nbytes + indices.nbytes) + 1 if tokens <= 8 else 1
    weights = [(values.clone(), indices.clone()) for _ in range(copies)]
    input = torch.ones(tokens, columns, dtype=dtype)
    turn = 0

    def run() -> Tensor:
        nonlocal turn
        turn += 1
        output: Tensor = torch.ops.sparse24.linear(input, *weights[turn % copies])
        return output

    return run


def _with(fields: dict[str, int], product: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        machine.set_tuning(**fields)
        return product()

    return run


def _fastest(
    best: dict[str, int],
    fields: tuple[str, ...],
    candidates: list[tuple[int, ...]],
    product: Callable[[], Tensor],
    *,
    seconds: float,
    progress: Progress,
) -> dict[str, int]:
    own = tuple(best[field] for field in fields)
    others = [candidate for candidate in candidates if candidate != own]
    few = {
        field: limit for field, (_, limit) in _FEW.items()
    }  # whatever the crossover is: the way that is asked about
    calls = [
        _with({**best, **few, **dict(zip(fields, values, strict=True))}, product) for values in (own, *others)
    ]
    times = interleaved_medians(calls, seconds)
    fastest = min(range(len(calls)), key=lambda i: times[i])
    chosen = (own, *others)[fastest] if times[fastest] < WORTH * times[0] else own
    gain = times[0] / times[fastest]
    progress(f"{', '.join(fields)}: {chosen} ({'kept' if chosen == own else f'{gain:.2f}x of {own}'})")
    return dict(zip(fields, chosen, strict=True))


def _crossover(best: dict[str, int], field: str, products: list[Callable[[], Tensor]], seconds: float) -> int:
    """The most tokens that dot products are not slower for than tiles; ``products`` have 1, 2, ... tokens."""
    for tokens, product in enumerate(products):
        ways = [_with({**best, field: few}, product) for few in (len(products), 0)]
        dots, tiles = interleaved_medians(ways, seconds)
        if dots > tiles:
            return tokens
    return len(products)
