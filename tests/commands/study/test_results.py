import json

import pytest

from sparse24.commands.study.results import Results
from sparse24.files import FileError


def test_what_is_added_is_there_for_the_next_run(tmp_path):
    path = tmp_path / "deep" / "results.jsonl"
    Results(path).add("a/0/dense", "id", {"score": 1.5})
    again = Results(path)
    kept = again.get("a/0/dense", "id")
    assert kept is not None
    assert kept["score"] == 1.5
    assert again.get("a/0/dense", "another") is None


def test_a_line_that_a_crash_cut_short_costs_that_line_alone(tmp_path):
    path = tmp_path / "results.jsonl"
    results = Results(path)
    for name in ("a", "b"):
        results.add(name, "id", {"score": 1})
    path.write_bytes(path.read_bytes()[:-9])
    after = Results(path)
    assert after.get("a", "id") is not None
    assert after.get("b", "id") is None
    after.add("b", "id", {"score": 2})
    after.add("c", "id", {"score": 3})
    whole = Results(path)
    assert [whole.get(name, "id")["score"] for name in "abc"] == [1, 2, 3]  # type: ignore[index]


def test_a_later_result_of_a_unit_counts(tmp_path):
    results = Results(tmp_path / "r.jsonl")
    results.add("a", "old", {"score": 1})
    results.add("a", "new", {"score": 2})
    assert Results(tmp_path / "r.jsonl").get("a", "old") is None
    assert Results(tmp_path / "r.jsonl").get("a", "new")["score"] == 2  # type: ignore[index]


def test_results_of_another_format_are_not_written_over(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"format": 99, "unit": "a"}) + "\n")
    with pytest.raises(FileError, match=r"not results of a study in format 1: give another --out"):
        Results(path)
