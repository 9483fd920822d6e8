"""What names, shapes and a config.json say of a tensor: what it may be decides, and it is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sparse24
from sparse24 import files as io
from sparse24.__main__ import main

from .state_files import SUFFIXES, fails, saved

pytestmark = pytest.mark.usefixtures("seeded")

BODY = {"body.0.weight": (16, 16), "body.0.bias": (16,), "body.1.weight": (16, 16)}


def state_of(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


def left(state: dict[str, Any], **choice: Any) -> dict[str, str]:
    return {row.name: row.reason for row in io.prune(io.StateFile(state), **choice)[1].left}


LEFT = {
    "an embedding called tok_emb": ({"tok_emb.weight": (64, 16)}, "an embedding by its name"),
    "an embedding called emb": ({"net.emb.weight": (64, 16)}, "an embedding by its name"),
    "an embedding in a list": ({"embs.0.weight": (64, 16)}, "an embedding by its name"),
    "T5's and BART's shared": ({"model.shared.weight": (64, 16)}, "an embedding by its name"),
    "a codebook": ({"quantizer.codebook.weight": (64, 16)}, "an embedding by its name"),
    "a vocabulary by its shape": (
        {"lookup_of_words.weight": (64, 16), "dictionary.weight": (1200, 16)},
        "an embedding or an output head by its shape (1200 rows of 16)",
    ),
    "a 2-D norm": ({"layer_norm.weight": (16, 16)}, "a norm by its name"),
    "an adapter": ({"q.lora_A.default.weight": (8, 16)}, "an adapter by its name (lora_A)"),
    "a ConvTranspose by its bias": (
        {"decode.weight": (32, 16, 2, 2), "decode.bias": (16,)},
        "its bias has 16 numbers, so it does not lie as [out, in, ...]",
    ),
    "a ConvTranspose by its name": ({"deconv1.weight": (16, 16, 4, 4)}, "may be a ConvTranspose"),
    "an upsampling one of HiFiGAN": ({"ups.0.weight": (16, 8, 4, 4)}, "may be a ConvTranspose"),
    "GPT-2's Conv1D by its bias": (
        {"h.c_fc.weight": (16, 64), "h.c_fc.bias": (64,)}, "its bias has 64 numbers"
    ),
    "GPT-2's Conv1D by its name": (
        {"h.c_proj.weight": (16, 16), "h.c_proj.bias": (16,)}, "may be stored as [in, out]"
    ),
    "3-D experts": ({"experts.gate_up.weight": (4, 32, 16)}, "3 dimensions (a Conv1d"),
    "a Conv1d": ({"conv1d.weight": (8, 16, 3)}, "3 dimensions (a Conv1d"),
    "what is no smaller": ({"tiny.weight": (16, 4)}, "would stay dense: it is no smaller when compressed"),
    "DETR's class head": ({"class_embed.weight": (96, 16)}, "an embedding by its name"),
    "CLIP's projection": ({"visual_projection.weight": (16, 16)}, "an output head by its name"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(LEFT))
def test_what_may_be_no_layer_is_left_alone(case: str) -> None:
    shapes, why = LEFT[case]
    reasons = left(state_of({**BODY, **shapes}))
    (name,) = [name for name in list(shapes)[-2:] if name.endswith("weight")][-1:]
    assert reasons[name].startswith(why)
    assert reasons.keys() == {n for n in shapes if n.endswith("weight")}
    if "select it" in reasons[name]:
        assert name not in left(state_of({**BODY, **shapes}), select=[name])


@pytest.mark.parametrize(
    "shapes",
    [
        {"up_proj.weight": (32, 16)},
        {"h.c_fc.weight": (64, 16), "h.c_fc.bias": (64,)},  # nanoGPT's: a Linear, which its bias proves
        {"deconv.weight": (32, 16, 3, 3), "deconv.bias": (32,)},
        {"members.weight": (16, 16)},
        {"shared.0.weight": (16, 16)},
    ],
)
def test_what_is_a_layer_is_pruned(shapes: dict[str, tuple[int, ...]]) -> None:
    assert left(state_of({**BODY, **shapes, "end.weight": (16, 16)})) == {}


def test_a_head_is_one_though_nothing_else_can_be_pruned() -> None:
    state = state_of({"h.c_fc.weight": (16, 64), "h.c_fc.bias": (64,), "lm_head.weight": (48, 16)})
    assert left(state)["lm_head.weight"].startswith("an output head by its name (lm_head)")


@pytest.mark.parametrize("wrapper", ["", "model.", "module.", "model.module."])
def test_heads_are_told_behind_any_prefix(wrapper: str) -> None:
    names = ("stem", "layers.0.attn.out", "layers.1.attn.out", "fc")
    reasons = left({f"{wrapper}{name}.weight": torch.randn(16, 16) for name in names})
    assert list(reasons) == [f"{wrapper}fc.weight"]
    assert f"an output head by its name ({wrapper}fc)" in reasons[f"{wrapper}fc.weight"]


@SUFFIXES
@pytest.mark.parametrize("nested", [False, True])
def test_a_config_beside_the_file_tells_the_vocabulary(suffix: str, nested: bool, tmp_path: Path) -> None:
    sizes = {"vocab_size": 72}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": sizes, "n": 1} if nested else sizes))
    source = saved(tmp_path / f"in{suffix}", state_of({**BODY, "a.weight": (72, 16), "b.weight": (64, 16)}))
    target = tmp_path / f"out{suffix}"
    assert main(["prune", str(source), str(target)]) == 0
    pruned = io.read(target).tensors
    assert not sparse24.is_sparse24(pruned["a.weight"])
    assert sparse24.is_sparse24(pruned["b.weight"])


@pytest.mark.parametrize("text", ["", "[]", "{", '{"vocab_size": "x"}'])
def test_a_config_that_says_nothing_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert io.vocabularies_beside(tmp_path / "model.pt") == frozenset()
    assert io.vocabularies_beside(tmp_path / "none" / "model.pt") == frozenset()


@SUFFIXES
def test_skip_wins_over_select(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = saved(tmp_path / f"in{suffix}", state_of(BODY)), tmp_path / f"out{suffix}"
    assert main(["prune", str(source), str(target), "--select", "body.*", "--skip", "body.1.*"]) == 0
    pruned = io.read(target).tensors
    assert sparse24.is_sparse24(pruned["body.0.weight"])
    assert not sparse24.is_sparse24(pruned["body.1.weight"])
    assert "--skip" in capsys.readouterr().out
    assert "--skip tail matches no tensor; there are: body.0.weight, body.1.weight" in fails(
        capsys, "prune", source, target, "--skip", "tail"
    )


CHECKPOINTS = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model and optimizer": lambda state: {
        "model": state, "args": {"lr": 0.1},
        "optimizer": {"state": {0: {"exp_avg.weight": torch.ones(16, 16)}}},
    },
    "two networks": lambda state: {"generator": state, "ema": {"inner": state}},
}  # fmt: skip


@pytest.mark.parametrize("case", list(CHECKPOINTS))
def test_the_state_dict_in_a_checkpoint_is_pruned_where_it_stands(case: str, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16), torch.nn.Linear(16, 10))
    before = CHECKPOINTS[case](model.state_dict())
    source, target = saved(tmp_path / "in.pt", before), tmp_path / "out.pt"
    assert main(["prune", str(source), str(target)]) == 0
    after = torch.load(target, weights_only=True)
    assert after.keys() == before.keys()
    for key, state in ((k, v) for k, v in after.items() if k in ("state_dict", "model", "generator")):
        for name, tensor in state.items():
            dense = model.state_dict()[name]
            pruned = name in ("0.weight", "1.weight")
            expected = torch.where(sparse24.magnitude_mask(dense), dense, 0.0) if pruned else dense
            assert torch.equal(tensor, expected), (key, name)
        assert state._metadata == model.state_dict()._metadata
        model.load_state_dict(state)
    if case == "two networks":
        assert after["ema"]["inner"]["0.weight"].data_ptr() == after["generator"]["0.weight"].data_ptr()
    else:
        key = "epoch" if case == "state_dict" else "args"
        assert after[key] == before[key]
    if case == "model and optimizer":
        assert after["optimizer"]["state"][0]["exp_avg.weight"].all()
    rows = {row.name for row in io.report(io.read(target))}
    assert all("." in name and name.split(".")[0] in before for name in rows)
    assert main(["prune", str(source), str(target), "--select", "*.0.weight"]) == 0


ODD = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e8m0fnu,
       torch.float4_e2m1fn_x2, torch.uint16, torch.uint32, torch.uint64, torch.float64,
       torch.complex64]  # fmt: skip


@pytest.mark.parametrize("dtype", ODD, ids=str)
def test_one_odd_tensor_does_not_end_the_command(
    dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = state_of(BODY)
    state["odd.weight"] = torch.zeros(16, 16 * dtype.itemsize, dtype=torch.uint8).view(dtype)
    source, target = saved(tmp_path / "in.pt", state), tmp_path / "out.pt"
    assert main(["report", str(source)]) == 0
    assert main(["prune", str(source), str(target)]) == 0
    said = capsys.readouterr().out
    pruned = torch.load(target, weights_only=True)
    assert sparse24.is_sparse24(pruned["body.0.weight"])
    if dtype.is_floating_point and dtype is not torch.float64:
        assert said.count(f"dtype {str(dtype).removeprefix('torch.')}: only floating weights of 16 bits") == 2


@pytest.mark.parametrize(
    ("word", "bits"), [("F4", 4), ("F6_E2M3", 6), ("F8_E8M0", 8), ("U16", 16), ("C64", 64)]
)
def test_a_dtype_that_torch_lacks_does_not_end_the_command(
    word: str, bits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = torch.randn(16, 16).numpy().tobytes()
    odd = bytes(range(256))[: 16 * 16 * bits // 8] * 8
    odd = odd[: 16 * 16 * bits // 8]
    described = {
        name: {"dtype": dtype, "shape": [16, 16], "data_offsets": place}
        for name, dtype, place in (
            ("a.weight", "F32", [0, 1024]), ("odd.weight", word, [1024, 1024 + len(odd)]),
            ("z.weight", "F32", [1024 + len(odd), 2048 + len(odd)]),
        )
    }  # fmt: skip
    header = json.dumps(described).encode()
    header += b" " * (-len(header) % 8)
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    source.write_bytes(len(header).to_bytes(8, "little") + header + numbers + odd + numbers)
    assert main(["report", str(source)]) == 0
    assert main(["prune", str(source), str(target)]) == 0
    said = capsys.readouterr().out
    assert "2 of " in said
    assert target.read_bytes()[8 + len(header) + 1024 :][: len(odd)] == odd
    assert io.read(target).tensors["z.weight"].count_nonzero() == 128
    if word == "F6_E2M3":
        assert "dtype F6_E2M3, which torch cannot read" in said
        assert "dtype F6_E2M3: only floating weights of 16 bits or more" in said
