from sparse24.commands.study import comparison, paper
from sparse24.commands.study.ways import Unit


def results(differences, seeds=(0, 1, 2)):
    kept = []
    for key, difference in differences.items():
        for seed in seeds:
            for way, score in (("dense", 90.0 + seed / 10), ("sparse", 90.0 + seed / 10 + difference)):
                kept.append((Unit(key, seed, way), {
                    "score": score, "metric": "accuracy, %", "higher_is_better": True,
                    "data": "Fashion-MNIST", "parameters": 1234567, "layers": 12, "width": 64,
                    "whole_seconds": 36.0, "jobs": 2,
                }))  # fmt: skip
    return kept


def test_rows_that_fail_come_first():
    parts = paper.sections(results({"resnet34": 0.1, "vgg16": -0.5, "xception": -0.1}))
    assert [part.title for part in parts] == ["Summary", "Rows that fail", "Image classification"]
    assert parts[0].text.startswith("3 networks, 3 of them with two seeds or more, of which 2 pass.")
    failing = parts[1].rows
    assert [row[0] for row in failing] == ["network", "VGG-16"]
    assert failing[1][1:7] == ["12", "64", "1,234,567", "SGD fp32", "900", "accuracy, %, Fashion-MNIST"]
    assert failing[1][8:13] == ["90.1", "89.6", "-0.5", "-0.115", "no"]
    assert [row[0] for row in parts[2].rows[1:]] == ["ResNet-34", "VGG-16", "Xception"]


def test_nothing_fails_where_nothing_is_known():
    parts = paper.sections(results({"vgg16": -5.0}, seeds=(0,)))
    assert "Rows that fail" not in [part.title for part in parts]
    assert parts[1].rows[1][11:13] == ["-", "one seed"]


def test_what_is_not_there_is_told():
    told = paper.about(results({"vgg16": 0.0}), {"ssd/0/dense": "no data"}, ["vgg16", "ssd", "bert"])
    assert "6 units with the seeds 0, 1, 2, 0.1 hours of one core, 2 side by side." in told
    assert told.endswith("Not begun yet: ssd, bert. Not there: ssd/0/dense (no data).")


def test_a_study_without_results_is_a_page_that_says_so():
    parts = paper.sections([])
    assert parts[0].text.startswith("0 networks")
    assert "<h2>Summary</h2>" in paper.page(parts, "sparse24 study", "none").html()


def test_the_comparison_is_a_table_and_a_plot():
    kept = [
        (Unit(comparison.KEY, seed, way), {
            "score": 1.5 + seed / 100 + (0.25 if way == "blocks" else 0.0), "kept": 0.5, "parameters": 10,
            "curve": [[0, 9.0], [10, 2.0], [20, 1.5 + seed / 100]], "higher_is_better": False,
            "metric": "nats", "data": "text", "whole_seconds": 1.0, "jobs": 1,
        })
        for seed in (0, 1) for way in ("start", "dense", "blocks")
    ]  # fmt: skip
    part = paper.sections(kept)[-1]
    assert part.title == "The alternatives"
    assert [row[5] for row in part.rows[1:]] == ["+0.0000", "+0.0000", "+0.2500"]
    assert "blocks of 32 x 32" in part.figure
    assert "dense, before" not in part.figure
    text = paper.markdown([part], "sparse24 study", "here")
    assert "| blocks of 32 x 32, half of them | 2 | 50% | 10 | 1.7550 | +0.2500 | 0.0100 |" in text
