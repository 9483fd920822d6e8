import gzip
import struct

import pytest
import torch

from sparse24.commands.study.networks import language, residual, sequences
from sparse24.commands.study.networks.detectors import Objects
from sparse24.commands.study.rows import ROWS, Training, identity, of_key
from sparse24.commands.study.sources import Sources
from sparse24.commands.study.tasks import pairs, scenes
from sparse24.commands.study.tasks.images import Images
from sparse24.commands.study.tasks.language import Bytes
from sparse24.commands.study.training import fit
from sparse24.files import FileError


def test_digits_are_always_there_and_apart():
    images = Sources().images("digits", 1200, 1000)
    assert images.x.shape == (1200, 1, 8, 8)
    assert len(images.judged_x) == 597
    assert 0 <= float(images.x.min()) <= float(images.x.max()) <= 1


def test_a_folder_of_the_users_comes_first(tmp_path):
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for part, count in (("train", 6), ("t10k", 4)):
        with gzip.open(folder / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28) + bytes([51]) * (count * 784))
        with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(range(count)))
    images = Sources(tmp_path).images("fashion", 5, 10)
    assert images.x.shape == (5, 1, 28, 28)
    assert torch.allclose(images.x, torch.tensor(0.2))
    assert images.judged_y.tolist() == [0, 1, 2, 3]
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"not gzip")
    with pytest.raises(FileError, match=r"train-images-idx3-ubyte\.gz"):
        Sources(tmp_path).images("fashion", 5, 10)


def test_verses_must_be_as_many_on_both_sides(tmp_path):
    folder = tmp_path / "bible"
    folder.mkdir()
    (folder / "en.txt").write_text("one\ntwo\n")
    (folder / "es.txt").write_text("uno\n")
    with pytest.raises(FileError, match=r"en\.txt has 2 lines, es\.txt 1: they must be as many"):
        Sources(tmp_path).verses()
    (folder / "es.txt").write_text("uno\ndos\n")
    assert Sources(tmp_path).verses() == [("one", "uno"), ("two", "dos")]


def test_missing_data_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("sparse24.commands.study.sources.DEBIAN", {})
    with pytest.raises(
        FileError, match=r"apt-get install python3\.11-doc, or put them under --data DIR as DIR/text"
    ):
        Sources(tmp_path).texts()
    with pytest.raises(FileError, match="there is no such folder of data"):
        Sources(tmp_path / "no")


def test_pronunciations_are_words_of_letters_without_stress(tmp_path):
    (tmp_path / "cmudict").mkdir()
    (tmp_path / "cmudict" / "cmudict.dict").write_text("admit AH0 D M IH1 T\na(2) EY1\n'tis T IH1 Z # old\n")
    assert Sources(tmp_path).pronunciations() == [("admit", ["AH", "D", "M", "IH", "T"])]


def test_edits_are_levenshteins():
    assert pairs._edits([1, 2, 3], [1, 2, 3]) == 0
    assert pairs._edits([1, 2, 3], [2, 3, 4]) == 2
    assert pairs._edits([], [1, 2]) == 2


def write_words(tmp_path):
    (tmp_path / "cmudict").mkdir()
    letters = "abcdefgh"
    words = ["".join(letters[(i >> (3 * k)) % 8] for k in range(4)) for i in range(0, 4096, 5)]
    lines = [f"{word} {' '.join(c.upper() for c in word)}" for word in words]
    (tmp_path / "cmudict" / "cmudict.dict").write_text("\n".join(lines))


def test_spelling_becomes_sound(tmp_path):
    write_words(tmp_path)
    task = pairs.Phonemes(Sources(tmp_path), False, lambda tokens: sequences.Transformer(tokens, 32))
    torch.manual_seed(0)
    before = task.score(task.network().eval())
    after = task.score(fit(task.network(), task.loss, Training("adamw", 5e-3, 120), 0))
    assert after < before / 2


