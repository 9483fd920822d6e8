"""Copies and dicts of a layer whose weight is another form on the GPU, and its end. On the emulator.

Passing here is not validation on a GPU.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

from emulated import compressed, randn, sparse_weight
from own_forms import MANY, K, M, check, forms, is_away, new_layer, run

HALF = torch.float16

pytestmark = pytest.mark.usefixtures("on_emulator")


def test_copies_are_layers_of_their_own() -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    check(layer, weight)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)]
    for other in copies:
        assert type(other._parameters) is dict
        assert other.__dict__.get("_forms") is None
        other.values.mul_(2)
        check(other, 2 * weight)
        assert is_away(other)
        check(layer, weight)
        assert is_away(layer)


def test_a_shallow_copy_shares_the_tensors_and_misses_no_write() -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    check(layer, weight)
    twin = copy.copy(layer)
    check(twin, weight)
    twin.values.mul_(2)
    check(layer, 2 * weight)
    check(twin, 2 * weight)


def test_a_replica_does_not_answer_with_the_blob_of_its_original() -> None:
    """As nn.DataParallel replicates: a __dict__ that is copied, with tensors of its own."""
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    check(layer, weight)
    replica = layer._replicate_for_data_parallel()
    values, indices = compressed(2 * weight)
    replica._parameters = {"values": nn.Parameter(values, requires_grad=False), "bias": layer.bias}
    replica._buffers = {"indices": indices}
    del values, indices
    check(replica, 2 * weight)
    check(layer, weight)
    check(replica, 2 * weight)
    assert forms(replica) is not forms(layer)


def test_dicts_that_are_replaced_are_computed_with() -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    check(layer, weight)
    values = nn.Parameter(compressed(2 * weight)[0], requires_grad=False)
    layer._parameters = {"values": values, "bias": layer.bias}  # the indices stay away
    del values
    for factor in (2, 4, 8):
        check(layer, factor * weight)
        assert is_away(layer)
        layer.values.data.mul_(2)
    check(layer, 16 * weight)


def test_dicts_that_outlive_their_forms_are_served_by_new_ones() -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    check(layer, weight)
    layer.values.data.mul_(2)
    layer.__dict__.pop("_forms")
    for factor in (2, 4):
        check(layer, factor * weight)
        assert is_away(layer)
        layer.values.data.mul_(2)
    check(layer, 8 * weight)


def test_a_layer_that_goes_takes_its_forms_along() -> None:
    layer = new_layer()
    run(layer, randn(MANY, K))
    data = next(iter(forms(layer)._derived.blobs.values())).data
    gone = weakref.ref(data)
    del data
    gc.disable()
    try:
        del layer
        assert gone() is None  # without the collector
    finally:
        gc.enable()
