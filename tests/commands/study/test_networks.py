"""Blocks as the papers draw them, seen from outside: shapes, and which inputs reach which outputs."""

import pytest
import torch
from torch import nn

from sparse24.commands.study.networks import boxes, convolutional, detectors, language, residual, sequences

IMAGES = [
    residual.resnet34, residual.resnet50, residual.resnext50, residual.wide_resnet50, residual.drn,
    convolutional.vgg16, convolutional.vgg19, convolutional.densenet121, convolutional.inception_v3,
    convolutional.xception, convolutional.sunet7,
]  # fmt: skip


@pytest.mark.parametrize("make", IMAGES, ids=lambda make: make.__name__)
@pytest.mark.parametrize(("size", "stride"), [(28, 2), (8, 1)])
def test_classifiers_take_both_kinds_of_images(make, size, stride):
    with torch.no_grad():
        assert make(stride).eval()(torch.rand(2, 1, size, size)).shape == (2, 10)


def convolutions(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


def test_families_differ_in_what_they_are_named_for():
    assert any(m.groups == 4 for m in convolutions(residual.resnext50()))
    assert {m.dilation for m in convolutions(residual.drn())} == {(1, 1), (2, 2), (4, 4)}
    depthwise = [m for m in convolutions(convolutional.xception()) if m.groups == m.in_channels > 1]
    assert len(depthwise) == 8
    assert {(1, 7), (7, 1)} < {m.kernel_size for m in convolutions(convolutional.inception_v3())}
    narrow, wide = (max(m.in_channels for m in convolutions(f()) if m.kernel_size == (3, 3))
                    for f in (residual.resnet50, residual.wide_resnet50))  # fmt: skip
    assert wide == 2 * narrow


def test_overlaps_and_offsets_are_those_of_boxes():
    a = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    b = torch.tensor([[2.0, 0.0, 6.0, 4.0], [0.0, 0.0, 4.0, 4.0], [9.0, 9.0, 10.0, 10.0]])
    assert boxes.overlaps(a, b).flatten().tolist() == pytest.approx([8 / 24, 1.0, 0.0])
    goal = torch.tensor([[3.0, 5.0, 9.0, 14.0]])
    assert torch.allclose(boxes.moved(a, boxes.offsets(goal, a)), goal, atol=1e-4)


def test_every_box_has_an_origin_even_where_none_overlaps_enough():
    origins = torch.tensor([[0.0, 0.0, 4.0, 4.0], [8.0, 8.0, 12.0, 12.0], [20.0, 20.0, 24.0, 24.0]])
    objects = torch.tensor([[[0.0, 0.0, 4.0, 5.0], [10.0, 10.0, 16.0, 16.0], [0.0, 0.0, 0.0, 0.0]]])
    which, kind = boxes.matched(origins, objects, torch.tensor([[True, True, False]]), 0.4, 0.5)
    assert kind.tolist() == [[1, 1, 0]]
    assert which[0, :2].tolist() == [0, 1]


def test_suppression_keeps_the_best_of_a_class_and_other_classes():
    found = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0], [0.0, 0.0, 4.0, 4.0]]])
    _, scores, labels = boxes.suppressed(
        found, torch.tensor([[0.5, 0.9, 0.8]]), torch.tensor([[1, 1, 2]]), 3, 0.5
    )
    assert scores.tolist()[0] == pytest.approx([0.9, 0.8, 0.0])
    assert labels.tolist() == [[1, 2, 1]]


def test_cropping_the_whole_image_gives_its_pixels():
    image = torch.rand(1, 2, 24, 24)
    whole = torch.tensor([[[0.0, 0.0, 48.0, 48.0], [24.0, 0.0, 48.0, 48.0]]])
    got = detectors.cropped(image, whole, 12)
    assert got.shape == (2, 2, 12, 12)
    assert torch.allclose(got[0], nn.functional.avg_pool2d(image, 2)[0], atol=1e-5)
    assert torch.allclose(got[1].mean((1, 2)), image[0, :, :, 12:].mean((1, 2)), atol=0.02)