def test_edits_are_learned(tmp_path):
    write_words(tmp_path)
    task = pairs.Edits(Sources(tmp_path), False, lambda tokens: sequences.Levenshtein(tokens, 32))
    torch.manual_seed(0)
    model = task.network().eval()
    before = task.score(model)
    assert task.score(model) == before  # the same edits each time
    assert task.score(fit(model, task.loss, Training("adamw", 5e-3, 60), 0)) < 0.8 * before


def test_bytes_are_judged_on_files_of_their_own(tmp_path):
    (tmp_path / "text").mkdir()
    for i in range(32):
        (tmp_path / "text" / f"{i:02}.txt").write_bytes((b"judge " if i % 16 == 0 else b"train ") * 200)
    task = Bytes(Sources(tmp_path), True, lambda: language.TransformerXl(16, 1, 2, 32), 64, 4)
    assert b"train" not in bytes(task._judge.tolist())
    assert b"judge" not in bytes(task._train.tolist())
    torch.manual_seed(0)
    assert task.score(task.network().eval()) == pytest.approx(
        8.0, abs=1.0
    )  # bits of a byte that nothing is known of


def test_scenes_have_their_things_where_their_boxes_are():
    images = Sources().images("digits", 100, 100)
    x, objects = scenes.pasted(images.x, images.y, 12, 1)
    assert torch.equal(scenes.pasted(images.x, images.y, 12, 1)[0], x)
    assert bool(((objects.labels >= 0).sum(1) >= 1).all())
    for scene in range(12):
        for number in torch.where(objects.labels[scene] >= 0)[0].tolist():
            left, top, right, bottom = objects.boxes[scene, number].int().tolist()
            mask = objects.masks[scene, number]
            assert bool(mask.any())
            mask[top:bottom, left:right] = 0
            assert not bool(mask.any())
            assert 4 <= min(right - left, bottom - top) <= max(right - left, bottom - top) <= 24


@pytest.mark.parametrize(
    ("shift", "label", "least", "most"), [(0, 0, 1.0, 1.0), (1, 0, 0.3, 0.95), (40, 0, 0, 0), (0, 1, 0, 0)]
)
def test_average_precision_is_cocos(shift, label, least, most):
    pytest.importorskip(
        "pycocotools", reason="pycocotools, which judges detection, is not installed (extra study)"
    )
    truth = Objects(
        torch.tensor([[[4.0, 4.0, 24.0, 24.0]]] * 3), torch.zeros(3, 1, dtype=torch.long), torch.zeros(0)
    )
    found = truth.boxes + shift
    value = scenes.average_precision(found, torch.full((3, 1), 0.9), torch.full((3, 1), label), truth)
    assert least - 1e-6 <= value <= most + 1e-6


def test_training_is_the_same_for_a_seed_and_not_for_another():
    task = Images(Sources(), True, residual.resnet34)

    def trained(seed):
        torch.manual_seed(5)
        return fit(task.network(), task.loss, Training("sgd", 0.05, 3), seed).state_dict()

    first, second, third = trained(0), trained(0), trained(1)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["head.weight"], third["head.weight"])


def test_a_training_that_diverges_is_an_error():
    task = Images(Sources(), True, residual.resnet34)
    torch.manual_seed(0)
    with pytest.raises(FloatingPointError, match="the training diverged"):
        fit(
            task.network(),
            lambda model, draw: task.loss(model, draw) * float("inf"),
            Training("sgd", 0.1, 2),
            0,
        )


def test_rows_are_of_every_family_and_told_apart():
    assert len(ROWS) >= 20
    assert len({row.key for row in ROWS}) == len(ROWS)
    assert len({row.family for row in ROWS}) == 4
    assert sum(row.qat for row in ROWS) == 4
    assert {row.training.dtype for row in ROWS} == {"fp32", "bf16"}
    row = of_key("vgg16")
    longer = row._replace(training=Training("sgd", 0.05, 901))
    assert len({identity(row, False), identity(row, True), identity(longer, False)}) == 3
    with pytest.raises(ValueError, match="there is no row 'vgg'; the rows are resnet34"):
        of_key("vgg")
