"""Detectors on a small backbone: RetinaNet, SSD, Faster R-CNN, Mask R-CNN, and a region proposal network.

Lin et al. 2017, Liu et al. 2016, Ren et al. 2015, He et al. 2017. Images are [N, 1, 48, 48]. ``forward``
gives what the loss needs, ``detect`` boxes [N, K, 4], scores [N, K] (0: none) and labels [N, K].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import boxes as box
from .residual import Classifier, resnet34, unit

SIZE, CLASSES = 48, 10
_LEVELS = ((4, 17.0), (8, 22.0))
_SHAPES = ((1.0, 1.0), (0.5, 1.1))
_KEPT = 24


class Objects(NamedTuple):
    """What is in images: at most G objects each."""

    boxes: Tensor  #: [N, G, 4]
    labels: Tensor  #: [N, G]; -1: there is none
    masks: Tensor  #: [N, G, 48, 48], in 0 to 1


class Detector(nn.Module):
    """The backbone, its two last maps brought to one width, from the top down (Lin et al. 2017)."""

    anchors: Tensor

    def __init__(self, *, pyramid: bool = True) -> None:
        super().__init__()
        self.backbone: Classifier = resnet34(2, depth=1, width=24)
        self.pyramid = pyramid
        self.sides = nn.ModuleList([nn.Conv2d(channels, 48, 1) for channels in (48, 96)])
        self.smooth = nn.ModuleList([nn.Conv2d(48, 48, 3, padding=1) for _ in range(2 if pyramid else 0)])
        self.register_buffer("anchors", box.anchors(SIZE, _LEVELS, _SHAPES), persistent=False)

    def maps(self, x: Tensor) -> list[Tensor]:
        """[N, 48, 12, 12] and [N, 48, 6, 6]."""
        _, large, small = self.backbone.features(x)
        large, small = self.sides[0](large), self.sides[1](small)
        if not self.pyramid:
            return [F.relu(large), F.relu(small)]
        large = large + F.interpolate(small, scale_factor=2.0)
        return [smooth(level) for smooth, level in zip(self.smooth, (large, small), strict=True)]

    def objective(self, outputs: tuple[Tensor, ...], objects: Objects) -> Tensor:
        """The loss []."""
        raise NotImplementedError

    def detect(self, x: Tensor) -> tuple[Tensor, ...]:
        """Boxes, scores and labels."""
        raise NotImplementedError


def _flat(parts: list[Tensor], width: int) -> Tensor:
    """Maps [N, A * width, H, W] as rows [N, all anchors, width]."""
    rows = [part.permute(0, 2, 3, 1).reshape(len(part), -1, width) for part in parts]
    return torch.cat(rows, 1)


def _box_loss(found: Tensor, origins: Tensor, goal: Tensor, chosen: Tensor) -> Tensor:
    """Smooth L1 over the chosen [N, A], divided by their number."""
    miss = F.smooth_l1_loss(found, box.offsets(goal, origins), reduction="none").sum(-1)
    return (miss * chosen).sum() / chosen.sum().clamp_min(1)


def _of(values: Tensor, which: Tensor) -> Tensor:
    """Rows of [N, G, ...] by [N, A]."""
    rows = torch.arange(len(values)).unsqueeze(1)
    return values[rows, which]


class RetinaNet(Detector):
    """One stage: shared towers over the pyramid, focal loss."""

    def __init__(self) -> None:
        super().__init__()

        def tower(outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(),
                nn.Conv2d(48, len(_SHAPES) * outputs, 3, padding=1),
            )  # fmt: skip

        self.classify, self.locate = tower(CLASSES), tower(4)
        last = self.classify[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.constant_(last.bias, -4.0)  # of many anchors few are objects

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.maps(x)
        return _flat([self.classify(m) for m in maps], CLASSES), _flat([self.locate(m) for m in maps], 4)

    def objective(self, outputs: tuple[Tensor, ...], objects: Objects) -> Tensor:
        logits, places = (output.float() for output in outputs)
        which, kind = box.matched(self.anchors, objects.boxes, objects.labels >= 0, 0.4, 0.5)
        labels, positive = _of(objects.labels, which), kind == 1
        target = F.one_hot(labels.clamp_min(0), CLASSES).float() * positive.unsqueeze(-1)
        p = logits.sigmoid()
        right = torch.where(target > 0, p, 1 - p)
        alpha = torch.where(target > 0, 0.25, 0.75)
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        focal = (alpha * (1 - right) ** 2 * entropy).sum(-1) * (kind >= 0)
        return focal.sum() / positive.sum().clamp_min(1) + _box_loss(
            places, self.anchors, _of(objects.boxes, which), positive
        )

    def detect(self, x: Tensor) -> tuple[Tensor, ...]:
        logits, places = (output.float() for output in self(x))
        scores, labels = logits.sigmoid().max(-1)
        return box.suppressed(box.moved(self.anchors, places), scores, labels, 60, 0.5)


class Ssd(Detector):
    """One stage without a pyramid: a convolution a map, softmax, the hardest negatives three to one."""

    def __init__(self) -> None:
        super().__init__(pyramid=False)
        shapes = len(_SHAPES)
        self.classify = nn.ModuleList([nn.Conv2d(48, shapes * (CLASSES + 1), 3, padding=1) for _ in _LEVELS])
        self.locate = nn.ModuleList([nn.Conv2d(48, shapes * 4, 3, padding=1) for _ in _LEVELS])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.maps(x)
        classes = [head(m) for head, m in zip(self.classify, maps, strict=True)]
        places = [head(m) for head, m in zip(self.locate, maps, strict=True)]
        return _flat(classes, CLASSES + 1), _flat(places, 4)

    def objective(self, outputs: tuple[Tensor, ...], objects: Objects) -> Tensor:
        logits, places = (output.float() for output in outputs)
        which, kind = box.matched(self.anchors, objects.boxes, objects.labels >= 0, 0.4, 0.5)
        positive = kind == 1
        labels = torch.where(positive, _of(objects.labels, which), CLASSES)
        entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        rank = entropy.masked_fill(kind != 0, -1).argsort(1, descending=True).argsort(1)
        hard = (kind == 0) & (rank < 3 * positive.sum(1, keepdim=True))
        return (entropy * (positive | hard)).sum() / positive.sum().clamp_min(1) + _box_loss(
            places, self.anchors, _of(objects.boxes, which), positive
        )

    def detect(self, x: Tensor) -> tuple[Tensor, ...]:
        logits, places = (output.float() for output in self(x))
        scores, labels = logits.softmax(-1)[..., :CLASSES].max(-1)
        return box.suppressed(box.moved(self.anchors, places), scores, labels, 60, 0.5)


class Proposals(Detector):
    """A region proposal network over the pyramid: objects of any class."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(48, 48, 3, padding=1)
        self.objects, self.locate = nn.Conv2d(48, len(_SHAPES), 1), nn.Conv2d(48, 4 * len(_SHAPES), 1)

    def proposals(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [N, A] and offsets [N, A, 4]."""
        hidden = [F.relu(self.shared(m)) for m in maps]
        logits = _flat([self.objects(h) for h in hidden], 1).squeeze(-1)
        return logits.float(), _flat([self.locate(h) for h in hidden], 4).float()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.proposals(self.maps(x))

    def objective(self, outputs: tuple[Tensor, ...], objects: Objects) -> Tensor:
        logits, places = outputs[:2]
        which, kind = box.matched(self.anchors, objects.boxes, objects.labels >= 0, 0.3, 0.6)
        positive = kind == 1
        entropy = F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
        share = positive.sum() / (kind == 0).sum().clamp_min(1)
        weight = torch.where(positive, 1.0, torch.where(kind == 0, (3 * share).clamp_max(1.0), 0.0))
        return (entropy * weight).sum() / positive.sum().clamp_min(1) + _box_loss(
            places, self.anchors, _of(objects.boxes, which), positive
        )

    def regions(self, logits: Tensor, places: Tensor, count: int) -> tuple[Tensor, ...]:
        """The best boxes and their scores."""
        found = box.moved(self.anchors, places).clamp(0, SIZE)
        return box.suppressed(found, logits.sigmoid(), torch.zeros_like(logits, dtype=torch.long), count, 0.7)

    def detect(self, x: Tensor) -> tuple[Tensor, ...]:
        logits, places = self(x)[:2]
        return self.regions(logits, places, 60)


def cropped(maps: Tensor, regions: Tensor, size: int) -> Tensor:
    """Regions [N, R, 4], in pixels, of maps [N, C, H, W] as [N * R, C, size, size]: 2x2 samples each."""
    count, fine = regions.shape[1], 2 * size
    steps = (torch.arange(fine) + 0.5) / fine
    low, extent = regions[..., :2], regions[..., 2:] - regions[..., :2]
    x = low[..., :1] + extent[..., :1] * steps  # [N, R, fine]
    y = low[..., 1:] + extent[..., 1:] * steps
    grid = torch.stack([x.unsqueeze(2).expand(-1, -1, fine, -1), y.unsqueeze(3).expand(-1, -1, -1, fine)], -1)
    grid = (grid / SIZE * 2 - 1).flatten(1, 2)  # [N, R * fine, fine, 2]
    found = F.grid_sample(maps.float(), grid, align_corners=False, padding_mode="border")
    found = F.avg_pool2d(found, 2)  # [N, C, R * size, size]
    apart = found.view(*found.shape[:2], count, size, size)
    return apart.transpose(1, 2).flatten(0, 1)


class FasterRcnn(Proposals):
    """Two stages: proposals, then two linear layers over what is cropped at each."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(48 * 25, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.classify, self.place = nn.Linear(128, CLASSES + 1), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.maps(x)
        logits, places = self.proposals(maps)
        with torch.no_grad():
            regions = self.regions(logits, places, _KEPT)[0]
        return logits, places, regions, maps[0]

    def second(self, large: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, R, 11] and offsets [N, R, 4]."""
        hidden = self.hidden(cropped(large, regions, 5).flatten(1))
        shape = regions.shape[:2]
        return self.classify(hidden).unflatten(0, shape).float(), self.place(hidden).unflatten(
            0, shape
        ).float()

    def objective(self, outputs: tuple[Tensor, ...], objects: Objects) -> Tensor:
        first = super().objective(outputs, objects)
        regions = torch.cat([outputs[2], objects.boxes.clamp(0, SIZE)], 1)  # what is right is shown, too
        regions = torch.cat([regions[..., :2], torch.maximum(regions[..., 2:], regions[..., :2] + 1)], -1)
        logits, places = self.second(outputs[3], regions)
        shared = box.overlaps(regions, objects.boxes) * (objects.labels >= 0).unsqueeze(1)
        best, which = shared.max(-1)
        positive = best >= 0.5
        labels = torch.where(positive, _of(objects.labels, which), CLASSES)
        second = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        second = second + _box_loss(places, regions, _of(objects.boxes, which), positive)
        return first + second + self.extra(outputs[3], regions, objects, which, positive)

    def extra(
        self, large: Tensor, regions: Tensor, objects: Objects, which: Tensor, positive: Tensor
    ) -> Tensor:
        """What Mask R-CNN adds."""
        return large.new_zeros(())

    def detect(self, x: Tensor) -> tuple[Tensor, ...]:
        _, _, regions, large = self(x)
        logits, places = self.second(large, regions)
        scores, labels = logits.softmax(-1)[..., :CLASSES].max(-1)
        return box.suppressed(box.moved(regions, places), scores, labels, _KEPT, 0.5)


class MaskRcnn(FasterRcnn):
    """Faster R-CNN with a mask for each object, learned beside; judged by its boxes as in the talk."""

    def __init__(self) -> None:
        super().__init__()
        self.draw = nn.Sequential(
            unit(48, 48), unit(48, 48), nn.ConvTranspose2d(48, 48, 2, 2), nn.ReLU(), nn.Conv2d(48, CLASSES, 1)
        )

    def extra(
        self, large: Tensor, regions: Tensor, objects: Objects, which: Tensor, positive: Tensor
    ) -> Tensor:
        rows = torch.arange(len(regions))[:, None].expand_as(which)[positive]
        if len(rows) < 2:  # batch norms need more than one
            return large.new_zeros(())
        chosen = regions[positive].unsqueeze(1)
        masks = objects.masks[rows, which[positive]].unsqueeze(1)
        target = (cropped(masks, chosen, 14) > 0.3).float().squeeze(1)
        drawn = self.draw(cropped(large[rows], chosen, 7)).float()
        own = drawn[torch.arange(len(rows)), objects.labels[rows, which[positive]]]
        return F.binary_cross_entropy_with_logits(own, target)
