"""The rows of the study: the families of the talk, each network on data that install anywhere.

Steps are those of one training, about a minute of one core: the whole is laid out for 90 seconds on two.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from .networks import convolutional, detectors, language, residual, sequences
from .networks.detectors import Detector
from .sources import Sources
from .tasks import Task
from .tasks.images import Images
from .tasks.language import Bytes, Nouns
from .tasks.pairs import Edits, Phonemes, Verses
from .tasks.scenes import Scenes

#: Changed where old results no longer hold for a reason that the rows do not show.
EDITION = 1


@dataclasses.dataclass(frozen=True)
class Training:
    """One schedule: a warm-up, then a cosine to nothing; the sparse network repeats it."""

    optimizer: str  #: "sgd" (momentum .9, Nesterov) or "adamw" (fused)
    rate: float
    steps: int
    dtype: str = "fp32"  #: or "bf16": autocast, weights stay fp32
    decay: float = 5e-4


class Row(NamedTuple):
    """A network of the study."""

    key: str
    family: str
    network: str  #: as its paper calls it
    task: Callable[[Sources, bool], Task]
    training: Training
    qat: bool = False  #: also trained for int8


def _sgd(steps: int, dtype: str = "fp32", rate: float = 0.1) -> Training:
    return Training("sgd", rate, steps, dtype)


def _adamw(steps: int, dtype: str = "fp32", rate: float = 2e-3) -> Training:
    return Training("adamw", rate, steps, dtype, 1e-2)


def _image(
    key: str, network: str, make: Callable[[int], nn.Module], training: Training, data: str = "fashion",
    *, qat: bool = False,
) -> Row:  # fmt: skip
    def task(sources: Sources, quick: bool) -> Task:
        return Images(sources, quick, make, data)

    return Row(key, "image classification", network, task, training, qat)


def _boxes(
    key: str, network: str, make: Callable[[], Detector], training: Training, *, classes: bool = True
) -> Row:
    def task(sources: Sources, quick: bool) -> Task:
        return Scenes(sources, quick, make, classes)

    return Row(key, "detection and segmentation", network, task, training)


def _pairs(
    key: str, network: str, kind: Callable[..., Task], make: Callable[[int], nn.Module], training: Training,
    *, qat: bool = False,
) -> Row:  # fmt: skip
    def task(sources: Sources, quick: bool) -> Task:
        return kind(sources, quick, make)

    return Row(key, "translation and transduction", network, task, training, qat)


def _language(
    key: str, network: str, kind: Callable[..., Task], make: Callable[..., nn.Module], training: Training,
    *, qat: bool = False,
) -> Row:  # fmt: skip
    def task(sources: Sources, quick: bool) -> Task:
        return kind(sources, quick, make)

    return Row(key, "language modelling", network, task, training, qat)


ROWS = (
    _image("resnet34", "ResNet-34", residual.resnet34, _sgd(1200), qat=True),
    _image("resnet50", "ResNet-50", residual.resnet50, _sgd(600, "bf16")),
    _image("resnext50", "ResNeXt-50", residual.resnext50, _sgd(400)),
    _image("wide-resnet50", "Wide ResNet-50", residual.wide_resnet50, _sgd(400)),
    _image("densenet121", "DenseNet-121", convolutional.densenet121, _sgd(450)),
    _image("vgg16", "VGG-16", convolutional.vgg16, _sgd(900, rate=0.05)),
    _image("vgg19", "VGG-19", convolutional.vgg19, _adamw(700), qat=True),
    _image("inception-v3", "Inception v3", convolutional.inception_v3, _sgd(500)),
    _image("xception", "Xception", convolutional.xception, _sgd(300)),
    _image("sunet7", "SUNet-7", convolutional.sunet7, _sgd(450)),
    _image("drn", "DRN-C", residual.drn, _sgd(1200, "bf16")),
    _image("resnet34-digits", "ResNet-34", residual.resnet34, _sgd(900), "digits"),
    _boxes("retinanet", "RetinaNet", detectors.RetinaNet, _sgd(900, rate=0.03)),
    _boxes("ssd", "SSD", detectors.Ssd, _sgd(1200, rate=0.03)),
    _boxes("rpn", "RPN", detectors.Proposals, _sgd(1000, rate=0.03), classes=False),
    _boxes("faster-rcnn", "Faster R-CNN", detectors.FasterRcnn, _sgd(800, rate=0.03)),
    _boxes("mask-rcnn", "Mask R-CNN", detectors.MaskRcnn, _sgd(500, rate=0.03)),
    _pairs("gnmt", "GNMT", Verses, sequences.Gnmt, _adamw(600, rate=3e-3)),
    _pairs("transformer", "Transformer", Verses, sequences.Transformer, _adamw(600, "bf16")),
    _pairs("levenshtein", "Levenshtein Transformer", Edits, sequences.Levenshtein, _adamw(600)),
    _pairs("g2p", "Transformer", Phonemes, sequences.Transformer, _adamw(1000), qat=True),
    _language("transformer-xl", "Transformer-XL", Bytes, language.TransformerXl, _adamw(350)),
    _language("bert", "BERT", Nouns, language.Bert, _adamw(500, rate=1e-3), qat=True),
)


def identity(row: Row, quick: bool) -> str:
    """Changes where the row's results do not hold any more."""
    named = [EDITION, row.key, row.network, dataclasses.asdict(row.training), quick]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:12]


def of_key(key: str) -> Row:
    """The row of a key.

    Raises:
        ValueError: there is none.
    """
    for row in ROWS:
        if row.key == key:
            return row
    raise ValueError(f"there is no row {key!r}; the rows are {', '.join(row.key for row in ROWS)}")
