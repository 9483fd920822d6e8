"""The command: units in processes, kept when they are done, whatever happens to the study."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sparse24.__main__ import main
from sparse24.commands import study
from sparse24.commands.study import comparison, schedule, ways
from sparse24.commands.study.rows import ROWS, of_key
from sparse24.commands.study.ways import Unit


def plan(tmp_path, **changed):
    made = schedule.Plan(("resnet34", comparison.KEY), (0, 1), (), True, None, tmp_path, 1, 1.0)
    return made._replace(**changed)


def test_a_seed_of_all_rows_comes_before_the_next_and_starts_before_what_they_start(tmp_path):
    found = schedule.units(plan(tmp_path))
    assert [unit.seed for unit in found] == sorted(unit.seed for unit in found)
    for unit in found:
        start = schedule.start_of(unit)
        assert not start or found.index(unit._replace(way=start)) < found.index(unit)
    assert {unit.way for unit in found if unit.row == comparison.KEY} == set(comparison.WAYS)
    assert set(ways.WAYS) == {unit.way for unit in found if unit.row == "resnet34"}


def test_every_row_has_dense_sparse_and_int8():
    assert all(ways.ways_of(row)[:3] == ["dense", "sparse", "int8"] for row in ROWS)
    assert "qat" not in ways.ways_of(of_key("ssd"))


def run(out, *arguments):
    return main(["study", "--quick", "--out", str(out), "--jobs", "1", "--only", "resnet34", *arguments])


def lines(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_a_study_goes_on_where_it_stopped_and_ends_in_a_page(tmp_path, capsys):
    out = tmp_path / "study"
    assert run(out, "--ways", "dense") == 0
    assert run(out, "--ways", "dense", "sparse", "int8") == 0
    printed = capsys.readouterr().out
    assert "1 units are done, 2 are left" in printed
    found = lines(out)
    assert [line["way"] for line in found] == ["dense", "sparse", "int8"]
    assert all(0 <= line["score"] <= 100 for line in found)
    assert 0.4 < found[1]["pruned"] < 0.51
    assert found[0]["pruned"] < 0.01
    page = (out / "index.html").read_text()
    assert "ResNet-34" in page
    assert "| ResNet-34 |" in (out / "STUDY.md").read_text()
    assert run(out, "--ways", "dense", "sparse", "int8") == 0
    assert len(lines(out)) == 3


def test_what_begins_with_a_network_that_is_not_there_says_so(tmp_path, capsys):
    assert run(tmp_path / "study", "--ways", "sparse") == 1
    assert (
        "Not there: resnet34/0/sparse ('dense', which it begins with, is not there)"
        in (tmp_path / "study" / "STUDY.md").read_text()
    )


def test_kill_9_in_the_middle_loses_nothing_and_leaves_no_process(tmp_path):
    out = tmp_path / "study"
    command = [sys.executable, "-m", "sparse24", "study", "--quick", "--out", str(out), "--jobs", "1",
               "--only", "resnet34", "--ways", "dense", "again", "sparse"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [process.stdout.readline(), process.stdout.readline()]
    assert "resnet34/0/dense" in told[1]
    time.sleep(0.5)  # the next one has begun
    child = children(process.pid)
    assert child
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [line["way"] for line in lines(out)] == ["dense"]
    end = time.monotonic() + 60
    while any(alive(pid) for pid in child):
        assert time.monotonic() < end, "a unit outlives the study"
        time.sleep(0.1)
    assert subprocess.run(command, check=False, capture_output=True, timeout=300).returncode == 0
    assert [line["way"] for line in lines(out)] == ["dense", "sparse", "again"]


def children(pid):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    if int(file.read().rpartition(")")[2].split()[1]) == pid:
                        found.append(int(name))
            except OSError:
                continue
    return found


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_unit_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def answer(running, text):
        if running.unit.way == "dense":
            return {"error": "no data: install them"}
        raise AssertionError("nothing begins with what is not there")

    monkeypatch.setattr(schedule, "_answer", answer)
    assert run(tmp_path / "study", "--ways", "dense", "sparse") == 1
    assert "resnet34/0/dense: failed: no data: install them" in capsys.readouterr().out
    assert "no data: install them" in (tmp_path / "study" / "STUDY.md").read_text()


def test_a_unit_that_takes_too_long_is_ended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(schedule, "LIMIT", 0.2)
    assert run(tmp_path / "study", "--ways", "dense") == 1
    assert "it took more than" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["--only", "lenet"], "there is no row 'lenet'; the rows are resnet34,"),
    (["--ways", "dense", "dnese"], "there is no way 'dnese'; the ways are dense,"),
    (["--seeds", "0"], "seeds and minutes must be positive and jobs 0 or more, not 0, 300 and 0"),
    (["--quick", "--write"], "do not belong in papers"),
    (["--data", "/nowhere"], "/nowhere: there is no such folder of data"),
])  # fmt: skip
def test_mistakes_are_named(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # outside a checkout: --quick --write is refused before that is looked at
    status = main(["study", "--out", str(tmp_path / "s"), *arguments])
    assert status == 2
    assert message in capsys.readouterr().err


def test_two_studies_in_one_folder_are_refused(tmp_path, capsys):
    with study._alone(tmp_path):
        assert run(tmp_path) == 2
    assert "another study is running there" in capsys.readouterr().err


def test_a_changed_row_is_done_anew(tmp_path):
    quick, whole = (schedule.identity(Unit("vgg16", 0, "dense"), q) for q in (True, False))
    assert quick != whole