DETECTORS = [
    detectors.RetinaNet,
    detectors.Ssd,
    detectors.Proposals,
    detectors.FasterRcnn,
    detectors.MaskRcnn,
]


@pytest.mark.parametrize("make", DETECTORS, ids=lambda make: make.__name__)
def test_detectors_learn_one_scene_by_heart(make):
    torch.manual_seed(0)
    model, x = make(), torch.rand(2, 1, 48, 48)
    place = torch.tensor([[[6.0, 8.0, 24.0, 26.0]], [[20.0, 20.0, 40.0, 42.0]]])
    masks = torch.zeros(2, 1, 48, 48)
    for i, (left, top, right, bottom) in enumerate(place[:, 0].int().tolist()):
        masks[i, 0, top:bottom, left:right] = 1
        x[i, 0, top:bottom, left:right] += 1 + i
    objects = detectors.Objects(place, torch.tensor([[3], [7]]), masks)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = model.objective(model(x), objects)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    with torch.no_grad():
        found, scores, labels = model.detect(x)
    best = scores.argmax(1)
    near = torch.stack([boxes.overlaps(found[i, best[i]][None], place[i])[0, 0] for i in range(2)])
    assert bool((near > 0.5).all())
    if make is not detectors.Proposals:
        assert labels[torch.arange(2), best].tolist() == [3, 7]


def test_a_byte_sees_the_segment_before_and_nothing_after():
    torch.manual_seed(0)
    model = language.TransformerXl(16, 1, 2, segment=8).eval()
    tokens = torch.randint(256, (1, 24))
    before = model(tokens)
    for place in (3, 10, 15):
        other = tokens.clone()
        other[0, place] = (other[0, place] + 1) % 256
        moved = (model(other) - before).abs().amax(-1)[0] > 1e-6
        assert not bool(moved[:place].any())
        segment_after_next = (place // 8 + 2) * 8
        assert bool(moved[place : min(segment_after_next, 24)].all())
        assert not bool(moved[segment_after_next:].any())  # one layer reaches one segment back


def test_what_attention_adds_for_a_distance_depends_on_the_distance_alone():
    torch.manual_seed(0)
    model = language.TransformerXl(16, 1, 2, segment=8).eval()
    tokens = torch.full(
        (1, 24), 7
    )  # all alike: from the second segment on, all places see the same but lengths
    out = model(tokens)
    assert torch.allclose(out[0, 8:16], out[0, 16:24], atol=1e-5)


def test_decoders_do_not_look_ahead_and_padding_does_not_count():
    for make in (sequences.Gnmt, sequences.Transformer):
        torch.manual_seed(0)
        model = make(30, 32).eval()
        source, target = torch.randint(4, 30, (2, 6)), torch.randint(4, 30, (2, 5))
        out = model(source, target)
        other = target.clone()
        other[:, 3] = (other[:, 3] - 3) % 26 + 4
        assert torch.allclose(model(source, other)[:, :3], out[:, :3], atol=1e-5)
        if make is sequences.Transformer:
            padded = torch.cat([source, torch.zeros(2, 3, dtype=torch.long)], 1)
            assert torch.allclose(model(padded, target), out, atol=1e-5)


def test_greedy_stops_at_the_end():
    class Counts(nn.Module):
        """Says 5, 6, end, for every source."""

        def forward(self, source, target):
            logits = torch.zeros(len(source), target.shape[1], 10)
            for place, token in enumerate((5, 6, sequences.END, 9, 9, 9)[: target.shape[1]]):
                logits[:, place, token] = 1
            return logits

    assert (
        sequences.greedy(Counts(), torch.ones(2, 3, dtype=torch.long), 6).tolist() == [[5, 6, 2, 0, 0, 0]] * 2
    )
