import pytest
import torch

from sparse24.commands.bench.tasks.bytes import Gpt
from sparse24.commands.study import comparison
from sparse24.masks import is_sparse24


def test_masks_keep_what_they_are_named_for():
    torch.manual_seed(0)
    model = Gpt(64, 1, 2)
    weights = dict(model.named_parameters())
    kept = {way: comparison.masks_of(model, way) for way in comparison.WAYS}
    assert kept["dense"] == kept["half"] == kept["start"] == {}
    names = set(kept["2:4"])
    assert names == {f"blocks.0.{name}.weight" for name in ("qkv", "merge", "up", "down")}
    assert {way: set(masks) for way, masks in kept.items() if masks} == dict.fromkeys(
        ("blocks", "2:4", "half-zeros", "three-quarters"), names
    )
    for name in names:
        assert is_sparse24(kept["2:4"][name] * weights[name])
        assert float(kept["half-zeros"][name].float().mean()) == 0.5
        assert float(kept["three-quarters"][name].float().mean()) == 0.25
        tiles = kept["blocks"][name].view(weights[name].shape[0] // 32, 32, -1, 32).float().mean((1, 3))
        assert set(tiles.flatten().tolist()) == {0.0, 1.0}
        assert float(tiles.mean()) == 0.5


def test_the_largest_are_kept():
    weight = torch.arange(64.0 * 64).view(64, 64)
    assert comparison.share_mask(weight, 0.25).sum(1).tolist() == [0] * 48 + [64] * 16
    assert comparison.block_mask(weight)[:32].sum() == 0


def test_blocks_need_whole_blocks():
    with pytest.raises(ValueError, match="a weight of whole blocks of 32 x 32 is needed, not 40 x 64"):
        comparison.block_mask(torch.zeros(40, 64))
