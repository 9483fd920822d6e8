"""Boxes: overlaps, anchors, offsets, suppression. Boxes are [..., 4]: left, top, right, bottom in pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [..., A, B] of boxes [..., A, 4] and [..., B, 4]."""
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    both = (high - low).clamp_min(0).prod(-1)
    area_a, area_b = ((box[..., 2:] - box[..., :2]).clamp_min(0).prod(-1) for box in (a, b))
    return both / (area_a[..., :, None] + area_b[..., None, :] - both).clamp_min(1e-6)


def anchors(size: int, levels: Sequence[tuple[int, float]], shapes: Sequence[tuple[float, float]]) -> Tensor:
    """All anchors [A, 4] of images ``size`` wide: levels (stride, size), each with shapes (width, height)."""
    found = []
    for stride, extent in levels:
        centres = torch.arange(0, -(-size // stride)) * stride + stride / 2
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        middle = torch.stack([x, y], -1).reshape(-1, 1, 2)
        half = extent / 2 * torch.tensor(shapes)
        found.append(torch.cat([middle - half, middle + half], -1).reshape(-1, 4))
    return torch.cat(found)


def offsets(boxes: Tensor, origins: Tensor) -> Tensor:
    """From boxes ``origins`` to ``boxes``: shifts in sizes, logarithms of ratios (Girshick et al. 2014)."""
    size, goal = origins[..., 2:] - origins[..., :2], (boxes[..., 2:] - boxes[..., :2]).clamp_min(1)
    shift = (boxes[..., :2] + boxes[..., 2:] - origins[..., :2] - origins[..., 2:]) / 2 / size
    return torch.cat([10 * shift, 5 * (goal / size).log()], -1)


def moved(origins: Tensor, by: Tensor) -> Tensor:
    """The inverse of :func:`offsets`."""
    size = origins[..., 2:] - origins[..., :2]
    middle = (origins[..., :2] + origins[..., 2:]) / 2 + by[..., :2] / 10 * size
    half = size * (by[..., 2:] / 5).clamp(-2, 2).exp() / 2
    return torch.cat([middle - half, middle + half], -1)


def matched(origins: Tensor, boxes: Tensor, there: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """For each of [N, A] origins the index of its box among [N, G], and 1: it, 0: nothing, -1: neither.

    The best origin of every box is its own.

    Args:
        there: [N, G], whether a box exists.
    """
    shared = overlaps(origins, boxes) * there.unsqueeze(-2)  # [N, A, G]
    best, which = shared.max(-1)
    kind = torch.where(best >= high, 1, torch.where(best < low, 0, -1))
    first = shared.argmax(-2)  # [N, G]
    rows = torch.arange(len(first)).unsqueeze(1).expand_as(first)[there]
    kind[rows, first[there]] = 1
    which[rows, first[there]] = torch.arange(first.shape[1]).expand_as(first)[there]
    return which, kind


def suppressed(boxes: Tensor, scores: Tensor, labels: Tensor, count: int, limit: float) -> tuple[Tensor, ...]:
    """The ``count`` best of [N, K]; those of one label that overlap by ``limit`` score but once, else 0."""
    scores, order = scores.topk(min(count, scores.shape[1]), 1)
    boxes = boxes.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
    labels = labels.gather(1, order)
    close = (overlaps(boxes, boxes) > limit) & (labels.unsqueeze(1) == labels.unsqueeze(2))
    alive = torch.ones_like(scores, dtype=torch.bool)
    for i in range(scores.shape[1] - 1):
        alive[:, i + 1 :] &= ~(close[:, i, i + 1 :] & alive[:, i : i + 1])
    return boxes, scores * alive, labels
