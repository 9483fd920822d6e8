"""Detection: scenes pasted from real images; a backbone that classifies them first, then the detector."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....files import FileError
from ..networks.detectors import SIZE, Detector, Objects
from ..sources import Sources
from .task import Phase, Task, windows

BATCH, MOST = 16, 3


class Scenes(Task):
    """Boxes of one to three things in noise.

    Args:
        make: a detector.
        classes: whether the class of a thing counts.
    """

    metric = "box AP, %"

    def __init__(
        self, sources: Sources, quick: bool, make: Callable[[], Detector], classes: bool = True
    ) -> None:
        images = sources.images("digits" if quick else "fashion", *((320, 200) if quick else (8000, 4000)))
        self.data = f"scenes of {images.name}" if classes else f"scenes of {images.name}, any class"
        self._make, self._classes = make, classes
        train, judged = (64, 32) if quick else (4000, 1000)
        self._single = images
        self._x, self._objects = pasted(images.x, images.y, train, 1)
        self._judged_x, self._judged = pasted(images.judged_x, images.judged_y, judged, 2)

    def network(self) -> Detector:
        return self._make()

    def before(self, model: nn.Module) -> Phase:
        assert isinstance(model, Detector)

        def loss(backbone: nn.Module, draw: torch.Generator) -> Tensor:
            rows = windows(len(self._single.x), 64, draw)
            return F.cross_entropy(backbone(self._single.x[rows]), self._single.y[rows])

        return Phase(model.backbone, loss, 0.5)

    def loss(self, model: nn.Module, draw: torch.Generator) -> Tensor:
        rows = windows(len(self._x), BATCH, draw)
        inner: Any = model
        loss: Tensor = inner.objective(model(self._x[rows]), Objects(*(part[rows] for part in self._objects)))
        return loss

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        inner: Any = model
        found = [inner.detect(x) for x in torch.split(self._judged_x, 100)]
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        truth = self._judged
        if not self._classes:
            truth = truth._replace(labels=truth.labels.clamp_max(0))
        return 100 * average_precision(boxes, scores, labels, truth)

    def calibration(self) -> Sequence[Tensor]:
        return torch.split(self._x[: 8 * BATCH], BATCH)


def pasted(images: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Objects]:
    """Scenes [N, 1, 48, 48]: things of 14 to 24 pixels, cut to what is not black, apart, on noise."""
    draw = torch.Generator().manual_seed(seed)
    scenes = torch.rand(count, 1, SIZE, SIZE, generator=draw) * 0.25
    boxes = torch.zeros(count, MOST, 4)
    classes = torch.full((count, MOST), -1)
    masks = torch.zeros(count, MOST, SIZE, SIZE)
    for scene in range(count):
        for number in range(int(torch.randint(1, MOST + 1, (1,), generator=draw))):
            which = int(torch.randint(len(images), (1,), generator=draw))
            thing = _cut(images[which, 0])
            longest = int(torch.randint(14, 25, (1,), generator=draw))
            height, width = (max(4, round(longest * s / max(thing.shape))) for s in thing.shape)
            thing = F.interpolate(thing[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
            for _ in range(8):
                top, left = (int(torch.randint(SIZE - s + 1, (1,), generator=draw)) for s in (height, width))
                place = (slice(top, top + height), slice(left, left + width))
                if not masks[scene, :, place[0], place[1]].any():
                    break
            else:
                continue
            scenes[scene, 0][place] = torch.where(thing > 0.1, thing, scenes[scene, 0][place])
            masks[scene, number][place] = thing
            boxes[scene, number] = torch.tensor([left, top, left + width, top + height], dtype=torch.float32)
            classes[scene, number] = labels[which]
    return scenes, Objects(boxes, classes, masks)


def _cut(image: Tensor) -> Tensor:
    """An image without its black margins."""
    rows, columns = (torch.where((image > 0.1).any(dim))[0] for dim in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def average_precision(boxes: Tensor, scores: Tensor, labels: Tensor, truth: Objects) -> float:
    """COCO's: the mean over classes and overlaps of .50 to .95, by pycocotools; 0 to 1."""
    try:
        coco: Any = importlib.import_module("pycocotools.coco")
        judge: Any = importlib.import_module("pycocotools.cocoeval")
    except ModuleNotFoundError:
        raise FileError("detection is judged by pycocotools: pip install pycocotools") from None

    def rows(box: Tensor) -> list[float]:
        left, top, right, bottom = box.tolist()
        return [left, top, right - left, bottom - top]

    annotations: list[dict[str, Any]] = []
    for image, number in zip(*torch.where(truth.labels >= 0), strict=True):
        place = rows(truth.boxes[image, number])
        annotations.append(
            {"id": len(annotations) + 1, "image_id": int(image), "bbox": place, "area": place[2] * place[3],
             "category_id": int(truth.labels[image, number]), "iscrowd": 0}
        )  # fmt: skip
    found = [
        {"image_id": int(i), "bbox": rows(boxes[i, k]), "score": float(scores[i, k]),
         "category_id": int(labels[i, k])}
        for i, k in zip(*torch.where(scores > 0.01), strict=True)
    ]  # fmt: skip
    if not found:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        ground = coco.COCO()
        ground.dataset = {
            "info": {}, "images": [{"id": i} for i in range(len(boxes))], "annotations": annotations,
            "categories": [{"id": c} for c in sorted({a["category_id"] for a in annotations})],
        }  # fmt: skip
        ground.createIndex()
        evaluation = judge.COCOeval(ground, ground.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])
