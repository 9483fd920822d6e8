"""Products: of matrices, by Einstein's notation, and of attention."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ..flow import Flow, Operand
from ..views import Value
from .registry import Call, rule, unknown
from .views import interleave


@rule("linear")
def linear(flow: Flow, call: Call) -> list[Value]:
    """x [..., in] with weight [out, in] and bias [out]."""
    x, weight, bias = call["input"], call["weight"], call.get("bias")
    rows: list[Hashable] = [("row", i) for i in range(len(x.shape) - 1)]
    named: list[Operand] = [(x, [*rows, "in"]), (weight, ["out", "in"] if len(weight.shape) == 2 else ["in"])]
    outs: list[Hashable] = [*rows, "out"] if len(weight.shape) == 2 else rows
    product = flow.join(named, outs, call.shape)
    return [product if bias is None else flow.elementwise([product, bias], call.shape)]


@rule("mm", "bmm", "matmul", "mv", "dot")
def matmul(flow: Flow, call: Call) -> list[Value]:
    a, b = call.tensors
    return [_matmul(flow, a, b, call.shape)]


@rule("addmm", "baddbmm", "addbmm", "addmv")
def added_product(flow: Flow, call: Call) -> list[Value]:
    """self + a b."""
    added, a, b = call.tensors
    if call.name == "aten::addbmm":
        return unknown(flow, call)
    return [flow.elementwise([added, _matmul(flow, a, b, call.shape)], call.shape)]


def _matmul(flow: Flow, a: Value, b: Value, shape: Sequence[int]) -> Value:
    left = len(a.shape) > 1
    right = len(b.shape) > 1
    rank = len(shape) - left - right
    batch: list[Hashable] = [("batch", i) for i in range(rank)]

    def names(value: Value, own: list[Hashable]) -> list[Hashable | None]:
        outer = value.shape[: len(value.shape) - len(own)]
        first = rank - len(outer)
        known = [batch[first + i] if size == shape[first + i] else None for i, size in enumerate(outer)]
        return [*known, *own]

    named: list[Operand] = [
        (a, names(a, ["row", "in"] if left else ["in"])),
        (b, names(b, ["in", "column"] if right else ["in"])),
    ]
    outs = [*batch, *(["row"] if left else []), *(["column"] if right else [])]
    return flow.join(named, outs, shape)


@rule("_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_matmul(flow: Flow, call: Call) -> list[Value]:
    """Rows [T, in], some for each expert one after the other, with its own weight of [experts, in, out]."""
    x, weight = call.tensors[:2]
    if len(x.shape) != 2 or len(weight.shape) != 3:
        return unknown(flow, call)
    named: list[Operand] = [(x, ["row", "in"]), (flow.ordered(weight, [0]), ["expert", "in", "out"])]
    return [flow.join(named, ["row", "out"], call.shape)]


@rule("einsum")
def einsum(flow: Flow, call: Call) -> list[Value]:
    equation = call["equation"].replace(" ", "")
    if "." in equation or "->" not in equation:
        return unknown(flow, call)
    inputs, out = equation.split("->")
    terms = inputs.split(",")
    if any(len(set(term)) != len(term) for term in terms):  # a diagonal
        return unknown(flow, call)
    sizes: dict[str, int] = {}
    for term, value in zip(terms, call.tensors, strict=True):
        for name, size in zip(term, value.shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    named: list[Operand] = [
        (value, [name if size == sizes[name] else None for name, size in zip(term, value.shape, strict=True)])
        for term, value in zip(terms, call.tensors, strict=True)
    ]
    return [flow.join(named, list(out), call.shape)]


@rule("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu")
def attention(flow: Flow, call: Call) -> list[Value]:
    """softmax(q k^T + mask) v, of [..., heads, tokens, width]."""
    q, k, v, mask = call["query"], call["key"], call["value"], call.get("attn_mask")
    if call.get("enable_gqa") and q.shape[-3] != k.shape[-3]:
        k, v = (interleave(flow, part, -3, q.shape[-3] // part.shape[-3]) for part in (k, v))
    scores = (*q.shape[:-1], k.shape[-2])
    flipped = [*range(len(k.shape) - 2), len(k.shape) - 1, len(k.shape) - 2]
    weights = _matmul(flow, q, flow.permute(k, flipped), scores)
    if mask is not None:
        weights = flow.elementwise([weights, mask], scores)
    weights = flow.within(weights, [-1])
    return [_matmul(flow, weights, v, call.shape), *(Value(shape) for shape in call.shapes[1:])]
